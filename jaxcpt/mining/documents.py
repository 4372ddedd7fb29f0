"""One part of an input in, documents and problems out. Memory is bounded for every input.

It reads plain text, HTML, JSONL and source code, gzip or zstd of these, WARC and WET, tar and zip
archives of all of these, Parquet, and prepared tensorflow-datasets. What cannot be read becomes a
`Problem`, and reading goes on after it. This module knows nothing about pieces or functions.
"""

import io
import json
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow
import pyarrow.parquet
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from jaxcpt.mining.bounded_lines import CHUNK_BYTES, RECORD_BYTES, read_bounded_lines

SOURCE = "source"
"""The field in which a record that is a pair says where the pair is from."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LINES, HTML = {".jsonl", ".ndjson"}, {".html", ".htm", ".xhtml"}
WARC, TAR, ZIP = {".warc", ".wet"}, {".tar", ".tgz"}, {".zip", ".whl", ".jar"}
ARCHIVES = TAR | ZIP
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    tarfile.TarError,
    zipfile.BadZipFile,
    ArchiveLoadFailed,
)
"""The errors that the readers raise for damaged input. pyarrow raises OSError and ValueError."""


@dataclass(frozen=True)
class RawDocument:
    """One text of the input, or one pair of texts."""

    name: str
    """The path from the input on, or a web address. If a file holds several documents, `@` and a
    byte offset or a row number follow. A pair has its own `source` here if the record names one."""
    text: str
    group: str = ""
    """A name that all parts of one long text share. Empty if the document is a whole text."""
    y: str = ""
    """The second text of a record that is a pair."""


@dataclass(frozen=True)
class Problem:
    """Something in the input that cannot be read. `reason` is counted, `name` is listed."""

    reason: str
    name: str
    detail: str = ""


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
    """A pattern for the first line of each document in a plain text file. None: a file is one."""
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


def split_suffixes(name: str) -> tuple[str, str]:
    """Returns format and compression in lower case: ('.jsonl', '.gz') for 'a/B.jsonl.gz'."""
    path = PurePosixPath(name.lower())
    if path.suffix == ".tgz":
        return ".tar", ".gz"
    if path.suffix in COMPRESSIONS:
        return PurePosixPath(path.stem).suffix, path.suffix
    return path.suffix, ""


def is_wanted(name: str, reading: Reading) -> bool:
    """Returns whether a file of this name is to be read."""
    form, _ = split_suffixes(name)
    if reading.y_field:
        return form in LINES | ARCHIVES | {".parquet"}
    return not reading.source_suffixes or form in reading.source_suffixes | ARCHIVES


def read_part(part: Part, reading: Reading) -> Iterator[RawDocument | Problem]:
    """Yields the documents of one part. Damage ends the damaged file and yields a Problem."""
    form, _ = split_suffixes(part.path)
    try:
        if part.path.startswith("tfds:"):
            yield from _read_tfds(part, reading)
        elif form == ".parquet":
            yield from _read_parquet(part, reading)
        elif form in ZIP:
            yield from _read_zip(part, reading)
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
        yield _report_error(part.name, error)


def repair_name(name: str) -> str:
    """Returns a file's name with every byte that is not UTF-8 replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _report_error(name: str, error: BaseException) -> Problem:
    form, compression = split_suffixes(name)
    kind = COMPRESSIONS.get(compression) or form.lstrip(".") or "file"
    unreadable = isinstance(error, PermissionError | FileNotFoundError)
    return Problem(
        "unreadable file" if unreadable else f"broken {kind}", name, describe_error(error)
    )


def describe_error(error: BaseException) -> str:
    """Returns the error on one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def read_stream(
    name: str, stream: BinaryIO, reading: Reading, span: tuple[int, int] | None = None
) -> Iterator[RawDocument | Problem]:
    """Yields the documents of one open file. With `span`, reads only lines that begin inside it."""
    form, compression = split_suffixes(name)
    if compression:
        packed = pyarrow.PythonFile(stream, mode="r")
        # pyarrow raises an error for a truncated stream; the zstandard package does not.
        inflated = pyarrow.CompressedInputStream(packed, COMPRESSIONS[compression])
        stream = cast(BinaryIO, io.BufferedReader(inflated, 2**16))
    if form in TAR:
        yield from _read_tar(name, stream, reading)
    elif form in reading.source_suffixes or form in HTML:
        yield from _read_whole(name, stream, form in HTML)
    elif form in WARC:
        yield from _read_warc(name, stream)
    elif form in LINES:
        yield from _read_jsonl(name, stream, reading, span)
    elif form in ZIP or form == ".parquet":
        yield Problem(f"{form} inside an archive", name, "unpack it first")
    else:
        yield from _read_text(name, stream, reading, span)


def _report_too_long(name: str) -> Problem:
    return Problem("line or record too long", name, f"over {RECORD_BYTES} bytes")


def _read_jsonl(
    name: str, stream: BinaryIO, reading: Reading, span: tuple[int, int] | None
) -> Iterator[RawDocument | Problem]:
    for offset, line in read_bounded_lines(stream, span):
        where = f"{name}@{offset}"
        if len(line) > RECORD_BYTES:
            yield _report_too_long(where)
        elif line.strip():
            try:
                yield _convert_record(where, json.loads(line.decode()), reading)
            except UnicodeDecodeError as error:
                yield Problem("bad UTF-8", where, describe_error(error))
            except (ValueError, RecursionError) as error:
                yield Problem("JSON does not parse", where, describe_error(error))


def _convert_record(where: str, record: Any, reading: Reading) -> RawDocument | Problem:
    texts = []
    for field in reading.fields:
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str) or not text.strip():
            return Problem(f"record without text under '{field}'", where)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair.
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
    """Yields the documents of a plain text file. A long text gives several, all in one group."""
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
                yield _decode(name, block, first, group)
            if long:
                yield _report_too_long(f"{name}@{offset}")
                line = b""
            block, first, group = bytearray(), offset, "" if new else group
        block += line
    if block.strip():
        yield _decode(name, block, first, group)


def _read_whole(name: str, stream: BinaryIO, html: bool) -> Iterator[RawDocument | Problem]:
    """Yields the one document of a web page or source file."""
    content = stream.read(RECORD_BYTES + 1)
    if len(content) > RECORD_BYTES:
        yield _report_too_long(name)
    elif html:
        yield RawDocument(name, _extract_html(content))
    elif b"\0" in content:
        yield Problem("binary file", name, f"NUL byte at {content.index(0)}")
    else:
        yield _decode(name, content)


def _decode(
    name: str, content: bytes | bytearray, first: int = 0, group: str = ""
) -> RawDocument | Problem:
    """Returns the document whose text begins at byte `first` of a file."""
    try:
        return RawDocument(f"{name}@{first}" if first else name, content.decode("utf-8-sig"), group)
    except UnicodeDecodeError as error:
        return Problem("bad UTF-8", f"{name}@{first + error.start}", describe_error(error))


def _extract_html(content: bytes, charset: str = "utf-8") -> str:
    try:
        html = content.decode(charset)
    except (UnicodeDecodeError, LookupError):
        encoding = detect_encoding(content, from_html_meta=True) or "windows-1252"
        html = bytes_to_str(content, encoding)
    return extract_plain_text(html, main_content=True)


def _read_warc(name: str, stream: BinaryIO) -> Iterator[RawDocument | Problem]:
    """Yields the texts of WET records and the HTML pages of WARC, named by their web address."""
    for record in ArchiveIterator(stream):
        form = (record.http_headers and record.http_headers.get_header("Content-Type")) or ""
        page = record.rec_type == "response" and "html" in form
        if not page and record.rec_type != "conversion":
            continue
        where = record.rec_headers.get_header("WARC-Target-URI") or name
        content = record.content_stream().read(RECORD_BYTES + 1)
        if len(content) > RECORD_BYTES:
            yield _report_too_long(where)
        elif record.raw_stream.limit:
            yield Problem("broken warc", name, f"{where} ends early")
        elif page:
            charset = re.search(r"charset=[\"']?([\w-]+)", form)
            yield RawDocument(where, _extract_html(content, charset[1] if charset else "utf-8"))
        else:
            yield from _read_whole(where, io.BytesIO(content), html=False)


def _read_tar(name: str, stream: BinaryIO, reading: Reading) -> Iterator[RawDocument | Problem]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isreg() and (where := _name_member(name, member.name, reading)):
                if isinstance(where, Problem):
                    yield where
                elif file := archive.extractfile(member):
                    yield from _read_member(where, cast(BinaryIO, file), reading)


def _read_zip(part: Part, reading: Reading) -> Iterator[RawDocument | Problem]:
    with zipfile.ZipFile(part.path) as archive:
        for member in archive.infolist():
            is_link = stat.S_ISLNK(member.external_attr >> 16)
            where = _name_member(part.name, member.filename, reading)
            if isinstance(where, Problem):
                yield where
            elif where and not member.is_dir() and not is_link:
                with archive.open(member) as file:
                    yield from _read_member(where, cast(BinaryIO, file), reading)


def _name_member(archive: str, name: str, reading: Reading) -> str | Problem | None:
    """Returns the name of a member's documents, or None if the member is not wanted."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return Problem("archive member climbs out of its folder", archive, repair_name(name))
    return repair_name(f"{archive}/{path}") if is_wanted(path.name, reading) else None


def _read_member(name: str, file: BinaryIO, reading: Reading) -> Iterator[RawDocument | Problem]:
    """Yields the documents of one member. Damage in it does not end the archive."""
    try:
        yield from read_stream(name, file, reading)
    except BROKEN as error:
        yield _report_error(name, error)


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
