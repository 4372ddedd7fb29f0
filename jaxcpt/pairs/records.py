"""ArrayRecord files in, pairs out, read from disk by index.

The files are those of a tensorflow-datasets dataset, or stand alone. TensorFlow is not needed. This
is the only module of `pairs` that knows either format.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcpt.errors import UserError
from jaxcpt.pair import Pair
from jaxcpt.pairs.interface import Pairs
from jaxcpt.sources import ArrayRecordPairs, Columns, TfdsPairs

NEGATIVES = "negatives"
"""The default name of the column of hard negatives. A column of this name may be absent."""


class TfdsReader(Pairs):
    """A prepared tensorflow-datasets dataset."""

    def __init__(self, source: TfdsPairs) -> None:
        self.source, self.where = source, source.directory or source.name
        info = (builder := _open_builder(source)).info
        check_columns(info.features, source, self.where)
        if source.split not in info.splits:
            have = ", ".join(info.splits)
            raise UserError(f"{self.where}: has no split '{source.split}', only {have}")
        for file in info.splits[source.split].filepaths:
            if not Path(file).is_file() or ".array_record-" not in file.name:
                raise UserError(f"{file}: no such ArrayRecord file; write the dataset anew")
        self.rows = builder.as_data_source(split=source.split)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Sequence[int]) -> list[Pair]:
        rows: list[Any] = self.rows.__getitems__([int(index) for index in indices])
        return [
            make_pair(row, self.source, self.where, index)
            for index, row in zip(indices, rows, strict=True)
        ]


def _open_builder(source: TfdsPairs) -> Any:
    import tensorflow_datasets as tfds  # half a second, and only here

    if source.name:
        try:
            builder = tfds.builder(source.name, data_dir=source.data_dir)
            told = "" if builder.info.splits else "not prepared"
        except (tfds.core.DatasetNotFoundError, ValueError) as error:
            told = str(error).splitlines()[0].rstrip(".")  # a list of all it knows comes next
        if told:
            raise UserError(
                f"{source.name}: {told}; prepare it in data_dir={source.data_dir!r} with "
                "tfds.builder(NAME, file_format='array_record').download_and_prepare()"
            )
        return builder
    if not (Path(source.directory) / "dataset_info.json").is_file():
        how = f"; make it with: {source.prepare}" if source.prepare else ""
        raise UserError(f"{source.directory}: no tensorflow-datasets directory{how}")
    try:
        return tfds.builder_from_directory(source.directory)
    except Exception as error:  # of protobuf, of etils, or its own
        raise UserError(f"{source.directory}: damaged dataset: {error}") from error


class ArrayRecordReader(Pairs):
    """ArrayRecord files whose records are tf.train.Examples or JSON objects."""

    def __init__(self, source: ArrayRecordPairs) -> None:
        self.source, self.where = source, source.path
        self.records = open_records(list_files(Path(source.path), "*.array_record*"))

    def __len__(self) -> int:
        return len(self.records)

    def read(self, indices: Sequence[int]) -> list[Pair]:
        records = read_records(self.records, indices, self.where)
        pairs = []
        for index, record in zip(indices, records, strict=True):
            row = _parse(record, f"{self.where}: record {index}")
            check_columns(row, self.source, f"{self.where}: record {index}")
            pairs.append(make_pair(row, self.source, self.where, index))
        return pairs


def list_files(path: Path, pattern: str) -> list[str]:
    """The file itself, or the files of a folder in order of their names. Raises UserError."""
    files = [path] if path.is_file() else sorted(path.glob(pattern))
    if not files:
        raise UserError(f"{path}: no such file, nor a folder with {pattern} files in it")
    return [str(file) for file in files]


def open_records(files: Sequence[str]) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource(list(files))
    except Exception as error:  # of the C++ library
        raise UserError(f"{files[0]}: not ArrayRecord, or damaged: {error}") from error


def read_records(records: Any, indices: Sequence[int], where: str) -> list[bytes]:
    try:
        return records.__getitems__([int(index) for index in indices]) if len(indices) else []
    except Exception as error:  # of the C++ library: a checksum that does not fit
        raise UserError(f"{where}: damaged ArrayRecord: {error}") from error


def _parse(record: bytes, where: str) -> Mapping[str, Any]:
    # A serialised tf.train.Example begins with the tag of its one field, a JSON object with {.
    if record[:1] == b"{":
        try:
            return json.loads(record)
        except ValueError as error:
            raise UserError(f"{where}: does not parse as JSON: {error}") from None
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        example = tf_example_pb2.Example.FromString(record)
    except Exception:  # protobuf's DecodeError
        raise UserError(f"{where}: neither a tf.train.Example nor a JSON object") from None
    row: dict[str, Any] = {}
    for name, feature in example.features.feature.items():
        values = list(feature.bytes_list.value)
        row[name] = values[0] if len(values) == 1 else values
    return row


def check_columns(have: Any, source: Columns, where: str) -> None:
    """Raises UserError where the source names a column that is not in `have`."""
    needed = [source.x, source.y] + [source.negatives] * (source.negatives != NEGATIVES)
    if missing := [name for name in needed if name not in have]:
        there = ", ".join(sorted(have)) or "none"
        raise UserError(f"{where}: no column '{missing[0]}'; there are: {there}")


def make_pair(row: Mapping[str, Any], source: Columns, where: str, index: int) -> Pair:
    """The pair in a row, by the source's names of columns; texts are str or bytes of UTF-8."""

    def text(name: str, value: Any) -> str:
        try:
            value = value.decode() if isinstance(value, bytes) else value
            if isinstance(value, str):
                value.encode()  # finds lone surrogates
                return value
        except UnicodeError as error:
            raise UserError(f"{where}: row {index}: '{name}' is not UTF-8: {error}") from None
        raise UserError(f"{where}: row {index}: '{name}' holds no text, but {type(value).__name__}")

    negatives = row.get(source.negatives)
    if negatives is None:
        negatives = []
    elif isinstance(negatives, str | bytes):  # a list of one, as a tf.train.Example has it
        negatives = [negatives]
    origin = row.get("source", where)
    return Pair(
        text(source.x, row[source.x]),
        text(source.y, row[source.y]),
        text("source", origin),
        tuple(text(source.negatives, negative) for negative in negatives),
    )
