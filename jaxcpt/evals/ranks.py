"""Finds the rank of the right answer among all candidates, and computes scores from ranks.

In: vectors or scores, and which candidates are right. Out: ranks from 1, and their means. Ties
always count against the model: a wrong candidate with the same score as the right one ranks before
it. So a model that gives all texts the same vector gets the last rank. The module knows neither
texts nor files.
"""

from collections.abc import Iterable, Sequence

import numpy as np

# Scores that differ by less are a tie: float64 products of equal vectors differ by rounding.
TIE = 1e-12
QUERIES_PER_TILE = 256


def rank_scores(rows: Iterable[np.ndarray], right: Sequence[Sequence[int]]) -> np.ndarray:
    """Ranks [q] of the best right candidate: 1 + the number of wrong ones with at least its score.

    rows: for each query, the scores [n] of all candidates. right: for each query, the indices of
    the candidates that answer it. The rank is infinite if there are none.
    """
    ranks: list[float] = []
    for scores_n, columns in zip(rows, right, strict=True):
        if not columns:
            ranks.append(np.inf)
            continue
        at_least = scores_n >= scores_n[list(columns)].max() - TIE
        at_least[list(columns)] = False
        ranks.append(1 + int(at_least.sum()))
    return np.array(ranks)


def rank_vectors(
    queries_qd: np.ndarray, candidates_nd: np.ndarray, right: Sequence[Sequence[int]]
) -> np.ndarray:
    """`rank_scores` of float64 inner products, computed for one tile of queries at a time."""
    candidates_dn = candidates_nd.astype(np.float64).T
    starts = range(0, len(queries_qd), QUERIES_PER_TILE)
    tiles = (queries_qd[start : start + QUERIES_PER_TILE].astype(np.float64) for start in starts)
    return rank_scores((row for tile_qd in tiles for row in tile_qd @ candidates_dn), right)


def settle_ties(scores_k: np.ndarray, grades_k: np.ndarray, complete: bool) -> np.ndarray:
    """The order of the best k candidates. Among equal scores, the least relevant one comes first.

    complete: whether the k are all candidates. If not, candidates beyond the k may have the same
    score as the last one and would come before it. Relevant candidates with that score are
    therefore left out.
    """
    order = np.lexsort((grades_k, -scores_k))
    if complete:
        return order
    return order[(scores_k[order] > scores_k.min()) | (grades_k[order] <= 0)]


def mean_of_ranks(ranks_q: np.ndarray) -> dict[str, float]:
    """The mean reciprocal rank, and the shares of queries with a rank of 1 and of at most 10."""
    return {
        "mrr": float(np.mean(1 / ranks_q)),
        "recall_at_1": float(np.mean(ranks_q <= 1)),
        "recall_at_10": float(np.mean(ranks_q <= 10)),
    }
