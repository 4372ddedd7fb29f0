"""Published figures of accelerator chips, from the vendors' data sheets.

In: nothing. Out: one `Chip` for each accelerator, and its FLOP/s by JAX's `device_kind`. The module
imports no JAX and knows no model. Training uses only the FLOP/s. `jaxcpt plan` uses the other
figures, which are left out for chips that it does not plan for.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Figures of one chip. Sizes are in bytes, bandwidths in bytes per second."""

    name: str
    device_kinds: tuple[str, ...] = ()
    """The names that JAX gives to its devices (`jax.Device.device_kind`)."""
    flops: float = 0.0
    """Dense bfloat16 FLOP/s. 0: none are published."""
    hbm_bytes: float = 0.0
    hbm_bandwidth: float = 0.0
    link_bandwidth: float = 0.0
    """Of one link in one direction. A TPU has two links along each axis of its torus, so data can
    go both ways."""
    network_bandwidth: float = 0.0
    """Between slices of TPUs or machines of GPUs."""
    clock: float = 0.0
    """Hz of the clock whose cycles the TPU compiler estimates. With these values, the estimate for
    a product of two 8,192-square matrices is 88, 90 and 70 % of the published FLOP/s on v5e, v5p
    and v6e."""
    cores: int = 1
    wraps_from: int = 0
    """The two ends of an axis are joined when it has at least this many chips."""
    dimensions: int = 1
    """Number of axes of a topology: 2 or 3 for the torus of a TPU."""


# TPUs: Google Cloud's page on each system, https://cloud.google.com/tpu/docs/v5p and so on. The
# page gives the interconnect bandwidth of a chip in both directions together, so one link in one
# direction has that value divided by twice the number of links. GPUs: NVIDIA's data sheets,
# https://www.nvidia.com/h100 and so on. NVLink counts as one link of 450 GB/s in one direction to
# all 8 GPUs of a machine. The network is one adapter of 400 Gb/s for each GPU.
CHIPS = (
    Chip(name="v4", device_kinds=("TPU v4",), flops=275e12),
    Chip(
        name="v5e",
        device_kinds=("TPU v5 lite",),
        flops=197e12,
        hbm_bytes=16 * GIB,
        hbm_bandwidth=819e9,
        link_bandwidth=50e9,
        network_bandwidth=3.125e9,
        clock=1.5e9,
        wraps_from=16,
        dimensions=2,
    ),
    Chip(
        name="v5p",
        device_kinds=("TPU v5",),
        flops=459e12,
        hbm_bytes=95 * GIB,
        hbm_bandwidth=2765e9,
        link_bandwidth=100e9,
        network_bandwidth=6.25e9,
        clock=1.75e9,
        cores=2,
        wraps_from=4,
        dimensions=3,
    ),
    Chip(
        name="v6e",
        device_kinds=("TPU v6 lite",),
        flops=918e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1638e9,
        link_bandwidth=100e9,
        network_bandwidth=12.5e9,
        clock=1.75e9,
        wraps_from=16,
        dimensions=2,
    ),
    Chip(
        name="a100",
        device_kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"),
        flops=312e12,
    ),
    Chip(
        name="h100",
        device_kinds=("NVIDIA H100 80GB HBM3",),
        flops=989e12,
        hbm_bytes=80e9,
        hbm_bandwidth=3350e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
    ),
    Chip(
        name="h200",
        device_kinds=("NVIDIA H200",),
        flops=989e12,
        hbm_bytes=141e9,
        hbm_bandwidth=4800e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
    ),
)
FLOPS_BY_DEVICE_KIND = {kind: chip.flops for chip in CHIPS for kind in chip.device_kinds}
