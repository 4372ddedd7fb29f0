"""The steps that both forms of the contrastive loss share: comparison, sums and derivatives.

In: some queries (the x of one data shard) and some candidates (y of any shard, and hard
negatives). Out: softmax sums over these candidates, and derivatives with respect to their
similarities. `loss.py` calls these functions once for all candidates; `loss_streaming.py` calls
them once for each tile. Only `merge_shards` and `finish` communicate between shards. The module
does not know which part of the batch it is given.

Letters: b the queries that are compared, c the candidates that they are compared with.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcpt.sharding import DATA_AXES

Scalars = dict[str, jax.Array]

# Two logits count as equal if they differ by less than this. The matrix product that gives all
# logits rounds differently from the sum that gives the positive logit. A collapsed encoder, whose
# logits are all equal, must not get a good rank by rounding.
TIE = 1e-4
EMPTY_TOP = -1e30  # finite, so that an absent row or column does not produce a NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Labels:
    """What the loss must know of each text besides its embedding.

    present_b    whether the pair counts
    hash_x_b2    64-bit hash of the text x, as two uint32
    present_c    whether the candidate counts
    hash_c_c2    64-bit hash of the candidate's text, as two uint32

    The candidates of a data shard are first the y of its pairs, in the order of the pairs, and then
    its hard negatives, if there are any.
    """

    present_b: jax.Array
    hash_x_b2: jax.Array
    present_c: jax.Array
    hash_c_c2: jax.Array


class Queries(NamedTuple):
    """The x of some pairs of this shard."""

    z_bd: jax.Array
    pair_b: jax.Array  # index in the global batch
    present_b: jax.Array
    hash_x_b2: jax.Array
    hash_y_b2: jax.Array
    positive_b: jax.Array  # logit of x with its own y


class Candidates(NamedTuple):
    """The y of pairs of any shard, and hard negatives. The pair of a hard negative is -1."""

    z_cd: jax.Array
    pair_c: jax.Array
    present_c: jax.Array
    hash_c2: jax.Array
    hash_x_c2: jax.Array  # hash of the x of the candidate's pair
    positive_c: jax.Array


class Softmax(NamedTuple):
    """A log-sum-exp over the logits so far, for each query or for each candidate.

    top: the largest logit so far. total: the sum of exp(logit - top). rank: how many negatives have
    a logit at least as large as the positive logit.
    """

    top: jax.Array
    total: jax.Array
    rank: jax.Array

    def log_sum(self) -> jax.Array:
        return self.top + jnp.log(jnp.maximum(self.total, 1e-37))

    def merge(self, other: "Softmax") -> "Softmax":
        top = jnp.maximum(self.top, other.top)
        total = self.total * jnp.exp(self.top - top) + other.total * jnp.exp(other.top - top)
        return Softmax(top, total, self.rank + other.rank)

    def merge_shards(self) -> "Softmax":
        top = lax.pmax(self.top, DATA_AXES)
        total = lax.psum(self.total * jnp.exp(self.top - top), DATA_AXES)
        return Softmax(top, total, lax.psum(self.rank, DATA_AXES))


class Comparison(NamedTuple):
    """The logits of queries with candidates, and three masks. A mask's true entries are in no
    other mask."""

    queries: Queries
    candidates: Candidates
    scale: jax.Array
    logits_bc: jax.Array
    positive_bc: jax.Array  # the candidate is the query's own y
    negative_bc: jax.Array  # another candidate that counts
    duplicate_bc: jax.Array  # another candidate that is left out, because its text is equal


class PairCounts(NamedTuple):
    """Sums over the comparisons so far, float32."""

    uniformity: jax.Array  # sum of exp(-2 |zx - zy|^2) over negative y candidates
    negatives: jax.Array  # number of negative y candidates
    duplicates: jax.Array


def prepare(
    zx_bd: jax.Array, zc_cd: jax.Array, scale: jax.Array, labels: Labels
) -> tuple[Queries, Candidates]:
    """This shard's queries and candidates, with the logit of each pair."""
    pairs, negatives = zx_bd.shape[0], zc_cd.shape[0] - zx_bd.shape[0]
    pair_b = lax.axis_index(DATA_AXES) * pairs + jnp.arange(pairs)
    positive_b = scale * jnp.sum(zx_bd * zc_cd[:pairs], axis=-1)
    hash_y_b2 = labels.hash_c_c2[:pairs]
    queries = Queries(zx_bd, pair_b, labels.present_b, labels.hash_x_b2, hash_y_b2, positive_b)
    candidates = Candidates(
        z_cd=zc_cd,
        pair_c=jnp.pad(pair_b, (0, negatives), constant_values=-1),
        present_c=labels.present_c,
        hash_c2=labels.hash_c_c2,
        hash_x_c2=jnp.pad(labels.hash_x_b2, ((0, negatives), (0, 0))),
        positive_c=jnp.pad(positive_b, (0, negatives)),
    )
    return queries, candidates


def compare(queries: Queries, candidates: Candidates, scale: jax.Array) -> Comparison:
    """Computes all logits, and the masks that say how each of them counts."""

    def equal(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a[:, None, 0] == b[None, :, 0]) & (a[:, None, 1] == b[None, :, 1])

    logits_bc = scale * jnp.matmul(queries.z_bd, candidates.z_cd.T, precision="highest")
    own_bc = queries.pair_b[:, None] == candidates.pair_c[None, :]
    alike_bc = equal(queries.hash_x_b2, candidates.hash_x_c2)
    alike_bc &= (candidates.pair_c >= 0)[None, :]
    alike_bc |= equal(queries.hash_y_b2, candidates.hash_c2)
    alike_bc |= equal(queries.hash_x_b2, candidates.hash_c2)
    present_bc = queries.present_b[:, None] & candidates.present_c[None, :]
    other_bc = present_bc & ~own_bc
    return Comparison(
        queries,
        candidates,
        scale,
        logits_bc,
        present_bc & own_bc,
        other_bc & ~alike_bc,
        other_bc & alike_bc,
    )


def summarise(c: Comparison) -> tuple[Softmax, Softmax]:
    """The softmax sums of each query over these candidates, and of each candidate over these
    queries."""
    counts_bc = c.positive_bc | c.negative_bc
    logits_bc = jnp.where(counts_bc, c.logits_bc, EMPTY_TOP)

    def reduce(axis: int, positive: jax.Array) -> Softmax:
        top = jnp.max(logits_bc, axis=axis)
        shifted_bc = jnp.where(counts_bc, jnp.exp(logits_bc - jnp.expand_dims(top, axis)), 0.0)
        beaten_bc = c.negative_bc & (logits_bc >= jnp.expand_dims(positive - TIE, axis))
        return Softmax(top, jnp.sum(shifted_bc, axis=axis), jnp.sum(beaten_bc, axis=axis))

    return reduce(1, c.queries.positive_b), reduce(0, c.candidates.positive_c)


def differentiate(
    c: Comparison, log_sum_b: jax.Array, log_sum_c: jax.Array, pairs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss's derivatives with respect to each similarity [b, c] and to log_scale.

    log_sum_b, log_sum_c: complete log-sum-exps of queries and candidates. pairs: present pairs.
    """
    counts_bc, is_y_c = c.positive_bc | c.negative_bc, c.candidates.pair_c >= 0
    x_to_y_bc = jnp.where(counts_bc, jnp.exp(c.logits_bc - log_sum_b[:, None]), 0.0)
    y_to_x_bc = jnp.where(counts_bc & is_y_c, jnp.exp(c.logits_bc - log_sum_c[None, :]), 0.0)
    # Subtract the positive logit first. In exact arithmetic the part that both logits share would
    # cancel later. In float32 it would not.
    slope_bc = x_to_y_bc * (c.logits_bc - c.queries.positive_b[:, None])
    slope_bc += y_to_x_bc * (c.logits_bc - c.candidates.positive_c[None, :])
    share = 0.5 / pairs
    weights_bc = c.scale * share * (x_to_y_bc + y_to_x_bc - 2.0 * c.positive_bc)
    return weights_bc, share * jnp.sum(slope_bc)


def count_pairs(c: Comparison) -> PairCounts:
    """Sums for the metrics, in float32.

    With 65,536 pairs, the number of all comparisons overflows int32. The number in one shard or
    tile is small enough to be exact in float32.
    """
    negative_bc = c.negative_bc & (c.candidates.pair_c >= 0)
    spread_bc = jnp.exp(4.0 * c.logits_bc / c.scale - 4.0)
    negatives, duplicates = (
        jnp.sum(mask).astype(jnp.float32) for mask in (negative_bc, c.duplicate_bc)
    )
    return PairCounts(jnp.sum(jnp.where(negative_bc, spread_bc, 0.0)), negatives, duplicates)


def finish(
    queries: Queries, softmax_x: Softmax, softmax_y: Softmax, counts: PairCounts, scale: jax.Array
) -> tuple[jax.Array, Scalars]:
    """The global loss and metrics.

    softmax_x: of this shard's x over all candidates. softmax_y: of this shard's y over all x.
    """

    def add(values_b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(queries.present_b, values_b, 0.0))

    x_to_y_b = softmax_x.log_sum() - queries.positive_b
    y_to_x_b = softmax_y.log_sum() - queries.positive_b
    # Comparisons with NaN are false, so a pair whose logit is NaN would get the best rank.
    rank_x_b = jnp.where(jnp.isfinite(x_to_y_b), softmax_x.rank, jnp.nan)
    rank_y_b = jnp.where(jnp.isfinite(y_to_x_b), softmax_y.rank, jnp.nan)
    sums = {
        "loss": add(x_to_y_b + y_to_x_b) / 2.0,
        "accuracy_x_to_y": add(jnp.maximum(1.0 - rank_x_b, 0.0)),
        "accuracy_y_to_x": add(jnp.maximum(1.0 - rank_y_b, 0.0)),
        "mrr": add(1.0 / (1.0 + rank_x_b)),
        "alignment": add(2.0 - 2.0 * queries.positive_b / scale),
    }
    # Sum over the shards in one collective, between pass one and pass two. CPU devices may start
    # independent collectives in different orders, and then they wait for each other for ever.
    *totals, spread, negatives, duplicates, pairs = lax.psum(
        jnp.stack([*sums.values(), *counts, add(jnp.ones(()))]), DATA_AXES
    )
    count = jnp.maximum(pairs, 1.0)
    metrics = {name: total / count for name, total in zip(sums, totals, strict=True)}
    return metrics.pop("loss"), metrics | {
        "uniformity": jnp.log(spread / jnp.maximum(negatives, 1.0)),
        "masked_duplicates": duplicates,
        "pairs": count,
    }
