"""Trains in a bucket whose store answers a tenth of all requests with error 500 or 503.

The store is the emulator of the tests. The run is killed during an upload of a checkpoint and
started again. Its result must equal that of a run whose store has no faults.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from torture_runs import CLOCKED, Outcome, Scene, Skipped, compare

from jaxcpt.embed import Embedder
from jaxcpt.files import to_path
from jaxcpt.rows import read_rows

STEPS = 20
SHARE = 0.1
MINUTES = 10


def is_uploading(run_dir: Path) -> bool:
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    steps = {name.partition(".")[0] for name in names}
    return any(f"{step}.sha256.json" not in names for step in steps)


def finish(process: subprocess.Popen[str], what: str) -> None:
    output, errors = process.communicate(timeout=60 * MINUTES)
    assert process.returncode == 0, f"{what}: exit code {process.returncode}: {output}{errors}"


def describe(run_dir: Path) -> dict[str, Any]:
    params = jax.device_get(Embedder.load(run_dir).params)
    rows = read_rows(run_dir / "metrics.jsonl")
    return {
        "metrics": [{k: v for k, v in row.items() if k not in CLOCKED} for row in rows],
        "evals": read_rows(run_dir / "evals.jsonl"),
        "parameters": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)],
    }


def torture(seed: int, cases: int) -> Outcome:
    """Runs the proof. cases: the number of runs, each of which is killed once."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
    try:
        import gcp_storage_emulator  # noqa: F401
        import gcsfs  # noqa: F401
        from object_store import running_store, set_faults, start_command, use_store
    except ImportError as error:
        raise Skipped(f"needs {error.name}: pip install 'jaxcpt[cloud-test]'") from None
    draw = random.Random(seed)
    failures, faults = [], 0
    with tempfile.TemporaryDirectory() as scratch, running_store() as address:
        use_store(address)
        scene = Scene(Path(scratch, "scene"), STEPS)

        def start(run_dir: Path) -> subprocess.Popen[str]:
            command = ["train", *scene.make_command(run_dir)]
            return start_command(address, Path(scratch), *command)

        whole = to_path("gs://bucket/whole")
        finish(start(whole), "without faults")
        wanted = describe(whole)
        for case in range(cases):
            run_dir = to_path(f"gs://bucket/run{case}")
            set_faults(address, share=SHARE)
            process, at = start(run_dir), draw.randrange(1, STEPS // 2)
            while process.poll() is None and len(read_rows(run_dir / "metrics.jsonl")) < at:
                time.sleep(0.1)
            while process.poll() is None and not is_uploading(run_dir):
                time.sleep(0.01)
            killed = process.poll() is None
            process.kill()
            output, errors = process.communicate()
            if not killed:
                failures.append(f"it ended with code {process.returncode}: {output}{errors}")
            finish(start(run_dir), "after the kill")
            faults = set_faults(address)
            failures += compare(wanted, describe(run_dir))
    return Outcome(cases=cases, failures=failures, note=f"{faults} requests failed")
