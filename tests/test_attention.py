"""Each attention kernel equals the definition, forward and backward, also on a mesh."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLOSE

from jaxcpt import attention, config
from jaxcpt.attention import (
    attend_cached,
    attend_cudnn,
    attend_plain,
    attend_splash,
    choose_form,
)
from jaxcpt.operations import find_platform
from jaxcpt.sharding import make_mesh

# Sums of 128 products in another order differ by float32 rounding. The values are about 1.
CLOSE_TO_ONE = CLOSE | {"atol": 3e-6}

FUSED = {
    "splash": lambda *arrays, causal: attend_splash(*arrays, causal=causal, interpret=True),
    # cuDNN needs a GPU, so XLA computes with the same arguments instead.
    "cudnn": lambda *arrays, causal: attend_cudnn(*arrays, causal=causal, implementation="xla"),
}


def draw(rows=2, tokens=128, heads=4, kv_heads=4, width=8):
    """Random queries, keys, values and a cotangent. Rows have several texts; the last is padded."""
    random = np.random.default_rng(0)
    shapes = [(rows, tokens, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    query, key, value, pull = (random.normal(size=s).astype(np.float32) for s in shapes)
    query *= width**-0.5
    segments = np.sort(random.integers(1, 5, (rows, tokens)), axis=1).astype(np.int32)
    segments[-1, -40:] = 0
    return (query, key, value, segments), pull


def differentiate(attend, arrays, pull, causal):
    *inputs, segments = arrays

    def total(query, key, value):
        mixed = attend(query, key, value, segments, causal=causal)
        return jnp.sum(mixed * pull), mixed

    gradient, mixed = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*inputs)
    return mixed, *gradient


@pytest.mark.parametrize("form", FUSED)
@pytest.mark.parametrize(("kv_heads", "causal"), [(4, True), (2, True), (4, False)])
def test_fused_kernels_equal_the_definition(form, kv_heads, causal):
    arrays, pull = draw(kv_heads=kv_heads)
    expected = differentiate(attend_plain, arrays, pull, causal)
    for got, wanted in zip(differentiate(FUSED[form], arrays, pull, causal), expected, strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE_TO_ONE)


@pytest.mark.parametrize(
    ("tokens", "kv_heads", "causal"),
    [(256, 4, True), (330, 2, True), (1200, 4, True), (1200, 2, False)],
)
def test_the_cached_form_equals_the_definition(tokens, kv_heads, causal):
    arrays, pull = draw(tokens=tokens, kv_heads=kv_heads)
    expected = differentiate(attend_plain, arrays, pull, causal)
    for got, wanted in zip(
        differentiate(attend_cached, arrays, pull, causal), expected, strict=True
    ):
        np.testing.assert_allclose(got, wanted, **CLOSE_TO_ONE)


@pytest.mark.parametrize("mesh", [None, config.Mesh(2, 2, 2)])
@pytest.mark.parametrize(("kv_heads", "causal"), [(2, True), (4, False)])
def test_few_heads_at_a_time_equal_the_definition(mesh, kv_heads, causal, monkeypatch):
    """Three query heads' scores fit. Neither the heads of a device nor those of a key are three."""
    arrays, pull = draw(rows=8, kv_heads=kv_heads)
    expected = differentiate(attend_plain, arrays, pull, causal)
    monkeypatch.setattr(attention, "CACHED_SCORES", 3 * 128**2)
    with jax.set_mesh(make_mesh(mesh)) if mesh else nullcontext():
        found = differentiate(attention.attention, arrays, pull, causal)
        compiled = jax.jit(attend_cached, static_argnames="causal").lower(*arrays, causal=causal)
    assert "while" in compiled.as_text()
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE_TO_ONE)


def test_the_cached_form_rounds_only_its_result():
    arrays, _ = draw(tokens=330)
    *inputs, segments = arrays
    rounded = [jnp.bfloat16(a) for a in inputs]
    expected = attend_cached(*(np.float32(a) for a in rounded), segments, causal=True)
    found = attend_cached(*rounded, segments, causal=True)
    np.testing.assert_array_equal(found, jnp.bfloat16(expected))


def test_splash_runs_on_each_device_of_a_mesh():
    arrays, pull = draw(rows=4)
    expected = differentiate(attend_plain, arrays, pull, True)
    with jax.set_mesh(make_mesh(config.Mesh(2, 2, 2))):
        for got, wanted in zip(
            differentiate(FUSED["splash"], arrays, pull, True), expected, strict=True
        ):
            np.testing.assert_allclose(got, wanted, **CLOSE_TO_ONE)


@pytest.mark.parametrize(
    ("platform", "shape", "dtype", "form"),
    [
        ("tpu", (8, 512, 16, 64), "bfloat16", "splash"),
        ("tpu", (8, 512, 16, 64), "float32", "splash"),
        ("tpu", (8, 96, 16, 64), "bfloat16", "plain"),
        ("gpu", (8, 512, 16, 128), "bfloat16", "cudnn"),
        ("gpu", (8, 512, 16, 128), "float32", "plain"),
        ("gpu", (8, 512, 16, 12), "bfloat16", "plain"),
        ("cpu", (8, 512, 16, 64), "bfloat16", "cached"),
        ("cpu", (1, 256, 16, 64), "bfloat16", "plain"),
    ],
)
def test_the_kernel_follows_the_devices(platform, shape, dtype, form):
    assert choose_form(platform, shape, jnp.dtype(dtype)) == form


def test_the_platform_is_that_of_the_mesh():
    assert find_platform() == "cpu"
    with jax.set_mesh(make_mesh(config.Mesh())):
        assert find_platform() == "cpu"
