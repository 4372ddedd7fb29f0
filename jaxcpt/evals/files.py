"""Readers of the evaluation sets' plain files, as they are or gzipped.

In: paths. Out: rows with their line number. A file that is missing or a row that does not fit is
a UserError that names the file, the line, what was found and what was expected. It knows no task.
"""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcpt.errors import UserError


def find(path: Path) -> Path | None:
    """`path`, or else `path` with .gz after it; None where neither is there."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def read_lines(path: Path, layout: str) -> Iterator[tuple[int, str]]:
    """(line number, line) of `path` or `path`.gz. `layout` is told where neither exists."""
    found = find(path)
    if found is None:
        raise UserError(f"{path}: no such file, nor {path.name}.gz; expected {layout}")
    try:
        with gzip.open(found) if found.suffix == ".gz" else found.open("rb") as file:
            number = start = 0
            for number, raw in enumerate(file, 1):
                yield number, raw.decode().rstrip("\r\n")
                start += len(raw)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{found}:{number}: not UTF-8 at byte {start + error.start} of the text; convert it"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{found}: broken gzip after line {number} ({error}); copy it anew"
        ) from error


def read_tsv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) below the header. Tabs separate; there is no quoting whatsoever."""
    path = find(path) or path
    lines = read_lines(path, f"tab-separated lines below the header {' '.join(columns)}")
    for number, line in lines:
        fields = line.split("\t")
        if number == 1 and fields != list(columns):
            raise UserError(f"{path}:1: expected the header {list(columns)}, found {fields}")
        if len(fields) != len(columns):
            raise UserError(
                f"{path}:{number}: expected {len(columns)} fields ({', '.join(columns)}), "
                f"found {len(fields)}"
            )
        if number > 1:
            yield number, fields


def read_jsonl(path: Path, fields: Mapping[str, type]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object); each object has `fields` of these types, and perhaps others."""
    path = find(path) or path
    for number, line in read_lines(path, f"one JSON object a line with {', '.join(fields)}"):
        try:
            row = json.loads(line)
            if "\\u" in line:  # an escape can stand for half a character, which is no text
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:  # also a number of 5,000 digits
            raise UserError(f"{path}:{number}: not JSON: {error}") from error
        for field, kind in fields.items():
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                raise UserError(
                    f"{path}:{number}: expected an object with a {kind.__name__} '{field}', "
                    f"found {line[:60]}"
                )
        yield number, row


def parse_int(text: str, path: Path, number: int, name: str) -> int:
    """The integer in a field. Raises UserError with file and line."""
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{path}:{number}: {name} must be an integer, found {text!r}") from error


def parse_float(text: str, path: Path, number: int, name: str) -> float:
    """The finite number in a field. Raises UserError with file and line."""
    try:
        if math.isfinite(value := float(text)):
            return value
    except ValueError:
        pass
    raise UserError(f"{path}:{number}: {name} must be a number, found {text!r}")
