"""The machines a run can be planned for: published figures of each chip, and topology names.

In: a name such as `v5p:4x4x8`, `v5p:4x4x4*2` (two slices), `h200:8`, `cpu:8`. Out: a `Topology`,
and for TPUs the devices to compile for. It knows no model.
"""

import os
from dataclasses import dataclass
from typing import Any

from jaxcpt.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Per chip: FLOP/s in bfloat16, bytes, bytes/s. `link` is one way, of one of the links; a
    torus has two an axis, so that data goes round both ways."""

    name: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    link: float
    network: float
    clock: float = 0.0
    """Hz, of the compiler's cycles: with it, a product of two 8,192-square matrices has 88, 90 and
    70 % of the published FLOP/s on v5e, v5p and v6e."""
    cores: int = 1
    wraps_from: int = 0
    """Chips along an axis from which its two ends are joined."""
    dimensions: int = 1
    source: str = ""


# The TPU figures are those of Google Cloud's pages on each system ("bidirectional ICI bandwidth per
# chip", over twice the links; network per chip), the GPU figures NVIDIA's data sheets; NVLink is
# one link of 450 GB/s one way to all 8 of a machine, the network one 400 Gb/s adapter a GPU.
DOCS = "https://cloud.google.com/tpu/docs/"
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 16 * GIB, 819e9, 50e9, 3.125e9, 1.5e9, 1, 16, 2, DOCS + "v5e"),
        Chip("v5p", 459e12, 95 * GIB, 2765e9, 100e9, 6.25e9, 1.75e9, 2, 4, 3, DOCS + "v5p"),
        Chip("v6e", 918e12, 32 * GIB, 1638e9, 100e9, 12.5e9, 1.75e9, 1, 16, 2, DOCS + "v6e"),
        Chip("h100", 989e12, 80e9, 3350e9, 450e9, 50e9, source="https://www.nvidia.com/h100"),
        Chip("h200", 989e12, 141e9, 4800e9, 450e9, 50e9, source="https://www.nvidia.com/h200"),
        # For a look at the program alone: no figures are published for "a CPU device".
        Chip("cpu", 0.0, 0.0, 0.0, 0.0, 0.0),
    )
}
GPUS_PER_MACHINE = 8
EXAMPLES = "v5e:8x16, v5p:4x4x8, v5p:4x4x4*2 (two slices), v6e:16x16, h100:64, h200:8, cpu:8"


@dataclass(frozen=True)
class Topology:
    name: str
    chip: Chip
    shape: tuple[int, ...]
    """Chips along each axis of a slice's torus; of GPUs and CPUs, their number."""
    slices: int = 1

    @property
    def chips(self) -> int:
        product = self.slices
        for size in self.shape:
            product *= size
        return product


def parse_topology(name: str) -> Topology:
    """Raises UserError for a chip or a shape that is not known."""
    chip_name, _, rest = name.partition(":")
    if chip_name not in CHIPS:
        raise UserError(f"topology: {name!r} is not known; known are, for example: {EXAMPLES}")
    chip = CHIPS[chip_name]
    shape_text, star, slices_text = rest.partition("*")
    try:
        shape = tuple(int(size) for size in shape_text.split("x"))
        slices = int(slices_text) if star else 1
    except ValueError:
        shape, slices = (), 1
    if len(shape) != chip.dimensions or min(shape) < 1 or slices < 1:
        form = {1: "N", 2: "AxB", 3: "AxBxC"}[chip.dimensions]
        raise UserError(
            f"topology: {name!r} is no shape of {chip_name}, which goes as {chip_name}:{form}; "
            f"for example: {EXAMPLES}"
        )
    return Topology(name, chip, shape, slices)


def describe_devices(topology: Topology) -> list[Any]:
    """The devices of a TPU topology, which need not be here. Raises UserError without libtpu."""
    # What libtpu would else ask of the machine that it takes itself to be on; and a compiler
    # needs no lock on a chip.
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
            "libtpu is not installed, and it is what compiles for TPUs: pip install -e '.[tpu]'"
        ) from None
    shape = "x".join(map(str, topology.shape))
    several = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.chip.name}:{shape}", **several
        )
    except Exception as error:  # libtpu's own words, of several types
        reason = str(error).splitlines()[0]
        raise UserError(f"topology: {topology.name}: libtpu does not know it ({reason})") from None
    return list(description.devices)
