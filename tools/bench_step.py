"""A training step measured on the devices here, beside what jaxcpt plan says of it.

    python tools/bench_step.py --experiment experiments/cpt_text_s.py --topology h200:1 \\
        --set mesh.fsdp=1 --set batching.pairs_per_batch=256 --set batching.chunks=4

Every text is as long as a row, so nothing is read and no token is padding: the step that plans
assume. The plan is made in a process of its own, which may have other devices than these.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import jax
import numpy as np
from bench_tables import Table, add_json_option, write_tables

from jaxcpt.batches import Batch, Sizes, shape_batch, size_full_batches
from jaxcpt.checks import validate
from jaxcpt.errors import UserError, run_command
from jaxcpt.experiments import apply_overrides, load_experiment
from jaxcpt.model import Cells, check_model_fits
from jaxcpt.sharding import count_data_shards, make_mesh, use_cpu_cores
from jaxcpt.terminal import print_table
from jaxcpt.update import init_state, make_train_step


def make_full_batch(sizes: Sizes, mesh: jax.sharding.Mesh, vocabulary: int) -> Batch:
    """Random texts, each as long as a row; no two alike."""
    random = np.random.default_rng(0)
    shapes = shape_batch(sizes, mesh)
    cells, texts = shapes.present_ngt.shape[:2], shapes.present_ngt.shape[2]
    if texts != sizes.rows_per_cell:
        raise UserError("batching.row_tokens, rows_per_cell: every text must take a whole row here")
    rows = shapes.cells.tokens_grl.shape
    number = np.arange(texts)[:, None]
    position = np.arange(sizes.row_tokens)
    arrays = Batch(
        Cells(
            random.integers(4, vocabulary, rows, np.int32),
            np.broadcast_to(1 + number, rows).astype(np.int32),
            np.broadcast_to(position, rows).astype(np.int32),
            np.broadcast_to((1 + number[:, 0]) * sizes.row_tokens - 1, (*cells, texts)).astype(
                np.int32
            ),
        ),
        np.ones((*cells, texts), bool),
        random.integers(0, 1 << 32, (*cells, texts, 2), np.uint32),
    )
    return jax.tree.map(lambda a, s: jax.device_put(a, s.sharding), arrays, shapes)


def predict(arguments: argparse.Namespace) -> dict[str, float]:
    """The plan, from a process that has no other devices than those it asks for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "jaxcpt", "plan"]
        command += ["--experiment", arguments.experiment, "--topology", arguments.topology]
        command += [word for change in arguments.changes for word in ("--set", change)]
        done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True)
        if done.returncode:
            raise UserError(done.stderr.strip().removeprefix("jaxcpt: "))
        return dict(json.loads(path.read_text())[0])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--topology", help="what these devices are, such as h200:1 or v5p:2x2x1")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="changes")
    parser.add_argument("--steps", type=int, default=10)
    add_json_option(parser)
    arguments = parser.parse_args(argv)

    experiment = validate(apply_overrides(load_experiment(arguments.experiment), arguments.changes))
    plan = predict(arguments) if arguments.topology else None
    use_cpu_cores()
    mesh = make_mesh(experiment.mesh)
    check_model_fits(mesh, experiment)
    sizes = size_full_batches(experiment, count_data_shards(mesh))
    batch = make_full_batch(sizes, mesh, experiment.tokenizer.vocabulary)
    train_step, seconds, losses = make_train_step(experiment, mesh), [], []
    with jax.set_mesh(mesh):
        state = init_state(experiment, mesh)
        for _ in range(1 + arguments.steps):
            begin = time.perf_counter()
            state, metrics = train_step(state, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - begin)
            losses.append(float(metrics["loss"]))
    measured = median(seconds[1:])  # the first one compiles
    rows = [
        ("devices", f"{mesh.size} x {mesh.devices.flat[0].device_kind}"),
        ("loss, first and last", f"{losses[0]:.4f}, {losses[-1]:.4f}"),
        ("measured step", f"{1000 * measured:,.1f} ms, median of {arguments.steps}"),
        ("slowest", f"{1000 * max(seconds[1:]):,.1f} ms"),
        ("speed", f"{sizes.tokens_per_batch / measured:,.0f} tokens/s"),
    ]
    if plan is not None and plan["step_seconds"]:
        word = "predicted" if plan["is_prediction"] else "at least, by published figures"
        rows += [
            (word, f"{1000 * plan['step_seconds']:,.1f} ms"),
            ("measured / that", f"{measured / plan['step_seconds']:.2f}"),
            ("MFU", f"{plan['mfu'] * plan['step_seconds'] / measured:.1%}"),
        ]
    print_table(f"{experiment.name}, a step", rows)
    if arguments.json:
        columns = [experiment.name, "a step"]
        write_tables(
            [Table(name="step", columns=columns, rows=[[*r] for r in rows])], arguments.json
        )


if __name__ == "__main__":
    run_command(main)
