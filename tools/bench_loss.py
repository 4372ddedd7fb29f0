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
from bench_tables import MIB, Table, Value, add_json_option, report

from jaxcpt import config
from jaxcpt.loss import Labels, contrastive_loss
from jaxcpt.sharding import make_mesh, named

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


def measure_memory(width: int, mesh: jax.sharding.Mesh) -> Table:
    def measure(form: Form, pairs: int) -> float:
        usage = compile_loss(form, pairs, width, mesh).memory_analysis()
        return usage.temp_size_in_bytes / MIB

    rows: list[list[Value]] = []
    for pairs in (65_536 * 2**n for n in range(5)):
        dense = measure("dense", pairs) if pairs == 65_536 else None
        rows.append([pairs, dense, measure("streaming", pairs)])
    note = f"Temporaries of each of {mesh.size} devices, width {width}, from the compiled program."
    columns = ["pairs", "dense, MiB", "streaming, MiB"]
    return Table(name="loss_memory", columns=columns, rows=rows, note=note, plot=columns[1:])


def measure_time(pairs: int, width: int, repeats: int, mesh: jax.sharding.Mesh) -> Table:
    inputs = draw_inputs(pairs, width, mesh)
    compiled = {f: compile_loss(f, pairs, width, mesh) for f in ("dense", "streaming")}

    def run(form: str) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(compiled[form](*inputs))
        return time.perf_counter() - begun

    turns = [(run("dense"), run("streaming")) for _ in range(repeats + 1)][1:]  # after a warm-up
    dense, streaming = (statistics.median(times) for times in zip(*turns, strict=True))
    ratios = [second / first for first, second in turns]
    row: list[Value] = [pairs, dense, streaming, statistics.median(ratios)]
    row.append(f"{min(ratios):.3g} to {max(ratios):.3g}")
    columns = ["pairs", "dense, s", "streaming, s", "streaming / dense", "of all turns"]
    note = f"Loss and gradients, width {width}; medians of {repeats} turns."
    return Table(name="loss", columns=columns, rows=[row], note=note, plot=columns[1:3])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=12_288, help="for the time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-only", action="store_true")
    add_json_option(parser)
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = make_mesh(config.Mesh(), jax.devices())
    tables = [measure_memory(options.width, mesh)]
    if not options.memory_only:
        tables.append(measure_time(options.pairs, options.width, options.repeats, mesh))
    report(tables, options.json)


if __name__ == "__main__":
    main()
