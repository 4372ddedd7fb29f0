"""Symmetric contrastive loss over the global batch (paper, section 2.1), exact on every mesh.

In: unit embeddings of all pairs, sharded over the data shards, and the temperature. Out: one loss,
its global metrics, and (as the derivative) exact gradients for every embedding and the temperature.
The loss does not know the model that made the embeddings.

Each data shard compares its own x with the y of the whole batch. One matrix of similarities serves
both directions: the softmax of a row is x -> y. The softmax of a column is y -> x, and its sums are
merged across shards. Only embeddings of y and of hard negatives are sent between shards.

`dense` gathers all candidates, holds [local x, global candidates] at once, and reduce-scatters
the gradient of the candidates. `streaming` (loss_streaming.py) holds one tile of that matrix at a
time and computes each similarity twice. Both forms compute the gradient together with the loss,
with formulas derived by hand. JAX therefore never differentiates a collective, which is where other
implementations scale their gradients wrongly.

    loss, metrics = contrastive_loss(zx_bd, zc_cd, log_scale, labels)
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxcpt import loss_terms
from jaxcpt.loss_streaming import Gradient, compute_streaming_loss
from jaxcpt.loss_terms import (
    Candidates,
    Labels,
    Scalars,
    compare,
    count_pairs,
    differentiate,
    finish,
    summarise,
)
from jaxcpt.sharding import DATA_AXES

__all__ = ["Labels", "Scalars", "contrastive_loss"]


def contrastive_loss(
    zx_bd: jax.Array,
    zc_cd: jax.Array,
    log_scale: jax.Array,
    labels: Labels,
    form: Literal["dense", "streaming"] = "dense",
) -> tuple[jax.Array, Scalars]:
    """The loss and its metrics. The loss can be differentiated.

    The loss is the mean, over present pairs and both directions, of the cross-entropy. zx_bd and
    zc_cd are float32 and have unit length; c is b times (1 + hard negatives per pair). Their rows
    are sharded over the data shards of the current mesh (`jax.set_mesh`).

    Hard negatives are candidates for every x. To avoid false negatives, a candidate is left out of
    a pair's softmax if its text equals the pair's x or y, or if it is the y of an equal x.
    """
    return _differentiable(form, zx_bd, zc_cd, log_scale, labels)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(
    form: str, zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[jax.Array, Scalars]:
    loss, metrics, _ = _on_shards(form, zx_bd, zc_cd, log_scale, labels)
    return loss, metrics


def _forward(
    form: str, zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[tuple[jax.Array, Scalars], Gradient]:
    loss, metrics, gradient = _on_shards(form, zx_bd, zc_cd, log_scale, labels)
    return (loss, metrics), gradient


def _backward(
    form: str, gradient: Gradient, cotangent: tuple[jax.Array, Scalars]
) -> tuple[jax.Array | None, ...]:
    return (*(cotangent[0] * part for part in gradient), None)


_differentiable.defvjp(_forward, _backward)


def _on_shards(
    form: str, zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[jax.Array, Scalars, Gradient]:
    cut, whole = PartitionSpec(DATA_AXES), PartitionSpec()
    return jax.shard_map(
        _compute_dense_loss if form == "dense" else compute_streaming_loss,
        in_specs=(cut, cut, whole, cut),
        out_specs=(whole, whole, (cut, cut, whole)),
        check_vma=False,  # JAX does not differentiate through it
    )(zx_bd, zc_cd, log_scale, labels)


def _compute_dense_loss(
    zx_bd: jax.Array, zc_cd: jax.Array, log_scale: jax.Array, labels: Labels
) -> tuple[jax.Array, Scalars, Gradient]:
    """Loss, metrics and the gradient for this shard's embeddings."""
    scale = jnp.exp(log_scale)
    queries, own_candidates = loss_terms.prepare(zx_bd, zc_cd, scale, labels)
    candidates = _gather(own_candidates)

    compared = compare(queries, candidates, scale)
    softmax_x, softmax_c = summarise(compared)
    softmax_c = softmax_c.merge_shards()
    first = lax.axis_index(DATA_AXES) * zc_cd.shape[0]
    softmax_y = jax.tree.map(
        lambda a: lax.dynamic_slice_in_dim(a, first, zx_bd.shape[0]), softmax_c
    )
    loss, metrics = finish(queries, softmax_x, softmax_y, count_pairs(compared), scale)

    weights_bc, slope = differentiate(
        compared, softmax_x.log_sum(), softmax_c.log_sum(), metrics["pairs"]
    )
    gradient = (
        jnp.matmul(weights_bc, candidates.z_cd, precision="highest"),
        _scatter(jnp.matmul(weights_bc.T, queries.z_bd, precision="highest")),
        lax.psum(slope, DATA_AXES),
    )
    return loss, metrics, gradient


def _gather(candidates: Candidates) -> Candidates:
    return jax.tree.map(lambda a: lax.all_gather(a, DATA_AXES, tiled=True), candidates)


def _scatter(gradient_cd: jax.Array) -> jax.Array:
    return lax.psum_scatter(gradient_cd, DATA_AXES, tiled=True)
