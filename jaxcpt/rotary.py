"""Rotary positions (RoFormer, arXiv 2104.09864), with the scalings of published models.

In: queries or keys of packed rows, and the position of each token in its text. Out: the same array
with pairs of coordinates rotated. The module does not know what attention does with it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcpt import config


def rotate(x_rlhk: jax.Array, positions_rl: jax.Array, m: config.Model) -> jax.Array:
    """Applies rotary positions (RoFormer). As in Llama, the two halves of the width are paired."""
    rotated = round(x_rlhk.shape[-1] * m.rotary_share)
    angles = positions_rl[..., None, None].astype(jnp.float32) * find_frequencies(m, rotated)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = jnp.split(x_rlhk[..., :rotated].astype(jnp.float32), 2, axis=-1)
    turned_rlhk = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned_rlhk.astype(x_rlhk.dtype), x_rlhk[..., rotated:]], axis=-1)


def find_frequencies(m: config.Model, rotated: int) -> np.ndarray:
    """Radians per position of each rotated pair of coordinates, float32 [rotated / 2]."""
    frequencies = m.rotary_base ** (-np.arange(0, rotated, 2) / rotated)
    if (scaling := m.rotary_scaling) is None:
        return frequencies.astype(np.float32)
    if scaling.kind == "linear":
        return (frequencies / scaling.factor).astype(np.float32)
    # llama3: slow rotations are divided by the factor, fast ones stay, others are interpolated.
    turns = scaling.original_tokens * frequencies / (2 * np.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (frequencies * (kept + (1 - kept) / scaling.factor)).astype(np.float32)
