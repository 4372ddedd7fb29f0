"""Sources of (x, y) pairs with random access: index -> pair, and how many there are.

In: a source of `jaxcpt.sources` and the run folder, where mined pairs are kept. Out: `Pairs`, or
`TokenizedReader`, whose pairs have been tokenised before. It knows no batches.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.mining.python_packages import mine_packages
from jaxcpt.pair import Pair
from jaxcpt.pairs.beir import read_beir
from jaxcpt.pairs.columns import DatasetsReader, ParquetReader
from jaxcpt.pairs.jsonl import JsonlReader, read_jsonl, read_pairs, write_pairs
from jaxcpt.pairs.records import ArrayRecordReader, TfdsReader
from jaxcpt.pairs.tokenized import ABOUT_FILE, TokenizedReader
from jaxcpt.sources import (
    ArrayRecordPairs,
    BeirPairs,
    Data,
    DatasetsPairs,
    JsonlPairs,
    ParquetPairs,
    Prefixes,
    PythonPackages,
    Source,
    TfdsPairs,
    TokenizedPairs,
)

__all__ = [
    "JoinedPairs",
    "PairList",
    "Pairs",
    "TokenizedReader",
    "find_source",
    "name_source",
    "open_source",
    "open_training",
    "read_all",
    "read_jsonl",
    "read_pairs",
    "sample_texts",
    "write_pairs",
]

PAIRS_AT_ONCE = 4096


class Pairs(Protocol):
    """A fixed sequence of pairs, read many at a time."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Pair]: ...


class PairList:
    """Pairs held in memory."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, indices: Sequence[int]) -> list[Pair]:
        return [self.pairs[index] for index in indices]


class JoinedPairs:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[Pairs]) -> None:
        self.sources = sources
        self.starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, indices: Sequence[int]) -> list[Pair]:
        which = np.searchsorted(self.starts, indices, side="right") - 1
        pairs: dict[int, Pair] = {}
        for number, source in enumerate(self.sources):
            mine = np.flatnonzero(which == number).tolist()
            own = [int(indices[at] - self.starts[number]) for at in mine]
            pairs |= zip(mine, source.read(own) if own else [], strict=True)
        return [pairs[at] for at in range(len(indices))]


class PrefixedPairs:
    """The same pairs with their source's prefixes before every text."""

    def __init__(self, pairs: Pairs, prefixes: Prefixes) -> None:
        self.pairs, self.x, self.y = pairs, prefixes.x_prefix, prefixes.y_prefix

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, indices: Sequence[int]) -> list[Pair]:
        return [
            Pair(
                self.x + pair.x,
                self.y + pair.y,
                pair.source,
                tuple(self.y + negative for negative in pair.negatives),
            )
            for pair in self.pairs.read(indices)
        ]


def open_training(data: Data, run_dir: Path, seed: int) -> list[Pairs | TokenizedReader]:
    """The training sources in their order. Raises UserError where one is missing or empty."""
    opened = [
        TokenizedReader(source)
        if isinstance(source, TokenizedPairs)
        else open_source(source, run_dir, seed)
        for source in data.train
    ]
    for source, pairs in zip(data.train, opened, strict=True):
        if not len(pairs):
            raise UserError(f"{name_source(source)}: no pairs in it; training needs some")
    return opened


def open_source(source: Source, run_dir: Path, seed: int) -> Pairs:
    """The texts of a source. Raises UserError where they are missing or damaged."""
    if isinstance(source, TokenizedPairs):
        raise UserError(f"{source.directory}: holds token ids alone; name the source of the texts")
    pairs = _open(source, run_dir, seed)
    return PrefixedPairs(pairs, source) if source.x_prefix or source.y_prefix else pairs


def _open(source: Source, run_dir: Path, seed: int) -> Pairs:
    match source:
        case JsonlPairs():
            return JsonlReader(source)
        case TfdsPairs():
            return TfdsReader(source)
        case ArrayRecordPairs():
            return ArrayRecordReader(source)
        case ParquetPairs():
            return ParquetReader(source)
        case DatasetsPairs():
            return DatasetsReader(source)
        case BeirPairs():
            return PairList(read_beir(source))
        case PythonPackages():
            return PairList(_mined(source, run_dir, seed))
    raise TypeError(source)


def sample_texts(
    sources: Sequence[Pairs | TokenizedReader], most_pairs: int = 1_000_000
) -> Iterator[str]:
    """Both texts of pairs spread evenly over each source, which stand for it: a million are plenty
    for a vocabulary. Raises UserError for a source without texts."""
    for source in sources:
        if isinstance(source, TokenizedReader):
            raise UserError(
                f"{source.where}: holds no texts; set tokenizer.model_file to the model beside it"
            )
        every = -(-len(source) // most_pairs)
        for pair in read_all(source, every):
            yield from (pair.x, pair.y)


def read_all(pairs: Pairs, every: int = 1) -> Iterator[Pair]:
    """All pairs, or each n-th, from first to last; few are in memory at a time."""
    for first in range(0, len(pairs), PAIRS_AT_ONCE * every):
        yield from pairs.read(range(first, min(first + PAIRS_AT_ONCE * every, len(pairs)), every))


def name_source(source: Source) -> str:
    """What a user calls it: its path, or its name."""
    match source:
        case JsonlPairs() | ArrayRecordPairs() | ParquetPairs():
            return source.path
        case TfdsPairs():
            return source.directory or source.name
        case DatasetsPairs() | BeirPairs() | TokenizedPairs():
            return source.directory
        case _:
            return "installed packages"


def find_source(path: str, split: str = "train", x: str = "x", y: str = "y") -> Source:
    """The source that lies at a path, of whatever kind. Raises UserError where there is none."""
    place = Path(path)
    if place.is_file():
        if ".array_record" in place.name:
            return ArrayRecordPairs(path, x=x, y=y)
        if place.suffix == ".parquet":
            return ParquetPairs(path, x=x, y=y)
        if {".jsonl", ".ndjson"} & set(place.suffixes[-2:]):
            return JsonlPairs(path, x=x, y=y)
    elif (place / ABOUT_FILE).is_file():
        return TokenizedPairs(path)
    elif (place / "features.json").is_file():
        return TfdsPairs(path, split=split, x=x, y=y)
    elif (place / "dataset_dict.json").is_file():
        return DatasetsPairs(path, split=split, x=x, y=y)
    elif (place / "state.json").is_file():
        return DatasetsPairs(path, x=x, y=y)
    elif (place / "qrels").is_dir():
        return BeirPairs(path, split)
    elif any(place.glob("*.parquet")):
        return ParquetPairs(path, x=x, y=y)
    elif any(place.glob("*.array_record*")):
        return ArrayRecordPairs(path, x=x, y=y)
    raise UserError(
        f"{path}: no pairs; expected .jsonl, .parquet or .array_record files, a folder of a dataset"
        " (tensorflow-datasets, save_to_disk or BEIR), or one of jaxcpt tokenize-pairs"
    )


def _mined(source: PythonPackages, run_dir: Path, seed: int) -> list[Pair]:
    """Mines both splits once and keeps them in the run folder: a later start sees the same pairs
    whatever has been installed since."""
    files = {split: run_dir / "pairs" / f"{split}.jsonl" for split in ("train", "heldout")}
    if not all(file.is_file() for file in files.values()):
        mined = mine_packages(source.packages, source.heldout_functions, seed, source.neighbours)
        files["train"].parent.mkdir(parents=True, exist_ok=True)
        for file, pairs in zip(files.values(), mined, strict=True):
            write_pairs(file, pairs)
    return list(read_pairs(files[source.split]))
