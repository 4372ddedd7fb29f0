"""Finds texts of evaluation sets in pairs.

In: folders of evaluation sets. Out: an index of their word n-grams, in which one side of a pair can
be looked up. An evaluation text counts as found if it and the side contain the same `ngram_words`
consecutive words. A shorter evaluation text counts as found if the side contains all of it. A text
of fewer than WHOLE_WORDS words counts as found only if it is the whole side, because such texts
("read a file") occur by chance. This module does not know what happens to the pair then.
"""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.beir import read_judgements
from jaxcpt.errors import UserError
from jaxcpt.files import write_file
from jaxcpt.lines import read_jsonl, read_lines, read_quoted, require_file
from jaxcpt.mining.words import fold_words

FIELDS = ("text", "title", "code", "intent", "docstring", "sentence")
"""Columns whose names start with one of these hold texts. CodeSearchNet's query is `docstring`, and
SICK-R and GLUE have `sentence_A` and `sentence1`."""
FAMILIES = ("linear_probe", "sts", "retrieval", "code_search", "dpr")
"""The folders of evaluation sets. Folders beside them may hold training text and are not read."""
TRAIN = re.compile(r"(?i)(?<![a-z])train(?![a-z])")
"""Matches the path of a file with training text of an evaluation set."""
JUDGED = {"queries.jsonl": "query-id", "corpus.jsonl": "corpus-id"}
"""The files of a set in BEIR layout, each with the column of the qrels that holds its ids."""
QUESTIONS, OTHER_QUESTIONS = "qas/*-test.csv", "qas/*.csv"
PASSAGES = "wikipedia_split/*"
"""Files of the DPR download. Its passages are not read, because they are all of Wikipedia."""
SICK = "SICK*.txt"
"""Files of SICK-R, with columns that are divided by tabs."""
UNREAD = re.compile(r"(?i)\.(tsv|jsonl|ndjson|json|csv|parquet|arrow)(\.\w+)?$")
"""Matches the name of a file with data. If it is not read, the set is not decontaminated."""
WHOLE_WORDS = 8
"""A text with fewer words counts only if it is the whole side."""
BASE = 0x9E3779B97F4A7C15
"""The base of the hash polynomial. It is odd, so it has an inverse modulo 2^64."""
MARK = "\1"
"""Added before a text that must be the whole side."""
SET_BITS = 12
"""The lowest bits of an entry are the number of the evaluation set. 52 bits of hash remain."""
SEEN_BITS = 25
"""A table of this many upper bits rules out most hashes. It is faster than a binary search."""


def read_evaluations(folder: str) -> Iterator[tuple[str, str]]:
    """Yields (set, text) for each evaluation text below a folder (docs/mining.md shows its layout).

    Training files are not read. If a set has qrels, only the texts that the qrels of a split other
    than train name are read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--decontaminate {folder}: no such folder of evaluation sets")
    roots = [root / name for name in FAMILIES if (root / name).is_dir()] or [root]
    has_texts = False
    for path in sorted(path for below in roots for path in below.rglob("*")):
        if not TRAIN.search(path.relative_to(root).as_posix()):
            try:
                for text in _read_texts(path):
                    has_texts = True
                    yield path.parent.relative_to(root).as_posix(), text
            except UserError as error:  # a part of a set is not enough
                raise UserError(f"--decontaminate: {error}") from None
    if not has_texts:
        raise UserError(
            f"--decontaminate {folder}: found no evaluation texts (training text is not read); "
            "expected .tsv or .jsonl files, or DPR's qas/*-test.csv"
        )


def _read_texts(path: Path) -> Iterator[str]:
    plain = path.with_name(path.name.removesuffix(".gz"))
    if path.is_dir():
        if path.name == "qrels":
            for name in JUDGED:
                require_file(path.parent / name, "the texts that the qrels name")
    elif plain.match(PASSAGES) or plain.parent.name == "qrels":
        return
    elif (path.parent / "qrels").is_dir():
        if plain.name in JUDGED:
            yield from _read_judged_texts(path, JUDGED[plain.name])
    elif plain.suffix in (".tsv", ".jsonl") or plain.match(SICK) or plain.match(QUESTIONS):
        for where, row in _read_rows(path):
            yield from _list_texts(where, row)
    elif UNREAD.search(path.name) and not plain.match(OTHER_QUESTIONS):
        raise UserError(f"{path}: cannot be read; convert it to .tsv or .jsonl, or move it away")


def _read_judged_texts(path: Path, column: str) -> Iterator[str]:
    """Yields the texts of the rows that the qrels name. Raises UserError if one of them is missing.

    A file may have other rows, for other splits.
    """
    judged = _read_judged(path.parent / "qrels", column)
    missing = set(judged)
    for number, row in read_jsonl(path, {"_id": str}):
        if row["_id"] in judged:
            missing.discard(row["_id"])
            yield from _list_texts(f"{path}:{number}", row)
    if missing:
        raise UserError(
            f"{path}: lacks {len(missing)} of {len(judged)} rows that the qrels name, such as "
            f"{min(missing)!r}; add them, or remove their lines from {path.parent / 'qrels'}"
        )


def _list_texts(where: str, row: dict[str, Any]) -> list[str]:
    """Returns the texts of a row. Raises UserError if it has none, or another kind of value."""
    fields = {field: value for field, value in row.items() if field.startswith(FIELDS)}
    for field, value in fields.items():
        if field in FIELDS and isinstance(value, list | dict):
            kind = type(value).__name__
            raise UserError(f"{where}: '{field}' must be a text, found {kind}; make it one")
    texts = [value for value in fields.values() if isinstance(value, str)]
    if not texts:
        raise UserError(
            f"{where}: found no text; expected a column or field whose name begins with "
            f"{', '.join(FIELDS)}, found {', '.join(map(str, row)) or 'none'}"
        )
    return [text for text in texts if text]


def _read_judged(qrels: Path, column: str) -> set[str]:
    """Returns the ids in a column of the qrels of every split except train."""
    judged = set()
    for path in sorted(qrels.glob("*.tsv*")):
        if not TRAIN.search(path.name):
            for _, query, document, _ in read_judgements(path):
                judged.add(query if column == "query-id" else document)
    return judged


def _read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("FILE:LINE", row by column or field) of each row of a file."""
    plain = path.name.removesuffix(".gz")
    if plain.endswith(".jsonl"):
        yield from ((f"{path}:{number}", row) for number, row in read_jsonl(path))
    elif plain.endswith(".csv"):
        yield from ((f"{path}:{n}", {"text": row[0]}) for n, row in read_quoted(path) if row)
    else:
        names: list[str] | None = None
        for line in read_lines(path):
            fields = line.text.split("\t")
            if names is None:
                names = line.text.removeprefix("\ufeff").split("\t")
                _list_texts(f"{path}:{line.number}", dict(zip(names, names, strict=True)))
            elif line.text:
                row = dict.fromkeys(names, "") | dict(zip(names, fields, strict=False))
                yield f"{path}:{line.number}", row


class Index:
    """The sorted hashes of the n-grams of all evaluation sets."""

    def __init__(self, entries: np.ndarray, names: Sequence[str], ngram_words: int) -> None:
        self.entries, self.names, self.ngram_words = entries, names, ngram_words
        self.seen = np.zeros(2**SEEN_BITS, bool)
        self.seen[entries >> np.uint64(64 - SEEN_BITS)] = True

    @staticmethod
    def build(folders: Sequence[str], ngram_words: int) -> "Index":
        """Reads all texts below the folders. Raises UserError for a folder without texts."""
        if ngram_words < WHOLE_WORDS:
            raise UserError(f"--ngram-words {ngram_words}: expected {WHOLE_WORDS} or more")
        names: dict[str, int] = {}
        arrays = [np.empty(0, np.uint64)]
        for folder in folders:
            for name, text in read_evaluations(folder):
                number = names.setdefault(name, len(names))
                if words := fold_words(text):
                    count = min(len(words), ngram_words)
                    short = count < WHOLE_WORDS
                    hashes = hash_ngrams([MARK, *words] if short else words, [count + short])
                    arrays.append(hashes | np.uint64(number))
        if len(names) > 2**SET_BITS:
            raise UserError(
                f"--decontaminate: found {len(names)} evaluation sets; give at most {2**SET_BITS}"
            )
        return Index(np.unique(np.concatenate(arrays)), list(names), ngram_words)

    def save(self, path: Path) -> None:
        write_file(path.with_suffix(".npy"), lambda file: np.save(file, self.entries))
        write_file(path.with_suffix(".json"), json.dumps([self.names, self.ngram_words]))

    @staticmethod
    @functools.cache
    def load(path: Path) -> "Index":
        """Maps the file into memory, so that the workers of one machine share its pages.

        The result is cached, so each worker loads an index only once.
        """
        names, ngram_words = json.loads(path.with_suffix(".json").read_text())
        return Index(np.load(path.with_suffix(".npy"), mmap_mode="r"), names, ngram_words)

    def find(self, words: list[str]) -> tuple[str, str] | None:
        """Returns (evaluation set, shared words) of the first match in the words of a side."""
        if not words:
            return None
        short = len(words) < WHOLE_WORDS
        lengths = [len(words) + 1] if short else list(range(WHOLE_WORDS, self.ngram_words + 1))
        hashes = hash_ngrams([MARK, *words] if short else words, lengths)
        likely = np.flatnonzero(self.seen[hashes >> np.uint64(64 - SEEN_BITS)])
        for place in likely:
            at = int(np.searchsorted(self.entries, hashes[place]))
            entry = int(self.entries[at]) if at < len(self.entries) else 0
            if entry >> SET_BITS == int(hashes[place]) >> SET_BITS:
                runs = [words[i : i + n] for n in lengths for i in range(len(words) - n + 1)]
                return self.names[entry % 2**SET_BITS], " ".join(runs[place] if runs else words)
        return None


def hash_ngrams(words: list[str], lengths: Sequence[int]) -> np.ndarray:
    """Returns the hashes of all runs of words of these lengths. Their lowest SET_BITS are 0.

    A hash is a polynomial modulo 2^64 in the bytes of the words, joined by spaces. It is the
    difference of two prefix sums times BASE^-position, so it does not depend on where the run is.
    """
    text = np.frombuffer(" ".join(words).encode(errors="surrogatepass"), np.uint8)
    powers, inverses = _powers(1 << len(text).bit_length())
    terms = (text.astype(np.uint64) + np.uint64(1)) * powers[: len(text)]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])
    spaces = np.flatnonzero(text == ord(" "))
    starts, ends = np.append(0, spaces + 1), np.append(spaces, len(text))
    first = np.concatenate([starts[: max(0, len(words) - count + 1)] for count in lengths])
    last = np.concatenate([ends[count - 1 :] for count in lengths])
    hashes = (sums[last] - sums[first]) * inverses[first]
    # The lower bits of such a sum are not random enough, so mix the upper bits into them.
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return hashes & ~np.uint64(2**SET_BITS - 1)


@functools.cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    bases = np.array([1] + [BASE] * (count - 1), np.uint64)
    inverse = pow(BASE, -1, 2**64)
    return np.cumprod(bases), np.cumprod(np.array([1] + [inverse] * (count - 1), np.uint64))
