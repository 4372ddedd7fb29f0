"""Reads pairs of texts with people's similarity scores.

In: the folder sts/. Out: the folders of the sets that are there, and the parts of each set by name.
A file has our layout (`score text_a text_b`), or that of SICK, STS-B, GLUE or MTEB. The module
computes no correlation.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.evals import name_files, note
from jaxcpt.lines import find_file, parse_float, read_jsonl, read_lines, read_tsv

SICK_R, STS_B = "sick-r", "sts-b"
SETS = ("sts12", "sts13", "sts14", "sts15", "sts16", SICK_R, STS_B)
OTHER_NAMES = {
    "sick": SICK_R,
    "sickr": SICK_R,
    "sickr-sts": SICK_R,
    "stsb": STS_B,
    "stsbenchmark": STS_B,
    "stsbenchmark-sts": STS_B,
    **{f"{name}-sts": name for name in SETS[:5]},
}
"""Other names of the folders of sets, in lower case. The names of MTEB end in -sts."""

COLUMNS = ("score", "text_a", "text_b")
SICK_COLUMNS = ("relatedness_score", "sentence_A", "sentence_B")
SENTENCE_COLUMNS = ("score", "sentence1", "sentence2")
"""The columns of score, first text and second text in files of GLUE and MTEB."""
STS_B_PLACES = (4, 5, 6)
"""The indices of the same three fields in STS-B's own files, which have no header."""
MTEB_FILES = {f"{part}.jsonl": part for part in ("train", "dev", "validation", "test")}
SICK_FILES = {
    "SICK.txt": "whole",
    "SICK_train.txt": "train",
    "SICK_trial.txt": "trial",
    "SICK_test_annotated.txt": "test",
}
STS_B_FILES = {"sts-train.csv": "train", "sts-dev.csv": "dev", "sts-test.csv": "test"}
OWN_FILES = {SICK_R: SICK_FILES, STS_B: STS_B_FILES}
"""The files that the authors of these sets distribute, with the names of their parts."""
MEAN, ALL = "mean", "all"
LARGEST = 1e6
"""The largest allowed score. Sums of squares of larger scores could overflow."""

Subset = tuple[np.ndarray, list[str], list[str]]
"""Scores [n], the first texts and the second texts of n pairs."""
Row = tuple[int, Sequence[str]]
"""The number of a line; its score and its two texts."""


def find_set(folder: Path) -> str:
    """The set in a folder of sts/, by the folder's name; empty if the name belongs to no set."""
    name = folder.name.lower()
    return name if name in SETS else OTHER_NAMES.get(name, "")


def list_folders(parent: Path) -> list[Path]:
    """The folders of sets in sts/, in the order of SETS."""
    found = [path for path in sorted(parent.glob("*/")) if find_set(path)]
    return sorted(found, key=lambda path: SETS.index(find_set(path)))


def read_set(folder: Path) -> tuple[str, dict[str, Subset]]:
    """The name of a set, and its parts by name. Raises UserError, also if two folders have it."""
    name = find_set(folder)
    for other in list_folders(folder.parent):
        if find_set(other) == name and other != folder:
            raise UserError(f"{folder}: {other.name} is the set {name} too; keep one of the two")
    read = {part: read_part(path) for part, path in list_parts(folder).items()}
    parts = {part: subset for part, subset in read.items() if subset is not None}
    if not parts:
        raise UserError(f"{folder}: no part of {name} has scores; add one that has")
    return name, parts


def list_parts(folder: Path) -> dict[str, Path]:
    """The files of a set by the name of their part. Raises UserError if there are none."""
    paths = [*folder.glob("*.tsv"), *folder.glob("*.tsv.gz")]
    parts = name_files(paths, ".tsv", taken=(MEAN, ALL))
    own = OWN_FILES.get(find_set(folder), {})
    for file, part in (own | MTEB_FILES).items():
        if path := find_file(folder / file):
            if part in parts:
                raise UserError(f"{path}: {parts[part].name} is the part {part} too; keep one")
            parts[part] = path
    if "whole" in parts and len(parts) > 1:
        raise UserError(f"{parts['whole']}: holds all parts; keep only it, or only the parts")
    if not parts:
        other = "".join(f", or {file}" for file in own)
        raise UserError(
            f"{folder}: no .tsv files; expected one per subset, with {' '.join(COLUMNS)}{other}"
        )
    return parts


def read_part(path: Path) -> Subset | None:
    """The pairs of a file; None if it has no scores, like the test part of GLUE."""
    rows = _read_rows(path)
    if rows is None:
        note(f"{path}: has no column 'score', like the test part of GLUE; not scored")
        return None
    gold, texts_a, texts_b = [], [], []
    for number, (score, text_a, text_b) in rows:
        value = parse_float(score, path, number, "score")
        if abs(value) > LARGEST:
            raise UserError(
                f"{path}:{number}: score {score} is out of range; the most is {LARGEST:g}"
            )
        gold.append(value)
        texts_a.append(text_a)
        texts_b.append(text_b)
    if len(set(gold)) < 2:
        raise UserError(f"{path}: {len(gold)} pairs, {len(set(gold))} scores; needs at least 2")
    return np.array(gold), texts_a, texts_b


def _read_rows(path: Path) -> Iterator[Row] | None:
    """The rows of a file in any of the layouts; None for a file of GLUE without scores."""
    name = path.name.removesuffix(".gz")
    if name in MTEB_FILES:
        return _read_objects(path)
    if name in STS_B_FILES:
        return _read_places(path, STS_B_PLACES, header=False)
    first = next(read_lines(path), None)
    fields = first.text.split("\t") if first else []
    for columns in (SICK_COLUMNS, SENTENCE_COLUMNS):
        if set(columns) <= set(fields):
            return _read_places(path, [fields.index(column) for column in columns], header=True)
    if set(SENTENCE_COLUMNS[1:]) <= set(fields):
        return None
    return read_tsv(path, COLUMNS)


def _read_objects(path: Path) -> Iterator[Row]:
    score, *texts = SENTENCE_COLUMNS
    for number, row in read_jsonl(path, dict.fromkeys(texts, str)):
        yield number, [str(row.get(score)), *[row[text] for text in texts]]


def _read_places(path: Path, places: Sequence[int], header: bool) -> Iterator[Row]:
    """Yields the fields at these indices of each line. Quotes are ordinary characters. A line may
    have more fields."""
    for line in read_lines(path):
        fields = line.text.split("\t")
        if len(fields) <= max(places):
            raise UserError(
                f"{path}:{line.number}: expected {max(places) + 1} fields or more between tabs, "
                f"found {len(fields)}"
            )
        if line.number > 1 or not header:
            yield line.number, [fields[place] for place in places]
