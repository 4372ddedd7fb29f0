"""Operations on arrays for which JAX's own form or gradient is slow or not exact enough.

In: arrays. Out: their product, GELU of them, or rows of a table, as suits the platform. The module
knows no model.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def find_platform() -> str:
    """The platform of the current mesh, which may be abstract: "tpu", "gpu" or "cpu"."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The einsum `spec` of two arrays, in their dtype.

    On a CPU, XLA uses the processor's bfloat16 products only where the result is float32. There,
    products of bfloat16 arrays are computed in float32 and then rounded, in the backward pass too.
    """
    if find_platform() == "cpu" and a.dtype == b.dtype == jnp.bfloat16:
        return _multiply_and_round(spec, a, b)
    return jnp.einsum(spec, a, b)


def einsum_in_float32(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The einsum `spec` of two arrays of any dtype, with sums and result in float32."""
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply_and_round(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return einsum_in_float32(spec, a, b).astype(a.dtype)


def _product_forward(
    spec: str, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _multiply_and_round(spec, a, b), (a, b)


def _product_backward(
    spec: str, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    a_letters, b_letters, y_letters = spec.replace("->", ",").split(",")
    gradient_a = _multiply_and_round(f"{y_letters},{b_letters}->{a_letters}", gradient, b)
    # The first operand is copied in another order of its axes, so it is the smaller one.
    first, second = (a_letters, a), (y_letters, gradient)
    if gradient.size < a.size:
        first, second = second, first
    kept = "".join(x for x in dict.fromkeys(first[0] + second[0]) if x in b_letters)
    summed = _multiply_and_round(f"{first[0]},{second[0]}->{kept}", first[1], second[1])
    return gradient_a, jnp.einsum(f"{kept}->{b_letters}", summed)


_multiply_and_round.defvjp(_product_forward, _product_backward)


def gelu(x: jax.Array, approximate: bool) -> jax.Array:
    """GELU in the dtype of x. approximate: by tanh instead of erf.

    On a CPU it is computed in float32, because XLA converts bfloat16 values in each of its steps.
    """
    wide = x.astype(jnp.float32) if find_platform() == "cpu" else x
    return jax.nn.gelu(wide, approximate=approximate).astype(x.dtype)


@jax.custom_vjp
def take_rows(table: jax.Array, ids_rl: Array) -> jax.Array:
    """Rows of a table [rows, d] -> [r, l, d], in the table's dtype.

    The backward pass sums the gradients of a row that is used several times. It sums in float32:
    in bfloat16 the sum was 4 % wrong after 1,024 additions, and up to 58 % after 8,192.
    """
    return jnp.take(table, ids_rl, axis=0)


def _take_forward(table: jax.Array, ids_rl: Array) -> tuple[jax.Array, tuple[jax.Array, Array]]:
    return take_rows(table, ids_rl), (table, ids_rl)


def _take_backward(
    taken: tuple[jax.Array, Array], gradient_rld: jax.Array
) -> tuple[jax.Array, None]:
    table, ids_rl = taken
    zeros = jnp.zeros(table.shape, jnp.float32)
    return zeros.at[ids_rl].add(gradient_rld.astype(jnp.float32)).astype(table.dtype), None


take_rows.defvjp(_take_forward, _take_backward)
