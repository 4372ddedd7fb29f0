"""One part of an input in, documents and problems out, in bounded memory whatever it holds.

Reads plain text, HTML, JSONL and source code, gzip or zstd of these, WARC and WET, tar and zip
archives of all of these, Parquet, and prepared tensorflow-datasets. What cannot be read becomes a
`Problem` and the rest goes on. It knows nothing about pieces, functions or pairs.
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

RECORD_BYTES = 16 * 2**20
"""Longest line, record, web page or source file that is read."""
CHUNK_BYTES = 2**20
"""Plain text without an end is handed on in documents of about this size."""

SOURCE = "source"
"""Where pairs that are read say what they are from."""
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
"""What the readers raise on damaged input; pyarrow's errors are OSError and ValueError."""


@dataclass(frozen=True)
class Document:
    name: str
    """Path from the input on, or a web address; @ and a byte or row where it has more than one.
    Of a record that is a pair, its own `source` where it has one."""
    text: str
    group: str = ""
    """What a long text's parts have in common; empty where the document is whole."""
    y: str = ""
    """The second text of a record that is a pair."""


@dataclass(frozen=True)
class Problem:
    reason: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Part:
    """One file, or the `index`-th of `count` parts of it."""

    path: str
    name: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Reading:
    text_field: str = "text"
    y_field: str | None = None
    """Read records that are pairs, with the second text under this name, and nothing else."""
    document_start: str | None = None
    """Pattern of a line that begins a new document of a plain text file; None: a file is one."""
    source_suffixes: frozenset[str] = frozenset()
    """Read source files with these suffixes, each as one document, and nothing else."""

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.text_field, self.y_field) if self.y_field else (self.text_field,)

    @property
    def columns(self) -> tuple[str, ...]:
        """`fields`, and what may be absent."""
        return (*self.fields, SOURCE) if self.y_field else self.fields


def suffixes(name: str) -> tuple[str, str]:
    """'a/B.jsonl.gz' -> ('.jsonl', '.gz'): format and compression, in lower case."""
    path = PurePosixPath(name.lower())
    if path.suffix == ".tgz":
        return ".tar", ".gz"
    if path.suffix in COMPRESSIONS:
        return PurePosixPath(path.stem).suffix, path.suffix
    return path.suffix, ""


def is_wanted(name: str, reading: Reading) -> bool:
    form, _ = suffixes(name)
    if reading.y_field:
        return form in LINES | ARCHIVES | {".parquet"}
    return not reading.source_suffixes or form in reading.source_suffixes | ARCHIVES


def read_part(part: Part, reading: Reading) -> Iterator[Document | Problem]:
    """The documents of one part; damage ends the file it is in and is told as a Problem."""
    form, _ = suffixes(part.path)
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
        # A panic in a Rust library is an exception, but no Exception.
        if not isinstance(error, BROKEN) and type(error).__name__ != "PanicException":
            raise
        yield _tell(part.name, error)


def mend_name(name: str) -> str:
    """A file's name as UTF-8 can hold it."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _tell(name: str, error: BaseException) -> Problem:
    form, compression = suffixes(name)
    kind = COMPRESSIONS.get(compression) or form.lstrip(".") or "file"
    unreadable = isinstance(error, PermissionError | FileNotFoundError)
    return Problem("unreadable file" if unreadable else f"broken {kind}", name, tell_error(error))


def tell_error(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def read_stream(
    name: str, stream: BinaryIO, reading: Reading, span: tuple[int, int] | None = None
) -> Iterator[Document | Problem]:
    """Documents of one open file; `span` limits lines to those that begin within it."""
    form, compression = suffixes(name)
    if compression:
        source = pyarrow.PythonFile(stream, mode="r")
        # pyarrow tells a truncated stream; the zstandard package does not.
        inflated = pyarrow.CompressedInputStream(source, COMPRESSIONS[compression])
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


def _read_lines(stream: BinaryIO, span: tuple[int, int] | None) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of each line; a line over RECORD_BYTES comes cut to one byte more."""
    offset, end = span or (0, None)
    if offset:
        # A line that begins before the span belongs to the part before.
        stream.seek(offset - 1)
        offset += _skip_line(stream) - 1
    while end is None or offset < end:
        line = stream.readline(RECORD_BYTES + 1)
        if not line:
            return
        yield offset, line
        offset += len(line)
        if len(line) > RECORD_BYTES and not line.endswith(b"\n"):
            offset += _skip_line(stream)


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while rest := stream.readline(CHUNK_BYTES):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _too_long(name: str) -> Problem:
    return Problem("line or record too long", name, f"over {RECORD_BYTES} bytes")


def _read_jsonl(
    name: str, stream: BinaryIO, reading: Reading, span: tuple[int, int] | None
) -> Iterator[Document | Problem]:
    for offset, line in _read_lines(stream, span):
        where = f"{name}@{offset}"
        if len(line) > RECORD_BYTES:
            yield _too_long(where)
        elif line.strip():
            try:
                yield _record(where, json.loads(line.decode()), reading)
            except UnicodeDecodeError as error:
                yield Problem("bad UTF-8", where, tell_error(error))
            except (ValueError, RecursionError) as error:
                yield Problem("JSON does not parse", where, tell_error(error))


def _record(where: str, record: Any, reading: Reading) -> Document | Problem:
    texts = []
    for field in reading.fields:
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str) or not text.strip():
            return Problem(f"record without text under '{field}'", where)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a character, as JSON can escape it
            return Problem("bad UTF-8", where, tell_error(error))
        texts.append(text)
    if not reading.y_field:
        return Document(where, texts[0])
    source = record.get(SOURCE) if SOURCE not in reading.fields else None
    if isinstance(source, str) and source.strip():
        where = source.encode(errors="replace").decode()
    return Document(where, texts[0], y=texts[1])


def _read_text(
    name: str, stream: BinaryIO, reading: Reading, span: tuple[int, int] | None
) -> Iterator[Document | Problem]:
    starts = re.compile(reading.document_start.encode()) if reading.document_start else None
    held = bytearray()
    first, group = 0, name if span else ""

    def decode() -> Document | Problem:
        where = f"{name}@{first}" if first else name
        try:
            return Document(where, held.decode("utf-8-sig"), group)
        except UnicodeDecodeError as error:
            return Problem("bad UTF-8", f"{name}@{first + error.start}", tell_error(error))

    for offset, line in _read_lines(stream, span):
        if b"\0" in line:
            yield Problem("binary file", name, f"NUL byte at {offset + line.index(0)}")
            return
        long, new = len(line) > RECORD_BYTES, starts is not None and bool(starts.search(line))
        if long or new or len(held) + len(line) > CHUNK_BYTES:
            if held.strip():
                group = group if new else group or f"{name}@{first}"
                yield decode()
            if long:
                yield _too_long(f"{name}@{offset}")
                line = b""
            held, first, group = bytearray(), offset, "" if new else group
        held += line
    if held.strip():
        yield decode()


def _read_whole(name: str, stream: BinaryIO, html: bool) -> Iterator[Document | Problem]:
    content = stream.read(RECORD_BYTES + 1)
    if len(content) > RECORD_BYTES:
        yield _too_long(name)
    elif html:
        yield Document(name, _extract(content))
    elif b"\0" in content:
        yield Problem("binary file", name, f"NUL byte at {content.index(0)}")
    else:
        try:
            yield Document(name, content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            yield Problem("bad UTF-8", f"{name}@{error.start}", tell_error(error))


def _extract(content: bytes, charset: str = "utf-8") -> str:
    try:
        html = content.decode(charset)
    except (UnicodeDecodeError, LookupError):
        encoding = detect_encoding(content, from_html_meta=True) or "windows-1252"
        html = bytes_to_str(content, encoding)
    return extract_plain_text(html, main_content=True)


def _read_warc(name: str, stream: BinaryIO) -> Iterator[Document | Problem]:
    """WET's extracted texts and WARC's HTML pages, named by their address."""
    for record in ArchiveIterator(stream):
        form = (record.http_headers and record.http_headers.get_header("Content-Type")) or ""
        page = record.rec_type == "response" and "html" in form
        if not page and record.rec_type != "conversion":
            continue
        where = record.rec_headers.get_header("WARC-Target-URI") or name
        content = record.content_stream().read(RECORD_BYTES + 1)
        if len(content) > RECORD_BYTES:
            yield _too_long(where)
        elif record.raw_stream.limit:
            yield Problem("broken warc", name, f"{where} ends early")
        elif page:
            charset = re.search(r"charset=[\"']?([\w-]+)", form)
            yield Document(where, _extract(content, charset[1] if charset else "utf-8"))
        else:
            yield from _read_whole(where, io.BytesIO(content), html=False)


def _read_tar(name: str, stream: BinaryIO, reading: Reading) -> Iterator[Document | Problem]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isreg() and (where := _member(name, member.name, reading)):
                if isinstance(where, Problem):
                    yield where
                elif file := archive.extractfile(member):
                    yield from _read_member(where, cast(BinaryIO, file), reading)


def _read_zip(part: Part, reading: Reading) -> Iterator[Document | Problem]:
    with zipfile.ZipFile(part.path) as archive:
        for member in archive.infolist():
            is_link = stat.S_ISLNK(member.external_attr >> 16)
            where = _member(part.name, member.filename, reading)
            if isinstance(where, Problem):
                yield where
            elif where and not member.is_dir() and not is_link:
                with archive.open(member) as file:
                    yield from _read_member(where, cast(BinaryIO, file), reading)


def _member(archive: str, name: str, reading: Reading) -> str | Problem | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return Problem("archive member climbs out of its folder", archive, mend_name(name))
    return mend_name(f"{archive}/{path}") if is_wanted(path.name, reading) else None


def _read_member(name: str, file: BinaryIO, reading: Reading) -> Iterator[Document | Problem]:
    """A broken member ends alone; a broken archive is told by its own reader."""
    try:
        yield from read_stream(name, file, reading)
    except BROKEN as error:
        yield _tell(name, error)


def _read_parquet(part: Part, reading: Reading) -> Iterator[Document | Problem]:
    with pyarrow.parquet.ParquetFile(part.path) as file:
        if not set(reading.fields) <= set(file.schema_arrow.names):
            if part.index == 0:
                yield _record(part.name, None, reading)
            return
        columns = [name for name in reading.columns if name in file.schema_arrow.names]
        row = 0
        for number in range(file.num_row_groups):
            if number % part.count == part.index:
                at = row
                for batch in file.iter_batches(256, [number], columns):
                    for record in batch.to_pylist():
                        yield _record(f"{part.name}@{at}", record, reading)
                        at += 1
            row += file.metadata.row_group(number).num_rows


def _read_tfds(part: Part, reading: Reading) -> Iterator[Document | Problem]:
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
                yield _record(where, decoded, reading)
            except UnicodeDecodeError as error:
                yield Problem("bad UTF-8", where, tell_error(error))
