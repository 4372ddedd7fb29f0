"""Sources of (x, y) pairs with random access: index -> pair, and how many there are.

In: `config.Source` and the run folder, where mined pairs are kept. Out: `Pairs`. It knows neither
tokens nor batches. Sole home of tensorflow_datasets.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from jaxcpt.config import Data, JsonlPairs, PythonPackages, Refusal, Source, TfdsPairs
from jaxcpt.mining import Pair
from jaxcpt.mining.python_packages import mine_packages


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


class TfdsReader:
    """A tensorflow-datasets directory in ArrayRecord form, read from disk as asked."""

    def __init__(self, source: TfdsPairs) -> None:
        import tensorflow_datasets as tfds  # half a second, and only here

        if not (Path(source.directory) / "dataset_info.json").is_file():
            how = f"; make it with: {source.prepare}" if source.prepare else ""
            raise Refusal(f"{source.directory}: no tensorflow-datasets directory{how}")
        try:
            builder = tfds.builder_from_directory(source.directory)
        except Exception as error:  # of protobuf, of etils, or its own
            raise Refusal(f"{source.directory}: damaged dataset: {error}") from error
        info = builder.info
        if not {"x", "y"} <= set(info.features):
            have = ", ".join(sorted(info.features))
            raise Refusal(f"{source.directory}: its features are {have}; x and y are needed")
        if source.split not in info.splits:
            have = ", ".join(info.splits)
            raise Refusal(f"{source.directory}: has no split '{source.split}', only {have}")
        for file in info.splits[source.split].filepaths:
            if not Path(file).is_file() or ".array_record-" not in file.name:
                raise Refusal(f"{file}: no such ArrayRecord file; write the dataset anew")
        self.rows = builder.as_data_source(split=source.split)
        self.name = source.directory

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Sequence[int]) -> list[Pair]:
        rows: list[Any] = self.rows.__getitems__([int(index) for index in indices])
        return [Pair(row["x"].decode(), row["y"].decode(), self.name) for row in rows]


def open_training(data: Data, run_dir: Path, seed: int) -> list[Pairs]:
    """The training sources in their order. Raises Refusal where one is missing or empty."""
    sources = [open_source(source, run_dir, seed) for source in data.train]
    for source, pairs in zip(data.train, sources, strict=True):
        if not len(pairs):
            raise Refusal(f"{_name(source)}: no pairs in it; training needs some")
    return sources


def open_source(source: Source, run_dir: Path, seed: int) -> Pairs:
    if isinstance(source, TfdsPairs):
        return TfdsReader(source)
    if isinstance(source, JsonlPairs):
        return PairList(list(read_pairs(Path(source.path), source.x, source.y)))
    return PairList(_mined(source, run_dir, seed))


def _name(source: Source) -> str:
    if isinstance(source, JsonlPairs):
        return source.path
    return source.directory if isinstance(source, TfdsPairs) else "installed packages"


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


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs)
    partial.rename(path)


def read_pairs(path: Path, x: str = "x", y: str = "y") -> Iterator[Pair]:
    """Pairs of a JSONL file. Raises Refusal naming file and line."""
    for number, row in read_jsonl(path):
        for key in (x, y):
            if not isinstance(row.get(key), str):
                raise Refusal(f"{path}:{number}: no text under '{key}'; keys: {', '.join(row)}")
        negatives = row.get("negatives", [])
        if not isinstance(negatives, list) or not all(isinstance(n, str) for n in negatives):
            raise Refusal(f"{path}:{number}: 'negatives' must be a list of texts")
        yield Pair(row[x], row[y], str(row.get("source", path.name)), tuple(negatives))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank. Raises Refusal naming the place."""
    if not path.is_file():
        raise Refusal(f"{path}: no such file")
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Refusal(
                    f"{path}: byte {offset + error.start} is not UTF-8; convert the file"
                ) from None
            offset += len(line)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
                json.dumps(row, ensure_ascii=False).encode("utf-8")  # finds lone surrogates
            except (ValueError, RecursionError) as error:  # also a number of 5,000 digits
                raise Refusal(f"{path}:{number}: does not parse as JSON: {error}") from None
            if not isinstance(row, dict):
                raise Refusal(f"{path}:{number}: expected an object, found {type(row).__name__}")
            yield number, row
