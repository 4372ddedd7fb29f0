"""Loads a run many times while it saves every 3 steps. Every load must succeed."""

import random
import tempfile
from pathlib import Path

import numpy as np
from torture_runs import Outcome, Scene, kill_all, wait_for_step

from jaxcpt.embed import Embedder

ENDLESS = 1_000_000


def torture(seed: int, cases: int) -> Outcome:
    """Loads `cases` times without pauses. No load may give an older step than the load before."""
    draw = random.Random(seed)
    failures: list[str] = []
    steps = set()
    with tempfile.TemporaryDirectory() as scratch:
        scene = Scene(Path(scratch, "scene"), ENDLESS, eval_every=ENDLESS)
        run_dir = Path(scratch, "run")
        process = scene.start(run_dir)
        wait_for_step(run_dir, [process], draw)
        while not list((run_dir / "checkpoints").glob("*.json")) and process.poll() is None:
            pass
        newest = 0
        for number in range(cases):
            try:
                embedder = Embedder.load(run_dir)
                if not np.isfinite(embedder.embed(["red cat"], "x")).all():
                    failures.append(f"load {number}: embeddings that are not finite")
                if embedder.step < newest:
                    failures.append(f"load {number}: step {embedder.step} after {newest}")
                newest = embedder.step
                steps.add(newest)
            except Exception as error:
                failures.append(f"load {number}: {type(error).__name__}: {str(error)[:200]}")
            if process.poll() is not None:
                failures.append(f"the run ended with code {process.poll()}")
                break
        kill_all([process])
    note = f"of {len(steps)} steps while the run saved {newest // 3}"
    return Outcome(cases=cases, failures=failures, note=note)
