"""Input paths in, units of work out: which files are read, in which parts, and which are not.

Symbolic links inside an input are never followed. It reads no file's content.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.mining.documents import (
    ARCHIVES,
    HTML,
    LINES,
    WARC,
    ZIP,
    Part,
    Problem,
    Reading,
    is_wanted,
    mend_name,
    suffixes,
    tell_error,
)

PART_BYTES = 16 * 2**20
"""Large uncompressed files are read in parts of this size, by as many workers."""
UNIT_BYTES = 4 * 2**20
"""Small files are read together until they make up this size."""
EXPANSION = 4
"""Assumed ratio of a compressed file's content to its size."""

Unit = tuple[Part, ...]


@dataclass(frozen=True)
class Mining:
    """What to mine and how; everything here may change the result, and stands in the card."""

    inputs: tuple[str, ...]
    name: str
    version: str = "1.0.0"
    split_by: str = "document"
    heldout_share: float = 0.01
    near_duplicate: float = 0.8
    """Jaccard similarity from which pairs are near duplicates; 0: only exact ones go."""
    decontaminate: tuple[str, ...] = ()
    ngram_words: int = 13
    shards: int | None = None
    """None: one for each SHARD_BYTES of input."""
    max_bad_share: float = 0.1


def list_units(inputs: Sequence[str], reading: Reading) -> tuple[list[Unit], int, list[Problem]]:
    """Work units of about UNIT_BYTES, the bytes they will expand to, and links not followed.

    Raises UserError for an input that does not exist and when nothing is there to read.
    """
    files: list[tuple[Part, int]] = []
    problems: list[Problem] = []
    for given in inputs:
        if given.startswith("tfds:"):
            files += _list_tfds(given)
        elif os.path.isdir(given):
            for found in _walk(Path(given), reading):
                if isinstance(found, Problem):
                    problems.append(found)
                else:
                    files += _list_parts(str(found), _below(found, Path(given)), reading)
        elif os.path.isfile(given):
            files += _list_parts(given, mend_name(os.path.basename(given)), reading)
        else:
            raise UserError(f"{given}: no such file or folder; --input takes paths and tfds:NAME")
    if not files:
        raise UserError(f"{', '.join(inputs) or '--input'}: no input; no file there can be mined")
    units: list[Unit] = []
    unit_bytes = 0
    for part, size in sorted(files, key=lambda file: (file[0].name, file[0].path, file[0].index)):
        if not units or unit_bytes + size > UNIT_BYTES:
            units.append(())
            unit_bytes = 0
        units[-1] += (part,)
        unit_bytes += size
    return units, sum(size for _, size in files), problems


def _below(path: Path, root: Path) -> str:
    return mend_name((Path(root.resolve().name) / path.relative_to(root)).as_posix())


def _walk(root: Path, reading: Reading) -> Iterator[Path | Problem]:
    """Regular files below `root` that are wanted and not hidden; links that leave are told."""
    inside = root.resolve()
    closed: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=closed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [n for n in names if not n.startswith(".") and is_wanted(n, reading)]
        for name in [*folders, *files]:
            path = Path(folder, name)
            if path.is_symlink():
                if inside not in path.resolve().parents:
                    target = mend_name(os.readlink(path))
                    yield Problem("symbolic link out of the input", _below(path, root), target)
            else:
                mode = path.stat().st_mode
                if stat.S_ISREG(mode):
                    yield path
                elif not stat.S_ISDIR(mode):
                    yield Problem("not a regular file", _below(path, root))
    for error in closed:
        yield Problem("unreadable folder", _below(Path(error.filename), root), tell_error(error))


def _list_parts(path: str, name: str, reading: Reading) -> list[tuple[Part, int]]:
    form, compression = suffixes(path)
    size = os.path.getsize(path) * (EXPANSION if compression or form in ZIP else 1)
    streamed = compression or form in HTML | WARC | ARCHIVES or reading.source_suffixes
    whole = form not in LINES | {".parquet"} and reading.document_start is not None
    count = 1 if streamed or whole else max(1, -(-size // PART_BYTES))
    return [(Part(path, name, index, count), size // count) for index in range(count)]


def _list_tfds(given: str) -> list[tuple[Part, int]]:
    import tensorflow_datasets as tfds  # half a second, and only here

    name, _, split = given.removeprefix("tfds:").partition("#")
    split = split or "train"
    is_folder = os.path.isdir(name)
    try:
        builder = tfds.builder_from_directory(name) if is_folder else tfds.builder(name)
        found = builder.info.splits.get(split)
    except (tfds.core.DatasetNotFoundError, ValueError):
        found = None
    if found is None or builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{given}: no prepared ArrayRecord dataset with a split '{split}' here; prepare it "
            "with tfds.builder(NAME, file_format='array_record').download_and_prepare()"
        )
    path, count = f"tfds:{builder.data_dir}#{split}", found.num_shards
    return [(Part(path, name, index, count), found.num_bytes // count) for index in range(count)]
