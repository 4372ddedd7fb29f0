"""Ends the process if a training step does not end, for example because a device hangs.

In: the times at which steps end. Out: nothing; or, if a step takes too long, the stacks of all
threads on stderr and exit code 3. Evals and saves may take any time, so they pause the watch. The
module does not know what a step does.
"""

import faulthandler
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from jaxcpt.errors import LOST_PEER, leave

Item = TypeVar("Item")

FIRST_STEP_SECONDS = 3600.0
"""Limit for the first step. Before it has ended, the duration of a step is not known."""
LEAST_SECONDS = 600.0
TIMES_THE_MEDIAN = 20
STEPS_COUNTED = 101
"""The median is taken over this many of the newest steps."""
CHECKS_PER_LIMIT = 20


class HangWatch:
    """Watches the training loop. The loop iterates over `steps`, which shows when a step ends."""

    def __init__(self, seconds: float | None) -> None:
        """seconds: how long a step may take. None: 20 times the median step, at least 600."""
        self._seconds = seconds
        self._durations: deque[float] = deque(maxlen=STEPS_COUNTED)
        self._start = time.monotonic()
        self._limit = max(FIRST_STEP_SECONDS, seconds or 0.0)
        self._pauses = 0
        self._ended = threading.Event()

    def steps(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items. Each item begins a step. The watch ends after the last item."""
        thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)
        self._start = time.monotonic()
        thread.start()
        try:
            for item in items:
                yield item
                self._end_step()
        finally:
            self._ended.set()

    def _end_step(self) -> None:
        """Records the duration of the step that ended, and starts the time of the next step."""
        now = time.monotonic()
        self._durations.append(now - self._start)
        self._start = now
        self._limit = self._seconds or find_limit(self._durations)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count as time of the step."""
        self._pauses += 1
        before = time.monotonic()
        try:
            yield
        finally:
            self._start += time.monotonic() - before
            self._pauses -= 1

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(tick := min(self._limit / CHECKS_PER_LIMIT, 10.0)):
            before, waited = time.monotonic(), time.monotonic() - before
            if waited > 2 * tick + 5:  # this thread stood still too: the process was suspended
                self._start = before
            is_paused, start, limit = self._pauses > 0, self._start, self._limit
            if not is_paused and before - start > limit:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                leave(
                    LOST_PEER,
                    f"a step took longer than {limit:.0f} s (safety.hang_seconds), so this process "
                    "ends; the stacks of its threads are above; start the run again to resume",
                )


def find_limit(durations: Sequence[float]) -> float:
    """The limit of the next step in seconds. durations: seconds of the steps before it."""
    return max(LEAST_SECONDS, TIMES_THE_MEDIAN * statistics.median(durations))
