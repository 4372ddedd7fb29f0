"""A run's folder: whose it is, before anything is written into it.

In: a folder and an experiment. Out: the folder, claimed for that experiment, or a UserError. A
folder is claimed by a marker file that is created before anything else, so that nothing in a
folder of somebody else is ever deleted or replaced. It knows nothing of what a run writes.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from jaxcpt.config import Experiment
from jaxcpt.errors import UserError
from jaxcpt.experiments import EXPERIMENT_FILE, differences, read_experiment

MARKER = ".jaxcpt"
LEFTOVERS = ("pairs", "tokenizer", "start")
"""What a start writes before it knows that the experiment can run."""


def claim(run_dir: Path) -> None:
    """Makes the folder this run's. Raises UserError where it holds files of somebody else.

    What an earlier start of ours left behind, which was refused before its experiment was written,
    is removed: it may belong to other values of the experiment.
    """
    if (run_dir / EXPERIMENT_FILE).is_file():
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not (run_dir / MARKER).is_file():
            if other := sorted(path.name for path in run_dir.iterdir()):
                raise UserError(
                    f"{run_dir}: not a run folder, and not empty: it holds {other[0]}; choose "
                    "another --run-dir"
                )
            (run_dir / MARKER).touch(exist_ok=False)
        for leftover in LEFTOVERS:
            shutil.rmtree(run_dir / leftover, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{run_dir}: cannot be written: {error.strerror}; choose --run-dir"
        ) from None


def check_same_experiment(run_dir: Path, experiment: Experiment) -> None:
    """Raises UserError where the folder holds a run of another experiment, naming each value.

    `safety` may differ: it decides when a run gives up, and no number that it computes.
    """
    if not (run_dir / EXPERIMENT_FILE).is_file():
        return
    before = read_experiment(run_dir)
    changed = differences(replace(before, safety=experiment.safety), experiment)
    if changed:
        raise UserError(
            f"{run_dir}: holds a run of a different experiment ({'; '.join(changed)}); "
            "choose another --run-dir"
        )


def remove_run(run_dir: Path) -> None:
    """Deletes a run folder, if there is one. Raises UserError where it is not a run's."""
    if run_dir.is_dir():
        if not (run_dir / MARKER).is_file():
            raise UserError(f"{run_dir}: not made by jaxcpt; move it away, or choose --run-dir")
        shutil.rmtree(run_dir)
