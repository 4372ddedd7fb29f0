"""JSON lines in and out: pairs, or any objects. What does not parse is refused by line or byte."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.pair import Pair
from jaxcpt.sources import JsonlPairs


class JsonlReader:
    """A file of any size: each line is checked once, at the start, and read again as asked.

    It holds 16 bytes a line; a file that ends in .gz, where no line can be found alone, whole.
    """

    def __init__(self, source: JsonlPairs) -> None:
        self.path = Path(source.path)
        self.source = source
        self.held: list[Pair] | None = None
        if self.path.suffix == ".gz":
            self.held = list(read_pairs(self.path, source.x, source.y, source.negatives))
            return
        places = []
        for offset, number, row in _read_objects(self.path):
            _make_pair(row, source, number)
            places.append((offset, number))
        self.places = np.array(places, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places) if self.held is None else len(self.held)

    def read(self, indices: Sequence[int]) -> list[Pair]:
        if self.held is not None:
            return [self.held[index] for index in indices]
        pairs = []
        with self.path.open("rb") as file:
            for offset, number in self.places[np.asarray(indices, np.int64)].tolist():
                file.seek(offset)
                row = _parse(file.readline(), self.path, number, offset)
                pairs.append(_make_pair(row, self.source, number))
        return pairs


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def read_pairs(
    path: Path, x: str = "x", y: str = "y", negatives: str = "negatives"
) -> Iterator[Pair]:
    """Pairs of a JSONL file. Raises UserError naming file and line."""
    source = JsonlPairs(str(path), x=x, y=y, negatives=negatives)
    for number, row in read_jsonl(path):
        yield _make_pair(row, source, number)


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank. Raises UserError naming the place."""
    for _, number, row in _read_objects(path):
        yield number, row


def _make_pair(row: dict[str, Any], source: JsonlPairs, number: int) -> Pair:
    where = f"{source.path}:{number}"
    for key in (source.x, source.y):
        if not isinstance(row.get(key), str):
            raise UserError(f"{where}: no text under '{key}'; keys: {', '.join(row)}")
    negatives = row.get(source.negatives, [])
    if not isinstance(negatives, list) or not all(isinstance(n, str) for n in negatives):
        raise UserError(f"{where}: '{source.negatives}' must be a list of texts")
    origin = str(row.get("source", Path(source.path).name))
    return Pair(row[source.x], row[source.y], origin, tuple(negatives))


def _read_objects(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(offset, line number, object) of each line that is not blank."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    offset = number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield offset, number, _parse(line, path, number, offset)
                offset += len(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: broken gzip after line {number}: {error}") from None


def _parse(line: bytes, path: Path, number: int, offset: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode("utf-8")  # finds lone surrogates
    except UnicodeDecodeError as error:
        place = f"byte {offset + error.start}"
        raise UserError(f"{path}: {place} is not UTF-8; convert the file") from None
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits
        raise UserError(f"{path}:{number}: does not parse as JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: expected an object, found {type(row).__name__}")
    return row
