"""The true gradient of the generative loss: float64 NumPy, one text at a time, all logits at once.

In: the encoder's parameters and settings, and texts. Out: loss and gradient. It is written apart
from `jaxcpt/next_token.py`, so that a mistake would have to be made twice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gradient_reference import (
    Text,
    Truth,
    add_tree,
    encode_tokens,
    log_sum_exp,
    map_tree,
)

from jaxcpt.config import Model


def find_truth(params: dict[str, Any], m: Model, texts: Sequence[Text]) -> Truth:
    """The mean of -log p(next token) over all texts, and its gradient."""
    w = map_tree(lambda leaf: np.asarray(leaf, np.float64), params)
    gradient = map_tree(np.zeros_like, w)
    count, total = sum(len(text.ids) - 1 for text in texts), 0.0
    for text in texts:
        hidden, pull = encode_tokens(w, m, text.ids)
        logits = hidden[:-1] @ w["tokens"].T
        logs = logits - log_sum_exp(logits, axis=1)[:, None]
        places = np.arange(len(logs)), text.ids[1:]
        total -= logs[places].sum()
        dlogits = np.exp(logs) / count
        dlogits[places] -= 1 / count
        dhidden = np.zeros_like(hidden)
        dhidden[:-1] = dlogits @ w["tokens"]
        add_tree(gradient, pull(dhidden))
        gradient["tokens"] += dlogits.T @ hidden[:-1]
    return Truth(total / count, gradient, 0.0)
