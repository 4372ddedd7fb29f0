"""Unit length on the device: one definition for the loss, for embeddings and for search.

`jaxcpt.vectors.normalise_rows` is the same for NumPy arrays.
"""

import jax
import jax.numpy as jnp

SMALLEST_SQUARE = 1e-24
"""Squared lengths below it count as this. So a zero vector has a finite gradient."""


def normalise(z: jax.Array) -> jax.Array:
    """To unit length along the last axis; a zero vector stays zero."""
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.maximum(square, SMALLEST_SQUARE))
