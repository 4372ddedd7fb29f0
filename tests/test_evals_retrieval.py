"""Retrieval: equal to pytrec_eval and to NumPy; ties and the query itself; refusals."""

import json
import re
import sys

import numpy as np
import pytest

from jaxcpt import beir, evals
from jaxcpt.errors import UserError
from jaxcpt.evals import retrieval
from jaxcpt.top_k import top_k
from jaxcpt.vectors import quantize

pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs the evals extra")


def write_task(data, vectors_nd, qrels, queries=None, name="set"):
    """Documents d0, d1, ... whose texts are their numbers."""
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
    # d0 asks and is in the corpus as well; without it, its answer d1 comes first.
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
