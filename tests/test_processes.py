"""Several real processes train one run: equal numbers, missing, different and dying processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from test_evals_sts import write_subset

from jaxcpt import processes
from jaxcpt.errors import LOST_PEER, STOPPED, UserError
from jaxcpt.metrics import read_rows
from jaxcpt.processes import is_loss, join

EXPERIMENT = "experiments/cpt_text_s.py"
FLOAT32 = ["--set", "model.compute_dtype=float32"]


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(run_dir, *options, port=None, process=0, count=2, wait=120):
    """Starts a process of a smoke run that has two devices in total."""
    command = [sys.executable, "-m", "jaxcpt.train", "--experiment", EXPERIMENT, "--smoke"]
    command += ["--run-dir", str(run_dir), *FLOAT32, *options]
    if port is not None:
        command += ["--coordinator", f"localhost:{port}", "--num-processes", str(count)]
        command += ["--process-id", str(process), "--wait", str(wait)]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_losses(run_dir) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def wait_for(path, processes, seconds=600):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


def said(errors: str) -> list[str]:
    """The lines on stderr that are for the user."""
    return [line for line in errors.splitlines() if line.startswith("jaxcpt:")]


def test_two_processes_train_like_one(tmp_path):
    port = find_port()
    texts = [f"the {i % 7} of {i}" for i in range(40)]
    write_subset(tmp_path / "data" / "sts" / "sts13", "some", range(40), texts)
    suites = ["--set", 'evals.suites=("sts",)', "--set", f"evals.data={tmp_path / 'data'}"]
    several = [start(tmp_path / "two", *suites, port=port, process=i) for i in range(2)]
    outputs = [process.communicate(timeout=500) for process in several]
    assert [process.returncode for process in several] == [0, 0], outputs
    assert "report.html" in outputs[0][0]
    assert "report.html" not in outputs[1][0]  # only the first process prints
    alone = start(tmp_path / "one", *suites)
    assert alone.communicate(timeout=500)[0]
    losses = read_losses(tmp_path / "one")
    assert len(losses) == 4
    # Other cells give other sums. They differ in float32's last digits, over four AdamW steps.
    np.testing.assert_allclose(read_losses(tmp_path / "two"), losses, rtol=1e-4)
    scores = [read_rows(tmp_path / name / "evals.jsonl")[-1] for name in ("one", "two")]
    # There are few texts, and some nearly tie.
    assert scores[1] == pytest.approx(scores[0], abs=2e-2)
    assert "sts/sts13/some/spearman" in scores[0]
    assert (tmp_path / "two" / "suites.json").is_file()


def test_two_processes_train_adapters_like_one(tmp_path):
    assert start(tmp_path / "start").communicate(timeout=500)[0]
    adapters = ["--set", f'init_from={{"run": "{tmp_path / "start"}"}}']
    adapters += ["--set", 'adapter={"rank": 2}']
    port = find_port()
    several = [start(tmp_path / "two", *adapters, port=port, process=i) for i in range(2)]
    outputs = [process.communicate(timeout=500) for process in several]
    assert [process.returncode for process in several] == [0, 0], outputs
    assert start(tmp_path / "one", *adapters).communicate(timeout=500)[0]
    losses = read_losses(tmp_path / "one")
    assert len(losses) == 4
    np.testing.assert_allclose(read_losses(tmp_path / "two"), losses, rtol=1e-4)
    assert (tmp_path / "two" / "base" / "0.sha256.json").is_file()


def test_processes_that_disagree_are_named(tmp_path):
    port = find_port()
    several = [
        start(tmp_path / "run", "--set", f"seed={i}", port=port, process=i) for i in range(2)
    ]
    for process in several:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2
        wanted = "jaxcpt: process 1 runs another experiment than process 0: seed: 0 -> 1"
        assert said(errors) == [wanted]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_next_start_resumes(tmp_path, victim):
    port, run_dir = find_port(), tmp_path / "run"
    long = ["--set", "train_steps=100000", "--set", "evals.every_steps=100000"]
    several = [start(run_dir, *long, port=port, process=i) for i in range(2)]
    try:
        wait_for(run_dir / "checkpoints" / "2.sha256.json", several)
        several[victim].kill()
        killed_at = time.monotonic()
        other = several[1 - victim]
        _, errors = other.communicate(timeout=60)
        assert time.monotonic() - killed_at < 15
        assert other.returncode == LOST_PEER
        (line,) = said(errors)
        assert "another process is gone; start all of them again to resume" in line
        assert "stack trace" not in errors

        port = find_port()
        several = [start(run_dir, *long, port=port, process=i) for i in range(2)]
        for output in several[0].stdout:
            if "resuming at step" in output:
                break
        assert "resuming at step" in output
    finally:
        for process in several:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_one_process_stops_all_at_the_same_step(hangups, tmp_path, number):
    port, run_dir = find_port(), tmp_path / "run"
    long = ["--set", "train_steps=100000", "--set", "evals.every_steps=100000"]
    long += ["--set", "log_every_steps=1000"]
    several = [start(run_dir, *long, port=port, process=i) for i in range(2)]
    try:
        wait_for(run_dir / "checkpoints" / "2.sha256.json", several)
        several[1].send_signal(number)
        lines = [said(process.communicate(timeout=120)[1]) for process in several]
        assert [process.returncode for process in several] == [STOPPED, STOPPED]
        assert lines[1].pop(0).startswith(f"jaxcpt: {number.name}: stopping after this step; ")
        assert lines[0] == lines[1]
        assert re.fullmatch(r"jaxcpt: stopped at step \d+, which is saved; start.*", lines[0][0])
    finally:
        for process in several:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (TimeoutError("Timed out while waiting for async_write_complete barrier."), True),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: connection reset"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (OSError("gs://bucket: connection reset by the store"), False),
    ],
)
def test_a_lost_process_is_told_from_a_failure_of_the_disk(monkeypatch, error, lost):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert is_loss(error) == lost
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    assert not is_loss(error)


def test_says_who_did_not_come():
    with pytest.raises(
        UserError, match="process 0: waited 1 s for 3 processes; did not come: 1, 2"
    ):
        join(f"localhost:{find_port()}", 3, 0, wait=1)


def test_says_that_the_coordinator_did_not_come():
    port = find_port()
    waited = f"process 2: waited 1 s for process 0 at localhost:{port} and the others: .*refused"
    with pytest.raises(UserError, match=waited):
        join(f"localhost:{port}", 3, 2, wait=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), "--num-processes and --process-id go with --coordinator HOST:PORT"),
        (("localhost:1", None, 0), "--coordinator needs --num-processes and --process-id"),
        (("localhost:1", 2, 2), "--process-id 2: must be from 0 to 1"),
        (("localhost", 2, 0), "--coordinator localhost: must be HOST:PORT"),
        (("localhost:99999", 2, 0), "--coordinator localhost:99999: must be HOST:PORT"),
        (("localhost:\u00b2", 2, 0), "--coordinator localhost:\u00b2: must be HOST:PORT"),
    ],
)
def test_refuses_half_an_address(arguments, message):
    with pytest.raises(UserError, match=message):
        join(*arguments, wait=1)


def test_what_the_coordination_service_writes_is_left_out():
    written = (
        "step 1\n"
        "E1126 05:00:00.1 7 preemption_sync_manager.cc:9] UNAVAILABLE: GetKeyValue failed\n"
        "Additional GRPC error information from remote target coordination_service:\n"
        ':UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"reset by peer"}.\n'
        "Traceback of something else\n"
        "jaxcpt: another process is gone\n"
        "F1126 05:00:00.2 7 client.h:9] Terminating process because the JAX distributed service\n"
        "and a stack trace\n"
    )
    command = [sys.executable, "-c", processes._STDERR_FILTER, "the farewell"]
    done = subprocess.run(command, input=written, capture_output=True, text=True, check=True)
    assert done.stderr == "step 1\nTraceback of something else\njaxcpt: another process is gone\n"
