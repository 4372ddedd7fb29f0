"""Handles the signals that ask a run to stop: SIGTERM, SIGINT (Ctrl-C) and SIGHUP.

In: signals. Out: the flag `noted`, which the training loop reads after each step. A signal also
ends an eval early. The module does not know what a run must save.
"""

import signal
from collections.abc import Callable
from typing import Any

import jax

from jaxcpt.errors import Stopped, leave
from jaxcpt.processes import any_process, tell_others_to_stop

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interruption:
    """Notes the first signal as a request to stop. A second signal ends the process at once.

    It is a context manager. If SIGHUP was ignored before, as under nohup, it stays ignored.
    """

    def __init__(self) -> None:
        self.noted = False
        self._ends_work = False

    def __enter__(self) -> "Interruption":
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = SIGNALS[:2] if ignored else SIGNALS
        self._before: dict[int, Any] = {n: signal.signal(n, self._note) for n in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.noted:
            name = signal.Signals(number).name
            leave(128 + number, f"ended by {name}, the second signal; the newest checkpoint stays")
        self.noted = True
        tell_others_to_stop()
        if self._ends_work:
            raise Stopped

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
