"""How well a generative run predicts texts: bits per byte and perplexity.

In: pairs of texts, and a run's parameters and tokenizer. Out: `Likelihood`, with its two scores.
Two yardsticks are scored on the same texts: the compressor xz, and a model that gives every token
the same probability. The module knows neither run folders nor other models.

The model predicts every token of a text and its closing delimiter. A text that is longer than
training allows is not cut; it is read in several pieces, each after the opening delimiter. Bits per
byte counts the bytes of the text in UTF-8, so it can compare models with different tokenizers.
Perplexity is per token, so it cannot.
"""

import functools
import lzma
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxcpt.calls import fill_cells, list_row_sizes, plan_calls
from jaxcpt.config import Experiment
from jaxcpt.model import Cells, Params, encode_tokens, make_encoder
from jaxcpt.next_token import find_targets, sum_nats
from jaxcpt.pair import Pair, Side
from jaxcpt.sharding import count_data_shards, named
from jaxcpt.tokenizer import Tokenizer

UNLIMITED_TOKENS = 1 << 30
LARGEST_EXPONENT = 709.0  # e to a higher power does not fit into a float


@dataclass(frozen=True)
class Likelihood:
    """-log p of some texts, summed over their predicted tokens; the number of tokens and bytes."""

    nats: float
    tokens: int
    bytes: int

    def score(self) -> dict[str, float]:
        per_token = min(self.nats / self.tokens, LARGEST_EXPONENT)  # a diverged model has more
        return {
            "bits_per_byte": self.nats / math.log(2) / self.bytes,
            "perplexity": math.exp(per_token),
        }


def measure(
    experiment: Experiment,
    params: Params,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    pairs: Sequence[Pair],
    check: Callable[[], None] = lambda: None,
) -> Likelihood:
    """The likelihood of the x and y of all pairs. params: already sharded on `mesh`.

    check: called before each call of the devices. It may raise an error to stop the work.
    """
    pieces = [piece for side in ("x", "y") for piece in cut_texts(tokenizer, pairs, side)]
    add_nats = _make_add_nats(experiment, mesh)
    sizes, nats = list_row_sizes(experiment.tokenizer.longest), 0.0
    for call in plan_calls(pieces, sizes, count_data_shards(mesh)):
        check()
        cells = jax.device_put(fill_cells(call, pieces), named(mesh, "g"))
        with jax.set_mesh(mesh):
            nats += float(add_nats(params, cells))
    tokens = sum(len(piece) - 1 for piece in pieces)
    return Likelihood(nats, tokens, sum(map(len, list_bytes(tokenizer, pairs))))


def cut_texts(tokenizer: Tokenizer, pairs: Sequence[Pair], side: Side) -> Iterator[np.ndarray]:
    """Yields the token ids of one side's texts, in several pieces if a text is too long."""
    opening, _ = tokenizer.delimiters(side)
    longest = tokenizer.x_tokens if side == "x" else tokenizer.y_tokens
    whole = replace(tokenizer, x_tokens=UNLIMITED_TOKENS, y_tokens=UNLIMITED_TOKENS)
    for ids in whole.encode([getattr(pair, side) for pair in pairs], side):
        rest, room = ids[len(opening) :], longest - len(opening)
        for start in range(0, len(rest), room):
            yield np.array([*opening, *rest[start : start + room]], np.int32)


def list_bytes(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[bytes]:
    """The texts of all pairs with the tokenizer's prefixes, in UTF-8."""
    texts = [tokenizer.x_prefix + pair.x for pair in pairs]
    return [text.encode() for text in (*texts, *(tokenizer.y_prefix + pair.y for pair in pairs))]


def score_yardsticks(
    tokenizer: Tokenizer, pairs: Sequence[Pair], measured: Likelihood
) -> dict[str, dict[str, float]]:
    """Scores of xz on all texts together, and of equal probabilities for all tokens.

    measured: the likelihood of the same texts under any model with this tokenizer.
    """
    packed = lzma.compress(b"\n".join(list_bytes(tokenizer, pairs)), preset=9)
    equal = replace(measured, nats=measured.tokens * math.log(tokenizer.vocabulary))
    return {
        "xz": {"bits_per_byte": 8 * len(packed) / measured.bytes},
        "equal chances": equal.score(),
    }


@functools.lru_cache(maxsize=8)
def _make_add_nats(
    experiment: Experiment, mesh: jax.sharding.Mesh
) -> Callable[[Params, Cells], jax.Array]:
    """The compiled function: parameters, cells -> the sum of -log p over the cells' targets."""
    encoder = make_encoder(experiment)

    def add_nats(params: Params, cells: Cells) -> jax.Array:
        hidden_gsd: Any = encode_tokens(encoder, params, cells)
        return sum_nats(hidden_gsd, params["tokens"], find_targets(cells))

    return jax.jit(add_nats, out_shardings=named(mesh))
