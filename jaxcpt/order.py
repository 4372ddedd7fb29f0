"""Which pair is in which slot of the batch at a step: a pure function of (seed, step).

In: the number of slots of each source in a batch or, for homogeneous batches, its share of the
batches; and the tokens of its pairs, if they are known. Out: indices into all pairs of all sources.
The module uses only NumPy and knows neither texts nor devices.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxcpt.errors import UserError

ROUND_STEPS = 1000
"""Steps of a round. In a round of homogeneous batches, each source has exactly its share."""


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Pseudo-random permutations of range(size), one for each key, evaluated at `index`.

    The arguments are uint64 arrays of one shape. A Feistel network permutes the numbers below the
    next power of four, and is applied until its result is below `size`. So any element of a shuffle
    of billions can be computed without storing the shuffle.
    """
    half_bits = (np.ceil(np.log2(np.maximum(size, 2))).astype(np.uint64) + np.uint64(1)) // 2
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    result, outside = index.copy(), np.ones(index.shape, bool)
    while outside.any():
        left, right = result >> half_bits, result & mask
        for turn in range(6):
            left, right = right, left ^ (mix(key + mix(right + np.uint64(turn << 48))) & mask)
        result = np.where(outside, (left << half_bits) | right, result)
        outside = result >= size
    return result


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit changes every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Order:
    """Which pair is in which slot of the batch at a step.

    Pairs are ranked, and a bucket is a range of ranks. Each bucket gives a fixed number of pairs to
    every batch. Its pairs are shuffled and used from first to last, and then shuffled again.
    """

    seed: int
    ranking: np.ndarray | None
    """The pair at each rank; None: pairs are ranked by their number."""
    first_b: np.ndarray
    """The first rank of each slot's bucket."""
    size_b: np.ndarray
    """The number of ranks in each slot's bucket."""
    share_b: np.ndarray
    """The number of slots that each slot's bucket fills."""
    turn_b: np.ndarray
    """The index of each slot among the slots of its bucket."""

    def pairs_at(self, step: int, slots: np.ndarray) -> np.ndarray:
        drawn = np.uint64(step) * self.share_b[slots] + self.turn_b[slots]
        size, first = self.size_b[slots], self.first_b[slots]
        key = mix(mix(first + np.uint64(self.seed << 40)) + drawn // size)
        ranks = first + permute(drawn % size, size, key)
        return (ranks if self.ranking is None else self.ranking[ranks]).astype(np.int64)

    def source_at(self, step: int) -> int:
        """Always 0: each batch mixes all sources, so they count as one source."""
        return 0

    def samples(self, count: int) -> list[list[int]]:
        """`count` steps whose batches represent all batches, in a list for the one source."""
        return [list(range(count))]


@dataclass(frozen=True)
class HomogeneousOrder:
    """Which pair is in which slot, if all pairs of a batch are from one source.

    In every round of ROUND_STEPS steps, each source has its share of the steps, spread evenly. The
    order of the sources is random in each round. Each source has its own `Order` of pairs.
    """

    seed: int
    orders: Sequence[Order]
    starts: Sequence[int]
    """The number of each source's first pair among all pairs."""
    shares: Sequence[int]
    """The number of steps of each source in a round."""

    def turn(self, step: int) -> tuple[int, int]:
        """The source of a step's batch, and how many batches of that source came before."""
        number, place = divmod(step, ROUND_STEPS)
        turns = self._round(number)
        source = int(turns[place])
        return source, number * self.shares[source] + int((turns[:place] == source).sum())

    def _round(self, number: int) -> np.ndarray:
        # For a source with n steps, the round is cut into n equal parts. Each part has one step.
        sources = np.repeat(np.arange(len(self.shares)), self.shares)
        turns = np.concatenate([np.arange(share) for share in self.shares])
        key = mix(np.array([self.seed << 40], np.uint64) + np.uint64(number))
        jitter = mix(key + np.arange(ROUND_STEPS, dtype=np.uint64)) / 2.0**64
        return sources[np.argsort((turns + jitter) / np.array(self.shares)[sources], kind="stable")]

    def source_at(self, step: int) -> int:
        """The source of a step's batch."""
        return self.turn(step)[0]

    def pairs_at(self, step: int, slots: np.ndarray) -> np.ndarray:
        source, earlier = self.turn(step)
        return self.starts[source] + self.orders[source].pairs_at(earlier, slots)

    def samples(self, count: int) -> list[list[int]]:
        """For each source, at most `count` steps whose batches represent all its batches."""
        turns, sources = self._round(0), range(len(self.shares))
        return [np.flatnonzero(turns == source)[:count].tolist() for source in sources]


def make_order(
    seed: int, pairs_per_batch: int, quotas: Sequence[int], totals: Sequence[np.ndarray | int]
) -> Order:
    """The order of batches that mix all sources.

    quotas: the number of slots of each source. totals: for each source, the tokens of each pair, or
    only the number of pairs. If the tokens are known, each slot has its own length bucket, so that
    batches have nearly equal token counts. Otherwise each source has one bucket for all its slots.
    """
    buckets: list[tuple[int, int, int, int]] = []
    ranking, start = [], 0
    for source, (quota, total) in enumerate(zip(quotas, totals, strict=True)):
        if not quota:
            raise UserError(
                f"data.weights: source {source} would get none of the {pairs_per_batch} pairs of a "
                "batch; raise its weight, or leave it out"
            )
        count = total if isinstance(total, int) else len(total)
        if count < quota:
            raise UserError(
                f"batching.pairs_per_batch: {quota} pairs of a batch come from a source that has "
                f"{count}; lower it"
            )
        if isinstance(total, int):
            buckets += [(start, count, quota, turn) for turn in range(quota)]
        else:
            ranking.append(start + np.argsort(total, kind="stable"))
            edges = start + np.arange(quota + 1) * count // quota
            buckets += [(a, b - a, 1, 0) for a, b in itertools.pairwise(edges.tolist())]
        start += count
    columns = np.array(buckets, np.uint64).reshape(pairs_per_batch, 4).T
    return Order(seed, np.concatenate(ranking) if ranking else None, *columns)


def make_homogeneous_order(
    seed: int,
    pairs_per_batch: int,
    weights: Sequence[float],
    totals: Sequence[np.ndarray | int],
) -> HomogeneousOrder:
    """The order of homogeneous batches.

    weights: each source's share of the batches, up to a common factor. totals: as in `make_order`.
    """
    shares = share_out(ROUND_STEPS, weights)
    if 0 in shares:
        raise UserError(
            f"data.weights: source {shares.index(0)} would get none of {ROUND_STEPS} homogeneous "
            "batches; raise its weight, or leave it out"
        )
    counts = [total if isinstance(total, int) else len(total) for total in totals]
    # Each source has its own key. With one key, sources of equal size would be shuffled alike.
    orders = [
        make_order((seed + number) % (1 << 24), pairs_per_batch, [pairs_per_batch], [total])
        for number, total in enumerate(totals)
    ]
    starts = [0, *itertools.accumulate(counts)][:-1]
    return HomogeneousOrder(seed, orders, starts, shares)


def share_out(slots: int, weights: Sequence[float]) -> list[int]:
    """Divides the slots in proportion to `weights`, rounded by the largest remainders."""
    exact = np.asarray(weights, float) / np.sum(weights) * slots
    whole = np.floor(exact).astype(int)
    for source in np.argsort(whole - exact, kind="stable")[: slots - whole.sum()]:
        whole[source] += 1
    return whole.tolist()
