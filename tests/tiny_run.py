"""One tiny run, trained once for the whole session, and copies of its folder to do harm to."""

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

_FOLDER = tempfile.TemporaryDirectory(prefix="jaxcpt_tests_")  # gone when the session ends
PAIRS_FILE = Path(_FOLDER.name) / "pairs.jsonl"

# What one test compiles, the next ones load: several tests train the same experiment.
jax.config.update("jax_compilation_cache_dir", f"{_FOLDER.name}/compiled")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def tiny_experiment(**changes: object) -> Experiment:
    """6 steps on 2 x 2 x 2 devices, a checkpoint and an eval every 3."""
    run = make_experiment(PAIRS_FILE, model__layers=1, model__biases=False, **changes)
    return replace(run, mesh=Mesh(-1, fsdp=2, tensor=2), checkpoints=Checkpoints(3, keep=2))


@functools.cache
def tiny_run() -> Path:
    """The folder of the finished run; not to be written to."""
    write_pairs(PAIRS_FILE, PAIRS)
    run_dir = Path(_FOLDER.name) / "run"
    train(tiny_experiment(), run_dir, run_dir)
    return run_dir


def copy_run(to: Path) -> Path:
    """A copy of the finished run's folder, in the folder `to`."""
    return Path(shutil.copytree(tiny_run(), to / "run"))
