"""Groups records by their keys.

In: records with keys. Out: each key with all its values. Beam's local runner holds every group of a
GroupByKey in memory. On one machine, `GroupOnDisk` uses files instead. On a cluster,
`GroupInRunner` uses the runner's own shuffle. This module does not know what the records mean.
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
"""A worker writes its records to files when they take this many bytes."""

Record = tuple[bytes, tuple[Any, ...]]
"""A key, and a tuple that `marshal` can write. The key's first 4 bytes choose its bucket."""


class GroupOnDisk(beam.PTransform):
    """Turns collections of (key, value) into (key, values).

    Keys are spread over `buckets`, and a worker holds one bucket in memory at a time. Groups of
    fewer than `smallest` values are left out.
    """

    def __init__(self, folder: Path, buckets: int, smallest: int = 1) -> None:
        super().__init__()
        self.folder, self.buckets, self.smallest = folder, buckets, smallest

    def expand(self, pcolls: Sequence[beam.PCollection]) -> beam.PCollection:
        self.folder.mkdir(parents=True)
        # Each collection is written to files before Flatten, because Flatten would hold the first
        # collection in memory.
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
    """Turns collections of (key, value) into (key, values) by the runner's own shuffle."""

    def expand(self, pcolls: Sequence[beam.PCollection]) -> beam.PCollection:
        return pcolls | beam.Flatten() | beam.GroupByKey()


class Spill(beam.DoFn):
    """Writes records to one file for each bucket and bundle. Yields (bucket, path) of each."""

    def __init__(self, folder: Path, buckets: int) -> None:
        self.folder, self.buckets = folder, buckets

    def start_bundle(self) -> None:
        self.name = uuid.uuid4().hex
        self.buffers: dict[int, bytearray] = defaultdict(bytearray)
        self.buffered_bytes = 0
        self.written_buckets: set[int] = set()

    def process(self, record: Record) -> None:
        encoded = marshal.dumps(record)
        buffer = self.buffers[int.from_bytes(record[0][:4]) % self.buckets]
        buffer += len(encoded).to_bytes(4)
        buffer += encoded
        self.buffered_bytes += len(encoded)
        if self.buffered_bytes > SPILL_BYTES:
            self._write()

    def _write(self) -> None:
        for bucket, content in self.buffers.items():
            with open(self._path(bucket), "ab") as file:
                file.write(content)
        self.written_buckets |= set(self.buffers)
        self.buffers.clear()
        self.buffered_bytes = 0

    def _path(self, bucket: int) -> str:
        return os.fspath(self.folder / f"{bucket:05d}-{self.name}")

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._write()
        for bucket in sorted(self.written_buckets):
            file = (bucket, self._path(bucket))
            yield GlobalWindows.windowed_value(file)


def read_bucket(
    files: tuple[int, Iterable[str]], smallest: int
) -> Iterator[tuple[bytes, list[tuple[Any, ...]]]]:
    """Yields the groups of one bucket from its files, and removes the files."""
    groups: dict[bytes, list[tuple[Any, ...]]] = defaultdict(list)
    for path in files[1]:
        with open(path, "rb") as file:
            while size := file.read(4):
                key, value = marshal.loads(file.read(int.from_bytes(size)))
                groups[key].append(value)
        os.remove(path)
    yield from (group for group in groups.items() if len(group[1]) >= smallest)
