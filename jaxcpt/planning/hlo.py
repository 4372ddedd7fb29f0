"""Reads an optimised and scheduled HLO program, which is text that XLA's compiler produces.

In: `compiled.as_text()`. Out: its computations, each with its instructions in the order of the
schedule. An instruction has the cycles that the compiler estimates and the bytes that it reads and
writes in HBM. An exchange between chips also has the group of chips that takes part. This module
knows neither chips nor experiments.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EXCHANGES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
ITEM_BYTES |= {"s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8, "token": 0, "opaque": 0}
ITEM_BYTES |= {"s4": 1, "u4": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s2": 1, "u2": 1}

_START = re.compile(r"\s*(ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\(")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")


@dataclass(frozen=True)
class Array:
    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool
    """False if it is in the chip's fast memory (VMEM, SMEM), which needs no HBM bandwidth."""

    @property
    def bytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


def list_arrays(shape: str) -> list[Array]:
    """The arrays in an HLO shape. The shape may be a tuple."""
    return [
        Array(dtype, tuple(map(int, filter(None, sizes.split(",")))), "S(" not in layout)
        for dtype, sizes, layout in _ARRAY.findall(shape)
    ]


@dataclass(frozen=True, kw_only=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    """The whole line, with its attributes."""
    is_root: bool

    @cached_property
    def arrays(self) -> list[Array]:
        return list_arrays(self.shape)

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute such as `calls`, `body` or `condition` names."""
        found = re.search(rf"[ ,]{name}=%([^\s,)]+)", self.text)
        return found and found[1]

    @cached_property
    def cycles(self) -> int:
        """The cycles that the compiler estimates; 0 if it gives no estimate."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found[1]) if found else 0

    @property
    def channel(self) -> str:
        found = re.search(r"channel_id=(\d+)", self.text)
        return found[1] if found else ""


Computation = dict[str, Instruction]
"""Instructions by name, in the order of the schedule."""


@dataclass(frozen=True)
class Program:
    computations: dict[str, Computation]
    entry: str

    def trips(self, loop: Instruction) -> int:
        """The number of iterations of a `while` loop, from the constant in its condition."""
        condition = self.computations[loop.attribute("condition") or ""]
        for instruction in condition.values():
            number = re.search(r"constant\((\d+)\)", instruction.text)
            if number and instruction.opcode == "constant":
                return int(number[1])
        raise ValueError(f"no constant bounds the loop {loop.name}")

    def body(self, instruction: Instruction) -> Computation:
        """The computation that a loop, a call or a conditional runs. Of a conditional it is the
        longest branch. The other branch of a training step only keeps the state, for a bad step."""
        names = [instruction.attribute("body"), instruction.attribute("to_apply")]
        names += [instruction.attribute(f"{branch}_computation") for branch in ("true", "false")]
        if match := re.search(r"branch_computations=\{(.*?)\}", instruction.text):
            names += re.findall(r"%([^\s,]+)", match[1])
        return max((self.computations[name] for name in names if name), key=len)

    def called(self, instruction: Instruction) -> Computation:
        """The computation inside a fusion; empty for other instructions."""
        return self.computations.get(instruction.attribute("calls") or "", {})

    def exchange_in(self, instruction: Instruction) -> Instruction | None:
        """The exchange that this instruction is, or that its fusion contains."""
        if instruction.opcode.removesuffix("-start") in EXCHANGES:
            return instruction
        inner = self.called(instruction).values()
        return next((i for i in inner if i.opcode in EXCHANGES), None)

    def hbm_bytes(self, instruction: Instruction, computation: Computation) -> int:
        """Bytes that an instruction reads from HBM and writes to HBM.

        If a fusion reads or writes only a slice of an array, only that slice counts. An array that
        it returns unchanged does not count.
        """
        inner = self.called(instruction)
        total = 0
        for number, operand in enumerate(instruction.operands):
            source = computation.get(operand)
            if source is None or len(source.arrays) != 1 or not source.arrays[0].in_hbm:
                continue
            # dynamic-update-slice writes into its first operand and does not read it.
            if instruction.opcode != "dynamic-update-slice" or number:
                total += self._bytes_read(inner, number, source.bytes)
        roots = [i for i in inner.values() if i.is_root] or [instruction]
        parts = [inner[o] for o in roots[0].operands] if roots[0].opcode == "tuple" else roots
        for array, part in zip(instruction.arrays, parts, strict=False):
            if array.in_hbm and part.opcode != "parameter":
                update = None
                if part.opcode == "dynamic-update-slice":
                    update = (inner or computation).get(part.operands[1])
                total += update.bytes if update else array.bytes
        return total

    def _bytes_read(self, inner: Computation, number: int, whole: int) -> int:
        """Bytes that the fused computation `inner` reads of its operand `number`.

        whole: size of that operand.
        """
        names = {i.name for i in inner.values() if f" parameter({number})" in i.text}
        if not names:
            return whole  # the instruction is not a fusion
        total = 0
        for user in inner.values():  # an alias comes before the instructions that use it
            for place in (p for p, operand in enumerate(user.operands) if operand in names):
                if user.opcode == "bitcast":
                    names.add(user.name)
                elif user.opcode == "dynamic-slice":
                    total += user.bytes
                elif user.opcode == "fusion":
                    total += self._bytes_read(self.called(user), place, whole)
                elif not (user.opcode == "dynamic-update-slice" and place == 0):
                    total += 0 if user.opcode == "tuple" else whole
        is_result = any(i.is_root and i.name in names for i in inner.values())
        return whole if is_result else min(total, whole)


def read_program(text: str) -> Program:
    """Parses the text of an HLO program. Raises ValueError if it has no entry computation."""
    computations: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in _join_lines(text):
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            current = computations[name] = {}
            entry = name if line.startswith("ENTRY") else entry
        elif match := _START.match(line):
            operands = re.findall(r"%([^\s,()]+)", _inside(line, match.end()))
            current[match[2]] = Instruction(
                name=match[2],
                shape=match[3],
                opcode=match[4],
                operands=tuple(operands),
                text=line,
                is_root=bool(match[1]),
            )
    if not entry:
        raise ValueError("this text is not an HLO program: it has no ENTRY")
    return Program(computations, entry)


def _join_lines(text: str) -> Iterator[str]:
    """Yields whole instructions. Joins the lines of an instruction with a line break inside."""
    whole = ""
    for line in text.splitlines():
        if _START.match(line) or line.startswith(("%", "ENTRY", "HloModule")) or line == "}":
            yield whole
            whole = line
        else:
            whole += line
    yield whole


def _inside(line: str, start: int) -> str:
    """The text inside parentheses. start: the index after the opening parenthesis."""
    depth = 1
    for end in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        if depth == 0:
            return line[start:end]
    return line[start:]


def list_group(exchange: Instruction, devices: int) -> list[int]:
    """The numbers of the devices in the first group of an exchange, in the order of the mesh.

    The compiler writes groups in three forms: as lists, as a reshaped and transposed iota, and as
    axes of a mesh.
    """
    text = exchange.text
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        pairs = re.findall(r"\{(\d+),(\d+)", match[1] + "}")
        return _follow({int(a): int(b) for a, b in pairs})
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return [int(number) for number in match[1].split(",")]
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+?),? ", text):
        return _iota(match[3]).reshape(int(match[1]), int(match[2]))[0].tolist()
    if match := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", text
    ):
        sizes = {n: int(s) for n, s in re.findall(r"'(\w+)'=(\d+)", match[1])}
        ids = _iota(match[2]) if match[2] else np.arange(devices)
        kept = re.findall(r"'(\w+)'", match[3])
        index = tuple(slice(None) if name in kept else 0 for name in sizes)
        return sorted(ids.reshape(tuple(sizes.values()))[index].ravel().tolist())
    return list(range(devices))


def _iota(text: str) -> np.ndarray:
    """`[8,16]T(1,0)` -> the numbers from 0 in that shape, transposed by those axes."""
    match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if match is None:
        raise ValueError(f"unknown device list {text!r}")
    shape = [int(size) for size in match[1].split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose([int(a) for a in match[2].split(",")]) if match[2] else numbers


def _follow(target: dict[int, int]) -> list[int]:
    """All devices that the first sender reaches by one or more sends."""
    reached, at = [min(target)], target[min(target)]
    while at not in reached:
        reached.append(at)
        if at not in target:
            break
        at = target[at]
    return sorted(reached)
