"""Faults in the loss that other implementations have shipped, for `gradient_table.py` to find.

In: the name of a fault. Out: a context in which functions of the loss are replaced by faulty ones.
It knows neither the cases nor the truth.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from unittest.mock import patch

import jax
import jax.numpy as jnp

from jaxcpt import loss, loss_streaming, loss_terms, next_token, update

Plant = Literal["none", "gather", "temperature", "labels", "borders"]
SMALL_TILES: dict[str, Any] = {"TILE_ROWS": 4, "TILE_COLUMNS": 6}  # so that there are several tiles
SMALL_BLOCK = 24  # tokens, for the same reason


def keep_own_part(gradient_cd: jax.Array) -> jax.Array:
    """Loses the gradient that a shard computes for the candidates of other shards."""
    size = len(gradient_cd) // jax.lax.axis_size(loss_terms.DATA_AXES)
    first = jax.lax.axis_index(loss_terms.DATA_AXES) * size
    return jax.lax.dynamic_slice_in_dim(gradient_cd, first, size)


def lose_on_the_ring(visit: Any, carry: Any, visitor: Any, sums: Any) -> tuple[Any, Any]:
    """Loses the same gradient in the streaming form: candidates return with their own shard's part
    only."""
    if not isinstance(sums, jax.Array):  # pass one sends softmax sums, not a gradient
        return send_round(visit, carry, visitor, sums)

    def visit_and_forget(carry: Any, labelled: Any, sums: Any) -> tuple[Any, Any]:
        stranger, home = labelled
        carry, more = visit(carry, stranger, sums)
        return carry, jnp.where(home == jax.lax.axis_index(loss_terms.DATA_AXES), more, sums)

    labelled = visitor, jax.lax.axis_index(loss_terms.DATA_AXES)
    return send_round(visit_and_forget, carry, labelled, sums)


def shift_labels(
    zx_bd: jax.Array, zc_cd: jax.Array, scale: jax.Array, labels: loss.Labels
) -> tuple[loss_terms.Queries, loss_terms.Candidates]:
    """Takes the y of the pair before as the positive of each x."""
    queries, candidates = prepare(zx_bd, zc_cd, scale, labels)
    positive_b = scale * jnp.sum(zx_bd * jnp.roll(zc_cd[: len(zx_bd)], 1, axis=0), axis=-1)
    shifted_b = jnp.roll(queries.pair_b, 1)
    return queries._replace(pair_b=shifted_b, positive_b=positive_b), candidates


def forget_borders(cells: Any) -> jax.Array:
    """Predicts the first token of the next text in a row from the last token of a text."""
    one_text = dataclasses.replace(cells, segments_grl=jnp.minimum(cells.segments_grl, 1))
    return next_token.find_targets(one_text)


prepare, send_round = loss_terms.prepare, loss_streaming.send_round
# The functions that each plant replaces. A temperature that is counted once per chunk is not a
# fault of the loss, so `find_gradients` multiplies it.
FAULTS: dict[Plant, list[tuple[Any, str, Any]]] = {
    "none": [],
    "gather": [
        (loss, "_scatter", keep_own_part),
        (loss_streaming, "send_round", lose_on_the_ring),
    ],
    "temperature": [],
    "labels": [(loss_terms, "prepare", shift_labels)],
    "borders": [(update, "find_targets", forget_borders)],
}


@contextmanager
def patch_loss(plant: Plant) -> Iterator[None]:
    """Sets small tiles and puts the fault in. JAX caches what it has traced, so the caches are
    cleared before and after a fault."""
    if FAULTS[plant]:
        jax.clear_caches()
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(loss_streaming, **SMALL_TILES))
        stack.enter_context(patch.object(next_token, "TOKENS_AT_ONCE", SMALL_BLOCK))
        for module, name, fault in FAULTS[plant]:
            stack.enter_context(patch.object(module, name, fault))
        yield
    if FAULTS[plant]:
        jax.clear_caches()
