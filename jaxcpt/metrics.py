"""Numbers of a run: `metrics.jsonl`, `evals.jsonl`, TensorBoard events, and live boards.

In: for each step, a dict of host floats. Out: files with one JSON object per line. Each step
stands there once and in order, also after a kill and a resume. What a person sees of the numbers
is drawn by `terminal`. The module does not know what the numbers mean, and it never waits for a
device.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Literal, get_args

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxcpt.files import is_object, write_file
from jaxcpt.live import LiveBoards
from jaxcpt.rows import (
    EVALS_FILE,
    METRICS_FILE,
    Row,
    Upload,
    find_row,
    open_rows,
    read_rows,
    record_evals,
    write_rows,
)
from jaxcpt.terminal import RunDisplay

__all__ = [
    "EVALS_FILE",
    "METRICS_FILE",
    "MetricsLog",
    "Row",
    "Throughput",
    "find_row",
    "read_rows",
    "record_evals",
]

EVENTS_BYTES = 1 << 22
Pause = Literal["save", "eval"]
PAUSES: tuple[Pause, ...] = get_args(Pause)
"""What training stops for."""

# It warns at every value that is not finite. `RunDisplay` warns once, with step and name.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)


class Throughput:
    """Measures pairs and tokens per second, and which share of the time goes to what else.

    Each reading covers the time since the reading before it. Steps run asynchronously, so wait for
    the step's scalars before `read` and before `paused`; otherwise unfinished work is counted. The
    first step is slower: call `read` after it to keep it out of the next reading.
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
        self._paused = dict.fromkeys(PAUSES, 0.0)

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
    def paused(self, reason: Pause) -> Iterator[None]:
        """Leaves the time inside the block out of all numbers but the share of its reason."""
        start = self._clock()
        yield
        self._paused[reason] += self._clock() - start

    def read(self) -> Row:
        """The numbers since the last reading. The next reading starts here."""
        elapsed = self._clock() - self._start
        seconds = elapsed - sum(self._paused.values())
        row = {
            "pairs_per_s": self._pairs / seconds,
            "tokens_per_s": self._tokens / seconds,
            "data_wait": self._waited / seconds,
            **{f"{reason}_share": time / elapsed for reason, time in self._paused.items()},
        }
        if self._peak_flops is not None:
            row["mfu"] = self._flops / seconds / self._peak_flops
        self._begin()
        return row


class MetricsLog:
    """Records and shows a run's numbers, as a context manager. It does nothing unless it `writes`.

    In a local run folder, a line reaches the operating system before `log` returns, so a kill loses
    at most that line. In a store, numbers are written every few seconds and by `flushed`.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        start_step: int,
        writes: bool,
        live: Sequence[str] = (),
    ) -> None:
        """start_step: steps already taken. Lines of later steps are removed from the files.

        live: libraries of `live.BOARDS` that the numbers are sent to as well.
        """
        self._run_dir = run_dir
        self._start_step = start_step
        self._writes = writes
        self._libraries = live
        self._display = RunDisplay(run_dir.name, start_step, total_steps)

    def __enter__(self) -> "MetricsLog":
        """Raises UserError where a line of the files, except a torn last one, does not parse."""
        self._stack = ExitStack()
        if not self._writes:
            return self
        evals = self._run_dir / EVALS_FILE
        write_rows(evals, [row for row in read_rows(evals) if row["step"] <= self._start_step])
        rows = open_rows(self._run_dir / METRICS_FILE, self._start_step)
        self._rows = self._stack.enter_context(closing(rows))
        self._board = self._stack.enter_context(closing(open_board(self._run_dir / "events")))
        # Tells TensorBoard to drop the events that an earlier process wrote for later steps.
        begin = SessionLog(status=SessionLog.START)
        self._board.write_event(Event(step=self._start_step + 1, session_log=begin))
        boards = LiveBoards(self._libraries, self._run_dir, self._display.warn)
        self._live = self._stack.enter_context(closing(boards))
        self._stack.enter_context(self._display)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of a step and shows some of them."""
        if not self._writes:
            return
        scalars = {name: float(value) for name, value in scalars.items()}
        self._rows.append({"step": step, **scalars})
        self._plot(step, {f"train/{name}": value for name, value in scalars.items()})
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
        self._plot(step, scores)
        self._display.show_evals(step, scores, EVALS_FILE)

    @contextmanager
    def flushed(self) -> Iterator[None]:
        """Writes all that was logged before the block, so that a saved step has its numbers."""
        if self._writes:
            self._rows.flush()
        yield

    def _plot(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values for TensorBoard, in this thread, and sends them to the live boards.

        tensorboardX's SummaryWriter would write in a thread of its own. On a full disk that thread
        dies, and its full queue then blocks the run for ever.
        """
        for name, value in scalars.items():
            event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._board.write_event(event)
        self._board.flush()
        self._live.log(step, scalars)


def open_board(prefix: Path) -> "EventsWriter | ObjectBoard":
    """TensorBoard's events, in files whose names begin with `prefix`."""
    return ObjectBoard(prefix) if is_object(prefix) else EventsWriter(str(prefix))


class ObjectBoard:
    """TensorBoard's events in a store: local files that are uploaded as they grow."""

    def __init__(self, prefix: Path) -> None:
        self._prefix, self._count = prefix, 0
        self._scratch = tempfile.TemporaryDirectory(prefix="jaxcpt_")
        self._folder = Path(self._scratch.name)
        self._events = self._begin_file()
        self._upload = Upload(self._put)

    def _begin_file(self) -> EventsWriter:
        self._count += 1
        return EventsWriter(str(self._folder / self._prefix.name), f".{self._count:05d}")

    def write_event(self, event: Event) -> None:
        self._events.write_event(event)

    def flush(self) -> None:
        self._events.flush()
        if self._list_files()[-1].stat().st_size > EVENTS_BYTES:
            self._events.close()
            self._events = self._begin_file()
        self._upload.note()

    def _list_files(self) -> list[Path]:
        return sorted(self._folder.iterdir())

    def _put(self) -> None:
        *full, last = self._list_files()
        for file in (*full, last):
            write_file(self._prefix.with_name(file.name), file.read_bytes())
        for file in full:
            file.unlink()

    def close(self) -> None:
        self._events.close()
        self._upload.close()
        self._scratch.cleanup()
