"""Code search: finds functions by their documentation or by web queries.

In: `embed_fn` and the folder code_search/. Out: mrr, recall_at_1 and recall_at_10 of each set, for
a model and for BM25 on the same candidates. A set in BEIR layout, such as CoSQA, is searched as a
whole. In codesearchnet/, each function is searched among 1,000 and among 10,000 functions, as in
the paper. A query without a right answer scores 0. The module knows no model.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from jaxcpt.beir import (
    Task,
    describe_judgements,
    list_folders,
    name_scores,
    read_documents,
    read_task,
)
from jaxcpt.errors import UserError
from jaxcpt.evals import (
    DataRefused,
    EmbedFn,
    embed_finite,
    finish,
    name_files,
    note,
    ranks,
    read_each,
    show_sets,
    words,
)
from jaxcpt.lines import read_jsonl

LANGUAGES_FOLDER = "codesearchnet"
LANGUAGES = ("go", "java", "javascript", "php", "python", "ruby")
CODESEARCHNET = {1_000: "codesearchnet", 10_000: "codesearchnet_10k"}
"""The numbers of candidates among which a function is searched, and the names of these scores. The
paper reports both."""
SEED = 0

Right = Sequence[Sequence[int]]
"""For each query, the indices of the candidates that answer it."""
Rank = Callable[[slice, Right], np.ndarray]
"""A slice of the queries and candidates, the right answers -> the ranks [q] within the slice."""
Prepare = Callable[[Sequence[str], Sequence[str]], Rank]
"""All queries and all candidates of a set -> a function that ranks a slice of them."""


def run(embed_fn: EmbedFn, data: Path, split: str = "test") -> dict[str, float]:
    """Scores of the model's inner products: `<set>/<score>`, `codesearchnet/<language>/<score>`.

    `codesearchnet_10k/...` is among 10,000 candidates, for languages that have as many. If all six
    languages are there, it also has `codesearchnet/average/mrr`.
    """

    def prepare(queries: Sequence[str], code: Sequence[str]) -> Rank:
        queries_qd = embed_finite(embed_fn, queries, "x")
        code_nd = embed_finite(embed_fn, code, "y")
        return lambda part, right: ranks.rank_vectors(queries_qd[part], code_nd[part], right)

    return _score_all(prepare, data, split)


def bm25(data: Path, split: str = "test") -> dict[str, float]:
    """The same scores for BM25. It splits words at camelCase and snake_case."""

    def prepare(queries: Sequence[str], code: Sequence[str]) -> Rank:
        query_words, code_words = (
            [words.list_content_words(text) for text in texts] for texts in (queries, code)
        )
        return lambda part, right: ranks.rank_scores(
            words.score(query_words[part], code_words[part]), right
        )

    return _score_all(prepare, data, split)


def _score_all(prepare: Prepare, data: Path, split: str) -> dict[str, float]:
    parent = Path(data) / "code_search"
    folders = [path for path in list_folders(parent) if path.parent.name != LANGUAGES_FOLDER]
    languages = [
        parent / LANGUAGES_FOLDER / name
        for name in LANGUAGES
        if (parent / LANGUAGES_FOLDER / name).is_dir()
    ]
    if not folders and not languages:
        raise DataRefused(
            f"{parent}: no set to search; expected <set>/corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv, or codesearchnet/<language>/final/jsonl/test/*.jsonl.gz"
        )
    scores: dict[str, float] = {}
    problems: list[str] = []
    with show_sets("code_search", [*folders, *languages]) as sets:
        whole = islice(sets, len(folders))
        for task in read_each(lambda folder: read_task(folder, split), whole, problems):
            name = task.folder.relative_to(parent).as_posix()
            scores |= name_scores({name: _score_task(prepare, task)})
        for language, pairs in read_each(_read_codesearchnet, sets, problems):
            scores |= _score_language(prepare, language, pairs)
    for protocol in CODESEARCHNET.values():
        keys = [f"{protocol}/{language}/mrr" for language in LANGUAGES]
        if set(keys) <= scores.keys():
            scores[f"{protocol}/average/mrr"] = float(np.mean([scores[key] for key in keys]))
    return finish(scores, problems)


def _score_task(prepare: Prepare, task: Task) -> dict[str, float]:
    """Scores of a set in which each query searches the whole corpus."""
    row = {name: i for i, name in enumerate(task.document_ids)}
    right = [
        [row[name] for name, grade in grades.items() if grade > 0 and name in row]
        for grades in task.qrels.values()
    ]
    for text in describe_judgements(task):
        note(text)
    code = [text for _, text in read_documents(task.folder)]
    rank = prepare(list(task.queries.values()), code)
    return ranks.mean_of_ranks(rank(slice(None), right))


def _score_language(
    prepare: Prepare, language: str, pairs: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Scores of a language, in which each function is searched within its block of functions.

    Like the original protocol, it drops the last block if that is incomplete.
    """
    order = np.random.default_rng(SEED).permutation(len(pairs)).tolist()
    most = max(len(pairs) // count * count for count in CODESEARCHNET)
    queries, code = zip(*(pairs[i] for i in order[:most]), strict=True)
    rank = prepare(queries, code)
    scores: dict[str, float] = {}
    for count, protocol in CODESEARCHNET.items():
        blocks = [
            rank(slice(start, start + count), [[i] for i in range(count)])
            for start in range(0, len(pairs) - count + 1, count)
        ]
        if blocks:
            found = ranks.mean_of_ranks(np.concatenate(blocks))
            scores |= name_scores({f"{protocol}/{language}": found})
        else:
            note(f"codesearchnet/{language}: {len(pairs)} functions; not ranked among {count:,}")
    return scores


def _read_codesearchnet(folder: Path) -> tuple[str, list[tuple[str, str]]]:
    """A language, and (documentation, code) of its functions.

    The texts are joined from the tokens in the data. The code does not contain its documentation.
    """
    paths = (folder / "final" / "jsonl" / "test").glob("*.jsonl*")
    files = name_files([path for path in paths if path.suffix in (".jsonl", ".gz")], ".jsonl")
    if not files:
        raise UserError(f"{folder}: no final/jsonl/test/*.jsonl.gz; unpack the language's archive")
    kinds = {"docstring_tokens": list, "code_tokens": list}
    pairs = []
    for path in files.values():
        for number, row in read_jsonl(path, kinds):
            if not all(isinstance(token, str) for field in kinds for token in row[field]):
                raise UserError(f"{path}:{number}: a token is not a text; both lists hold texts")
            pairs.append((" ".join(row["docstring_tokens"]), " ".join(row["code_tokens"])))
    if len(pairs) < min(CODESEARCHNET):
        raise UserError(
            f"{folder}: {len(pairs)} functions; the protocol ranks each among {min(CODESEARCHNET)}"
        )
    return folder.name, pairs
