"""Vectors on disk: a folder of shards that is filled one after another, and goes on after a kill.

    about.json      what the vectors were made of and how they are stored; at the end, how many
    00000.npy       [n, d] of the first texts, float32 or int8
    00000.ids.txt   their ids, one a line

In: texts with ids, one at a time, and a function that embeds some of them. Out: shards to search
or to hand to another index, each a plain NumPy file. It knows no model.

    python -m jaxcpt.vectors --input FOLDER --output FILE.npy|FILE.fvecs
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from jaxcpt.errors import UserError, run_command

T = TypeVar("T")
TEXTS_PER_SHARD = 16_384
ABOUT = "about.json"
NOT_COMPARED = ("path", "documents", "texts")
"""Entries of about.json that may change while the vectors stay what they are."""


class Document(NamedTuple):
    id: str
    text: str


@dataclass(frozen=True)
class Storage:
    """How vectors are kept: `width` leading coordinates (Matryoshka; None: all), int8 or float."""

    width: int | None = None
    int8: bool = False

    def apply(self, vectors_nd: np.ndarray) -> np.ndarray:
        """float32 or int8 [n, width]."""
        if self.width is not None:
            vectors_nd = truncate(vectors_nd, self.width)
        return quantize(vectors_nd) if self.int8 else vectors_nd

    def lose(self, vectors_nd: np.ndarray) -> np.ndarray:
        """float32 unit vectors with what storing them so loses, to measure that."""
        return scale(self.apply(vectors_nd))

    def check(self, width: int) -> "Storage":
        """Raises UserError where a model of that width has fewer coordinates."""
        if self.width is not None and not 0 < self.width <= width:
            raise UserError(f"--width {self.width}: must be from 1 to the model's width, {width}")
        return self


def truncate(vectors_nd: np.ndarray, width: int) -> np.ndarray:
    """The first coordinates, scaled back to unit length: float32 [n, width]."""
    return scale(vectors_nd[:, :width])


def scale(vectors_nd: np.ndarray) -> np.ndarray:
    """float32 of unit length; a zero vector stays zero."""
    vectors_nd = np.asarray(vectors_nd, np.float32)
    return vectors_nd / np.maximum(np.linalg.norm(vectors_nd, axis=1, keepdims=True), 1e-12)


def quantize(vectors_nd: np.ndarray) -> np.ndarray:
    """int8 [n, d], each vector scaled so that its largest coordinate is 127; length is lost."""
    largest_n1 = np.abs(vectors_nd).max(axis=1, keepdims=True)
    return np.rint(vectors_nd * (127 / np.maximum(largest_n1, 1e-12))).astype(np.int8)


@dataclass(frozen=True)
class VectorFolder:
    """A folder that is whole. Made by `open` or `fill`."""

    folder: Path
    about: Mapping[str, Any]

    @staticmethod
    def open(folder: str | Path) -> "VectorFolder":
        """Raises UserError where there is none, or a part of it is missing."""
        folder = Path(folder)
        about = _read_about(folder)
        if about is None:
            raise UserError(f"{folder}: no vectors: it has no {ABOUT}; jaxcpt.embed makes one")
        opened = VectorFolder(folder, about)
        if "texts" not in about:
            raise UserError(f"{folder}: not complete; start the command that fills it again")
        rows = sum(len(shard_nd) for shard_nd in opened.shards())
        if rows != about["texts"]:
            raise UserError(f"{folder}: {rows} vectors of {about['texts']}; shards are missing")
        return opened

    def __len__(self) -> int:
        return self.about["texts"]

    def shards(self) -> Iterator[np.ndarray]:
        """Memory maps [n, d] in order: what is not looked at takes no memory."""
        for path in _list_shards(self.folder):
            try:
                yield np.load(path, mmap_mode="r")
            except (ValueError, EOFError) as error:
                raise UserError(f"{path}: damaged ({error}); delete it and fill again") from None

    def ids(self) -> Iterator[str]:
        for path in _list_shards(self.folder):
            with path.with_suffix(".ids.txt").open(encoding="utf-8", newline="\n") as file:
                yield from (line.rstrip("\n") for line in file)

    @property
    def storage(self) -> Storage:
        return Storage(self.about["width"], self.about["int8"])


def fill(
    folder: Path,
    about: Mapping[str, Any],
    documents: Iterable[Document],
    embed: Callable[[Sequence[str]], np.ndarray],
    storage: Storage,
    texts_per_shard: int = TEXTS_PER_SHARD,
) -> VectorFolder:
    """Writes the shards that are not there yet, each whole or not at all.

    `about` says what the vectors are made of, and perhaps how many `documents` there will be.
    Raises UserError, naming what differs, for a folder that holds others. The same texts are cut
    into the same shards, and each shard is embedded by itself. So a command that was killed and
    started again writes the same bytes.
    """
    about = {
        **about,
        "width": storage.width,
        "int8": storage.int8,
        "texts_per_shard": texts_per_shard,
    }
    _claim(folder, about)
    count, total = 0, f" of {about['documents']:,}" if "documents" in about else ""
    for number, part in enumerate(cut_into_blocks(documents, texts_per_shard)):
        path = folder / f"{number:05}.npy"
        count += len(part)
        if path.is_file():
            continue
        vectors_nd = storage.apply(embed([document.text for document in part]))
        _write_shard(path, [document.id for document in part], vectors_nd)
        if len(part) == texts_per_shard:
            print(f"{path}: {count:,}{total} texts so far", flush=True)
    about["texts"] = count
    _write(folder / ABOUT, lambda file: file.write(json.dumps(about, indent=1).encode()))
    return VectorFolder.open(folder)


def _write_shard(path: Path, ids: Sequence[str], vectors_nd: np.ndarray) -> None:
    """The ids first: a shard is there once its vectors are."""
    if broken := [name for name in ids if "\n" in name or "\r" in name]:
        raise UserError(f"id {broken[0]!r}: holds a line break; ids are kept one a line")
    lines = "".join(f"{name}\n" for name in ids).encode()
    _write(path.with_suffix(".ids.txt"), lambda file: file.write(lines))
    _write(path, lambda file: np.save(file, vectors_nd))


def _claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Makes the folder, or checks that it holds the same vectors. Raises UserError."""
    found = _read_about(folder)
    if found is None:
        if folder.is_dir() and any(path.suffix != ".partial" for path in folder.iterdir()):
            raise UserError(f"{folder}: holds something else than vectors; choose a new folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
        _write(folder / ABOUT, lambda file: file.write(json.dumps(about, indent=1).encode()))
        return
    changed = [
        f"{name}: {found.get(name)} -> {about.get(name)}"
        for name in {**found, **about}
        if name not in NOT_COMPARED and found.get(name) != about.get(name)
    ]
    if changed:
        raise UserError(
            f"{folder}: holds other vectors ({'; '.join(changed)}); choose a new folder"
        )


def _read_about(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / ABOUT).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):
        raise UserError(
            f"{folder / ABOUT}: does not parse; delete the folder, fill it again"
        ) from None


def _list_shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npy") if path.stem.isdigit())


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """The file appears whole, and on the disk, or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def cut_into_blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    source = iter(items)
    while block := list(islice(source, size)):
        yield block


def export(vectors: VectorFolder, path: Path) -> None:
    """All shards as one file: `.npy` as they are stored, or `.fvecs`, float32 of unit length; and
    beside it `<path>.ids.txt`. Memory stays that of a shard."""
    if path.suffix not in (".npy", ".fvecs"):
        raise UserError(f"{path}: must end in .npy or .fvecs")
    _write(path, lambda file: _write_rows(vectors, file, path.suffix))
    names = path.with_name(f"{path.name}.ids.txt")
    _write(names, lambda file: file.writelines(f"{name}\n".encode() for name in vectors.ids()))


def _write_rows(vectors: VectorFolder, file: IO[bytes], suffix: str) -> None:
    for number, shard_nd in enumerate(vectors.shards()):
        if suffix == ".fvecs":  # each row behind its number of coordinates
            rows_nd = scale(shard_nd).astype("<f4")
            widths_n1 = np.full((len(rows_nd), 1), rows_nd.shape[1], "<i4").view("<f4")
            file.write(np.hstack([widths_n1, rows_nd]).tobytes())
            continue
        if number == 0:
            header = np.lib.format.header_data_from_array_1_0(shard_nd)
            header["shape"] = (len(vectors), shard_nd.shape[1])
            np.lib.format.write_array_header_1_0(file, header)
        file.write(shard_nd.tobytes())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="jaxcpt vectors", description="Put a folder of vectors into one file."
    )
    parser.add_argument("--input", required=True, type=Path, help="folder made by jaxcpt.embed")
    parser.add_argument("--output", required=True, type=Path, help="FILE.npy or FILE.fvecs")
    arguments = parser.parse_args(argv)
    vectors = VectorFolder.open(arguments.input)
    export(vectors, arguments.output)
    print(f"{arguments.output}: {len(vectors):,} vectors; {arguments.output}.ids.txt: their ids")


if __name__ == "__main__":
    run_command(main)
