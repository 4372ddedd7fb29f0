"""Embedding keeps the order, packing does not change vectors, and the commands work on a run."""

import gzip
import json
from contextlib import contextmanager
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import CLOSE, PAIRS, make_experiment
from tiny_run import PAIRS_FILE, copy_run, tiny_run

import jaxcpt
from jaxcpt import calls, embed, evaluate, search
from jaxcpt.config import Mesh
from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError, run_command
from jaxcpt.experiments import read_experiment, to_json
from jaxcpt.sharding import make_mesh
from jaxcpt.sources import BeirPairs, Data, JsonlPairs, TokenizedPairs
from jaxcpt.update import init_state
from jaxcpt.vectors import VectorFolder, normalise_rows, quantize, truncate

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
    # Coordinates of unit vectors are about 1 / sqrt(d), and some are near zero.
    np.testing.assert_allclose(one, other, rtol=CLOSE["rtol"], atol=1e-6)


def test_unit_vectors_in_order_and_packed_as_alone(embedder, alone):
    vectors_nd = embedder.embed(TEXTS, "y")
    assert vectors_nd.shape == (80, 16)
    assert vectors_nd.dtype == np.float32
    assert_close(np.linalg.norm(vectors_nd, axis=1), np.ones(80))
    assert_close(vectors_nd, alone)
    order = np.random.default_rng(0).permutation(80)
    assert_close(embedder.embed([TEXTS[i] for i in order], "y"), vectors_nd[order])
    assert len(np.unique(vectors_nd.round(4), axis=0)) > 70  # the vectors differ


@pytest.mark.parametrize(
    "changes",
    [
        {
            "model__causal": False,
            "model__pooling": "mean",
            "model__weighted_mean__token_weights": True,
        },
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
    monkeypatch.setattr(calls, "TOKENS_PER_CALL", {"cpu": 64})  # two rows of a device
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
    assert shapes[1][1] * shapes[1][2] * 8 < 2 * sum(
        map(len, embedder.tokenizer.encode(TEXTS, "y"))
    )


@pytest.mark.parametrize(
    ("platform", "texts", "rows"),
    [
        ("tpu", 1, [1]),
        ("tpu", 60, [32]),
        ("tpu", 70, [32, 4]),
        ("tpu", 128, [64]),
        ("tpu", 200, [64, 32, 4]),
        ("cpu", 10, [4, 1]),
        ("cpu", 60, [8, 8, 8, 8]),
        ("cpu", 70, [8, 8, 8, 8, 4]),
    ],
)
def test_calls_have_few_empty_rows_and_few_shapes(platform, texts, rows, monkeypatch):
    monkeypatch.setattr(calls, "find_platform", lambda: platform)
    ids = [np.ones(200, np.int32)] * texts  # a row of 256 tokens for each
    planned = list(calls.plan_calls(ids, calls.list_row_sizes(256), shards=2))
    assert [call.rows for call in planned] == rows
    embedded = [text for call in planned for members in call.members for text in members]
    assert sorted(embedded) == list(range(texts))


def test_with_params_leaves_the_embedder_as_it_was(embedder, alone):
    other = embedder.with_params(jax.tree.map(lambda leaf: 2 * leaf, embedder.params), step=7)
    assert (embedder.step, other.step) == (0, 7)
    assert not np.allclose(other.embed(TEXTS, "y"), alone)
    assert_close(embedder.embed(TEXTS, "y"), alone)
    assert other.embed_cells is embedder.embed_cells  # nothing is compiled again


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
    run_command(module.main, list(map(str, arguments)))


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
    with pytest.raises(UserError, match="no checkpoint of step 5; there are: 3, 6"):
        Embedder.load(tiny_run(), step=5)


def test_load_shares_the_parameters_as_training_did(loaded):
    """Sharded on the 2 x 2 x 2 devices of training, or a copy on each device if `mesh` says so."""
    copies = Embedder.load(tiny_run(), mesh=Mesh())
    assert dict(loaded.mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    held = [bytes_on_first_device(embedder.params) for embedder in (loaded, copies)]
    assert held[0] < held[1] / 3  # fsdp, tensor or both shard everything except the norms
    assert_close(loaded.embed(TEXTS, "y"), copies.embed(TEXTS, "y"))


def bytes_on_first_device(params):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))


def test_load_elsewhere_makes_copies(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    assert Embedder.load(tiny_run()).mesh.size == 1  # where 2 x 2 x 2 do not fit
    with pytest.raises(
        UserError, match="mesh: data 1 x fsdp 2 x tensor 1 does not multiply to the"
    ):
        Embedder.load(tiny_run(), mesh=Mesh(1, 2, 1))


def read_command_output(folder):
    return np.concatenate(list(VectorFolder.open(folder).shards()))


@pytest.mark.parametrize("side", ["x", "y"])
def test_embed_command(tmp_path, monkeypatch, capsys, loaded, side):
    rows = [{"text": "w1 w2"}, {side: "w3", "_id": "three"}, {"text": "", side: "not this"}]
    rows += [{"text": "w1 w2", "title": "w9", "_id": 4}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "out"
    arguments = ["--run-dir", tiny_run(), "--input", tmp_path / "in.jsonl", "--output", output]
    call(monkeypatch, embed, *arguments, "--side", side)
    assert f"{output}: 4 vectors of 16" in capsys.readouterr().out
    vectors_nd = read_command_output(output)
    assert vectors_nd.dtype == np.float32
    assert_close(vectors_nd, loaded.embed(["w1 w2", "w3", "", "w9 w1 w2"], side))
    assert list(VectorFolder.open(output).ids()) == ["1", "three", "3", "4"]


def test_search_command(tmp_path, monkeypatch, capsys):
    run_dir = copy_run(tmp_path)
    capsys.readouterr()  # the output of training, if this test is the first that needs a run
    query = PAIRS[0].y  # also as an x it is found by its words
    call(monkeypatch, search, "--run-dir", run_dir, "--top", "2", query, "w5")
    said = capsys.readouterr().out
    assert f"{query}  (of 90 texts)" in said
    assert "w5  (of 90 texts)" in said
    assert said.count("  made\n") == 4  # two results of each, and their source
    (kept,) = (run_dir / "search").iterdir()
    assert read_command_output(kept).shape == (90, 16)
    call(monkeypatch, search, "--run-dir", run_dir, "--top", "2", query, "w5")  # from what is kept
    assert capsys.readouterr().out.strip() == said.strip()


def test_search_in_a_runs_own_texts_of_any_kind(tmp_path, monkeypatch):
    run_dir = copy_run(tmp_path)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t1\n")
    rows = [json.dumps({"_id": name, "text": name}) + "\n" for name in "abq"]
    (tmp_path / "corpus.jsonl").write_text("".join(rows[:2]))
    (tmp_path / "queries.jsonl").write_text(rows[2])

    def read(source):
        data = Data(train=(source,), heldout=JsonlPairs(str(PAIRS_FILE)))
        experiment = replace(read_experiment(run_dir), data=data)
        (run_dir / "experiment.json").write_text(to_json(experiment))
        return [document.text for document in search.read_own_texts(run_dir)]

    assert read(BeirPairs(str(tmp_path)))[:2] == ["a", "b"]
    monkeypatch.setattr(search, "MOST_OWN_PAIRS", 2)
    with pytest.raises(UserError, match=r"\d+ pairs, too many to search at once; add --corpus"):
        read(BeirPairs(str(tmp_path)))
    with pytest.raises(UserError, match="trained on token ids, which are not texts; add --corpus"):
        read(TokenizedPairs("anywhere"))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl.gz"
    rows = [{"text": f"w{i}\nw{i + 1}", "source": f"file {i}"} for i in range(40)]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def read_results(said):
    return [(float(line.split()[0]), line[7:]) for line in said.splitlines() if "  file " in line]


@pytest.mark.parametrize("options", [[], ["--width", "8"], ["--int8"], ["--width", "8", "--int8"]])
def test_search_command_in_a_corpus(tmp_path, monkeypatch, capsys, corpus, loaded, options):
    """The results are the same if the search or jaxcpt.embed embeds, with cut or int8 vectors."""
    run_dir = copy_run(tmp_path)
    call(monkeypatch, search, "--run-dir", run_dir, "--corpus", corpus, *options, "w1", "w7")
    said = capsys.readouterr().out
    assert "w1  (of 40 texts)" in said
    embed_options = ["--run-dir", run_dir, "--input", corpus, "--output", tmp_path / "vectors"]
    call(monkeypatch, embed, *embed_options, "--side", "y", *options)
    capsys.readouterr()
    call(monkeypatch, search, "--run-dir", run_dir, "--vectors", tmp_path / "vectors", "w1", "w7")
    assert capsys.readouterr().out == said

    vectors_nd = loaded.embed([f"w{i}\nw{i + 1}" for i in range(40)], "y")
    queries_nd = loaded.embed(["w1", "w7"], "x")
    if "--width" in options:
        vectors_nd, queries_nd = truncate(vectors_nd, 8), truncate(queries_nd, 8)
    if "--int8" in options:
        vectors_nd = normalise_rows(quantize(vectors_nd))
    scores_qn = queries_nd @ vectors_nd.T
    want = [score for scores_n in np.sort(scores_qn) for score in scores_n[::-1][:5].tolist()]
    results = read_results(said)
    assert [score for score, _ in results] == pytest.approx(want, abs=1e-3)
    assert results[0][1] == f"file {scores_qn[0].argmax()}"


def test_a_diverged_model_embeds_and_finds_nothing(tokenizer, tmp_path, monkeypatch, capsys):
    """NaN is an error everywhere and never gets a rank."""
    whole = make_embedder(tokenizer)
    broken = whole.with_params(jax.tree.map(lambda leaf: leaf * np.nan, whole.params), step=3)
    with pytest.raises(UserError, match=r"^the embedding of 'w1' is not finite, nor are 1 others"):
        broken.embed(["w1", "w2"], "x")
    monkeypatch.setattr(Embedder, "load", classmethod(lambda *_: broken))
    run_dir = copy_run(tmp_path)
    commands = {
        search: ["w1"],
        embed: ["--input", PAIRS_FILE, "--output", tmp_path / "out", "--side", "y"],
        evaluate: [],
    }
    for command, arguments in commands.items():
        with pytest.raises(SystemExit):
            call(monkeypatch, command, "--run-dir", run_dir, *arguments)
        assert "is not finite, nor are " in capsys.readouterr().err


def test_memory_does_not_grow_with_the_number_or_length_of_texts(tmp_path):
    """The generator gives a million empty texts and 100 huge ones. Both bound the parts."""
    sizes = [sum(map(len, part)) for part in embed.cut_into_parts("x" * 2**20 for _ in range(100))]
    assert max(sizes) <= embed.CHARACTERS_AT_ONCE + 2**20
    assert sum(sizes) == 100 * 2**20
    counts = [len(part) for part in embed.cut_into_parts("" for _ in range(100_000))]
    assert max(counts) == embed.TEXTS_AT_ONCE
    assert sum(counts) == 100_000


def test_a_text_of_100_000_tokens_among_empty_ones(embedder, tokenizer):
    long = " ".join(f"w{i % 150}" for i in range(100_000))
    start = " ".join(f"w{i % 150}" for i in range(40))  # longer than the part that is kept
    vectors_nd = embedder.embed(["", long, "", start], "y")
    assert_close(vectors_nd[1], vectors_nd[3])
    assert_close(vectors_nd[0], vectors_nd[2])


def test_the_bar_counts_texts(embedder, monkeypatch):
    counts = []

    @contextmanager
    def show(title, total, shown):
        assert (title, total, shown) == ("embedding y", 80, True)
        yield counts.append

    monkeypatch.setattr(embed, "show_progress", show)
    monkeypatch.setattr(embed, "TEXTS_AT_ONCE", 33)
    embedder.embed(TEXTS, "y", progress=True)
    assert sum(counts) == 80
    assert len(counts) >= 3
