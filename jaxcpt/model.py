"""The Transformer encoder.

In: packed rows of tokens. Out: one vector for each text. Only this module imports flax. Every
parameter names its axes by letters; `sharding.py` decides which axes are sharded. The encoder knows
neither pairs nor losses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxcpt import config
from jaxcpt.attention import SAVED, attention
from jaxcpt.errors import UserError
from jaxcpt.operations import Array, einsum, find_platform, gelu, take_rows
from jaxcpt.packing import CellArrays
from jaxcpt.rotary import rotate
from jaxcpt.sharding import constrain, fetch, find_misfit

Params = Any
"""A nested dict of float32 arrays."""

UNROLLED = {"cpu": 12, "gpu": 4, "tpu": 4}
"""Models with at most this many layers are compiled layer by layer instead of as a loop. That takes
longer to compile, but on a CPU a loop copies all that the backward pass needs. It was measured on a
CPU only (docs/performance-log.md)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cells:
    """Texts packed into rows: one cell of rows for each of g data shards.

    tokens_grl     token ids; 0 is padding
    segments_grl   1 + the number of the token's text in its cell; 0 is padding
    positions_grl  position of the token in its text
    ends_gt        index of each text's closing delimiter among the cell's r * l tokens; 0 for an
                   absent text
    """

    tokens_grl: Array
    segments_grl: Array
    positions_grl: Array
    ends_gt: Array


def make_cells(arrays: CellArrays) -> Cells:
    return Cells(arrays.tokens, arrays.segments, arrays.positions, arrays.ends)


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32."""

    settings: config.Model
    letter: str = "d"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype, x = x.dtype, x.astype(jnp.float32)
        scale = self.weight("scale", nn.initializers.ones, x.shape[-1])
        if self.settings.norm == "rmsnorm" or self.letter == "k":
            epsilon = 1e-6 if self.settings.norm_epsilon is None else self.settings.norm_epsilon
            x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)
            return (x * scale).astype(dtype)
        # Compute both moments in one pass over x, as flax's own LayerNorm does.
        mean, square = (jnp.mean(moment, axis=-1, keepdims=True) for moment in (x, x * x))
        epsilon = 1e-5 if self.settings.norm_epsilon is None else self.settings.norm_epsilon
        x = (x - mean) * jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + epsilon)
        return (x * scale + self.weight("bias", nn.initializers.zeros, x.shape[-1])).astype(dtype)

    def weight(self, name: str, init: Callable, size: int) -> jax.Array:
        named = nn.with_logical_partitioning(init, (self.letter,))
        value: Any = self.param(name, named, (size,))
        return fetch(value, self.letter, "float32")


class Block(nn.Module):
    """A Transformer layer: attention and MLP, whose results are added to the residual stream.

    A norm is applied before each of the two branches (GPT) or after each addition (BERT). With
    `parallel_residual`, both branches read the same stream (GPT-NeoX).
    """

    settings: config.Model
    adapter: config.Adapter | None

    def weight(self, name: str, letters: str, shape: tuple[int, ...], init: Callable) -> jax.Array:
        """A parameter, converted to the dtype and the sharding that the computation uses."""
        value: Any = self.param(name, nn.with_logical_partitioning(init, tuple(letters)), shape)
        return fetch(value, letters, self.settings.compute_dtype)

    def multiply(
        self, spec: str, x: jax.Array, name: str, shape: tuple[int, ...], init: Callable
    ) -> jax.Array:
        """x W, by the einsum `spec`. If an adapter targets W: x W + alpha / rank * (x A) B.

        A has those axes of W that x also has, and B has the others. The product A B is not
        computed, and neither is a gradient of W.
        """
        x_letters, letters, y_letters = spec.replace("->", ",").split(",")
        y = einsum(spec, x, self.weight(name, letters, shape, init))
        if self.adapter is None or name not in self.adapter.targets:
            return y
        sizes = dict(zip(letters, shape, strict=True)) | {"a": self.adapter.rank}
        inputs = "".join(letter for letter in letters if letter in x_letters)
        down, up = inputs + "a", "a" + letters.removeprefix(inputs)
        start = nn.initializers.normal(math.prod(sizes[letter] for letter in inputs) ** -0.5)
        a = self.weight(f"{name}_a", down, tuple(sizes[letter] for letter in down), start)
        b = self.weight(
            f"{name}_b", up, tuple(sizes[letter] for letter in up), nn.initializers.zeros
        )
        xa_rla = einsum(f"{x_letters},{down}->rla", x, a)
        xa_rla = xa_rla * (self.adapter.alpha / self.adapter.rank)
        return y + einsum(f"rla,{up}->{y_letters}", xa_rla, b)

    def add_bias(self, x: jax.Array, name: str, letters: str, shape: tuple[int, ...]) -> jax.Array:
        """x + a learnt bias, in float32, because the backward pass sums a bias's gradient over all
        tokens. In bfloat16 that sum was up to 12 % wrong."""
        init = nn.with_logical_partitioning(nn.initializers.zeros, tuple(letters))
        bias: Any = self.param(name, init, shape)
        return (x.astype(jnp.float32) + fetch(bias, letters, "float32")).astype(x.dtype)

    @nn.compact
    def __call__(
        self, hidden_rld: jax.Array, segments_rl: jax.Array, positions_rl: jax.Array
    ) -> tuple[jax.Array, None]:
        m = self.settings
        attention_norm, mlp_norm = Norm(m, name="attention_norm"), Norm(m, name="mlp_norm")
        if m.norm_placement == "post":
            attended_rld = self.attend(hidden_rld, segments_rl, positions_rl)
            hidden_rld = attention_norm(hidden_rld + attended_rld)
            hidden_rld = checkpoint_name(constrain(hidden_rld, residual_letters(m)), "middle")
            hidden_rld = mlp_norm(hidden_rld + self.transform(hidden_rld))
            return constrain(hidden_rld, residual_letters(m)), None
        attended_rld = self.attend(attention_norm(hidden_rld), segments_rl, positions_rl)
        if m.parallel_residual:
            attended_rld += self.transform(mlp_norm(hidden_rld))
            return constrain(hidden_rld + attended_rld, residual_letters(m)), None
        hidden_rld = hidden_rld + attended_rld
        hidden_rld = checkpoint_name(constrain(hidden_rld, residual_letters(m)), "middle")
        hidden_rld = hidden_rld + self.transform(mlp_norm(hidden_rld))
        return constrain(hidden_rld, residual_letters(m)), None

    def attend(
        self, x_rld: jax.Array, segments_rl: jax.Array, positions_rl: jax.Array
    ) -> jax.Array:
        m = self.settings
        d, h, j, k = m.width, m.heads, m.key_heads, m.head_size
        start = nn.initializers.normal(0.02)
        query_rlhk = self.multiply("rld,dhk->rlhk", x_rld, "query", (d, h, k), start)
        key_rljk = self.multiply("rld,djk->rljk", x_rld, "key", (d, j, k), start)
        value_rljk = self.multiply("rld,djk->rljk", x_rld, "value", (d, j, k), start)
        if m.has_qkv_biases:
            query_rlhk = self.add_bias(query_rlhk, "query_bias", "hk", (h, k))
            key_rljk = self.add_bias(key_rljk, "key_bias", "jk", (j, k))
            value_rljk = self.add_bias(value_rljk, "value_bias", "jk", (j, k))
        if m.qk_norm:
            query_rlhk = Norm(m, "k", name="query_norm")(query_rlhk)
            key_rljk = Norm(m, "k", name="key_norm")(key_rljk)
        if m.positions == "rotary":
            query_rlhk = rotate(query_rlhk, positions_rl, m)
            key_rljk = rotate(key_rljk, positions_rl, m)
        # Named for remat after bias and scale, so that the backward pass does not repeat them.
        query_rlhk = checkpoint_name(query_rlhk * k**-0.5, "query")
        key_rljk = checkpoint_name(key_rljk, "key")
        value_rljk = checkpoint_name(value_rljk, "value")
        mixed_rlhk = attention(query_rlhk, key_rljk, value_rljk, segments_rl, causal=m.causal)
        mixed_rld = self.multiply("rlhk,hkd->rld", mixed_rlhk, "out", (h, k, d), branch_end(m))
        return self.add_bias(mixed_rld, "out_bias", "d", (d,)) if m.biases else mixed_rld

    def transform(self, x_rld: jax.Array) -> jax.Array:
        m = self.settings
        d, f = m.width, m.mlp_size
        start = nn.initializers.normal(0.02)
        inner_rlf = self.multiply("rld,df->rlf", x_rld, "up", (d, f), start)
        if m.biases:
            inner_rlf = self.add_bias(inner_rlf, "up_bias", "f", (f,))
        inner_rlf = checkpoint_name(inner_rlf, "up")
        if m.mlp == "swiglu":
            gate_rlf = self.multiply("rld,df->rlf", x_rld, "gate", (d, f), start)
            inner_rlf = nn.silu(checkpoint_name(gate_rlf, "gate")) * inner_rlf
        elif m.mlp == "relu":
            inner_rlf = nn.relu(inner_rlf)
        else:
            inner_rlf = gelu(inner_rlf, approximate=m.mlp == "gelu")
        out_rld = self.multiply("rlf,fd->rld", inner_rlf, "down", (f, d), branch_end(m))
        return self.add_bias(out_rld, "down_bias", "d", (d,)) if m.biases else out_rld


def residual_letters(m: config.Model) -> str:
    return "rle" if m.cut_residual else "rld"


def branch_end(m: config.Model) -> Callable:
    """Initialiser of the last matrix of a branch. GPT-2's values get smaller with more layers."""
    if m.weighted_mean.residual_start == "zero":
        return nn.initializers.zeros
    return nn.initializers.normal(0.02 / (2 * max(m.layers, 1)) ** 0.5)


REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.save_only_these_names(
        "query", "key", "value", SAVED, "middle", "up", "gate"
    ),
    "everything": jax.checkpoint_policies.nothing_saveable,
}


class Encoder(nn.Module):
    """Embeds the tokens, applies all blocks in one scan, and pools: Cells -> z_gtd, not normalised.

    With pools=False: hidden_gsd, the last hidden state of each token, in the compute dtype.
    by_layer: the parameters have a tree for each layer, as `embed.split_layers` makes them.
    """

    settings: config.Model
    vocabulary: int
    longest: int
    adapter: config.Adapter | None = None
    by_layer: bool = False

    @nn.compact
    def __call__(self, cells: Cells, pools: bool = True) -> jax.Array:
        m = self.settings
        g, r, l = cells.tokens_grl.shape
        tokens_rl = cells.tokens_grl.reshape(g * r, l)
        segments_rl = cells.segments_grl.reshape(g * r, l)
        positions_rl = cells.positions_grl.reshape(g * r, l)

        hidden_rld = self.look_up("tokens", "vd", self.vocabulary, tokens_rl)
        if m.positions == "learnt" and m.layers:  # without layers there is no order
            rows = self.position_rows
            hidden_rld = hidden_rld + self.look_up("positions", "ld", rows, positions_rl)
        if m.embedding_norm:
            hidden_rld = Norm(m, name="embedding_norm")(hidden_rld)
        hidden_rld = constrain(hidden_rld, residual_letters(m))
        if m.layers:
            hidden_rld = self.apply_blocks(hidden_rld, segments_rl, positions_rl)
            if m.final_norm:
                hidden_rld = Norm(m, name="final_norm")(hidden_rld)

        hidden_gsd = constrain(hidden_rld.reshape(g, r * l, m.width), "gld")
        if not pools:
            return hidden_gsd
        if m.pooling == "mean":
            z_gtd = self.add_up(hidden_gsd, cells)
        else:
            at_gt = cells.ends_gt
            if m.pooling == "first":
                length_gt = jnp.take_along_axis(positions_rl.reshape(g, r * l), at_gt, axis=1)
                at_gt = at_gt - length_gt
            z_gtd = jnp.take_along_axis(hidden_gsd, at_gt[..., None], axis=1)
        return z_gtd.astype(jnp.float32)

    def apply_blocks(
        self, hidden_rld: jax.Array, segments_rl: Array, positions_rl: Array
    ) -> jax.Array:
        m = self.settings
        block: Any = Block
        if m.remat != "nothing":
            block = nn.remat(Block, policy=REMAT_POLICIES[m.remat], prevent_cse=False)
        if self.by_layer:
            for i in range(m.layers):
                layer = block(m, self.adapter, name=f"block_{i}")
                hidden_rld, _ = layer(hidden_rld, segments_rl, positions_rl)
            return hidden_rld
        hidden_rld, _ = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=m.layers,
            unroll=m.layers if m.layers <= UNROLLED[find_platform()] else 1,
            metadata_params={nn.PARTITION_NAME: "i"},
        )(m, self.adapter, name="blocks")(hidden_rld, segments_rl, positions_rl)
        return hidden_rld

    @property
    def position_rows(self) -> int:
        return self.settings.position_rows or self.longest

    def look_up(self, name: str, letters: str, size: int, ids_rl: Array) -> jax.Array:
        """Rows of a learnt table [size, d], in the compute dtype."""
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), tuple(letters))
        table: Any = self.param(name, init, (size, self.settings.width))
        table = fetch(table, letters, self.settings.compute_dtype)
        return take_rows(table, ids_rl) * self.settings.weighted_mean.embedding_scale

    def add_up(self, hidden_gsd: jax.Array, cells: Cells) -> jax.Array:
        """The (weighted) sum of each text's hidden states. It has the direction of their mean."""
        m, (g, t) = self.settings.weighted_mean, cells.ends_gt.shape
        segments_gs = cells.segments_grl.reshape(g, -1)
        for used, name, letter, size, ids_grl in (
            (m.token_weights, "token_weights", "v", self.vocabulary, cells.tokens_grl),
            (m.position_weights, "position_weights", "l", self.position_rows, cells.positions_grl),
        ):
            if used:
                zeros = nn.with_logical_partitioning(nn.initializers.zeros, (letter,))
                logs: Any = self.param(name, zeros, (size,))
                weights_gs = jnp.take(jnp.exp(logs), ids_grl.reshape(g, -1), axis=0)
                hidden_gsd = hidden_gsd * weights_gs[..., None].astype(hidden_gsd.dtype)
        add = jax.vmap(lambda h_sd, s_s: jax.ops.segment_sum(h_sd, s_s, num_segments=t + 1))
        return add(hidden_gsd.astype(jnp.float32), segments_gs)[:, 1:]


def make_encoder(experiment: config.Experiment) -> Encoder:
    t = experiment.tokenizer
    return Encoder(experiment.model, t.vocabulary, t.longest, experiment.adapter)


def initialise(encoder: Encoder, seed: jax.Array) -> Params:
    """New parameters from a PRNG key. Under `jax.eval_shape` it gives only their shapes."""
    return nn.unbox(encoder.init(seed, _tiny_cells())["params"])


def encode(encoder: Encoder, params: Params, cells: Cells) -> jax.Array:
    """Cells -> z_gtd, float32, not normalised. The vectors of absent texts have no meaning."""
    z_gtd: Any = encoder.apply({"params": params}, cells)
    return z_gtd


def encode_tokens(encoder: Encoder, params: Params, cells: Cells) -> jax.Array:
    """Cells -> hidden_gsd, the last hidden state of each token, in the compute dtype."""
    hidden_gsd: Any = encoder.apply({"params": params}, cells, pools=False)
    return hidden_gsd


def check_model_fits(mesh: jax.sharding.Mesh, experiment: config.Experiment) -> None:
    """Raises UserError, naming field and mesh axis, if a sharded axis does not divide evenly."""
    fields = {
        "d": "model.width",
        "h": "model.heads",
        "j": "model.kv_heads",
        "f": "model.mlp_width",
        "v": "tokenizer.vocabulary",
        "e": "model.width (cut_residual)",
    }
    encoder = make_encoder(experiment)
    shapes = nn.unbox(_shape_params(encoder))
    axes = jax.tree.leaves(name_axes(encoder), is_leaf=lambda node: isinstance(node, tuple))
    cut = [(a.shape, letters) for a, letters in zip(jax.tree.leaves(shapes), axes, strict=True)]
    if experiment.model.cut_residual:
        cut.append(((experiment.model.width,), ("e",)))
    sizes = {k: size for shape, letters in cut for k, size in zip(letters, shape, strict=True)}
    for letter, name in fields.items():
        if letter in sizes and (axis := find_misfit(sizes[letter], letter, mesh)):
            raise UserError(f"{name}: {sizes[letter]} does not divide by the mesh axis {axis}")


def name_axes(encoder: Encoder) -> Any:
    """The letters of every parameter, as a tree like that of the parameters with tuple leaves."""
    return jax.tree.map(
        lambda box: box.names,
        _shape_params(encoder),
        is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned),
    )


@lru_cache(maxsize=8)
def _shape_params(encoder: Encoder) -> Any:
    """The shapes of the parameters, each in a box with the letters of its axes."""
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), _tiny_cells())["params"])


def _tiny_cells() -> Cells:
    return make_cells(CellArrays((1,), rows=1, row_tokens=2, texts=1))
