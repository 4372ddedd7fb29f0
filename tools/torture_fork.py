"""Starts `jaxcpt train` without its five seconds of imports, by forking this process.

In: the options of the command, and a folder for compiled programs. Out: an object with the methods
of `subprocess.Popen`. The child runs the command like `python -m jaxcpt`, and it also ends like
that, with its exit handlers.
"""

import atexit
import fcntl
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
PIPE_BYTES = 1 << 20
FORKS.set_forkserver_preload(["jaxcpt.train", "jaxcpt.embed", "torture_fork"])


def _run(arguments: Sequence[str], compiled: str, outputs: tuple[str, str]) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
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
    atexit._run_exitfuncs()  # a forked process would skip them
    sys.stdout.flush()
    os._exit(code)


class Forked:
    """A process that trains. It writes to pipes, so a full disk or a file limit cannot stop it."""

    def __init__(self, arguments: Sequence[str], compiled: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        names = tuple(str(Path(self._folder.name, name)) for name in ("stdout", "stderr"))
        self._pipes = [_open_pipe(name) for name in names]
        self._written = [b"", b""]
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
        """Waits until the process ends. Returns its stdout and stderr."""
        self._process.join()
        for number, pipe in enumerate(self._pipes):
            while part := os.read(pipe, PIPE_BYTES):
                self._written[number] += part
            os.close(pipe)
        self._pipes = []
        output, errors = (written.decode(errors="replace") for written in self._written)
        return output, errors


def _open_pipe(name: str) -> int:
    """A pipe that can hold everything that a process writes until it ends."""
    os.mkfifo(name)
    pipe = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return pipe
