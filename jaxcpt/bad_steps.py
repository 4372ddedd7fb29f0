"""Records bad steps, whose loss or gradient is not finite, and stops the run after too many.

In: the metrics of each step, which include `bad_steps` (the number of bad steps in a row), and the
state, which a bad step does not change. Out: `bad_steps.jsonl`, with the pairs of each bad step.
After too many in a row, the state before the first of them is saved in the folder `bad_step`, for
`jaxcpt replay`, and a UserError is raised. The module does not know why a step is bad.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.errors import UserError
from jaxcpt.files import remove_tree, write_file
from jaxcpt.processes import any_process, first_goes_first, is_first
from jaxcpt.update import TrainState

FILE, FOLDER = "bad_steps.jsonl", "bad_step"
PAIRS_SHOWN = 5


class Due:
    """Decides when a periodic action, such as a save, is due.

    It is due every `every_steps` steps and at the last step. If a step before the last one is bad,
    the action waits for the next step that is not.
    """

    def __init__(self, every_steps: int, last: int) -> None:
        self.every_steps, self.last = every_steps, last
        self.put_off = False

    def are_due(self, step: int, scalars: dict[str, jax.Array]) -> bool:
        """Whether the action is due. Waits for the step's `scalars` only where it may be due."""
        due = self.put_off or step % self.every_steps == 0 or step == self.last
        self.put_off = due and step < self.last and int(scalars["bad_steps"]) > 0
        return due and not self.put_off


def describe(step: int, scalars: Mapping[str, float], pairs: Sequence[int]) -> str:
    """One line for the terminal about a bad step: its numbers and its first pairs."""
    numbers = ", ".join(f"{name} {scalars[name]:g}" for name in ("loss", "gradient_norm"))
    shown = ", ".join(map(str, pairs[:PAIRS_SHOWN]))
    return (
        f"step {step}: {numbers}: it changes nothing; bad steps in a row: "
        f"{scalars['bad_steps']:g}; its pairs: {shown} and {len(pairs[PAIRS_SHOWN:])} more in "
        f"{FILE}"
    )


def record(run_dir: Path, step: int, scalars: Mapping[str, float], pairs: Sequence[int]) -> None:
    """Adds a bad step to `bad_steps.jsonl`, which has one line for each, ordered by step.

    pairs: the numbers of the step's pairs, counted from 0 through all training sources in order.
    """
    numbers = {name: str(scalars[name]) for name in ("loss", "gradient_norm")}
    line = json.dumps({"step": step, **numbers, "pairs": list(pairs)})
    _write(run_dir, [*_read(run_dir, before=step), line])


def forget_from(run_dir: Path, step: int) -> None:
    """Removes the lines of this step and of later steps, because training will repeat them."""
    if (run_dir / FILE).is_file():
        _write(run_dir, _read(run_dir, before=step))


def _read(run_dir: Path, before: int) -> list[str]:
    path = run_dir / FILE
    lines = path.read_bytes().decode("utf-8", "replace").splitlines() if path.is_file() else []
    try:
        return [line for line in lines if json.loads(line)["step"] < before]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: not a list of bad steps; move the file away") from None


def _write(run_dir: Path, lines: Sequence[str]) -> None:
    write_file(run_dir / FILE, "".join(f"{line}\n" for line in lines))


def stop_at(
    step: int,
    state: TrainState,
    run_dir: Path,
    meta: Mapping[str, Any],
    checkpoints: CheckpointStore,
) -> None:
    """Saves the state before the first of the bad steps that end at `step`; raises UserError."""
    bad_steps = int(state.bad_steps)
    first = step - bad_steps + 1
    before = replace(state, step=jnp.int32(first - 1), bad_steps=0)
    with first_goes_first("remove an earlier stop"):
        if is_first():
            remove_tree(run_dir / FOLDER)
    with CheckpointStore(run_dir / FOLDER, keep=1) as kept:
        kept.save(before, dict(meta))
    any_process(True)  # every process waits here until the first one has verified the save
    checkpoints.finish()
    newest = max((saved for saved in checkpoints.steps() if saved < first), default=None)
    good = "there is no checkpoint" if newest is None else f"the newest good checkpoint is {newest}"
    raise UserError(
        f"{run_dir}: stopped at step {step}: the loss or gradient of {bad_steps} steps in a row "
        f"was not finite (safety.max_bad_steps); the first bad step is {first}; {good}; see where "
        f"it begins with: jaxcpt replay --run-dir {run_dir}"
    )
