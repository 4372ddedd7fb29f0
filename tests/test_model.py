"""The encoder equals a float64 NumPy forward pass, for packed and single texts, without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLOSE, EXACT, make_experiment
from scipy.special import erf

from jaxcpt.config import RotaryScaling, WeightedMean
from jaxcpt.model import (
    Cells,
    encode,
    initialise,
    make_cells,
    make_encoder,
    name_axes,
)
from jaxcpt.normalise import normalise
from jaxcpt.packing import CellArrays, RowFiller
from jaxcpt.sharding import RULES

# Hidden states are about 1, so values near zero in them are exact only to float32's 1e-6.
CLOSE_TO_ONE = CLOSE | {"atol": 3e-6}

LLAMA = {
    "norm": "rmsnorm",
    "positions": "rotary",
    "mlp": "swiglu",
    "qk_norm": True,
    "biases": False,
    "kv_heads": 2,
    "mlp_width": 24,
}
WEIGHTED = {
    "pooling": "mean",
    "weighted_mean": WeightedMean(token_weights=True, position_weights=True),
}
BERT = {
    "norm_placement": "post",
    "norm_epsilon": 1e-12,
    "embedding_norm": True,
    "final_norm": False,
    "mlp": "gelu_exact",
    "causal": False,
}
NEOX = {
    "parallel_residual": True,
    "positions": "rotary",
    "rotary_share": 0.5,
    "mlp": "gelu_exact",
}
# A head of width 8 has the wavelengths 6, 35, 199 and 1,117. The first is not changed, the second
# is interpolated, and the others are stretched.
LLAMA_3 = RotaryScaling(kind="llama3", factor=8.0, original_tokens=128)
VARIANTS = {
    "gpt": {},
    "gpt, scanned": {"layers": 5},  # up to four layers are unrolled
    "gpt, both ways, mean": {"causal": False, "pooling": "mean"},
    "llama": LLAMA,
    "llama, both ways, weighted mean": LLAMA | WEIGHTED | {"causal": False},
    "bag of tokens": {"layers": 0} | WEIGHTED,
    "bert, mean": BERT | {"pooling": "mean"},
    "bert, first": BERT | {"pooling": "first"},
    "bert, scanned": BERT | {"pooling": "first", "layers": 5},
    "post-norm, final norm, causal": {"norm_placement": "post"},
    "gpt-neox": NEOX,
    "llama 3": LLAMA | {"heads": 2, "rotary_base": 1000.0, "rotary_scaling": LLAMA_3},
    "linear rotary scaling": LLAMA | {"rotary_scaling": RotaryScaling(factor=2.5)},
    "qwen 2, biases of query, key and value alone": LLAMA | {"qkv_biases": True, "qk_norm": False},
    "no biases of query, key and value": {"qkv_biases": False},
    "heads wider than the model": LLAMA | {"head_width": 6},
    "more positions than a text has": {"position_rows": 40},
    "relu, epsilon": {"mlp": "relu", "norm_epsilon": 0.1},
}


def build(**model):
    experiment = make_experiment(**{f"model__{name}": value for name, value in model.items()})
    return make_encoder(experiment), experiment.model


def draw_params(encoder):
    """Large random parameters, so that every branch has a visible effect."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: initialise(encoder, jax.random.key(0)))
    return jax.tree.map(lambda a: random.normal(0.1, 0.4, a.shape).astype(np.float32), shapes)


def draw_texts(lengths=(9, 2, 24, 13, 1, 17, 5, 24, 11)):
    random = np.random.default_rng(1)
    return [random.integers(1, 400, length).astype(np.int32) for length in lengths]


def pack(texts, rows=4, row_tokens=32):
    arrays, free = CellArrays((1,), rows, row_tokens, len(texts)), RowFiller(rows, row_tokens)
    for number in sorted(range(len(texts)), key=lambda t: -len(texts[t])):
        arrays.put((0,), number, texts[number], free.place(len(texts[number])))
    return make_cells(arrays)


def run(encoder, params, cells):
    return np.asarray(jax.jit(lambda p, c: encode(encoder, p, c))(params, cells))


def norm(x, w, m, kind=None):
    """LayerNorm or RMSNorm over the last axis."""
    kind = kind or m.norm
    epsilon = m.norm_epsilon or {"layernorm": 1e-5, "rmsnorm": 1e-6}[kind]
    if kind == "rmsnorm":
        return w["scale"] * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + epsilon)
    x = x - np.mean(x, -1, keepdims=True)
    return w["scale"] * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + epsilon) + w["bias"]


def turn(x_lhk, m):
    """Rotates each pair (i, i + n/2) of a head's first n numbers by position * base ** (-2 i / n).

    Scaling changes the wavelength of a pair, as in the Llama 3.1 model card.
    """
    rotated = int(x_lhk.shape[-1] * m.rotary_share)
    frequency = m.rotary_base ** (-2 * np.arange(rotated // 2) / rotated)
    if (scaling := m.rotary_scaling) is not None:
        short = scaling.original_tokens / scaling.high_frequency_factor
        long = scaling.original_tokens / scaling.low_frequency_factor
        for i, wavelength in enumerate(2 * np.pi / frequency):
            blend = (1 / wavelength - 1 / long) / (1 / short - 1 / long)
            if scaling.kind == "linear" or wavelength > long:
                frequency[i] /= scaling.factor
            elif wavelength > short:
                frequency[i] *= (1 - blend) / scaling.factor + blend
    angle = np.arange(len(x_lhk))[:, None] * frequency
    pair = x_lhk[..., : rotated // 2] + 1j * x_lhk[..., rotated // 2 : rotated]
    pair = pair * np.exp(1j * angle)[:, None]
    return np.concatenate([pair.real, pair.imag, x_lhk[..., rotated:]], axis=-1)


def attend(x, w, m):
    q, k, v = (np.einsum("ld,dhk->lhk", x, w[n]) for n in ("query", "key", "value"))
    if m.biases if m.qkv_biases is None else m.qkv_biases:
        q, k, v = q + w["query_bias"], k + w["key_bias"], v + w["value_bias"]
    if m.qk_norm:
        q, k = norm(q, w["query_norm"], m, "rmsnorm"), norm(k, w["key_norm"], m, "rmsnorm")
    if m.positions == "rotary":
        q, k = turn(q, m), turn(k, m)
    shared = q.shape[1] // k.shape[1]
    mixed = np.zeros_like(q)
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // shared].T / np.sqrt(q.shape[-1])
        if m.causal:
            scores[np.triu_indices(len(x), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head // shared]
    return np.einsum("lhk,hkd->ld", mixed, w["out"]) + (w["out_bias"] if m.biases else 0)


def transform(x, w, m):
    inner = x @ w["up"] + (w["up_bias"] if m.biases else 0)
    if m.mlp == "swiglu":
        gate = x @ w["gate"]
        inner = gate / (1 + np.exp(-gate)) * inner
    elif m.mlp == "relu":
        inner = np.maximum(inner, 0)
    elif m.mlp == "gelu_exact":
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
    else:
        inner = inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3))) / 2
    return inner @ w["down"] + (w["down_bias"] if m.biases else 0)


def apply_block(x, w, m):
    """A block: post-norm as in BERT, parallel as in GPT-NeoX, or pre-norm as in GPT-2."""
    if m.norm_placement == "post":
        x = norm(x + attend(x, w, m), w["attention_norm"], m)
        return norm(x + transform(x, w, m), w["mlp_norm"], m)
    attended = x + attend(norm(x, w["attention_norm"], m), w, m)
    read = x if m.parallel_residual else attended
    return attended + transform(norm(read, w["mlp_norm"], m), w, m)


def forward(p, m, ids):
    """z of one text, from the definition of each part (Vaswani, GPT-2, Llama, BERT) in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    hidden = p["tokens"][ids]
    if m.positions == "learnt" and m.layers:
        hidden = hidden + p["positions"][: len(ids)]
    if m.embedding_norm:
        hidden = norm(hidden, p["embedding_norm"], m)
    for layer in range(m.layers):
        hidden = apply_block(hidden, jax.tree.map(lambda a, i=layer: a[i], p["blocks"]), m)
    if m.layers and m.final_norm:
        hidden = norm(hidden, p["final_norm"], m)
    if m.pooling in ("eos", "first"):
        return hidden[-1 if m.pooling == "eos" else 0]
    if m.weighted_mean.token_weights:
        weights = np.exp(p["token_weights"][ids] + p["position_weights"][: len(ids)])
        hidden = hidden * weights[:, None]
    return hidden.sum(axis=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_numpy_packed_and_alone(variant):
    encoder, settings = build(**VARIANTS[variant])
    params, texts = draw_params(encoder), draw_texts()
    packed_td = run(encoder, params, pack(texts))[0]
    wanted_td = np.stack([forward(params, settings, ids) for ids in texts])
    np.testing.assert_allclose(packed_td, wanted_td, **CLOSE_TO_ONE)
    alone_td = run(encoder, params, pack(texts, rows=len(texts), row_tokens=24))[0]
    np.testing.assert_allclose(packed_td, alone_td, **CLOSE_TO_ONE)


@pytest.mark.parametrize(
    "variant", ["gpt", "llama, both ways, weighted mean", "bert, first", "gpt-neox"]
)
def test_padding_and_neighbours_never_count(variant):
    encoder, _ = build(**VARIANTS[variant])
    params, texts = draw_params(encoder), draw_texts()
    cells = pack(texts)
    z_gtd = run(encoder, params, cells)
    empty = cells.segments_grl == 0
    assert empty.any()
    soiled = Cells(
        np.where(empty, 7, cells.tokens_grl),
        cells.segments_grl,
        np.where(empty, 3, cells.positions_grl),
        cells.ends_gt,
    )
    np.testing.assert_allclose(run(encoder, params, soiled), z_gtd, **EXACT)
    other = Cells(  # all texts except the first have other tokens
        np.where(cells.segments_grl > 1, 5, cells.tokens_grl),
        cells.segments_grl,
        cells.positions_grl,
        cells.ends_gt,
    )
    changed_gtd = run(encoder, params, other)
    np.testing.assert_allclose(changed_gtd[:, 0], z_gtd[:, 0], **EXACT)
    assert np.abs(changed_gtd[:, 2] - z_gtd[:, 2]).max() > 0.1


@pytest.mark.parametrize("variant", ["gpt", "gpt, scanned", "bert, mean", "gpt-neox"])
def test_remat_changes_neither_values_nor_gradients(variant):
    texts = draw_texts()
    found = {}
    for remat in ("nothing", "dots", "everything"):
        encoder, _ = build(**VARIANTS[variant], remat=remat)
        cells = pack(texts)

        def weigh(params, encoder=encoder, cells=cells):
            z_gtd = encode(encoder, params, cells)
            return (z_gtd * np.arange(z_gtd.size).reshape(z_gtd.shape) / z_gtd.size).sum()

        found[remat] = jax.jit(jax.value_and_grad(weigh))(draw_params(encoder))
    for remat in ("dots", "everything"):
        for a, b in zip(
            jax.tree.leaves(found[remat]), jax.tree.leaves(found["nothing"]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max() + 1e-5)


def test_each_data_shard_encodes_its_own_cell():
    encoder, _ = build()
    params, texts = draw_params(encoder), draw_texts()
    one, other = pack(texts), pack(texts[::-1])
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), one, other)
    z_gtd = run(encoder, params, both)
    np.testing.assert_allclose(z_gtd[1, ::-1], z_gtd[0], **CLOSE_TO_ONE)


def test_bfloat16_compute_keeps_float32_outside():
    texts = draw_texts()
    z_gtd = {}
    for dtype in ("float32", "bfloat16"):
        encoder, _ = build(**LLAMA, compute_dtype=dtype)
        params = jax.jit(lambda encoder=encoder: initialise(encoder, jax.random.key(0)))()
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
        z_gtd[dtype] = run(encoder, params, pack(texts))
    assert z_gtd["bfloat16"].dtype == np.float32
    # bfloat16 has 8 bits; values of about 1 went through a few roundings.
    np.testing.assert_allclose(z_gtd["bfloat16"], z_gtd["float32"], atol=0.05)


@pytest.mark.parametrize("layers", [0, 1])
def test_bfloat16_gradients_are_summed_over_tokens_in_float32(layers):
    """Compares the gradients of a bias and of a token that occurs 1,200 times with float64 sums.

    When they were summed in bfloat16, they were 12 % and 10 % wrong.
    """
    encoder, _ = build(
        layers=layers, compute_dtype="bfloat16", pooling="mean", final_norm=False, remat="nothing"
    )
    random = np.random.default_rng(0)
    texts = [random.integers(1, 6, 24).astype(np.int32) for _ in range(250)]
    cells = pack(texts, rows=len(texts), row_tokens=24)
    weights_td = random.normal(0.0, 1.0, (len(texts), 16)).astype(jnp.bfloat16).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda p: (encode(encoder, p, cells)[0] * weights_td).sum()))(
        draw_params(encoder)
    )
    # With mean pooling, all tokens of a text have the same gradient of their hidden state.
    if layers:
        found, wanted = gradient["blocks"]["down_bias"][0], 24.0 * weights_td.sum(0, np.float64)
    else:
        counts_tv = np.stack([np.bincount(ids, minlength=6) for ids in texts])
        found, wanted = gradient["tokens"][:6], counts_tv.T @ weights_td.astype(np.float64)
    assert np.linalg.norm(found - wanted) < 2.0**-9 * np.linalg.norm(wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_axis_of_every_parameter_has_a_known_letter(variant):
    """A misspelt letter would silently leave the axis replicated."""
    encoder, _ = build(**VARIANTS[variant])
    shapes = jax.eval_shape(lambda: initialise(encoder, jax.random.key(0)))
    axes = name_axes(encoder)

    def check(path, shape, letters):
        assert len(letters) == len(shape.shape), path
        assert set(letters) <= RULES.keys(), path
        assert len(set(letters)) == len(letters), path

    jax.tree.map_with_path(check, shapes, axes)


@pytest.mark.parametrize("start", ["gpt", "zero"])
def test_parameters_start_as_documented(start):
    encoder, settings = build(width=64, weighted_mean=WeightedMean(residual_start=start))
    params = initialise(encoder, jax.random.key(0))
    blocks = params["blocks"]
    np.testing.assert_allclose(np.std(blocks["query"]), 0.02, rtol=0.05)
    np.testing.assert_allclose(np.std(params["tokens"]), 0.02, rtol=0.05)
    branch_end = 0.02 / np.sqrt(2 * settings.layers) if start == "gpt" else 0.0
    for name in ("out", "down"):
        np.testing.assert_allclose(np.std(blocks[name]), branch_end, rtol=0.05)
    assert not np.any(blocks["up_bias"])
    assert np.all(params["final_norm"]["scale"] == 1)
    # Each layer has its own random parameters.
    assert np.abs(blocks["query"][0] - blocks["query"][1]).max() > 0.01


def test_normalise_gives_unit_length_and_keeps_zero():
    z = np.array([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]], np.float32)
    unit = normalise(z)
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [1, 0]], **CLOSE)
    assert np.isfinite(jax.jacobian(normalise)(z)).all()
