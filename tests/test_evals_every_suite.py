"""For every suite, a vector that is not finite is an error, and data that does not fit gives an
error of one line."""

import shutil
from typing import get_args

import numpy as np
import pytest
from test_evals_code_search import write_language
from test_evals_linear_probe import write_rows
from test_evals_open_qa import write_dpr
from test_evals_retrieval import write_task
from test_evals_sts import write_subset
from tiny_run import copy_run, tiny_run

from jaxcpt import evaluate
from jaxcpt.config import SuiteName
from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError
from jaxcpt.evals import published, retrieval
from jaxcpt.evals.suites import SUITES, run_suites
from jaxcpt.metrics import read_rows
from jaxcpt.mining.decontaminate import FAMILIES
from jaxcpt.vectors import Storage, fill

SIDES = {"linear_probe": "x", "sts": "x", "retrieval": "xy", "code_search": "xy", "open_qa": "xy"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    labels, texts = [0, 1] * 20, [f"w{i}" for i in range(40)]
    for task in ("mr", "mrpc"):
        both = [texts, texts[::-1]] if task == "mrpc" else [texts]
        for name in ("all", "train", "dev", "test"):
            write_rows(folder / "linear_probe" / task / f"{name}.tsv", labels, *both)
    write_subset(folder / "sts" / "sts14", "one", range(40), texts)
    write_task(folder, np.zeros((30, 1)), {f"q{i}": {f"d{i}": 1} for i in range(30)})
    write_language(folder, "go", 1_000)
    write_dpr(folder, [f"passage {i}" for i in range(30)], [("where?", ["7"])])
    return folder


def test_every_list_of_suites_is_the_same():
    """The configuration imports nothing, and mining imports no JAX, so each has its own list."""
    assert list(SUITES) == list(SIDES) == list(get_args(SuiteName))
    assert [suite.name for suite in SUITES.values()] == list(SUITES)
    assert sorted(suite.folder for suite in SUITES.values()) == sorted(FAMILIES)


def test_published_figures_are_of_our_scores_and_name_their_source():
    for source, figures in published.BY_SOURCE.items():
        assert source.startswith("arXiv ")
        for name, systems in figures.items():
            assert name.partition("/")[0] in SUITES
            assert all(0 < value < 1 for value in systems.values())
    assert published.FIGURES["retrieval/scifact/ndcg_at_10"] == {"BM25": 0.665, "cpt-text S": 0.654}
    averaged = [published.FIGURES[f"retrieval/{name}/ndcg_at_10"] for name in retrieval.AVERAGED]
    assert np.mean([row["cpt-text S"] for row in averaged]) == pytest.approx(0.422, abs=5e-4)


def test_an_unknown_suite_is_refused(data):
    with pytest.raises(UserError, match=r"^suite stss: there is no such suite; choose linear_pro"):
        run_suites(None, data, ["stss"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("suite", "side"), [(suite, side) for suite, sides in SIDES.items() for side in sides]
)
def test_one_value_that_is_not_finite_is_an_error(data, suite, side, value):
    def embed(texts, of_side):
        vectors_nd = np.random.default_rng(0).normal(size=(len(texts), 3)).astype(np.float32)
        if of_side == side:
            vectors_nd[-1, 1] = value
        return vectors_nd

    with pytest.raises(UserError, match=rf"embeddings of side {side} are not finite"):
        run_suites(embed, data, [suite])


@pytest.mark.parametrize("suite", [s.name for s in SUITES.values() if s.has_corpora])
def test_a_stored_vector_that_is_not_finite_is_an_error(data, suite, tmp_path):
    def keep(path, documents):
        def embed(texts):
            return np.full((len(texts), 3), np.nan, np.float32)

        return fill(tmp_path, {}, documents, embed, Storage()).shards()

    with pytest.raises(UserError, match="document 0: its vector is not finite"):
        run_suites(lambda texts, _: np.ones((len(texts), 3)), data, [suite], keep)


@pytest.fixture
def refused(monkeypatch, refuse):
    """A function that runs `jaxcpt.evaluate` on a run and returns its error."""

    def call(run_dir, data, suite, *options):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
        return refuse(evaluate, "--run-dir", run_dir, "--data", data, "--suite", suite, *options)

    return call


@pytest.mark.parametrize("suite", SIDES)
def test_a_diverged_run_is_refused_by_the_command(data, suite, tmp_path, monkeypatch, refused):
    run_dir = copy_run(tmp_path)
    before = read_rows(run_dir / "evals.jsonl")
    load = Embedder.load

    def load_broken(*arguments):
        embedder = load(*arguments)
        embed_cells = embedder.embed_cells
        embedder.embed_cells = lambda params, cells: embed_cells(params, cells) * np.nan
        return embedder

    monkeypatch.setattr(Embedder, "load", load_broken)
    said = refused(run_dir, data, suite)
    assert said.startswith("the embedding of ")
    assert said.endswith("the model has diverged: take an earlier step than 6")
    assert read_rows(run_dir / "evals.jsonl") == before


GO = "code_search/codesearchnet/go/final/jsonl/test/go_test_0.jsonl.gz"
PROBE = "linear_probe/mr/all.tsv"
QRELS = "retrieval/set/qrels/test.tsv"


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        (PROBE, None, ": no such file, nor all.tsv.gz; expected tab-separated lines below the "
         "header label text"),
        (PROBE, "label\ttext\n1\tfine\ngood\tbad\n", ":3: label must be an integer, found 'good'"),
        (PROBE, "label\ttext\n", ": 0 rows with 0 labels; a probe needs 2"),
        ("sts/sts14/one.tsv", "score\ttext_a\ttext_b\n5\talone\n",
         ":2: expected 3 fields (score, text_a, text_b), found 2"),
        ("retrieval/set/queries.jsonl", None,
         ": no such file, nor queries.jsonl.gz; expected one JSON object a line with _id, text"),
        ("retrieval/set/corpus.jsonl", '{"_id": "d0", "text": "a"}\n' * 2,
         ":2: the id 'd0' occurred before; ids must be unique"),
        (QRELS, "query-id\tcorpus-id\tscore\nq1\td99\t1\n",
         ": no relevant document is in corpus.jsonl; is it of another corpus?"),
        (QRELS, "query-id\tcorpus-id\tscore\n",
         ": the split is empty; it needs at least one judged document"),
        (GO, b"not gzip",
         ": broken gzip after line 0 (Not a gzipped file (b'no')); copy the file again"),
        ("dpr/retriever/qas/nq-test.csv", "where?\tseven\n",
         ":1: expected a list of answers, found seven"),
    ],
)  # fmt: skip
def test_the_command_refuses_data_that_does_not_fit(data, tmp_path, refused, file, content, line):
    copy = shutil.copytree(data, tmp_path / "data")
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    suite = file.partition("/")[0].replace("dpr", "open_qa")
    run_dir = copy_run(tmp_path)  # it gets the scores of the sets that fit
    assert refused(run_dir, copy, suite) == f"{copy / file}{line}"


def test_the_command_names_the_steps_that_there_are(data, refused):
    said = refused(tiny_run(), data, "sts", "--step", 4)
    assert said == f"{tiny_run() / 'checkpoints'}: no checkpoint of step 4; there are: 3, 6"
