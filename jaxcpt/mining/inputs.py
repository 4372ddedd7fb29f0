"""Divides the inputs into units of work.

In: input paths. Out: units. A unit is a group of files or of parts of files. Symbolic links inside
an input are not followed. This module does not read the content of files.
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
    Reading,
    is_wanted,
)
from jaxcpt.mining.raw_document import Problem, describe_error, repair_name, split_suffixes

PART_BYTES = 16 * 2**20
"""A larger uncompressed file is cut into parts of about this size, one for each worker."""
UNIT_BYTES = 4 * 2**20
"""Small files are grouped into one unit up to this size."""
EXPANSION = 4
"""The assumed ratio of a compressed file's content to its size."""

Unit = tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Mining:
    """What to mine and how. Every field may change the result and is written to the data card."""

    inputs: tuple[str, ...]
    name: str
    version: str = "1.0.0"
    split_by: str = "document"
    heldout_share: float = 0.01
    near_duplicate: float = 0.8
    """Pairs with at least this Jaccard similarity are near duplicates. 0: drop only exact ones."""
    decontaminate: tuple[str, ...] = ()
    ngram_words: int = 13
    shards: int | None = None
    """Number of files of each split. None: one for each `pipeline.SHARD_BYTES` of input."""
    max_bad_share: float = 0.1


def list_units(inputs: Sequence[str], reading: Reading) -> tuple[list[Unit], int, list[Problem]]:
    """Returns units of about UNIT_BYTES, their total uncompressed size, and the problems found.

    A problem is an unreadable folder, a special file, or a symbolic link out of the input. Raises
    UserError if an input does not exist or if there is nothing to read.
    """
    files: list[tuple[Part, int]] = []
    problems: list[Problem] = []
    for path in inputs:
        if path.startswith("tfds:"):
            files += _list_tfds(path)
        elif os.path.isdir(path):
            for item in _walk(Path(path), reading):
                if isinstance(item, Problem):
                    problems.append(item)
                else:
                    files += _list_parts(str(item), _name_file(item, Path(path)), reading)
        elif os.path.isfile(path):
            files += _list_parts(path, repair_name(os.path.basename(path)), reading)
        else:
            raise UserError(f"{path}: no such file or folder; --input takes paths and tfds:NAME")
    if not files:
        raise UserError(
            f"{', '.join(inputs) or '--input'}: no input files; name files of a type that this "
            "command reads, or a folder that holds some"
        )
    units: list[Unit] = []
    unit_bytes = 0
    for part, size in sorted(files, key=lambda file: (file[0].name, file[0].path, file[0].index)):
        if not units or unit_bytes + size > UNIT_BYTES:
            units.append(())
            unit_bytes = 0
        units[-1] += (part,)
        unit_bytes += size
    return units, sum(size for _, size in files), problems


def _name_file(path: Path, root: Path) -> str:
    """Returns the path relative to the input folder, with that folder's own name before it."""
    return repair_name((Path(root.resolve().name) / path.relative_to(root)).as_posix())


def _walk(root: Path, reading: Reading) -> Iterator[Path | Problem]:
    """Yields the wanted regular files below `root`. Yields a Problem for what cannot be read.

    Hidden files and folders, and symbolic links to a place inside `root`, are left out.
    """
    inside = root.resolve()
    errors: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [n for n in names if not n.startswith(".") and is_wanted(n, reading)]
        for name in [*folders, *files]:
            path = Path(folder, name)
            if path.is_symlink():
                if inside not in path.resolve().parents:
                    target = repair_name(os.readlink(path))
                    yield Problem("symbolic link out of the input", _name_file(path, root), target)
            else:
                mode = path.stat().st_mode
                if stat.S_ISREG(mode):
                    yield path
                elif not stat.S_ISDIR(mode):
                    yield Problem("not a regular file", _name_file(path, root))
    for error in errors:
        name = _name_file(Path(error.filename), root)
        yield Problem("unreadable folder", name, describe_error(error))


def _list_parts(path: str, name: str, reading: Reading) -> list[tuple[Part, int]]:
    form, compression = split_suffixes(path)
    size = os.path.getsize(path) * (EXPANSION if compression or form in ZIP else 1)
    streamed = compression or form in HTML | WARC | ARCHIVES or reading.source_suffixes
    whole = form not in LINES | {".parquet"} and reading.document_start is not None
    count = 1 if streamed or whole else max(1, -(-size // PART_BYTES))
    return [(Part(path, name, index, count), size // count) for index in range(count)]


def _list_tfds(address: str) -> list[tuple[Part, int]]:
    import tensorflow_datasets as tfds  # the import takes half a second

    name, _, split = address.removeprefix("tfds:").partition("#")
    split = split or "train"
    is_folder = os.path.isdir(name)
    _check_folder(Path(name), address)
    try:
        builder = tfds.builder_from_directory(name) if is_folder else tfds.builder(name)
        info = builder.info.splits.get(split)
        file_format = builder.info.file_format
    except Exception as error:  # from protobuf, etils or tfds
        if is_folder or not isinstance(error, tfds.core.DatasetNotFoundError | ValueError):
            raise UserError(f"{address}: damaged dataset: {describe_error(error)}") from error
        info = file_format = None
    if info is None or file_format != tfds.core.FileFormat.ARRAY_RECORD or not info.num_shards:
        raise UserError(
            f"{address}: found no prepared ArrayRecord dataset with a split '{split}'; prepare it "
            "with tfds.builder(NAME, file_format='array_record').download_and_prepare()"
        )
    path, count = f"tfds:{builder.data_dir}#{split}", info.num_shards
    return [(Part(path, name, index, count), info.num_bytes // count) for index in range(count)]


def _check_folder(folder: Path, address: str) -> None:
    """Raises UserError for a folder that is not a dataset. The text names a dataset inside it."""
    if folder.is_dir() and not (folder / "dataset_info.json").is_file():
        found = [*folder.glob("*/dataset_info.json"), *folder.glob("*/*/dataset_info.json")]
        below = sorted(path.parent for path in found)
        hint = f", such as tfds:{below[-1]}" if below else ""
        raise UserError(
            f"{address}: has no dataset_info.json; give the folder of one version{hint}"
        )
