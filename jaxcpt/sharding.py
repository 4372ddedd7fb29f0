"""The device mesh, and the one table that maps the letters of array axes to mesh axes.

In: `config.Mesh`, and letters such as "dhk". Out: a `jax.sharding.Mesh`, and shardings on it. The
module does not know which arrays a model has.

Mesh axes: `data` holds replicas of the parameters and may span hosts or slices. `fsdp` shards the
parameters and the optimizer state along the width. `tensor` shards heads, MLP and vocabulary.
Batches are sharded over data x fsdp. A *data shard* is one of the data x fsdp parts of a batch, and
also the devices that hold it.
"""

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxcpt import config
from jaxcpt.errors import UserError
from jaxcpt.quantities import say_count

DATA_AXES = ("data", "fsdp")

# letter: (mesh axes in storage, mesh axes in compute). Storage is for parameters and optimizer
# state between steps. Compute is for all arrays inside a step: a parameter's width is gathered over
# fsdp just before its layer needs it.
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
    "a": (None, None),
    "i": (None, None),
    "k": (None, None),
    "l": (None, None),
    "n": (None, None),
    "p": (None, None),
    "t": (None, None),
}


Column = Literal["storage", "compute"]


def partition_spec(letters: Sequence[str], column: Column = "compute") -> PartitionSpec:
    """The spec of an array with these axes. Raises KeyError for a letter that is not in RULES."""
    index = ("storage", "compute").index(column)
    return PartitionSpec(*(RULES[letter][index] for letter in letters))


def constrain(array: jax.Array, letters: Sequence[str], column: Column = "compute") -> jax.Array:
    """Sets the sharding of an array in a jitted function. Without a mesh it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(letters, column))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def fetch(weight: jax.Array, letters: Sequence[str], dtype: str) -> jax.Array:
    """Gathers a stored parameter for the step: changes it to the compute sharding and dtype.

    In the backward pass, the gradient is summed over the data shards and sharded like the stored
    parameter in one reduce-scatter, in the compute dtype. So no device holds the whole gradient.
    The compiler does not always find this without help.
    """
    return constrain(weight.astype(dtype), letters)


def _fetch_forward(
    weight: jax.Array, letters: Sequence[str], dtype: str
) -> tuple[jax.Array, jax.Array]:
    return fetch(weight, letters, dtype), jnp.zeros((), weight.dtype)


def _fetch_backward(
    letters: Sequence[str], _: str, like: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    return (constrain(gradient, letters, "storage").astype(like.dtype),)


fetch.defvjp(_fetch_forward, _fetch_backward)


def size_mesh(shape: config.Mesh, devices: int) -> dict[str, int]:
    """The number of devices along each axis. Raises UserError if their product is not `devices`."""
    sizes = {"data": shape.data, "fsdp": shape.fsdp, "tensor": shape.tensor}
    wild = [name for name, size in sizes.items() if size == -1]
    if len(wild) > 1:
        raise UserError(f"mesh: only one axis may be -1, found {' and '.join(wild)}")
    known = math.prod(size for size in sizes.values() if size != -1)
    if wild and known > 0:
        sizes[wild[0]] = devices // known
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != devices:
        asked = " x ".join(f"{name} {getattr(shape, name)}" for name in sizes)
        remedy = (
            "set the other axes so that their product divides that"
            if wild
            else "set mesh.data=-1 to take all remaining devices"
        )
        here = say_count(devices, "device")
        raise UserError(f"mesh: {asked} does not multiply to the {here} here; {remedy}")
    return sizes


def make_mesh(shape: config.Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh of these devices. None: all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    sizes = size_mesh(shape, len(devices))
    # Axes are Auto. With Explicit axes, the default of jax.make_mesh, a gather from a sharded
    # table and a product of two sharded operands raise.
    auto = (AxisType.Auto,) * len(sizes)
    if devices[0].platform == "tpu":
        grid = _follow_torus(sizes, devices)
    else:
        grid = np.asarray(devices).reshape(tuple(sizes.values()))
    return jax.sharding.Mesh(grid, tuple(sizes), axis_types=auto)


def _follow_torus(sizes: dict[str, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """An array of devices in which each mesh axis lies on neighbouring chips.

    Slices are connected only by a slow network, so they are divided along `data`.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
    if sizes["data"] % slices:
        raise UserError(
            f"mesh.data: {sizes['data']} does not divide by the {slices} slices here; "
            "only the axis data may span slices"
        )
    within = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    return mesh_utils.create_hybrid_device_mesh(
        within, (slices, 1, 1), devices, allow_split_physical_axes=True
    )


CPU_FLAGS = {
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds": 300,
    "--xla_cpu_collective_call_terminate_timeout_seconds": 3600,
}
"""Replaces XLA's limits of 20 s, to warn, and 40 s, to abort. These are reached when other programs
keep the cores busy. `hang_watch` notices a step that hangs, and JAX's heartbeat a lost process."""


def use_cpu_cores(devices: int | None = None) -> None:
    """On a machine without accelerator, makes each core a JAX device.

    XLA runs the element-wise work of a CPU device on one thread, so several devices are faster.
    Call it before any use of JAX's devices. It does not change accelerators, or flags that the user
    has set in XLA_FLAGS. devices: the number of CPU devices; None: one for each core.
    """
    given = os.environ.get("XLA_FLAGS", "")
    missing = [f"{name}={seconds}" for name, seconds in CPU_FLAGS.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()
    jax.config.update("jax_num_cpu_devices", devices or min(len(os.sched_getaffinity(0)), 8))


def use_devices(shape: config.Mesh, processes: int) -> None:
    """Like `use_cpu_cores`, with as many CPU devices as the mesh needs."""
    axes = (shape.data, shape.fsdp, shape.tensor)
    use_cpu_cores(None if -1 in axes else max(math.prod(axes) // processes, 1))


def count_data_shards(mesh: jax.sharding.Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in DATA_AXES)


def describe_mesh(mesh: jax.sharding.Mesh) -> str:
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"{axes} on {say_count(mesh.size, f'{mesh.devices.flat[0].device_kind} device')}"


def named(mesh: jax.sharding.Mesh, letters: Sequence[str] = "") -> NamedSharding:
    """The sharding of an array inside a step. Without letters, the array is replicated."""
    return NamedSharding(mesh, partition_spec(letters))


def find_misfit(size: int, letter: str, mesh: jax.sharding.Mesh) -> str | None:
    """The mesh axes that do not divide an array axis of this size, such as `tensor=4`; None if they
    divide it."""
    for axes in RULES[letter]:
        names = (axes,) if isinstance(axes, str) else axes or ()
        if size % math.prod(mesh.shape[name] for name in names):
            return " x ".join(f"{name}={mesh.shape[name]}" for name in names)
    return None
