"""Moves a run from 8 devices to 4, to 2 x 2 and to 1, and compares it with a run on one device.

The run is stopped by SIGTERM and resumed with another mesh each time. The batches must be the same.
Other devices add the same numbers in another order, so losses need not be exactly equal; they must
agree to `RELATIVE`, as in tests/test_processes.py.
"""

import random
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torture_runs import Outcome, Scene, said, wait_for_step

from jaxcpt.errors import STOPPED

MESHES = (
    ("mesh.data=8",),
    ("mesh.data=4",),
    ("mesh.data=2", "mesh.fsdp=2"),
    ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"),
    ("mesh.data=1",),
)
STEPS = 60
RELATIVE = 1e-4
SAME = ("step", "pairs", "tokens", "learning_rate")
"""Scalars of a step that do not depend on the order of sums."""


def compare_closely(
    wanted: list[dict[str, Any]], found: list[dict[str, Any]]
) -> tuple[list[str], float]:
    """Returns lines for what differs, and the largest relative difference of a loss."""
    if [row["step"] for row in wanted] != [row["step"] for row in found]:
        return ["other steps in metrics.jsonl"], 0.0
    names = [name for name in SAME if name in wanted[0]]
    failures = [
        f"step {ours['step']:g}: other {name}"
        for ours, theirs in zip(found, wanted, strict=True)
        for name in names
        if ours[name] != theirs[name]
    ]
    losses = np.array([[row["loss"] for row in rows] for rows in (wanted, found)])
    largest = float(np.max(np.abs(losses[1] / losses[0] - 1)))
    if largest > RELATIVE:
        failures.append(f"losses differ by {largest:.1e}")
    return failures, largest


def torture(seed: int, cases: int) -> Outcome:
    """cases: how many runs are moved through all meshes."""
    draw = random.Random(seed)
    failures, largest, stops = [], 0.0, 0
    with tempfile.TemporaryDirectory() as scratch:
        scene = Scene(Path(scratch, "scene"), STEPS)
        wanted = scene.finish(Path(scratch, "undisturbed"))["metrics"]
        for case in range(cases):
            run_dir = Path(scratch, str(case))
            for mesh in MESHES[:-1]:
                process = scene.start(run_dir, *(part for axis in mesh for part in ("--set", axis)))
                wait_for_step(run_dir, [process], draw)
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate()
                if process.returncode != STOPPED:
                    failures.append(f"{mesh}: exit code {process.returncode}: {said(errors)}")
                stops += 1
            found, difference = compare_closely(wanted, scene.finish(run_dir)["metrics"])
            failures += found
            largest = max(largest, difference)
    note = f"{stops} moves, losses within {largest:.1e}"
    return Outcome(cases=cases, failures=failures, note=note)
