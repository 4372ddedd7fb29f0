"""Records with JAX's profiler what the devices and the host do during some training steps.

In: the function that takes a step. Out: a function that does the same and once writes a trace into
a folder, for https://ui.perfetto.dev, TensorBoard or XProf. Only the first process writes, because
JAX refuses a folder with traces of two processes. The module does not know what a step computes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax

from jaxcpt.errors import UserError
from jaxcpt.files import is_object
from jaxcpt.processes import is_first

State = TypeVar("State")
Batch = TypeVar("Batch")
Result = TypeVar("Result")

STEPS_BEFORE = 2
"""Steps that are not traced, because the first steps also wait for the first batches."""


def add_profile_argument(parser: argparse.ArgumentParser) -> None:
    """`--profile STEPS`."""
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="STEPS",
        help="trace so many steps into the folder profile of the run",
    )


def trace_steps(
    step: Callable[[State, Batch], tuple[State, Result]], count: int, folder: Path, left: int
) -> Callable[[State, Batch], tuple[State, Result]]:
    """Returns a function like `step` that also traces `count` of its calls. 0: it traces none.

    folder: where the trace is written. left: the number of calls to come. Raises UserError if these
    are too few, or if the folder is in a store, where the profiler cannot write.
    """
    if not count:
        return step
    if count < 0:
        raise UserError(f"--profile {count}: must be at least 0")
    if is_object(folder):
        raise UserError(f"--profile: the profiler cannot write to {folder}; use a local --run-dir")
    if left < STEPS_BEFORE + count:
        raise UserError(
            f"--profile {count}: {STEPS_BEFORE} steps come before, and only {left} steps are left"
        )
    if not is_first():
        return step
    calls = 0

    def step_and_trace(state: State, batch: Batch) -> tuple[State, Result]:
        nonlocal calls
        calls += 1
        if calls == STEPS_BEFORE + 1:
            jax.block_until_ready((state, batch))
            jax.profiler.start_trace(folder, create_perfetto_trace=True)
        state, scalars = step(state, batch)
        if calls == STEPS_BEFORE + count:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
        return state, scalars

    return step_and_trace
