"""The mesh, and the one table that maps the letters of array axes to its axes.

In: `config.Mesh`, letters such as "dhk". Out: a `jax.sharding.Mesh` and shardings on it. It does
not know which arrays a model has.

Mesh axes: `data` (replicas of the parameters, may span hosts or slices), `fsdp` (parameters and
optimizer state cut along the width), `tensor` (heads, MLP, vocabulary). Batches are cut over
data x fsdp: each such shard is a *data shard*.
"""

import math
import os
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxcpt import config
from jaxcpt.config import Refusal

DATA_AXES = ("data", "fsdp")

# letter: (storage: parameters and optimizer state at rest, compute: anything inside the step).
# A parameter's width is gathered over fsdp just before its layer needs it.
RULES: dict[str, tuple[str | tuple[str, ...] | None, str | tuple[str, ...] | None]] = {
    "b": (DATA_AXES, DATA_AXES),
    "g": (DATA_AXES, DATA_AXES),
    "r": (DATA_AXES, DATA_AXES),
    "d": ("fsdp", None),
    "e": (None, "tensor"),
    "h": ("tensor", "tensor"),
    "j": ("tensor", "tensor"),
    "f": ("tensor", "tensor"),
    "v": ("tensor", "tensor"),
    "i": (None, None),
    "k": (None, None),
    "l": (None, None),
    "n": (None, None),
    "p": (None, None),
    "t": (None, None),
}


Column = Literal["storage", "compute"]


def partition_spec(letters: Sequence[str], column: Column = "compute") -> PartitionSpec:
    """The spec of an array with these axes. A letter the table lacks is a KeyError."""
    index = ("storage", "compute").index(column)
    return PartitionSpec(*(RULES[letter][index] for letter in letters))


def constrain(array: jax.Array, letters: Sequence[str], column: Column = "compute") -> jax.Array:
    """Fixes the layout of `array` inside a jitted function; outside any mesh, leaves it alone."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(letters, column))


def size_mesh(shape: config.Mesh, devices: int) -> dict[str, int]:
    """Devices along each axis. Raises Refusal when they do not multiply to `devices`."""
    sizes = {"data": shape.data, "fsdp": shape.fsdp, "tensor": shape.tensor}
    wild = [name for name, size in sizes.items() if size == -1]
    if len(wild) > 1:
        raise Refusal(f"mesh: only one axis may be -1, found {' and '.join(wild)}")
    known = math.prod(size for size in sizes.values() if size != -1)
    if wild and known > 0:
        sizes[wild[0]] = devices // known
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != devices:
        asked = " x ".join(f"{name} {getattr(shape, name)}" for name in sizes)
        raise Refusal(
            f"mesh: {asked} does not multiply to the {devices} devices here; "
            "set mesh.data=-1 to take what the other axes leave"
        )
    return sizes


def make_mesh(shape: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over all devices of all processes, or over those given."""
    devices = jax.devices() if devices is None else devices
    sizes = size_mesh(shape, len(devices))
    # Auto axes: under Explicit ones (the default of jax.make_mesh) a gather from a sharded
    # table and a product of two sharded operands raise.
    auto = (AxisType.Auto,) * len(sizes)
    if devices[0].platform == "tpu":  # follows the torus
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=auto, devices=devices)
    grid = np.asarray(devices).reshape(tuple(sizes.values()))
    return jax.sharding.Mesh(grid, tuple(sizes), axis_types=auto)


def use_cpu_cores(devices: int | None = None) -> None:
    """On a machine without accelerator, makes each core a device: XLA runs element-wise work of
    one CPU device on one thread. Call it before anything touches JAX's devices; accelerators are
    left as they are.
    """
    jax.config.update("jax_num_cpu_devices", devices or min(len(os.sched_getaffinity(0)), 8))


def count_data_shards(mesh: jax.sharding.Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in DATA_AXES)


def named(mesh: jax.sharding.Mesh, letters: Sequence[str] = "") -> NamedSharding:
    """The sharding of an array inside the step; no letters: replicated."""
    return NamedSharding(mesh, partition_spec(letters))


def check_model_fits(mesh: jax.sharding.Mesh, model: config.Model, vocabulary: int) -> None:
    """Every sharded axis of the parameters must divide. Raises Refusal naming field and axis."""
    cut = {
        "model.width": (model.width, "fsdp"),
        "model.heads": (model.heads, "tensor"),
        "model.kv_heads": (model.kv_heads or model.heads, "tensor"),
        "model.mlp_width": (model.mlp_width or 4 * model.width, "tensor"),
        "tokenizer.vocabulary": (vocabulary, "tensor"),
    }
    if model.cut_residual:
        cut["model.width (cut_residual)"] = (model.width, "tensor")
    for name, (size, axis) in cut.items():
        if size % mesh.shape[axis]:
            raise Refusal(
                f"{name}: {size} does not divide by the mesh axis {axis}={mesh.shape[axis]}"
            )
