"""The machines for which a run can be planned.

In: a name such as `v5p:4x4x8`, `v5p:4x4x4*2` (two slices), `h200:8` or `cpu:8`. Out: a `Topology`,
and for TPUs the devices to compile for. The module knows no model.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

from jaxcpt.chips import CHIPS, Chip
from jaxcpt.errors import UserError

PLANNED = {chip.name: chip for chip in CHIPS if chip.link_bandwidth}
# `cpu` has no published figures, so a plan for it only shows the program.
PLANNED["cpu"] = Chip(name="cpu")
GPUS_PER_MACHINE = 8
EXAMPLES = "v5e:8x16, v5p:4x4x8, v5p:4x4x4*2 (two slices), v6e:16x16, h100:64, h200:8, cpu:8"


@dataclass(frozen=True)
class Topology:
    name: str
    chip: Chip
    shape: tuple[int, ...]
    """The number of chips along each axis of a slice's torus; for GPUs and CPUs, their number."""
    slices: int = 1

    @property
    def is_tpu(self) -> bool:
        """Whether XLA's TPU compiler compiles the plan and estimates its cycles."""
        return self.chip.clock > 0

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)


def parse_topology(name: str) -> Topology:
    """Reads a name such as `v5p:4x4x8`. Raises UserError for an unknown chip or shape."""
    chip_name, _, rest = name.partition(":")
    if chip_name not in PLANNED:
        raise UserError(f"topology: {name!r} is not known; known are, for example: {EXAMPLES}")
    chip = PLANNED[chip_name]
    shape_text, star, slices_text = rest.partition("*")
    try:
        shape = tuple(int(size) for size in shape_text.split("x"))
        slices = int(slices_text) if star else 1
    except ValueError:
        shape, slices = (), 1
    if len(shape) != chip.dimensions or min(shape) < 1 or slices < 1:
        form = {1: "N", 2: "AxB", 3: "AxBxC"}[chip.dimensions]
        raise UserError(
            f"topology: {name!r} is not a shape of {chip_name}; write it as {chip_name}:{form}, "
            f"for example: {EXAMPLES}"
        )
    return Topology(name, chip, shape, slices)


def describe_devices(topology: Topology) -> list[Any]:
    """The devices of a TPU topology. The TPU itself need not be attached to this machine.

    Raises UserError if libtpu is not installed or does not know the topology.
    """
    # Without these settings, libtpu looks for a TPU in this machine and locks it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise UserError(
            "compiling for a TPU needs libtpu, which is not installed: pip install -e '.[tpu]'"
        ) from None
    shape = "x".join(map(str, topology.shape))
    several = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.chip.name}:{shape}", **several
        )
    except Exception as error:  # libtpu raises several types
        reason = str(error).splitlines()[0]
        raise UserError(f"topology: {topology.name}: libtpu does not know it ({reason})") from None
    return list(description.devices)
