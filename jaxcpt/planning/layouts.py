"""Lists the possible layouts of a run on a machine, beginning with those that may be fastest.

In: an experiment and a topology. Out: the layouts (mesh, chunks, remat, cut_residual) that fit
according to a rough estimate. This module compiles nothing. Compile a plan (step.py) to learn
whether a layout really fits, and how fast it is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Literal

from jaxcpt.batches import size_full_batches
from jaxcpt.budget import count_budget
from jaxcpt.config import Experiment
from jaxcpt.planning.topology import Topology

Remat = Literal["nothing", "dots", "everything"]

# These rough estimates only decide which layouts are compiled first.
# Time to recompute activations in the backward pass, as a multiple of a forward pass.
RECOMPUTED_PASSES: dict[Remat, float] = {"nothing": 0.0, "dots": 0.04, "everything": 1 / 3}
# Activations that a layer saves for its backward pass, in vectors of the model's width per token.
# everything: only its input. dots: also query, key, value, attention, the stream after attention,
# and four vectors of the MLP. nothing: all intermediate results.
SAVED_VECTORS: dict[Remat, float] = {"everything": 1.0, "dots": 10.0, "nothing": 22.0}


@dataclass(frozen=True, kw_only=True)
class Layout:
    data: int
    fsdp: int
    tensor: int
    chunks: int
    remat: Remat
    cut_residual: bool

    def changes(self) -> list[str]:
        """The layout as values for `--set`."""
        part = {"data": "mesh", "fsdp": "mesh", "tensor": "mesh", "chunks": "batching"}
        return [
            f"{part.get(f.name, 'model')}.{f.name}={getattr(self, f.name)}" for f in fields(self)
        ]

    def describe(self) -> str:
        return " ".join(f"--set {change}" for change in self.changes())


def list_layouts(experiment: Experiment, topology: Topology) -> list[Layout]:
    """The layouts that may fit, in the order of their estimated step time."""
    batching = replace(experiment.batching, chunks=1)
    sizes = size_full_batches(replace(experiment, batching=batching), 1)
    state_bytes = count_budget(experiment, sizes).state_bytes
    layouts = [
        layout
        for layout in _all_layouts(experiment, topology)
        if not topology.chip.hbm_bytes
        or guess_bytes(experiment, state_bytes, layout) < 0.9 * topology.chip.hbm_bytes
    ]
    return sorted(layouts, key=lambda layout: guess_time(experiment, layout))


def _all_layouts(experiment: Experiment, topology: Topology) -> Iterator[Layout]:
    model, batching = experiment.model, experiment.batching
    per_slice = topology.chips // topology.slices
    for tensor, fsdp in product(_divisors(per_slice), repeat=2):
        fits = tensor * fsdp <= per_slice and per_slice % (tensor * fsdp) == 0
        cut_sizes = (model.key_heads, model.mlp_size, experiment.tokenizer.vocabulary)
        divides = model.width % fsdp == 0 and all(size % tensor == 0 for size in cut_sizes)
        if not (fits and divides and tensor <= 16):
            continue
        data = topology.chips // (tensor * fsdp)
        for chunks, remat in product((1, 2, 4, 8, 16, 32), RECOMPUTED_PASSES):
            if chunks * data * fsdp <= batching.pairs_per_batch:
                cuts = (False, True) if tensor > 1 and model.width % tensor == 0 else (False,)
                for cut_residual in cuts:
                    yield Layout(
                        data=data,
                        fsdp=fsdp,
                        tensor=tensor,
                        chunks=chunks,
                        remat=remat,
                        cut_residual=cut_residual,
                    )


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def guess_time(experiment: Experiment, layout: Layout) -> float:
    """A rough step time in forward passes: one forward, two for the backward, and overheads."""
    # Several chunks are encoded twice (update.py).
    time = 3.0 + RECOMPUTED_PASSES[layout.remat] + (1.0 if layout.chunks > 1 else 0.0)
    # Every chunk gathers all weights again, which takes longer than a small chunk's computation.
    time += 0.02 * layout.chunks + 0.1 * math.log2(layout.tensor)
    return time + 0.02 * abs(math.log2(layout.fsdp / 16)) + 0.05 * layout.cut_residual


def guess_bytes(experiment: Experiment, state_bytes: int, layout: Layout) -> float:
    """A rough peak of memory in bytes per chip: the state, the saved activations, one layer."""
    model = experiment.model
    state = state_bytes / (layout.fsdp * layout.tensor)
    batching = replace(experiment.batching, chunks=layout.chunks)
    sizes = size_full_batches(replace(experiment, batching=batching), layout.data * layout.fsdp)
    tokens = sizes.rows_per_cell * sizes.row_tokens
    saved = SAVED_VECTORS[layout.remat]
    # The tensor axis divides all saved vectors, except the residual stream without cut_residual.
    saved = saved / layout.tensor if layout.cut_residual else 1 + (saved - 1) / layout.tensor
    vector_bytes = tokens * model.width * 2  # bfloat16
    return 1.4 * state + vector_bytes * (saved * model.layers + 2 + 12 / layout.tensor)
