"""Is every global batch exact, however it is cut? Prints the table, and fails on any deviation.

    python tools/gradient_table.py [--json FILE] [--quick] [--plant gather|temperature|labels]

Each line is one way of cutting the same pairs: devices and processes, chunks, the loss's form,
packing, hard negatives, a batch that nothing divides. The gradient of every parameter and of the
temperature, as the training step computes it, stands beside that of the undivided batch, which
`gradient_reference.py` finds on one device in float64 NumPy. Runs on CPU devices alone.
"""

import argparse
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import gradient_reference
import jax
import numpy as np
from gradient_faults import FAULTS, SMALL_TILES, Plant, patch_loss
from gradient_reference import Text, TextPair, Truth
from jax.experimental import multihost_utils

from jaxcpt import config
from jaxcpt.batches import Batches
from jaxcpt.checks import validate
from jaxcpt.config import Batching, Data, Experiment, JsonlPairs, Model, Optimizer
from jaxcpt.pair import Pair
from jaxcpt.pairs import PairList
from jaxcpt.sharding import make_mesh, named
from jaxcpt.tokenizer import Tokenizer, train_tokenizer
from jaxcpt.update import compute_gradient, shard_state

Form = Literal["dense", "streaming"]

SCALES = (1 / 0.07, 100.0)  # where a run starts, and the clamp
RATIO = 1e-5
COSINE = 1e-6
WORST = 1e-4
BFLOAT16 = 2.0**-7  # the spacing of bfloat16 numbers, relative
XLA_FLAGS = (  # much to compile and little to compute; busy machines are late for collectives
    "--xla_backend_optimization_level=0"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    " --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
)
if jax.__version_info__ < (0, 11):  # compiles in two thirds of the time; later ones lack the flag
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"


@dataclass(frozen=True)
class Case:
    """One way of cutting a batch."""

    data: int
    fsdp: int
    tensor: int
    chunks: int
    form: Form
    pack: bool
    negatives: int
    pairs: int
    processes: int = 1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Row:
    """A case at a temperature, against the truth.

    encoder, temperature: length of the gradient / true. worst: the largest relative error of one
    parameter's gradient.
    """

    case: Case
    scale: float
    encoder: float
    cosine: float
    worst: float
    temperature: float
    loss: float

    @property
    def exact(self) -> bool:
        return (
            abs(self.encoder - 1) < RATIO
            and 1 - self.cosine < COSINE
            and self.worst < WORST
            and abs(self.temperature - 1) < RATIO
            and abs(self.loss) < RATIO
        )


def list_meshes(devices: int) -> list[tuple[int, int, int]]:
    """Every data x fsdp x tensor that multiplies to `devices`."""
    sizes = [size for size in (1, 2, 4, 8) if size <= devices]
    return [m for m in itertools.product(sizes, sizes, sizes) if m[0] * m[1] * m[2] == devices]


CUTS: list[tuple[int, Form]] = list(itertools.product((1, 2, 4, 8), ("dense", "streaming")))
# 64 pairs are one for each of 8 devices and 8 chunks; 61 divide by nothing.
CONTENTS: list[tuple[bool, int, int]] = list(itertools.product((True, False), (0, 2), (64, 61)))

COVERED = """Covered in full: every mesh x chunks x form; every mesh x packing x negatives x \
remainder; and every
chunks x form x packing x negatives x remainder. Each line is run at both temperatures."""
COVERED_QUICKLY = "Quick: every chunks x form, and every packing x negatives x remainder, once."
QUICK_CUTS = {0: 0, 1: 1, 3: 2, 5: 4, 8: 7, 13: 6, 15: 5, 19: 3}  # of which meshes


def list_cases(quick: bool) -> list[Case]:
    """Those of one process. Content number (mesh + cut) mod 8 makes a Latin square of both."""
    meshes = [mesh for devices in (1, 2, 4, 8) for mesh in list_meshes(devices)]
    return [
        make_case(mesh, cut, CONTENTS[(number + at) % 8])
        for number, mesh in enumerate(meshes)
        for at, cut in enumerate(CUTS)
        if not quick or QUICK_CUTS.get(number) == at
    ]


def list_process_cases(processes: int, quick: bool) -> list[Case]:
    """Those of several processes with two devices each: every mesh, with all else in turn."""
    return [
        make_case(mesh, CUTS[(4 + 3 * number) % 8], CONTENTS[(2 + 5 * number) % 8], processes)
        for number, mesh in enumerate(list_meshes(2 * processes))
        if not quick or number % 5 == 0
    ]


def make_case(
    mesh: tuple[int, int, int],
    cut: tuple[int, Form],
    content: tuple[bool, int, int],
    processes: int = 1,
) -> Case:
    (data, fsdp, tensor), (chunks, form), (pack, negatives, pairs) = mesh, cut, content
    return Case(data, fsdp, tensor, chunks, form, pack, negatives, pairs, processes)


def make_pairs(count: int) -> list[Pair]:
    """Random words. A few texts occur twice, and a few pairs lack some of their negatives."""
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)]

    def draw(low: int, high: int) -> str:
        return " ".join(random.choice(words, random.integers(low, high)))

    pairs = [
        Pair(draw(1, 5), draw(3, 12), "", tuple(draw(3, 12) for _ in range(random.integers(0, 3))))
        for _ in range(count)
    ]
    pairs[7] = replace(pairs[7], x=pairs[3].x)
    pairs[11] = replace(pairs[11], y=pairs[5].y)
    pairs[20] = replace(pairs[20], negatives=(pairs[20].y,))
    pairs[21] = replace(pairs[21], negatives=(pairs[2].y, pairs[30].x))
    return pairs


def make_experiment(case: Case) -> Experiment:
    return validate(
        Experiment(
            name="gradient table",
            train_steps=2,
            data=Data(train=(JsonlPairs("made"),)),
            tokenizer=config.Tokenizer(vocabulary=320, x_tokens=12, y_tokens=24),
            batching=Batching(
                pairs_per_batch=case.pairs,
                chunks=case.chunks,
                row_tokens=32,
                pack=case.pack,
                negatives=case.negatives,
            ),
            model=Model(width=16, layers=2, heads=8, compute_dtype=case.compute_dtype),
            loss=config.Loss(form=case.form),
            mesh=config.Mesh(case.data, case.fsdp, case.tensor),
            optimizer=Optimizer(learning_rate=1e-3),
        )
    )


@cache
def make_tokenizer() -> Tokenizer:
    settings = make_experiment(list_cases(True)[0]).tokenizer
    return train_tokenizer([text for p in make_pairs(64) for text in (p.x, p.y)], settings)


@cache
def draw_encoder() -> Any:
    """Parameters far from their start, so that embeddings differ and every gradient counts."""
    experiment = make_experiment(list_cases(True)[0])
    one = make_mesh(config.Mesh(), jax.local_devices()[:1])
    random = np.random.default_rng(1)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = random.normal(0.0, 0.3, leaf.shape)
        return (values + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree.map_with_path(draw, shard_state(experiment, one).params["encoder"])


@cache
def find_truth(pairs: int, negatives: int, scale: float) -> Truth:
    tokenizer = make_tokenizer()
    made = [
        TextPair(
            Text(tokenizer.encode([pair.x], "x")[0], pair.x),
            Text(tokenizer.encode([pair.y], "y")[0], pair.y),
            tuple(Text(tokenizer.encode([n], "y")[0], n) for n in pair.negatives[:negatives]),
        )
        for pair in make_pairs(pairs)
    ]
    return gradient_reference.find_truth(draw_encoder(), float(np.log(np.float32(scale))), made)


def find_gradients(case: Case, plant: Plant = "none") -> list[tuple[float, float, Any]]:
    """(scale, loss, gradient as NumPy) at each of SCALES, from the code that trains."""
    experiment = make_experiment(case)
    devices = jax.devices()[: case.data * case.fsdp * case.tensor]
    mesh = make_mesh(experiment.mesh, devices)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, shard_state(experiment, mesh).params)

    def place(value: np.ndarray, layout: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, layout, lambda index: value[index])

    with jax.set_mesh(mesh), patch_loss(plant):
        # As many pairs as a batch holds: each batch is all of them.
        pairs = PairList(make_pairs(case.pairs))
        batch = Batches(experiment, [pairs], make_tokenizer(), mesh).make(0)
        find = jax.jit(partial(compute_gradient, experiment), out_shardings=(named(mesh), layouts))
        found = []
        for scale in SCALES:
            params = {"encoder": draw_encoder(), "log_scale": np.log(np.float32(scale))}
            metrics, gradient = find(jax.tree.map(place, params, layouts), batch)
            assert metrics["pairs"] == case.pairs, "a pair found no place"
            if case.processes > 1:
                gradient = multihost_utils.process_allgather(gradient, tiled=True)
            gradient = jax.device_get(gradient)
            if plant == "temperature":
                gradient["log_scale"] = gradient["log_scale"] * case.chunks
            found.append((scale, float(metrics["loss"]), gradient))
        return found


def measure(case: Case, plant: Plant = "none") -> Iterator[Row]:
    """The case's rows, one for each temperature."""
    for scale, loss_value, gradient in find_gradients(case, plant):
        truth = find_truth(case.pairs, case.negatives, scale)
        found, true = flatten(gradient["encoder"]), flatten(truth.encoder)
        whole, whole_true = np.concatenate(found), np.concatenate(true)
        length, length_true = np.linalg.norm(whole), np.linalg.norm(whole_true)
        worst = max(
            np.linalg.norm(a - b) / np.linalg.norm(b)
            for a, b in zip(found, true, strict=True)
            if np.linalg.norm(b) > 1e-9 * length_true  # that of a key's bias is zero
        )
        yield Row(
            case,
            scale,
            encoder=float(length / length_true),
            cosine=float(whole @ whole_true / (length * length_true)),
            worst=float(worst),
            temperature=float(gradient["log_scale"] / truth.log_scale),
            loss=loss_value - truth.loss,
        )


def flatten(gradient: Any) -> list[np.ndarray]:
    return [np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(gradient)]


COLUMNS = (
    "processes  data x fsdp x tensor  chunks  form       packed  negatives  pairs  scale"
    "   encoder/true - 1  1 - cosine  worst     temperature/true - 1  loss - true"
)


def show(row: Row) -> str:
    c = row.case
    return (
        f"{c.processes:<11}{f'{c.data} x {c.fsdp} x {c.tensor}':<22}{c.chunks:<8}{c.form:<11}"
        f"{'yes' if c.pack else 'no':<8}{c.negatives:<11}{c.pairs:<7}{row.scale:<8.1f}"
        f"{row.encoder - 1:<+18.1e}{1 - row.cosine:<+12.1e}{row.worst:<10.1e}"
        f"{row.temperature - 1:<+22.1e}{row.loss:<+11.1e}  {'exact' if row.exact else 'WRONG'}"
    )


def measure_processes(processes: int, quick: bool, plant: Plant) -> Iterator[Row]:
    """Runs as many processes of two devices each; yields the rows that the first one finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, "--plant", plant, *["--quick"] * quick, "--join"]
    started = [
        subprocess.Popen(
            [*command, coordinator, str(processes), str(number)],
            stdout=subprocess.PIPE if number == 0 else subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(processes)
    ]
    try:
        assert started[0].stdout is not None
        for line in started[0].stdout:
            if line.startswith("{"):  # and no word of the transport's
                fields = json.loads(line)
                yield Row(Case(**fields.pop("case")), **fields)
        if sum(process.wait() for process in started):
            sys.exit(f"gradient table: one of {processes} processes failed")
    finally:
        for process in started:
            process.kill()


def join(coordinator: str, processes: int, number: int, quick: bool, plant: Plant) -> None:
    """One of several processes. Each makes its own part of the batch; the first prints rows."""
    jax.distributed.initialize(coordinator, processes, number)
    for case in list_process_cases(processes, quick):
        for row in measure(case, plant):
            if jax.process_index() == 0:
                print(json.dumps(dataclasses.asdict(row)), flush=True)


def compare_bfloat16(quick: bool) -> Iterator[tuple[Case, float, float]]:
    """Chunked against undivided where the encoder computes in bfloat16: relative differences of
    its gradient and of the temperature's, at the start's scale.
    """
    for mesh in [(1, 1, 1), (2, 2, 2)][quick:]:
        case = Case(*mesh, 1, "dense", True, 2, 64, compute_dtype="bfloat16")
        _, _, whole = find_gradients(case)[0]
        of_whole = np.concatenate(flatten(whole["encoder"]))
        for chunks in (4,) if quick else (2, 4, 8):
            cut = replace(case, chunks=chunks)
            _, _, gradient = find_gradients(cut)[0]
            of_cut = np.concatenate(flatten(gradient["encoder"]))
            encoder = np.linalg.norm(of_cut - of_whole) / np.linalg.norm(of_whole)
            temperature = abs(gradient["log_scale"] / whole["log_scale"] - 1)
            yield cut, float(encoder), float(temperature)


def print_table(options: argparse.Namespace) -> int:
    """Prints every line as it is found. Returns how many are wrong."""
    begun = time.monotonic()
    print(COVERED_QUICKLY if options.quick else COVERED)
    print(f"Streaming in tiles of {SMALL_TILES}. Planted fault: {options.plant}.\n\n{COLUMNS}")
    rows = []
    several = (measure_processes(count, options.quick, options.plant) for count in (2, 4))
    alone = (row for c in list_cases(options.quick) for row in measure(c, options.plant))
    for row in itertools.chain(alone, *several):
        print(show(row), flush=True)
        rows.append(row)

    print(f"\nComputing in bfloat16: chunked against undivided, at most {BFLOAT16:.1e}")
    rounded = list(compare_bfloat16(options.quick))
    for case, encoder, temperature in rounded:
        mesh = f"{case.data} x {case.fsdp} x {case.tensor}"
        print(f"{mesh}, {case.chunks} chunks: encoder {encoder:.1e}, temperature {temperature:.1e}")

    wrong = sum(not row.exact for row in rows)
    wrong += sum(max(differences) > BFLOAT16 for _, *differences in rounded)
    print(f"\n{len(rows) + len(rounded)} lines, {wrong} wrong; {time.monotonic() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    return wrong


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--quick", action="store_true", help="a part of the table, for CI")
    parser.add_argument("--plant", default="none", choices=FAULTS, help="a fault to be found")
    parser.add_argument("--join", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2 if options.join else 8)
    if options.join:
        coordinator, processes, number = options.join
        join(coordinator, int(processes), int(number), options.quick, options.plant)
        return
    sys.exit(print_table(options) > 0)


if __name__ == "__main__":
    main()
