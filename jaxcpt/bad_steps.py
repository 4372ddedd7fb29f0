"""Steps whose loss or gradient is not finite: what is recorded of them, and the end of the run.

In: the metrics of steps, among them `bad_steps`, and the state, which such steps do not change.
Out: `bad_steps.jsonl`, which names the pairs of each; after too many in a row a UserError, and the
state before the first of these in the folder `bad_step`, for `jaxcpt replay`.
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
from jaxcpt.files import write_file
from jaxcpt.processes import any_process
from jaxcpt.update import TrainState

FILE, FOLDER = "bad_steps.jsonl", "bad_step"
PAIRS_SHOWN = 5


class Due:
    """What happens every so many steps and at the last; not at a bad step, but soon after."""

    def __init__(self, every_steps: int, last: int) -> None:
        self.every_steps, self.last = every_steps, last
        self.put_off = False

    def are_due(self, step: int, scalars: dict[str, jax.Array]) -> bool:
        """scalars: those of the step. They are waited for only where it may be due."""
        due = self.put_off or step % self.every_steps == 0 or step == self.last
        self.put_off = due and step < self.last and int(scalars["bad_steps"]) > 0
        return due and not self.put_off


def describe(step: int, scalars: Mapping[str, float], pairs: Sequence[int]) -> str:
    """One line for the terminal."""
    numbers = ", ".join(f"{name} {scalars[name]:g}" for name in ("loss", "gradient_norm"))
    shown = ", ".join(map(str, pairs[:PAIRS_SHOWN]))
    return (
        f"step {step}: {numbers}: it changes nothing; bad steps in a row: "
        f"{scalars['bad_steps']:g}; its pairs: {shown} and {len(pairs[PAIRS_SHOWN:])} more in "
        f"{FILE}"
    )


def record(run_dir: Path, step: int, scalars: Mapping[str, float], pairs: Sequence[int]) -> None:
    """Adds the step to the file, which has a line for each bad step, in order.

    pairs: the numbers of its pairs, counted from 0 through all training sources in their order.
    """
    numbers = {name: str(scalars[name]) for name in ("loss", "gradient_norm")}
    line = json.dumps({"step": step, **numbers, "pairs": list(pairs)})
    _write(run_dir, [*_read(run_dir, before=step), line])


def forget_from(run_dir: Path, step: int) -> None:
    """Removes the lines of this step and of later ones, which will be taken again."""
    if (run_dir / FILE).is_file():
        _write(run_dir, _read(run_dir, before=step))


def _read(run_dir: Path, before: int) -> list[str]:
    path = run_dir / FILE
    lines = path.read_bytes().decode("utf-8", "replace").splitlines() if path.is_file() else []
    try:
        return [line for line in lines if json.loads(line)["step"] < before]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: not a list of bad steps; move it away") from None


def _write(run_dir: Path, lines: Sequence[str]) -> None:
    write_file(run_dir / FILE, "".join(f"{line}\n" for line in lines))


def stop_at(
    step: int,
    state: TrainState,
    run_dir: Path,
    meta: Mapping[str, Any],
    checkpoints: CheckpointStore,
) -> None:
    """Keeps the state before the first of the bad steps that end at `step`. Raises UserError."""
    bad_steps = int(state.bad_steps)
    first = step - bad_steps + 1
    before = replace(state, step=jnp.int32(first - 1), bad_steps=0)
    with CheckpointStore(run_dir / FOLDER, keep=1) as kept:
        kept.save(before, dict(meta))
    any_process(True)  # nobody leaves before the first has proved the save
    checkpoints.finish()
    newest = max((saved for saved in checkpoints.steps() if saved < first), default=None)
    good = "there is no checkpoint" if newest is None else f"the newest good checkpoint is {newest}"
    raise UserError(
        f"{run_dir}: stopped at step {step}: the loss or gradient of {bad_steps} steps in a row "
        f"was not finite (safety.max_bad_steps); the first bad step is {first}; {good}; see where "
        f"it begins with: jaxcpt replay --run-dir {run_dir}"
    )
