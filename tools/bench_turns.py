"""Engines that take turns, each in a process of its own.

In: functions that work in rounds. Out: seconds of each round, what each round counted, seconds to
the end of the first round, and peak memory. Engines start one after another, and while one works
the others wait; so what else the machine does meets all of them alike.
"""

import ctypes
import importlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Counts = dict[str, float]
TOOLS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Engine:
    """`function(turns, *arguments)`, in a process of this Python or of another one."""

    function: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    python: str = sys.executable


class Turns:
    """An engine's side: it calls `end` after each round and then waits until it is its turn."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def end(self, **counts: float) -> None:
        """counts: what this round did, such as its pairs and tokens. The last round ends all."""
        self.connection.send(counts)
        # Free memory that the C library keeps is returned to the other engines.
        ctypes.CDLL(None).malloc_trim(0)
        if self.connection.recv() == "stop":
            os._exit(0)  # at once: threads that prefetch would hold the process


@dataclass
class Course:
    """What one engine did, without its first round, which compiles."""

    first_seconds: float = 0.0
    """From the start of the process to the end of the first round."""
    seconds: list[float] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    peak_mib: float = 0.0
    """Of the engine's process, without processes that it starts."""
    failure: str = ""
    """The error, in one line, where the engine could not run."""

    def rates(self, name: str) -> list[float]:
        """Of each round: so many a second."""
        return [
            counts[name] / seconds
            for counts, seconds in zip(self.counts, self.seconds, strict=True)
        ]

    def rate(self, name: str) -> float:
        return statistics.median(self.rates(name))

    def count(self, name: str) -> float:
        return sum(counts[name] for counts in self.counts)


def take_turns(engines: Mapping[str, Engine], rounds: int, *, warm: int = 0) -> dict[str, Course]:
    """Runs all engines. The course of one that fails has only its failure.

    warm: rounds at the start of each turn that do not count. While an engine waits, the host of a
    virtual machine may take the memory that the engine has freed, and getting it back takes time.
    """
    courses = {name: Course() for name in engines}
    working: dict[str, tuple[subprocess.Popen, Connection]] = {}
    for name, engine in engines.items():
        start = time.perf_counter()
        process, connection = _start(engine)
        if _receive(courses[name], connection) is None:
            process.wait()
            continue
        courses[name].first_seconds = time.perf_counter() - start
        working[name] = process, connection
        print(f"  {name}: first round after {courses[name].first_seconds:.1f} s", flush=True)
    for _ in range(rounds):
        for name, (_, connection) in working.items():
            for number in range(warm + 1):
                start = time.perf_counter()
                connection.send("go")
                counts = _receive(courses[name], connection)
                if counts is None:
                    raise RuntimeError(f"{name}: {courses[name].failure}")
                if number == warm:
                    courses[name].seconds.append(time.perf_counter() - start)
                    courses[name].counts.append(counts)
            print(f"  {name}: {courses[name].seconds[-1]:.3f} s", flush=True)
    for name, (process, connection) in working.items():
        courses[name].peak_mib = read_peak(process.pid)
        connection.send("stop")
        process.wait()
    return courses


def _start(engine: Engine) -> tuple[subprocess.Popen, Connection]:
    ours, theirs = Pipe()
    path = os.pathsep.join([str(TOOLS), str(TOOLS.parent)])
    process = subprocess.Popen(
        [engine.python, str(TOOLS / "bench_turns.py"), str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=os.environ | {"PYTHONPATH": path},
    )
    theirs.close()
    module = engine.function.__module__
    if module == "__main__":  # in the other process, bench_turns is __main__
        module = Path(sys.argv[0]).stem
    ours.send((module, engine.function.__name__))
    ours.send(engine.arguments)
    return process, ours


def _receive(course: Course, connection: Connection) -> Counts | None:
    """What the engine counted; None after a failure, which is noted."""
    try:
        answer = connection.recv()
    except EOFError:
        answer = "its process was lost"
    if isinstance(answer, dict):
        return answer
    course.failure = answer
    print(f"  failed: {answer}", flush=True)
    return None


def work(connection: Connection) -> None:
    """The engine's process, from its start to its last turn."""
    try:
        module, function = connection.recv()
        run = getattr(importlib.import_module(module), function)
        run(Turns(connection), *connection.recv())
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0][:200])
        raise
    connection.send("it ended before its last turn")


def read_peak(process: int | str = "self") -> float:
    """MiB. From Linux's /proc, because getrusage passes a parent's peak on to its child."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


if __name__ == "__main__":
    work(Connection(int(sys.argv[1])))
