"""The true gradient of adapters (LoRA), from that of the weights that they are merged into.

In: whole parameters with adapters, and the gradient of a plain encoder. Out: float64 NumPy. It is
written apart from `jaxcpt/adapter.py`, so that a mistake would have to be made twice.
"""

from typing import Any

import numpy as np

from jaxcpt.config import Adapter

Tree = dict[str, Any]

ADAPTER = Adapter(3, alpha=5.0, targets=("query", "key", "value", "out", "up", "down"))
SCALE = ADAPTER.alpha / ADAPTER.rank


def flatten_halves(blocks: Tree, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A [layers, inputs, rank] and B [layers, rank, outputs] of a weight."""
    a, b = (np.asarray(blocks[f"{name}_{half}"], np.float64) for half in "ab")
    return a.reshape(len(a), -1, ADAPTER.rank), b.reshape(len(b), ADAPTER.rank, -1)


def merge(params: Tree) -> Tree:
    """The plain encoder's parameters: each target W becomes W + alpha / rank * A B."""
    blocks = {k: v for k, v in params["blocks"].items() if not k.endswith(("_a", "_b"))}
    for name in ADAPTER.targets:
        a, b = flatten_halves(params["blocks"], name)
        weight = np.asarray(blocks[name], np.float64)
        blocks[name] = weight + SCALE * (a @ b).reshape(weight.shape)
    return params | {"blocks": blocks}


def project(gradient: Tree, params: Tree) -> Tree:
    """The gradients dA = alpha / rank * dW B^T and dB = alpha / rank * A^T dW."""
    found = {}
    for name in ADAPTER.targets:
        a, b = flatten_halves(params["blocks"], name)
        dw = gradient["blocks"][name].reshape(len(a), a.shape[1], b.shape[2])
        halves = {f"{name}_a": dw @ b.swapaxes(1, 2), f"{name}_b": a.swapaxes(1, 2) @ dw}
        for key, half in halves.items():
            found[key] = SCALE * half.reshape(params["blocks"][key].shape)
    return {"blocks": found}
