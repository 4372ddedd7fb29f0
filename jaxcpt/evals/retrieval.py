"""Search in folders of BEIR layout: nDCG@10, MRR@10, recall@100 and MAP of the top 1,000.

In: `embed_fn` and the folder retrieval/. Out: four scores of each set, for a model and for BM25, as
the reference library pytrec_eval computes them. Documents are embedded and searched one block at a
time, so a corpus need not fit in memory. Only this module imports pytrec_eval. It knows no model.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxcpt.beir import (
    CORPUS,
    Task,
    add_means,
    describe_judgements,
    list_folders,
    name_scores,
    read_documents,
    read_task,
)
from jaxcpt.evals import (
    CorpusFn,
    DataRefused,
    EmbedFn,
    embed_blocks,
    embed_finite,
    finish,
    import_extra,
    note,
    ranks,
    read_each,
    show_sets,
    words,
)
from jaxcpt.top_k import top_k
from jaxcpt.vectors import TextWithId

DEPTH = 1_000
SPLITS = {"msmarco": "dev"}
"""Sets with another split than test. MS MARCO's test split has judgements for only 43 queries."""
AVERAGED = (
    "arguana",
    "climate-fever",
    "dbpedia-entity",
    "fever",
    "fiqa",
    "hotpotqa",
    "nfcorpus",
    "quora",
    "scifact",
    "trec-covid",
    "webis-touche2020",
)
"""The BEIR sets over which the paper averages."""
# Our names of measures, and those of pytrec_eval.
MEASURES = {"ndcg_at_10": "ndcg_cut_10", "recall_at_100": "recall_100", "map": "map"}


def run(
    embed_fn: EmbedFn,
    data: Path,
    corpus_fn: CorpusFn | None = None,
    split: str | None = None,
) -> dict[str, float]:
    """`<set>/ndcg_at_10`, `mrr_at_10`, `recall_at_100` and `map`, by the model's inner products.

    `BEIR average/ndcg_at_10` is added if all sets of the paper's average are there. split: the
    split of every set; None: test, or that in SPLITS. corpus_fn: embeds the documents; None:
    `embed_blocks`.
    """
    embed_corpus = corpus_fn or embed_blocks(embed_fn)

    def find(task: Task) -> dict[str, float]:
        for text in describe_judgements(task):
            note(text)
        if count := len(find_themselves(task)):
            note(
                f"{task.folder}: queries that are documents too: {count}; each is left out of its "
                "own results, as in BEIR"
            )
        texts = map(TextWithId._make, read_documents(task.folder))
        vectors = embed_corpus(task.folder / CORPUS, texts)
        queries_qd = embed_finite(embed_fn, list(task.queries.values()), "x")
        return measure(task, *top_k(queries_qd, vectors, DEPTH + 2))

    return _score_sets(find, data, split)


def bm25(data: Path, split: str | None = None) -> dict[str, float]:
    """The same scores for BM25, with the settings of the BEIR paper."""

    def find(task: Task) -> dict[str, float]:
        if not words.can_search(task.folder, len(task.document_ids)):
            return {}
        texts = (text for _, text in read_documents(task.folder))
        return measure(task, *words.search(list(task.queries.values()), texts, DEPTH + 2))

    return _score_sets(find, data, split)


def _score_sets(
    find: Callable[[Task], dict[str, float]], data: Path, split: str | None
) -> dict[str, float]:
    """The scores of all sets. A set of several corpora gets a mean. find: a task -> its scores."""
    parent = Path(data) / "retrieval"
    folders = list_folders(parent)
    if not folders:
        raise DataRefused(
            f"{parent}: no folder with a corpus.jsonl; expected "
            f"<set>/corpus.jsonl, queries.jsonl and qrels/{split or 'test'}.tsv"
        )
    by_set: dict[str, dict[str, float]] = {}
    problems: list[str] = []

    def read(folder: Path) -> Task:
        return read_task(folder, split or SPLITS.get(folder.name, "test"))

    with show_sets("retrieval", folders) as sets:
        for task in read_each(read, sets, problems):
            if scores := find(task):
                by_set[task.folder.relative_to(parent).as_posix()] = scores
    names = [folder.relative_to(parent).as_posix() for folder in folders]
    return finish(_name(add_means(by_set, names)), problems)


def find_themselves(task: Task) -> dict[str, str]:
    """The id of the document that is the query itself, by query. As in BEIR, both ids are equal.

    If a judgement says that such a document is relevant, then equal ids of queries and documents
    mean different texts, and the result is empty.
    """
    same = task.queries.keys() & set(task.document_ids)
    if any(task.qrels[query].get(query, 0) > 0 for query in same):
        return {}
    return {query: query for query in same}


def measure(task: Task, scores_qk: np.ndarray, rows_qk: np.ndarray) -> dict[str, float]:
    """The four scores. scores_qk, rows_qk: the best k documents of each query, best first.

    k is DEPTH + 2, or the size of the corpus if that is smaller. One of the two additional
    documents replaces the query itself, which does not count. The other one shows whether documents
    beyond DEPTH have the same score as the last one.
    """
    themselves = find_themselves(task)
    complete = rows_qk.shape[1] == len(task.document_ids)
    run_of: dict[str, list[str]] = {}
    for (query, grades), scores_k, rows_k in zip(
        task.qrels.items(), scores_qk, rows_qk, strict=True
    ):
        names = [task.document_ids[row] for row in rows_k]
        grades_k = np.array([grades.get(name, 0) for name in names])
        order = ranks.settle_ties(scores_k, grades_k, complete)
        run_of[query] = [names[i] for i in order if names[i] != themselves.get(query)][:DEPTH]
    rated = _rate(task, run_of, set(MEASURES.values()))
    first_ten = {query: names[:10] for query, names in run_of.items()}
    return {
        **{ours: rated[theirs] for ours, theirs in MEASURES.items()},
        "mrr_at_10": _rate(task, first_ten, {"recip_rank"})["recip_rank"],
    }


def _rate(task: Task, run_of: dict[str, list[str]], measures: set[str]) -> dict[str, float]:
    """Means over the queries. pytrec_eval gets ranks instead of scores, so there are no ties."""
    evaluator = import_extra("pytrec_eval").RelevanceEvaluator(task.qrels, measures)
    rated = evaluator.evaluate(
        {query: {name: -float(i) for i, name in enumerate(run_of[query])} for query in run_of}
    )
    # pytrec_eval leaves out a query for which nothing was found. It counts as 0 here.
    return {name: sum(row[name] for row in rated.values()) / len(task.qrels) for name in measures}


def _name(by_set: dict[str, dict[str, float]]) -> dict[str, float]:
    """Scores by `<set>/<score>`, with BEIR's average if all of its sets have scores."""
    keys = [f"{name}/ndcg_at_10" for name in AVERAGED]
    scores = name_scores(by_set)
    if set(keys) <= scores.keys():
        scores["BEIR average/ndcg_at_10"] = float(np.mean([scores[key] for key in keys]))
    return scores
