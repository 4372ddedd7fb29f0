"""The rank of the right answer among all candidates, and the scores that follow from it.

In: vectors or scores, and which candidates are right. Out: ranks from 1, and their means.
Ties always count against the model: a wrong candidate with the score of the right one ranks before
it. So a model that gives all texts the same vector ranks last. It knows neither texts nor files.
"""

from collections.abc import Iterable, Sequence

import numpy as np

# Products of equal float32 vectors differ in float64 by the order of summation. They are a tie.
TIE = 1e-12
QUERIES_PER_TILE = 256


def rank_scores(rows: Iterable[np.ndarray], right: Sequence[Sequence[int]]) -> np.ndarray:
    """Ranks [q] of the best right candidate: 1 + the number of wrong ones that score as much.

    rows: for each query, the scores [n] of all candidates. right: for each query, the indices of
    the candidates that answer it. Where there are none, the rank is infinite.
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
    """`rank_scores` of the inner products, taken in float64 for one tile of queries at a time."""
    candidates_dn = candidates_nd.astype(np.float64).T
    starts = range(0, len(queries_qd), QUERIES_PER_TILE)
    tiles = (queries_qd[start : start + QUERIES_PER_TILE].astype(np.float64) for start in starts)
    return rank_scores((row for tile_qd in tiles for row in tile_qd @ candidates_dn), right)


def settle_ties(scores_k: np.ndarray, grades_k: np.ndarray, complete: bool) -> np.ndarray:
    """Orders the best k candidates; among equal scores the least relevant comes first.

    complete: the k are all candidates. If not, candidates beyond the k may tie with the last one
    and would come before it, so relevant candidates with the lowest score are left out.
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
