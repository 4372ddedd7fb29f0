"""Reads and writes pairs as JSONL, with one JSON object per line.

In: a file. Out: `Pairs`, or the reverse. A line that is not a pair raises a UserError that names
file and line. The module knows no tokenizer.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.errors import MissingField, UserError
from jaxcpt.files import write_file
from jaxcpt.lines import (
    decode_line,
    is_gzip,
    list_names,
    parse_object,
    read_jsonl,
    read_line,
    read_lines,
)
from jaxcpt.pair import Pair
from jaxcpt.pairs.interface import Pairs
from jaxcpt.pairs.rows import NEGATIVES, make_pair
from jaxcpt.sources import JsonlPairs


class JsonlReader(Pairs):
    """A JSONL file of any size. The constructor checks every line, and `read` reads lines again.

    It holds 16 bytes in memory for each line. A gzipped file cannot be read from the middle, so all
    of its pairs are held in memory.
    """

    def __init__(self, source: JsonlPairs) -> None:
        self.path = Path(source.path)
        self.source = source
        self.held: list[Pair] | None = [] if is_gzip(self.path) else None
        self.with_negatives = False
        places: list[tuple[int, int]] = []
        keys: dict[str, Any] = {}
        named = source.negatives == NEGATIVES
        for line in read_lines(self.path):
            if not line.text.strip():
                continue
            row = parse_object(line, self.path)
            pair = _make_pair(row, source, line.number)
            self.with_negatives |= bool(pair.negatives)
            named, keys = named or source.negatives in row, keys or row
            if self.held is not None:
                self.held.append(pair)
            places.append((line.start, line.number))
        if not named and places:
            raise UserError(
                f"{self.path}: no line has '{source.negatives}'; the first line has: "
                f"{list_names(keys)}"
            )
        self.places = np.array(places, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def has_negatives(self) -> bool:
        return self.with_negatives

    def read(self, indices: Sequence[int]) -> list[Pair]:
        if self.held is not None:
            return [self.held[index] for index in indices]
        pairs = []
        with self.path.open("rb") as file:
            for start, number in self.places[np.asarray(indices, np.int64)].tolist():
                file.seek(start)
                line = decode_line(read_line(file, self.path, number), self.path, number, start)
                pairs.append(_make_pair(parse_object(line, self.path), self.source, number))
        return pairs


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Writes one JSON object per pair and line. The file is written atomically."""
    lines = (json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    write_file(path, lambda file: file.writelines(line.encode() for line in lines))


def read_pairs(
    path: Path, x: str = "x", y: str = "y", negatives: str = "negatives"
) -> Iterator[Pair]:
    """Yields the pairs of a JSONL file. Raises UserError that names file and line."""
    source = JsonlPairs(str(path), x=x, y=y, negatives=negatives)
    for number, row in read_jsonl(path):
        yield _make_pair(row, source, number)


def _make_pair(row: dict[str, Any], source: JsonlPairs, number: int) -> Pair:
    where = f"{source.path}:{number}"
    for key in (source.x, source.y):
        if key not in row:
            raise MissingField(f"{where}: no text under '{key}'; keys: {list_names(row)}")
    if isinstance(row.get(source.negatives), str):
        raise UserError(f"{where}: '{source.negatives}' must be a list of texts, found str")
    return make_pair(row, source, where, f"{Path(source.path).name}:{number}")
