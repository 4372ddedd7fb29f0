"""Reads, replaces and appends rows of numbers in files with one JSON object per line.

In: a step and its numbers by name. Out: `NAME.jsonl`, which has each step once, in order. An object
in a store cannot be appended to. There, the rows of `metrics.jsonl` are written in parts,
`metrics/<first step>.jsonl`, and `read_rows` joins them. The module does not know what the numbers
mean.

JSON has no NaN. A value that is not finite is written as the string "nan", "inf" or "-inf", and
`read_rows` turns it back into a float.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from jaxcpt.errors import UserError
from jaxcpt.files import is_object, remove_tree, write_file

METRICS_FILE, EVALS_FILE = "metrics.jsonl", "evals.jsonl"
HIGHEST_STEP = 10**15
PART_ROWS = 1000
UPLOAD_SECONDS = 20.0

Row = dict[str, float]


def read_rows(path: Path) -> list[Row]:
    """The rows of metrics.jsonl or evals.jsonl; none if the file does not exist.

    A kill can leave a part of the last line. A last line that has no line end and does not parse is
    therefore skipped. Any other line that is not a step with numbers raises UserError with file and
    line.
    """
    parts = list_parts(path)
    rows = _read(path)
    if not parts:
        return rows
    by_step = {row["step"]: row for row in rows}
    for part in parts:
        by_step |= {row["step"]: row for row in _read(part)}
    return [by_step[step] for step in sorted(by_step)]


def find_row(path: Path, step: int) -> Row:
    """The row of a step; empty if the file has no such row."""
    return {row["step"]: row for row in read_rows(path)}.get(step, {})


def list_parts(path: Path) -> list[Path]:
    """The parts of a file of rows, in order of their steps."""
    folder = path.with_suffix("")
    return sorted(folder.glob("*.jsonl")) if path.name == METRICS_FILE and folder.is_dir() else []


def _read(path: Path) -> list[Row]:
    content = path.read_bytes() if path.is_file() else b""
    lines = content.splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_parse_row(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines) or line.endswith(b"\n"):
                raise UserError(
                    f"{path}:{number}: not an object of a step and its numbers; remove the line"
                ) from error
    return rows


def _parse_row(line: bytes) -> Row:
    """Parses a line that `_to_line` wrote. Raises ValueError for other types and huge numbers."""
    row = json.loads(line)
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError("not an object with a step")
    json.dumps(row, ensure_ascii=False).encode()  # raises for half a surrogate pair
    parsed = {"step": row.pop("step"), **{name: _parse_value(v) for name, v in row.items()}}
    if not 0 <= parsed["step"] < HIGHEST_STEP:
        raise ValueError("a step out of range")
    return parsed


def _parse_value(value: object) -> float:
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    if abs(value) > sys.float_info.max:  # JSON text such as 1e400, or an integer of 400 digits
        raise ValueError("a number out of range")
    return float(value)


def record_evals(run_dir: Path, step: int, scores: Mapping[str, float]) -> None:
    """Adds scores to the row of a step in evals.jsonl, whose rows are ordered by step."""
    path = run_dir / EVALS_FILE
    rows = {row["step"]: row for row in read_rows(path)}
    rows[step] = {**rows.get(step, {}), "step": step, **scores}
    write_rows(path, [rows[key] for key in sorted(rows)])


def write_rows(path: Path, rows: list[Row]) -> None:
    write_file(path, "".join(map(_to_line, rows)))


def _to_line(row: Mapping[str, float]) -> str:
    plain = {name: value if math.isfinite(value) else str(value) for name, value in row.items()}
    return json.dumps(plain) + "\n"


class Rows(Protocol):
    """A file of rows that is open for appending."""

    def append(self, row: Row) -> None: ...

    def flush(self) -> None:
        """Returns when all rows are in the file."""

    def close(self) -> None: ...


def open_rows(path: Path, start_step: int) -> Rows:
    """Removes the rows after `start_step` and opens the file for appending. Raises UserError as
    `read_rows` does."""
    if is_object(path):
        return PartRows(path, start_step)
    return FileRows(path, start_step)


class FileRows:
    """Rows in a local file. A line reaches the operating system before `append` returns, so a kill
    loses at most that line."""

    def __init__(self, path: Path, start_step: int) -> None:
        write_rows(path, [row for row in read_rows(path) if row["step"] <= start_step])
        remove_tree(path.with_suffix(""))  # the parts, if the run was copied from a store
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def append(self, row: Row) -> None:
        self._file.write(_to_line(row))

    def flush(self) -> None:
        """Does nothing, because `append` has written each line."""

    def close(self) -> None:
        self._file.close()


class PartRows:
    """Rows in a store, in objects of at most PART_ROWS rows. The last object is rewritten as it
    grows."""

    def __init__(self, path: Path, start_step: int) -> None:
        self._folder = path.with_suffix("")
        for part in [path, *list_parts(path)]:
            rows = _read(part)
            kept = [row for row in rows if row["step"] <= start_step]
            if not kept:
                part.unlink(missing_ok=True)
            elif len(kept) < len(rows):
                write_rows(part, kept)
        self._rows: list[Row] = []
        self._upload = Upload(self._write)

    def append(self, row: Row) -> None:
        self._rows.append(row)
        self._upload.note()

    def _write(self) -> None:
        while rows := self._rows[:PART_ROWS]:
            write_rows(self._folder / f"{int(rows[0]['step']):010d}.jsonl", rows)
            if len(rows) < PART_ROWS:
                return
            del self._rows[:PART_ROWS]

    def flush(self) -> None:
        self._upload.flush()

    def close(self) -> None:
        self._upload.close()


class Upload:
    """Calls `write` in a thread, at most once every UPLOAD_SECONDS.

    If `write` raises, the next call of a method raises the same error.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        self._begun = -math.inf

    def note(self) -> None:
        """Says that there is something new to write."""
        done = self._writing is None or self._writing.done()
        if done and time.monotonic() >= self._begun + UPLOAD_SECONDS:
            self._begin()

    def _begin(self) -> None:
        self._wait()
        self._begun = time.monotonic()
        self._writing = self._thread.submit(self._write)

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def flush(self) -> None:
        """Returns when everything so far is written."""
        self._begin()
        self._wait()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._thread.shutdown()
