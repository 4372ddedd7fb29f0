"""Keyed records in, each key's values together out, through files instead of memory.

Beam's local runner holds every group of a GroupByKey in memory. On one machine this transform
stands in its place; on a cluster the runner's own shuffle is used and this file is not.
"""

import marshal
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

SPILL_BYTES = 32 * 2**20
"""Records a worker holds before it writes them out."""

Record = tuple[bytes, tuple[Any, ...]]
"""A key of 4 bytes or more, whose first 4 choose the bucket, and a tuple marshal can write."""


class GroupOnDisk(beam.PTransform):
    """Collections of (key, value) -> (key, values), one of `buckets` in memory at a time.

    Groups of fewer than `smallest` values are left out.
    """

    def __init__(self, folder: Path, buckets: int, smallest: int = 1) -> None:
        super().__init__()
        self.folder, self.buckets, self.smallest = folder, buckets, smallest

    def expand(self, pcolls: Sequence[beam.PCollection]) -> beam.PCollection:
        self.folder.mkdir(parents=True)
        # Each is spilled before they meet: Flatten would hold what comes first in memory.
        spilled = [
            pcoll | f"Spill{number}" >> beam.ParDo(Spill(self.folder, self.buckets))
            for number, pcoll in enumerate(pcolls)
        ]
        return (
            spilled
            | "AllFiles" >> beam.Flatten()
            | "FilesOfBucket" >> beam.GroupByKey()
            | "OneBucketAtATime" >> beam.Reshuffle()
            | "ReadBucket" >> beam.FlatMap(read_bucket, self.smallest)
        )


class GroupInRunner(beam.PTransform):
    """The same by the runner's own shuffle."""

    def expand(self, pcolls: Sequence[beam.PCollection]) -> beam.PCollection:
        return pcolls | beam.Flatten() | beam.GroupByKey()


class Spill(beam.DoFn):
    """Appends records to one file per bucket and bundle; gives (bucket, path) of each file."""

    def __init__(self, folder: Path, buckets: int) -> None:
        self.folder, self.buckets = folder, buckets

    def start_bundle(self) -> None:
        self.name = uuid.uuid4().hex
        self.held: dict[int, bytearray] = defaultdict(bytearray)
        self.held_bytes = 0
        self.written: set[int] = set()

    def process(self, record: Record) -> None:
        written = marshal.dumps(record)
        held = self.held[int.from_bytes(record[0][:4]) % self.buckets]
        held += len(written).to_bytes(4)
        held += written
        self.held_bytes += len(written)
        if self.held_bytes > SPILL_BYTES:
            self._write()

    def _write(self) -> None:
        for bucket, content in self.held.items():
            with open(self._path(bucket), "ab") as file:
                file.write(content)
        self.written |= set(self.held)
        self.held.clear()
        self.held_bytes = 0

    def _path(self, bucket: int) -> str:
        return os.fspath(self.folder / f"{bucket:05d}-{self.name}")

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._write()
        for bucket in sorted(self.written):
            file = (bucket, self._path(bucket))
            yield GlobalWindows.windowed_value(file)


def read_bucket(
    files: tuple[int, Iterable[str]], smallest: int
) -> Iterator[tuple[bytes, list[tuple[Any, ...]]]]:
    """The groups of one bucket, from its files, which are removed."""
    groups: dict[bytes, list[tuple[Any, ...]]] = defaultdict(list)
    for path in files[1]:
        with open(path, "rb") as file:
            while size := file.read(4):
                key, value = marshal.loads(file.read(int.from_bytes(size)))
                groups[key].append(value)
        os.remove(path)
    yield from (group for group in groups.items() if len(group[1]) >= smallest)
