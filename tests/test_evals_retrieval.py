"""Retrieval equals pytrec_eval and NumPy; ties, queries that are documents, and errors."""

import gzip
import json
import re
import sys

import numpy as np
import pytest

from jaxcpt import beir, evals
from jaxcpt.errors import UserError
from jaxcpt.evals import pair_search, published, retrieval
from jaxcpt.pair import Pair
from jaxcpt.top_k import top_k
from jaxcpt.vectors import quantize

pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs the evals extra")


def write_task(data, vectors_nd, qrels, queries=None, name="set"):
    """Writes a task with documents d0, d1 and so on, whose texts are their numbers."""
    folder = data / "retrieval" / name
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "title": "", "text": str(i)} for i in range(len(vectors_nd))]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"_id": query, "text": query.strip("qd")} for query in queries or qrels]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = [f"{q}\t{d}\t{g}" for q, grades in qrels.items() for d, g in grades.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["\t".join(beir.QRELS), *lines]))
    return folder


def make_embed(queries_qd, documents_nd):
    return lambda texts, side: (queries_qd if side == "x" else documents_nd)[
        [int(text) for text in texts]
    ]


def draw(seed, shape):
    vectors_nd = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors_nd / np.linalg.norm(vectors_nd, axis=-1, keepdims=True)


@pytest.mark.parametrize("documents", [400, 1300])
def test_equals_pytrec_eval_of_all_scores(tmp_path, documents, monkeypatch):
    monkeypatch.setattr(evals, "DOCUMENTS_PER_BLOCK", 300)
    queries_qd, documents_nd = draw(0, (6, 8)), draw(1, (documents, 8))
    rng = np.random.default_rng(2)
    qrels = {
        f"q{i}": {f"d{j}": int(rng.integers(0, 3)) for j in rng.choice(documents, 40, False)}
        for i in range(6)
    }
    write_task(tmp_path, documents_nd, qrels)
    scores = retrieval.run(make_embed(queries_qd, documents_nd), tmp_path)
    sims_qn = queries_qd.astype(np.float64) @ documents_nd.astype(np.float64).T
    run_of = {f"q{i}": {f"d{j}": s for j, s in enumerate(row)} for i, row in enumerate(sims_qn)}
    measures = {"ndcg_cut_10", "recall_100", "map_cut_1000", "recip_rank"}
    rated = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run_of).values()
    want = {name: np.mean([row[name] for row in rated]) for name in measures}
    want["recip_rank"] = np.mean(
        [row["recip_rank"] if row["recip_rank"] >= 0.1 else 0 for row in rated]
    )
    assert scores == {
        "set/ndcg_at_10": pytest.approx(want["ndcg_cut_10"], rel=1e-9),
        "set/recall_at_100": pytest.approx(want["recall_100"], rel=1e-9),
        "set/map": pytest.approx(want["map_cut_1000"], rel=1e-9),
        "set/mrr_at_10": pytest.approx(want["recip_rank"], rel=1e-9),
    }


def test_planted_answers_and_the_known_fraction(tmp_path):
    documents_nd = np.eye(20, dtype=np.float32)
    write_task(tmp_path, documents_nd, {f"q{i}": {f"d{i}": 1} for i in range(20)})
    scores = retrieval.run(make_embed(documents_nd, documents_nd), tmp_path)
    assert set(scores.values()) == {1.0}
    second_qd = documents_nd + 2 * np.roll(documents_nd, 1, axis=1)
    scores = retrieval.run(make_embed(second_qd, documents_nd), tmp_path)
    assert scores["set/mrr_at_10"] == scores["set/map"] == 0.5
    assert scores["set/ndcg_at_10"] == pytest.approx(1 / np.log2(3))
    assert scores["set/recall_at_100"] == 1.0


@pytest.mark.parametrize("documents", [150, 1200])
def test_a_constant_model_finds_its_answers_last(tmp_path, documents):
    vectors_nd = np.repeat(draw(3, (1, 33)), documents, axis=0)
    write_task(tmp_path, vectors_nd, {"q0": {"d0": 1}, "q1": {"d1": 2, "d2": 1}})
    scores = retrieval.run(make_embed(vectors_nd, vectors_nd), tmp_path)
    assert scores["set/mrr_at_10"] == scores["set/ndcg_at_10"] == scores["set/recall_at_100"] == 0
    assert scores["set/map"] < 0.02


def test_the_query_itself_is_no_document(tmp_path):
    # d0 is a query and also a document. Without that document, its answer d1 comes first.
    documents_nd = np.eye(3, dtype=np.float32)
    queries_qd = documents_nd + np.roll(documents_nd, 1, axis=1) / 2
    write_task(tmp_path, documents_nd, {"d0": {"d1": 1}})
    scores = retrieval.run(make_embed(queries_qd, documents_nd), tmp_path)
    assert scores["set/mrr_at_10"] == 1.0


def test_bm25_finds_documents_by_their_stems(tmp_path):
    pytest.importorskip("Stemmer", reason="needs the evals extra")
    texts = ["Parsing dates from text.", "A server of files.", "The weather was fine."]
    folder = write_task(tmp_path, np.zeros((3, 1)), {f"q{i}": {f"d{i}": 1} for i in range(3)})
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ["how is a date parsed", "which file servers are there", "what weather was it"]
    rows = [{"_id": f"q{i}", "text": text} for i, text in enumerate(asked)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert set(retrieval.bm25(tmp_path).values()) == {1.0}


def test_int8_and_cut_vectors_can_be_measured(tmp_path):
    queries_qd, documents_nd = draw(4, (5, 32)), draw(5, (60, 32))
    documents_nd[:5] = queries_qd
    task = beir.read_task(
        write_task(tmp_path, documents_nd, {f"q{i}": {f"d{i}": 1} for i in range(5)}), "test"
    )
    best = top_k(queries_qd, quantize(documents_nd), 60, width=16)
    assert retrieval.measure(task, *best)["ndcg_at_10"] == 1.0


def test_msmarco_is_scored_on_dev_and_the_average_needs_all_of_its_sets(tmp_path):
    documents_nd = np.eye(4, dtype=np.float32)
    embed = make_embed(documents_nd, documents_nd)
    for name in ("msmarco", *retrieval.AVERAGED[:-1]):
        write_task(tmp_path, documents_nd, {"q0": {"d0": 1}}, name=name)
    qrels = tmp_path / "retrieval" / "msmarco" / "qrels"
    (qrels / "test.tsv").rename(qrels / "dev.tsv")
    scores = retrieval.run(embed, tmp_path)
    assert scores["msmarco/mrr_at_10"] == 1.0
    assert "BEIR average/ndcg_at_10" not in scores
    write_task(tmp_path, documents_nd, {"q0": {"d1": 1}}, name=retrieval.AVERAGED[-1])
    scores = retrieval.run(embed, tmp_path)
    last = scores[f"{retrieval.AVERAGED[-1]}/ndcg_at_10"]
    assert 0 < last < 1
    assert scores["BEIR average/ndcg_at_10"] == pytest.approx((10 + last) / 11)


def test_a_relevant_document_with_the_id_of_its_query_counts(tmp_path):
    """Then the ids of queries and of documents are numbers that mean different texts."""
    documents_nd = np.eye(4, dtype=np.float32)
    qrels = {"d0": {"d0": 1}, "d1": {"d1": 1, "d2": 0}}
    write_task(tmp_path, documents_nd, qrels)
    assert set(retrieval.run(make_embed(documents_nd, documents_nd), tmp_path).values()) == {1.0}
    assert set(retrieval.bm25(tmp_path).values()) == {1.0}


def test_queries_that_are_documents_are_told(tmp_path, capsys):
    documents_nd = np.eye(3, dtype=np.float32)
    folder = write_task(tmp_path, documents_nd, {"d0": {"d1": 1}})
    retrieval.run(make_embed(documents_nd, documents_nd), tmp_path)
    assert capsys.readouterr().out == (
        f"{folder}: queries that are documents too: 1; each is left out of its own results, "
        "as in BEIR\n"
    )


def test_absent_documents_and_queries_without_answers_score_as_in_pytrec_eval(tmp_path, capsys):
    queries_qd, documents_nd = draw(6, (3, 8)), draw(7, (30, 8))
    qrels = {"q0": {"d3": 1, "gone": 2}, "q1": {"d4": 0}, "q2": {"lost": 1, "d5": -2}}
    folder = write_task(tmp_path, documents_nd, qrels)
    scores = retrieval.run(make_embed(queries_qd, documents_nd), tmp_path)
    sims_qn = queries_qd.astype(np.float64) @ documents_nd.astype(np.float64).T
    run_of = {f"q{i}": {f"d{j}": s for j, s in enumerate(row)} for i, row in enumerate(sims_qn)}
    measures = {"ndcg_cut_10", "recall_100", "map"}
    rated = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run_of)
    assert len(rated) == 3
    for ours, theirs in retrieval.MEASURES.items():
        want = np.mean([row[theirs] for row in rated.values()])
        assert scores[f"set/{ours}"] == pytest.approx(want, rel=1e-9)
    assert capsys.readouterr().out == (
        f"{folder}: judged documents that are not in corpus.jsonl: 2; they count as never found\n"
        f"{folder}: queries without a relevant document: 1; they score 0\n"
    )


def test_cqadupstack_is_the_mean_of_its_forums(tmp_path):
    documents_nd = np.eye(20, dtype=np.float32)
    first, second = ({"q0": {f"d{i}": 1}} for i in (0, 5))
    write_task(tmp_path, documents_nd, first, name="cqadupstack/android")
    write_task(tmp_path, documents_nd, second, name="cqadupstack/english")
    scores = retrieval.run(make_embed(documents_nd, documents_nd), tmp_path)
    for name in ("ndcg_at_10", "map", "mrr_at_10", "recall_at_100"):
        parts = [scores[f"cqadupstack/{forum}/{name}"] for forum in ("android", "english")]
        assert parts[0] == 1.0
        assert scores[f"cqadupstack/{name}"] == np.mean(parts)
    assert scores["cqadupstack/mrr_at_10"] == 0.5  # all others tie with d5
    caveats = published.list_caveats(tmp_path)
    assert caveats["retrieval/cqadupstack/map"] == "the mean of 2 of 12 forums"


def test_the_twelve_forums_of_mteb_are_cqadupstack_too(tmp_path):
    documents_nd = np.eye(20, dtype=np.float32)
    for i in range(12):
        name = f"cqadupstack-forum{i}"
        write_task(tmp_path, documents_nd, {"q0": {f"d{i % 2}": 1}}, name=name)
    scores = retrieval.run(make_embed(documents_nd, documents_nd), tmp_path)
    parts = [scores[f"cqadupstack-forum{i}/mrr_at_10"] for i in range(12)]
    assert set(parts) == {1.0, 0.0}  # all others tie with d1, and so count before it
    assert scores["cqadupstack/mrr_at_10"] == pytest.approx(np.mean(parts), rel=1e-12)
    assert not [name for name in published.list_caveats(tmp_path) if "cqadupstack" in name]


def test_a_set_that_does_not_fit_leaves_the_scores_of_the_others(tmp_path):
    documents_nd = np.eye(4, dtype=np.float32)
    for name in "abc":
        folder = write_task(tmp_path, documents_nd, {"q0": {"d0": 1}}, name=name)
        if name == "b":
            (folder / "queries.jsonl").write_text('{"_id": 7, "text": "0"}')
    with pytest.raises(evals.DataRefused, match=r"queries.jsonl:1: expected an object") as refused:
        retrieval.run(make_embed(documents_nd, documents_nd), tmp_path)
    assert {name.partition("/")[0] for name in refused.value.scores} == {"a", "c"}


def test_a_corpus_beside_its_gzipped_copy_is_one_set(tmp_path):
    documents_nd = np.eye(4, dtype=np.float32)
    folder = write_task(tmp_path, documents_nd, {"q0": {"d0": 1}})
    corpus = (folder / "corpus.jsonl").read_bytes()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus))
    (folder / "corpus.jsonl.bak").write_text("not a corpus")
    assert beir.list_folders(tmp_path / "retrieval") == [folder]


@pytest.mark.parametrize("text", ["the", "", "…", "😀", "<="])
def test_bm25_of_a_corpus_without_a_word_finds_nothing(tmp_path, text):
    folder = write_task(tmp_path, np.zeros((2, 1)), {"q0": {"d0": 1}})
    rows = [{"_id": f"d{i}", "text": text} for i in range(2)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scores = retrieval.bm25(tmp_path)
    assert scores["set/mrr_at_10"] == 0.5  # the other document ties and comes first
    pairs = [Pair("some query", text, "s"), Pair("other", text, "s")]
    assert pair_search.bm25(pairs)["mrr"] == 1.0  # a single candidate


def refuse(text):
    return pytest.raises(UserError, match=re.escape(text))


def test_refusals(tmp_path, monkeypatch):
    documents_nd = np.eye(4, dtype=np.float32)
    embed = make_embed(documents_nd, documents_nd)
    with refuse(f"{tmp_path / 'retrieval'}: no folder with a corpus.jsonl; expected <set>/corpus"):
        retrieval.run(embed, tmp_path)
    folder = write_task(tmp_path, documents_nd, {"q0": {"d0": 1}})
    with refuse(f"{folder / 'qrels' / 'dev.tsv'}: no such file, nor dev.tsv.gz"):
        retrieval.run(embed, tmp_path, split="dev")
    documents_nd[2, 2] = np.nan
    with refuse("1 of 4 embeddings of side y are not finite, first that of '2'"):
        retrieval.run(embed, tmp_path)
    documents_nd[2, 2] = 1
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with refuse("this evaluation needs pytrec_eval: pip install 'jaxcpt[evals]'"):
        retrieval.run(embed, tmp_path)
