"""Shows the progress of a mining run on stderr, instead of Beam's own output.

In: the folder of the run. Out: lines on stderr. The module only knows the names of the files that
the run has written so far.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def mute_stderr() -> Iterator[TextIO]:
    """A context that redirects file descriptor 2 to /dev/null and yields a file on the real stderr.

    Beam's workers are child processes that inherit the descriptor, so it is not enough to replace
    `sys.stderr`. No error is lost, because an error in a worker is raised again in this process. A
    log file instead of /dev/null would make a worker hang when the disk is full.
    """
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as stderr, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield stderr
        finally:
            os.dup2(stderr.fileno(), 2)


@contextlib.contextmanager
def show_progress(folder: Path, units: int, shards: int, stderr: TextIO) -> Iterator[None]:
    """A context that shows progress on stderr while its block runs.

    On a terminal it is one line that changes every second. Otherwise it is a new line every minute.
    """
    ended = threading.Event()
    start = time.monotonic()
    live = stderr.isatty()

    def show() -> None:
        while not ended.wait(1 if live else 60):
            mined = len(list((folder / "units").glob("*.json")))
            written = len(list((folder / "dataset").glob("report-*.json")))
            line = f"{time.monotonic() - start:.0f} s: mined {mined} of {units} parts, "
            line += f"wrote {written} of {shards} shards"
            print(line, end="\r" if live else "\n", file=stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
