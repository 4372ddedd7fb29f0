"""Linear probes: how well a logistic regression on frozen embeddings classifies sentences.

In: `embed_fn` and the folder linear_probe/. Out: accuracy per task, F1 of MRPC, and the average
accuracy of the seven tasks, by SentEval's protocol, as the paper has them. Sole home of
scikit-learn. It knows no model; both texts of a pair are embedded as x.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.config import Refusal
from jaxcpt.evals import EmbedFn, embed_finite, files, import_extra

CROSS_VALIDATED = ("mr", "cr", "subj", "mpqa")
TASKS = (*CROSS_VALIDATED, "sst2", "trec", "mrpc")
STRENGTHS = tuple(4.0**power for power in range(-1, 5))
"""Inverse L2 strengths that are tried; on a tie the first, which is the most regularised.
SentEval's range of 1/4 to 8 is for vectors longer than ours, whose length is 1."""
SEED = 1111


@dataclass(frozen=True)
class Labelled:
    features_nd: np.ndarray
    labels_n: np.ndarray


def run(
    embed_fn: EmbedFn, data: Path, tasks: Sequence[str] = TASKS, folds: int = 10
) -> dict[str, float]:
    """Accuracy by task, `mrpc_f1`, and `average` where all seven are asked for.

    MR, CR, SUBJ and MPQA: mean over `folds` folds, the L2 strength chosen inside each by another
    `folds`. SST2: chosen on dev. TREC and MRPC: chosen by cross-validation on train.
    """
    scores: dict[str, float] = {}
    # The folds use all cores; BLAS threads on top of them made a fit up to 25 times as slow.
    with import_extra("threadpoolctl").threadpool_limits(1):
        for task in tasks:
            scores |= _probe(embed_fn, Path(data) / "linear_probe" / task, folds)
    if set(TASKS) <= set(scores):
        scores["average"] = float(np.mean([scores[task] for task in TASKS]))
    return scores


def _probe(embed_fn: EmbedFn, folder: Path, folds: int) -> dict[str, float]:
    task = folder.name
    if task in CROSS_VALIDATED:
        return {task: cross_validate(_load(embed_fn, folder / "all.tsv", folds=folds), folds)}
    cut = 0 if task == "sst2" else folds
    train = _load(embed_fn, folder / "train.tsv", pairs=task == "mrpc", folds=cut)
    test = _load(embed_fn, folder / "test.tsv", pairs=task == "mrpc")
    if task == "sst2":
        dev = _load(embed_fn, folder / "dev.tsv")
        strength = STRENGTHS[int(np.argmax(_accuracies(train, dev)))]
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
    """(training part, test part) of each fold; shuffled, each with all labels in proportion."""
    folding = import_extra("sklearn.model_selection").StratifiedKFold
    parts = folding(folds, shuffle=True, random_state=SEED).split(rows.features_nd, rows.labels_n)
    return [
        (
            Labelled(rows.features_nd[train], rows.labels_n[train]),
            Labelled(rows.features_nd[test], rows.labels_n[test]),
        )
        for train, test in parts
    ]


def _load(embed_fn: EmbedFn, path: Path, pairs: bool = False, folds: int = 0) -> Labelled:
    """Embeddings and labels of a file. The features of a pair are [|u - v|, u * v].

    folds: into how many the rows will be cut, and their training part again.
    """
    columns = ("label", "text_a", "text_b") if pairs else ("label", "text")
    labels, texts = [], []
    for number, (label, *row) in files.read_tsv(path, columns):
        labels.append(files.parse_int(label, path, number, "label"))
        texts.append(row)
    if len(set(labels)) < 2:
        raise Refusal(f"{path}: {len(labels)} rows with {len(set(labels))} labels; a probe needs 2")
    if (most := max(Counter(labels).values())) < 2 * folds:
        raise Refusal(
            f"{path}: no label has more than {most} rows; {folds}-fold cross-validation in "
            f"{folds}-fold cross-validation needs {2 * folds} of one"
        )
    sides = [embed_finite(embed_fn, side, "x") for side in zip(*texts, strict=True)]
    if pairs:
        u_nd, v_nd = sides
        return Labelled(np.hstack([np.abs(u_nd - v_nd), u_nd * v_nd]), np.array(labels))
    return Labelled(sides[0], np.array(labels))
