"""Starts `jaxcpt train` without its five seconds of imports: forks a process that has them done.

In: the options of the command, and a folder for compiled programs and for what it writes. Out: an
object with the methods of `subprocess.Popen`. The child runs the command as `python -m jaxcpt` does
and ends as that does, its exit handlers included.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["jaxcpt.train", "jaxcpt.embed", "torture_fork"])


def _run(arguments: Sequence[str], compiled: str, outputs: tuple[str, str]) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import jax

    from jaxcpt.errors import run_command
    from jaxcpt.train import main

    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    code = 0
    try:
        run_command(main, arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    atexit._run_exitfuncs()  # a forked process would leave without them
    sys.stdout.flush()
    os._exit(code)


class Forked:
    """A process that trains."""

    def __init__(self, arguments: Sequence[str], compiled: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._outputs:
            path.touch()
        names = tuple(map(str, self._outputs))
        self._process: ForkServerProcess = FORKS.Process(
            target=_run, args=(list(arguments), str(compiled), names), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        """Waits for the end. Returns what the process has written."""
        self._process.join()
        output, errors = (path.read_text(errors="replace") for path in self._outputs)
        return output, errors
