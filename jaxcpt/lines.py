"""Reads the lines of a text file as text, as JSON objects, or as fields between tabs.

In: a file in UTF-8, plain or gzipped. A byte order mark at its start is skipped. Out: its lines.
What does not fit raises a UserError that names the file, the line, what was found and what was
expected. The module does not know what the lines mean.
"""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxcpt.errors import UserError

LONGEST_LINE = 1 << 24
"""Most bytes of a line. A longer one is refused: parsed JSON takes up to 30 times as many."""
SHOWN_NAMES = 30
BYTE_ORDER_MARK = "\ufeff"
_FOREIGN = {
    b"\x28\xb5\x2f\xfd": "Zstandard; convert it with: zstd -d",
    b"BZh": "bzip2; convert it with: bunzip2",
    b"\xfd7zXZ": "xz; convert it with: unxz",
    b"PK\x03\x04": "a zip archive; convert it with: unzip",
    b"\xff\xfe": "UTF-16; convert it with: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; convert it with: iconv -f UTF-16 -t UTF-8",
}
"""First bytes of files that are neither UTF-8 nor gzip, with their format and the remedy."""
_GZIP = b"\x1f\x8b"


class Readable(Protocol):
    """An open file of bytes, plain or gzipped."""

    def readline(self, size: int, /) -> bytes: ...


class Line(NamedTuple):
    number: int
    """The first line is 1."""
    start: int
    """Offset of the line's first byte in the text, which is decompressed if the file is gzipped."""
    text: str
    """The line without its line end."""


def find_file(path: Path) -> Path | None:
    """`path` if it exists, otherwise `path`.gz; None if neither exists."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def require_file(path: Path, layout: str) -> Path:
    """`path` or `path`.gz. If neither exists, raises UserError that names the expected `layout`."""
    found = find_file(path)
    if found is None:
        raise UserError(f"{path}: no such file, nor {path.name}.gz; expected {layout}")
    return found


def is_gzip(path: Path) -> bool:
    """Whether the file's name says that it is gzipped."""
    return path.suffix.lower() == ".gz"


def read_lines(path: Path) -> Iterator[Line]:
    """Yields all lines. Only \\n ends a line. A \\r before it is removed too."""
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"{path}: no such file{where}")
    _refuse_foreign(path)
    number = start = 0
    try:
        with path.open("rb") as raw, gzip.open(raw) if is_gzip(path) else raw as file:
            while content := read_line(file, path, number + 1):
                number += 1
                yield decode_line(content, path, number, start)
                start += len(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: broken gzip after line {number} ({error}); copy the file again"
        ) from error


def read_line(file: Readable, path: Path, number: int) -> bytes:
    """The next line with its line end; empty at the end of the file. Raises UserError."""
    content = file.readline(LONGEST_LINE + 1)
    if len(content) > LONGEST_LINE:
        raise UserError(
            f"{path}:{number}: longer than {LONGEST_LINE:,} bytes; cut it, or end each line with "
            "a line feed"
        )
    return content


def _refuse_foreign(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(6)
    for mark, remedy in _FOREIGN.items():
        if start.startswith(mark) and not is_gzip(path):
            raise UserError(f"{path}: is {remedy} {path.name}")
    if start.startswith(_GZIP) and not is_gzip(path):
        raise UserError(f"{path}: is gzip; give it a name that ends in .gz")


def decode_line(content: bytes, path: Path, number: int, start: int) -> Line:
    """Decodes the bytes of a line. Raises UserError if they are not UTF-8."""
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: not UTF-8 at byte {start + error.start} of the text; convert it"
        ) from None
    return Line(number, start, text.removeprefix(BYTE_ORDER_MARK) if start == 0 else text)


def read_jsonl(
    path: Path, fields: Mapping[str, type] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of each line that is not blank.

    fields: the types of the fields that each object must have. It may have other fields too.
    """
    for line in read_lines(path):
        if line.text.strip():
            yield line.number, parse_object(line, path, fields)


def parse_object(
    line: Line, path: Path, fields: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """The JSON object of a line. Raises UserError, also for half a surrogate pair in a text."""
    where = f"{path}:{line.number}"
    try:
        row = json.loads(line.text)
        if "\\u" in line.text:  # only an escape can stand for half a surrogate pair
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits
        raise UserError(f"{where}: does not parse as JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {name_type(row)}")
    for field, kind in (fields or {}).items():
        if not isinstance(row.get(field), kind):
            raise UserError(
                f"{where}: expected an object with a {kind.__name__} '{field}', "
                f"found {line.text[:60]}"
            )
    return row


def list_names(have: Collection[Any]) -> str:
    """The names of columns or keys for a message, at most SHOWN_NAMES of them."""
    names = [" ".join(str(name).split())[:60] for name in have]
    more = [f"and {len(names) - SHOWN_NAMES} others"] * (len(names) > SHOWN_NAMES)
    return ", ".join(names[:SHOWN_NAMES] + more) or "none"


def name_type(value: Any) -> str:
    """The name of a value's type for a message."""
    return "null" if value is None else type(value).__name__


def read_tsv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields) of the lines below the header. Tabs separate the fields, and
    quotes are ordinary characters."""
    path = require_file(path, f"tab-separated lines below the header {' '.join(columns)}")
    for line in read_lines(path):
        fields = line.text.split("\t")
        where = f"{path}:{line.number}"
        if line.number == 1 and fields != list(columns):
            raise UserError(f"{where}: expected the header {list(columns)}, found {fields[:9]}")
        if len(fields) != len(columns):
            raise UserError(
                f"{where}: expected {len(columns)} fields ({', '.join(columns)}), "
                f"found {len(fields)}"
            )
        if line.number > 1:
            yield line.number, fields


def read_quoted(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the last line, fields) of each row. Fields are quoted as in CSV, and
    separated by tabs."""
    reader = csv.reader((f"{line.text}\n" for line in read_lines(path)), delimiter="\t")
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:  # an open quote swallows all that follows
        raise UserError(f"{path}:{reader.line_num}: {error}; is a quote left open?") from error


def parse_int(text: str, path: Path, number: int, name: str) -> int:
    """The integer in a field. Raises UserError with file and line."""
    try:
        if "_" not in text:  # Python reads 1_0 as 10
            return int(text)
    except ValueError:
        pass
    raise UserError(f"{path}:{number}: {name} must be an integer, found {text[:60]!r}")


def parse_float(text: str, path: Path, number: int, name: str) -> float:
    """The finite number in a field. Raises UserError with file and line."""
    try:
        if "_" not in text and math.isfinite(value := float(text)):
            return value
    except ValueError:
        pass
    raise UserError(f"{path}:{number}: {name} must be a number, found {text[:60]!r}")
