"""The items that the readers of mining yield: documents, problems, and items to leave out.

In: bytes of a text, or an error. Out: an item. The module also knows what an error of a damaged
input means. It does not read files.
"""

import codecs
import lzma
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow
import zstandard
from warcio.exceptions import ArchiveLoadFailed

from jaxcpt.mining.bounded_lines import RECORD_BYTES

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    tarfile.TarError,
    zipfile.BadZipFile,
    pyarrow.ArrowException,
    ArchiveLoadFailed,
)
"""The errors that the readers raise for damaged input."""


@dataclass(frozen=True)
class RawDocument:
    """One text of the input, or one pair of texts."""

    name: str
    """The path that begins at the input, or a web address. If a file holds several documents, `@`
    and a byte offset or a row number follow. For a pair it is its record's `source`, if given."""
    text: str
    group: str = ""
    """A name that all parts of a long text share; empty if the document is a whole text."""
    y: str = ""
    """The second text of a record that is a pair."""


@dataclass(frozen=True)
class Problem:
    """A part of the input that cannot be read. Reasons are counted, and names are listed."""

    reason: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A part of the input that can be read but is not a document. Only reasons are counted."""

    reason: str


def split_suffixes(name: str) -> tuple[str, str]:
    """Returns format and compression in lower case: ('.jsonl', '.gz') for 'a/B.jsonl.gz'."""
    path = PurePosixPath(name.lower())
    if path.suffix == ".tgz":
        return ".tar", ".gz"
    if path.suffix in COMPRESSIONS:
        return PurePosixPath(path.stem).suffix, path.suffix
    return path.suffix, ""


def repair_name(name: str) -> str:
    """Returns a file's name with every byte that is not UTF-8 replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def report_error(name: str, error: BaseException) -> Problem:
    """Returns the problem of the file or archive member in which a reader found this error."""
    form, compression = split_suffixes(name)
    kind = COMPRESSIONS.get(compression) or form.lstrip(".") or "file"
    unreadable = isinstance(error, PermissionError | FileNotFoundError)
    return Problem(
        "unreadable file" if unreadable else f"broken {kind}", name, describe_error(error)
    )


def report_too_long(name: str) -> Problem:
    return Problem("line or record too long", name, f"over {RECORD_BYTES} bytes")


def describe_error(error: BaseException) -> str:
    """Returns the error on one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def decode_text(
    name: str, content: bytes | bytearray, first: int = 0, group: str = "", is_cut: bool = False
) -> RawDocument | Problem:
    """Returns the document in some bytes, or a Problem if they are not text.

    first: the offset of the bytes in their file. is_cut: the text may end within a character, which
    is then left out.
    """
    if b"\0" in content:
        return Problem("binary file", name, f"NUL byte at {first + content.index(0)}")
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=not is_cut)
    except UnicodeDecodeError as error:
        return Problem("bad UTF-8", f"{name}@{first + error.start}", describe_error(error))
    return RawDocument(f"{name}@{first}" if first else name, text, group)
