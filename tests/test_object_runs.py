"""Runs in a bucket are trained, killed, resumed and read, also by processes on other machines."""

import json
import signal
import time

import numpy as np
import pytest
from conftest import PAIRS, REPOSITORY
from object_store import find_port, running_store, set_faults, start_command, use_store
from test_processes import said

from jaxcpt.files import to_path, write_file
from jaxcpt.metrics import read_rows
from jaxcpt.pairs import write_pairs
from jaxcpt.processes import LOST_PEER
from jaxcpt.vectors import VectorFolder

pytest.importorskip("gcsfs", reason="needs the extra cloud-test")
pytest.importorskip("gcp_storage_emulator", reason="needs the extra cloud-test")

EXPERIMENT = """
from jaxcpt.config import *

def experiment():
    pairs = JsonlPairs("gs://bucket/data/pairs.jsonl")
    return Experiment(
        name="tiny", train_steps=6, data=Data(train=(pairs,), heldout=pairs), log_every_steps=1,
        tokenizer=Tokenizer(vocabulary=400, x_tokens=12, y_tokens=24),
        batching=Batching(pairs_per_batch=16, row_tokens=32),
        model=Model(width=16, layers=1, heads=2, compute_dtype="float32"),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=1),
        checkpoints=Checkpoints(2, keep=2), evals=Evals(every_steps=3),
    )
"""
MINED = ["--experiment", str(REPOSITORY / "experiments" / "cpt_text_s.py"), "--smoke"]
"""An experiment that trains on pairs from installed packages."""


@pytest.fixture(scope="module")
def address():
    with running_store() as address:
        use_store(address)
        write_pairs(to_path("gs://bucket/data/pairs.jsonl"), PAIRS)
        yield address


@pytest.fixture
def machine(address, tmp_path):
    """A function that starts a command on a machine that shares only the store with others."""

    def start(*arguments, name="one"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "tiny.py").write_text(EXPERIMENT)
        return start_command(address, folder, *map(str, arguments))

    return start


def finish(process, code=0):
    output, errors = process.communicate(timeout=900)
    assert process.returncode == code, (output, errors)
    if code == 0:
        # Only XLA's partitioner prints anything, which has nothing to do with the store.
        assert [line for line in errors.splitlines() if "spmd_partitioner" not in line] == []
    return output


def wait_for(path, *processes):
    deadline = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


def read_losses(run_dir):
    return [row["loss"] for row in read_rows(run_dir / "metrics.jsonl")]


def test_a_run_in_a_bucket_is_trained_scored_and_searched(machine):
    train = ["train", "--experiment", "tiny.py", "--run-dir"]
    assert "report: gs://bucket/run/report.html" in finish(machine(*train, "gs://bucket/run"))
    finish(machine(*train, "here"))
    run_dir = to_path("gs://bucket/run")
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith("events")}
    assert names >= {"checkpoints", "metrics", "evals.jsonl", "experiment.json", "tokenizer"}
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {
        *("4", "4.sha256.json", "6", "6.sha256.json")
    }
    assert "this run" in finish(machine("evaluate", "--run-dir", run_dir, "--json", "scores.json"))
    assert "(of " in finish(machine("search", "--run-dir", run_dir, "--top", "1", "w1 w2"))
    assert finish(machine("report", "--run-dir", run_dir)) == f"{run_dir}/report.html\n"
    finish(machine("export", "--run-dir", run_dir, "--output", "gs://bucket/exported"))
    assert (to_path("gs://bucket/exported") / "modules.json").is_file()


def test_a_run_that_was_killed_goes_on(machine, tmp_path):
    """After kill -9 in the middle, and with errors of the store, all numbers are the same."""
    train = ["train", "--experiment", "tiny.py", "--set", "train_steps=20", "--run-dir"]
    finish(machine(*train, "gs://bucket/whole"))
    run_dir = to_path("gs://bucket/killed")
    process = machine(*train, run_dir)
    wait_for(run_dir / "checkpoints" / "4.sha256.json", process)
    process.kill()
    process.communicate()
    assert "resuming at step" in finish(machine(*train, run_dir))
    assert read_losses(run_dir) == read_losses(to_path("gs://bucket/whole"))


def test_vectors_are_embedded_by_several_machines(machine, tmp_path, monkeypatch):
    run_dir = "gs://bucket/for_vectors"
    finish(machine("train", "--experiment", "tiny.py", "--run-dir", run_dir))
    rows = [{"_id": f"d{n}", "text": pair.y} for n, pair in enumerate(PAIRS)]
    corpus = "gs://bucket/data/corpus.jsonl"
    write_file(to_path(corpus), "".join(json.dumps(row) + "\n" for row in rows))
    vectors = "gs://bucket/vectors"
    command = ["embed", "--run-dir", run_dir, "--input", corpus, "--side", "y"]
    command += ["--output", vectors]
    output = finish(machine(*command, "--part", "2/2", name="two"))
    assert output.endswith(f"{vectors}: part 2/2 is done; 1 shards of other parts are missing\n")
    assert f"{vectors}: 90 vectors of 16\n" in finish(machine(*command, "--part", "1/2"))
    monkeypatch.setenv("JAXCPT_CACHE", str(tmp_path / "cache"))
    assert list(VectorFolder.open(vectors).ids()) == [row["_id"] for row in rows]
    search = ["search", "--run-dir", run_dir, "--vectors", vectors, "--top", "1", "w1"]
    assert "(of 90 texts)" in finish(machine(*search, name="three"))


def start_both(machine, run_dir):
    """Starts two processes of one run, which share only the bucket."""
    port = find_port()
    together = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--wait", "200"]
    changes = ["train_steps=12", "checkpoints.every_steps=2", "evals.every_steps=12"]
    settings = [part for change in changes for part in ("--set", change)]
    command = ["train", *MINED, *settings, "--run-dir", run_dir, *together, "--process-id"]
    return [machine(*command, number, name=f"host{number}") for number in range(2)]


def test_processes_that_share_only_the_bucket_train_die_and_resume(machine, address):
    whole, run_dir = to_path("gs://bucket/whole_two"), to_path("gs://bucket/killed_two")
    for process in start_both(machine, whole):
        finish(process)
    several = start_both(machine, run_dir)
    wait_for(run_dir / "checkpoints" / "4.sha256.json", *several)
    several[1].kill()
    _, errors = several[0].communicate(timeout=60)
    assert several[0].returncode in (LOST_PEER, -signal.SIGABRT)
    assert len(said(errors)) == 1
    several[1].communicate()
    set_faults(address, share=0.02)
    try:
        outputs = [finish(process) for process in start_both(machine, run_dir)]
    finally:
        set_faults(address)
    assert "resuming at step" in outputs[0]
    assert len(read_losses(whole)) == 12
    np.testing.assert_array_equal(read_losses(run_dir), read_losses(whole))
