"""Handles the signals that ask a run to stop: SIGTERM, SIGINT (Ctrl-C) and SIGHUP.

In: signals. Out: the flag `noted`, which the training loop reads after each step. A signal also
ends an eval early. The module does not know what a run must save.
"""

import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax

from jaxcpt.errors import Stopped, leave, say
from jaxcpt.processes import any_process, tell_others_to_stop

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interruption:
    """Notes the first signal as a request to stop. A second signal ends the process at once.

    It is a context manager. If SIGHUP was ignored before, as under nohup, it stays ignored.

    Python runs a handler only when the main thread executes Python code, and not while it waits for
    a step. But Python writes the number of each signal to a pipe at once. A thread reads them, so
    that the user gets an answer, and a second signal works, while a step runs.
    """

    def __init__(self) -> None:
        self.noted = False
        self._ends_work = False
        self._lock = threading.RLock()

    def __enter__(self) -> "Interruption":
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = SIGNALS[:2] if ignored else SIGNALS
        self._numbers, self._written = os.pipe()
        os.set_blocking(self._numbers, False)
        os.set_blocking(self._written, False)
        self._before: dict[int, Any] = {n: signal.signal(n, self._handle) for n in numbers}
        self._pipe_before = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._pipe_before)
        os.close(self._written)  # ends the thread
        self._thread.join()
        os.close(self._numbers)

    def _watch(self) -> None:
        while select.select([self._numbers], [], []) and self._read():
            pass

    def _handle(self, number: int, _: Any) -> None:
        """The handler in the main thread."""
        self._read()
        if not self.noted:  # a library has taken Python's pipe of signals
            self._note(signal.Signals(number))
        if self._ends_work:
            raise Stopped

    def _read(self) -> bool:
        """Notes the signals that came. Returns False if no more can come."""
        with self._lock:
            try:
                numbers = os.read(self._numbers, 64)
            except BlockingIOError:  # the other thread has read them
                return True
            for number in numbers:
                if number in self._before:
                    self._note(signal.Signals(number))
            return bool(numbers)

    def _note(self, number: signal.Signals) -> None:
        if self.noted:
            line = f"ended by {number.name}, the second signal; the newest checkpoint stays"
            leave(128 + number, line)
        self.noted = True
        say(f"{number.name}: stopping after this step; a second signal ends the run without saving")
        tell_others_to_stop()

    def run(self, work: Callable[[], None]) -> bool:
        """Runs `work`, which has nothing to save. Returns whether a signal ended it early.

        With several processes, `work` must call `check`: one process cannot stop alone, because the
        others would wait for it.
        """
        try:
            self._ends_work = jax.process_count() == 1
            work()
            self._ends_work = False
        except Stopped:
            return True
        finally:
            self._ends_work = False
        return False

    def check(self) -> None:
        """Ends the work of `run` if any process was asked to stop. All processes must call it."""
        if any_process(self.noted):
            raise Stopped
