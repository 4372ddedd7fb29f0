"""A run that starts from another run: its parameters, its tokenizer, and settings that differ."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import CLOSE, EXACT, PAIRS
from hf_folder import WORDS, write_folder
from test_checkpoint import array_files
from test_train import forget, read_state
from tiny_run import tiny_experiment, tiny_run

import jaxcpt
from jaxcpt.config import Checkpoints, Data, InitFrom, JsonlPairs, Mesh, Model, Tokenizer
from jaxcpt.errors import UserError
from jaxcpt.evaluate import main as evaluate
from jaxcpt.experiments import read_experiment
from jaxcpt.metrics import read_rows
from jaxcpt.start import foresee_start, resolve_start
from jaxcpt.train import train


def start_from(run, **changes):
    """An experiment that takes model and tokenizer from `run`."""
    experiment = tiny_experiment(**changes)
    open_parts = {
        "model": Model(compute_dtype="float32"),
        "tokenizer": Tokenizer(),
        "init_from": InitFrom(str(run)),
        "name": "tuned",
    }
    return replace(experiment, **open_parts)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("start") / "tuned"
    train(start_from(tiny_run()), run_dir, run_dir)
    return run_dir


def test_the_run_begins_with_the_parameters_of_its_start(tmp_path):
    run_dir = tmp_path / "tuned"
    # The learning rate is too small to change anything, so the last state equals the first.
    experiment = start_from(tiny_run(), optimizer__learning_rate=1e-30)
    train(experiment, run_dir, run_dir)
    before, after = read_state(tiny_run()), read_state(run_dir)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **EXACT),
        before.params["encoder"],
        after.params["encoder"],
    )
    np.testing.assert_allclose(after.params["log_scale"], np.log(1 / 0.07), **CLOSE)
    texts = [pair.y for pair in PAIRS[:20]]
    vectors = [jaxcpt.Embedder.load(run).embed(texts, "y") for run in (tiny_run(), run_dir)]
    np.testing.assert_allclose(*vectors, **CLOSE)


def test_the_experiment_records_what_it_started_from(tuned):
    start, run = read_experiment(tiny_run()), read_experiment(tuned)
    assert run.model == replace(start.model, position_rows=start.tokenizer.longest)
    assert run.tokenizer == start.tokenizer
    assert run.init_from.fingerprint == jaxcpt.Embedder.load(tiny_run()).fingerprint
    first = read_rows(tuned / "metrics.jsonl")[0]
    assert first["step"] == 1
    assert first["loss"] < read_rows(tiny_run() / "metrics.jsonl")[0]["loss"]


def test_a_resume_does_not_need_the_start(tmp_path):
    start, run_dir = tmp_path / "start", tmp_path / "tuned"
    shutil.copytree(tiny_run(), start)
    experiment = replace(start_from(start), checkpoints=Checkpoints(every_steps=6, keep=2))
    train(experiment, run_dir, run_dir)
    whole = read_state(run_dir)
    forget(run_dir, 6)  # as if killed after the checkpoint of step 0
    shutil.rmtree(start)
    train(experiment, run_dir, run_dir)
    jax.tree.map(np.testing.assert_array_equal, read_state(run_dir), whole)


def test_a_start_that_saves_meanwhile_is_read_at_the_recorded_step(tmp_path):
    start, run_dir = tmp_path / "start", tmp_path / "tuned"
    shutil.copytree(tiny_run(), start)
    forget(start, 6)
    experiment = resolve_start(start_from(start, optimizer__learning_rate=1e-30), run_dir)
    shutil.rmtree(start)
    shutil.copytree(tiny_run(), start)  # with step 6
    train(experiment, run_dir, run_dir)
    jax.tree.map(
        np.testing.assert_array_equal,
        read_state(tiny_run(), 3).params["encoder"],
        read_state(run_dir).params["encoder"],
    )


def test_other_devices_start_from_the_same_parameters(tmp_path):
    run_dir = tmp_path / "tuned"
    experiment = start_from(tiny_run(), optimizer__learning_rate=1e-30)
    train(replace(experiment, mesh=Mesh(8, 1, 1)), run_dir, run_dir)
    before, after = read_state(tiny_run()), read_state(run_dir)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **EXACT),
        before.params["encoder"],
        after.params["encoder"],
    )


def test_a_start_is_foreseen_without_writing_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from_run = start_from(tiny_run())
    assert foresee_start(from_run) == replace(
        resolve_start(from_run, tmp_path), init_from=from_run.init_from
    )
    folder = write_folder(tmp_path / "bert")
    from_folder = start_from(folder)
    found = foresee_start(from_folder)
    assert (found.model.width, found.model.layers, found.tokenizer.vocabulary) == (8, 2, len(WORDS))
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_stated_model_is_foreseen_before_its_start_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stated = tiny_experiment(init_from=InitFrom("runs/first", prepare="jaxcpt train --first"))
    assert foresee_start(stated) == stated
    with pytest.raises(UserError, match="runs/first: no such folder; make it with: jaxcpt train -"):
        resolve_start(stated, tmp_path / "run")
    with pytest.raises(UserError, match="runs/first: no such folder"):
        foresee_start(replace(stated, model=Model()))


def test_longest_texts_are_the_new_runs_own(tmp_path):
    experiment = start_from(tiny_run())
    shorter = replace(experiment, tokenizer=Tokenizer(x_tokens=8, y_tokens=16))
    resolved = resolve_start(shorter, tmp_path)
    assert (resolved.tokenizer.x_tokens, resolved.tokenizer.y_tokens) == (8, 16)
    assert resolved.model.position_rows == 24


def test_how_a_run_computes_is_its_own_decision(tmp_path):
    """The start computes in float32, but bfloat16 is the default."""
    for stated, computed in ((Model(), "bfloat16"), (Model(compute_dtype="float32"), "float32")):
        resolved = resolve_start(replace(start_from(tiny_run()), model=stated), tmp_path)
        assert (resolved.model.width, resolved.model.compute_dtype) == (16, computed)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"model": Model(width=32)},
            r"model.width: 32, but init_from .* has 16; leave the field out",
        ),
        (
            {"tokenizer": Tokenizer(vocabulary=500)},
            r"tokenizer.vocabulary: 500, but init_from .* has 400; leave the field out",
        ),
        (
            {"init_from": InitFrom("nowhere", step=4)},
            r"nowhere: no such folder",
        ),
    ],
)
def test_what_contradicts_the_start_is_refused(tmp_path, changes, text):
    with pytest.raises(UserError, match=text):
        resolve_start(replace(start_from(tiny_run()), **changes), tmp_path)


def test_a_wrong_path_of_pairs_is_refused_before_a_start_is_imported(tmp_path):
    folder, run_dir = write_folder(tmp_path / "bert"), tmp_path / "run"
    data = Data((JsonlPairs(str(tmp_path / "none.jsonl")),))
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        train(replace(start_from(folder), data=data), run_dir, run_dir)
    assert not (run_dir / "start").exists()


def test_a_start_without_such_a_step_or_fingerprint_is_refused(tmp_path):
    experiment = start_from(tiny_run())
    for start, text in (
        (InitFrom(str(tiny_run()), step=5), r"no checkpoint of step 5; there are: 3, 6"),
        (
            InitFrom(str(tiny_run()), fingerprint="0" * 64),
            r"init_from.fingerprint: expected 000000000000, but .* has [0-9a-f]{12}",
        ),
    ):
        with pytest.raises(UserError, match=text):
            resolve_start(replace(experiment, init_from=start), tmp_path)


def test_a_damaged_start_is_refused(tmp_path):
    shutil.copytree(tiny_run(), tmp_path / "start")
    for file in array_files(tmp_path / "start" / "checkpoints", 6):
        file.write_bytes(b"0")
    experiment = replace(
        start_from(tiny_run()), init_from=InitFrom(str(tmp_path / "start"), step=6)
    )
    with pytest.raises(UserError, match="checkpoint of step 6 is damaged"):
        resolve_start(experiment, tmp_path / "run")


def test_the_started_runs_json_has_no_path_of_its_tokenizer(tuned):
    tree = json.loads((tuned / "experiment.json").read_text())
    assert tree["tokenizer"]["model_file"] is None


@pytest.mark.usefixtures("as_many_cores_as_devices")
def test_evaluate_shows_the_scores_before_training(tuned, tmp_path):
    output = tmp_path / "scores.json"
    for options, shown in ((), True), (("--int8",), False):
        evaluate(["--run-dir", str(tuned), "--json", str(output), *options])
        rows = {row["name"]: row for row in json.loads(output.read_text())["table"]}
        assert ("before training" in rows) == shown
        if shown:
            first = read_rows(tuned / "evals.jsonl")[0]
            assert rows["before training"]["mrr"] == first["heldout/mrr"]
