"""MTEB's own evaluation loop gives the same numbers as our suites on real data."""

import json
import re
import sys

import numpy as np
import pytest
from conftest import DATA, needs_data
from test_evals_real_data import embed_bag
from tiny_run import copy_run, tiny_run

from jaxcpt import beir, evaluate, lines
from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError, run_command
from jaxcpt.evals import mteb_tasks, retrieval, sts, sts_files

pytest.importorskip("mteb", reason="needs the mteb extra")
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.get_tasks import _TASKS_REGISTRY

FACTS = {
    "description": "A copy on this machine.",
    "dataset": {"path": "nobody/nothing", "revision": "0"},
    "category": "t2t",
    "modalities": ["text"],
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
}


def make_headlines(folder):
    """A task whose data MTEB loads from a folder on this machine."""
    names = ("score", "sentence1", "sentence2")
    rows = lines.read_tsv(DATA / "sts/sts13/headlines.tsv", sts_files.COLUMNS)
    written = [dict(zip(names, (float(s), *texts), strict=True)) for _, (s, *texts) in rows]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, written)))

    class LocalHeadlines(AbsTaskSTS):
        metadata = TaskMetadata(
            name="LocalHeadlines",
            type="STS",
            main_score="cosine_spearman",
            **{**FACTS, "dataset": {"path": str(folder), "revision": "0"}},
        )

    return LocalHeadlines


class LocalSciFact(AbsTaskRetrieval):
    metadata = TaskMetadata(name="LocalSciFact", type="Retrieval", main_score="ndcg_at_10", **FACTS)

    def load_data(self, *_, **__):
        task = beir.read_task(DATA / "retrieval" / "scifact", "test")
        self.corpus = {"test": dict(beir.read_documents(task.folder))}
        self.queries, self.relevant_docs = {"test": task.queries}, {"test": task.qrels}
        self.data_loaded = True


class Unreachable(AbsTaskSTS):
    metadata = TaskMetadata(name="Unreachable", type="STS", main_score="cosine_spearman", **FACTS)

    def load_data(self, *_, **__):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub")


@pytest.fixture(autouse=True)
def tasks_of_this_machine(monkeypatch, tmp_path):
    for task in (LocalSciFact, Unreachable):
        monkeypatch.setitem(_TASKS_REGISTRY, task.metadata.name, task)
    if DATA.is_dir():
        (tmp_path / "headlines").mkdir()
        task = make_headlines(tmp_path / "headlines")
        monkeypatch.setitem(_TASKS_REGISTRY, "LocalHeadlines", task)


def run(tmp_path, *tasks, embed_fn=embed_bag, revision="1"):
    return mteb_tasks.run(embed_fn, tasks, tmp_path / "mteb", "bag", revision)


@needs_data
def test_equals_our_own_suites(tmp_path):
    scores = run(tmp_path, "LocalHeadlines", "LocalSciFact")
    assert list(scores) == ["LocalHeadlines", "LocalSciFact"]
    (tmp_path / "sts").mkdir()
    (tmp_path / "sts" / "sts13").symlink_to(DATA / "sts" / "sts13")
    ours = sts.run(embed_bag, tmp_path)["sts13/headlines/spearman"]
    # Bags of words often tie. MTEB orders ties by float32 rounding; ours count against the model.
    assert scores["LocalHeadlines"] == pytest.approx(ours, abs=5e-4)
    pytest.importorskip("pytrec_eval", reason="needs the evals extra")
    (tmp_path / "retrieval").mkdir()
    (tmp_path / "retrieval" / "scifact").symlink_to(DATA / "retrieval" / "scifact")
    ours = retrieval.run(embed_bag, tmp_path)["scifact/ndcg_at_10"]
    assert scores["LocalSciFact"] == pytest.approx(ours, abs=1e-3)


@needs_data
def test_sides_and_result_files(tmp_path):
    sides = []

    def embed(texts, side):
        sides.append((side, len(texts)))
        return embed_bag(texts, side)

    first = run(tmp_path, "LocalSciFact", embed_fn=embed)
    assert sorted(sides) == [("x", 300), ("y", 5183)]
    again = run(tmp_path, "LocalSciFact", embed_fn=None)  # read from MTEB's result file
    assert again == first
    with pytest.raises(TypeError):
        # The result file of another model is not read.
        run(tmp_path, "LocalSciFact", embed_fn=None, revision="2")


@needs_data
def test_refuses_a_score_that_is_no_number(tmp_path):
    with pytest.raises(
        UserError, match="--mteb LocalHeadlines: MTEB's score is nan; the embeddings"
    ):
        run(tmp_path, "LocalHeadlines", embed_fn=lambda texts, _: np.ones((len(texts), 1)))


def test_refusals(tmp_path, monkeypatch):
    def refuse(text):
        return pytest.raises(UserError, match=re.escape(text))

    with refuse("--mteb STS99: MTEB has no such task ('STS99' not found. Did you mean: 'STS"):
        run(tmp_path, "STS99")
    with refuse("--mteb Unreachable: its data, nobody/nothing, could not be loaded: Could"):
        run(tmp_path, "Unreachable")
    with refuse("2 of 2 embeddings of side y are not finite"):
        model = mteb_tasks.MtebModel(lambda texts, _: np.full((len(texts), 2), np.nan), None)
        model.encode([{"text": ["a", "b"]}], prompt_type="document")
    monkeypatch.setitem(sys.modules, "mteb", None)
    with refuse("this evaluation needs mteb: pip install 'jaxcpt[mteb]'"):
        run(tmp_path, "STS12")


@needs_data
def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    run_dir = copy_run(tmp_path)
    arguments = ["--run-dir", str(run_dir), "--mteb", "LocalHeadlines", "--json"]
    run_command(evaluate.main, [*arguments, str(tmp_path / "scores.json")])
    assert "LocalHeadlines" in capsys.readouterr().out
    score = json.loads((tmp_path / "scores.json").read_text())["scores"]["mteb/LocalHeadlines"]
    (tmp_path / "sts" / "sts13").mkdir(parents=True)
    (tmp_path / "sts" / "sts13" / "headlines.tsv").symlink_to(DATA / "sts/sts13/headlines.tsv")
    embedder = Embedder.load(tiny_run())
    ours = sts.run(embedder.embed, tmp_path)["sts13/headlines/spearman"]
    # The tiny run reads the same few bytes of many headlines, so cosines are 1 up to rounding.
    assert score == pytest.approx(ours, abs=0.02)
    last = json.loads((run_dir / "evals.jsonl").read_text().splitlines()[-1])
    assert last["mteb/LocalHeadlines"] == score
    assert list((run_dir / "mteb").rglob("LocalHeadlines.json"))
