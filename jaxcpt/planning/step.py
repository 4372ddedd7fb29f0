"""Plans one experiment on one machine: compiles its training step from abstract arrays.

In: an `Experiment` and a `Topology`. Out: a `Plan` with memory, FLOPs, exchanges and time, or
`TooLarge`. No array is allocated, so the machine need not be available. This module does not know
other layouts (layouts.py), and it prints nothing.
"""

import math
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import jax

from jaxcpt.batches import shape_batch, size_full_batches
from jaxcpt.budget import count_budget
from jaxcpt.config import Experiment
from jaxcpt.errors import UserError
from jaxcpt.model import check_model_fits
from jaxcpt.planning.cost import Cost, Machine, ScheduleSimulator, count_flops
from jaxcpt.planning.hlo import Program, list_arrays, read_program
from jaxcpt.planning.topology import Topology, describe_devices
from jaxcpt.sharding import count_data_shards, make_mesh, use_cpu_cores
from jaxcpt.update import make_train_step, shard_state


class TooLarge(Exception):
    """The step does not fit. Its argument is the number of bytes missing per chip."""

    @property
    def missing(self) -> float:
        return float(self.args[0])


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes per chip, as the compiler reports them. The peak is arguments plus temporaries."""

    parameters: int
    frozen: int
    """The part of `parameters` that is frozen."""
    optimizer: int
    batch: int
    temporaries: int
    peak: int
    available: float
    largest: tuple[str, ...]
    """The largest arrays that loops carry, largest first. They are most of the temporaries."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Figures of one step. Times are in seconds; bytes and FLOPs are per chip."""

    experiment: str
    topology: str
    mesh: dict[str, int]
    chunks: int
    remat: str
    cut_residual: bool
    parameters: int
    pairs: int
    tokens: int
    memory: Memory
    model_flops: float
    hardware_flops: float
    exchanges: tuple[dict[str, Any], ...]
    score_arrays: int
    is_prediction: bool
    """False if compiled for the CPU. Then `step_seconds` is only the time of matrix products."""
    compute_bound: float
    hbm_bound: float
    link_bound: float
    network_bound: float
    compute_seconds: float
    attention_seconds: float
    exposed_seconds: float
    step_seconds: float
    mfu: float
    train_steps: int

    @property
    def bound(self) -> str:
        """The part of the machine that needs the most time."""
        names = {"compute": self.compute_bound, "HBM": self.hbm_bound}
        names |= {"interconnect": self.link_bound, "network": self.network_bound}
        return max(names, key=lambda name: names[name])

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"bound": self.bound}


def make_plan(experiment: Experiment, topology: Topology) -> Plan:
    """Compiles the step. Raises TooLarge if it does not fit, and UserError if its mesh does not."""
    mesh = make_mesh(experiment.mesh, list_devices(topology))
    check_model_fits(mesh, experiment)
    sizes = size_full_batches(experiment, count_data_shards(mesh))
    state, batch = shard_state(experiment, mesh), shape_batch(sizes, mesh)
    train_step: Any = make_train_step(experiment, mesh)
    with jax.set_mesh(mesh):
        traced = train_step.trace(state, batch)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            raise _explain(error) from error
    program = read_program(compiled.as_text())
    machine = Machine(mesh, topology)
    cost = ScheduleSimulator(program, machine, sizes.row_tokens, experiment.model.causal).run()
    memory = _read_memory(compiled, program, state, batch, topology)
    # Temporaries on a CPU hold attention scores, so they do not predict those on a GPU.
    needed = memory.peak if topology.is_tpu else memory.peak - memory.temporaries
    if topology.chip.hbm_bytes and needed > memory.available:
        raise TooLarge(needed - memory.available)
    budget = count_budget(experiment, sizes)
    hardware_flops = count_flops(traced.jaxpr.jaxpr, mesh.size) / mesh.size
    bounds = _bound(cost, hardware_flops, topology)
    # For a CPU, XLA exchanges float32 and sums whole arrays, where a GPU would reduce-scatter.
    seconds = cost.step_seconds if topology.is_tpu else bounds["compute_bound"]
    # A batch that does not divide evenly leaves empty places, which are computed too.
    places = sizes.chunks * sizes.data_shards * sizes.pairs_per_cell
    useful = experiment.batching.pairs_per_batch / places
    model_flops = useful * budget.model_flops_per_step / mesh.size
    return Plan(
        experiment=experiment.name,
        topology=topology.name,
        mesh=dict(mesh.shape),
        chunks=sizes.chunks,
        remat=experiment.model.remat,
        cut_residual=experiment.model.cut_residual,
        parameters=budget.parameters,
        pairs=experiment.batching.pairs_per_batch,
        tokens=round(useful * budget.tokens_per_step),
        memory=memory,
        model_flops=model_flops,
        hardware_flops=hardware_flops,
        exchanges=tuple(asdict(cost.exchanges[key]) for key in sorted(cost.exchanges)),
        score_arrays=cost.score_arrays,
        is_prediction=topology.is_tpu,
        **bounds,
        compute_seconds=cost.compute_seconds,
        attention_seconds=cost.attention_seconds,
        exposed_seconds=cost.exposed_seconds,
        step_seconds=seconds,
        mfu=model_flops / topology.chip.flops / seconds if seconds else 0.0,
        train_steps=experiment.train_steps,
    )


def list_devices(topology: Topology) -> list[Any]:
    """The devices to compile for. Raises UserError if they cannot be made.

    For GPUs and CPUs it makes CPU devices, so call it before any other use of JAX's devices.
    """
    if topology.is_tpu:
        return describe_devices(topology)
    use_cpu_cores(topology.chips)
    devices = jax.devices("cpu")
    if len(devices) != topology.chips:
        raise UserError(f"topology: plan {topology.name} in its own command; JAX has devices now")
    return devices


def _explain(error: Exception) -> Exception:
    """TooLarge if the memory is too small, otherwise a UserError with the compiler's message."""
    text = str(error)
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available \w+ \(([\d.]+)([KMGT])\)", text)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", text)
    if "RESOURCE_EXHAUSTED" not in text or found is None:
        return UserError(f"the compiler refuses this: {text.splitlines()[0]}")
    powers = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed, available = (float(found[i]) * powers[found[i + 1]] for i in (1, 3))
    return TooLarge(needed - available)


def _bound(cost: Cost, hardware_flops: float, topology: Topology) -> dict[str, float]:
    """The time that each part of the machine needs if it never waits for another part."""
    chip = topology.chip
    return {
        "compute_bound": hardware_flops / chip.flops if chip.flops else 0.0,
        # A program for the CPU moves other amounts of data than a program for the GPU.
        "hbm_bound": cost.hbm_bytes / chip.hbm_bandwidth if topology.is_tpu else 0.0,
        "link_bound": cost.link_seconds,
        "network_bound": cost.network_seconds,
    }


def _read_memory(
    compiled: Any, program: Program, state: Any, batch: Any, topology: Topology
) -> Memory:
    def per_chip(tree: Any) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    analysis = compiled.memory_analysis()
    arguments = int(analysis.argument_size_in_bytes)
    if topology.is_tpu:
        # temp_size is the sum of all buffers, but not all of them exist at the same time.
        peak = int(analysis.peak_memory_in_bytes)
    else:  # on a CPU, peak_memory_in_bytes leaves out the temporaries
        peak = arguments + int(analysis.temp_size_in_bytes)
    return Memory(
        parameters=per_chip((state.params, state.base)),
        frozen=per_chip(state.base),
        optimizer=per_chip(state.opt_state),
        batch=per_chip(batch),
        temporaries=max(peak - arguments, 0),
        peak=peak,
        available=topology.chip.hbm_bytes,
        largest=_list_largest(program, arguments),
    )


def _list_largest(program: Program, arguments: int, most: int = 4) -> tuple[str, ...]:
    """The largest arrays that the step's loops carry, as `number x type[shape] GiB`."""
    counts: Counter[str] = Counter()
    for instruction in program.computations[program.entry].values():
        if instruction.opcode == "while":
            carried = Counter(
                f"{a.dtype}[{','.join(map(str, a.shape))}]" for a in instruction.arrays if a.bytes
            )
            counts |= carried  # the largest count of any loop
    sizes = {name: count * list_arrays(name)[0].bytes for name, count in counts.items()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:most]
    return tuple(
        f"{counts[name]} x {name} {sizes[name] / 2**30:.2f} GiB"
        for name in largest
        if sizes[name] > 2**20
    )
