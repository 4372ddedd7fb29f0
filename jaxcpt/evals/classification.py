"""Classifies sentences by a linear probe, and by two methods that train nothing.

In: `embed_fn` and the folder linear_probe/. Out: the scores of `linear_probe`, and the accuracies
of both methods for each task whose labels have words. Zero-shot predicts the label whose own text
is nearest to the sentence (section 3.1.2 of the paper). Neighbours predicts the most frequent label
among the 256 nearest training texts. All texts are embedded as x. The module knows no model.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from jaxcpt.evals import (
    DataRefused,
    EmbedFn,
    collect,
    embed_finite,
    finish,
    linear_probe,
    read_each,
    show_sets,
)
from jaxcpt.evals.linear_probe import CROSS_VALIDATED, Labelled, Split, cut_into_folds
from jaxcpt.pair import Side

NEIGHBOURS = 256
TIE = 1e-6
"""Scores that differ by less count as equal, because float32 products of equal vectors differ."""
TEXTS_PER_TILE = 256

_SENTIMENTS = ("negative", "positive")
LABEL_WORDS = {
    "mr": _SENTIMENTS,
    "cr": _SENTIMENTS,
    "subj": ("subjective", "objective"),
    "mpqa": _SENTIMENTS,
    "sst2": _SENTIMENTS,
    "trec": ("abbreviation", "description", "entity", "human", "location", "number"),
}
"""The words of the labels of each task, in the order of the labels 0, 1 and so on."""
PROMPT = "this is an example of a {} movie review."
"""The paper's prompt for SST2."""
MOVIE_REVIEWS = ("mr", "sst2")


def run(embed_fn: EmbedFn, data: Path, folds: int = 10) -> dict[str, float]:
    """The scores of the probes, and for each task `<task>_zero_shot_words`, `<task>_neighbours`
    and, for film reviews, `<task>_zero_shot_prompt`."""
    probed: dict[str, float] = {}
    untrained: dict[str, float] = {}
    problems: list[str] = []
    with show_sets("linear_probe", linear_probe.list_folders(data)) as folders:
        for folder in folders:
            embed = _remember(embed_fn)
            probed |= collect(problems, linear_probe.run, embed, data, [folder.name], folds)
            if folder.name in LABEL_WORDS:
                untrained |= collect(problems, run_untrained, embed, folder, folds)
    return finish(linear_probe.add_average(probed) | untrained, problems)


def run_untrained(embed_fn: EmbedFn, folder: Path, folds: int = 10) -> dict[str, float]:
    """The scores of zero-shot and neighbours.

    Zero-shot is scored on the test split, or on all rows if there is none. Neighbours is scored on
    the same splits or folds as the probe.
    """
    scores: dict[str, float] = {}
    problems: list[str] = []
    read = partial(linear_probe.read_splits, folds=folds)
    for task, splits in read_each(read, [folder], problems):
        scores |= collect(problems, zero_shot, embed_fn, task, splits)
        scores |= collect(problems, neighbours, embed_fn, task, splits, folds)
    return finish(scores, problems)


def zero_shot(embed_fn: EmbedFn, task: str, splits: dict[str, Split]) -> dict[str, float]:
    """Accuracy: the share of sentences whose own label has the nearest text.

    Raises DataRefused for a label without a word.
    """
    split = splits.get("test") or splits["all"]
    words = LABEL_WORDS[task]
    if unknown := sorted(set(split.labels_n.tolist()) - set(range(len(words)))):
        raise DataRefused(
            f"linear_probe/{task}: label {unknown[0]} has no word, so zero-shot has no text "
            f"for it; the words of labels 0 to {len(words) - 1} are {', '.join(words)}"
        )
    forms = {"words": "{}"} | ({"prompt": PROMPT} if task in MOVIE_REVIEWS else {})
    texts_nd = embed_finite(embed_fn, split.sides[0], "x")
    scores: dict[str, float] = {}
    for name, form in forms.items():
        labels_cd = embed_finite(embed_fn, [form.format(word) for word in words], "x")
        right_n = _is_ahead(texts_nd @ labels_cd.T, split.labels_n)
        scores[f"{task}_zero_shot_{name}"] = float(np.mean(right_n))
    return scores


def neighbours(
    embed_fn: EmbedFn, task: str, splits: dict[str, Split], folds: int = 10
) -> dict[str, float]:
    """Accuracy: the share of sentences for which the nearest training texts vote for their label.

    Raises DataRefused if there are fewer than NEIGHBOURS training texts.
    """
    rows = {
        name: Labelled(embed_finite(embed_fn, split.sides[0], "x"), split.labels_n)
        for name, split in splits.items()
    }
    if task in CROSS_VALIDATED:
        parts = [
            (rows["all"].take(train), rows["all"].take(test))
            for train, test in cut_into_folds(rows["all"].labels_n, folds)
        ]
    else:
        parts = [(rows["train"], rows["test"])]
    if (fewest := min(len(train.labels_n) for train, _ in parts)) < NEIGHBOURS:
        raise DataRefused(
            f"linear_probe/{task}: {fewest} training texts; the vote takes {NEIGHBOURS} neighbours"
        )
    return {f"{task}_neighbours": float(np.mean([_vote(*part) for part in parts]))}


def _vote(train: Labelled, test: Labelled) -> float:
    """Accuracy of the vote. Texts that are as near as the last neighbour vote too."""
    labels = np.unique(np.concatenate([train.labels_n, test.labels_n]))
    train_nc = (train.labels_n[:, None] == labels).astype(np.float32)
    right = 0
    for start in range(0, len(test.labels_n), TEXTS_PER_TILE):
        tile = slice(start, start + TEXTS_PER_TILE)
        scores_qn = test.features_nd[tile] @ train.features_nd.T
        last_q = np.partition(scores_qn, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]
        near_qn = scores_qn >= last_q[:, None] - TIE
        votes_qc = near_qn.astype(np.float32) @ train_nc
        right += _is_ahead(votes_qc, np.searchsorted(labels, test.labels_n[tile])).sum()
    return right / len(test.labels_n)


def _is_ahead(scores_nc: np.ndarray, columns_n: np.ndarray) -> np.ndarray:
    """Whether the score of the right column is above all others [n]. A tie counts as not above."""
    right_n = np.take_along_axis(scores_nc, columns_n[:, None], axis=1)
    return (scores_nc >= right_n - TIE).sum(axis=1) == 1


def _remember(embed_fn: EmbedFn) -> EmbedFn:
    """A function like `embed_fn` that embeds the same texts only once."""
    kept: dict[tuple[tuple[str, ...], Side], np.ndarray] = {}

    def embed(texts: Sequence[str], side: Side) -> np.ndarray:
        key = (tuple(texts), side)
        if key not in kept:
            kept[key] = embed_fn(texts, side)
        return kept[key]

    return embed
