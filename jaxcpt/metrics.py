"""Numbers of a run to the terminal, `metrics.jsonl`, `evals.jsonl` and TensorBoard events.

In: a dict of host floats for a step. Out: files of one JSON object a line, each step once and in
order, also after a kill and a resume; a progress bar, or plain lines where there is no terminal.
It knows neither what the numbers mean nor where arrays live: nothing here waits for a device.

JSON has no NaN: what is not finite is written as the string "nan", "inf" or "-inf", which
`read_rows` turns back into a float.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from rich import progress
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxcpt.errors import UserError
from jaxcpt.files import write_file

METRICS_FILE, EVALS_FILE = "metrics.jsonl", "evals.jsonl"
EVALS_SHOWN = 9  # on the screen at each eval; those of the suites are many more
LINE_EVERY_SECONDS = 10.0

SHOWN = {
    "loss": "loss {:.4f}",
    "accuracy": "accuracy {:.1%}",
    "pairs_per_s": "{:,.0f} pairs/s",
    "tokens_per_s": "{:,.0f} tokens/s",
    "padding": "padding {:.1%}",
}
"""What stands beside the step in the bar and in plain lines. `accuracy` is of both directions."""

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOP/s of a device, by JAX's `device_kind`; from the vendors' data sheets."""

# It warns at every value that is not finite; `Metrics.log` says so once, with step and name.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)

Row = dict[str, float]


class Throughput:
    """Pairs and tokens a second between two readings, and the share of time spent on data.

    Steps run asynchronously: wait for the step's scalars before `read` and before `paused`, or
    the window holds work that is not done. Read once after the first step, which compiles.
    """

    def __init__(
        self, peak_flops: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """peak_flops: FLOP/s of all devices together; None leaves `mfu` out of the readings."""
        self._peak_flops = peak_flops
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._start = self._clock()
        self._pairs, self._tokens, self._flops, self._waited = 0, 0, 0.0, 0.0

    def count(self, pairs: int, tokens: int, flops: float = 0.0) -> None:
        """Adds a step's work, global: pairs, tokens without padding, and the model's FLOPs."""
        self._pairs += pairs
        self._tokens += tokens
        self._flops += flops

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time spent inside counts towards `data_wait`. Enter it when no step is under way, or
        time that the devices are busy counts as well."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside counts for nothing: evals, checkpoints."""
        start = self._clock()
        yield
        self._start += self._clock() - start

    def read(self) -> Row:
        """The window's numbers; the next window begins now."""
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


class Metrics:
    """Shows and records a run's numbers, as a context manager; does nothing unless it `writes`.

    A line reaches the operating system before `log` returns, so a kill costs at most that line.
    """

    def __init__(
        self, run_dir: Path, total_steps: int, start_step: int, writes: bool, title: str = ""
    ) -> None:
        """start_step: steps already taken; what the files hold of later steps is dropped."""
        self._run_dir = run_dir
        self._total_steps = total_steps
        self._start_step = start_step
        self._writes = writes
        self._title = title or run_dir.name
        self._first_log: tuple[int, float] | None = None
        self._last_line = -math.inf
        self._not_finite: set[str] = set()
        self._live: Live | None = None

    def __enter__(self) -> "Metrics":
        """Raises UserError if a line of the files, but for a torn last one, does not parse."""
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
        # Tells TensorBoard to forget what an earlier process wrote of later steps.
        begin = SessionLog(status=SessionLog.START)
        self._board.write_event(Event(step=self._start_step + 1, session_log=begin))
        self._console = _console()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # Redrawn when there is news, so that no thread competes with the run for a core.
            waiting = Text("waiting for the first step", style="dim")
            self._live = Live(
                self._bar(self._start_step, "-", waiting), console=self._console, auto_refresh=False
            )
            self._stack.enter_context(self._live)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of a step and shows the few named in SHOWN."""
        if not self._writes:
            return
        scalars = {name: float(value) for name, value in scalars.items()}
        self._file.write(_to_line({"step": step, **scalars}))
        for name, value in scalars.items():
            self._plot(f"train/{name}", value, step)
        self._board.flush()
        self._warn_of_not_finite(step, scalars)
        now = time.perf_counter()
        numbers, left = _numbers(scalars), self._time_left(step, now)
        if self._live is not None:
            self._live.update(self._bar(step, left, numbers), refresh=True)
        elif now - self._last_line >= LINE_EVERY_SECONDS or step == self._total_steps:
            self._last_line = now
            width = len(str(self._total_steps))
            head = f"step {step:{width}}/{self._total_steps}  "
            self._print(Text.assemble(head, numbers, f"  {left} left"))

    def log_evals(self, step: int, scores: Mapping[str, float]) -> None:
        """Records and shows scores of a step; others that it already has stay."""
        if not self._writes:
            return
        scores = {name: float(value) for name, value in scores.items()}
        record_evals(self._run_dir, step, scores)
        for name, value in scores.items():
            self._plot(name, value, step)
        self._board.flush()
        self._warn_of_not_finite(step, scores)
        listed = [f"{name} {value:.4f}" for name, value in scores.items()]
        if more := listed[EVALS_SHOWN:]:
            listed[EVALS_SHOWN:] = [f"and {len(more)} more in {EVALS_FILE}"]
        self._print(Text(f"evals at step {step}  {'  '.join(listed)}"))

    def _plot(self, name: str, value: float, step: int) -> None:
        """To TensorBoard. Written here and not in a thread of tensorboardX's SummaryWriter: on a
        full disk that thread dies, and its queue then blocks the run for ever."""
        event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
        self._board.write_event(event)

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    def _bar(self, step: int, left: str, numbers: Text) -> RenderableType:
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        bar = ProgressBar(self._total_steps, step)
        grid.add_row(self._title, bar, f"{step}/{self._total_steps}", f"{left} left")
        return Group(grid, numbers)

    def _time_left(self, step: int, now: float) -> str:
        """At the pace since the first logged step, evals and checkpoints included."""
        if self._first_log is None:
            self._first_log = (step, now)
        first_step, start = self._first_log
        if step == first_step:
            return "-"
        pace = (now - start) / (step - first_step)
        return str(timedelta(seconds=round(pace * (self._total_steps - step))))

    def _warn_of_not_finite(self, step: int, row: Mapping[str, float]) -> None:
        """Once for each name, until it is finite again."""
        bad = {name: value for name, value in row.items() if not math.isfinite(value)}
        if new := [
            f"{name} is {value}" for name, value in bad.items() if name not in self._not_finite
        ]:
            self._print(Text(f"step {step}: {', '.join(new)}", style="bold red"))
        self._not_finite = self._not_finite - row.keys() | bad.keys()


def record_evals(run_dir: Path, step: int, scores: Mapping[str, float]) -> None:
    """Puts scores into evals.jsonl beside those that the step already has, in order of steps."""
    path = run_dir / EVALS_FILE
    rows = {row["step"]: row for row in read_rows(path)}
    rows[step] = {**rows.get(step, {}), "step": step, **scores}
    _write_rows(path, [rows[key] for key in sorted(rows)])


def read_rows(path: Path) -> list[Row]:
    """The lines of metrics.jsonl or evals.jsonl; none if there is no such file.

    A kill can leave the last line torn; it is skipped. Any other bad line raises UserError with
    file and line.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({"step": int(row.pop("step")), **{k: float(v) for k, v in row.items()}})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number < len(lines):
                raise UserError(
                    f"{path}:{number}: not an object of a step and its numbers; remove the line"
                ) from error
    return rows


def _write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    write_file(path, "".join(map(_to_line, rows)))


def _to_line(row: Mapping[str, float]) -> str:
    plain = {name: value if math.isfinite(value) else str(value) for name, value in row.items()}
    return json.dumps(plain) + "\n"


def _numbers(scalars: Mapping[str, float]) -> Text:
    row = dict(scalars)
    if "accuracy_x_to_y" in row and "accuracy_y_to_x" in row:
        row["accuracy"] = (row["accuracy_x_to_y"] + row["accuracy_y_to_x"]) / 2
    parts = [
        Text(form.format(row[name]), style="" if math.isfinite(row[name]) else "bold red")
        for name, form in SHOWN.items()
        if name in row
    ]
    return Text("  ").join(parts)


def print_table(
    title: str, rows: Sequence[Sequence[str | float]], headings: Sequence[str] = ()
) -> None:
    """Prints rows under a title: floats with three decimals, columns of numbers to the right."""
    table = Table(title=title, title_justify="left", show_header=bool(headings))
    for index, column in enumerate(zip(*rows, strict=True)):
        numbers = all(isinstance(cell, int | float) for cell in column)
        heading = headings[index] if headings else ""
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{c:.3f}" if isinstance(c, float) else str(c) for c in row))
    _console().print(table)


def _console() -> Console:
    """Texts of a user may hold brackets and emoji names: nothing in them is markup."""
    terminal = sys.stdout.isatty()
    return Console(
        force_terminal=terminal,
        width=None if terminal else 120,
        highlight=False,
        markup=False,
        emoji=False,
    )


@contextmanager
def show_progress(title: str, total: int | None, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal, gone when it is done; yields what to call with each count done.

    total: how many there are; None where nobody knows yet.
    """
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    console = _console()
    shown = shown and console.is_terminal
    with progress.Progress(*columns, console=console, disable=not shown, transient=True) as display:
        task = display.add_task(title, total=total)
        yield lambda count: display.advance(task, count)
