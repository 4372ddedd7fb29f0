"""Trains with saves and evals for a while, and checks that memory, handles and threads do not grow.

The first quarter does not count, because caches fill in it. Growth is the slope of a line through
all later readings.
"""

import random
import tempfile
import time
from pathlib import Path

import numpy as np
from torture_runs import Outcome, Scene, count_rows, kill_all, wait_for_step

READ_SECONDS = 1.0
MOST_GROWTH = {"bytes": 300_000.0, "handles": 0.02, "threads": 0.02, "shared": 1000.0}
"""The most growth per save. docs/reliability.md explains why some memory grows."""
ENDLESS = 1_000_000


def read_process(pid: int) -> dict[str, float]:
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "bytes": sum(float(fields[name].split()[0]) for name in ("RssAnon", "VmSwap")) * 1024,
        "handles": float(len(list(Path(f"/proc/{pid}/fd").iterdir()))),
        "threads": float(fields["Threads"]),
        "shared": float(fields["RssShmem"].split()[0]) * 1024,
    }


def measure_growth(saves: list[float], values: list[float]) -> float:
    return float(np.polyfit(saves, values, 1)[0]) if len(set(saves)) > 1 else 0.0


def torture(seed: int, seconds: int) -> Outcome:
    """Runs the proof for `seconds`, which are its number of cases."""
    readings: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        scene = Scene(Path(scratch, "scene"), ENDLESS)
        run_dir = Path(scratch, "run")
        process = scene.start(run_dir)
        wait_for_step(run_dir, [process], random.Random(seed))
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None:
            readings.append({"saves": count_rows(run_dir) // 3, **read_process(process.pid)})
            time.sleep(READ_SECONDS)
        code = process.poll()
        kill_all([process])
    if code is not None:
        return Outcome(cases=seconds, failures=[f"the run ended with code {code}"])
    later = readings[len(readings) // 4 :]
    saves = [reading["saves"] for reading in later]
    growth = {
        name: measure_growth(saves, [reading[name] for reading in later]) for name in MOST_GROWTH
    }
    failures = [
        f"{name} grow by {growth[name]:.2g} a save"
        for name, most in MOST_GROWTH.items()
        if growth[name] > most
    ]
    numbers = ", ".join(f"{name} {value:.2g}" for name, value in growth.items())
    note = f"seconds, {saves[-1]:.0f} saves; growth of each save: {numbers}"
    return Outcome(cases=seconds, failures=failures, note=note)
