"""Extracts the main text of web pages, also from WARC and WET files.

In: web pages and WARC files. Out: the pages' main text. Charsets are interpreted as in browsers
(encoding.spec.whatwg.org), because pages are written for browsers. This module does not know other
file formats.
"""

import codecs
import io
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from warcio.archiveiterator import ArchiveIterator
from warcio.limitreader import LimitReader

from jaxcpt.mining.bounded_lines import RECORD_BYTES
from jaxcpt.mining.pieces import PieceStream, find_break, inflate
from jaxcpt.mining.raw_document import (
    LeftOut,
    Problem,
    RawDocument,
    decode_text,
    describe_error,
    report_too_long,
)

BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
SUPERSETS = {
    "shift_jis": "cp932",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "iso8859-11": "cp874",
}
"""Codecs that replace those of some charsets. Python's own lack characters that browsers read."""
PYTHON_ONLY = {"cp932", "cp949", "cp950", "hz", "iso2022_kr"}
"""Python's codecs for charsets that are not in the list of browsers."""
SEVEN_BIT = {"iso2022_jp", "iso2022_kr", "hz"}
"""Charsets whose bytes are valid UTF-8 but have another meaning."""
CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';>]+)", re.IGNORECASE)
META = re.compile(rb"<meta\b[^>]*\bcharset\s*=\s*[\"']?\s*([^\s\"';>/]+)", re.IGNORECASE)
META_BYTES = 4096
"""A page names its charset within this many first bytes."""
BROTLI_STEP_BYTES = 64
"""Compressed bytes that are read at once. Even these few can expand to megabytes of text."""
STATUS = re.compile(r"\b\d{3}\b")


def extract_html(content: bytes, content_type: str = "") -> str:
    """Returns the main text of a page. content_type: its HTTP header Content-Type."""
    return extract_plain_text(_decode_page(content, content_type), main_content=True)


def _decode_page(content: bytes, content_type: str) -> str:
    """Decodes a page by the first of: byte order mark, HTTP header, UTF-8, its own tag, a guess."""
    for mark, encoding in BOMS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace")
    header = CHARSET.search(content_type)
    tag = META.search(content[:META_BYTES])
    told = find_codec(header[1]) if header else None
    meant = find_codec(tag[1].decode("latin-1")) if tag else None
    if meant and meant.startswith("utf-16"):  # otherwise this tag could not be read
        meant = "utf-8"
    for codec in filter(None, (told, meant if meant in SEVEN_BIT else None, "utf-8", meant)):
        try:
            return content.decode(codec)
        except UnicodeError:
            continue
    return bytes_to_str(content, detect_encoding(content) or "cp1252")


def find_codec(label: str) -> str | None:
    """Returns the Python codec of a charset's label on a page, or None for an unknown label."""
    label = label.strip().lower()
    codec = map_encoding_to_html5(label, fallback_utf8=False)
    if codec is None:
        try:
            name = codecs.lookup(label).name
        except (LookupError, ValueError):  # a label may hold a NUL character
            return None
        codec = name if name in PYTHON_ONLY else map_encoding_to_html5(name, fallback_utf8=False)
    return SUPERSETS.get(codec, codec) if codec else None


def read_warc(name: str, stream: BinaryIO) -> Iterator[RawDocument | Problem | LeftOut]:
    """Yields the texts of WET records and of HTML pages in WARC files, named by web address."""
    for record in _list_records(stream):
        if record.rec_type == "conversion":
            yield from _read_record(record, name, stream)
        elif record.rec_type == "response":
            headers = record.http_headers
            status = STATUS.search(headers.statusline if headers else "")
            if not status or not status[0].startswith("2"):
                yield LeftOut(f"web page of status {status[0] if status else 'unknown'}")
            elif "html" not in (headers.get_header("Content-Type") or "").lower():
                yield LeftOut("web record that is not an HTML page")
            else:
                yield from _read_record(record, name, stream)


def _list_records(stream: BinaryIO) -> Iterator[Any]:
    try:
        for record in ArchiveIterator(stream):
            if not isinstance(record.raw_stream, LimitReader):
                raise ValueError("a record without Content-Length")
            yield record
    except AttributeError as error:  # from warcio
        raise ValueError("a response without WARC-Target-URI") from error


def _read_record(record: Any, name: str, stream: BinaryIO) -> Iterator[RawDocument | Problem]:
    """Yields the document of a record: of a page if it has HTTP headers, otherwise of WET."""
    where = record.rec_headers.get_header("WARC-Target-URI") or name
    headers = record.http_headers
    encodings = [""]
    if headers:
        encodings = (headers.get_header("Content-Encoding") or "").lower().split(",")
        headers.replace_header("Content-Encoding", "")  # warcio would hide a break in the page
        transfer = headers.get_header("Transfer-Encoding") or ""
        headers.replace_header("Transfer-Encoding", transfer.strip().lower())
    content = record.content_stream().read(RECORD_BYTES + 1)
    if len(content) > RECORD_BYTES:
        yield report_too_long(where)
        return
    if record.raw_stream.limit:
        if not find_break(stream):  # the reader of a compressed file reports its break
            yield Problem("broken warc", name, f"{where} ends early")
        return
    error: BaseException | None = None
    for encoding in reversed(encodings):
        content, broken = _decode_content(content, encoding.strip().removeprefix("x-"))
        error = error or broken
    if len(content) > RECORD_BYTES:
        yield report_too_long(where)
        return
    if error:  # the text before the break is kept
        yield Problem("broken web page", where, describe_error(error))
    if headers and (content or not error):
        yield RawDocument(where, extract_html(content, headers.get_header("Content-Type")))
    elif not headers:
        yield decode_text(where, content)


def _decode_content(content: bytes, encoding: str) -> tuple[bytes, BaseException | None]:
    """Decodes one content encoding. Returns at most RECORD_BYTES + 1 bytes, and a break's error.

    Some crawlers store the decoded page with its old header. Such a page begins with a tag, and is
    returned unchanged.
    """
    if encoding in ("", "identity", "none", "utf-8") or content.lstrip().startswith(b"<"):
        return content, None
    pieces = PieceStream(_inflate_content(content, encoding))
    decoded = io.BufferedReader(pieces).read(RECORD_BYTES + 1)
    return decoded, pieces.error


def _inflate_content(content: bytes, encoding: str) -> Iterator[bytes]:
    if encoding in ("gzip", "zstd"):
        yield from inflate(io.BytesIO(content), ".gz" if encoding == "gzip" else ".zst")
    elif encoding == "deflate":  # servers send this with or without a zlib header
        has_header = content[:1] and content[0] & 15 == 8 and int.from_bytes(content[:2]) % 31 == 0
        decompressor = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        yield decompressor.decompress(content, RECORD_BYTES + 1)
        if not decompressor.eof and not decompressor.unconsumed_tail:
            raise EOFError("the page ends early")
    elif encoding == "br":
        yield from _inflate_brotli(content)
    else:
        raise ValueError(f"unknown content encoding {encoding}")


def _inflate_brotli(content: bytes) -> Iterator[bytes]:
    try:
        import brotli
    except ImportError:
        raise ValueError("content encoding br needs: pip install brotli") from None
    decompressor = brotli.Decompressor()
    for start in range(0, len(content), BROTLI_STEP_BYTES):
        try:
            yield decompressor.process(content[start : start + BROTLI_STEP_BYTES])
        except brotli.error as error:
            raise ValueError(f"brotli: {error}") from None
    if not decompressor.is_finished():
        raise EOFError("the page ends early")
