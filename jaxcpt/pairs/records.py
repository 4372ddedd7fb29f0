"""Reads pairs by index from ArrayRecord files.

In: a tensorflow-datasets dataset, or ArrayRecord files without a dataset. Out: `Pairs`. TensorFlow
is not needed. Only this module of `pairs` knows these formats. It knows no tokenizer.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxcpt.errors import UserError
from jaxcpt.pair import Pair
from jaxcpt.pairs.interface import Pairs, sample_places
from jaxcpt.pairs.rows import NEGATIVES, check_columns, make_pair
from jaxcpt.sources import ArrayRecordPairs, TfdsPairs

INFO_FILE = "dataset_info.json"


class TfdsReader(Pairs):
    """A prepared tensorflow-datasets dataset."""

    def __init__(self, source: TfdsPairs) -> None:
        self.source, self.where = source, source.directory or source.name
        with explain(f"{self.where}: damaged dataset"):
            info = (builder := _open_builder(source)).info
            check_columns(info.features, source, self.where)
            if source.split not in info.splits:
                have = ", ".join(info.splits)
                raise UserError(f"{self.where}: has no split '{source.split}', only {have}")
            for file in info.splits[source.split].filepaths:
                if not Path(file).is_file() or ".array_record-" not in file.name:
                    raise UserError(f"{file}: no such ArrayRecord file; write the dataset again")
            self.rows: Any = builder.as_data_source(split=source.split)
            self.count = len(self.rows)

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> list[Pair]:
        with explain(f"{self.where}: damaged ArrayRecord"):
            rows = self.rows.__getitems__([int(index) for index in indices])
        return [
            make_pair(row, self.source, f"{self.where}: row {index}", self.where)
            for index, row in zip(indices, rows, strict=True)
        ]


@contextmanager
def explain(what: str) -> Iterator[None]:
    """A context that turns every error of a library into a UserError that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{what}: {lines[0][:300]}") from error


def _open_builder(source: TfdsPairs) -> Any:
    import tensorflow_datasets as tfds  # the import takes half a second

    if source.name:
        try:
            builder = tfds.builder(source.name, data_dir=source.data_dir)
            problem = "" if builder.info.splits else "not prepared"
        except Exception as error:  # a builder may need a library that is missing
            # The later lines of the error list all known datasets.
            problem = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if problem:
            raise UserError(
                f"{source.name}: {problem}; prepare it in data_dir={source.data_dir!r} with "
                "tfds.builder(NAME, file_format='array_record').download_and_prepare()"
            )
        return builder
    folder = Path(source.directory)
    if not (folder / INFO_FILE).is_file():
        below = sorted([*folder.glob(f"*/{INFO_FILE}"), *folder.glob(f"*/*/{INFO_FILE}")])
        how = f"; make it with: {source.prepare}" if source.prepare else ""
        how = f"; did you mean {below[-1].parent}?" if below else how
        raise UserError(f"{source.directory}: no tensorflow-datasets directory{how}")
    return tfds.builder_from_directory(source.directory)


class ArrayRecordReader(Pairs):
    """ArrayRecord files whose records are tf.train.Examples or JSON objects."""

    def __init__(self, source: ArrayRecordPairs) -> None:
        self.source, self.where = source, source.path
        self.required = replace(source, negatives=NEGATIVES)
        """The columns x and y. A record without hard negatives need not have their column."""
        self.records = open_records(list_files(Path(source.path), "*.array_record*"))
        if source.negatives != NEGATIVES and len(self):
            rows = self._read_rows(sample_places(len(self)))
            if not any(source.negatives in row for row in rows):
                check_columns(rows[0], source, f"{self.where}: record 0")

    def __len__(self) -> int:
        return len(self.records)

    def _read_rows(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        records = read_records(self.records, indices, self.where)
        return [
            parse_record(record, f"{self.where}: record {index}")
            for index, record in zip(indices, records, strict=True)
        ]

    def read(self, indices: Sequence[int]) -> list[Pair]:
        pairs = []
        for index, row in zip(indices, self._read_rows(indices), strict=True):
            check_columns(row, self.required, f"{self.where}: record {index}")
            where = f"{self.where}: row {index}"
            pairs.append(make_pair(row, self.source, where, self.where))
        return pairs


def list_files(path: Path, pattern: str) -> list[str]:
    """The file itself, or the files of a folder in the order of their names. Raises UserError."""
    files = [path] if path.is_file() else sorted(path.glob(pattern))
    if not files:
        raise UserError(f"{path}: no such file, nor a folder with {pattern} files in it")
    return [str(file) for file in files]


def open_records(files: Sequence[str]) -> Any:
    """Opens the records of all files, in order. Raises UserError, also if there are no files."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with explain(f"{[*files, 'no files'][0]}: not ArrayRecord, or damaged"):
        records = ArrayRecordDataSource(list(files))
        len(records)
    return records


def read_records(records: Any, indices: Sequence[int], where: str) -> list[bytes]:
    """The records at these indices. Raises UserError if a checksum is wrong."""
    if not len(indices):
        return []
    with explain(f"{where}: damaged ArrayRecord"):
        read = records.__getitems__([int(index) for index in indices])
    return read


def parse_record(record: bytes, where: str) -> Mapping[str, Any]:
    """The row in a record, which is a tf.train.Example or a JSON object. Raises UserError."""
    # A JSON object begins with {. A tf.train.Example begins with the tag of its only field.
    if record[:1] == b"{":
        try:
            return json.loads(record)
        except (ValueError, RecursionError) as error:
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
