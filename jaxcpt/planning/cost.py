"""Simulates the schedule of a compiled training step to find its cost on a machine.

In: a program (hlo.py) and a mesh on a topology (topology.py). Out: a `Cost` in seconds and bytes
per chip and step. The TPU compiler estimates the cycles of most instructions. For an instruction
without an estimate, the time is that of reading and writing its bytes in HBM. An *exchange* is a
collective operation between chips. Its time is that of its bytes on the links between the chips of
its group. Computation between the start and the end of an exchange runs at the same time. This
module does not know experiments.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from jaxcpt.planning.hlo import Computation, Instruction, Program, list_group
from jaxcpt.planning.topology import GPUS_PER_MACHINE, Topology

LANES = 128
VECTOR_LANES = 8 * 128 * 4
"""Numbers that a TPU core's vector unit processes in a cycle: 8 x 128 lanes, 4 units."""
VECTOR_STEPS = 10
"""Vector operations on each attention score: mask, maximum, exponential, sum, casts. In the
simulation they do not overlap with matrix products, so its times are rather too long."""
HOP_SECONDS = 1e-6
"""Latency in seconds from one chip to the next."""
FREE_OPCODES = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("copy-start", "copy-done", "partition-id", "replica-id", "iota", "opt-barrier"),
    *("slice-start", "slice-done", "async-start", "async-update", "async-done"),
}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """All exchanges of one kind over the same mesh axes in a step, per chip."""

    kind: str
    axes: str
    times: int
    bytes: float
    link_seconds: float
    network_seconds: float


@dataclass
class Cost:
    """The cost of a step on one chip."""

    compute_seconds: float = 0.0
    attention_seconds: float = 0.0
    exposed_seconds: float = 0.0
    """Time in which the chip only waits for exchanges."""
    hbm_bytes: float = 0.0
    exchanges: dict[tuple[str, str], Exchange] = field(default_factory=dict)
    score_arrays: int = 0
    """Number of arrays [rows, heads, l, l] in the program. A good attention kernel makes none."""

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.attention_seconds + self.exposed_seconds

    @property
    def link_seconds(self) -> float:
        return sum(exchange.link_seconds for exchange in self.exchanges.values())

    @property
    def network_seconds(self) -> float:
        return sum(exchange.network_seconds for exchange in self.exchanges.values())


class Machine:
    """The links between the devices of a mesh, and the time of an exchange over them."""

    def __init__(self, mesh: jax.sharding.Mesh, topology: Topology) -> None:
        self.mesh, self.topology = mesh, topology
        self.devices = mesh.devices.ravel().tolist()

    def axes_of(self, group: list[int]) -> str:
        """The mesh axes along which the devices of a group differ, such as `data+fsdp`."""
        where = np.array(np.unravel_index(group, self.mesh.devices.shape))
        varying = [a for a, at in zip(self.mesh.axis_names, where, strict=True) if len({*at}) > 1]
        return "+".join(map(str, varying)) or "none"

    def time(self, kind: str, bytes: int, group: list[int]) -> tuple[float, float]:
        """Seconds on the links inside a slice, and seconds on the network between slices.

        bytes: size of the whole array that is gathered, summed or permuted.
        """
        chip, members = self.topology.chip, len(group)
        if members == 1 or not chip.link_bandwidth:
            return 0.0, 0.0
        rounds = 2 if kind == "all-reduce" else 1
        within = members // self._count_slices(group)
        share = 1.0 if kind == "collective-permute" else (within - 1) / within
        bandwidth, hops = self._links(group)
        if kind == "collective-permute":  # each chip sends over one link to the next
            bandwidth, hops = chip.link_bandwidth, 1
        link = max(rounds * bytes * share / bandwidth, rounds * hops * HOP_SECONDS)
        slices = members // within
        # Each chip of a slice sends its part of the whole to the other slices.
        network = rounds * bytes / within * (slices - 1) / slices / chip.network_bandwidth
        return (link if within > 1 else 0.0), network

    def _count_slices(self, group: list[int]) -> int:
        if self.topology.is_tpu:
            return len({getattr(self.devices[i], "slice_index", 0) for i in group})
        return len({i // GPUS_PER_MACHINE for i in group})  # a machine counts as a slice

    def _links(self, group: list[int]) -> tuple[float, int]:
        """Bytes/s in one direction over all links of the group inside a slice, and its hops."""
        chip = self.topology.chip
        if not self.topology.is_tpu:
            return chip.link_bandwidth, 1
        coords = np.array([self.devices[i].coords for i in group])
        # In a v5p topology, either all three axes are closed by optical links, or none of them.
        whole = all(size % chip.wraps_from == 0 for size in self.topology.shape)
        bandwidth, hops = 0.0, 0
        for at, size in zip(coords.T, self.topology.shape, strict=False):
            extent = len({*at.tolist()})
            if extent > 1:
                closed = extent == size >= chip.wraps_from and (whole or len(coords.T) < 3)
                bandwidth += chip.link_bandwidth * (2 if closed else 1)
                hops += extent // 2 if closed else extent - 1
        return bandwidth or chip.link_bandwidth, max(hops, 1)


class ScheduleSimulator:
    """Simulates a program's schedule with a clock, and adds up its `Cost`.

    Each axis of the mesh carries one exchange at a time.
    """

    def __init__(self, program: Program, machine: Machine, row_tokens: int, causal: bool) -> None:
        self.program, self.machine, self.cost = program, machine, Cost()
        self.row_tokens, self.causal = row_tokens, causal
        self.now = 0.0
        self.free_from: dict[str, float] = {}
        """When each mesh axis has finished its last exchange."""
        self.ends: dict[str, float] = {}
        """When each exchange ends that has started but was not yet waited for."""

    def run(self) -> Cost:
        self._run(self.program.computations[self.program.entry], 1)
        return self.cost

    def _run(self, computation: Computation, times: int) -> None:
        for instruction in computation.values():
            if instruction.opcode in ("while", "call", "conditional"):
                self._run_inner(instruction, times)
            elif (exchange := self.program.exchange_in(instruction)) is not None:
                self._exchange(instruction, exchange, times)
                if instruction.cycles:  # computation that is fused with the exchange
                    self._compute(instruction, computation, times)
            elif "xla_megascale_runtime" in instruction.text and instruction.opcode == "send":
                self._send(instruction, times)
            elif instruction.opcode == "recv":
                self.ends[instruction.name] = self.ends.get(_rendezvous(instruction), 0.0)
            elif instruction.opcode.endswith("-done"):
                self._finish(instruction.operands[0], times)
            elif instruction.opcode not in FREE_OPCODES:
                self._compute(instruction, computation, times)

    def _run_inner(self, instruction: Instruction, times: int) -> None:
        """Simulates a loop's body once and multiplies its cost. No earlier exchange is running."""
        if instruction.opcode == "while":
            times *= self.program.trips(instruction)
        self.ends, outer = {}, self.ends
        self._run(self.program.body(instruction), times)
        self.ends = outer

    def _compute(self, instruction: Instruction, computation: Computation, times: int) -> None:
        chip = self.machine.topology.chip
        read_and_written = self.program.hbm_bytes(instruction, computation)
        seconds = 0.0
        if "tpu_custom_call" in instruction.text and (shape := _find_query(instruction)):
            seconds = self._time_attention(shape, "dkv" in instruction.name)
            self.cost.attention_seconds += times * seconds
        elif self.machine.topology.is_tpu and '"AllocateBuffer"' not in instruction.text:
            seconds = instruction.cycles / chip.clock or read_and_written / chip.hbm_bandwidth
            self.cost.compute_seconds += times * seconds
        self.now += seconds
        self.cost.hbm_bytes += times * read_and_written
        self.cost.score_arrays += sum(
            len(array.shape) >= 4 and array.shape[-2:] == (self.row_tokens, self.row_tokens)
            for array in instruction.arrays
        )

    def _time_attention(self, shape: tuple[int, ...], backward: bool) -> float:
        """Seconds of a splash attention kernel on queries of shape [rows, heads, l, k].

        The forward pass has 2 matrix products and the backward pass 5, padded to whole lanes. The
        vector unit's time for the scores is added. A causal kernel skips blocks above the diagonal.
        """
        chip, (rows, heads, l, k) = self.machine.topology.chip, shape
        blocks = max(l // math.gcd(l, 512), 1)
        computed = (blocks + 1) / (2 * blocks) if self.causal else 1.0
        scores = rows * heads * l * l * computed
        lanes = -(-k // LANES) * LANES
        products = (5 if backward else 2) * 2 * lanes * scores / chip.flops
        return products + VECTOR_STEPS * scores / (VECTOR_LANES * chip.cores * chip.clock)

    def _exchange(self, instruction: Instruction, exchange: Instruction, times: int) -> None:
        """Starts an exchange, or waits for its end, or both, depending on the instruction."""
        inner = "".join(i.text for i in self.program.called(instruction).values())
        if "AsyncCollectiveDone" in inner:
            self._finish(_chain(exchange), times)
            return
        in_parts = "AsyncCollectiveStart" in inner
        # The compiler may fuse a sum with the slice of it that each chip keeps.
        scatters = "reduce-scatter" in (instruction.attribute("calls") or "")
        if _chain(exchange) in self.ends:
            return  # a later part of an exchange that has started
        group = list_group(exchange, len(self.machine.devices))
        kind = "reduce-scatter" if scatters else exchange.opcode.removesuffix("-start")
        axes = self.machine.axes_of(group)
        whole = _whole_bytes(exchange, len(group))
        link, network = self.machine.time(kind, whole, group)
        share = 1.0 if kind == "collective-permute" else (len(group) - 1) / len(group)
        wire = whole * share * (2 if kind == "all-reduce" else 1)
        key = _chain(exchange) if in_parts else instruction.name
        once = Exchange(
            kind=kind,
            axes=axes,
            times=times,
            bytes=wire,
            link_seconds=link,
            network_seconds=network,
        )
        self._start(key, once)
        if not (in_parts or instruction.opcode.endswith("-start")):
            self._finish(key, times)

    def _send(self, instruction: Instruction, times: int) -> None:
        """Starts a transfer between slices, which passes through the hosts.

        Each chip sends its part of the array, after its slice has summed up that part.
        """
        slices, bytes = self.machine.topology.slices, instruction.arrays[0].bytes
        found = re.search(r'megascale_transfer_type="(\w+)"', instruction.text)
        kind = found[1].lower().replace("_", "-") if found else "send"
        share = (slices - 1) / slices
        rounds = {"all-reduce": 2 * share, "all-gather": slices - 1.0, "reduce-scatter": share}
        wire = bytes * rounds.get(kind, 1.0)
        seconds = wire / self.machine.topology.chip.network_bandwidth
        once = Exchange(
            kind=kind,
            axes="data (network)",
            times=times,
            bytes=wire,
            link_seconds=0.0,
            network_seconds=seconds,
        )
        self._start(_rendezvous(instruction), once)

    def _start(self, key: str, once: Exchange) -> None:
        """Starts an exchange. once: the cost of one exchange, and how often the step has it."""
        kind, axes, times = once.kind, once.axes, once.times
        nothing = Exchange(
            kind=kind, axes=axes, times=0, bytes=0.0, link_seconds=0.0, network_seconds=0.0
        )
        before = self.cost.exchanges.get((kind, axes), nothing)
        self.cost.exchanges[kind, axes] = replace(
            before,
            times=before.times + times,
            bytes=before.bytes + times * once.bytes,
            link_seconds=before.link_seconds + times * once.link_seconds,
            network_seconds=before.network_seconds + times * once.network_seconds,
        )
        parts = axes.split("+")
        begin = max(self.now, *(self.free_from.get(axis, 0.0) for axis in parts))
        end = begin + once.link_seconds + once.network_seconds
        self.free_from |= dict.fromkeys(parts, end)
        self.ends[key] = end

    def _finish(self, key: str, times: int) -> None:
        """Waits until an exchange has ended."""
        end = self.ends.pop(key, self.now)
        self.cost.exposed_seconds += times * max(end - self.now, 0.0)
        self.now = max(self.now, end)


def _rendezvous(instruction: Instruction) -> str:
    """The name that a send and its matching receive share."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.text)
    return found[1] if found else ""


def _chain(exchange: Instruction) -> str:
    """The name that all parts of an exchange share if the compiler has split it."""
    found = re.search(r'chain_id="(\d+)"', exchange.text)
    return f"chain {found[1]}" if found else f"channel {exchange.channel}"


def _whole_bytes(exchange: Instruction, members: int) -> int:
    """Size of the whole array that is gathered, summed or permuted."""
    arrays = exchange.arrays
    if exchange.opcode == "all-reduce-start":  # its shape lists only the result
        return sum(array.bytes for array in arrays)
    if exchange.opcode.endswith("-start"):  # lists operands, results, and scalar contexts
        arrays = [array for array in arrays if array.shape]
        arrays = arrays[len(arrays) // 2 :]
    total = sum(array.bytes for array in arrays)
    return total * members if exchange.opcode.startswith("reduce-scatter") else total


def _find_query(instruction: Instruction) -> tuple[int, ...] | None:
    """[rows, heads, l, k] of a splash attention kernel; None for any other instruction."""
    if "splash" not in instruction.name:
        return None
    # The largest result is the output [r, h, l, k] or the gradient dq [r, blocks, h, l, k].
    shapes = [a.shape for a in instruction.arrays if a.dtype == "bf16" and len(a.shape) >= 4]
    largest = max(shapes, key=math.prod, default=None)
    return largest and (largest[0], *largest[-3:])


def count_flops(jaxpr: Jaxpr, devices: int) -> float:
    """FLOPs of all matrix products of a traced function, on all devices together.

    Each iteration of a loop counts, and so does recomputation. A kernel's grid counts as a loop.
    Results that nothing uses do not count, because the compiler removes them.
    """
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count_flops(used, devices)


def _count_flops(jaxpr: Jaxpr, devices: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = sum(_count_flops(j, devices) for j in _list_jaxprs(parameters.values()))
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left: Any = equation.invars[0].aval
            result: Any = equation.outvars[0].aval
            size = math.prod(left.shape[axis] for axis in contracted)
            total += 2.0 * math.prod(result.shape) * size
        elif name == "scan":
            total += parameters["length"] * inner
        elif name == "shard_map":
            total += devices * inner
        elif name == "pallas_call":
            total += math.prod(parameters["grid_mapping"].grid) * inner
        elif name == "cond":
            total += max(_count_flops(b.jaxpr, devices) for b in parameters["branches"])
        else:
            total += inner
    return total


def _list_jaxprs(values: Iterable) -> list[Jaxpr]:
    found: list[Any] = []
    for value in values:
        for part in value if isinstance(value, (tuple, list)) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                found.append(part)
    return found
