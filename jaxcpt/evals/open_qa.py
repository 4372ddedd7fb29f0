"""Open-domain question answering: does one of the best 20 or 100 passages contain an answer?

In: `embed_fn` and the folder dpr/ in the layout of the DPR download. Out: answer recall@20 and
@100 of each question set, for a model and for BM25. Answers are matched word by word, as in DPR.
Passages are embedded and searched one block at a time. The module knows no model.
"""

import ast
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxcpt.errors import UserError
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
    words,
)
from jaxcpt.lines import find_file, read_quoted, require_file
from jaxcpt.top_k import top_k
from jaxcpt.vectors import TextWithId

PASSAGES = "wikipedia_split/psgs_w100.tsv"
QUESTIONS = "retriever/qas/{}-test.csv"
SETS = ("nq", "trivia")
CUTS = (20, 100)

Best = tuple[np.ndarray, np.ndarray]
"""Scores [q, k] and row numbers [q, k] of passages, best first."""


def run(embed_fn: EmbedFn, data: Path, corpus_fn: CorpusFn | None = None) -> dict[str, float]:
    """`<set>/answer_recall_at_20` and `_at_100`: the share of questions that are answered there.

    corpus_fn: embeds the passages, once for all sets. None: `embed_blocks`.
    """

    def find(questions: Sequence[str], path: Path) -> Best:
        queries_qd = embed_finite(embed_fn, questions, "x")
        vectors = (corpus_fn or embed_blocks(embed_fn))(path, read_documents(path))
        return top_k(queries_qd, vectors, max(CUTS) + 1)

    return _score_sets(find, data)


def bm25(data: Path) -> dict[str, float]:
    """The same scores for BM25; empty if there are too many passages for its index."""

    def find(questions: Sequence[str], path: Path) -> Best:
        texts = (document.text for document in read_documents(path))
        return words.search(questions, texts, max(CUTS) + 1)

    return _score_sets(find, data, words.can_search)


def _score_sets(
    find: Callable[[Sequence[str], Path], Best],
    data: Path,
    can_search: Callable[[Path, int], bool] = lambda *_: True,
) -> dict[str, float]:
    """The scores of all question sets.

    find: questions, file of passages -> the best passages for each question. can_search: file,
    number of passages -> whether `find` can search that many. If not, there are no scores.
    """
    folder = Path(data) / "dpr"
    files = {folder / QUESTIONS.format(name): name for name in SETS}
    found = [path for path in files if find_file(path)]
    if not found:
        raise DataRefused(
            f"{folder}: no question set; expected {QUESTIONS.format('nq')}, or trivia"
        )
    problems: list[str] = []
    # Read all passages once before embedding, which can take hours, so that errors come early.
    counts = list(read_each(_count_passages, [folder / PASSAGES], problems))
    if not counts or not can_search(folder / PASSAGES, counts[0]):
        return finish({}, problems)
    read = dict(read_each(lambda path: (files[path], read_questions(path)), found, problems))
    if not read:
        return finish({}, problems)
    best = find([text for questions, _ in read.values() for text in questions], folder / PASSAGES)
    scores: dict[str, float] = {}
    start = 0
    for name, (questions, answers) in read.items():
        own = [side[start : start + len(questions)] for side in best]
        start += len(questions)
        for cut, value in measure(folder / PASSAGES, answers, *own).items():
            scores[f"{name}/answer_recall_at_{cut}"] = value
    return finish(scores, problems)


def _count_passages(path: Path) -> int:
    """The number of passages. Raises UserError for a line that does not fit, and for no passage."""
    count = sum(1 for _ in read_passages(path))
    if not count:
        raise UserError(f"{path}: empty; it needs at least one passage")
    return count


def read_documents(path: Path) -> Iterator[TextWithId]:
    """Yields title and text of each passage as one text, as DPR's encoder reads them."""
    for number, (text, title) in enumerate(read_passages(path)):
        yield TextWithId(str(number), f"{title} {text}")


def measure(
    path: Path, answers: Sequence[Sequence[str]], scores_qk: np.ndarray, rows_qk: np.ndarray
) -> dict[int, float]:
    """Recall at each of CUTS. scores_qk, rows_qk: the best passages of each question, in order."""
    wanted = set(rows_qk.ravel().tolist())
    passages = {row: text for row, (text, _) in enumerate(read_passages(path)) if row in wanted}
    tokens = {row: split_like_dpr(text) for row, text in passages.items()}
    ranks_q = np.full(len(answers), max(CUTS) + 1)
    for i, (scores_k, rows_k) in enumerate(zip(scores_qk, rows_qk.tolist(), strict=True)):
        phrases = [split_like_dpr(answer) for answer in answers[i]]
        hits_k = np.array([_holds_any(tokens[row], phrases) for row in rows_k], int)
        # The last entry of a full list shows whether passages beyond the list tie with it.
        order = ranks.settle_ties(scores_k, hits_k, complete=len(rows_k) <= max(CUTS))
        if hits_k[order].any():
            ranks_q[i] = 1 + int(np.argmax(hits_k[order]))
    return {cut: float(np.mean(ranks_q <= cut)) for cut in CUTS}


def split_like_dpr(text: str) -> list[str]:
    """Splits a text as DPR does: into runs of letters, marks and digits, and other characters."""
    normal = unicodedata.normalize("NFD", text)
    regex = import_extra("regex")
    return [word.lower() for word in regex.findall(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", normal)]


def read_questions(path: Path) -> tuple[list[str], list[list[str]]]:
    """The questions and the answers of each, from lines `question<TAB>['answer', ...]`."""
    questions, answers = [], []
    for number, row in _read_rows(path, 2):
        try:
            listed = ast.literal_eval(row[1])
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            listed = None  # the last two errors come from thousands of nested brackets
        if not isinstance(listed, list) or not all(isinstance(a, str) for a in listed):
            raise UserError(f"{path}:{number}: expected a list of answers, found {row[1][:60]}")
        questions.append(row[0])
        answers.append(listed)
    if not questions:
        raise UserError(f"{path}: empty; it needs at least one question")
    if wordless := sum(not any(map(split_like_dpr, listed)) for listed in answers):
        note(
            f"{path}: questions without an answer that has a word: {wordless}; they count as not "
            "answered"
        )
    return questions, answers


def read_passages(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (text, title) of each passage, from lines `id<TAB>text<TAB>title` below a header."""
    for number, (name, text, title) in _read_rows(path, 3):
        if number > 1 or name != "id":
            yield text, title


def _read_rows(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields) from a file of the DPR download."""
    path = require_file(path, f"the DPR download's tab-separated file of {columns} columns")
    for number, row in read_quoted(path):
        if len(row) != columns:
            raise UserError(f"{path}:{number}: expected {columns} columns, found {len(row)}")
        yield number, row


def _holds_any(tokens: Sequence[str], phrases: Iterable[Sequence[str]]) -> bool:
    """Whether the tokens contain one of the phrases. An empty phrase is never contained."""
    return any(
        tokens[start : start + len(phrase)] == phrase
        for phrase in phrases
        if phrase
        for start in range(len(tokens) - len(phrase) + 1)
    )
