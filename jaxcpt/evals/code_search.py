"""Code search: a function is searched by its documentation or by a web query.

In: `embed_fn` and the folder code_search/. Out: mrr, recall_at_1 and recall_at_10 of each set, for
a model and for BM25 on the same candidates. A set is a folder in BEIR layout, whose whole corpus is
searched (CoSQA), or codesearchnet/, where each function is searched among 1,000, as in the paper.
It knows no model.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxcpt.beir import list_folders, read_documents, read_task
from jaxcpt.errors import UserError
from jaxcpt.evals import EmbedFn, embed_finite, ranks, words
from jaxcpt.lines import read_jsonl

LANGUAGES = ("go", "java", "javascript", "php", "python", "ruby")
CANDIDATES = 1_000
SEED = 0

Search = tuple[Sequence[str], Sequence[str], Sequence[Sequence[int]]]
"""Queries, candidates, and for each query the indices of the candidates that answer it."""


def run(embed_fn: EmbedFn, data: Path, split: str = "test") -> dict[str, float]:
    """`<set>/<score>` and `codesearchnet/<language>/<score>`, by the model's inner products.

    With all six languages also `codesearchnet/average/mrr`.
    """

    def rank(
        queries: Sequence[str], code: Sequence[str], right: Sequence[Sequence[int]]
    ) -> np.ndarray:
        queries_qd = embed_finite(embed_fn, queries, "x")
        return ranks.rank_vectors(queries_qd, embed_finite(embed_fn, code, "y"), right)

    return _score_all(rank, data, split)


def bm25(data: Path, split: str = "test") -> dict[str, float]:
    """The same scores of BM25. It splits words at camelCase and snake_case."""

    def rank(
        queries: Sequence[str], code: Sequence[str], right: Sequence[Sequence[int]]
    ) -> np.ndarray:
        rows = words.score(
            map(words.list_content_words, queries), map(words.list_content_words, code)
        )
        return ranks.rank_scores(rows, right)

    return _score_all(rank, data, split)


def _score_all(rank: Callable[..., np.ndarray], data: Path, split: str) -> dict[str, float]:
    parent = Path(data) / "code_search"
    folders = list_folders(parent)
    languages = [name for name in LANGUAGES if (parent / "codesearchnet" / name).is_dir()]
    if not folders and not languages:
        raise UserError(
            f"{parent}: no set to search; expected <set>/corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv, or codesearchnet/<language>/final/jsonl/test/*.jsonl.gz"
        )
    scores: dict[str, float] = {}
    for folder in folders:
        scores |= _name(folder.name, rank(*_read_whole_corpus(folder, split)))
    for language in languages:
        blocks = _read_codesearchnet(parent / "codesearchnet" / language)
        ranks_q = np.concatenate([rank(*block) for block in blocks])
        scores |= _name(f"codesearchnet/{language}", ranks_q)
    if len(languages) == len(LANGUAGES):
        mrrs = [scores[f"codesearchnet/{language}/mrr"] for language in languages]
        scores["codesearchnet/average/mrr"] = float(np.mean(mrrs))
    return scores


def _read_whole_corpus(folder: Path, split: str) -> Search:
    task = read_task(folder, split)
    row = {name: i for i, name in enumerate(task.document_ids)}
    right = [
        [row[name] for name, grade in grades.items() if grade > 0] for grades in task.qrels.values()
    ]
    if not all(right):
        query = list(task.qrels)[[bool(rows) for rows in right].index(False)]
        raise UserError(f"{folder}/qrels/{split}.tsv: query {query!r} has no right answer; drop it")
    return list(task.queries.values()), [text for _, text in read_documents(folder)], right


def _read_codesearchnet(folder: Path) -> Iterator[Search]:
    """Blocks of 1,000 functions in random order. Like the original, it drops an incomplete block.

    Texts are the tokens that the data has; their code does not contain its documentation.
    """
    paths = sorted((folder / "final" / "jsonl" / "test").glob("*.jsonl*"))
    if not paths:
        raise UserError(f"{folder}: no final/jsonl/test/*.jsonl.gz; unpack the language's archive")
    kinds = {"docstring_tokens": list, "code_tokens": list}
    pairs = [
        (" ".join(row["docstring_tokens"]), " ".join(row["code_tokens"]))
        for path in paths
        for _, row in read_jsonl(path, kinds)
    ]
    if len(pairs) < CANDIDATES:
        raise UserError(
            f"{folder}: {len(pairs)} functions; the protocol ranks each among {CANDIDATES}"
        )
    order = np.random.default_rng(SEED).permutation(len(pairs)).tolist()
    for start in range(0, len(pairs) - CANDIDATES + 1, CANDIDATES):
        queries, code = zip(*(pairs[i] for i in order[start : start + CANDIDATES]), strict=True)
        yield queries, code, [[i] for i in range(CANDIDATES)]


def _name(prefix: str, ranks_q: np.ndarray) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in ranks.mean_of_ranks(ranks_q).items()}
