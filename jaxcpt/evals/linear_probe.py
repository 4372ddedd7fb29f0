"""Linear probes: classifies sentences by a logistic regression on frozen embeddings.

In: `embed_fn` and the folder linear_probe/. Out: accuracy per task, F1 of MRPC, and the average
accuracy of the seven tasks, for a model and for bags of words. The protocol is that of SentEval,
which the paper uses. Both texts of a pair are embedded as x. Only this module imports scikit-learn.
It knows no model.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from jaxcpt.errors import UserError
from jaxcpt.evals import (
    DataRefused,
    EmbedFn,
    embed_finite,
    finish,
    import_extra,
    read_each,
    show_sets,
    words,
)
from jaxcpt.lines import parse_int, read_tsv

CROSS_VALIDATED = ("mr", "cr", "subj", "mpqa")
TASKS = (*CROSS_VALIDATED, "sst2", "trec", "mrpc")
HIGHEST_LABEL = 1_000_000
STRENGTHS = tuple(4.0**power for power in range(-1, 5))
"""Inverse L2 strengths to choose from. If several are equally good, the first one, with the most
regularisation, is taken. SentEval tries 1/4 to 8, on vectors that are longer than unit vectors."""
SEED = 1111

FEWEST = 4
"""Fewest rows of the second most frequent label. With fewer, a fold could have only one label."""
MRPC_LABELS = {0, 1}
"""Label 1 is a paraphrase. F1 is computed for that label."""

Featurize = Callable[[Sequence[str]], Any]
"""Texts -> their features [n, d], dense or sparse."""


@dataclass(frozen=True)
class Labelled:
    """Features of a task's texts, dense or sparse, with their labels."""

    features_nd: Any
    labels_n: np.ndarray

    def take(self, rows: np.ndarray) -> "Labelled":
        return Labelled(self.features_nd[rows], self.labels_n[rows])


class Split(NamedTuple):
    """A file of a task: labels [n], and one list of texts, or two lists if the rows are pairs."""

    labels_n: np.ndarray
    sides: list[list[str]]


def run(
    embed_fn: EmbedFn, data: Path, tasks: Sequence[str] | None = None, folds: int = 10
) -> dict[str, float]:
    """Accuracy by task, `mrpc_f1`, and `average` if all seven tasks are there.

    MR, CR, SUBJ and MPQA: the mean over `folds` folds; the L2 strength of each is chosen by
    another `folds` folds of its training part. SST2: the strength is chosen on the dev split.
    TREC and MRPC: the strength is chosen by cross-validation on the training split.

    tasks: None means those that have a folder.
    """
    return _score(lambda _: lambda texts: embed_finite(embed_fn, texts, "x"), data, tasks, folds)


def bag_of_words(
    data: Path, tasks: Sequence[str] | None = None, folds: int = 10
) -> dict[str, float]:
    """The same scores for word counts, weighted by their rarity in the task's training texts."""
    bags = import_extra("sklearn.feature_extraction.text").TfidfVectorizer

    def learn(texts: Sequence[str]) -> Featurize:
        if not any(map(words.list_words, texts)):  # scikit-learn refuses texts without a word
            return lambda texts: sparse.csr_matrix((len(texts), 1))
        return bags(analyzer=words.list_words).fit(texts).transform

    return _score(learn, data, tasks, folds)


def _score(
    learn: Callable[[Sequence[str]], Featurize],
    data: Path,
    tasks: Sequence[str] | None,
    folds: int,
) -> dict[str, float]:
    """learn: a function from the training texts of a task to a function that computes features."""
    scores: dict[str, float] = {}
    problems: list[str] = []
    folders = list_folders(data, tasks)
    # The folds already use all cores. With BLAS threads too, a fit was up to 25 times slower.
    limits = import_extra("threadpoolctl").threadpool_limits
    with limits(1), show_sets("linear_probe", folders) as sets:
        for task, splits in read_each(partial(read_splits, folds=folds), sets, problems):
            scores |= _probe(learn, task, splits, folds)
    return finish(add_average(scores), problems)


def add_average(scores: dict[str, float]) -> dict[str, float]:
    """Adds the mean accuracy of the seven tasks if all of them are there."""
    if not set(TASKS) <= set(scores):
        return scores
    return scores | {"average": float(np.mean([scores[task] for task in TASKS]))}


def list_folders(data: Path, tasks: Sequence[str] | None = None) -> list[Path]:
    """The folders of `tasks`; None means all tasks that have a folder. Raises DataRefused."""
    parent = Path(data) / "linear_probe"
    folders = [parent / task for task in tasks or TASKS if tasks or (parent / task).is_dir()]
    if not folders:
        raise DataRefused(f"{parent}: none of the folders {', '.join(TASKS)} is there")
    return folders


def read_splits(folder: Path, folds: int) -> tuple[str, dict[str, Split]]:
    """A task's name, and its files by name, such as "all", or "train" and "test".

    folds: as in `run`. Raises UserError for a label that does not occur in the training split.
    """
    task = folder.name
    if task in CROSS_VALIDATED:
        return task, {"all": _read(folder / "all.tsv", folds=folds)}
    splits = {"train": _read(folder / "train.tsv", folds=0 if task == "sst2" else folds)}
    known = set(splits["train"].labels_n.tolist())
    for name in ("dev", "test") if task == "sst2" else ("test",):
        splits[name] = _read(folder / f"{name}.tsv")
        if new := sorted(set(splits[name].labels_n.tolist()) - known):
            raise UserError(f"{folder / name}.tsv: no row of train.tsv has the label {new[0]}")
    if task == "mrpc" and known != MRPC_LABELS:
        raise UserError(
            f"{folder / 'train.tsv'}: its labels are {sorted(known)[:9]}; expected 1 for a "
            "paraphrase and 0"
        )
    return task, splits


def _probe(
    learn: Callable[[Sequence[str]], Featurize], task: str, splits: dict[str, Split], folds: int
) -> dict[str, float]:
    first = next(iter(splits.values()))
    featurize = learn([text for side in first.sides for text in side])
    rows = {
        name: Labelled(_compare(*map(featurize, split.sides)), split.labels_n)
        for name, split in splits.items()
    }
    if task in CROSS_VALIDATED:
        return {task: cross_validate(rows["all"], folds)}
    if task == "sst2":
        strength = STRENGTHS[int(np.argmax(_accuracies(rows["train"], rows["dev"])))]
    else:
        strength = choose_by_folds(rows["train"], folds)
    test = rows["test"]
    predicted_n = _fit(rows["train"], strength).predict(test.features_nd)
    scores = {task: float(np.mean(predicted_n == test.labels_n))}
    if task == "mrpc":
        f1_score = import_extra("sklearn.metrics").f1_score
        scores["mrpc_f1"] = float(f1_score(test.labels_n, predicted_n))
    return scores


def cross_validate(rows: Labelled, folds: int) -> float:
    """Mean accuracy over the folds. The strength is chosen on each fold's training part."""
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
    """(training part, test part) of each fold."""
    parts = cut_into_folds(rows.labels_n, folds)
    return [(rows.take(train), rows.take(test)) for train, test in parts]


def cut_into_folds(labels_n: np.ndarray, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The training rows and the test rows of each fold. Rows are shuffled, and all folds have the
    same proportions of labels."""
    folding = import_extra("sklearn.model_selection").StratifiedKFold
    splitter = folding(folds, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(splitter.split(labels_n, labels_n))


def _read(path: Path, folds: int = 0) -> Split:
    """Reads a file. folds: how many folds the rows, and each training part, will be cut into."""
    columns = ("label", "text_a", "text_b") if path.parent.name == "mrpc" else ("label", "text")
    labels, texts = [], []
    for number, (label, *row) in read_tsv(path, columns):
        labels.append(parse_int(label, path, number, "label"))
        if abs(labels[-1]) > HIGHEST_LABEL:
            raise UserError(f"{path}:{number}: label {label[:60]} is out of range")
        texts.append(row)
    counts = [count for _, count in Counter(labels).most_common()]
    if len(counts) < 2:
        raise UserError(f"{path}: {len(labels)} rows with {len(counts)} labels; a probe needs 2")
    if counts[0] < 2 * folds:
        raise UserError(
            f"{path}: no label has more than {counts[0]} rows; nested {folds}-fold "
            f"cross-validation needs {2 * folds} rows of one label"
        )
    if folds and counts[1] < FEWEST:
        raise UserError(
            f"{path}: all labels but one have at most {counts[1]} rows; cross-validation needs "
            f"{FEWEST} rows of a second label"
        )
    return Split(np.array(labels), [list(side) for side in zip(*texts, strict=True)])


def _compare(u_nd: Any, v_nd: Any = None) -> Any:
    """The features of a text, or of a pair of texts: [|u - v|, u * v]."""
    if v_nd is None:
        return u_nd
    if sparse.issparse(u_nd):
        return sparse.hstack([abs(u_nd - v_nd), u_nd.multiply(v_nd)]).tocsr()
    return np.hstack([np.abs(u_nd - v_nd), u_nd * v_nd])
