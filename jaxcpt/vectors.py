"""Vectors on disk: a folder of vector shards. A command that was killed can continue it.

    about.json      how the vectors were made and stored; in a complete folder also their number
    00000.npy       the vectors [n, d] of the first n texts, float32 or int8
    00000.ids.txt   the ids of these texts, one per line
    00000.sha256    the checksums of both files, for `sha256sum -c`; written last

In: texts with ids, one at a time, and a function that embeds a list of texts. Out: shards, each a
plain NumPy file, to search or to load into another index. A shard here is a part of the texts and
has nothing to do with devices. The module knows no model.

    python -m jaxcpt.vectors --input FOLDER --output FILE.npy|FILE.fvecs
"""

import hashlib
import json
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.files import hash_file, to_path, write_file
from jaxcpt.object_cache import fetch

T = TypeVar("T")
TEXTS_PER_SHARD = 16_384
ABOUT = "about.json"
NOT_AN_ARRAY = (ValueError, EOFError, OSError, RecursionError, MemoryError, tokenize.TokenError)
"""Errors that NumPy raises for a damaged file. It raises the last one for some damaged headers."""
NOT_COMPARED = ("path", "documents", "texts", "sums")
"""Entries of about.json that may differ between folders with the same vectors."""


class TextWithId(NamedTuple):
    """A text to embed, with its id."""

    id: str
    text: str


@dataclass(frozen=True)
class Storage:
    """How vectors are stored: the first `width` coordinates (None: all), as int8 or float32."""

    width: int | None = None
    int8: bool = False

    def apply(self, vectors_nd: np.ndarray) -> np.ndarray:
        """The vectors as they are stored: float32 or int8 [n, width]."""
        if self.width is not None:
            vectors_nd = truncate(vectors_nd, self.width)
        return quantize(vectors_nd) if self.int8 else vectors_nd

    def round_trip(self, vectors_nd: np.ndarray) -> np.ndarray:
        """The vectors after they are stored and read again: float32 [n, width] of unit length.

        They show how much precision the storage loses.
        """
        return normalise_rows(self.apply(vectors_nd))

    def check(self, width: int) -> "Storage":
        """Returns itself. Raises UserError if a model of this width has fewer coordinates."""
        if self.width is not None and not 0 < self.width <= width:
            raise UserError(f"--width {self.width}: must be from 1 to the model's width, {width}")
        return self


def truncate(vectors_nd: np.ndarray, width: int) -> np.ndarray:
    """The first `width` coordinates, scaled to unit length: float32 [n, width]."""
    return normalise_rows(vectors_nd[:, :width])


def normalise_rows(vectors_nd: np.ndarray) -> np.ndarray:
    """The vectors scaled to unit length, float32 [n, d]. A zero vector stays zero."""
    vectors_nd = np.asarray(vectors_nd, np.float32)
    return vectors_nd / np.maximum(np.linalg.norm(vectors_nd, axis=1, keepdims=True), 1e-12)


def quantize(vectors_nd: np.ndarray) -> np.ndarray:
    """The vectors as int8 [n, d], each scaled so that its largest coordinate is 127 or -127."""
    largest_n1 = np.abs(vectors_nd).max(axis=1, keepdims=True)
    return np.rint(vectors_nd * (127 / np.maximum(largest_n1, 1e-12))).astype(np.int8)


class Part(NamedTuple):
    """The shards that a command fills: every `of`-th one, beginning with `number` (from 1)."""

    number: int = 1
    of: int = 1

    @staticmethod
    def parse(text: str) -> "Part":
        """Reads `I/N`. Raises UserError."""
        number, _, count = text.partition("/")
        if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return Part(int(number), int(count))
        raise UserError(f"--part {text}: must be I/N with I from 1 to N, such as 2/8")


@dataclass(frozen=True)
class VectorFolder:
    """A complete folder of vectors. `VectorFolder.open` and `fill` return one."""

    folder: Path
    about: Mapping[str, Any]

    @staticmethod
    def open(folder: str | Path) -> "VectorFolder":
        """Opens a folder. Raises UserError if it is not a folder of vectors, or is not complete."""
        folder = to_path(folder)
        about = _read_about(folder)
        if about is None:
            raise UserError(f"{folder}: no vectors: it has no {ABOUT}; jaxcpt.embed makes one")
        _check_about(folder / ABOUT, about)
        opened = VectorFolder(fetch(folder), about)
        rows = sum(len(shard_nd) for shard_nd in opened.shards())
        if rows != about["texts"]:
            raise UserError(f"{folder}: {rows} vectors of {about['texts']}; shards are missing")
        _check_sums(opened.folder, about.get("sums"))
        return opened

    def __len__(self) -> int:
        return self.about["texts"]

    def shards(self) -> Iterator[np.ndarray]:
        """Yields the shards in order as memory maps [n, d], which take no memory until read."""
        for path in _list_shards(self.folder):
            try:
                if not path.is_file():
                    raise ValueError("not a file")
                shard_nd = np.lib.format.open_memmap(path, mode="r")
                if shard_nd.ndim != 2 or shard_nd.dtype not in (np.float32, np.int8):
                    raise ValueError(f"holds {shard_nd.dtype} of shape {shard_nd.shape}")
            except NOT_AN_ARRAY as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{path}: damaged ({reason}); delete it and fill again") from None
            yield shard_nd

    def ids(self) -> Iterator[str]:
        for path in _list_shards(self.folder):
            names = path.with_suffix(".ids.txt")
            try:
                with names.open(encoding="utf-8", newline="\n") as file:
                    yield from (line.rstrip("\n") for line in file)
            except UnicodeDecodeError:
                raise UserError(f"{names}: damaged (not UTF-8); delete it and fill again") from None

    @property
    def storage(self) -> Storage:
        return Storage(self.about["width"], self.about["int8"])


def fill(
    folder: Path,
    about: Mapping[str, Any],
    texts: Iterable[TextWithId],
    embed: Callable[[Sequence[str]], np.ndarray],
    storage: Storage,
    texts_per_shard: int = TEXTS_PER_SHARD,
) -> VectorFolder:
    """Writes the missing shards of a folder, each of them atomically.

    about: facts about the vectors; the entry `documents`, if there is one, is the number of texts.
    If the folder holds other vectors, raises UserError that names the difference. The same texts
    are always cut into the same shards, and each shard is embedded separately. So a command that
    was killed and started again writes the same bytes.
    """
    fill_part(folder, about, texts, embed, storage, Part(), texts_per_shard)
    return VectorFolder.open(folder)


def fill_part(
    folder: Path,
    about: Mapping[str, Any],
    texts: Iterable[TextWithId],
    embed: Callable[[Sequence[str]], np.ndarray],
    storage: Storage,
    part: Part,
    texts_per_shard: int = TEXTS_PER_SHARD,
) -> int:
    """Like `fill`, but writes only the shards of one part. Returns how many shards are missing.

    The command that writes the last missing shard completes the folder.
    """
    about = {
        **about,
        "width": storage.width,
        "int8": storage.int8,
        "texts_per_shard": texts_per_shard,
    }
    _claim(folder, about)
    count, total = 0, f" of {about['documents']:,}" if "documents" in about else ""
    number = -1
    for number, block in enumerate(cut_into_blocks(texts, texts_per_shard)):
        path = folder / f"{number:05}.npy"
        count += len(block)
        if number % part.of != part.number - 1 or _is_written(path):
            continue
        vectors_nd = storage.apply(embed([entry.text for entry in block]))
        _write_shard(path, [entry.id for entry in block], vectors_nd)
        if len(block) == texts_per_shard:
            print(f"{path}: {count:,}{total} texts so far", flush=True)
    missing = number + 1 - sum(map(_is_written, _list_shards(folder)))
    if not missing:
        about |= {"texts": count, "sums": _hash_sums(folder)}
        write_file(folder / ABOUT, json.dumps(about, indent=1))
    return missing


def _write_shard(path: Path, ids: Sequence[str], vectors_nd: np.ndarray) -> None:
    """Writes a shard. Its checksums come last, because a shard with checksums counts as written."""
    if broken := [name for name in ids if "\n" in name or "\r" in name]:
        raise UserError(f"id {broken[0]!r}: holds a line break; an id must be one line")
    write_file(path.with_suffix(".ids.txt"), "".join(f"{name}\n" for name in ids))
    write_file(path, lambda file: np.save(file, vectors_nd))
    sums = "".join(f"{hash_file(file)}  {file.name}\n" for file in _files_of(path))
    write_file(path.with_suffix(".sha256"), sums)


def _is_written(shard: Path) -> bool:
    return all(file.is_file() for file in (*_files_of(shard), shard.with_suffix(".sha256")))


def _files_of(shard: Path) -> tuple[Path, Path]:
    return shard, shard.with_suffix(".ids.txt")


def _hash_sums(folder: Path) -> str:
    """sha256 of all checksum files, in order. It covers the content and the number of shards."""
    sums = (path.with_suffix(".sha256") for path in _list_shards(folder))
    return hashlib.sha256(b"".join(p.read_bytes() for p in sums if p.is_file())).hexdigest()


def _check_sums(folder: Path, expected: str | None) -> None:
    """Raises UserError if a file has changed since it was written."""
    if expected is None:
        print(f"{folder}: an older version made it without checksums; its bytes are not checked")
        return
    if _hash_sums(folder) != expected:
        raise UserError(f"{folder}: its .sha256 files are not its own; delete it and fill it again")
    for shard in _list_shards(folder):
        sums = shard.with_suffix(".sha256")
        lines = sums.read_text(errors="replace").splitlines()
        if len(lines) != len(_files_of(shard)):
            raise UserError(f"{sums}: damaged (not as it was written); delete it and fill again")
        for file, line in zip(_files_of(shard), lines, strict=True):
            if not file.is_file() or f"{hash_file(file)}  {file.name}" != line:
                raise UserError(
                    f"{file}: damaged (not as it was written); delete it and fill again"
                )


def _check_about(path: Path, about: Mapping[str, Any]) -> None:
    """Raises UserError if about.json lacks an entry that every complete folder has."""
    if "texts" not in about:
        raise UserError(f"{path.parent}: not complete; start the command that fills it again")
    width, int8, texts = (about.get(name) for name in ("width", "int8", "texts"))
    fits = (width is None or type(width) is int) and type(int8) is bool and type(texts) is int
    if not fits or "width" not in about or not isinstance(about.get("sums", ""), str):
        raise UserError(f"{path}: damaged; delete the folder, fill it again")


def _claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Makes the folder. Raises UserError if it holds other files or other vectors."""
    found = _read_about(folder)
    if found is None:
        # Another machine may have begun another part since.
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if any(name != ABOUT and not name.endswith(".partial") for name in names):
            raise UserError(f"{folder}: holds other files than vectors; choose a new folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
        try:
            write_file(folder / ABOUT, json.dumps(about, indent=1))
            return
        except UserError:
            found = _read_about(folder)  # another machine may have written it at the same moment
            if found is None:
                raise
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
    path = folder / ABOUT
    if not path.is_file() and not path.exists():
        return None
    try:
        about = json.loads(path.read_bytes()) if path.is_file() else None
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{path}: does not parse; delete the folder, fill it again")
    return about


def _list_shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npy") if path.stem.isdigit())


def cut_into_blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yields lists of `size` items. The last list may be shorter."""
    source = iter(items)
    while block := list(islice(source, size)):
        yield block


def export(vectors: VectorFolder, path: Path) -> None:
    """Writes all shards into one file, and their ids into `<path>.ids.txt` beside it.

    `.npy` holds the vectors as they are stored, and `.fvecs` as float32 of unit length. Only one
    shard is in memory at a time.
    """
    if path.suffix not in (".npy", ".fvecs"):
        raise UserError(f"{path}: must end in .npy or .fvecs")
    write_file(path, lambda file: _write_rows(vectors, file, path.suffix))
    names = path.with_name(f"{path.name}.ids.txt")
    write_file(names, lambda file: file.writelines(f"{name}\n".encode() for name in vectors.ids()))


def _write_rows(vectors: VectorFolder, file: IO[bytes], suffix: str) -> None:
    for number, shard_nd in enumerate(vectors.shards()):
        if suffix == ".fvecs":  # each row begins with its number of coordinates
            rows_nd = normalise_rows(shard_nd).astype("<f4")
            widths_n1 = np.full((len(rows_nd), 1), rows_nd.shape[1], "<i4").view("<f4")
            file.write(np.hstack([widths_n1, rows_nd]).tobytes())
            continue
        if number == 0:
            header = np.lib.format.header_data_from_array_1_0(shard_nd)
            header["shape"] = (len(vectors), shard_nd.shape[1])
            np.lib.format.write_array_header_1_0(file, header)
        file.write(shard_nd.tobytes())


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="jaxcpt vectors", description="Put a folder of vectors into one file."
    )
    parser.add_argument("--input", required=True, type=to_path, help="folder made by jaxcpt.embed")
    parser.add_argument("--output", required=True, type=to_path, help="FILE.npy or FILE.fvecs")
    arguments = parser.parse_args(argv)
    vectors = VectorFolder.open(arguments.input)
    export(vectors, arguments.output)
    print(f"{arguments.output}: {len(vectors):,} vectors; {arguments.output}.ids.txt: their ids")


if __name__ == "__main__":
    run_command(main)
