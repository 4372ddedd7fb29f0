"""One tiny run, trained once for the whole session, and copies of its folder to change."""

import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
from conftest import PAIRS, make_experiment

from jaxcpt.config import Checkpoints, Experiment, Mesh
from jaxcpt.pairs import write_pairs
from jaxcpt.train import train

_FOLDER = tempfile.TemporaryDirectory(prefix="jaxcpt_tests_")  # deleted when the session ends
PAIRS_FILE = Path(_FOLDER.name) / "pairs.jsonl"

# Compiled programs are kept, because several tests train the same experiment.
jax.config.update("jax_compilation_cache_dir", f"{_FOLDER.name}/compiled")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def tiny_experiment(**changes: object) -> Experiment:
    """An experiment of 6 steps on 2 x 2 x 2 devices, with a checkpoint and an eval every 3."""
    run = make_experiment(PAIRS_FILE, model__layers=1, model__biases=False, **changes)
    return replace(run, mesh=Mesh(-1, fsdp=2, tensor=2), checkpoints=Checkpoints(3, keep=2))


@functools.cache
def tiny_run() -> Path:
    """The folder of the finished run. Tests must not write to it."""
    write_pairs(PAIRS_FILE, PAIRS)
    run_dir = Path(_FOLDER.name) / "run"
    train(tiny_experiment(), run_dir, run_dir)
    return run_dir


def copy_run(to: Path) -> Path:
    """Copies the folder of the finished run into the folder `to`. Returns the copy.

    Vectors that searches of other tests kept in it are left out.
    """
    kept = shutil.ignore_patterns("search")
    return Path(shutil.copytree(tiny_run(), to / "run", ignore=kept))
