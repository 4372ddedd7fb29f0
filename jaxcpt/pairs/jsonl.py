"""JSON lines in and out as pairs. A line that is no pair raises UserError by file and line."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.files import write_file
from jaxcpt.lines import decode_line, parse_object, read_jsonl, read_lines
from jaxcpt.pair import Pair
from jaxcpt.pairs.interface import Pairs
from jaxcpt.sources import JsonlPairs


class JsonlReader(Pairs):
    """A file of any size: the start reads and checks every line, `read` finds lines again.

    It holds 16 bytes for each line. In a file that ends in .gz no line can be found alone, so all
    of its pairs are held.
    """

    def __init__(self, source: JsonlPairs) -> None:
        self.path = Path(source.path)
        self.source = source
        self.held: list[Pair] | None = None
        if self.path.suffix == ".gz":
            self.held = list(read_pairs(self.path, source.x, source.y, source.negatives))
            return
        places = []
        for line in read_lines(self.path):
            if line.text.strip():
                _make_pair(parse_object(line, self.path), source, line.number)
                places.append((line.start, line.number))
        self.places = np.array(places, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places) if self.held is None else len(self.held)

    def read(self, indices: Sequence[int]) -> list[Pair]:
        if self.held is not None:
            return [self.held[index] for index in indices]
        pairs = []
        with self.path.open("rb") as file:
            for start, number in self.places[np.asarray(indices, np.int64)].tolist():
                file.seek(start)
                line = decode_line(file.readline(), self.path, number, start)
                pairs.append(_make_pair(parse_object(line, self.path), self.source, number))
        return pairs


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    lines = (json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    write_file(path, lambda file: file.writelines(line.encode() for line in lines))


def read_pairs(
    path: Path, x: str = "x", y: str = "y", negatives: str = "negatives"
) -> Iterator[Pair]:
    """Pairs of a JSONL file. Raises UserError naming file and line."""
    source = JsonlPairs(str(path), x=x, y=y, negatives=negatives)
    for number, row in read_jsonl(path):
        yield _make_pair(row, source, number)


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
