"""Ends the process when a training step does not end, as when a device or a peer is stuck.

In: the moments at which steps end. Out: nothing, or the stacks of all threads on stderr and exit
code 3. It does not know what a step does. Evals and saves, which take any time, pause it.
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
"""Before the first step has ended, nothing tells how long a step takes."""
LEAST_SECONDS = 600.0
TIMES_THE_MEDIAN = 20
STEPS_COUNTED = 101
"""The median is of so many newest steps."""
CHECKS_PER_LIMIT = 20


class HangWatch:
    """Watches the training loop, which takes its items from `steps`."""

    def __init__(self, seconds: float | None) -> None:
        """seconds: how long a step may take. None: 20 times the median step, at least 600."""
        self._seconds = seconds
        self._durations: deque[float] = deque(maxlen=STEPS_COUNTED)
        self._start = time.monotonic()
        self._limit = max(FIRST_STEP_SECONDS, seconds or 0.0)
        self._pauses = 0
        self._ended = threading.Event()

    def steps(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, of which each begins a step. The watch ends with the last."""
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
        """The next step has its own time from now on."""
        now = time.monotonic()
        self._durations.append(now - self._start)
        self._start = now
        self._limit = self._seconds or find_limit(self._durations)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside the block out of the step."""
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
                    "ends; where each of its threads was stands above; start again to resume",
                )


def find_limit(durations: Sequence[float]) -> float:
    """Seconds that a step may take after steps that took so many seconds."""
    return max(LEAST_SECONDS, TIMES_THE_MEDIAN * statistics.median(durations))
