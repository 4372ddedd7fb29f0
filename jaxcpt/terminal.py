"""Prints what a person sees while a command runs: tables, progress bars, and a run's numbers.

In: host floats, names and counts. Out: text on stdout. On a terminal, bars are redrawn in place.
Only this module imports rich. It knows no file and no device.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich import progress
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_EVERY_SECONDS = 10.0
EVALS_SHOWN = 9
"""Number of scores to show at each eval. The file has all of them."""

SHOWN = {
    "loss": "loss {:.4f}",
    "accuracy": "accuracy {:.1%}",
    "pairs_per_s": "{:,.0f} pairs/s",
    "tokens_per_s": "{:,.0f} tokens/s",
    "padding": "padding {:.1%}",
}
"""Scalars to show beside the step. `accuracy` is the mean of the two search directions."""


class Shown:
    """The displays that are on the terminal now. Two that redraw at once would mix their lines."""

    run = False
    """Whether a `RunDisplay` is shown."""
    bars: progress.Progress | None = None


class RunDisplay:
    """Shows the progress and the numbers of a training run, as a context manager.

    A terminal shows a bar with the newest numbers below it. Other outputs get a plain line at most
    every LINE_EVERY_SECONDS, and one at the last step.
    """

    def __init__(self, title: str, start_step: int, total_steps: int) -> None:
        """start_step: steps that were taken before this process started."""
        self._title = title
        self._start_step = start_step
        self._total_steps = total_steps
        self._console = make_console()
        self._first_shown: tuple[int, float] | None = None
        self._last_line = -math.inf
        self._not_finite: set[str] = set()
        self._live: Live | None = None

    def __enter__(self) -> "RunDisplay":
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            waiting = Text("waiting for the first step", style="dim")
            bar = self._draw_bar(self._start_step, "-", waiting)
            # Redraw only when numbers change, so that no thread competes with the run for a core.
            self._live = Live(bar, console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
            Shown.run = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            Shown.run = False

    def show_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the scalars named in SHOWN, and warns of any that is not finite."""
        self._warn_if_not_finite(step, scalars)
        now = time.perf_counter()
        numbers, left = _format_numbers(scalars), self._estimate_time_left(step, now)
        if self._live is not None:
            self._live.update(self._draw_bar(step, left, numbers), refresh=True)
        elif now - self._last_line >= LINE_EVERY_SECONDS or step == self._total_steps:
            self._last_line = now
            width = len(str(self._total_steps))
            head = f"step {step:{width}}/{self._total_steps}  "
            self._print(Text.assemble(head, numbers, f"  {left} left"))

    def warn(self, text: str) -> None:
        """Prints a line of warning."""
        self._print(Text(text, style="bold red"))

    def show_evals(self, step: int, scores: Mapping[str, float], file: str) -> None:
        """Shows the first EVALS_SHOWN scores. `file`: the name of the file that holds them all."""
        self._warn_if_not_finite(step, scores)
        listed = [f"{name} {value:.4f}" for name, value in scores.items()]
        if more := listed[EVALS_SHOWN:]:
            listed[EVALS_SHOWN:] = [f"and {len(more)} more in {file}"]
        self._print(Text(f"evals at step {step}  {'  '.join(listed)}"))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    def _draw_bar(self, step: int, left: str, numbers: Text) -> RenderableType:
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        bar = ProgressBar(self._total_steps, step)
        grid.add_row(self._title, bar, f"{step}/{self._total_steps}", f"{left} left")
        return Group(grid, numbers)

    def _estimate_time_left(self, step: int, now: float) -> str:
        """The time left, at the mean speed since the first shown step. Evals and saves count."""
        if self._first_shown is None:
            self._first_shown = (step, now)
        first_step, start = self._first_shown
        if step == first_step:
            return "-"
        pace = (now - start) / (step - first_step)
        return str(timedelta(seconds=round(pace * (self._total_steps - step))))

    def _warn_if_not_finite(self, step: int, row: Mapping[str, float]) -> None:
        """Warns once of each scalar that is not finite, and again only after it was finite.

        Bad steps are left out, because the training loop warns of them.
        """
        if "bad_steps" in row:
            return
        bad = {name: value for name, value in row.items() if not math.isfinite(value)}
        if new := [
            f"{name} is {value}" for name, value in bad.items() if name not in self._not_finite
        ]:
            self.warn(f"step {step}: {', '.join(new)}")
        self._not_finite = self._not_finite - row.keys() | bad.keys()


def _format_numbers(scalars: Mapping[str, float]) -> Text:
    row = dict(scalars)
    if "accuracy_x_to_y" in row and "accuracy_y_to_x" in row:
        row["accuracy"] = (row["accuracy_x_to_y"] + row["accuracy_y_to_x"]) / 2
    parts = [
        Text(form.format(row[name]), style="" if math.isfinite(row[name]) else "bold red")
        for name, form in SHOWN.items()
        if name in row
    ]
    of_sources = [name for name in row if name.startswith("padding/")]
    parts += [Text(f"{name.replace('/', ' ')} {row[name]:.1%}") for name in of_sources]
    return Text("  ").join(parts)


def cut_text(text: str, most: int | None = None) -> str:
    """The first `most` characters of a text, and the number of those that were cut off.

    most: None means three lines of the terminal, or 240 characters if there is no terminal.
    """
    most = most or 3 * shutil.get_terminal_size((80, 24)).columns
    more = len(text) - most
    return f"{text[:most]}... (and {more:,} characters more)" if more > 0 else text


def print_table(
    title: str, rows: Sequence[Sequence[str | float]], headings: Sequence[str] = ()
) -> None:
    """Prints a table. Floats have three decimals, and columns of numbers are right-aligned."""
    table = Table(title=title, title_justify="left", show_header=bool(headings))
    for index, column in enumerate(zip(*rows, strict=True)):
        numbers = all(isinstance(cell, int | float) for cell in column)
        heading = headings[index] if headings else ""
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{c:.3f}" if isinstance(c, float) else str(c) for c in row))
    make_console().print(table)


@contextmanager
def show_progress(title: str, total: int | None, shown: bool) -> Iterator[Callable[[int], None]]:
    """A context that shows a progress bar on the terminal, below the bars that are there already.

    It yields a function; call that with the number of items done since the last call. While a
    `RunDisplay` is on the terminal, no bar is shown. total: the number of items; None: unknown.
    """
    if Shown.run or not (shown and make_console().is_terminal):
        yield lambda count: None
    elif (display := Shown.bars) is not None:
        with _show_bar(display, title, total) as advance:
            yield advance
    else:
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=make_console(), transient=True) as display:
            Shown.bars = display
            try:
                with _show_bar(display, title, total) as advance:
                    yield advance
            finally:
                Shown.bars = None


@contextmanager
def _show_bar(
    display: progress.Progress, title: str, total: int | None
) -> Iterator[Callable[[int], None]]:
    task = display.add_task(title, total=total)
    try:
        yield lambda count: display.advance(task, count)
    finally:
        display.remove_task(task)


def make_console() -> Console:
    """A console that prints text unchanged: brackets and emoji names are not markup."""
    terminal = sys.stdout.isatty()
    return Console(
        force_terminal=terminal,
        width=None if terminal else 120,
        highlight=False,
        markup=False,
        emoji=False,
    )
