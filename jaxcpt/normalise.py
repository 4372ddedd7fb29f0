"""Scales vectors to unit length on the device, for the loss, for embeddings and for search.

In: JAX arrays. Out: arrays of the same shape. `jaxcpt.vectors.normalise_rows` does the same for
NumPy arrays.
"""

import jax
import jax.numpy as jnp

SMALLEST_SQUARE = 1e-24
"""The smallest squared length to divide by. It makes the gradient of a zero vector finite."""


def normalise(z: jax.Array) -> jax.Array:
    """Scales z to unit length along its last axis. A zero vector stays zero."""
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.maximum(square, SMALLEST_SQUARE))
