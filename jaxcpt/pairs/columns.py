"""Reads pairs by index from Parquet files and from Hugging Face datasets on disk.

In: a data source. Out: `Pairs`. Both formats need `pip install 'jaxcpt[sources]'`. Only this module
of `pairs` imports pyarrow and datasets. It knows no tokenizer.
"""

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcpt.errors import UserError
from jaxcpt.pair import Pair
from jaxcpt.pairs.interface import Pairs
from jaxcpt.pairs.records import explain, list_files
from jaxcpt.pairs.rows import check_columns, list_wanted, make_pair
from jaxcpt.sources import DatasetsPairs, ParquetPairs

CACHE_BYTES = 2**30
"""Most bytes of decoded row groups to keep. To read one row, Parquet decodes its whole group."""
INSTALL = "pip install 'jaxcpt[sources]'"


class ParquetReader(Pairs):
    """Parquet files. A row group is decoded when one of its pairs is read; the newest are kept.

    If the data is larger than CACHE_BYTES, a batch in random order decodes most row groups again.
    Convert such data first with jaxcpt tokenize-pairs, which reads it from first to last.
    """

    def __init__(self, source: ParquetPairs) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise UserError(f"{source.path}: reading Parquet needs {INSTALL}") from None
        self.source, self.lock = source, threading.Lock()
        self.files: list[Any] = []
        self.columns: list[list[str]] = []
        """The columns to read from each file. Only some files may have negatives."""
        self.groups: list[tuple[int, int]] = []
        """The (file, row group in the file) of each row group."""
        rows = [0]
        for number, path in enumerate(list_files(Path(source.path), "*.parquet")):
            with explain(f"{path}: not Parquet, or damaged"):
                file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
                names = file.schema_arrow.names
                check_columns(names, source, path)
                groups = range(file.num_row_groups)
                counts = [file.metadata.row_group(group).num_rows for group in groups]
                if min(counts, default=0) < 0 or sum(counts) != file.metadata.num_rows:
                    raise ValueError("its footer contradicts itself")
            rows += counts
            self.files.append(file)
            self.columns.append([name for name in list_wanted(source) if name in names])
            self.groups += [(number, group) for group in groups]
        self.starts = list(itertools.accumulate(rows))
        self.cache: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, indices: Sequence[int]) -> list[Pair]:
        pairs: list[Pair | None] = [None] * len(indices)
        order = sorted(range(len(indices)), key=lambda at: indices[at])
        for at in order:  # sorted by row, so that each row group is decoded at most once
            group = bisect.bisect_right(self.starts, indices[at]) - 1
            table, row = self._read_group(group), indices[at] - self.starts[group]
            where = f"{self.source.path}: row {indices[at]}"
            record = {name: table[name][row].as_py() for name in table.column_names}
            pairs[at] = make_pair(record, self.source, where, self.source.path)
        return [pair for pair in pairs if pair is not None]

    def _read_group(self, group: int) -> Any:
        with self.lock:
            if group not in self.cache:
                file, number = self.groups[group]
                with explain(f"{self.source.path}: damaged Parquet"):
                    table = self.files[file].read_row_group(number, self.columns[file])
                    table.validate(full=True)  # this also checks UTF-8
                    if len(table) != self.starts[group + 1] - self.starts[group]:
                        raise ValueError("a row group has fewer rows than its footer says")
                self.cache[group] = table
                held = sum(table.nbytes for table in self.cache.values())
                while held > CACHE_BYTES and len(self.cache) > 1:
                    held -= self.cache.popitem(last=False)[1].nbytes
            self.cache.move_to_end(group)
            return self.cache[group]


class DatasetsReader(Pairs):
    """A Hugging Face dataset as `save_to_disk` wrote it."""

    def __init__(self, source: DatasetsPairs) -> None:
        try:
            import datasets
        except ModuleNotFoundError:
            raise UserError(f"{source.directory}: reading it needs {INSTALL}") from None
        self.source, self.where = source, source.directory
        with explain(f"{self.where}: not a dataset that save_to_disk wrote"):
            found = datasets.load_from_disk(self.where)
        if isinstance(found, datasets.DatasetDict):
            if source.split not in found:
                have = ", ".join(found)
                raise UserError(f"{self.where}: has no split '{source.split}', only {have}")
            found = found[source.split]
        elif source.split:
            raise UserError(f"{self.where}: a single dataset, without a split '{source.split}'")
        found = found.with_format(None)  # a dataset may be saved with another format of its rows
        check_columns(found.column_names, source, self.where)
        wanted = list_wanted(source)
        self.rows = found.select_columns([n for n in found.column_names if n in wanted])

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Sequence[int]) -> list[Pair]:
        if not len(indices):
            return []
        with explain(f"{self.where}: damaged dataset"):
            columns = self.rows[[int(index) for index in indices]]
        return [
            make_pair(
                dict(zip(columns, row, strict=True)),
                self.source,
                f"{self.where}: row {index}",
                self.where,
            )
            for index, row in zip(indices, zip(*columns.values(), strict=True), strict=True)
        ]
