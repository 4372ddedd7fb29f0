"""Symmetric contrastive loss over the global batch (paper, section 2.1), exact on every mesh.

In: unit embeddings of all pairs, cut over the data shards, and the temperature. Out: one loss, its
global metrics, and (as the derivative) exact gradients for every embedding and the temperature. It
does not know the model that made the embeddings.

Each data shard compares its own x against the y of the whole batch. One similarity serves both
directions: a row's softmax is x -> y, a column's is y -> x, its sums merged across shards. Only the
y side travels.

`dense` gathers all candidates, holds [local x, global candidates] at once, and reduce-scatters
their gradient. `streaming` never holds more than a tile of that, at the price of computing each
similarity twice: candidates go round the ring of shards and come home with their sums, then with
their gradient. Loss and gradient are computed together, by hand, so that no collective is ever
differentiated: that is where the gradient scales of others go wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxcpt.sharding import DATA_AXES

Metrics = dict[str, jax.Array]
Gradient = tuple[jax.Array, jax.Array, jax.Array]  # of zx_bd, zc_cd, log_scale

TILE_ROWS = 1024
TILE_COLUMNS = 1024


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Labels:
    """What the loss must know of each text besides its embedding.

    present_b    the pair counts          hash_x_b2   64-bit hash of the text x, as two uint32
    present_c    the candidate counts     hash_c_c2   the same of each candidate

    Candidates c are, for each data shard, the y of its pairs in their order, and after them its
    hard negatives, if any.
    """

    present_b: jax.Array
    hash_x_b2: jax.Array
    present_c: jax.Array
    hash_c_c2: jax.Array


class Rows(NamedTuple):
    """The x of this shard's pairs."""

    z: jax.Array
    pair: jax.Array  # number in the global batch
    present: jax.Array
    hash_x: jax.Array
    hash_y: jax.Array
    right: jax.Array  # logit of the right answer


class Columns(NamedTuple):
    """Candidates: y of any shard's pairs, and hard negatives (pair -1)."""

    z: jax.Array
    pair: jax.Array
    present: jax.Array
    hash_c: jax.Array
    hash_x: jax.Array
    right: jax.Array


class Softmax(NamedTuple):
    """A log-sum-exp on the way, and how many candidates beat or equal the right one."""

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
    """Of rows with columns; all [rows, columns] but the first two and the scale."""

    rows: Rows
    columns: Columns
    scale: jax.Array
    logits: jax.Array
    own: jax.Array  # the right answer
    wrong: jax.Array  # another candidate that counts
    duplicates: jax.Array  # another candidate that is left out


class Tally(NamedTuple):
    """Sums over what was compared, float32."""

    spread: jax.Array  # exp(-2 |zx - zy|^2) of wrong y candidates (uniformity)
    wrong: jax.Array  # their number
    duplicates: jax.Array


# Logits this near are equal: the product that compares them rounds otherwise than the sum that
# makes the right one, and an encoder that has collapsed must not be credited for a tie.
TIE = 1e-4
EMPTY_TOP = -1e30  # finite, so that an absent row or column never makes a NaN


def contrastive_loss(
    zx_bd: jax.Array,
    zc_cd: jax.Array,
    log_scale: jax.Array,
    labels: Labels,
    form: Literal["dense", "streaming"] = "dense",
) -> tuple[jax.Array, Metrics]:
    """Mean over present pairs of both directions' cross-entropy, and metrics; differentiable.

    zx_bd, zc_cd: unit length, float32; c is b times (1 + hard negatives per pair). Rows are cut
    over the data shards of the mesh in force (`jax.set_mesh`).

    A candidate is left out of a pair's softmax (never a false negative) where its text equals the
    pair's x or y, or where it is the y of an equal x. Hard negatives are candidates for every x.
    """
    return _differentiable(form, zx_bd, zc_cd, log_scale, labels)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(
    form: str, zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[jax.Array, Metrics]:
    loss, metrics, _ = _on_shards(form, zx_bd, zc_cd, log_scale, labels)
    return loss, metrics


def _forward(
    form: str, zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[tuple[jax.Array, Metrics], Gradient]:
    loss, metrics, gradient = _on_shards(form, zx_bd, zc_cd, log_scale, labels)
    return (loss, metrics), gradient


def _backward(
    form: str, gradient: Gradient, cotangent: tuple[jax.Array, Metrics]
) -> tuple[jax.Array | None, ...]:
    return (*(cotangent[0] * part for part in gradient), None)


_differentiable.defvjp(_forward, _backward)


def _on_shards(
    form: str, zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[jax.Array, Metrics, Gradient]:
    cut, whole = PartitionSpec(DATA_AXES), PartitionSpec()
    return jax.shard_map(
        _on_one_shard if form == "dense" else _on_one_shard_by_tiles,
        in_specs=(cut, cut, whole, cut),
        out_specs=(whole, whole, (cut, cut, whole)),
        check_vma=False,  # nothing is differentiated through it
    )(zx_bd, zc_cd, log_scale, labels)


def _prepare(
    zx_bd: jax.Array, zc_cd: jax.Array, scale: jax.Array, labels: Labels
) -> tuple[Rows, Columns]:
    pairs, negatives = zx_bd.shape[0], zc_cd.shape[0] - zx_bd.shape[0]
    pair = lax.axis_index(DATA_AXES) * pairs + jnp.arange(pairs)
    right = scale * jnp.sum(zx_bd * zc_cd[:pairs], axis=-1)
    hash_y = labels.hash_c_c2[:pairs]
    rows = Rows(zx_bd, pair, labels.present_b, labels.hash_x_b2, hash_y, right)
    columns = Columns(
        z=zc_cd,
        pair=jnp.pad(pair, (0, negatives), constant_values=-1),
        present=labels.present_c,
        hash_c=labels.hash_c_c2,
        hash_x=jnp.pad(labels.hash_x_b2, ((0, negatives), (0, 0))),
        right=jnp.pad(right, (0, negatives)),
    )
    return rows, columns


def _compare(rows: Rows, columns: Columns, scale: jax.Array) -> Comparison:
    def equal(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a[:, None, 0] == b[None, :, 0]) & (a[:, None, 1] == b[None, :, 1])

    logits = scale * jnp.matmul(rows.z, columns.z.T, precision="highest")
    own = rows.pair[:, None] == columns.pair[None, :]
    alike = equal(rows.hash_x, columns.hash_x) & (columns.pair >= 0)[None, :]
    alike |= equal(rows.hash_y, columns.hash_c) | equal(rows.hash_x, columns.hash_c)
    present = rows.present[:, None] & columns.present[None, :]
    other = present & ~own
    return Comparison(rows, columns, scale, logits, present & own, other & ~alike, other & alike)


def _summarise(c: Comparison) -> tuple[Softmax, Softmax]:
    """The softmax sums of the rows over these columns, and of the columns over these rows."""
    counts = c.own | c.wrong
    logits = jnp.where(counts, c.logits, EMPTY_TOP)

    def reduce(axis: int, right: jax.Array) -> Softmax:
        top = jnp.max(logits, axis=axis)
        shifted = jnp.where(counts, jnp.exp(logits - jnp.expand_dims(top, axis)), 0.0)
        beaten = c.wrong & (logits >= jnp.expand_dims(right - TIE, axis))
        return Softmax(top, jnp.sum(shifted, axis=axis), jnp.sum(beaten, axis=axis))

    return reduce(1, c.rows.right), reduce(0, c.columns.right)


def _weigh(
    c: Comparison, row_log_sum: jax.Array, column_log_sum: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss's derivative with respect to each similarity, and to log_scale."""
    counts, is_y = c.own | c.wrong, c.columns.pair >= 0
    x_to_y = jnp.where(counts, jnp.exp(c.logits - row_log_sum[:, None]), 0.0)
    y_to_x = jnp.where(counts & is_y, jnp.exp(c.logits - column_log_sum[None, :]), 0.0)
    # Logits less the right one: what they have in common would cancel, but for its rounding.
    slope = x_to_y * (c.logits - c.rows.right[:, None])
    slope += y_to_x * (c.logits - c.columns.right[None, :])
    share = 0.5 / count
    return c.scale * share * (x_to_y + y_to_x - 2.0 * c.own), share * jnp.sum(slope)


def _tally(c: Comparison) -> Tally:
    wrong = c.wrong & (c.columns.pair >= 0)
    spread = jnp.sum(jnp.where(wrong, jnp.exp(4.0 * c.logits / c.scale - 4.0), 0.0))
    # A shard's or a tile's number is exact as an integer; that of a large batch overflows one.
    number, doubled = (jnp.sum(a).astype(jnp.float32) for a in (wrong, c.duplicates))
    return Tally(spread, number, doubled)


def _finish(
    rows: Rows, row_softmax: Softmax, column_softmax: Softmax, tally: Tally, scale: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Global loss and metrics from this shard's rows and the columns of its own y."""

    def add(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(rows.present, values, 0.0))

    x_to_y = row_softmax.log_sum() - rows.right
    y_to_x = column_softmax.log_sum() - rows.right
    sums = {
        "loss": add(x_to_y + y_to_x) / 2.0,
        "accuracy_x_to_y": add(row_softmax.rank == 0),
        "accuracy_y_to_x": add(column_softmax.rank == 0),
        "mrr": add(1.0 / (1.0 + row_softmax.rank)),
        "alignment": add(2.0 - 2.0 * rows.right / scale),
    }
    # One sum over the shards, between pass one and pass two. A CPU may run collectives that do not
    # wait for each other in any order, each device in its own, and then none of them ends.
    *totals, spread, wrong, duplicates, pairs = lax.psum(
        jnp.stack([*sums.values(), *tally, add(jnp.ones(()))]), DATA_AXES
    )
    count = jnp.maximum(pairs, 1.0)
    metrics = {name: total / count for name, total in zip(sums, totals, strict=True)}
    return metrics.pop("loss"), metrics | {
        "uniformity": jnp.log(spread / jnp.maximum(wrong, 1.0)),
        "masked_duplicates": duplicates,
        "pairs": count,
    }


def _gather(columns: Columns) -> Columns:
    return jax.tree.map(lambda a: lax.all_gather(a, DATA_AXES, tiled=True), columns)


def _scatter(gradient_cd: jax.Array) -> jax.Array:
    return lax.psum_scatter(gradient_cd, DATA_AXES, tiled=True)


def _on_one_shard(
    zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[jax.Array, Metrics, Gradient]:
    """The dense form: loss, metrics and the gradient for this shard's embeddings."""
    scale = jnp.exp(log_scale)
    rows, own_columns = _prepare(zx_bd, zc_cd, scale, labels)
    columns = _gather(own_columns)

    compared = _compare(rows, columns, scale)
    row_softmax, column_softmax = _summarise(compared)
    column_softmax = column_softmax.merge_shards()
    first = lax.axis_index(DATA_AXES) * zc_cd.shape[0]
    of_own = jax.tree.map(
        lambda a: lax.dynamic_slice_in_dim(a, first, zx_bd.shape[0]), column_softmax
    )
    loss, metrics = _finish(rows, row_softmax, of_own, _tally(compared), scale)

    log_sums = row_softmax.log_sum(), column_softmax.log_sum()
    weights, slope = _weigh(compared, *log_sums, metrics["pairs"])
    gradient = (
        jnp.matmul(weights, columns.z, precision="highest"),
        _scatter(jnp.matmul(weights.T, rows.z, precision="highest")),
        lax.psum(slope, DATA_AXES),
    )
    return loss, metrics, gradient


def _on_one_shard_by_tiles(
    zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[jax.Array, Metrics, Gradient]:
    """The streaming form, with the same contract as `_on_one_shard`.

    Pass one collects the softmax sums, pass two the gradient. In each, every shard's tiles of
    columns go round all shards, and are compared with the rows there block by block.
    """
    scale = jnp.exp(log_scale)
    rows, columns = _prepare(zx_bd, zc_cd, scale, labels)
    blocks, tiles = _cut(rows, TILE_ROWS), _cut(columns, TILE_COLUMNS)
    pairs, width = zx_bd.shape

    row_softmax, column_softmax, tally = _sum_tiles(blocks, tiles, scale)
    of_rows, of_own = (
        jax.tree.map(lambda a: a.reshape(-1)[:pairs], softmax)
        for softmax in (row_softmax, column_softmax)
    )
    loss, metrics = _finish(rows, of_rows, of_own, tally, scale)

    log_sums = row_softmax.log_sum(), column_softmax.log_sum()
    gradient_rows, gradient_columns, slope = _pull_tiles(
        blocks, tiles, *log_sums, scale, metrics["pairs"]
    )
    return (
        loss,
        metrics,
        (
            gradient_rows.reshape(-1, width)[:pairs],
            gradient_columns.reshape(-1, width)[: len(zc_cd)],
            lax.psum(slope, DATA_AXES),
        ),
    )


def _sum_tiles(blocks: Rows, tiles: Columns, scale: jax.Array) -> tuple[Softmax, Softmax, Tally]:
    """Of this shard's rows over all columns, and of its columns over all rows."""

    def visit(carry: Any, columns: Columns, column_softmax: Softmax) -> Any:
        def add_block(carry: Any, block_and_softmax: tuple[Rows, Softmax]) -> Any:
            column_softmax, tally = carry
            block, row_softmax = block_and_softmax
            compared = _compare(block, columns, scale)
            of_rows, of_columns = _summarise(compared)
            tally = jax.tree.map(jnp.add, tally, _tally(compared))
            carry = column_softmax.merge(of_columns), tally
            return carry, row_softmax.merge(of_rows)

        row_softmax, tally = carry
        (column_softmax, tally), row_softmax = lax.scan(
            add_block, (column_softmax, tally), (blocks, row_softmax)
        )
        return (row_softmax, tally), column_softmax

    def sum_tile(carry: Any, tile: Columns) -> Any:
        return _send_round(visit, carry, tile, _empty(tile.pair.shape))

    start = _empty(blocks.pair.shape), Tally(*jnp.zeros(3))
    (row_softmax, tally), column_softmax = lax.scan(sum_tile, start, tiles)
    return row_softmax, column_softmax, tally


def _pull_tiles(
    blocks: Rows,
    tiles: Columns,
    row_log_sum: jax.Array,
    column_log_sum: jax.Array,
    scale: jax.Array,
    count: jax.Array,
) -> Gradient:
    """With respect to this shard's rows and columns; and its rows' part of that of log_scale."""

    def visit(carry: Any, visitor: tuple[Columns, jax.Array], gradient_columns: jax.Array) -> Any:
        columns, column_log_sum = visitor

        def add_block(carry: Any, numbered: tuple[jax.Array, Rows, jax.Array]) -> Any:
            gradient_rows, slope, gradient_columns = carry
            number, block, row_log_sum = numbered
            compared = _compare(block, columns, scale)
            weights, more = _weigh(compared, row_log_sum, column_log_sum, count)
            gradient_columns += jnp.matmul(weights.T, block.z, precision="highest")
            gradient_block = jnp.matmul(weights, columns.z, precision="highest")
            # In place: as inputs and outputs of the scan they would lie in memory twice.
            gradient_rows = gradient_rows.at[number].add(gradient_block)
            return (gradient_rows, slope + more, gradient_columns), None

        numbered = jnp.arange(len(blocks.pair)), blocks, row_log_sum
        (*carry, gradient_columns), _ = lax.scan(add_block, (*carry, gradient_columns), numbered)
        return tuple(carry), gradient_columns

    def pull_tile(carry: Any, visitor: tuple[Columns, jax.Array]) -> Any:
        return _send_round(visit, carry, visitor, jnp.zeros_like(visitor[0].z))

    start = jnp.zeros_like(blocks.z), jnp.float32(0)
    (gradient_rows, slope), gradient_columns = lax.scan(pull_tile, start, (tiles, column_log_sum))
    return gradient_rows, gradient_columns, slope


def _send_round(visit: Callable, carry: Any, visitor: Any, sums: Any) -> tuple[Any, Any]:
    """Sends `visitor` to every shard in turn, and home again with what each added to its `sums`.

    `visit(carry, visitor, sums) -> carry, sums`, where the carry stays on its shard.
    """
    shards = lax.axis_size(DATA_AXES)
    ring = [(shard, (shard + 1) % shards) for shard in range(shards)]

    def send(tree: Any) -> Any:
        return jax.tree.map(lambda a: lax.ppermute(a, DATA_AXES, ring), tree)

    def hop(state: Any, _: None) -> Any:
        carry, visitor, sums = state
        leaving = send(visitor)  # first, so that it travels while it is compared here
        carry, sums = visit(carry, visitor, sums)
        return (carry, leaving, send(sums)), None

    (carry, _, sums), _ = lax.scan(hop, (carry, visitor, sums), length=shards)
    return carry, sums


def _cut(tree: Any, most: int) -> Any:
    """[m, ...] -> [parts, size, ...] with equal sizes of at most `most`; padding is not present."""

    def cut(a: jax.Array) -> jax.Array:
        parts = -(-len(a) // most)
        padding = [(0, -len(a) % parts)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, padding).reshape(parts, -1, *a.shape[1:])

    return jax.tree.map(cut, tree)


def _empty(shape: tuple[int, ...]) -> Softmax:
    return Softmax(jnp.full(shape, EMPTY_TOP), jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
