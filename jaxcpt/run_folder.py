"""A run's folder: whose it is, before anything is written into it.

In: a folder and an experiment. Out: the folder, claimed for that experiment and locked, or a
UserError. A folder is claimed by a marker file that is created before anything else, so that
nothing in a folder of somebody else is ever deleted or replaced. It knows nothing of what a run
writes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxcpt.config import Experiment
from jaxcpt.errors import UserError
from jaxcpt.experiments import EXPERIMENT_FILE, differences, read_experiment
from jaxcpt.files import remove_tree
from jaxcpt.run_lock import RunLock

MARKER = ".jaxcpt"
LAYOUT = (
    "mesh.",
    "topology:",
    "safety.",
    "batching.chunks:",
    "batching.rows_per_cell:",
    "loss.form:",
    "model.remat:",
    "model.cut_residual:",
)
"""Beginnings of the paths that may differ between two starts of a run: they decide where and in how
many parts the same numbers are computed, and when a run gives up."""
LEFTOVERS = ("pairs", "tokenizer", "start")
"""What a start writes before it knows that the experiment can run."""


@contextmanager
def own_folder(run_dir: Path) -> Iterator[None]:
    """Makes the folder this run's, and keeps other processes out while the block runs.

    Raises UserError where the folder holds files of somebody else, and where another process writes
    there. What an earlier start of ours left behind, which was refused before its experiment was
    written, is removed: it may belong to other values of the experiment.
    """
    claim(run_dir)
    with RunLock(run_dir):
        if not (run_dir / EXPERIMENT_FILE).is_file():
            for leftover in LEFTOVERS:
                remove_tree(run_dir / leftover)
        yield


def claim(run_dir: Path) -> None:
    """Writes the marker. Raises UserError where the folder holds files of somebody else."""
    if (run_dir / EXPERIMENT_FILE).is_file() or (run_dir / MARKER).is_file():
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        other = sorted(path.name for path in run_dir.iterdir())
        if other and not (run_dir / MARKER).is_file():
            raise UserError(
                f"{run_dir}: not a run folder, and not empty: it holds {other[0]}; choose "
                "another --run-dir"
            )
        with suppress(FileExistsError):  # of another process that started at the same moment
            (run_dir / MARKER).touch(exist_ok=False)
    except OSError as error:
        raise UserError(
            f"{run_dir}: cannot be written: {error.strerror}; choose --run-dir"
        ) from None


def check_same_experiment(run_dir: Path, experiment: Experiment) -> list[str]:
    """The values of LAYOUT that differ from the run in the folder, as `path: old -> new`.

    Raises UserError where the folder holds a run of another experiment, naming each value.
    """
    if not (run_dir / EXPERIMENT_FILE).is_file():
        return []
    changed = differences(read_experiment(run_dir), experiment)
    if other := [line for line in changed if not line.startswith(LAYOUT)]:
        raise UserError(
            f"{run_dir}: holds a run of a different experiment ({'; '.join(other)}); "
            "choose another --run-dir"
        )
    return changed


def remove_run(run_dir: Path) -> None:
    """Deletes a run folder, if there is one. Raises UserError where it is not a run's, and where
    another process writes there."""
    if run_dir.is_dir():
        if not (run_dir / MARKER).is_file():
            raise UserError(f"{run_dir}: not made by jaxcpt; move it away, or choose --run-dir")
        with RunLock(run_dir):
            remove_tree(run_dir)
