"""Exact nearest neighbours: the k documents with the highest inner products, on all devices.

In: query vectors, and document vectors as one array, a memory map or an iterable of shards. Out:
scores and document numbers, best first. The devices process one tile of documents at a time and
keep only the best k so far. So neither the matrix of all scores nor the corpus has to fit in
memory. The module knows neither texts nor models.

Letters here: q queries, c blocks of queries, n documents, d coordinates, k best.
"""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcpt import config
from jaxcpt.errors import UserError
from jaxcpt.normalise import normalise
from jaxcpt.sharding import make_mesh

NO_ROW = np.iinfo(np.int32).max


def top_k(
    queries_qd: np.ndarray,
    corpus: np.ndarray | Iterable[np.ndarray],
    k: int,
    *,
    width: int | None = None,
    tile_rows: int = 16_384,
    query_rows: int = 1_024,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents of each query: scores [q, k] float32 and row numbers [q, k], best first.

    corpus: [n, d], or its shards in order; float or int8 (`quantize`). width: use only the first
    coordinates (Matryoshka). Scores are inner products; if vectors are int8 or cut, they are
    cosines. Among equal scores the lower row comes first. Fewer than k documents give fewer
    columns. Raises UserError for vectors that are not finite and for an empty corpus.
    """
    queries_qd = np.asarray(queries_qd, np.float32)
    if bad := np.flatnonzero(~np.isfinite(queries_qd).all(axis=1)).tolist():
        raise UserError(f"query {bad[0]}: its vector is not finite; look at the model that made it")
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    devices = list(devices or jax.local_devices())
    alone = [make_mesh(config.Mesh(), [device]) for device in devices]  # not the run's mesh
    blocks_cqd = _cut_queries(queries_qd, query_rows)
    blocks = [jax.device_put(blocks_cqd, device) for device in devices]
    nothing = _nothing(blocks_cqd.shape[0], blocks_cqd.shape[1], k)
    best = [jax.device_put(nothing, device) for device in devices]
    count = turn = 0
    for shard_nd in [corpus] if isinstance(corpus, np.ndarray) else corpus:
        if shard_nd.ndim != 2 or shard_nd.shape[1] != queries_qd.shape[1]:
            raise UserError(
                f"documents from row {count} on have shape {shard_nd.shape}, queries have "
                f"{queries_qd.shape[1]} coordinates; embed both with the same model"
            )
        rows = min(tile_rows, -(-len(shard_nd) // len(devices)))
        for start in range(0, len(shard_nd), max(rows, 1)):
            tile_nd = shard_nd[start : start + rows]
            at = turn % len(devices)
            tile = jax.device_put(_pad(tile_nd, _round_up(len(tile_nd))), devices[at])
            place = jax.device_put(np.array([count + start, len(tile_nd)], np.int32), devices[at])
            jax.block_until_ready(best[at])  # otherwise transfers pile up in memory
            with jax.set_mesh(alone[at]):
                best[at] = _merge(best[at], blocks[at], tile, place, width)
            turn += 1
        count += len(shard_nd)
        jax.block_until_ready(best)  # the caller may reuse the shard's memory
    return _gather(jax.device_get(best), len(queries_qd), min(k, count))


@functools.partial(jax.jit, static_argnames="width", donate_argnums=0)
def _merge(
    best: tuple[jax.Array, jax.Array, jax.Array],
    blocks_cqd: jax.Array,
    tile_nd: jax.Array,
    place: jax.Array,
    width: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Merges the documents of a tile into the best k so far.

    best: scores and rows [c, q, k], and the lowest row that is not finite. place: the tile's first
    row and its number of rows. Among equal scores, `lax.top_k` puts the lower index first. Earlier
    tiles have lower rows, so equal scores stay in the order of their rows.
    """
    first_row, count = place[0], place[1]
    is_int8 = tile_nd.dtype == jnp.int8
    tile_nd = tile_nd.astype(jnp.float32)
    if width is not None:
        tile_nd, blocks_cqd = tile_nd[:, :width], normalise(blocks_cqd[..., :width])
    if width is not None or is_int8:
        tile_nd = normalise(tile_nd)
    offsets_n = jnp.arange(len(tile_nd), dtype=jnp.int32)
    real_n = offsets_n < count

    def merge_block(block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        queries_qd, scores_qk, rows_qk = block
        scores_qn = jnp.einsum(
            "qd,nd->qn", queries_qd, tile_nd, precision=jax.lax.Precision.HIGHEST
        )
        # If a row has a NaN or an infinity, its product with any query is not finite either.
        bad_n = real_n & ~jnp.isfinite(scores_qn[0])
        bad = jnp.min(jnp.where(bad_n, first_row + offsets_n, NO_ROW))
        scores_qn = jnp.where(real_n, scores_qn, -jnp.inf)
        best_qk, at_qk = jax.lax.top_k(scores_qn, min(scores_qk.shape[1], len(tile_nd)))
        # Merging two short lists is faster than sorting the tile together with the best so far.
        both_q2k = jnp.concatenate([scores_qk, best_qk], axis=1)
        rows_q2k = jnp.concatenate([rows_qk, first_row + at_qk.astype(jnp.int32)], axis=1)
        best_qk, at_qk = jax.lax.top_k(both_q2k, scores_qk.shape[1])
        return best_qk, jnp.take_along_axis(rows_q2k, at_qk, axis=1), bad

    scores_cqk, rows_cqk, bad_c = jax.lax.map(merge_block, (blocks_cqd, best[0], best[1]))
    return scores_cqk, rows_cqk, jnp.minimum(best[2], bad_c.min())


def _nothing(blocks: int, rows: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = (blocks, rows, k)
    rows_cqk = np.full(shape, NO_ROW, np.int32)
    return np.full(shape, -np.inf, np.float32), rows_cqk, np.array(NO_ROW, np.int32)


def _gather(
    best: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], queries: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best k of all devices, by higher score and then by lower row."""
    if (bad := min(int(lowest) for *_, lowest in best)) < NO_ROW:
        raise UserError(f"document {bad}: its vector is not finite; look at the model that made it")
    if k == 0:
        raise UserError("the corpus to search is empty; give it at least one document")
    scores_qk, rows_qk = (
        np.concatenate([entry[i].reshape(-1, entry[i].shape[-1]) for entry in best], axis=1)
        for i in range(2)
    )
    order_qk = np.lexsort((rows_qk, -scores_qk))[:queries, :k]
    scores_qk = np.take_along_axis(scores_qk[:queries], order_qk, axis=1)
    return scores_qk, np.take_along_axis(rows_qk[:queries], order_qk, axis=1)


def _cut_queries(queries_qd: np.ndarray, query_rows: int) -> np.ndarray:
    """The queries in equal blocks [c, q, d]. The last block is padded with zeros."""
    rows = min(query_rows, _round_up(len(queries_qd)))
    blocks = max(1, -(-len(queries_qd) // rows))
    return _pad(queries_qd, blocks * rows).reshape(blocks, rows, -1)


def _round_up(count: int) -> int:
    """The next power of two, so that few shapes are compiled."""
    return 1 << max(count - 1, 0).bit_length()


def _pad(rows_nd: np.ndarray, count: int) -> np.ndarray:
    if len(rows_nd) == count:
        return np.asarray(rows_nd)
    missing_nd = np.zeros((count - len(rows_nd), rows_nd.shape[1]), rows_nd.dtype)
    return np.concatenate([rows_nd, missing_nd])
