"""Opens data sources of (x, y) pairs, which can be read by index.

In: a data source of `jaxcpt.sources`, and the run folder, where mined pairs are kept. Out: `Pairs`
of texts, or `EncodedPairs` of token ids for training. The package knows no batches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.files import to_path
from jaxcpt.mining.python_packages import mine_packages
from jaxcpt.object_cache import fetch
from jaxcpt.pair import Pair
from jaxcpt.pairs.beir import read_beir
from jaxcpt.pairs.columns import DatasetsReader, ParquetReader
from jaxcpt.pairs.interface import PAIRS_AT_ONCE, EncodedPairs, Pairs, read_all
from jaxcpt.pairs.jsonl import JsonlReader, read_pairs, write_pairs
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

AnySource = TypeVar("AnySource", bound=Source)

__all__ = [
    "PAIRS_AT_ONCE",
    "EncodedPairs",
    "JoinedPairs",
    "PairList",
    "Pairs",
    "TokenizedReader",
    "find_source",
    "label_sources",
    "name_source",
    "open_source",
    "open_training",
    "read_all",
    "read_pairs",
    "sample_texts",
    "write_pairs",
]


class PairList(Pairs):
    """Pairs held in memory."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def has_negatives(self) -> bool:
        return any(pair.negatives for pair in self.pairs)

    def read(self, indices: Sequence[int]) -> list[Pair]:
        return [self.pairs[index] for index in indices]


class JoinedPairs(Pairs):
    """The pairs of several sources, one source after the other."""

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


class PrefixedPairs(Pairs):
    """The pairs of a source, with its prefixes before every text."""

    def __init__(self, pairs: Pairs, prefixes: Prefixes) -> None:
        self.pairs, self.x, self.y = pairs, prefixes.x_prefix, prefixes.y_prefix

    def __len__(self) -> int:
        return len(self.pairs)

    def has_negatives(self) -> bool:
        return self.pairs.has_negatives()

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


def open_training(data: Data, run_dir: Path, seed: int) -> list[EncodedPairs]:
    """Opens the training sources, in order. Raises UserError if one is missing or empty."""
    opened = [_open_encoded(source, run_dir, seed) for source in data.train]
    for source, pairs in zip(data.train, opened, strict=True):
        if not len(pairs):
            raise UserError(f"{name_source(source)}: no pairs in it; training needs some")
    return opened


def _open_encoded(source: Source, run_dir: Path, seed: int) -> EncodedPairs:
    if not isinstance(source, TokenizedPairs):
        return open_source(source, run_dir, seed)
    with localise(source) as local:
        return TokenizedReader(local)


def open_source(source: Source, run_dir: Path, seed: int) -> Pairs:
    """Opens the texts of a data source. Raises UserError if they are missing or damaged."""
    if isinstance(source, TokenizedPairs):
        raise UserError(f"{source.directory}: holds only token ids; name the source of the texts")
    with localise(source) as local:
        pairs = _open(local, run_dir, seed)
    return PrefixedPairs(pairs, source) if source.x_prefix or source.y_prefix else pairs


@contextmanager
def localise(source: AnySource) -> Iterator[AnySource]:
    """A context that yields the data source with local copies of objects in a store.

    If the block raises UserError, its text names the objects and not their copies.
    """
    field = next((name for name in ("path", "directory") if getattr(source, name, "")), None)
    place = getattr(source, field) if field else ""
    copy = str(fetch(to_path(place))) if field else ""
    if field is None or copy == place:
        yield source
        return
    changes: dict[str, Any] = {field: copy}
    try:
        yield replace(source, **changes)
    except UserError as error:
        raise type(error)(str(error).replace(copy, place)) from error


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


def sample_texts(sources: Sequence[EncodedPairs], most_pairs: int = 1_000_000) -> Iterator[str]:
    """Yields the texts of at most `most_pairs` pairs of each source, spread evenly over it.

    A million pairs are enough to train a tokenizer. Raises UserError for a source without texts.
    """
    for source in sources:
        yield from source.sample_texts(every=-(-len(source) // most_pairs))


def label_sources(sources: Sequence[Source]) -> list[str]:
    """Short names of data sources: the last parts of their paths, with numbers if names repeat."""
    names = [PurePath(name_source(source)).name for source in sources]
    return [
        name if names.count(name) == 1 else f"{name} {number}"
        for number, name in enumerate(names, start=1)
    ]


def name_source(source: Source) -> str:
    """The name of a data source for the user: its path or its name."""
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
    """The data source at a path. Its files show its kind. Raises UserError if there is none."""
    place = to_path(path)
    if not place.exists():
        raise UserError(f"{path}: no such file or folder")
    if place.is_file():
        name, suffixes = place.name.lower(), place.name.lower().split(".")[-2:]
        if ".array_record" in name:
            return ArrayRecordPairs(path, x=x, y=y)
        if name.endswith(".parquet"):
            return ParquetPairs(path, x=x, y=y)
        if {"jsonl", "ndjson"} & set(suffixes):
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
    """Mines both splits once and keeps them in the run folder.

    A later start then gets the same pairs, even if other packages have been installed since.
    """
    files = {split: run_dir / "pairs" / f"{split}.jsonl" for split in ("train", "heldout")}
    if not all(file.is_file() for file in files.values()):
        mined = mine_packages(source.packages, source.heldout_functions, seed, source.neighbours)
        files["train"].parent.mkdir(parents=True, exist_ok=True)
        for file, pairs in zip(files.values(), mined, strict=True):
            write_pairs(file, pairs)
    return list(read_pairs(files[source.split]))
