"""A run from start to end, and runs that are stopped, killed, damaged, moved and resumed."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import CLOSE, PAIRS, REPOSITORY, make_experiment
from test_checkpoint import array_files, flip_bit
from test_experiments import each_file, load
from tiny_run import PAIRS_FILE, copy_run, tiny_experiment, tiny_run

from jaxcpt import train as train_module
from jaxcpt.batches import Batches
from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.config import Baseline, Checkpoints, Evals, JsonlPairs, Mesh
from jaxcpt.errors import Stopped, UserError, run_command
from jaxcpt.evals import pair_search
from jaxcpt.experiments import find_shared_folder, read_experiment, to_json
from jaxcpt.metrics import read_rows
from jaxcpt.pairs import write_pairs
from jaxcpt.report import write_report
from jaxcpt.report.inputs import START, read_objects
from jaxcpt.sharding import make_mesh
from jaxcpt.train import train
from jaxcpt.update import shard_state

# Numbers that a clock measures differ between runs.
CLOCKED = {"pairs_per_s", "tokens_per_s", "data_wait", "save_share", "eval_share", "mfu"}
FILES = {
    ".jaxcpt",
    "checkpoints",
    "evals.jsonl",
    "experiment.json",
    "metrics.jsonl",
    "report.html",
    "starts.jsonl",
    "summary.json",
    "tokenizer",
}


def read_state(run_dir, step=6):
    experiment = read_experiment(run_dir)
    with CheckpointStore(run_dir / "checkpoints") as checkpoints:
        assert checkpoints.choose(step) == step
        shapes = shard_state(experiment, make_mesh(experiment.mesh))
        return jax.device_get(checkpoints.restore(step, shapes))


def read_metrics(run_dir):
    rows = read_rows(run_dir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in rows]


def assert_same_run(run_dir, other=None):
    """Checks that parameters, optimizer, metrics and scores equal those of the undisturbed run."""
    other = other or tiny_run()
    jax.tree.map(np.testing.assert_array_equal, read_state(run_dir), read_state(other))
    assert read_metrics(run_dir) == read_metrics(other)
    assert read_rows(run_dir / "evals.jsonl") == read_rows(other / "evals.jsonl")
    tables = [json.loads((d / "summary.json").read_text())["table"] for d in (run_dir, other)]
    assert tables[0] == tables[1]


def forget(run_dir, step):
    """Makes the run look as if it had been killed before it saved `step`."""
    shutil.rmtree(run_dir / "checkpoints" / str(step))
    (run_dir / "checkpoints" / f"{step}.sha256.json").unlink()
    for name in ("report.html", "summary.json"):
        (run_dir / name).unlink(missing_ok=True)


def test_a_run_leaves_what_it_promises(tmp_path):
    run_dir = copy_run(tmp_path)  # without what searches of other tests have left
    names = {path.name for path in run_dir.iterdir()}
    assert {name for name in names if not name.startswith("events.")} == FILES
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (run_dir / "experiment.json").read_text() == to_json(tiny_experiment())
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert all(np.isfinite(value) for value in row.values()), row
        assert row["masked_overflow"] == 0
        assert 0 <= row["padding"] < 0.9
    evals = read_rows(run_dir / "evals.jsonl")
    assert [row["step"] for row in evals] == [3, 6]
    assert set(evals[0]) == {
        "step",
        *(f"heldout/{k}" for k in ("mrr", "recall_at_1", "recall_at_10")),
    }
    table = json.loads((run_dir / "summary.json").read_text())["table"]
    assert [row["name"] for row in table] == ["this run", "BM25", "chance"]
    assert table[0]["mrr"] == evals[-1]["heldout/mrr"]
    assert table[1] == {"name": "BM25", **pair_search.bm25(PAIRS)}
    report = (run_dir / "report.html").read_text()
    assert "BM25" in report
    assert not re.search(r'src="(?!data:|#)', report)  # loads nothing
    assert set(re.findall(r'[ :]href="([^#][^"]*)"', report)) < names


def test_3_steps_and_a_restart_and_3_are_6(tmp_path, capsys):
    run_dir = copy_run(tmp_path)
    forget(run_dir, 6)  # metrics.jsonl still has the steps 4 to 6, as after a kill
    train(tiny_experiment(), run_dir, run_dir)
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    assert_same_run(run_dir)
    starts = read_objects(run_dir / "starts.jsonl", START)
    assert [start["step"] for start in starts] == [0, 3]
    assert starts[0]["devices"] == "data 2 x fsdp 2 x tensor 2 on 8 cpu devices"
    assert [entry["pairs"] for entry in starts[0]["data"]] == [len(PAIRS)] * 2
    assert "from start to end" in (run_dir / "report.html").read_text()


def test_a_damaged_newest_checkpoint(tmp_path, capsys):
    run_dir = copy_run(tmp_path)
    flip_bit(array_files(run_dir / "checkpoints", 6)[0])
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # the same accident cut this line
    train(tiny_experiment(), run_dir, run_dir)
    said = capsys.readouterr().out
    assert "checkpoint of step 6 is damaged, trying an older one: params/" in said or (
        "checkpoint of step 6 is damaged, trying an older one: opt_state/" in said
    )
    assert "resuming at step 3 of 6" in said
    assert_same_run(run_dir)


def test_all_checkpoints_damaged_is_no_new_start(tmp_path):
    run_dir = copy_run(tmp_path)
    for step in (3, 6):
        flip_bit(array_files(run_dir / "checkpoints", step)[0])
    before = sorted((run_dir / "checkpoints").rglob("*"))
    with pytest.raises(UserError, match=r"no whole checkpoint \(step 6: .*; step 3: .*put a copy"):
        train(tiny_experiment(), run_dir, run_dir)
    assert sorted((run_dir / "checkpoints").rglob("*")) == before


def test_stray_files_are_no_damage(tmp_path, capsys):
    run_dir = copy_run(tmp_path)
    for step in (3, 6):
        (run_dir / "checkpoints" / str(step) / ".DS_Store").touch()
    train(tiny_experiment(), run_dir, run_dir)
    said = capsys.readouterr().out
    assert "resuming at step 6 of 6" in said
    assert "damaged" not in said


def test_a_finished_run_started_again_only_reports(tmp_path, capsys):
    run_dir = copy_run(tmp_path)
    (run_dir / "report.html").unlink()
    end = json.loads((run_dir / "summary.json").read_text())["end"]
    before = {p: p.stat().st_mtime_ns for p in (run_dir / "checkpoints").rglob("*")}
    train(tiny_experiment(), run_dir, run_dir)
    assert "resuming at step 6 of 6" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (run_dir / "checkpoints").rglob("*")}
    assert (run_dir / "report.html").is_file()
    assert json.loads((run_dir / "summary.json").read_text())["end"] == end
    assert_same_run(run_dir)


@pytest.mark.parametrize("devices", [1, 4])
def test_goes_on_with_other_devices(tmp_path, monkeypatch, devices):
    run_dir = copy_run(tmp_path)
    forget(run_dir, 6)
    fewer = replace(tiny_experiment().mesh, fsdp=min(devices, 2), tensor=min(devices, 2))
    monkeypatch.setattr(
        train_module, "make_mesh", lambda _: make_mesh(fewer, jax.devices()[:devices])
    )
    train(tiny_experiment(), run_dir, run_dir)
    assert_close_run(run_dir)


def test_goes_on_with_another_layout(tmp_path, capsys):
    run_dir = copy_run(tmp_path)
    forget(run_dir, 6)
    changed = tiny_experiment(batching__chunks=2, model__remat="nothing", loss__form="streaming")
    changed = replace(changed, mesh=Mesh(4, fsdp=1, tensor=2))
    train(changed, run_dir, run_dir)
    assert_close_run(run_dir)
    assert (
        f"{run_dir}: goes on with other values: batching.chunks: 1 -> 2; model.remat: 'everything' "
        "-> 'nothing'; loss.form: 'dense' -> 'streaming'; mesh.data: -1 -> 4; mesh.fsdp: 2 -> 1\n"
    ) in capsys.readouterr().out
    assert read_experiment(run_dir) == changed


def assert_close_run(run_dir):
    """Checks that metrics and parameters equal those of the undisturbed run up to rounding."""
    for ours, theirs in zip(read_metrics(run_dir), read_metrics(tiny_run()), strict=True):
        for name in ("loss", "gradient_norm", "scale", "learning_rate", "pairs", "tokens"):
            if name in theirs:
                np.testing.assert_allclose(ours[name], theirs[name], **CLOSE)
    ours, theirs = read_state(run_dir).params, read_state(tiny_run()).params
    # Adam divides by the root of the second moment, so a gradient that is only rounding error moves
    # a parameter as far as any other gradient. Three steps move a parameter by up to 3e-3.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), ours, theirs)


def test_sigterm_saves_and_a_new_start_goes_on(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    real, handlers = train_module.score, [signal.getsignal(n) for n in (15, 2)]

    def score_and_signal(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)  # during the eval of step 3, which then ends at once
        return real(*arguments)

    monkeypatch.setattr(train_module, "score", score_and_signal)
    with pytest.raises(Stopped) as stopped:
        train(tiny_experiment(), run_dir, run_dir)
    assert str(stopped.value) == "stopped at step 3, which is saved; start again to go on"
    assert [signal.getsignal(n) for n in (15, 2)] == handlers
    assert [row["step"] for row in read_metrics(run_dir)] == [1, 2, 3]
    assert read_rows(run_dir / "evals.jsonl") == []
    assert "stopped" not in write_report(run_dir).read_text()  # the run has a report anyway
    monkeypatch.setattr(train_module, "score", real)
    train(tiny_experiment(), run_dir, run_dir)
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    assert_same_run(run_dir)  # the eval of step 3 was done later


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_between_evals_saves_at_the_next_step(hangups, tmp_path, monkeypatch, number):
    run_dir, real = tmp_path / "run", train_module.MetricsLog.log

    def log_and_signal(self, step, scalars):
        real(self, step, scalars)
        if step == 5:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(train_module.MetricsLog, "log", log_and_signal)
    tiny_run()  # writes the pairs
    with pytest.raises(Stopped, match="stopped at step 5, which is saved"):
        train(tiny_experiment(), run_dir, run_dir)
    monkeypatch.undo()
    train(tiny_experiment(), run_dir, run_dir)
    assert_same_run(run_dir)


@pytest.mark.parametrize("place", ["score", "conclude"])
def test_a_signal_in_the_last_eval_ends_it(tmp_path, monkeypatch, place):
    run_dir, real = copy_run(tmp_path), getattr(train_module, place)
    (run_dir / "evals.jsonl").write_text((run_dir / "evals.jsonl").read_text().splitlines()[0])

    def signal_and_work(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(train_module, place, signal_and_work)
    start = time.monotonic()
    with pytest.raises(Stopped, match="saved; start again to go on"):
        train(tiny_experiment(), run_dir, run_dir)
    assert time.monotonic() - start < 50
    monkeypatch.setattr(train_module, place, real)
    train(tiny_experiment(), run_dir, run_dir)
    assert_same_run(run_dir)


@pytest.mark.parametrize("saved", [3, 6])
def test_an_eval_that_a_kill_prevented_is_made_up_for(tmp_path, saved):
    run_dir = copy_run(tmp_path)
    if saved == 3:
        forget(run_dir, 6)
    rows = (run_dir / "evals.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "evals.jsonl").write_text("".join(rows[: saved // 3 - 1]))
    train(tiny_experiment(), run_dir, run_dir)
    assert_same_run(run_dir)


def test_kill_9_loses_only_the_steps_after_the_last_checkpoint(tmp_path, capsys):
    # A separate process, with as many devices as this one.
    long_run = replace(
        tiny_experiment(),
        train_steps=5000,
        checkpoints=Checkpoints(every_steps=40, keep=2),
        evals=Evals(every_steps=5000),
    )
    run_dir = tmp_path / "run"
    tiny_run()  # writes the pairs
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "from jaxcpt.experiments import from_json\n"
        f"def experiment(): return from_json({to_json(long_run)!r}, 'here')\n"
    )
    code = (
        "import sys, conftest, os\n"
        "os.sched_getaffinity = lambda _: range(8)\n"
        "from jaxcpt import train; from jaxcpt.errors import run_command; run_command(train.main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--experiment", "mine.py", "--run-dir", str(run_dir)],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/tests"},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 240
    while len(read_rows(run_dir / "metrics.jsonl")) < 55:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    process.kill()
    process.wait()
    before = read_metrics(run_dir)
    saved = (len(before) - 1) // 40 * 40  # the save of the last step may not be finished
    with CheckpointStore(run_dir / "checkpoints") as checkpoints:
        found = checkpoints.choose()
    assert found >= saved >= 40
    capsys.readouterr()

    def stop_after(self, step, scalars, real=train_module.MetricsLog.log):
        real(self, step, scalars)
        if step == len(before):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module.MetricsLog, "log", stop_after)
        with pytest.raises(Stopped, match=f"stopped at step {len(before)}, which is saved"):
            train(long_run, run_dir, run_dir)
    assert f"resuming at step {found} of 5000" in capsys.readouterr().out
    assert read_metrics(run_dir) == before  # the lost steps are repeated exactly


def test_a_baseline_is_trained_beside_and_shown(tmp_path):
    run = tiny_experiment()
    bag = replace(run.model, layers=0, pooling="mean")
    run = replace(
        run,
        train_steps=2,
        evals=Evals(every_steps=2),
        baseline=Baseline(
            name="bag of words",
            train_steps=3,
            batching=run.batching,
            model=bag,
            optimizer=run.optimizer,
        ),
    )
    tiny_run()  # writes the pairs
    run_dir = tmp_path / "run"
    train(run, run_dir, run_dir)
    table = json.loads((run_dir / "summary.json").read_text())["table"]
    assert [row["name"] for row in table] == ["this run", "bag of words", "BM25", "chance"]
    assert len(read_rows(run_dir / "baseline" / "metrics.jsonl")) == 3
    tokenizers = [
        (d / "tokenizer" / "tokenizer.model").read_bytes() for d in (run_dir, run_dir / "baseline")
    ]
    assert tokenizers[0] == tokenizers[1]
    # Its held-out pairs are those that its run keeps.
    assert find_shared_folder(run_dir / "baseline") == find_shared_folder(run_dir) == run_dir


def test_without_heldout_pairs(tmp_path, capsys):
    run = tiny_experiment()
    run = replace(run, train_steps=2, data=replace(run.data, heldout=None))
    tiny_run()  # writes the pairs
    run_dir = tmp_path / "run"
    train(run, run_dir, run_dir)
    assert not read_rows(run_dir / "evals.jsonl")
    assert "BM25" not in capsys.readouterr().out
    assert (run_dir / "report.html").is_file()


@each_file
def test_dry_run_prints_and_writes_nothing(path, tmp_path, monkeypatch, capsys):
    load(path)  # skips the test if the package of its start is missing
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    monkeypatch.chdir(tmp_path)
    run_command(train_module.main, ["--experiment", str(path), "--dry-run"])
    said = capsys.readouterr().out
    for name in ("parameters", "tokens per step", "FLOPs per step", "checkpoint", "mesh"):
        assert name in said, path
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_read_from_where_the_experiment_says():
    assert read_experiment(tiny_run()).data.train[0].path == str(PAIRS_FILE)


def test_nothing_is_traced_or_compiled_twice_over_a_run_with_evals_and_saves(tmp_path, caplog):
    """Homogeneous batches of two sources have two shapes, and a compiled step for each."""
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    write_pairs(short, [replace(pair, y=" ".join(pair.y.split()[:3])) for pair in PAIRS[:45]])
    write_pairs(long, PAIRS[45:])
    run = make_experiment(short, name="traces", batching__pairs_per_batch=40, train_steps=8)
    sources = (JsonlPairs(str(short)), JsonlPairs(str(long)))
    run = replace(
        run,
        data=replace(run.data, train=sources, homogeneous=True),
        mesh=Mesh(2, 2, 2),
        checkpoints=Checkpoints(3, keep=2),
    )
    traced = Counter()

    def note(event, seconds, **about):
        if event == "/jax/core/compile/jaxpr_trace_duration":
            traced[about["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
            train(run, tmp_path / "run", tmp_path / "run")
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    compiled = Counter(
        (record.message.partition("(")[2], record.message)
        for record in caplog.records
        if record.message.startswith("Compiling ")
    )
    assert max(compiled.values()) == 1
    shapes = Counter(name.partition(")")[0] for name, _ in compiled)
    assert traced["train_step"] == shapes["train_step"] == 2
    assert traced["embed_cells"] == shapes["embed_cells"] > 0
    assert traced["build_state"] == 2  # once for the shapes, once for the values
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    of_source = [{n for n in row if n.startswith("padding/")} for row in rows]
    assert (
        sorted(map(tuple, of_source))
        == [("padding/long.jsonl",)] * 4 + [("padding/short.jsonl",)] * 4
    )
    assert len(read_rows(tmp_path / "run" / "evals.jsonl")) == 3


def test_the_log_tells_the_share_of_time_without_data(tmp_path, pairs_file, monkeypatch):
    """The run waits for batches that take longer than steps."""
    make = Batches.make

    def make_slowly(self, step):
        time.sleep(1.5)
        return make(self, step)

    monkeypatch.setattr(Batches, "make", make_slowly)
    train(make_experiment(pairs_file), tmp_path / "run", tmp_path / "run")
    shares = [row["data_wait"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")[1:]]
    assert 0.3 < max(shares) <= 1


def test_time_that_steps_take_is_no_wait_for_data(tmp_path, pairs_file, monkeypatch):
    """Waiting does not count if batches take less time than steps.

    The host is ahead of the devices, so it may ask for a batch before that is ready.
    """
    make, make_step = Batches.make, train_module.compile_train_step

    def make_batch(self, step):
        time.sleep(0.2)
        return make(self, step)

    @jax.jit
    def delay(scalar):
        def wait(value):
            time.sleep(0.4)
            return value

        return jax.pure_callback(wait, scalar, scalar)

    def make_slow_step(*arguments):
        step = make_step(*arguments)

        def take(state, batch):
            state, scalars = step(state, batch)
            return state, scalars | {"loss": delay(scalars["loss"])}

        return take

    monkeypatch.setattr(Batches, "make", make_batch)
    monkeypatch.setattr(train_module, "compile_train_step", make_slow_step)
    run = make_experiment(pairs_file, log_every_steps=6)
    train(run, tmp_path / "run", tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["data_wait"] < 0.1
