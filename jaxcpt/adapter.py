"""LoRA: the encoder's parameters in two parts, a frozen base and the adapters that are trained.

In: an encoder's parameters, whole or in parts. Out: the parts, the whole, or the parameters of a
plain encoder with the adapters added to their weights. It knows neither optimizer nor files. What
an adapter computes is in `model.Block.multiply`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxcpt.config import Adapter
from jaxcpt.model import Params

FROZEN_DTYPE = jnp.bfloat16


def split_params(params: Params, axes: Any) -> tuple[Params, Params]:
    """The base and the adapters of whole parameters, or of any tree like them.

    axes: the letters of each parameter, from `model.name_axes`. The adapters are the parameters
    with an axis of their rank (a). All of them are in the blocks.
    """
    letters = axes["blocks"]
    adapters = {name: part for name, part in params["blocks"].items() if "a" in letters[name]}
    blocks = {name: part for name, part in params["blocks"].items() if name not in adapters}
    return params | {"blocks": blocks}, {"blocks": adapters}


def join_params(base: Params, trained: Params) -> Params:
    """The whole parameters. Of a run without adapters, everything is trained and base is empty."""
    return base | {"blocks": base["blocks"] | trained["blocks"]} if base else trained


def merge_adapters(params: Params, settings: Adapter) -> Params:
    """Whole parameters -> float32 parameters of the plain encoder that gives the same embeddings.

    Each target W becomes W + alpha / rank * A B.
    """
    multiply = jax.vmap(partial(jnp.tensordot, axes=1, precision="highest"))  # layer by layer
    blocks = dict(params["blocks"])
    for name in settings.targets:
        if f"{name}_a" in blocks:  # a model without gate may have it among its targets
            product = multiply(blocks.pop(f"{name}_a"), blocks.pop(f"{name}_b"))
            blocks[name] = blocks[name] + settings.alpha / settings.rank * product
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params | {"blocks": blocks})
