"""`jaxcpt train --profile` traces as many steps as it says, once."""

import gzip
import json

import pytest
from conftest import make_experiment

from jaxcpt.errors import UserError
from jaxcpt.files import to_path
from jaxcpt.profiling import trace_steps
from jaxcpt.train import train


def count_steps(state, batch):
    return state + 1, batch


def test_a_run_leaves_a_trace_of_its_steps(tmp_path, pairs_file):
    run = make_experiment(pairs_file)
    train(run, tmp_path / "run", tmp_path / "run", profile_steps=2)
    (trace,) = (tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("train_step" in event.get("name", "") for event in events)


def test_traces_once_after_the_first_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    step = trace_steps(lambda state, batch: (calls.append(state), state + 1)[::-1], 2, tmp_path, 5)
    state = 0
    for _ in range(5):
        state, _ = step(state, None)
    assert calls == [0, 1, "start", 2, 3, "stop", 4]
    assert trace_steps(count_steps, 0, tmp_path, 0) is count_steps


def test_only_the_first_process_traces(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxcpt.profiling.is_first", lambda: False)
    assert trace_steps(count_steps, 2, tmp_path, 5) is count_steps


@pytest.mark.parametrize(
    ("count", "folder", "said"),
    [
        (-1, "run", "--profile -1: must be at least 0"),
        (4, "run", "--profile 4: 2 steps come before, and only 5 steps are left"),
        (
            1,
            "gs://bucket/run",
            "--profile: the profiler cannot write to gs://bucket/run; use",
        ),
    ],
)
def test_refuses_what_cannot_be_traced(count, folder, said):
    with pytest.raises(UserError, match=f"^{said}"):
        trace_steps(count_steps, count, to_path(folder), 5)
