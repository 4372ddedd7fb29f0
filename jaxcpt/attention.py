"""Softmax attention within each text of packed rows, with the kernel that suits the devices.

In: queries, keys, values, and the number of each token's text. Out: weighted sums of the values.
The module does not know what a text is for. It has four forms, which are equal up to rounding:

splash   TPU: the Pallas kernel that JAX ships (splash attention), with segment ids
cudnn    GPU: cuDNN's flash attention through `jax.nn.dot_product_attention`
cached   CPU: few heads at a time, whose scores stay in the processor's cache
plain    any device: the definition. Only this form makes arrays of all heads' scores
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxcpt.operations import einsum, find_platform
from jaxcpt.sharding import partition_spec

Form = Literal["splash", "cudnn", "cached", "plain"]

SAVED = "attention"

LANES = 128  # a TPU kernel's blocks are multiples of this many tokens
PART, MOST_PARTS = 128, 8  # cached: queries in a part, and parts of a row
CACHED_SCORES = 1 << 20  # cached: most scores at a time. In float32 they take 4 MiB.
BLOCK = 512  # most tokens in a block: 512 x 512 scores in float32 take 1 MiB of VMEM


def attention(
    query_rlhk: jax.Array,
    key_rljk: jax.Array,
    value_rljk: jax.Array,
    segments_rl: jax.Array,
    *,
    causal: bool,
) -> jax.Array:
    """Attention within each text of a row -> [r, l, h, k], with the softmax in float32.

    query_rlhk: already scaled by k ** -0.5. h must be a multiple of j. segments_rl: the number of
    each token's text; a token attends only to tokens of its row with the same number.

    The result carries the name SAVED, so that remat can keep it. Splash also keeps its softmax
    sums. In a backward pass under remat, cudnn computes its forward pass again, and plain computes
    its scores again. Cached always computes them again.
    """
    form = choose_form(find_platform(), query_rlhk.shape, query_rlhk.dtype)
    forms: dict[Form, Callable] = {
        "splash": attend_splash,
        "cudnn": attend_cudnn,
        "cached": attend_cached,
        "plain": attend_plain,
    }
    return forms[form](query_rlhk, key_rljk, value_rljk, segments_rl, causal=causal)


def choose_form(platform: str, query_shape: tuple[int, ...], dtype: jnp.dtype) -> Form:
    """The form made for the platform if its conditions hold, otherwise plain.

    Plain serves rows or heads whose sizes do not fit the kernel, float32 on a GPU, and so few
    scores on a CPU that all of them stay in its cache.
    """
    r, l, h, k = query_shape
    if platform == "tpu" and l % LANES == 0:
        return "splash"
    if platform == "gpu" and dtype == jnp.bfloat16 and k % 8 == 0 and k <= 128 and l % 2 == 0:
        return "cudnn"
    if platform == "cpu" and r * h * l * l > CACHED_SCORES:
        return "cached"
    return "plain"


def allow(segments_rl: jax.Array, *, causal: bool, first: int = 0) -> jax.Array:
    """Which query may attend to which key -> bool [r, q, l]. The queries are the tokens from the
    index `first` on."""
    q, l = segments_rl.shape[1] - first, segments_rl.shape[1]
    allowed_rql = segments_rl[:, first:, None] == segments_rl[:, None, :]
    return allowed_rql & jnp.tril(jnp.ones((q, l), bool), k=first) if causal else allowed_rql


def attend_plain(
    query_rlhk: jax.Array,
    key_rljk: jax.Array,
    value_rljk: jax.Array,
    segments_rl: jax.Array,
    *,
    causal: bool,
) -> jax.Array:
    """The definition."""
    r, l, h, k = query_rlhk.shape
    j = key_rljk.shape[2]
    query_rljgk = query_rlhk.reshape(r, l, j, h // j, k)
    scores = einsum("rqjgk,rljk->rjgql", query_rljgk, key_rljk).astype(jnp.float32)
    scores = jnp.where(allow(segments_rl, causal=causal)[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(value_rljk.dtype)
    mixed_rljgk = einsum("rjgql,rljk->rqjgk", weights, value_rljk)
    return checkpoint_name(mixed_rljgk.reshape(r, l, h, k), SAVED)


def attend_cached(
    query_rlhk: jax.Array,
    key_rljk: jax.Array,
    value_rljk: jax.Array,
    segments_rl: jax.Array,
    *,
    causal: bool,
) -> jax.Array:
    """Computes few heads at a time, so that their scores stay in the processor's cache.

    A backward pass computes the scores again, which takes less time than reading them from memory.
    All of it is in float32, because conversions to and from bfloat16 take longer than they save.
    """

    def on_one_device(
        query_rlhk: jax.Array, key_rljk: jax.Array, value_rljk: jax.Array, segments_rl: jax.Array
    ) -> jax.Array:
        r, l, h, k = query_rlhk.shape
        j = key_rljk.shape[2]
        # One axis, n, for the rows and their key heads. Each key head has g query heads.
        grouped = query_rlhk.astype(jnp.float32).reshape(r, l, j, h // j, k)
        query_nglk = jnp.einsum("rljgk->rjglk", grouped).reshape(r * j, h // j, l, k)
        key_nlk, value_nlk = (
            kv_rljk.astype(jnp.float32).swapaxes(1, 2).reshape(r * j, l, k)
            for kv_rljk in (key_rljk, value_rljk)
        )
        segments_nl = jnp.repeat(segments_rl, j, axis=0)
        mixed_nglk = jax.lax.map(
            lambda arrays: _attend_with_one_key_head(*arrays, causal),
            (query_nglk, key_nlk, value_nlk, segments_nl),
            batch_size=max(CACHED_SCORES // (h // j * l * l), 1),
        )
        mixed_rljgk = jnp.einsum("rjglk->rljgk", mixed_nglk.reshape(r, j, h // j, l, k))
        return mixed_rljgk.reshape(r, l, h, k).astype(query_rlhk.dtype)

    arrays = query_rlhk, key_rljk, value_rljk, segments_rl
    return checkpoint_name(_on_each_device(on_one_device, arrays), SAVED)


@partial(jax.checkpoint, static_argnums=4)
def _attend_with_one_key_head(
    query_glk: jax.Array,
    key_lk: jax.Array,
    value_lk: jax.Array,
    segments_l: jax.Array,
    causal: bool,
) -> jax.Array:
    """Attention in one row: one key head and its query heads -> [g, l, k].

    With causal attention, long rows are computed in parts of their queries. The scores of a part's
    queries with the keys after the part are not computed, which saves up to 44 %.
    """
    l = len(key_lk)
    parts = min(max(l // PART, 1), MOST_PARTS) if causal else 1
    borders = [l * part // parts for part in range(parts + 1)]
    mixed = []
    for first, end in pairwise(borders):
        allowed_ql = allow(segments_l[None, :end], causal=causal, first=first)[0]
        scores_gql = jnp.einsum("gqk,lk->gql", query_glk[:, first:end], key_lk[:end])
        scores_gql = jnp.where(allowed_ql, scores_gql, -1e30)
        highest = jax.lax.stop_gradient(jnp.max(scores_gql, axis=-1, keepdims=True))
        weights_gql = jnp.exp(scores_gql - highest)
        sums = jnp.sum(weights_gql, axis=-1, keepdims=True)
        mixed.append(jnp.einsum("gql,lk->gqk", weights_gql, value_lk[:end]) / sums)
    return jnp.concatenate(mixed, axis=1)


def _on_each_device(attend: Callable[..., jax.Array], arrays: Sequence[jax.Array]) -> jax.Array:
    """Attention where each device of the mesh computes its own rows and heads.

    arrays: query, key, value and segments, as in `attention`.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return attend(*arrays)
    heads, kv_heads = partition_spec("rlhk"), partition_spec("rljk")
    return jax.shard_map(
        attend,
        in_specs=(heads, kv_heads, kv_heads, partition_spec("rl")),
        out_specs=heads,
        check_vma=False,
    )(*arrays)


def attend_cudnn(
    query_rlhk: jax.Array,
    key_rljk: jax.Array,
    value_rljk: jax.Array,
    segments_rl: jax.Array,
    *,
    causal: bool,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Passes the segments as a mask [r, 1, l, l], shared by all heads: cuDNN has no segments."""
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
    # Imported here, so that commands on other hardware start sooner.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

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

    # The compiler cannot partition a kernel.
    return _on_each_device(on_one_device, (query_rlhk, key_rljk, value_rljk, segments_rl))
