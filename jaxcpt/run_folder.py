"""Claims a run's folder before anything is written into it.

In: a folder and an experiment. Out: the folder, claimed for that experiment and locked, or a
UserError. A marker file claims the folder. It is created before anything else, so that a run never
deletes or replaces files in a folder that is not its own. The module does not know what a run
trains.
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
    "log_every_steps:",
    "evals.",
    "checkpoints.",
)
"""Fields of the experiment, by the start of their paths, that may change between two starts of a
run. They decide where and in how many parts the same numbers are computed, when a run stops, and
what is logged, scored and kept."""
LEFTOVERS = ("pairs", "tokenizer", "start")
"""Names in the run folder that a start writes before it knows that the experiment can run."""


@contextmanager
def own_folder(run_dir: Path) -> Iterator[None]:
    """A context that claims the folder for this run and locks it against other processes.

    Raises UserError if the folder holds other files, or if another process writes there. An earlier
    start may have been refused before it wrote its experiment. The files that it left are removed,
    because they may belong to other values of the experiment.
    """
    claim(run_dir)
    with RunLock(run_dir):
        if not (run_dir / EXPERIMENT_FILE).is_file():
            for leftover in LEFTOVERS:
                remove_tree(run_dir / leftover)
        yield


def claim(run_dir: Path) -> None:
    """Writes the marker. Raises UserError if the folder holds files that are not a run's."""
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
        with suppress(FileExistsError):  # another process started at the same moment
            (run_dir / MARKER).touch(exist_ok=False)
    except OSError as error:
        raise UserError(
            f"{run_dir}: cannot be written: {error.strerror}; choose --run-dir"
        ) from None


def check_same_experiment(run_dir: Path, experiment: Experiment) -> list[str]:
    """The values of LAYOUT that differ from the run in the folder, as `path: old -> new`.

    Raises UserError if other values differ, and names each of them.
    """
    if not (run_dir / EXPERIMENT_FILE).is_file():
        return []
    changed = differences(read_experiment(run_dir), experiment)
    if other := [line for line in changed if not line.startswith(LAYOUT)]:
        raise UserError(
            f"{run_dir}: holds a run of a different experiment ({'; '.join(other)}); "
            "choose another --run-dir; to train further, start there with "
            f"init_from=InitFrom('{run_dir}')"
        )
    return changed


def remove_run(run_dir: Path) -> None:
    """Deletes a run folder, if there is one. Raises UserError if it is not a run folder, or if
    another process writes there."""
    if run_dir.is_dir():
        if not (run_dir / MARKER).is_file():
            raise UserError(f"{run_dir}: not made by jaxcpt; move it away, or choose --run-dir")
        with RunLock(run_dir):
            remove_tree(run_dir)
