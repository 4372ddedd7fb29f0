"""Softmax attention within each text of packed rows, by the kernel that the devices have.

In: queries, keys, values, and which text each token belongs to. Out: mixed values. Three forms,
equal up to rounding:

splash   TPU: the Pallas kernel that JAX ships (splash attention), with segment ids
cudnn    GPU: cuDNN's flash attention through `jax.nn.dot_product_attention`
plain    anywhere: the definition; the only one that makes a [rows, heads, l, l] array
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from jaxcpt.sharding import find_platform, partition_spec

Form = Literal["splash", "cudnn", "plain"]

SAVED = "attention"

LANES = 128  # a TPU kernel's blocks are multiples of this many tokens
BLOCK = 512  # at most so many tokens in a block: 512 x 512 scores in float32 are 1 MiB of VMEM


def attention(
    query_rlhk: jax.Array,
    key_rljk: jax.Array,
    value_rljk: jax.Array,
    segments_rl: jax.Array,
    *,
    causal: bool,
) -> jax.Array:
    """Attention within each text of a row -> [r, l, h, k]; softmax in float32.

    Queries come scaled by k ** -0.5. segments_rl: a token attends to those of its row with its own
    number. h is a multiple of j. The result is named SAVED, for remat to keep; so are splash's
    softmax sums, without which cudnn computes forward again and plain its scores.
    """
    form = choose_form(find_platform(), query_rlhk.shape, query_rlhk.dtype)
    forms: dict[Form, Callable] = {
        "splash": attend_splash,
        "cudnn": attend_cudnn,
        "plain": attend_plain,
    }
    return forms[form](query_rlhk, key_rljk, value_rljk, segments_rl, causal=causal)


def choose_form(platform: str, query_shape: tuple[int, ...], dtype: jnp.dtype) -> Form:
    """The fused kernel where its conditions hold; tiny models and float32 on a GPU go without."""
    _, l, _, k = query_shape
    if platform == "tpu" and l % LANES == 0:
        return "splash"
    if platform == "gpu" and dtype == jnp.bfloat16 and k % 8 == 0 and k <= 128 and l % 2 == 0:
        return "cudnn"
    return "plain"


def allow(segments_rl: jax.Array, *, causal: bool) -> jax.Array:
    """Which token may attend to which -> bool [r, l, l]."""
    l = segments_rl.shape[1]
    allowed_rll = segments_rl[:, :, None] == segments_rl[:, None, :]
    return allowed_rll & jnp.tril(jnp.ones((l, l), bool)) if causal else allowed_rll


def attend_plain(
    query_rlhk: jax.Array,
    key_rljk: jax.Array,
    value_rljk: jax.Array,
    segments_rl: jax.Array,
    *,
    causal: bool,
) -> jax.Array:
    r, l, h, k = query_rlhk.shape
    j = key_rljk.shape[2]
    grouped = query_rlhk.reshape(r, l, j, h // j, k)
    scores = jnp.einsum("rljgk,rmjk->rjglm", grouped, key_rljk).astype(jnp.float32)
    scores = jnp.where(allow(segments_rl, causal=causal)[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value_rljk.dtype)
    mixed = jnp.einsum("rjglm,rmjk->rljgk", weights, value_rljk).reshape(r, l, h, k)
    return checkpoint_name(mixed, SAVED)


def attend_cudnn(
    query_rlhk: jax.Array,
    key_rljk: jax.Array,
    value_rljk: jax.Array,
    segments_rl: jax.Array,
    *,
    causal: bool,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """cuDNN knows no segments: they go in as a mask [r, 1, l, l] that all heads share."""
    mask = allow(segments_rl, causal=causal)[:, None]
    mixed_rlhk = jax.nn.dot_product_attention(
        query_rlhk, key_rljk, value_rljk, mask=mask, scale=1.0, implementation=implementation
    )
    return checkpoint_name(mixed_rlhk, SAVED)


def attend_splash(
    query_rlhk: jax.Array,
    key_rljk: jax.Array,
    value_rljk: jax.Array,
    segments_rl: jax.Array,
    *,
    causal: bool,
    interpret: bool = False,
) -> jax.Array:
    """l must be a multiple of 128. `interpret` runs the kernel without a TPU, slowly."""

    def on_one_device(
        query_rlhk: jax.Array, key_rljk: jax.Array, value_rljk: jax.Array, segments_rl: jax.Array
    ) -> jax.Array:
        l, h = query_rlhk.shape[1:3]
        mask = masks.CausalMask((l, l)) if causal else masks.FullMask((l, l))
        block = math.gcd(l, BLOCK)
        kernel = splash.make_splash_mha(
            masks.MultiHeadMask([mask] * h),
            block_sizes=splash.BlockSizes(
                block_q=block,
                block_kv=block,
                block_kv_compute=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_kv_dkv_compute=block,
                use_fused_bwd_kernel=True,
            ),
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=SAVED,
            interpret=interpret,
        )

        def attend_row(
            query_lhk: jax.Array, key_ljk: jax.Array, value_ljk: jax.Array, segments_l: jax.Array
        ) -> jax.Array:
            by_head = (a.swapaxes(0, 1) for a in (query_lhk, key_ljk, value_ljk))
            segments = splash.SegmentIds(q=segments_l, kv=segments_l)
            return kernel(*by_head, segments).swapaxes(0, 1)

        return jax.vmap(attend_row)(query_rlhk, key_rljk, value_rljk, segments_rl)

    if jax.sharding.get_abstract_mesh().empty:
        return on_one_device(query_rlhk, key_rljk, value_rljk, segments_rl)
    # A kernel is opaque to the compiler's partitioner: each device runs it on its rows and heads.
    heads, kv_heads = partition_spec("rlhk"), partition_spec("rljk")
    return jax.shard_map(
        on_one_device,
        in_specs=(heads, kv_heads, kv_heads, partition_spec("rl")),
        out_specs=heads,
        check_vma=False,
    )(query_rlhk, key_rljk, value_rljk, segments_rl)
