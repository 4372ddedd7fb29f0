"""What it costs that a batch is encoded in chunks by two passes, beside a batch of one chunk.

    python tools/bench_chunks.py [--pairs 32] [--chunks 2 4 8]

The two-pass update encodes every chunk twice: once without a gradient, and once with it. A chunk
has the same number of pairs in all programs, and every text takes a whole row, so that no token is
padding. The programs take turns in one process.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import jax
from bench_step import make_full_batch
from bench_tables import Table, Value, add_json_option, report

from jaxcpt.batches import size_full_batches
from jaxcpt.checks import validate
from jaxcpt.config import Batching, Data, Experiment, JsonlPairs, Model, Optimizer, Tokenizer
from jaxcpt.errors import run_command
from jaxcpt.sharding import count_data_shards, make_mesh, use_cpu_cores
from jaxcpt.update import init_state, make_train_step


def make_experiment(pairs: int, chunks: int) -> Experiment:
    """GPT-2's shape, 256 x 6, with texts of 128 tokens."""
    experiment = Experiment(
        name="chunks",
        train_steps=10,
        data=Data((JsonlPairs("none"),)),  # never read
        tokenizer=Tokenizer(vocabulary=8192, x_tokens=128, y_tokens=128),
        batching=Batching(
            pairs_per_batch=pairs * chunks, chunks=chunks, row_tokens=128, pack=False
        ),
        model=Model(width=256, layers=6, heads=4, compute_dtype="float32", remat="nothing"),
        optimizer=Optimizer(learning_rate=1e-4, warmup_steps=1),
    )
    return validate(experiment)


def make_step(pairs: int, chunks: int) -> Callable[[], None]:
    """A function that does one compiled step."""
    experiment = make_experiment(pairs, chunks)
    mesh = make_mesh(experiment.mesh)
    sizes = size_full_batches(experiment, count_data_shards(mesh))
    batch = make_full_batch(sizes, mesh, experiment.tokenizer.vocabulary)
    train_step = make_train_step(experiment, mesh)
    with jax.set_mesh(mesh):
        states = [init_state(experiment, mesh)]

    def step() -> None:
        with jax.set_mesh(mesh):  # the step takes over the memory of the state
            states.append(jax.block_until_ready(train_step(states.pop(), batch)[0]))

    return step


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=32, help="of a chunk")
    parser.add_argument("--chunks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    use_cpu_cores()
    steps = {chunks: make_step(arguments.pairs, chunks) for chunks in (1, *arguments.chunks)}
    seconds: dict[int, list[float]] = {chunks: [] for chunks in steps}
    for _ in range(1 + arguments.repeats):
        for chunks, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[chunks].append((time.perf_counter() - begin) / chunks)
    rows: list[list[Value]] = []
    for chunks, times in seconds.items():
        ratios = [time / one for time, one in zip(times[1:], seconds[1][1:], strict=True)]
        spread = f"{min(ratios):.3g} to {max(ratios):.3g}"
        rows.append([chunks, median(times[1:]), median(ratios), spread])
    columns = ["chunks", "seconds a chunk", "times that of one chunk", "of all turns"]
    note = f"{arguments.pairs} pairs a chunk; medians of {arguments.repeats} turns."
    table = Table(name="chunks", columns=columns, rows=rows, note=note, plot=columns[1:2])
    report([table], arguments.json)


if __name__ == "__main__":
    run_command(main)
