"""Numbers of a run in files: `metrics.jsonl`, `evals.jsonl` and TensorBoard events.

In: for each step, a dict of host floats. Out: files with one JSON object per line. Each step
stands there once and in order, also after a kill and a resume. What a person sees of the numbers
is drawn by `terminal`. The module does not know what the numbers mean, and it never waits for a
device.

JSON has no NaN. A value that is not finite is written as the string "nan", "inf" or "-inf", and
`read_rows` turns it back into a float.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxcpt.errors import UserError
from jaxcpt.files import write_file
from jaxcpt.terminal import RunDisplay

METRICS_FILE, EVALS_FILE = "metrics.jsonl", "evals.jsonl"
HIGHEST_STEP = 10**15

# It warns at every value that is not finite. `RunDisplay` warns once, with step and name.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)

Row = dict[str, float]


class Throughput:
    """Measures pairs and tokens per second, and the share of time spent waiting for data.

    Each reading covers the time since the reading before it. Steps run asynchronously, so wait for
    the step's scalars before `read` and before `paused`; otherwise unfinished work is counted. The
    first step compiles: call `read` after it to keep it out of the next reading.
    """

    def __init__(
        self, peak_flops: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """peak_flops: FLOP/s of all devices together. None: readings have no `mfu`."""
        self._peak_flops = peak_flops
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._start = self._clock()
        self._pairs, self._tokens, self._flops, self._waited = 0, 0, 0.0, 0.0

    def count(self, pairs: int, tokens: int, flops: float = 0.0) -> None:
        """Adds the work of one step on all devices: pairs, tokens without padding, FLOPs."""
        self._pairs += pairs
        self._tokens += tokens
        self._flops += flops

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside the block as `data_wait`.

        Enter it when no step is running; otherwise time in which the devices work counts too.
        """
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside the block (evals, checkpoints) out of the reading."""
        start = self._clock()
        yield
        self._start += self._clock() - start

    def read(self) -> Row:
        """The numbers since the last reading. The next reading starts here."""
        seconds = self._clock() - self._start
        row = {
            "pairs_per_s": self._pairs / seconds,
            "tokens_per_s": self._tokens / seconds,
            "data_wait": self._waited / seconds,
        }
        if self._peak_flops is not None:
            row["mfu"] = self._flops / seconds / self._peak_flops
        self._begin()
        return row


class MetricsLog:
    """Records and shows a run's numbers, as a context manager. It does nothing unless it `writes`.

    A line reaches the operating system before `log` returns, so a kill loses at most that line.
    """

    def __init__(
        self, run_dir: Path, total_steps: int, start_step: int, writes: bool, title: str = ""
    ) -> None:
        """start_step: steps already taken. Lines of later steps are removed from the files."""
        self._run_dir = run_dir
        self._start_step = start_step
        self._writes = writes
        self._display = RunDisplay(title or run_dir.name, start_step, total_steps)

    def __enter__(self) -> "MetricsLog":
        """Raises UserError where a line of the files, except a torn last one, does not parse."""
        self._stack = ExitStack()
        if not self._writes:
            return self
        for name in (METRICS_FILE, EVALS_FILE):
            path = self._run_dir / name
            _write_rows(path, [row for row in read_rows(path) if row["step"] <= self._start_step])
        file = open(self._run_dir / METRICS_FILE, "a", encoding="utf-8", buffering=1)
        self._file = self._stack.enter_context(file)
        self._board = self._stack.enter_context(
            closing(EventsWriter(str(self._run_dir / "events")))
        )
        # Tells TensorBoard to drop the events that an earlier process wrote for later steps.
        begin = SessionLog(status=SessionLog.START)
        self._board.write_event(Event(step=self._start_step + 1, session_log=begin))
        self._stack.enter_context(self._display)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of a step and shows some of them."""
        if not self._writes:
            return
        scalars = {name: float(value) for name, value in scalars.items()}
        self._file.write(_to_line({"step": step, **scalars}))
        for name, value in scalars.items():
            self._plot(f"train/{name}", value, step)
        self._board.flush()
        self._display.show_step(step, scalars)

    def warn(self, text: str) -> None:
        """Shows a line."""
        if self._writes:
            self._display.warn(text)

    def log_evals(self, step: int, scores: Mapping[str, float]) -> None:
        """Records and shows scores of a step. Other scores that the step already has stay."""
        if not self._writes:
            return
        scores = {name: float(value) for name, value in scores.items()}
        record_evals(self._run_dir, step, scores)
        for name, value in scores.items():
            self._plot(name, value, step)
        self._board.flush()
        self._display.show_evals(step, scores, EVALS_FILE)

    def _plot(self, name: str, value: float, step: int) -> None:
        """Writes the value for TensorBoard, in this thread.

        tensorboardX's SummaryWriter would write in a thread of its own. On a full disk that thread
        dies, and its full queue then blocks the run for ever.
        """
        event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
        self._board.write_event(event)


def record_evals(run_dir: Path, step: int, scores: Mapping[str, float]) -> None:
    """Adds scores to the step's line of evals.jsonl. Lines are in order of steps."""
    path = run_dir / EVALS_FILE
    rows = {row["step"]: row for row in read_rows(path)}
    rows[step] = {**rows.get(step, {}), "step": step, **scores}
    _write_rows(path, [rows[key] for key in sorted(rows)])


def read_rows(path: Path) -> list[Row]:
    """The lines of metrics.jsonl or evals.jsonl. A file that does not exist has none.

    A kill can leave the last line torn, so a last line without its end that does not parse is
    skipped. Any other line that is not a step and its numbers raises UserError with file and line.
    """
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
    """Raises ValueError for other types than `_to_line` writes, and for numbers out of range."""
    row = json.loads(line)
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError("no object with a step")
    json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair cannot be written again
    parsed = {"step": row.pop("step"), **{name: _parse_value(v) for name, v in row.items()}}
    if not 0 <= parsed["step"] < HIGHEST_STEP:
        raise ValueError("a step out of range")
    return parsed


def _parse_value(value: object) -> float:
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    if abs(value) > sys.float_info.max:  # JSON text such as 1e400, or an integer of 400 digits
        raise ValueError("a number out of range")
    return float(value)


def find_row(path: Path, step: int) -> Row:
    """The line of a step. It is empty where the file has none."""
    return {row["step"]: row for row in read_rows(path)}.get(step, {})


def _write_rows(path: Path, rows: list[Row]) -> None:
    write_file(path, "".join(map(_to_line, rows)))


def _to_line(row: Mapping[str, float]) -> str:
    plain = {name: value if math.isfinite(value) else str(value) for name, value in row.items()}
    return json.dumps(plain) + "\n"
