"""Where the right answer comes in a ranking of all candidates, and the scores made of that.

In: vectors or scores, and which candidates are right. Out: ranks from 1, and their means.
It knows neither texts nor files. Ties count against the model throughout: a candidate that scores
the same as the right one is taken to stand before it, so a constant encoder scores chance.
"""

from collections.abc import Iterable, Sequence

import numpy as np

# Equal float32 vectors give float64 products that differ by their summation order alone.
TIE = 1e-12
QUERIES_PER_TILE = 256


def rank_scores(rows: Iterable[np.ndarray], right: Sequence[Sequence[int]]) -> np.ndarray:
    """Ranks [q] of the best right candidate: 1 + the wrong ones that score at least as much.

    `rows` are the scores [n] of each query, `right` the candidates that answer it, at least one.
    """
    ranks = []
    for scores_n, columns in zip(rows, right, strict=True):
        at_least = scores_n >= scores_n[list(columns)].max() - TIE
        at_least[list(columns)] = False
        ranks.append(1 + at_least.sum())
    return np.array(ranks)


def rank_vectors(
    queries_qd: np.ndarray, candidates_nd: np.ndarray, right: Sequence[Sequence[int]]
) -> np.ndarray:
    """As `rank_scores` on the float64 inner products, a tile of queries at a time."""
    candidates_dn = candidates_nd.astype(np.float64).T
    starts = range(0, len(queries_qd), QUERIES_PER_TILE)
    tiles = (queries_qd[start : start + QUERIES_PER_TILE].astype(np.float64) for start in starts)
    return rank_scores((row for tile_qd in tiles for row in tile_qd @ candidates_dn), right)


def settle_ties(scores_k: np.ndarray, grades_k: np.ndarray, complete: bool) -> np.ndarray:
    """The order of the best k in which the least relevant stands first among equal scores.

    Unless the k are `complete`, candidates beyond them may tie with the last: a relevant one
    that scores no more than the last is left out, since they would stand before it.
    """
    order = np.lexsort((grades_k, -scores_k))
    if complete:
        return order
    return order[(scores_k[order] > scores_k.min()) | (grades_k[order] <= 0)]


def mean_of_ranks(ranks_q: np.ndarray) -> dict[str, float]:
    """Mean reciprocal rank, and the share of queries answered among the first 1 and 10."""
    return {
        "mrr": float(np.mean(1 / ranks_q)),
        "recall_at_1": float(np.mean(ranks_q <= 1)),
        "recall_at_10": float(np.mean(ranks_q <= 10)),
    }
