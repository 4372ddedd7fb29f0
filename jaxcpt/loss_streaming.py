"""The streaming form of the loss: computes the similarities tile by tile, on a ring of shards.

    shard 0        shard 1        shard 2
    queries 0      queries 1      queries 2      queries stay
    tile a  ---->  tile b  ---->  tile c  ---->  (back to shard 0)

In: this shard's embeddings and labels. Out: the results of the dense form, up to rounding. Each
shard's candidates are cut into tiles, and its queries into blocks. Every tile is sent from shard to
shard, together with the sums of its candidates. Each shard compares the tile with its blocks, adds
to the sums and sends both on, until they are back at their first shard. Pass one collects the
softmax sums, and pass two the gradient. So every similarity is computed twice, and a shard never
holds more than a [TILE_ROWS, TILE_COLUMNS] part of the matrix.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcpt import loss_terms
from jaxcpt.loss_terms import (
    EMPTY_TOP,
    Candidates,
    Labels,
    PairCounts,
    Queries,
    Scalars,
    Softmax,
    compare,
    count_pairs,
    differentiate,
    finish,
    summarise,
)
from jaxcpt.sharding import DATA_AXES

TILE_ROWS = 1024
TILE_COLUMNS = 1024

Gradient = tuple[jax.Array, jax.Array, jax.Array]
"""The derivatives with respect to zx_bd, zc_cd and log_scale."""


def compute_streaming_loss(
    zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[jax.Array, Scalars, Gradient]:
    """Loss, metrics, and the gradient for this shard's embeddings. Call it inside `shard_map`."""
    scale = jnp.exp(log_scale)
    queries, candidates = loss_terms.prepare(zx_bd, zc_cd, scale, labels)
    blocks, tiles = _cut(queries, TILE_ROWS), _cut(candidates, TILE_COLUMNS)
    pairs, width = zx_bd.shape

    softmax_x, softmax_y, counts = _sum_tiles(blocks, tiles, scale)
    of_x, of_y = (
        jax.tree.map(lambda a: a.reshape(-1)[:pairs], softmax) for softmax in (softmax_x, softmax_y)
    )
    loss, metrics = finish(queries, of_x, of_y, counts, scale)

    log_sums = softmax_x.log_sum(), softmax_y.log_sum()
    dzx, dzc, dlog_scale = _pull_tiles(blocks, tiles, *log_sums, scale, metrics["pairs"])
    gradient = (
        dzx.reshape(-1, width)[:pairs],
        dzc.reshape(-1, width)[: len(zc_cd)],
        lax.psum(dlog_scale, DATA_AXES),
    )
    return loss, metrics, gradient


def _sum_tiles(
    blocks: Queries, tiles: Candidates, scale: jax.Array
) -> tuple[Softmax, Softmax, PairCounts]:
    """Pass one: sums of this shard's queries over all candidates, and of its candidates over all
    queries."""

    def visit(
        carry: tuple[Softmax, PairCounts], tile: Candidates, softmax_y: Softmax
    ) -> tuple[tuple[Softmax, PairCounts], Softmax]:
        softmax_x, counts = carry

        def add_block(
            carry: tuple[Softmax, PairCounts], block_and_softmax: tuple[Queries, Softmax]
        ) -> tuple[tuple[Softmax, PairCounts], Softmax]:
            softmax_y, counts = carry
            block, softmax_x = block_and_softmax
            compared = compare(block, tile, scale)
            of_x, of_y = summarise(compared)
            counts = jax.tree.map(jnp.add, counts, count_pairs(compared))
            return (softmax_y.merge(of_y), counts), softmax_x.merge(of_x)

        (softmax_y, counts), softmax_x = lax.scan(
            add_block, (softmax_y, counts), (blocks, softmax_x)
        )
        return (softmax_x, counts), softmax_y

    def sum_tile(
        carry: tuple[Softmax, PairCounts], tile: Candidates
    ) -> tuple[tuple[Softmax, PairCounts], Softmax]:
        return send_round(visit, carry, tile, _empty(tile.pair_c.shape))

    start = _empty(blocks.pair_b.shape), PairCounts(*jnp.zeros(3))
    (softmax_x, counts), softmax_y = lax.scan(sum_tile, start, tiles)
    return softmax_x, softmax_y, counts


def _pull_tiles(
    blocks: Queries,
    tiles: Candidates,
    log_sum_x: jax.Array,
    log_sum_y: jax.Array,
    scale: jax.Array,
    pairs: jax.Array,
) -> Gradient:
    """Pass two: gradients for this shard's queries and candidates, and its part of d log_scale."""

    def visit(
        carry: tuple[jax.Array, jax.Array], visitor: tuple[Candidates, jax.Array], dzc: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        tile, log_sum_y = visitor

        def add_block(
            carry: tuple[jax.Array, jax.Array, jax.Array],
            numbered: tuple[jax.Array, Queries, jax.Array],
        ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
            dzx, slope, dzc = carry
            number, block, log_sum_x = numbered
            compared = compare(block, tile, scale)
            weights_bc, more = differentiate(compared, log_sum_x, log_sum_y, pairs)
            dzc += jnp.matmul(weights_bc.T, block.z_bd, precision="highest")
            dzx_bd = jnp.matmul(weights_bc, tile.z_cd, precision="highest")
            # Updated in place. As inputs and outputs of the scan they would be in memory twice.
            return (dzx.at[number].add(dzx_bd), slope + more, dzc), None

        numbered = jnp.arange(len(blocks.pair_b)), blocks, log_sum_x
        (dzx, slope, dzc), _ = lax.scan(add_block, (*carry, dzc), numbered)
        return (dzx, slope), dzc

    def pull_tile(
        carry: tuple[jax.Array, jax.Array], visitor: tuple[Candidates, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        return send_round(visit, carry, visitor, jnp.zeros_like(visitor[0].z_cd))

    start = jnp.zeros_like(blocks.z_bd), jnp.float32(0)
    (dzx, slope), dzc = lax.scan(pull_tile, start, (tiles, log_sum_y))
    return dzx, dzc, slope


def send_round(
    visit: Callable[[Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    visitor: Any,
    sums: Any,
) -> tuple[Any, Any]:
    """Sends `visitor` and its `sums` to every shard in turn, and back to their first shard.

    Every shard calls visit(carry, visitor, sums) -> (carry, sums). The carry stays on its shard.
    Returns the carry, and the sums to which all shards have added.
    """
    shards = lax.axis_size(DATA_AXES)
    ring = [(shard, (shard + 1) % shards) for shard in range(shards)]

    def send(tree: Any) -> Any:
        return jax.tree.map(lambda a: lax.ppermute(a, DATA_AXES, ring), tree)

    def hop(state: tuple[Any, Any, Any], _: None) -> Any:
        carry, visitor, sums = state
        leaving = send(visitor)  # sent first, so that it travels while this shard computes
        carry, sums = visit(carry, visitor, sums)
        return (carry, leaving, send(sums)), None

    (carry, _, sums), _ = lax.scan(hop, (carry, visitor, sums), length=shards)
    return carry, sums


def _cut(tree: Any, most: int) -> Any:
    """[m, ...] -> [parts, size, ...] with equal sizes of at most `most`. Padding is not present."""

    def cut(a: jax.Array) -> jax.Array:
        parts = -(-len(a) // most)
        padding = [(0, -len(a) % parts)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, padding).reshape(parts, -1, *a.shape[1:])

    return jax.tree.map(cut, tree)


def _empty(shape: tuple[int, ...]) -> Softmax:
    return Softmax(jnp.full(shape, EMPTY_TOP), jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
