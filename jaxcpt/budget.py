"""What a run costs: its parameters, tokens, FLOPs and bytes, computed before it starts.

In: an experiment and the shape of its batches. Out: the numbers, and the table that is shown before
a run. The module allocates no arrays, and it does not know how long a step takes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxcpt.batches import Sizes
from jaxcpt.chips import FLOPS_BY_DEVICE_KIND
from jaxcpt.config import Experiment
from jaxcpt.model import make_encoder, name_axes
from jaxcpt.optimizer import is_table, mark
from jaxcpt.quantities import say_count, shorten
from jaxcpt.update import shape_state


@dataclass(frozen=True)
class Budget:
    """The costs of one step and of the state. Padding counts as tokens in the FLOPs."""

    parameters: int
    table_parameters: int
    """Parameters of the token and position tables, which are looked up and not multiplied."""
    trained_parameters: int
    state_bytes: int
    """Everything that the devices keep from step to step: parameters and optimizer state."""
    base_bytes: int
    """The frozen parameters' part of `state_bytes`. It is saved once, not in each checkpoint."""
    optimizer_bytes: int
    tokens_per_step: int
    model_flops_per_step: float


def count_budget(experiment: Experiment, sizes: Sizes) -> Budget:
    """Counts the costs of an experiment whose batches have the shape `sizes`.

    Model FLOPs are 6 per weight and token (4 for a frozen weight, which has no gradient), plus
    attention over whole rows, plus the products of the loss. Repeated work is not counted: neither
    the second of the two passes nor what remat recomputes.
    """
    state = shape_state(experiment)
    m = experiment.model
    tables = jax.tree.map(
        lambda leaf, table: leaf.size * table,
        state.encoder,
        mark(name_axes(make_encoder(experiment)), is_table),
    )
    trained = _count(state.params)
    parameters = trained + _count(state.base)
    table_parameters = sum(jax.tree.leaves(tables))
    frozen = max(_count(state.base) - table_parameters, 0)  # all tables are frozen too
    tokens = sizes.tokens_per_batch
    keys = sizes.row_tokens / (2 if m.causal else 1)
    attention = 4 * m.layers * m.heads * m.head_size * keys
    forward = tokens * (2 * (parameters - table_parameters) + attention)
    pairs = experiment.batching.pairs_per_batch
    candidates = pairs * (1 + experiment.batching.negatives)
    loss = 6 * pairs * candidates * m.width
    if experiment.objective == "generative":  # a frozen table has no gradient
        per_weight = 6 if experiment.adapter is None else 4
        loss = per_weight * tokens * m.width * experiment.tokenizer.vocabulary
    return Budget(
        parameters=parameters,
        table_parameters=table_parameters,
        trained_parameters=trained,
        state_bytes=_add_bytes(state),
        base_bytes=_add_bytes(state.base),
        optimizer_bytes=_add_bytes(state.opt_state),
        tokens_per_step=tokens,
        model_flops_per_step=3.0 * forward - 2 * tokens * frozen + loss,
    )


def find_peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    """Published FLOP/s of all devices together; None if jaxcpt/chips.py lacks the device."""
    flops = FLOPS_BY_DEVICE_KIND.get(mesh.devices.flat[0].device_kind)
    return None if flops is None else flops * mesh.size


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _add_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def describe(experiment: Experiment, sizes: Sizes, budget: Budget) -> dict[str, str]:
    """The derived numbers of a run, in words, in the order of the table."""
    pairs, cells = experiment.batching.pairs_per_batch, sizes.chunks * sizes.data_shards
    free = sizes.pairs_per_cell * cells - pairs
    tables = shorten(budget.table_parameters)
    adapted = {
        "trained parameters": f"{shorten(budget.trained_parameters)} (adapters, temperature)",
        "optimizer state": f"{shorten(budget.optimizer_bytes)}B, "
        f"{budget.optimizer_bytes / max(budget.base_bytes, 1):.2%} of the frozen base's "
        f"{shorten(budget.base_bytes)}B",
    }
    return {
        "parameters": f"{shorten(budget.parameters)} ({tables} in tables)",
        **(adapted if experiment.adapter is not None else {}),
        "steps x pairs": f"{experiment.train_steps:,} x {pairs:,}",
        "pairs per data shard": f"{sizes.pairs_per_cell * sizes.chunks:,} in "
        + say_count(sizes.chunks, "chunk")
        + (f" ({free} slots masked)" if free else ""),
        "tokens per step": f"{budget.tokens_per_step:,} = {say_count(cells, 'cell')} x "
        + _describe_rows(sizes),
        "model FLOPs per step": f"{shorten(budget.model_flops_per_step)}FLOP",
        "checkpoint": f"{shorten(budget.state_bytes - budget.base_bytes)}B",
    }


def describe_rows(labels: Sequence[str], sizes_by_source: Sequence[Sizes]) -> dict[str, str]:
    """A line of the same table for homogeneous batches: the rows of each source, in words."""
    if not labels:
        return {}
    listed = [
        f"{label} {_describe_rows(sizes)}"
        for label, sizes in zip(labels, sizes_by_source, strict=True)
    ]
    return {"rows of each cell": ", ".join(listed)}


def _describe_rows(sizes: Sizes) -> str:
    return f"{say_count(sizes.rows_per_cell, 'row')} x {sizes.row_tokens}"
