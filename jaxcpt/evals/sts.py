"""Semantic similarity: does the cosine of two embeddings correlate with people's judgement?

In: `embed_fn` and the folder sts/. It has a folder for each set (sts12 to sts16, sick-r), with a
file of lines `score text_a text_b` for each subset. Out: Spearman and Pearson correlations of each
subset, their mean over the subsets, and those of all pairs of a set together, for a model and for
bags of words. Both texts are embedded as x. It knows no model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from jaxcpt.errors import UserError
from jaxcpt.evals import (
    DataRefused,
    EmbedFn,
    embed_finite,
    finish,
    name_files,
    read_each,
    words,
)
from jaxcpt.lines import parse_float, read_tsv

SETS = ("sts12", "sts13", "sts14", "sts15", "sts16", "sick-r")
COLUMNS = ("score", "text_a", "text_b")
MEAN, ALL = "mean", "all"
LARGEST = 1e6
"""The largest score that is taken. Sums of squares of larger ones could overflow."""

Subset = tuple[np.ndarray, list[str], list[str]]
"""Scores [n] and the two texts of each pair."""


def run(embed_fn: EmbedFn, data: Path) -> dict[str, float]:
    """`<set>/<subset>/spearman` and `pearson`; as subsets also `mean` and `all`."""

    def compare(texts_a: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
        a_nd = embed_finite(embed_fn, texts_a, "x").astype(np.float64)
        b_nd = embed_finite(embed_fn, texts_b, "x").astype(np.float64)
        return np.sum(a_nd * b_nd, axis=1)

    return _score_sets(compare, data)


def bag_of_words(data: Path) -> dict[str, float]:
    """The same scores of bags of words."""
    return _score_sets(words.compare_bags, data)


def _score_sets(
    compare: Callable[[Sequence[str], Sequence[str]], np.ndarray], data: Path
) -> dict[str, float]:
    """compare: two lists of texts -> the cosine of each pair."""
    scores: dict[str, float] = {}
    problems: list[str] = []
    found = [Path(data) / "sts" / name for name in SETS if (Path(data) / "sts" / name).is_dir()]
    if not found:
        raise DataRefused(f"{Path(data) / 'sts'}: none of the folders {', '.join(SETS)} is there")
    for name, subsets in read_each(_read_set, found, problems):
        gold = {subset: gold_n for subset, (gold_n, _, _) in subsets.items()}
        cosines = {subset: compare(*texts) for subset, (_, *texts) in subsets.items()}
        pairs = {subset: correlate(cosines[subset], gold[subset]) for subset in gold}
        for subset, pair in pairs.items():
            scores |= _name(f"{name}/{subset}", pair)
        means = np.mean(list(pairs.values()), axis=0)
        scores |= _name(f"{name}/{MEAN}", (float(means[0]), float(means[1])))
        together = [np.concatenate(list(side.values())) for side in (cosines, gold)]
        scores |= _name(f"{name}/{ALL}", correlate(*together))
    return finish(scores, problems)


def _read_set(folder: Path) -> tuple[str, dict[str, Subset]]:
    """The set's name and its subsets."""
    return folder.name, {name: _read_subset(path) for name, path in list_subsets(folder).items()}


def list_subsets(folder: Path) -> dict[str, Path]:
    """The subsets' files by name. Raises UserError where there are none."""
    paths = [*folder.glob("*.tsv"), *folder.glob("*.tsv.gz")]
    if not paths:
        raise UserError(f"{folder}: no .tsv files; expected one a subset, with {' '.join(COLUMNS)}")
    return name_files(paths, ".tsv", taken=(MEAN, ALL))


def correlate(cosines_n: np.ndarray, gold_n: np.ndarray) -> tuple[float, float]:
    """Spearman and Pearson. Both are 0 where all cosines are the same."""
    if np.ptp(cosines_n) < 1e-12:
        return 0.0, 0.0
    spearman = stats.spearmanr(cosines_n, gold_n).statistic
    return float(spearman), float(stats.pearsonr(cosines_n, gold_n).statistic)


def _read_subset(path: Path) -> Subset:
    gold, texts_a, texts_b = [], [], []
    for number, (score, text_a, text_b) in read_tsv(path, COLUMNS):
        value = parse_float(score, path, number, "score")
        if abs(value) > LARGEST:
            raise UserError(
                f"{path}:{number}: score {score} is out of range; the most is {LARGEST:g}"
            )
        gold.append(value)
        texts_a.append(text_a)
        texts_b.append(text_b)
    if len(set(gold)) < 2:
        raise UserError(f"{path}: {len(gold)} pairs, {len(set(gold))} scores; needs at least 2")
    return np.array(gold), texts_a, texts_b


def _name(prefix: str, pair: tuple[float, float]) -> dict[str, float]:
    return {f"{prefix}/spearman": pair[0], f"{prefix}/pearson": pair[1]}
