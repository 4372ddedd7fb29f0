"""Reads the documents in one part of an input, in bounded memory.

In: a part of an input. Out: documents, and a `Problem` for everything that cannot be read; reading
continues after it. The formats are plain text, HTML, JSONL and source code, also compressed by gzip
or zstd; WARC and WET; tar and zip archives of all of these; Parquet; and prepared
tensorflow-datasets. This module knows neither pieces nor functions.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import pyarrow.parquet

from jaxcpt.mining.archives import Member, list_tar, list_zip
from jaxcpt.mining.bounded_lines import CHUNK_BYTES, RECORD_BYTES, read_bounded_lines
from jaxcpt.mining.pieces import find_break, inflate, read_pieces
from jaxcpt.mining.raw_document import (
    BROKEN,
    LeftOut,
    Problem,
    RawDocument,
    decode_text,
    describe_error,
    report_error,
    report_too_long,
    split_suffixes,
)
from jaxcpt.mining.web import extract_html, read_warc

SOURCE = "source"
"""The field of a pair's record that names the origin of the pair."""
LINES, HTML = {".jsonl", ".ndjson"}, {".html", ".htm", ".xhtml"}
WARC, TAR, ZIP = {".warc", ".wet"}, {".tar", ".tgz"}, {".zip", ".whl", ".jar"}
ARCHIVES = TAR | ZIP
Item = RawDocument | Problem | LeftOut


@dataclass(frozen=True)
class Part:
    """A file, or part `index` of its `count` parts."""

    path: str
    name: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What to take from the input files."""

    text_field: str = "text"
    y_field: str | None = None
    """If set, read only records that are pairs, with the second text in this field."""
    document_start: str | None = None
    """A pattern for the first line of each document in a plain text file. None: the file is one
    document."""
    source_suffixes: frozenset[str] = frozenset()
    """If set, read only source files with these suffixes, each as one document."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that a record must have."""
        return (self.text_field, self.y_field) if self.y_field else (self.text_field,)

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields that a record must have, and those that it may have."""
        return (*self.fields, SOURCE) if self.y_field else self.fields


def is_wanted(name: str, reading: Reading) -> bool:
    """Returns whether a file of this name is to be read."""
    form, _ = split_suffixes(name)
    if reading.y_field:
        return form in LINES | ARCHIVES | {".parquet"}
    return not reading.source_suffixes or form in reading.source_suffixes | ARCHIVES


def read_part(part: Part, reading: Reading) -> Iterator[Item]:
    """Yields the documents of one part. Damage ends the damaged file and yields a Problem."""
    form, _ = split_suffixes(part.path)
    try:
        if part.path.startswith("tfds:"):
            yield from _read_tfds(part, reading)
        elif form == ".parquet":
            yield from _read_parquet(part, reading)
        elif form in ZIP:
            members = list_zip(part.name, part.path, partial(is_wanted, reading=reading))
            yield from _read_members(members, None, reading)
        else:
            with open(part.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                span = (size * part.index // part.count, size * (part.index + 1) // part.count)
                whole = part.count == 1
                yield from read_stream(part.name, file, reading, None if whole else span)
    except BaseException as error:
        # A panic in a Rust library raises a BaseException that is not an Exception.
        if not isinstance(error, BROKEN) and type(error).__name__ != "PanicException":
            raise
        yield report_error(part.name, error)


def read_stream(
    name: str, stream: BinaryIO, reading: Reading, span: tuple[int, int] | None = None
) -> Iterator[Item]:
    """Yields the documents of one open file. span: read only lines that begin in this range."""
    form, compression = split_suffixes(name)
    if compression:
        read = partial(_read_form, name, form, reading=reading)
        yield from read_pieces(name, inflate(stream, compression), stream, read)
    else:
        yield from _read_form(name, form, stream, reading, span)


def _read_form(
    name: str,
    form: str,
    stream: BinaryIO,
    reading: Reading,
    span: tuple[int, int] | None = None,
) -> Iterator[Item]:
    if form in TAR:
        members = list_tar(name, stream, partial(is_wanted, reading=reading))
        yield from _read_members(members, stream, reading)
    elif form in reading.source_suffixes or form in HTML:
        yield from _read_whole(name, stream, form in HTML)
    elif form in WARC:
        yield from read_warc(name, stream)
    elif form in LINES:
        yield from _read_jsonl(name, stream, reading, span)
    elif form in ZIP or form == ".parquet":
        yield Problem(f"{form} inside an archive", name, "unpack it first")
    else:
        yield from _read_text(name, stream, reading, span)


def _read_members(
    members: Iterator[Member | Problem], parent: BinaryIO | None, reading: Reading
) -> Iterator[Item]:
    """Yields the documents of all members. Damage in one of them does not end the archive."""
    for member in members:
        if isinstance(member, Problem):
            yield member
        else:
            read = partial(read_stream, member.name, reading=reading)
            yield from read_pieces(member.name, member.pieces, parent, read)


def _read_jsonl(
    name: str, stream: BinaryIO, reading: Reading, span: tuple[int, int] | None
) -> Iterator[RawDocument | Problem]:
    for offset, line in read_bounded_lines(stream, span):
        where = f"{name}@{offset}"
        if len(line) > RECORD_BYTES:
            yield report_too_long(where)
        elif line.strip():
            try:
                text = line.decode("utf-8" if offset else "utf-8-sig")
                yield _convert_record(where, json.loads(text), reading)
            except (ValueError, RecursionError) as error:
                if find_break(stream) and not line.endswith(b"\n"):
                    return  # a damaged compressed file cut this line, and its own reader reports it
                is_text = not isinstance(error, UnicodeDecodeError)
                reason = "JSON does not parse" if is_text else "bad UTF-8"
                yield Problem(reason, where, describe_error(error))


def _convert_record(where: str, record: Any, reading: Reading) -> RawDocument | Problem:
    texts = []
    for field in reading.fields:
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str) or not text.strip():
            return Problem(f"record without text under '{field}'", where)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair
            return Problem("bad UTF-8", where, describe_error(error))
        texts.append(text)
    if not reading.y_field:
        return RawDocument(where, texts[0])
    source = record.get(SOURCE) if SOURCE not in reading.fields else None
    if isinstance(source, str) and source.strip():
        where = source.encode(errors="replace").decode()
    return RawDocument(where, texts[0], y=texts[1])


def _read_text(
    name: str, stream: BinaryIO, reading: Reading, span: tuple[int, int] | None
) -> Iterator[RawDocument | Problem]:
    """Yields the documents of a plain text file. A long text gives several, all of one group."""
    starts = re.compile(reading.document_start.encode()) if reading.document_start else None
    block = bytearray()
    first, group = 0, name if span else ""

    for offset, line in read_bounded_lines(stream, span):
        if b"\0" in line:
            yield Problem("binary file", name, f"NUL byte at {offset + line.index(0)}")
            return
        long, new = len(line) > RECORD_BYTES, starts is not None and bool(starts.search(line))
        if long or new or len(block) + len(line) > CHUNK_BYTES:
            if block.strip():
                group = group if new else group or f"{name}@{first}"
                yield decode_text(name, block, first, group)
            if long:
                yield report_too_long(f"{name}@{offset}")
                line = b""
            block, first, group = bytearray(), offset, "" if new else group
        block += line
    if block.strip():
        yield decode_text(name, block, first, group, is_cut=bool(find_break(stream)))


def _read_whole(name: str, stream: BinaryIO, html: bool) -> Iterator[RawDocument | Problem]:
    """Yields the one document of a web page or source file, unless the file is damaged."""
    content = stream.read(RECORD_BYTES + 1)
    if len(content) > RECORD_BYTES:
        yield report_too_long(name)
    elif not find_break(stream):
        yield RawDocument(name, extract_html(content)) if html else decode_text(name, content)


def _read_parquet(part: Part, reading: Reading) -> Iterator[RawDocument | Problem]:
    with pyarrow.parquet.ParquetFile(part.path) as file:
        if not set(reading.fields) <= set(file.schema_arrow.names):
            if part.index == 0:
                yield _convert_record(part.name, None, reading)
            return
        columns = [name for name in reading.columns if name in file.schema_arrow.names]
        row = 0
        for number in range(file.num_row_groups):
            if number % part.count == part.index:
                at = row
                for batch in file.iter_batches(256, [number], columns):
                    for record in batch.to_pylist():
                        yield _convert_record(f"{part.name}@{at}", record, reading)
                        at += 1
            row += file.metadata.row_group(number).num_rows


def _read_tfds(part: Part, reading: Reading) -> Iterator[RawDocument | Problem]:
    import tensorflow_datasets as tfds

    folder, _, split = part.path.removeprefix("tfds:").partition("#")
    source = tfds.builder_from_directory(folder).as_data_source(split=split)
    start, end = (len(source) * index // part.count for index in (part.index, part.index + 1))
    for first in range(start, end, 256):
        rows = range(first, min(first + 256, end))
        for row, record in zip(rows, source.__getitems__(rows), strict=True):
            where = f"{part.name}@{row}"
            texts = {field: record.get(field) for field in reading.columns}
            try:
                decoded = {f: t.decode() if isinstance(t, bytes) else t for f, t in texts.items()}
                yield _convert_record(where, decoded, reading)
            except UnicodeDecodeError as error:
                yield Problem("bad UTF-8", where, describe_error(error))
