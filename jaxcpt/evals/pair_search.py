"""Search among held-out pairs: each x is a query, and the y of all pairs are the candidates.

In: pairs and `embed_fn`. Out: mrr, recall_at_1 and recall_at_10, for a model, for BM25 and for
chance on the same candidates. A y that several pairs share is one candidate, and the right answer
for all of them. The module knows no model.
"""

from collections.abc import Sequence

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.evals import EmbedFn, embed_finite, ranks, words
from jaxcpt.pair import Pair


def run(embed_fn: EmbedFn, pairs: Sequence[Pair]) -> dict[str, float]:
    """The model's scores. Raises UserError if there are no pairs or a vector is not finite."""
    candidates, right = _candidates(pairs)
    queries_qd = embed_finite(embed_fn, [pair.x for pair in pairs], "x")
    candidates_nd = embed_finite(embed_fn, candidates, "y")
    return ranks.mean_of_ranks(ranks.rank_vectors(queries_qd, candidates_nd, right))


def bm25(pairs: Sequence[Pair]) -> dict[str, float]:
    """The scores of BM25. It splits words at camelCase and snake_case."""
    candidates, right = _candidates(pairs)
    split = words.list_content_words
    scores_qn = words.score([split(pair.x) for pair in pairs], map(split, candidates))
    return ranks.mean_of_ranks(ranks.rank_scores(scores_qn, right))


def chance(count: int) -> dict[str, float]:
    """The expected scores of a random order of `count` candidates."""
    return {
        "mrr": float(np.mean(1 / np.arange(1, count + 1))),
        "recall_at_1": 1 / count,
        "recall_at_10": min(10, count) / count,
    }


def count(pairs: Sequence[Pair]) -> dict[str, int]:
    """The number of searches, `x`, and of the distinct texts that each one ranks, `y`."""
    return {"x": len(pairs), "y": len({pair.y for pair in pairs})}


def describe(x: int, y: int) -> str:
    """The result of `count` in words."""
    return f"Each of {x:,} held-out x searches {y:,} y"


def _candidates(pairs: Sequence[Pair]) -> tuple[list[str], list[list[int]]]:
    """The distinct y, and for each pair the index of its own y."""
    if not pairs:
        raise UserError("no held-out pairs to search; set data.heldout to a source that has some")
    number = {y: i for i, y in enumerate(dict.fromkeys(pair.y for pair in pairs))}
    return list(number), [[number[pair.y]] for pair in pairs]
