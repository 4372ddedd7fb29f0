"""The small training run that the proofs disturb, and a description of its end to compare.

In: a scratch folder. Out: an experiment file, processes that train it, and a description of the
finished run: losses and evals of all steps, exact parameters, and names of files. An undisturbed
run is trained first. Its compiled programs are kept, so that later starts compile nothing.
"""

import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from torture_fork import Forked

from jaxcpt.embed import Embedder
from jaxcpt.rows import read_rows

SAVE_EVERY, EVAL_EVERY = 3, 10
CLOCKED = {"pairs_per_s", "tokens_per_s", "data_wait", "save_share", "eval_share", "mfu"}
"""Numbers that are measured by a clock, so they differ between runs."""
UNIQUE_FILES = (".out.tfevents.", "/d/", "/ocdbt.process_")
"""Parts of the names of files whose names differ between processes or saves."""
EXPERIMENT = """
from jaxcpt.config import *

def experiment():
    return Experiment(
        name="torture",
        train_steps={steps},
        data=Data(train=(JsonlPairs("{pairs}"),), heldout=JsonlPairs("{pairs}")),
        tokenizer=Tokenizer(vocabulary=304, x_tokens=16, y_tokens=32),
        batching=Batching(pairs_per_batch=8, row_tokens=32),
        model=Model(width=16, layers=1, heads=2, mlp_width=32, compute_dtype="float32"),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=1),
        checkpoints=Checkpoints(every_steps={save_every}),
        evals=Evals(every_steps={eval_every}),
        log_every_steps=1,
    )
"""


@dataclass(kw_only=True)
class Outcome:
    """The result of a proof. `failures` has one line for each case that did not hold."""

    cases: int
    failures: list[str]
    note: str = ""


class Skipped(Exception):
    """Raised if the machine does not allow a proof. The text says why."""


class Hang(BaseException):
    """Raised by `time_limit`. It is not an Exception, so that the package does not catch it."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """A context that raises Hang if its block takes longer."""

    def hang(*_: object) -> None:
        raise Hang(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@dataclass
class Scene:
    """A scratch folder with an experiment file and the programs that its run compiled."""

    folder: Path
    steps: int
    changes: Sequence[str] = ()
    """Values `PATH=VALUE` for --set at every start."""
    save_every: int = SAVE_EVERY
    eval_every: int = EVAL_EVERY

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        pairs = self.folder / "pairs.jsonl"
        lines = ({"x": f"red cat {i * 7} on {i}", "y": f"old bridge {i * 3}"} for i in range(40))
        pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.experiment = self.folder / "experiment.py"
        values = {"save_every": self.save_every, "eval_every": self.eval_every}
        self.experiment.write_text(EXPERIMENT.format(steps=self.steps, pairs=pairs, **values))

    def make_command(self, run_dir: Path) -> list[str]:
        changes = [part for change in self.changes for part in ("--set", change)]
        command = ["--experiment", str(self.experiment), "--run-dir", str(run_dir)]
        return [*command, "--set", "mesh.data=1", *changes]

    def start(self, run_dir: Path, *options: str) -> Forked:
        """Starts a process that trains, on one device unless the options say otherwise."""
        return Forked([*self.make_command(run_dir), *options], self.folder / "compiled")

    @property
    def environment(self) -> dict[str, str]:
        """The environment by which a process that is not forked uses the compiled programs too."""
        return {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        }

    def start_two(self, run_dir: Path, *options: str) -> list[Forked]:
        """Starts both processes of a run, with one device each."""
        port = find_port()
        together = ["--coordinator", f"localhost:{port}", "--num-processes", "2"]
        together += ["--set", "mesh.data=2", "--wait", "120", *options]
        return [self.start(run_dir, *together, "--process-id", str(i)) for i in range(2)]

    def finish(self, run_dir: Path, *options: str) -> dict[str, Any]:
        """Trains to the end and describes the run. Raises AssertionError if that fails."""
        process = self.start(run_dir, *options)
        output, errors = process.communicate()
        assert process.returncode == 0, f"exit code {process.returncode}: {output}{errors}"
        return describe_run(run_dir)

    def finish_two(self, run_dir: Path) -> dict[str, Any]:
        """Like `finish`, with two processes."""
        processes = self.start_two(run_dir)
        outputs = [process.communicate() for process in processes]
        codes = [process.returncode for process in processes]
        assert codes == [0, 0], f"exit codes {codes}: {outputs}"
        return describe_run(run_dir)


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def count_rows(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def wait_for_step(run_dir: Path, processes: Sequence[Forked], draw: random.Random) -> None:
    """Waits until the run has taken a step and a little longer, or until a process has ended."""
    count = count_rows(run_dir)
    while all(process.poll() is None for process in processes) and count_rows(run_dir) <= count:
        time.sleep(0.02)
    time.sleep(draw.uniform(0.0, 0.3))


def kill_all(processes: Sequence[Forked]) -> list[tuple[str, str]]:
    """Ends all processes. Returns the stdout and stderr of each."""
    for process in processes:
        process.kill()
    return [process.communicate() for process in processes]


def said(errors: str) -> list[str]:
    """The lines on stderr that are for the user, without those of XLA's partitioner."""
    return [line for line in errors.splitlines() if line and "spmd_partitioner" not in line]


def describe_run(run_dir: Path) -> dict[str, Any]:
    """The facts that must be equal in two runs of one experiment."""
    params = jax.device_get(Embedder.load(run_dir).params)
    files = (path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file())
    return {
        "metrics": [
            {name: value for name, value in row.items() if name not in CLOCKED}
            for row in read_rows(run_dir / "metrics.jsonl")
        ],
        "evals": read_rows(run_dir / "evals.jsonl"),
        "parameters": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)],
        "files": sorted(name for name in files if not any(part in name for part in UNIQUE_FILES)),
        "events": any("tfevents" in path.name for path in run_dir.iterdir()),
    }


def compare(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One line for each part of `describe_run` that differs."""
    differs = [name for name, value in wanted.items() if found[name] != value]
    return [f"other {name}{describe_difference(wanted[name], found[name])}" for name in differs]


def describe_difference(wanted: Any, found: Any) -> str:
    """The first entries that only one of two lists has."""
    if not isinstance(wanted, list):
        return f": {found} instead of {wanted}"
    missing = [entry for entry in wanted if entry not in found]
    more = [entry for entry in found if entry not in wanted]
    return f": missing {str(missing[:3])[:300]}, too many {str(more[:3])[:300]}"
