"""Semantic similarity: does the cosine of two embeddings correlate with people's scores?

In: `embed_fn` and the folder sts/, which has a folder for each set (see `sts_files`). Out: Spearman
and Pearson correlations of each part of a set, for a model and for bags of words. sts12 to sts16
and SICK-R also get the mean over their parts, and the correlations of all pairs of a set together.
Both texts are embedded as x. The module knows no model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from jaxcpt.evals import DataRefused, EmbedFn, embed_finite, finish, read_each, show_sets, words
from jaxcpt.evals.sts_files import ALL, MEAN, SETS, STS_B, list_folders, read_set


def run(embed_fn: EmbedFn, data: Path) -> dict[str, float]:
    """`<set>/<subset>/spearman` and `<set>/<subset>/pearson`.

    The names `mean` and `all` in place of a subset are explained above. STS-B has neither, because
    its parts are for training and for testing.
    """

    def compare(texts_a: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
        a_nd = embed_finite(embed_fn, texts_a, "x").astype(np.float64)
        b_nd = embed_finite(embed_fn, texts_b, "x").astype(np.float64)
        return np.sum(a_nd * b_nd, axis=1)

    return _score_sets(compare, data)


def bag_of_words(data: Path) -> dict[str, float]:
    """The same scores for bags of words."""
    return _score_sets(words.compare_bags, data)


def _score_sets(
    compare: Callable[[Sequence[str], Sequence[str]], np.ndarray], data: Path
) -> dict[str, float]:
    """The scores of all sets. compare: two lists of texts -> the cosine of each pair."""
    scores: dict[str, float] = {}
    problems: list[str] = []
    found = list_folders(Path(data) / "sts")
    if not found:
        raise DataRefused(f"{Path(data) / 'sts'}: none of the folders {', '.join(SETS)} is there")
    with show_sets("sts", found) as sets:
        for name, subsets in read_each(read_set, sets, problems):
            gold = {subset: gold_n for subset, (gold_n, _, _) in subsets.items()}
            cosines = {subset: compare(*texts) for subset, (_, *texts) in subsets.items()}
            pairs = {subset: correlate(cosines[subset], gold[subset]) for subset in gold}
            if name != STS_B:
                means = np.mean(list(pairs.values()), axis=0)
                pairs[MEAN] = (float(means[0]), float(means[1]))
                together = [np.concatenate(list(side.values())) for side in (cosines, gold)]
                pairs[ALL] = correlate(*together)
            for subset, pair in pairs.items():
                scores |= _name(f"{name}/{subset}", pair)
    return finish(scores, problems)


def correlate(cosines_n: np.ndarray, gold_n: np.ndarray) -> tuple[float, float]:
    """The Spearman and Pearson correlations. Both are 0 if all cosines are equal."""
    if np.ptp(cosines_n) < 1e-12:
        return 0.0, 0.0
    spearman = stats.spearmanr(cosines_n, gold_n).statistic
    return float(spearman), float(stats.pearsonr(cosines_n, gold_n).statistic)


def _name(prefix: str, pair: tuple[float, float]) -> dict[str, float]:
    return {f"{prefix}/spearman": pair[0], f"{prefix}/pearson": pair[1]}
