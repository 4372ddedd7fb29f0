"""The encoder equals a short float64 NumPy forward pass, packed or alone; padding never counts."""

import jax
import numpy as np
import pytest
from conftest import CLOSE, EXACT, make_experiment

from jaxcpt.config import WeightedMean
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

# Hidden states are about 1, so what is near zero in them is exact to float32's 1e-6 and no better.
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
VARIANTS = {
    "gpt": {},
    "gpt, scanned": {"layers": 5},  # up to four layers are unrolled
    "gpt, both ways, mean": {"causal": False, "pooling": "mean"},
    "llama": LLAMA,
    "llama, both ways, weighted mean": LLAMA | WEIGHTED | {"causal": False},
    "bag of tokens": {"layers": 0} | WEIGHTED,
}


def build(**model):
    experiment = make_experiment(**{f"model__{name}": value for name, value in model.items()})
    return make_encoder(experiment), experiment.model


def draw_params(encoder):
    """Far from their start, so that no branch is too small to be seen."""
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


def forward(p, m, ids):
    """z of one text, from the definition of each part (Vaswani, GPT-2, Llama) in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    l = len(ids)

    def norm(x, w, root_mean_square=m.norm == "rmsnorm"):
        if root_mean_square:
            return w["scale"] * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
        x = x - np.mean(x, -1, keepdims=True)
        return w["scale"] * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) + w["bias"]

    def turn(x_lhk):
        """Each pair (i, i + k/2) of the head width by position / 10000 ** (2 i / k)."""
        k = x_lhk.shape[-1]
        angle = np.arange(l)[:, None] * 10_000.0 ** (-2 * np.arange(k // 2) / k)
        pair = x_lhk[..., : k // 2] + 1j * x_lhk[..., k // 2 :]
        pair = pair * np.exp(1j * angle)[:, None]
        return np.concatenate([pair.real, pair.imag], axis=-1)

    hidden = p["tokens"][ids]
    if m.positions == "learnt" and m.layers:
        hidden = hidden + p["positions"][:l]
    for layer in range(m.layers):
        w = jax.tree.map(lambda a, layer=layer: a[layer], p["blocks"])
        x = norm(hidden, w["attention_norm"])
        q, k, v = (np.einsum("ld,dhk->lhk", x, w[n]) for n in ("query", "key", "value"))
        if m.biases:
            q, k, v = q + w["query_bias"], k + w["key_bias"], v + w["value_bias"]
        if m.qk_norm:
            q, k = norm(q, w["query_norm"], True), norm(k, w["key_norm"], True)
        if m.positions == "rotary":
            q, k = turn(q), turn(k)
        shared = q.shape[1] // k.shape[1]
        mixed = np.zeros_like(q)
        for head in range(q.shape[1]):
            scores = q[:, head] @ k[:, head // shared].T / np.sqrt(q.shape[-1])
            if m.causal:
                scores[np.triu_indices(l, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head // shared]
        hidden = hidden + np.einsum("lhk,hkd->ld", mixed, w["out"])
        hidden = hidden + w["out_bias"] if m.biases else hidden

        x = norm(hidden, w["mlp_norm"])
        inner = x @ w["up"] + (w["up_bias"] if m.biases else 0)
        if m.mlp == "swiglu":
            gate = x @ w["gate"]
            inner = gate / (1 + np.exp(-gate)) * inner
        else:
            inner = inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3))) / 2
        hidden = hidden + inner @ w["down"] + (w["down_bias"] if m.biases else 0)
    if m.layers:
        hidden = norm(hidden, p["final_norm"])
    if m.pooling == "eos":
        return hidden[-1]
    if m.weighted_mean.token_weights:
        hidden = hidden * np.exp(p["token_weights"][ids] + p["position_weights"][:l])[:, None]
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


@pytest.mark.parametrize("variant", ["gpt", "llama, both ways, weighted mean"])
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
    other = Cells(  # all texts but the first have other tokens
        np.where(cells.segments_grl > 1, 5, cells.tokens_grl),
        cells.segments_grl,
        cells.positions_grl,
        cells.ends_gt,
    )
    changed_gtd = run(encoder, params, other)
    np.testing.assert_allclose(changed_gtd[:, 0], z_gtd[:, 0], **EXACT)
    assert np.abs(changed_gtd[:, 2] - z_gtd[:, 2]).max() > 0.1


@pytest.mark.parametrize("variant", ["gpt", "gpt, scanned"])
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_axis_of_every_parameter_has_a_known_letter(variant):
    """A misspelt letter would silently replicate."""
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
    # Each layer is drawn anew.
    assert np.abs(blocks["query"][0] - blocks["query"][1]).max() > 0.01


def test_normalise_gives_unit_length_and_keeps_zero():
    z = np.array([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]], np.float32)
    unit = normalise(z)
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [1, 0]], **CLOSE)
    assert np.isfinite(jax.jacobian(normalise)(z)).all()
