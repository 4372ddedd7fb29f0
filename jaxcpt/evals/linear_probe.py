"""Linear probes: how well a logistic regression on frozen embeddings classifies sentences.

In: `embed_fn` and the folder linear_probe/. Out: accuracy per task, F1 of MRPC, and the average
accuracy of the seven tasks, for a model and for bags of words. The protocol is SentEval's, which
the paper uses. Both texts of a pair are embedded as x. Only this module imports scikit-learn.
It knows no model.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from jaxcpt.errors import UserError
from jaxcpt.evals import EmbedFn, embed_finite, import_extra, words
from jaxcpt.lines import parse_int, read_tsv

CROSS_VALIDATED = ("mr", "cr", "subj", "mpqa")
TASKS = (*CROSS_VALIDATED, "sst2", "trec", "mrpc")
STRENGTHS = tuple(4.0**power for power in range(-1, 5))
"""Inverse L2 strengths to choose from. On a tie the first, most regularised one is taken.
SentEval tries 1/4 to 8 on vectors that are longer than ours, whose length is 1."""
SEED = 1111

Featurize = Callable[[Sequence[str]], Any]
"""Texts -> a row of features for each: [n, d], dense or sparse."""


@dataclass(frozen=True)
class Labelled:
    """Texts of a task as features, dense or sparse, with their labels."""

    features_nd: Any
    labels_n: np.ndarray


def run(
    embed_fn: EmbedFn, data: Path, tasks: Sequence[str] = TASKS, folds: int = 10
) -> dict[str, float]:
    """Accuracy by task, `mrpc_f1`, and with all seven tasks `average`.

    MR, CR, SUBJ and MPQA: the mean over `folds` folds; the L2 strength of each is chosen by
    another `folds` folds of its training part. SST2: the strength is chosen on the dev split.
    TREC and MRPC: the strength is chosen by cross-validation on the training split.
    """
    return _score(lambda _: lambda texts: embed_finite(embed_fn, texts, "x"), data, tasks, folds)


def bag_of_words(data: Path, tasks: Sequence[str] = TASKS, folds: int = 10) -> dict[str, float]:
    """The same scores of word counts, weighted by rarity in the task's training texts."""
    bags = import_extra("sklearn.feature_extraction.text").TfidfVectorizer
    return _score(
        lambda texts: bags(analyzer=words.list_words).fit(texts).transform, data, tasks, folds
    )


def _score(
    learn: Callable[[Sequence[str]], Featurize], data: Path, tasks: Sequence[str], folds: int
) -> dict[str, float]:
    """learn: takes the training texts of a task and returns what turns texts into features."""
    scores: dict[str, float] = {}
    # The folds use all cores. With BLAS threads on top, a fit was up to 25 times slower.
    with import_extra("threadpoolctl").threadpool_limits(1):
        for task in tasks:
            scores |= _probe(learn, Path(data) / "linear_probe" / task, folds)
    if set(TASKS) <= set(scores):
        scores["average"] = float(np.mean([scores[task] for task in TASKS]))
    return scores


def _probe(
    learn: Callable[[Sequence[str]], Featurize], folder: Path, folds: int
) -> dict[str, float]:
    task = folder.name
    pairs, cut = task == "mrpc", 0 if task == "sst2" else folds
    cross_validated = task in CROSS_VALIDATED
    name = "all.tsv" if cross_validated else "train.tsv"
    labels_n, sides = _read(folder / name, pairs, cut)
    featurize = learn([text for side in sides for text in side])
    train = Labelled(_compare(*map(featurize, sides)), labels_n)
    if cross_validated:
        return {task: cross_validate(train, folds)}

    def load(name: str) -> Labelled:
        labels_n, sides = _read(folder / name, pairs)
        return Labelled(_compare(*map(featurize, sides)), labels_n)

    test = load("test.tsv")
    if task == "sst2":
        strength = STRENGTHS[int(np.argmax(_accuracies(train, load("dev.tsv"))))]
    else:
        strength = choose_by_folds(train, folds)
    predicted_n = _fit(train, strength).predict(test.features_nd)
    scores = {task: float(np.mean(predicted_n == test.labels_n))}
    if task == "mrpc":
        f1_score = import_extra("sklearn.metrics").f1_score
        scores["mrpc_f1"] = float(f1_score(test.labels_n, predicted_n))
    return scores


def cross_validate(rows: Labelled, folds: int) -> float:
    """Mean accuracy over the folds, each with a strength chosen on its own training part."""
    accuracies = []
    for train, test in _split(rows, folds):
        predicted_n = _fit(train, choose_by_folds(train, folds)).predict(test.features_nd)
        accuracies.append(np.mean(predicted_n == test.labels_n))
    return float(np.mean(accuracies))


def choose_by_folds(rows: Labelled, folds: int) -> float:
    """The strength with the highest mean accuracy over the folds."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        accuracies = list(pool.map(lambda parts: _accuracies(*parts), _split(rows, folds)))
    return STRENGTHS[int(np.argmax(np.mean(accuracies, axis=0)))]


def _accuracies(train: Labelled, test: Labelled) -> list[float]:
    """Accuracy on `test` with each of the strengths."""
    models = [_fit(train, strength) for strength in STRENGTHS]
    return [float(np.mean(m.predict(test.features_nd) == test.labels_n)) for m in models]


def _fit(rows: Labelled, strength: float) -> Any:
    regression = import_extra("sklearn.linear_model").LogisticRegression
    return regression(C=strength, max_iter=1000).fit(rows.features_nd, rows.labels_n)


def _split(rows: Labelled, folds: int) -> list[tuple[Labelled, Labelled]]:
    """(training part, test part) of each fold. Rows are shuffled; labels stay in proportion."""
    folding = import_extra("sklearn.model_selection").StratifiedKFold
    parts = folding(folds, shuffle=True, random_state=SEED).split(rows.features_nd, rows.labels_n)
    return [
        (
            Labelled(rows.features_nd[train], rows.labels_n[train]),
            Labelled(rows.features_nd[test], rows.labels_n[test]),
        )
        for train, test in parts
    ]


def _read(path: Path, pairs: bool, folds: int = 0) -> tuple[np.ndarray, list[list[str]]]:
    """Labels [n], and a list of texts, or two lists where the rows are pairs of texts.

    folds: the rows will be cut into this many folds, and the training part of a fold once more.
    """
    columns = ("label", "text_a", "text_b") if pairs else ("label", "text")
    labels, texts = [], []
    for number, (label, *row) in read_tsv(path, columns):
        labels.append(parse_int(label, path, number, "label"))
        texts.append(row)
    if len(set(labels)) < 2:
        raise UserError(
            f"{path}: {len(labels)} rows with {len(set(labels))} labels; a probe needs 2"
        )
    if (most := max(Counter(labels).values())) < 2 * folds:
        raise UserError(
            f"{path}: no label has more than {most} rows; {folds}-fold cross-validation in "
            f"{folds}-fold cross-validation needs {2 * folds} of one"
        )
    return np.array(labels), [list(side) for side in zip(*texts, strict=True)]


def _compare(u_nd: Any, v_nd: Any = None) -> Any:
    """The features of a text, or of a pair of texts: [|u - v|, u * v]."""
    if v_nd is None:
        return u_nd
    if sparse.issparse(u_nd):
        return sparse.hstack([abs(u_nd - v_nd), u_nd.multiply(v_nd)]).tocsr()
    return np.hstack([np.abs(u_nd - v_nd), u_nd * v_nd])
