"""LoRA: splits the encoder's parameters into a frozen base and trained adapters, and joins them.

In: an encoder's parameters, in one tree or split in two. Out: the two parts, the joined tree, or
the parameters of a plain encoder whose weights include the adapters. `model.Block.multiply` applies
an adapter to an input. This module knows neither the optimizer nor files.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxcpt.config import Adapter
from jaxcpt.model import Params

FROZEN_DTYPE = jnp.bfloat16


def split_params(params: Params, axes: Any) -> tuple[Params, Params]:
    """Splits all parameters, or any tree of the same structure, into the base and the adapters.

    axes: the letters of each parameter, from `model.name_axes`. The adapters are the parameters
    that have the axis `a` (the rank). Only the blocks have adapters.
    """
    letters = axes["blocks"]
    adapters = {name: part for name, part in params["blocks"].items() if "a" in letters[name]}
    blocks = {name: part for name, part in params["blocks"].items() if name not in adapters}
    return params | {"blocks": blocks}, {"blocks": adapters}


def join_params(base: Params, trained: Params) -> Params:
    """All parameters in one tree. In a run without adapters, `base` is empty."""
    return base | {"blocks": base["blocks"] | trained["blocks"]} if base else trained


def merge_adapters(params: Params, settings: Adapter) -> Params:
    """All parameters -> float32 parameters of the plain encoder that gives the same embeddings.

    Each target W becomes W + alpha / rank * A B.
    """
    multiply = jax.vmap(partial(jnp.tensordot, axes=1, precision="highest"))  # layer by layer
    blocks = dict(params["blocks"])
    for name in settings.targets:
        if f"{name}_a" in blocks:  # a model without gate may have it as a target
            product = multiply(blocks.pop(f"{name}_a"), blocks.pop(f"{name}_b"))
            blocks[name] = blocks[name] + settings.alpha / settings.rank * product
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params | {"blocks": blocks})
