"""Kills a training run again and again, and looks whether the finished run is the undisturbed one.

    python tools/torture_kills.py [--kills 50] [--seed 0]

One run is left alone. Another is ended by SIGKILL at random moments, in turn anywhere, inside a
save and inside an eval, and started again each time. Right is: the same losses of every step and
the same parameters bit for bit, every eval there, and no file left over.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from jaxcpt.embed import Embedder
from jaxcpt.metrics import read_rows

SAVE_EVERY, EVAL_EVERY = 3, 10
STEPS_PER_KILL = 10
EXPERIMENT = """
from jaxcpt.config import *

def experiment():
    return Experiment(
        name="torture",
        train_steps={steps},
        data=Data(train=(JsonlPairs("{pairs}"),), heldout=JsonlPairs("{pairs}")),
        tokenizer=Tokenizer(vocabulary=300, x_tokens=16, y_tokens=32),
        batching=Batching(pairs_per_batch=8, row_tokens=32),
        model=Model(width=16, layers=1, heads=2, mlp_width=32, compute_dtype="float32"),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=1),
        checkpoints=Checkpoints(every_steps={save_every}),
        evals=Evals(every_steps={eval_every}),
        log_every_steps=1,
    )
"""


def write_experiment(folder: Path, steps: int) -> Path:
    pairs = folder / "pairs.jsonl"
    lines = ({"x": f"red cat {i * 7} on {i}", "y": f"old bridge {i * 3}"} for i in range(40))
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = folder / "experiment.py"
    values = {"save_every": SAVE_EVERY, "eval_every": EVAL_EVERY}
    file.write_text(EXPERIMENT.format(steps=steps, pairs=pairs, **values))
    return file


def start(experiment: Path, run_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jaxcpt", "train", "--experiment", str(experiment)]
    return subprocess.Popen(
        [*command, "--run-dir", str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def is_saving(run_dir: Path) -> bool:
    """Whether a step is on the disk without its manifest, or under its temporary name."""
    folders = [path.name for path in (run_dir / "checkpoints").glob("[0-9]*") if path.is_dir()]
    return any(not (run_dir / "checkpoints" / f"{n}.sha256.json").is_file() for n in folders)


def is_evaluating(run_dir: Path) -> bool:
    """Whether the newest step is one that is due for an eval, and has none yet."""
    steps = [int(row["step"]) for row in read_rows(run_dir / "metrics.jsonl")]
    scored = {int(row["step"]) for row in read_rows(run_dir / "evals.jsonl")}
    return bool(steps) and steps[-1] % EVAL_EVERY == 0 and steps[-1] not in scored


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "anywhere": lambda _: True,
    "inside a save": is_saving,
    "inside an eval": is_evaluating,
}


def kill_once(experiment: Path, run_dir: Path, moment: str, draw: random.Random) -> str:
    """Starts the run and kills it at such a moment. Returns what happened."""
    process = start(experiment, run_dir)
    try:
        count = count_rows(run_dir)
        while process.poll() is None and count_rows(run_dir) <= count:  # until it takes a step
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 0.3))
        while process.poll() is None and not MOMENTS[moment](run_dir):
            time.sleep(0.001)
        ended = process.poll()
    finally:
        process.kill()
        output = process.communicate()[0]
    if ended:
        raise SystemExit(f"a start after a kill failed with code {ended}:\n{output}")
    return "had already ended" if ended == 0 else moment


def count_rows(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def describe_run(run_dir: Path) -> dict[str, Any]:
    """What must be equal in both runs."""
    params = jax.device_get(Embedder.load(run_dir).params)
    return {
        "losses": [(row["step"], row["loss"]) for row in read_rows(run_dir / "metrics.jsonl")],
        "evals": [row["step"] for row in read_rows(run_dir / "evals.jsonl")],
        "parameters": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)],
        "files": sorted(
            path.relative_to(run_dir).as_posix()
            for path in run_dir.rglob("*")
            if path.is_file() and "tfevents" not in path.name and "/d/" not in path.as_posix()
        ),
    }


def torture(seed: int, kills: int) -> list[str]:
    """Returns one line for each thing that differs."""
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        experiment = write_experiment(Path(scratch), STEPS_PER_KILL * (kills + 1))
        runs = [Path(scratch, name) for name in ("undisturbed", "killed")]
        for number in range(kills):
            moment = list(MOMENTS)[number % len(MOMENTS)]
            counts[kill_once(experiment, runs[1], moment, draw)] += 1
        for run_dir in runs:
            process = start(experiment, run_dir)
            output = process.communicate()[0]
            if process.returncode:
                return [f"{run_dir.name}: exit code {process.returncode}:\n{output}"]
        undisturbed, killed = map(describe_run, runs)
    print(", ".join(f"{count} kills {moment}" for moment, count in counts.items()))
    return [f"{name} differ" for name, value in undisturbed.items() if killed[name] != value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failures = torture(arguments.seed, arguments.kills)
    print(*failures, sep="\n")
    print(f"{arguments.kills} kills, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
