"""The generative objective: exact gradients on every mesh, training, and tuning from its runs."""

import json
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLOSE, EXACT, PAIRS, make_experiment
from tiny_run import PAIRS_FILE

from jaxcpt import embed, evaluate, likelihood, next_token, search, train
from jaxcpt.batches import Batches
from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.config import Checkpoints, InitFrom, Mesh
from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError
from jaxcpt.experiments import from_json, read_experiment, to_json
from jaxcpt.export import export_run
from jaxcpt.metrics import find_row, read_rows
from jaxcpt.model import Cells, encode_tokens, make_encoder
from jaxcpt.pair import Pair
from jaxcpt.pairs import PairList, write_pairs
from jaxcpt.sharding import make_mesh
from jaxcpt.tokenizer import Delimiters, Template
from jaxcpt.update import compute_gradient, init_state, shard_state


@pytest.fixture(autouse=True)
def as_many_cores_as_devices(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))


def make_generative(**changes):
    return make_experiment(PAIRS_FILE, objective="generative", **changes)


def find_gradient(tokenizer, mesh=(1, 1, 1), **changes):
    """The metrics and the gradient of the first 15 pairs, their batch, and the parameters."""
    experiment = make_generative(mesh=Mesh(*mesh), **changes)
    devices = make_mesh(experiment.mesh, jax.devices()[: math.prod(mesh)])
    with jax.set_mesh(devices):
        batch = Batches(experiment, [PairList(PAIRS[:15])], tokenizer, devices).make(0)
        params = init_state(experiment, devices).params
        found = jax.jit(partial(compute_gradient, experiment))(params, batch)
        return *jax.device_get(found), jax.device_get(batch), jax.device_get(params)


def find_dense_gradient(tokenizer, **changes):
    """The same, with a plain loss over all logits of the whole batch."""
    experiment = make_generative(**changes)
    *_, batch, params = find_gradient(tokenizer, **changes)
    cells = jax.tree.map(lambda a: a[0], batch.cells)
    goes_on = cells.segments_grl[..., 1:] == cells.segments_grl[..., :-1]
    goes_on &= cells.segments_grl[..., 1:] > 0

    def find_loss(encoder_params):
        hidden = encode_tokens(make_encoder(experiment), encoder_params, cells)
        logits = hidden.reshape(*cells.tokens_grl.shape, -1) @ encoder_params["tokens"].T
        logs = jax.nn.log_softmax(logits)[..., :-1, :]
        picked = jnp.take_along_axis(logs, cells.tokens_grl[..., 1:, None], axis=-1)[..., 0]
        return -jnp.sum(picked * goes_on) / jnp.sum(goes_on)

    return jax.value_and_grad(find_loss)(params["encoder"])


@pytest.mark.parametrize(
    ("mesh", "cut", "model"),
    [
        ((1, 1, 1), {}, {}),
        ((2, 2, 2), {}, {}),
        ((2, 2, 2), {"batching__chunks": 3}, {}),
        ((1, 1, 8), {"batching__chunks": 2}, {"model__heads": 8}),
        ((4, 2, 1), {"batching__pack": False}, {}),
        ((2, 1, 2), {"model__cut_residual": True}, {"model__positions": "rotary"}),
        ((1, 2, 1), {"batching__negatives": 0}, {"model__layers": 0}),
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(tokenizer, mesh, cut, model, monkeypatch):
    # This makes several blocks, of which the last is not full.
    monkeypatch.setattr(next_token, "TOKENS_AT_ONCE", 24)
    loss, true = find_dense_gradient(tokenizer, **model)
    metrics, gradient, batch, _ = find_gradient(tokenizer, mesh, **cut, **model)
    np.testing.assert_allclose(metrics["loss"], loss, **CLOSE)
    texts = np.sum(batch.present_ngt)
    assert metrics["predicted"] == np.sum(batch.cells.segments_grl > 0) - texts
    assert gradient["log_scale"] == 0
    # A sum may be smaller than its terms, so the error is compared with the largest value.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(true))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6 * largest)
    jax.tree.map(close, gradient["encoder"], true)


def test_hard_negatives_are_texts_too(tokenizer):
    metrics, _, batch, _ = find_gradient(tokenizer, batching__negatives=2)
    without, *_ = find_gradient(tokenizer)
    assert metrics["pairs"] == without["pairs"] == 15
    assert metrics["predicted"] > without["predicted"]
    texts = np.sum(batch.present_ngt)
    assert metrics["predicted"] == np.sum(batch.cells.segments_grl > 0) - texts


def test_a_target_lies_in_its_own_text():
    """The first row has two texts, the second row one text and padding."""
    tokens = np.array([[[5, 6, 7, 8, 9, 0], [4, 3, 2, 0, 0, 0]]])
    segments = np.array([[[1, 1, 1, 2, 2, 0], [3, 3, 3, 0, 0, 0]]])
    cells = Cells(tokens, segments, np.zeros_like(tokens), np.array([[2, 4, 8]]))
    none = next_token.NO_TARGET
    wanted = [6, 7, none, 9, none, none, 3, 2, none, none, none, none]
    np.testing.assert_array_equal(next_token.find_targets(cells), [wanted])
    # A text never continues in the next row, so the last column has no target.
    full = replace(cells, segments_grl=np.ones_like(segments))
    assert next_token.find_targets(full)[0, 5] == none


def test_the_same_text_costs_the_same_wherever_it_is_packed(tokenizer):
    experiment = make_generative()
    mesh = make_mesh(Mesh(), jax.devices()[:2])
    with jax.set_mesh(mesh):
        params = init_state(experiment, mesh).params["encoder"]
    find = partial(likelihood.measure, experiment, params, tokenizer, mesh)
    together = find(PAIRS[:9])
    apart = [find([pair]) for pair in PAIRS[:9]]
    assert together.tokens == sum(one.tokens for one in apart)
    assert together.bytes == sum(one.bytes for one in apart)
    np.testing.assert_allclose(together.nats, sum(one.nats for one in apart), **CLOSE)


def test_a_long_text_is_measured_whole(tokenizer):
    """It is read in pieces, each after the opening delimiter. Every token is predicted once."""
    pair = Pair("w1", " ".join(f"w{number}" for number in range(60)))
    unlimited = replace(tokenizer, y_tokens=1000).encode([pair.y], "y")[0]
    pieces = list(likelihood.cut_texts(tokenizer, [pair], "y"))
    assert len(pieces) > 2
    assert max(map(len, pieces)) == tokenizer.y_tokens < len(unlimited)
    np.testing.assert_array_equal(
        np.concatenate([unlimited[:1], *(piece[1:] for piece in pieces)]), unlimited
    )


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(tokenizer):
    experiment = make_generative()
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = init_state(experiment, mesh).params["encoder"]
    params = params | {"tokens": jnp.zeros_like(params["tokens"])}
    measured = likelihood.measure(experiment, params, tokenizer, mesh, PAIRS)
    assert measured.bytes == sum(len(pair.x + pair.y) for pair in PAIRS)
    np.testing.assert_allclose(measured.score()["perplexity"], 400, **CLOSE)
    yardsticks = likelihood.score_yardsticks(tokenizer, PAIRS, measured)
    assert yardsticks["equal chances"] == pytest.approx(measured.score(), rel=1e-5)
    assert 0 < yardsticks["xz"]["bits_per_byte"] < 8
    bits = measured.tokens * math.log2(400)
    assert measured.score()["bits_per_byte"] == pytest.approx(bits / measured.bytes, rel=1e-5)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of six steps on 2 x 2 x 2 devices. Tests must not write to it."""
    write_pairs(PAIRS_FILE, PAIRS)
    folder = tmp_path_factory.mktemp("generative") / "run"
    train.train(on_eight_devices(), folder, folder)
    return folder


def on_eight_devices(**changes):
    run = make_generative(model__layers=1, model__biases=False, **changes)
    return replace(run, mesh=Mesh(-1, fsdp=2, tensor=2), checkpoints=Checkpoints(3, keep=2))


def read_state(folder):
    experiment = read_experiment(folder)
    mesh = make_mesh(experiment.mesh)
    with CheckpointStore(folder / "checkpoints") as checkpoints:
        return jax.device_get(checkpoints.restore(6, shard_state(experiment, mesh)))


def test_a_run_learns_records_and_reports(run_dir, capsys):
    rows, evals = read_rows(run_dir / "metrics.jsonl"), read_rows(run_dir / "evals.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert "scale" not in rows[-1]
    for row in evals:
        assert row.keys() == {"step", "heldout/bits_per_byte", "heldout/perplexity"}
    assert evals[-1]["heldout/perplexity"] < evals[0]["heldout/perplexity"] < 400
    table = json.loads((run_dir / "summary.json").read_text())["table"]
    assert [row["name"] for row in table] == ["this run", "xz", "equal chances"]
    page = (run_dir / "report.html").read_text()
    assert "Held-out texts, token by token" in page
    assert "heldout bits/byte" in page
    best = min(row["bits_per_byte"] for row in table)
    assert f'<td class="best">{best:.3f}</td>' in page

    evaluate.main(["--run-dir", str(run_dir), "--json", str(run_dir.parent / "scores.json")])
    printed = capsys.readouterr().out
    assert "bits per byte" in printed
    scores = json.loads((run_dir.parent / "scores.json").read_text())
    assert scores["step"] == 6
    assert scores["table"][0]["bits_per_byte"] == pytest.approx(table[0]["bits_per_byte"], rel=1e-5)


def test_a_stopped_run_goes_on_exactly(run_dir, tmp_path, monkeypatch):
    """Three steps, a restart and three steps equal six steps."""
    folder = tmp_path / "run"
    experiment = on_eight_devices()

    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(train, "evaluate", kill)  # at step 3, which has been saved
        with pytest.raises(Killed):
            train.train(experiment, folder, folder)
    train.train(experiment, folder, folder)
    jax.tree.map(
        partial(np.testing.assert_allclose, **EXACT), read_state(folder), read_state(run_dir)
    )
    assert find_row(folder / "evals.jsonl", 3) == find_row(run_dir / "evals.jsonl", 3)


def test_a_contrastive_run_starts_from_it(run_dir, tmp_path):
    """It takes the model and the tokenizer, has its own pooling, and gives embeddings."""
    tuned = make_experiment(PAIRS_FILE, model__pooling="mean")
    tuned = replace(tuned, init_from=InitFrom(str(run_dir)), mesh=Mesh(-1, 2, 2))
    tuned = replace(tuned, model=replace(tuned.model, layers=1, biases=False))
    folder = tmp_path / "tuned"
    train.train(tuned, folder, folder)
    saved = read_experiment(folder)
    assert saved.objective == "contrastive"
    given = read_experiment(run_dir).model
    assert saved.model == replace(given, pooling="mean", position_rows=24)
    before = find_row(folder / "evals.jsonl", 0)
    assert before.keys() >= {"heldout/mrr"}
    assert Embedder.load(folder).embed(["w1 w2"], "x").shape == (1, 16)


def test_its_arrays_are_exported(run_dir, tmp_path):
    assert export_run(run_dir, tmp_path / "out", None, "float32", "safetensors") == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A model of width 16 that predicts the next token." in card


def test_a_diverged_model_has_a_perplexity():
    assert likelihood.Likelihood(nats=1e9, tokens=10, bytes=10).score()["perplexity"] > 1e307


def test_a_generative_run_goes_on_from_another(run_dir, tmp_path):
    again = replace(on_eight_devices(), init_from=InitFrom(str(run_dir)))
    folder = tmp_path / "again"
    train.train(again, folder, folder)
    first = find_row(folder / "evals.jsonl", 0)
    assert first == pytest.approx(find_row(run_dir / "evals.jsonl", 6) | {"step": 0}, rel=1e-5)
    table = json.loads((folder / "summary.json").read_text())["table"]
    assert [row["name"] for row in table][:2] == ["this run", "before training"]


def test_a_generative_run_is_not_taken_for_an_embedding_model(run_dir, tmp_path, refuse):
    told = (
        f"{run_dir}: a generative run, which has no embeddings yet; tune it first: train a "
        f"contrastive experiment with init_from=InitFrom('{run_dir}')"
    )
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "w1"}\n')
    of_run = ("--run-dir", run_dir)
    assert refuse(search, *of_run, "w1") == told
    assert refuse(embed, *of_run, "--input", texts, "--output", tmp_path / "v", "--side=y") == told
    assert refuse(evaluate, *of_run, "--int8") == told
    assert refuse(evaluate, *of_run, "--x-prefix", "query: ") == told
    assert not (tmp_path / "v").exists()
    with pytest.raises(UserError) as refusal:
        export_run(run_dir, tmp_path / "out", None, "float32", "sentence-transformers")
    assert str(refusal.value) == told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model__causal": False},
            "model.causal: objective=generative needs a causal model; a token that sees the next "
            "one predicts nothing",
        ),
        (
            {"loss__scale_start": 20.0},
            "loss: belongs to the contrastive loss; leave it out for objective=generative",
        ),
        (
            {"model__pooling": "mean"},
            "model.pooling, weighted_mean: objective=generative pools nothing; state them in the "
            "run that starts from this one",
        ),
        (
            {"batching__token_dropout": 0.1},
            "batching.token_dropout: objective=generative would predict tokens that do not follow; "
            "leave it out",
        ),
        (
            {"evals__data": "data", "evals__suites": ("sts",)},
            "evals.suites: need embeddings, which objective=generative does not train",
        ),
    ],
)
def test_what_it_does_not_read_is_refused(changes, told):
    with pytest.raises(UserError) as refusal:
        make_generative(**changes)
    assert str(refusal.value) == f"tiny: {told}"


def test_an_unknown_objective_is_refused():
    text = to_json(make_generative()).replace('"generative"', '"generate"')
    with pytest.raises(UserError) as refusal:
        from_json(text, "here")
    assert str(refusal.value).startswith("here: objective: ")


def test_an_older_run_without_the_field_is_contrastive():
    fields = json.loads(to_json(make_experiment()))
    del fields["objective"]
    assert from_json(json.dumps(fields), "here").objective == "contrastive"


def test_a_template_without_an_opening_token_is_refused(tokenizer):
    own = Delimiters((), (2,))
    bare = replace(tokenizer, template=Template(own, own))
    with pytest.raises(UserError) as refusal:
        Batches(make_generative(), [PairList(PAIRS)], bare, make_mesh(Mesh()))
    assert str(refusal.value) == (
        "tokenizer.delimiters: own has no opening token, after which objective=generative could "
        "predict a text's first token; use brackets"
    )


def test_no_array_holds_the_logits_of_all_tokens(tokenizer, monkeypatch):
    """Such an array occurs neither in the loss nor in its gradient."""
    monkeypatch.setattr(next_token, "TOKENS_AT_ONCE", 8)
    experiment = make_generative(model__layers=0)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        batch = Batches(experiment, [PairList(PAIRS[:15])], tokenizer, mesh).make(0)
        params = init_state(experiment, mesh).params
        find = jax.jit(partial(compute_gradient, experiment))
        memory = find.lower(params, batch).compile().memory_analysis()
    tokens = batch.cells.tokens_grl.size
    assert memory.temp_size_in_bytes < 4 * tokens * experiment.tokenizer.vocabulary / 4
