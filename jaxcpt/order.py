"""Which pair stands in which slot of the batch at a step: a pure function of (seed, step).

In: how many slots each source has in a batch, or how often a whole batch is its, and how long its
pairs are where that is known. Out: indices into all pairs of all sources. Plain NumPy; it knows
neither texts nor devices.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxcpt.errors import UserError

ROUND_STEPS = 1000
"""Homogeneous batches: steps in which each source has exactly its share of the batches."""
SAMPLES = 8


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Pseudo-random permutations of range(size), one for each key, evaluated at `index`.

    All three uint64, of one shape. A Feistel network over the next power of four, walked until it
    lands inside: any element of a shuffle of billions without storing it.
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
    """Which pair stands in which slot of the batch at a step.

    Slots are filled by strata: ranges of `ranking` (all pairs of all sources) that give a fixed
    number of pairs to every batch, each range shuffled anew every time it is through.
    """

    seed: int
    ranking: np.ndarray | None
    """Pair at each rank; None: rank and pair are the same."""
    first_b: np.ndarray
    size_b: np.ndarray
    """The stratum of each slot: its first rank and its size."""
    share_b: np.ndarray
    turn_b: np.ndarray
    """Slots that share the slot's stratum, and which of them it is."""

    def pairs_at(self, step: int, slots: np.ndarray) -> np.ndarray:
        drawn = np.uint64(step) * self.share_b[slots] + self.turn_b[slots]
        size, first = self.size_b[slots], self.first_b[slots]
        key = mix(mix(first + np.uint64(self.seed << 40)) + drawn // size)
        ranks = first + permute(drawn % size, size, key)
        return (ranks if self.ranking is None else self.ranking[ranks]).astype(np.int64)

    def samples(self) -> Sequence[int]:
        """A few steps whose batches stand for all."""
        return range(SAMPLES)


@dataclass(frozen=True)
class HomogeneousOrder:
    """Each step's batch is of one source, and takes the source's own pairs in their own order.

    In every round of ROUND_STEPS steps each source has its share of them, spread evenly, in an
    order drawn anew for each round.
    """

    seed: int
    orders: Sequence[Order]
    starts: Sequence[int]
    """Of each source, its first pair among all pairs."""
    shares: Sequence[int]
    """Steps of a round that are each source's."""

    def turn(self, step: int) -> tuple[int, int]:
        """The source of a step's batch, and how many batches of that source came before."""
        number, place = divmod(step, ROUND_STEPS)
        turns = self._round(number)
        source = int(turns[place])
        return source, number * self.shares[source] + int((turns[:place] == source).sum())

    def _round(self, number: int) -> np.ndarray:
        # The j-th of a source's n steps falls somewhere in the j-th n-th of the round.
        sources = np.repeat(np.arange(len(self.shares)), self.shares)
        turns = np.concatenate([np.arange(share) for share in self.shares])
        key = mix(np.array([self.seed << 40], np.uint64) + np.uint64(number))
        jitter = mix(key + np.arange(ROUND_STEPS, dtype=np.uint64)) / 2.0**64
        return sources[np.argsort((turns + jitter) / np.array(self.shares)[sources], kind="stable")]

    def pairs_at(self, step: int, slots: np.ndarray) -> np.ndarray:
        source, earlier = self.turn(step)
        return self.starts[source] + self.orders[source].pairs_at(earlier, slots)

    def samples(self) -> Sequence[int]:
        """Steps that stand for all: a few of each source."""
        turns = self._round(0)
        firsts = [np.flatnonzero(turns == source)[:SAMPLES] for source in range(len(self.shares))]
        return np.concatenate(firsts).tolist()


def make_order(
    seed: int, pairs_per_batch: int, quotas: Sequence[int], totals: Sequence[np.ndarray | int]
) -> Order:
    """`quotas`: slots of each source. `totals`: of each source, its pairs' tokens, which makes
    each slot a stratum of length of its own; or only the number of its pairs.
    """
    strata: list[tuple[int, int, int, int]] = []
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
            strata += [(start, count, quota, turn) for turn in range(quota)]
        else:
            ranking.append(start + np.argsort(total, kind="stable"))
            edges = start + np.arange(quota + 1) * count // quota
            strata += [(a, b - a, 1, 0) for a, b in itertools.pairwise(edges.tolist())]
        start += count
    columns = np.array(strata, np.uint64).reshape(pairs_per_batch, 4).T
    return Order(seed, np.concatenate(ranking) if ranking else None, *columns)


def make_homogeneous_order(
    seed: int,
    pairs_per_batch: int,
    weights: Sequence[float],
    totals: Sequence[np.ndarray | int],
) -> HomogeneousOrder:
    """`weights`: of each source, its share of the batches. `totals`: as for `make_order`."""
    shares = share_out(ROUND_STEPS, weights)
    if 0 in shares:
        raise UserError(
            f"data.weights: source {shares.index(0)} would get none of {ROUND_STEPS} homogeneous "
            "batches; raise its weight, or leave it out"
        )
    counts = [total if isinstance(total, int) else len(total) for total in totals]
    # A key of its own for each source, or those of one size would be shuffled alike.
    orders = [
        make_order((seed + number) % (1 << 24), pairs_per_batch, [pairs_per_batch], [total])
        for number, total in enumerate(totals)
    ]
    starts = [0, *itertools.accumulate(counts)][:-1]
    return HomogeneousOrder(seed, orders, starts, shares)


def share_out(slots: int, weights: Sequence[float]) -> list[int]:
    """Whole slots in proportion to `weights`, by largest remainder."""
    exact = np.asarray(weights, float) / np.sum(weights) * slots
    whole = np.floor(exact).astype(int)
    for source in np.argsort(whole - exact, kind="stable")[: slots - whole.sum()]:
        whole[source] += 1
    return whole.tolist()
