"""Texts to vectors: order kept, packed equals alone, any number of texts; the commands on a run."""

import json

import jax
import numpy as np
import pytest
from conftest import CLOSE, PAIRS, make_experiment
from tiny_run import copy_run, tiny_run

import jaxcpt
from jaxcpt import embed, search
from jaxcpt.config import Mesh, Refusal, run_command
from jaxcpt.embed import Embedder
from jaxcpt.sharding import make_mesh
from jaxcpt.update import init_state

TEXTS = [text for pair in PAIRS[:40] for text in (pair.x, pair.y)]


def make_embedder(tokenizer, devices=None, **changes):
    experiment = make_experiment(model__layers=1, **changes)
    mesh = make_mesh(Mesh(), devices)
    return Embedder(experiment, init_state(experiment, mesh).params["encoder"], tokenizer, mesh)


@pytest.fixture(scope="module")
def embedder(tokenizer):
    return make_embedder(tokenizer)


@pytest.fixture(scope="module")
def alone(embedder):
    """The vectors of TEXTS, each embedded by itself."""
    return np.concatenate([embedder.embed([text], "y") for text in TEXTS])


def assert_close(one, other):
    # Coordinates of unit vectors: of the size of 1 / sqrt(d), and some about zero.
    np.testing.assert_allclose(one, other, rtol=CLOSE["rtol"], atol=1e-6)


def test_unit_vectors_in_order_and_packed_as_alone(embedder, alone):
    vectors_nd = embedder.embed(TEXTS, "y")
    assert vectors_nd.shape == (80, 16)
    assert vectors_nd.dtype == np.float32
    assert_close(np.linalg.norm(vectors_nd, axis=1), np.ones(80))
    assert_close(vectors_nd, alone)
    order = np.random.default_rng(0).permutation(80)
    assert_close(embedder.embed([TEXTS[i] for i in order], "y"), vectors_nd[order])
    assert len(np.unique(vectors_nd.round(4), axis=0)) > 70  # they are not all the same


@pytest.mark.parametrize(
    "changes",
    [
        {"model__causal": False, "model__pooling": "mean", "model__token_weights": True},
        {"model__positions": "rotary", "model__norm": "rmsnorm", "model__kv_heads": 2},
    ],
)
def test_packed_as_alone_for_other_models(tokenizer, changes):
    embedder = make_embedder(tokenizer, **changes)
    some = TEXTS[:12]
    together = embedder.embed(some, "x")
    assert_close(together, np.concatenate([embedder.embed([text], "x") for text in some]))


@pytest.mark.parametrize("devices", [1, 2])
def test_on_fewer_devices(tokenizer, alone, devices):
    embedder = make_embedder(tokenizer, jax.devices()[:devices])
    assert_close(embedder.embed(TEXTS, "y"), alone)


def test_more_texts_than_one_call_and_one_part(embedder, alone, monkeypatch):
    monkeypatch.setattr(embed, "TOKENS_PER_CALL", 64)  # two rows of a device
    monkeypatch.setattr(embed, "TEXTS_AT_ONCE", 33)
    assert [len(part) for part in embedder.stream(TEXTS, "y")] == [33, 33, 14]
    assert_close(embedder.embed(TEXTS, "y"), alone)


def test_takes_no_more_from_a_generator_than_it_holds(embedder, monkeypatch):
    monkeypatch.setattr(embed, "TEXTS_AT_ONCE", 10)
    taken = []
    source = (taken.append(text) or text for text in TEXTS)
    parts = embedder.stream(source, "y")
    assert len(next(parts)) == 10
    assert len(taken) == 10


def test_few_texts_cost_few_tokens(embedder, monkeypatch):
    shapes = []
    real = embedder.embed_cells
    monkeypatch.setattr(
        embedder, "embed_cells", lambda p, c: shapes.append(c.tokens_grl.shape) or real(p, c)
    )
    embedder.embed(["a query"], "x")
    embedder.embed(TEXTS, "y")
    assert shapes[0] == (8, 1, 32)
    assert shapes[1][1] <= 8


def test_sides_differ(embedder):
    assert not np.allclose(embedder.embed(["w1 w2"], "x"), embedder.embed(["w1 w2"], "y"))


def test_nothing_to_embed(embedder):
    for nothing in ([], iter(()), ()):
        vectors_nd = embedder.embed(nothing, "x")
        assert vectors_nd.shape == (0, 16)
        assert vectors_nd.dtype == np.float32


def test_odd_texts(embedder):
    odd = ["", " ", "\n\n", "\0", "é" * 9, "<]>", "\U0001f600", "w1"]
    vectors_nd = embedder.embed(odd, "x")
    assert np.isfinite(vectors_nd).all()
    assert_close(np.linalg.norm(vectors_nd, axis=1), np.ones(len(odd)))
    assert_close(vectors_nd[0], embedder.embed([""], "x")[0])


def test_too_long_texts_are_cut(embedder, tokenizer):
    long = " ".join(["w1", "w22", "w33"] * 500)
    cut = tokenizer.encode([long], "x")[0]
    assert len(cut) == 12
    same_start = tokenizer.decode(cut[1:-1])
    assert tokenizer.encode([same_start], "x")[0].tolist() == cut.tolist()
    vectors_nd = embedder.embed([long, same_start, "w1"] + [long] * 40, "x")
    assert_close(vectors_nd[0], vectors_nd[1])
    assert_close(vectors_nd[0], vectors_nd[-1])


def test_refuses_one_text_and_an_unknown_side(embedder):
    with pytest.raises(TypeError, match="expected an iterable of texts, found one text"):
        embedder.embed("parse a date", "x")
    with pytest.raises(ValueError, match="side must be 'x' or 'y', found 'z'"):
        embedder.embed(["parse a date"], "z")


# The commands, on the tiny run.


@pytest.fixture(autouse=True)
def as_many_cores_as_devices(monkeypatch):
    """The commands make each core a device; the devices of this process are there already."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))


def call(monkeypatch, module, *arguments):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    run_command(module.main)


@pytest.fixture(scope="module")
def loaded():
    return jaxcpt.Embedder.load(tiny_run())


def test_load(loaded):
    assert loaded.step == 6
    assert loaded.width == 16
    earlier = Embedder.load(str(tiny_run()), step=3)
    assert earlier.step == 3
    ours, theirs = loaded.embed(TEXTS, "x"), earlier.embed(TEXTS, "x")
    assert not np.allclose(ours, theirs)
    assert_close(np.linalg.norm(ours, axis=1), np.ones(len(TEXTS)))


def test_load_refuses_a_step_that_is_not_there():
    with pytest.raises(Refusal, match="no checkpoint of step 5; there are: 3, 6"):
        Embedder.load(tiny_run(), step=5)


@pytest.mark.parametrize("side", ["x", "y"])
def test_embed_command(tmp_path, monkeypatch, capsys, loaded, side):
    rows = [{"text": "w1 w2"}, {side: "w3"}, {"text": "", side: "not this"}, {"text": "w1 w2"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "out"  # as named: nothing is appended
    arguments = ["--run-dir", tiny_run(), "--input", tmp_path / "in.jsonl", "--output", output]
    call(monkeypatch, embed, *arguments, "--side", side)
    vectors_nd = np.load(output)
    assert vectors_nd.dtype == np.float32
    assert_close(vectors_nd, loaded.embed(["w1 w2", "w3", "", "w1 w2"], side))
    assert f"{output}: 4 vectors of 16" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out"]


def test_search_command(tmp_path, monkeypatch, capsys):
    run_dir = copy_run(tmp_path)
    query = PAIRS[0].y  # as an x it still stands out by its words
    call(monkeypatch, search, "--run-dir", run_dir, "--top", "2", query, "w5")
    said = capsys.readouterr().out
    assert f"{query}  (of 90 texts)" in said
    assert "w5  (of 90 texts)" in said
    assert said.count("  made\n") == 4  # two results of each, and their source
    (kept,) = (run_dir / "search").iterdir()
    assert np.load(kept).shape == (90, 16)
    call(monkeypatch, search, "--run-dir", run_dir, "--top", "2", query, "w5")  # from what is kept
    assert capsys.readouterr().out.strip() == said.strip()


def test_search_command_in_a_corpus(tmp_path, monkeypatch, capsys):
    run_dir, corpus = copy_run(tmp_path), tmp_path / "corpus.jsonl"
    rows = [{"text": f"w{i}\nw{i}", "source": f"file {i}"} for i in range(3)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    call(monkeypatch, search, "--run-dir", run_dir, "--corpus", corpus, "--top", "9", "w1")
    said = capsys.readouterr().out
    assert "w1  (of 3 texts)" in said  # each once
    assert all(f"file {i}\n    w{i}\n    w{i}\n" in said for i in range(3))
    scores = [float(line.split()[0]) for line in said.splitlines() if "  file " in line]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
