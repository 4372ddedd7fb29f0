"""Products of bfloat16 arrays on a CPU equal those of the same values in float32, rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcpt.operations import einsum, gelu

SIZES = dict(zip("rldfhkjgqa", (3, 40, 24, 96, 2, 12, 2, 3, 40, 4), strict=True))

SPECS = [
    "rld,df->rlf",
    "rlf,fd->rld",
    "rld,dhk->rlhk",
    "rlhk,hkd->rld",
    "rlhk,hka->rla",
    "rqjgk,rljk->rjgql",
    "rjgql,rljk->rqjgk",
]


def draw(letters, random, dtype):
    return jnp.asarray(random.normal(size=[SIZES[letter] for letter in letters]), dtype)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_products_and_gradients_are_those_in_float32_rounded(spec, dtype):
    random = np.random.default_rng(0)
    a, b, pull = (draw(letters, random, dtype) for letters in spec.replace("->", ",").split(","))
    expected, pull_back = jax.vjp(
        lambda a, b: jnp.einsum(spec, a, b), *(x.astype(jnp.float32) for x in (a, b))
    )
    wanted = [expected, *pull_back(pull.astype(jnp.float32))]
    product, pull_back = jax.vjp(lambda a, b: einsum(spec, a, b), a, b)
    # A sum in another order differs by float32 rounding, and may round to the next bfloat16.
    close = {"bfloat16": {"rtol": 2**-7, "atol": 1e-5}, "float32": {"rtol": 1e-5, "atol": 1e-5}}
    for found, right in zip([product, *pull_back(pull)], wanted, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(np.float32(found), right, **close[dtype])


def test_a_cpu_computes_bfloat16_products_with_float32_results():
    """Products with results in bfloat16 are slower (docs/performance-log.md)."""
    a, b = jnp.ones((3, 40, 24), jnp.bfloat16), jnp.ones((24, 96), jnp.bfloat16)

    def total(a, b):
        return einsum("rld,df->rlf", a, b).astype(jnp.float32).sum()

    lowered = jax.jit(jax.grad(total, argnums=(0, 1))).lower(a, b).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products
    assert all("xf32>" in line.split("->")[-1] for line in products)


@pytest.mark.parametrize("approximate", [True, False])
def test_gelu_is_that_in_float32_rounded(approximate):
    x = jnp.linspace(-4, 4, 101, dtype=jnp.bfloat16)
    expected = jax.nn.gelu(x.astype(jnp.float32), approximate=approximate)
    np.testing.assert_array_equal(gelu(x, approximate), expected.astype(jnp.bfloat16))
