"""Memory and time of the loss's two forms, with gradients, on eight CPU devices.

    python tools/bench_loss.py [--width 1024] [--pairs 12288] [--repeats 5] [--memory-only]

Memory is read from the compiled program and needs no run. Time is measured side by side: each
repeat runs both forms, one after the other, and the figure is the median of the repeats' ratios.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxcpt import config
from jaxcpt.loss import Labels, contrastive_loss
from jaxcpt.sharding import make_mesh, named

MIB = 2**20
Form = Literal["dense", "streaming"]


def shape_inputs(pairs: int, width: int, mesh: jax.sharding.Mesh) -> tuple[Any, ...]:
    """zx_bd, zy_bd, log_scale and labels without values."""

    def shape(letters: str, dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=named(mesh, letters))

    z_bd = shape("bd", jnp.float32, pairs, width)
    present_b = shape("b", jnp.bool, pairs)
    hash_b2 = shape("bt", jnp.uint32, pairs, 2)
    labels: Any = Labels
    labels = labels(present_b, hash_b2, present_b, hash_b2)
    return z_bd, z_bd, shape("", jnp.float32), labels


def draw_inputs(pairs: int, width: int, mesh: jax.sharding.Mesh) -> tuple[Any, ...]:
    def draw(number: int, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        key = jax.random.key(number)
        if leaf.dtype == jnp.bool:
            return jnp.ones(leaf.shape, bool)
        if leaf.dtype == jnp.uint32:
            return jax.random.bits(key, leaf.shape)
        z = jax.random.normal(key, leaf.shape)
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True) if z.ndim else jnp.log(20.0)

    leaves, tree = jax.tree.flatten(shape_inputs(pairs, width, mesh))
    drawn = [jax.device_put(draw(i, leaf), leaf.sharding) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, drawn)


def compile_loss(form: Form, pairs: int, width: int, mesh: jax.sharding.Mesh) -> Any:
    find = jax.value_and_grad(partial(contrastive_loss, form=form), argnums=(0, 1, 2), has_aux=True)
    with jax.set_mesh(mesh):
        return jax.jit(find).lower(*shape_inputs(pairs, width, mesh)).compile()


def report_memory(width: int, mesh: jax.sharding.Mesh) -> None:
    print(f"Temporaries per device, {mesh.size} devices, width {width}")
    forms: list[tuple[Form, list[int]]] = [
        ("dense", [65_536]),
        ("streaming", [65_536 * 2**n for n in range(5)]),
    ]
    for form, sizes in forms:
        for pairs in sizes:
            usage = compile_loss(form, pairs, width, mesh).memory_analysis()
            print(f"  {form:<10} {pairs:>9,} pairs {usage.temp_size_in_bytes / MIB:>9.1f} MiB")


def report_time(pairs: int, width: int, repeats: int, mesh: jax.sharding.Mesh) -> None:
    inputs = draw_inputs(pairs, width, mesh)
    compiled = {f: compile_loss(f, pairs, width, mesh) for f in ("dense", "streaming")}

    def run(form: str) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(compiled[form](*inputs))
        return time.perf_counter() - begun

    print(f"Time of loss and gradients, {pairs:,} pairs, width {width}")
    ratios = []
    for repeat in range(repeats + 1):
        dense, streaming = run("dense"), run("streaming")
        if repeat:  # the first is warm-up
            ratios.append(streaming / dense)
            print(f"  dense {dense:.2f} s, streaming {streaming:.2f} s, ratio {ratios[-1]:.3f}")
    print(f"  median ratio {statistics.median(ratios):.3f}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=12_288, help="for the time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-only", action="store_true")
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = make_mesh(config.Mesh(), jax.devices())
    report_memory(options.width, mesh)
    if not options.memory_only:
        report_time(options.pairs, options.width, options.repeats, mesh)


if __name__ == "__main__":
    main()
