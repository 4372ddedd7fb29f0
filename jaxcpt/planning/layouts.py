"""Other ways to lay a run out on a machine, the likely fastest first.

In: an experiment and a topology. Out: layouts (mesh, chunks, remat, cut residual) that may fit, by
a guess that costs nothing; whether one does, and how fast it is, only a compiled plan says.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Literal

from jaxcpt.batches import size_full_batches
from jaxcpt.budget import count_budget
from jaxcpt.config import Experiment
from jaxcpt.planning.chips import Topology

Remat = Literal["nothing", "dots", "everything"]

# What a step takes beside the products of one forward and one backward pass (1 and 2 parts of 3):
# computed again under remat, encoded twice with chunks, waiting for what tensor cuts. Rough: they
# only say what to try first.
AGAIN: dict[Remat, float] = {"nothing": 0.0, "dots": 0.04, "everything": 1 / 3}
# Numbers of the width kept of each token in each layer: the stream at its start; with it queries,
# keys, values, attention, the stream in the middle, four of the MLP; and all that lies between.
KEPT: dict[Remat, float] = {"everything": 1.0, "dots": 10.0, "nothing": 22.0}


@dataclass(frozen=True)
class Layout:
    data: int
    fsdp: int
    tensor: int
    chunks: int
    remat: Remat
    cut_residual: bool

    def changes(self) -> list[str]:
        """As `--set` takes them."""
        part = {"data": "mesh", "fsdp": "mesh", "tensor": "mesh", "chunks": "batching"}
        return [
            f"{part.get(f.name, 'model')}.{f.name}={getattr(self, f.name)}" for f in fields(self)
        ]

    def describe(self) -> str:
        return " ".join(f"--set {change}" for change in self.changes())


def list_layouts(experiment: Experiment, topology: Topology) -> list[Layout]:
    """Those that may fit, the likely fastest first."""
    batching = replace(experiment.batching, chunks=1)
    sizes = size_full_batches(replace(experiment, batching=batching), 1)
    state_bytes = count_budget(experiment, sizes).state_bytes
    layouts = [
        layout
        for layout in _all_layouts(experiment, topology)
        if not topology.chip.hbm
        or guess_bytes(experiment, state_bytes, layout) < 0.9 * topology.chip.hbm
    ]
    return sorted(layouts, key=lambda layout: guess_time(experiment, layout))


def _all_layouts(experiment: Experiment, topology: Topology) -> Iterator[Layout]:
    model, batching = experiment.model, experiment.batching
    per_slice = topology.chips // topology.slices
    for tensor, fsdp in product(_divisors(per_slice), repeat=2):
        fits = tensor * fsdp <= per_slice and per_slice % (tensor * fsdp) == 0
        cut = (
            model.key_heads,
            model.mlp_size,
            experiment.tokenizer.vocabulary,
        )
        divides = model.width % fsdp == 0 and all(size % tensor == 0 for size in cut)
        if not (fits and divides and tensor <= 16):
            continue
        data = topology.chips // (tensor * fsdp)
        for chunks, remat in product((1, 2, 4, 8, 16, 32), AGAIN):
            if chunks * data * fsdp <= batching.pairs_per_batch:
                cuts = (False, True) if tensor > 1 and model.width % tensor == 0 else (False,)
                for cut_residual in cuts:
                    yield Layout(data, fsdp, tensor, chunks, remat, cut_residual)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def guess_time(experiment: Experiment, layout: Layout) -> float:
    """In forward passes."""
    time = 3.0 + AGAIN[layout.remat] + (1.0 if layout.chunks > 1 else 0.0)
    # Every chunk gathers all weights once more; small ones cannot hide it.
    time += 0.02 * layout.chunks + 0.1 * math.log2(layout.tensor)
    return time + 0.02 * abs(math.log2(layout.fsdp / 16)) + 0.05 * layout.cut_residual


def guess_bytes(experiment: Experiment, state_bytes: int, layout: Layout) -> float:
    """Per chip: the state, what layers keep for the backward pass, and what one layer holds."""
    model = experiment.model
    state = state_bytes / (layout.fsdp * layout.tensor)
    batching = replace(experiment.batching, chunks=layout.chunks)
    sizes = size_full_batches(replace(experiment, batching=batching), layout.data * layout.fsdp)
    tokens = sizes.rows_per_cell * sizes.row_tokens
    kept = KEPT[layout.remat]
    cut = kept / layout.tensor if layout.cut_residual else 1 + (kept - 1) / layout.tensor
    of_one = tokens * model.width * 2
    return 1.4 * state + of_one * (cut * model.layers + 2 + 12 / layout.tensor)
