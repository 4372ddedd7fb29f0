"""A step that is not finite changes nothing. Several in a row stop the run; `replay` repeats it."""

import json
import math
import os
import signal
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PAIRS, make_experiment
from tiny_run import tiny_experiment, tiny_run

from jaxcpt import config, replay
from jaxcpt import train as train_module
from jaxcpt.batches import Batches
from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.config import Checkpoints, Safety
from jaxcpt.errors import Stopped, UserError, run_command
from jaxcpt.metrics import read_rows
from jaxcpt.sharding import make_mesh
from jaxcpt.train import train
from jaxcpt.update import init_state, make_train_step


def diverging(**changes):
    """An experiment whose step 1 is finite, but makes the parameters too large for later steps."""
    run = replace(tiny_experiment(**changes), checkpoints=Checkpoints(1, keep=2))
    return replace(run, optimizer=replace(run.optimizer, learning_rate=1e30))


def spoil(state, value):
    """The state with one value of one parameter replaced."""
    encoder = dict(state.params["encoder"])
    query = encoder["blocks"]["query"]
    query = query.at[(0,) * query.ndim].set(value)
    encoder["blocks"] = encoder["blocks"] | {"query": query}
    return replace(state, params=state.params | {"encoder": encoder})


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_bad_step_changes_nothing(sources, tokenizer, value):
    experiment = make_experiment(batching__chunks=2)
    mesh = make_mesh(config.Mesh(2, 2, 2))
    with jax.set_mesh(mesh):
        batches = Batches(experiment, sources, tokenizer, mesh)
        step, state = make_train_step(experiment, mesh), init_state(experiment, mesh)
        state, _ = step(state, batches.make(0))
        whole = jax.device_get(state.params)
        spoilt = spoil(state, value)
        before = jax.device_get(spoilt)
        after, metrics = step(spoilt, batches.make(1))
        chex.assert_trees_all_equal(jax.device_get(after.params), before.params)
        chex.assert_trees_all_equal(jax.device_get(after.opt_state), before.opt_state)
        assert (after.step, after.bad_steps, metrics["bad_steps"]) == (2, 1, 1)
        assert not np.isfinite(metrics["loss"]) or not np.isfinite(metrics["gradient_norm"])
        for name in ("accuracy_x_to_y", "accuracy_y_to_x", "mrr"):
            assert not metrics[name] > 0.99, name

        layouts = jax.tree.map(lambda leaf: leaf.sharding, after.params)
        mended = replace(after, params=jax.device_put(whole, layouts))
        good, metrics = step(mended, batches.make(2))
        assert (good.step, good.bad_steps, metrics["bad_steps"]) == (3, 0, 0)
        assert np.isfinite(metrics["loss"])

        # After three bad steps in a row, no later step is applied until the loop stops the run.
        frozen = replace(good, bad_steps=jnp.int32(3))
        before = jax.device_get(frozen)
        after, metrics = step(frozen, batches.make(3))
        chex.assert_trees_all_equal(jax.device_get(after.params), before.params)
        assert after.bad_steps == 4
        assert np.isfinite(metrics["loss"])


def stop_line(run_dir):
    return (
        f"{run_dir}: stopped at step 4: the loss or gradient of 3 steps in a row was not finite "
        "(safety.max_bad_steps); the first bad step is 2; the newest good checkpoint is 1; see "
        f"where it begins with: jaxcpt replay --run-dir {run_dir}"
    )


@pytest.mark.parametrize("log_every_steps", [1, 4])
def test_a_run_of_bad_steps_stops_and_is_replayed(tmp_path, capsys, monkeypatch, log_every_steps):
    tiny_run()  # writes the pairs
    run_dir = tmp_path / "run"
    run = diverging(log_every_steps=log_every_steps)
    for _ in range(2):  # a second start ends in the same way
        with pytest.raises(UserError) as refused:
            train(run, run_dir, run_dir)
        assert str(refused.value) == stop_line(run_dir)
    said = capsys.readouterr().out
    assert "step 2: loss nan, gradient_norm nan: it changes nothing; bad steps in a row: 1" in said
    assert "accuracy 100" not in said
    rows = read_rows(run_dir / "metrics.jsonl")
    assert [row.get("bad_steps") for row in rows] == [None, 1, 2, 3]
    lines = [json.loads(line) for line in (run_dir / "bad_steps.jsonl").open()]
    assert [line["step"] for line in lines] == [2, 3, 4]
    assert all(len(line["pairs"]) == 15 and max(line["pairs"]) < len(PAIRS) for line in lines)
    with CheckpointStore(run_dir / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [1]

    monkeypatch.setattr(replay, "use_devices", lambda *_: None)
    run_command(replay.main, ["--run-dir", str(run_dir)])
    said = capsys.readouterr().out
    assert "step 2: loss nan" in said
    assert "blocks/query" in said
    assert "the first value that is not finite: in the embedding of the x of pair" in said
    assert "pairs.jsonl)" in said


def test_bad_steps_in_a_row_are_counted_across_a_restart(tmp_path, monkeypatch):
    tiny_run()  # writes the pairs
    run_dir, real = tmp_path / "run", train_module.MetricsLog.log

    def log_and_signal(self, step, scalars):
        real(self, step, scalars)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train_module.MetricsLog, "log", log_and_signal)
    with pytest.raises(Stopped, match="stopped at step 3, which is saved"):
        train(diverging(), run_dir, run_dir)
    with pytest.raises(UserError) as refused:
        train(diverging(), run_dir, run_dir)
    assert str(refused.value) == stop_line(run_dir)
    # `safety` may differ from the run's. With a larger limit the run goes on and stops later.
    patient = replace(diverging(), safety=Safety(max_bad_steps=4))
    monkeypatch.undo()
    (run_dir / "bad_step" / "1").rename(run_dir / "bad_step" / "499")
    with pytest.raises(UserError, match=r"stopped at step 5: .* the first bad step is 2; "):
        train(patient, run_dir, run_dir)
    with CheckpointStore(run_dir / "bad_step") as kept:
        assert kept.steps() == [1]  # so replay does not repeat a step of an earlier stop


def test_a_parameter_that_is_not_finite_is_named(tmp_path, capsys, monkeypatch):
    tiny_run()  # writes the pairs
    run_dir, real = tmp_path / "run", train_module.init_state
    monkeypatch.setattr(train_module, "init_state", lambda *a: spoil(real(*a), math.inf))
    with pytest.raises(UserError, match=r"first bad step is 1; there is no checkpoint; "):
        train(tiny_experiment(), run_dir, run_dir)
    monkeypatch.setattr(replay, "use_devices", lambda *_: None)
    run_command(replay.main, ["--run-dir", str(run_dir)])
    said = capsys.readouterr().out
    assert (
        "the first value that is not finite: in the parameter encoder/blocks/query: 1 of its values"
        in said
    )


def test_a_run_without_bad_steps_has_nothing_to_replay(refuse, monkeypatch):
    monkeypatch.setattr(replay, "use_devices", lambda *_: None)
    assert refuse(replay, "--run-dir", tiny_run()) == (
        f"{tiny_run()}: has no folder bad_step; a run has one if it stopped after "
        "safety.max_bad_steps steps in a row that were not finite"
    )
