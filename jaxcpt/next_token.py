"""The generative loss: the cross-entropy of each next token of a text, exact on every mesh.

In: the last hidden state of each token, the token table, and the target of each token. Out:
-log p(target) of each target, or its sum over all targets, and (as the derivative) exact gradients
for hidden states and table. The module does not know how the hidden states were made.

    sum = sum_nats(hidden_gsd, table_vd, find_targets(cells))

The output layer is the token table itself, as in GPT, so the model has the same parameters as an
embedding model of its size. A target is always in the same text: the last token of a packed text
does not predict the first token of the next one. Each data shard processes its own tokens,
TOKENS_AT_ONCE at a time, so no device ever holds the logits of all tokens. If the mesh axis
`tensor` shards the vocabulary, each device has the logits of its own part, and the softmax sums are
merged. The gradient is computed together with the loss, with formulas derived by hand. So each
logit is computed once, and no collective is differentiated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcpt.model import Cells
from jaxcpt.operations import einsum_in_float32
from jaxcpt.sharding import fetch, partition_spec

TOKENS_AT_ONCE = 2048
"""Tokens of a data shard in one block. With a vocabulary of 50,304, their float32 logits take
412 MB."""
NO_TARGET = -1

HIDDEN, TARGETS = partition_spec("gld"), partition_spec("gl")
TABLE, STORED = partition_spec("vd"), partition_spec("vd", "storage")


def find_targets(cells: Cells) -> jax.Array:
    """The token that follows each token in its text, [..., s]; NO_TARGET at the end of a text.

    cells: Cells with any leading axes. s counts the tokens of a cell, row after row.
    """
    tokens, segments = jnp.asarray(cells.tokens_grl), jnp.asarray(cells.segments_grl)
    goes_on = (segments[..., 1:] == segments[..., :-1]) & (segments[..., 1:] > 0)
    targets = jnp.where(goes_on, tokens[..., 1:], NO_TARGET)
    last = jnp.full_like(tokens[..., :1], NO_TARGET)
    return jnp.concatenate([targets, last], axis=-1).reshape(*tokens.shape[:-2], -1)


@jax.custom_vjp
def sum_nats(hidden_gsd: jax.Array, table_vd: jax.Array, targets_gs: jax.Array) -> jax.Array:
    """The sum of -log p(target) over the targets of all data shards, float32; differentiable.

    table_vd: the token table as it is stored. Matrix products use the dtype of the hidden states
    and accumulate in float32.
    """
    return jnp.sum(list_nats(hidden_gsd, table_vd, targets_gs))


def list_nats(hidden_gsd: jax.Array, table_vd: jax.Array, targets_gs: jax.Array) -> jax.Array:
    """-log p(target) of each token, float32 [g, s]; 0 for a token without a target."""
    return jax.shard_map(
        _find_nats, in_specs=(HIDDEN, TABLE, TARGETS), out_specs=TARGETS, check_vma=False
    )(hidden_gsd, _fetch(table_vd, hidden_gsd), targets_gs)


def _fetch(table_vd: jax.Array, hidden_gsd: jax.Array) -> jax.Array:
    return fetch(table_vd, "vd", hidden_gsd.dtype.name)


def _forward(
    hidden_gsd: jax.Array, table_vd: jax.Array, targets_gs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    nats_gs, dhidden_gsd, dtable_vd = jax.shard_map(
        _find_gradient,
        in_specs=(HIDDEN, TABLE, TARGETS),
        out_specs=(TARGETS, HIDDEN, STORED),
        check_vma=False,  # JAX does not differentiate through it
    )(hidden_gsd, _fetch(table_vd, hidden_gsd), targets_gs)
    return jnp.sum(nats_gs), (dhidden_gsd, dtable_vd.astype(table_vd.dtype))


def _backward(
    gradient: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    dhidden_gsd, dtable_vd = ((cotangent * part).astype(part.dtype) for part in gradient)
    return dhidden_gsd, dtable_vd, None


sum_nats.defvjp(_forward, _backward)


class Block(NamedTuple):
    """Tokens of this data shard that are processed at once."""

    hidden_sd: jax.Array
    targets_s: jax.Array


def _cut(hidden_gsd: jax.Array, targets_gs: jax.Array) -> Block:
    """This shard's tokens in blocks [n, s]. Padding tokens, which have no target, fill the last."""
    hidden_sd = hidden_gsd.reshape(-1, hidden_gsd.shape[-1])
    size = min(TOKENS_AT_ONCE, len(hidden_sd))
    fill = -len(hidden_sd) % size
    hidden_sd = jnp.pad(hidden_sd, ((0, fill), (0, 0)))
    targets_s = jnp.pad(targets_gs.reshape(-1), (0, fill), constant_values=NO_TARGET)
    return Block(hidden_sd.reshape(-1, size, hidden_sd.shape[-1]), targets_s.reshape(-1, size))


def _compare(block: Block, table_vd: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns -log p(target) of each token; the probabilities of this device's part of the
    vocabulary [s, v]; and the index of the target in that part."""
    first = lax.axis_index("tensor") * len(table_vd)
    logits_sv = einsum_in_float32("sd,vd->sv", block.hidden_sd, table_vd)
    is_target_sv = jnp.arange(len(table_vd)) + first == block.targets_s[:, None]
    top_s = lax.pmax(jnp.max(logits_sv, axis=-1), "tensor")
    powers_sv = jnp.exp(logits_sv - top_s[:, None])
    right_s = jnp.sum(jnp.where(is_target_sv, logits_sv, 0.0), axis=-1)
    # Sum over `tensor` in one collective: CPU devices may start two independent collectives in
    # different orders, and then they wait for each other for ever.
    sums_2s = jnp.stack([jnp.sum(powers_sv, axis=-1), right_s])
    total_s, right_s = lax.psum(sums_2s, "tensor")
    nats_s = jnp.where(block.targets_s >= 0, top_s + jnp.log(total_s) - right_s, 0.0)
    return nats_s, powers_sv / total_s[:, None], is_target_sv


def _find_nats(hidden_gsd: jax.Array, table_vd: jax.Array, targets_gs: jax.Array) -> jax.Array:
    blocks = _cut(hidden_gsd, targets_gs)
    nats_ns = lax.map(lambda block: _compare(block, table_vd)[0], blocks)
    return nats_ns.reshape(-1)[: targets_gs.size].reshape(targets_gs.shape)


def _find_gradient(
    hidden_gsd: jax.Array, table_vd: jax.Array, targets_gs: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns -log p(target) of this shard's tokens, and the gradients of the sum over all shards
    with respect to this shard's hidden states and its part of the stored table."""

    def add_block(
        dtable_vd: jax.Array, block: Block
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        nats_s, share_sv, is_target_sv = _compare(block, table_vd)
        counts_s = block.targets_s >= 0
        dlogits_sv = jnp.where(counts_s[:, None], share_sv - is_target_sv, 0.0)
        dlogits_sv = dlogits_sv.astype(block.hidden_sd.dtype)
        dtable_vd += einsum_in_float32("sv,sd->vd", dlogits_sv, block.hidden_sd)
        dhidden_sd = lax.psum(einsum_in_float32("sv,vd->sd", dlogits_sv, table_vd), "tensor")
        return dtable_vd, (nats_s, dhidden_sd.astype(block.hidden_sd.dtype))

    start = jnp.zeros(table_vd.shape, jnp.float32)
    blocks = _cut(hidden_gsd, targets_gs)
    dtable_vd, (nats_ns, dhidden_nsd) = lax.scan(add_block, start, blocks)
    dtable_vd = lax.psum_scatter(dtable_vd, "fsdp", scatter_dimension=1, tiled=True)
    dhidden_sd = dhidden_nsd.reshape(-1, hidden_gsd.shape[-1])[: targets_gs.size]
    return (
        nats_ns.reshape(-1)[: targets_gs.size].reshape(targets_gs.shape),
        dhidden_sd.reshape(hidden_gsd.shape),
        lax.psum(dtable_vd, "data"),
    )
