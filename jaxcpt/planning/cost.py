"""What a compiled step costs on a machine: the schedule played through, and its roofline.

In: a program (plan_hlo.py), a mesh on a topology (plan_chips.py). Out: a `Cost` in seconds and
bytes per chip and step. Cycles are the TPU compiler's own estimates; what it gives none for takes
as long as its bytes take through HBM. Exchanges take their bytes over the links that join the
group, and are hidden as far as the schedule computes between their start and their end.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from jaxcpt.planning.chips import GPUS_PER_MACHINE, Topology
from jaxcpt.planning.hlo import Computation, Instruction, Program, list_group

LANES = 128
VECTOR_LANES = 8 * 128 * 4
"""Numbers that a TPU core's vector unit computes with in a cycle: 8 x 128 lanes, 4 units."""
VECTOR_STEPS = 10
"""Operations on each attention score beside the products: mask, maximum, exponential, sum, casts.
Taken as not overlapped with the products, which is on the safe side."""
HOP_SECONDS = 1e-6
"""Latency from chip to chip."""
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("copy-start", "copy-done", "partition-id", "replica-id", "iota", "opt-barrier"),
    *("slice-start", "slice-done", "async-start", "async-update", "async-done"),
}


@dataclass(frozen=True)
class Exchange:
    """Of one kind along some axes of the mesh, all of a step together, per chip."""

    kind: str
    axes: str
    times: int
    bytes: float
    link_seconds: float
    network_seconds: float


@dataclass
class Cost:
    """Per chip and step."""

    compute_seconds: float = 0.0
    attention_seconds: float = 0.0
    exposed_seconds: float = 0.0
    """Waiting for exchanges."""
    hbm_bytes: float = 0.0
    exchanges: dict[tuple[str, str], Exchange] = field(default_factory=dict)
    score_arrays: int = 0
    """Arrays [rows, heads, l, l] in the program: what the attention kernel is there to avoid."""

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
    """Which links a group of the mesh's devices has."""

    def __init__(self, mesh: jax.sharding.Mesh, topology: Topology) -> None:
        self.mesh, self.topology = mesh, topology
        self.devices = mesh.devices.ravel().tolist()

    def axes_of(self, group: list[int]) -> str:
        where = np.array(np.unravel_index(group, self.mesh.devices.shape))
        varying = [a for a, at in zip(self.mesh.axis_names, where, strict=True) if len({*at}) > 1]
        return "+".join(map(str, varying)) or "none"

    def time(self, kind: str, bytes: int, group: list[int]) -> tuple[float, float]:
        """Seconds on the links of a slice, and on the network, to exchange `bytes`: the whole of
        what is gathered, summed, or sent on."""
        chip, members = self.topology.chip, len(group)
        if members == 1 or not chip.link:
            return 0.0, 0.0
        rounds = 2 if kind == "all-reduce" else 1
        within = members // self._count_slices(group)
        share = 1.0 if kind == "collective-permute" else (within - 1) / within
        bandwidth, hops = self._links(group)
        if kind == "collective-permute":  # to the next one, over one link
            bandwidth, hops = chip.link, 1
        link = max(rounds * bytes * share / bandwidth, rounds * hops * HOP_SECONDS)
        slices = members // within
        # Each chip of a slice carries its part of the whole to the other slices.
        network = rounds * bytes / within * (slices - 1) / slices / chip.network
        return (link if within > 1 else 0.0), network

    def _count_slices(self, group: list[int]) -> int:
        if self.topology.chip.clock:
            return len({getattr(self.devices[i], "slice_index", 0) for i in group})
        return len({i // GPUS_PER_MACHINE for i in group})  # a machine is their slice

    def _links(self, group: list[int]) -> tuple[float, int]:
        """Bytes/s one way of all links that join the group within a slice; hops across it."""
        chip = self.topology.chip
        if not chip.clock:
            return chip.link, 1
        coords = np.array([self.devices[i].coords for i in group])
        # A cube of v5p has optical links that close all three axes, or none of them.
        whole = all(size % chip.wraps_from == 0 for size in self.topology.shape)
        bandwidth, hops = 0.0, 0
        for at, size in zip(coords.T, self.topology.shape, strict=False):
            extent = len({*at.tolist()})
            if extent > 1:
                closed = extent == size >= chip.wraps_from and (whole or len(coords.T) < 3)
                bandwidth += chip.link * (2 if closed else 1)
                hops += extent // 2 if closed else extent - 1
        return bandwidth or chip.link, max(hops, 1)


class Player:
    """Plays a program's schedule through; each axis of the mesh carries one exchange at a time."""

    def __init__(self, program: Program, machine: Machine, row_tokens: int, causal: bool) -> None:
        self.program, self.machine, self.cost = program, machine, Cost()
        self.row_tokens, self.causal = row_tokens, causal
        self.now = 0.0
        self.free_from: dict[str, float] = {}
        self.under_way: dict[str, float] = {}

    def play(self) -> Cost:
        self._play(self.program.computations[self.program.entry], 1)
        return self.cost

    def _play(self, computation: Computation, times: int) -> None:
        for instruction in computation.values():
            if instruction.opcode in ("while", "call"):
                self._play_inner(instruction, times)
            elif (exchange := self.program.exchange_in(instruction)) is not None:
                self._exchange(instruction, exchange, times)
                if instruction.cycles:  # a part of it, fused with what is computed meanwhile
                    self._compute(instruction, computation, times)
            elif "xla_megascale_runtime" in instruction.text and instruction.opcode == "send":
                self._send(instruction, times)
            elif instruction.opcode == "recv":
                self.under_way[instruction.name] = self.under_way.get(_rendezvous(instruction), 0.0)
            elif instruction.opcode.endswith("-done"):
                self._finish(instruction.operands[0], times)
            elif instruction.opcode not in FREE:
                self._compute(instruction, computation, times)

    def _play_inner(self, instruction: Instruction, times: int) -> None:
        """A loop's body is played once, as it runs when nothing is left over from before."""
        body = self.program.computations[
            instruction.attribute("body") or instruction.attribute("to_apply") or ""
        ]
        if instruction.opcode == "while":
            times *= self.program.trips(instruction)
        self.under_way, outer = {}, self.under_way
        self._play(body, times)
        self.under_way = outer

    def _compute(self, instruction: Instruction, computation: Computation, times: int) -> None:
        chip = self.machine.topology.chip
        read_and_written = self.program.hbm_bytes(instruction, computation)
        seconds = 0.0
        if "tpu_custom_call" in instruction.text and (shape := _find_query(instruction)):
            seconds = self._time_attention(shape, "dkv" in instruction.name)
            self.cost.attention_seconds += times * seconds
        elif chip.clock and '"AllocateBuffer"' not in instruction.text:
            seconds = instruction.cycles / chip.clock or read_and_written / chip.hbm_bandwidth
            self.cost.compute_seconds += times * seconds
        self.now += seconds
        self.cost.hbm_bytes += times * read_and_written
        self.cost.score_arrays += sum(
            len(array.shape) >= 4 and array.shape[-2:] == (self.row_tokens, self.row_tokens)
            for array in instruction.arrays
        )

    def _time_attention(self, shape: tuple[int, ...], backward: bool) -> float:
        """A splash kernel's own time: 2 products forward, 5 backward, over whole lanes, and the
        vector unit's work on the scores. Blocks above the diagonal are left out."""
        chip, (rows, heads, l, k) = self.machine.topology.chip, shape
        blocks = max(l // math.gcd(l, 512), 1)
        computed = (blocks + 1) / (2 * blocks) if self.causal else 1.0
        scores = rows * heads * l * l * computed
        lanes = -(-k // LANES) * LANES
        products = (5 if backward else 2) * 2 * lanes * scores / chip.flops
        return products + VECTOR_STEPS * scores / (VECTOR_LANES * chip.cores * chip.clock)

    def _exchange(self, instruction: Instruction, exchange: Instruction, times: int) -> None:
        """An exchange that ends, goes on, starts, or stands alone."""
        inner = "".join(i.text for i in self.program.called(instruction).values())
        if "AsyncCollectiveDone" in inner:
            self._finish(_chain(exchange), times)
            return
        in_parts = "AsyncCollectiveStart" in inner
        # A sum of which each chip keeps its slice, as one fusion.
        scatters = "reduce-scatter" in (instruction.attribute("calls") or "")
        if _chain(exchange) in self.under_way:
            return  # goes on
        group = list_group(exchange, len(self.machine.devices))
        kind = "reduce-scatter" if scatters else exchange.opcode.removesuffix("-start")
        axes = self.machine.axes_of(group)
        whole = _whole_bytes(exchange, len(group))
        link, network = self.machine.time(kind, whole, group)
        share = 1.0 if kind == "collective-permute" else (len(group) - 1) / len(group)
        wire = whole * share * (2 if kind == "all-reduce" else 1)
        key = _chain(exchange) if in_parts else instruction.name
        self._start(key, Exchange(kind, axes, times, wire, link, network))
        if not (in_parts or instruction.opcode.endswith("-start")):
            self._finish(key, times)

    def _send(self, instruction: Instruction, times: int) -> None:
        """Between slices, through the hosts: what each chip has of an exchange's whole, after its
        slice has summed that up by itself."""
        slices, bytes = self.machine.topology.slices, instruction.arrays[0].bytes
        found = re.search(r'megascale_transfer_type="(\w+)"', instruction.text)
        kind = found[1].lower().replace("_", "-") if found else "send"
        share = (slices - 1) / slices
        rounds = {"all-reduce": 2 * share, "all-gather": slices - 1.0, "reduce-scatter": share}
        wire = bytes * rounds.get(kind, 1.0)
        seconds = wire / self.machine.topology.chip.network
        self._start(
            _rendezvous(instruction), Exchange(kind, "data (network)", times, wire, 0.0, seconds)
        )

    def _start(self, key: str, once: Exchange) -> None:
        """Puts an exchange under way; `once` has its cost each time, and how many times."""
        kind, axes, times = once.kind, once.axes, once.times
        before = self.cost.exchanges.get((kind, axes), Exchange(kind, axes, 0, 0.0, 0.0, 0.0))
        self.cost.exchanges[kind, axes] = Exchange(
            kind,
            axes,
            before.times + times,
            before.bytes + times * once.bytes,
            before.link_seconds + times * once.link_seconds,
            before.network_seconds + times * once.network_seconds,
        )
        parts = axes.split("+")
        begin = max(self.now, *(self.free_from.get(axis, 0.0) for axis in parts))
        end = begin + once.link_seconds + once.network_seconds
        self.free_from |= dict.fromkeys(parts, end)
        self.under_way[key] = end

    def _finish(self, key: str, times: int) -> None:
        end = self.under_way.pop(key, self.now)
        self.cost.exposed_seconds += times * max(end - self.now, 0.0)
        self.now = max(self.now, end)


def _rendezvous(instruction: Instruction) -> str:
    """By which a send and its receive know each other."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.text)
    return found[1] if found else ""


def _chain(exchange: Instruction) -> str:
    """What the parts of an exchange that is fused with others have in common."""
    found = re.search(r'chain_id="(\d+)"', exchange.text)
    return f"chain {found[1]}" if found else f"channel {exchange.channel}"


def _whole_bytes(exchange: Instruction, members: int) -> int:
    """Of what is gathered, summed or sent, the whole."""
    arrays = exchange.arrays
    if exchange.opcode == "all-reduce-start":  # the result alone
        return sum(array.bytes for array in arrays)
    if exchange.opcode.endswith("-start"):  # operands, results, and contexts of no size
        arrays = [array for array in arrays if array.shape]
        arrays = arrays[len(arrays) // 2 :]
    total = sum(array.bytes for array in arrays)
    return total * members if exchange.opcode.startswith("reduce-scatter") else total


def _find_query(instruction: Instruction) -> tuple[int, ...] | None:
    """[rows, heads, l, k] of a splash kernel."""
    if "splash" not in instruction.name:
        return None
    # Its largest result: out [r, h, l, k] forward, dq [r, blocks, h, l, k] backward.
    shapes = [a.shape for a in instruction.arrays if a.dtype == "bf16" and len(a.shape) >= 4]
    largest = max(shapes, key=math.prod, default=None)
    return largest and (largest[0], *largest[-3:])


def count_flops(jaxpr: Jaxpr, devices: int) -> float:
    """FLOPs of all matrix products of a traced function on all devices: loops multiplied out,
    and what is computed again counted again. A kernel's grid is a loop. What nothing uses, the
    compiler leaves out, and so does this."""
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
