"""Compares every way of cutting a batch with the true gradient of the whole batch.

    python tools/gradient_table.py [--json FILE] [--quick] [--plant FAULT] [--jobs N]

Each line is one way of cutting the same pairs: devices and processes, chunks, the form of the loss,
packing, hard negatives, a number of pairs that nothing divides. The line compares the gradient of
every parameter and of the temperature, as the training step computes it, with that of the undivided
batch, which `gradient_reference.py` finds in float64 NumPy. The command fails if any line deviates.
It runs on CPU devices only.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gradient_adapters
import gradient_generative
import gradient_reference
import jax
import numpy as np
from gradient_cases import (
    COVERED,
    COVERED_QUICKLY,
    GENERATIVE,
    MODELS,
    Case,
    choose,
    draw_encoder,
    list_cases,
    list_process_cases,
    make_case,
    make_experiment,
    make_pairs,
    make_tokenizer,
)
from gradient_faults import FAULTS, SMALL_TILES, Plant, patch_loss
from gradient_reference import Text, TextPair, Truth
from jax.experimental import multihost_utils

from jaxcpt.adapter import split_params
from jaxcpt.batches import Batches
from jaxcpt.model import make_encoder, name_axes
from jaxcpt.pairs import PairList
from jaxcpt.sharding import make_mesh, named
from jaxcpt.update import compute_gradient, shard_state

SCALES = (1 / 0.07, 100.0)  # where a run starts, and the clamp

# Float32 rounds a number by at most 6e-8 of its size. docs/gradients.md has measured deviations.
RATIO = 1e-5
"""For lengths, the temperature's gradient and the loss: room for about 170 roundings that all go
the same way. The loss is judged relative to its size, because each logit rounds relative to its
own, and logits reach 100 where the loss reaches 63."""
COSINE = 1e-6
"""Shown because it is the usual measure. WORST is stricter: 1 - cosine is about half the square of
the relative error."""
WORST = 1e-4
"""For one parameter: ten times RATIO, because its gradient may be a small difference of terms."""
BFLOAT16_MODEL = "gpt"
BFLOAT16_CUT = 2.0**-8
"""Chunked against undivided, where the compiler rounds to bfloat16 exactly where the program says.
Both then compute equal embeddings, and differ only in how often each parameter's gradient is
rounded: once, or once for each chunk. One rounding is at most 2**-9; a difference has two sides."""
BFLOAT16_TRUTH = 2.0e-2
"""Against the truth, as training compiles it. About 80 roundings lie between the embedding table
and its gradient. Independent ones of 2**-9 / sqrt(3) add up to 1.0e-2; this allows twice that."""
XLA_FLAGS = (  # much to compile and little to compute; busy machines are late for collectives
    "--xla_backend_optimization_level=0"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    " --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
)
if jax.__version_info__ < (0, 11):  # compiles in two thirds of the time; later ones lack the flag
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case at a temperature, against the truth.

    encoder, temperature, loss: found / true. For the encoder's gradient that is its length.
    worst: the largest relative error of one parameter's gradient.
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
            and abs(self.loss - 1) < RATIO
        )


@dataclass(frozen=True, kw_only=True)
class RoundedRow:
    """A case that computes in bfloat16. All fields are relative differences of a gradient.

    encoder_cut, temperature_cut: from the undivided batch, with every rounding where the program
    has it. encoder_truth, temperature_truth: from the truth, as training compiles the step.
    """

    case: Case
    encoder_cut: float
    temperature_cut: float
    encoder_truth: float
    temperature_truth: float

    @property
    def exact(self) -> bool:
        return (
            self.encoder_cut < BFLOAT16_CUT
            and self.temperature_cut < RATIO
            and max(self.encoder_truth, self.temperature_truth) < BFLOAT16_TRUTH
        )


@cache
def find_truth(model: str, pairs: int, negatives: int, scale: float) -> Truth:
    tokenizer = make_tokenizer(model)
    made = [
        TextPair(
            Text(tokenizer.encode([pair.x], "x")[0], pair.x),
            Text(tokenizer.encode([pair.y], "y")[0], pair.y),
            tuple(Text(tokenizer.encode([n], "y")[0], n) for n in pair.negatives[:negatives]),
        )
        for pair in make_pairs(pairs)
    ]
    log_scale, params = float(np.log(np.float32(scale))), draw_encoder(model)
    if model == GENERATIVE:
        texts = [text for pair in made for text in (pair.x, pair.y, *pair.negatives)]
        return gradient_generative.find_truth(params, MODELS[model], texts)
    find = partial(gradient_reference.find_truth, m=MODELS[model], log_scale=log_scale, pairs=made)
    if model != "gpt, lora":
        return find(params)
    truth = find(gradient_adapters.merge(params))
    return replace(truth, encoder=gradient_adapters.project(truth.encoder, params))


def find_gradients(
    case: Case, plant: Plant = "none", options: dict[str, bool | str] | None = None
) -> list[tuple[float, float, Any]]:
    """(scale, loss, gradient as NumPy) at each of SCALES, from the code that trains.

    options: of the compiler, besides XLA_FLAGS.
    """
    experiment = make_experiment(case)
    devices = jax.devices()[: case.data * case.fsdp * case.tensor]
    mesh = make_mesh(experiment.mesh, devices)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, shard_state(experiment, mesh))

    def place(value: np.ndarray, layout: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, layout, lambda index: value[index])

    with jax.set_mesh(mesh), patch_loss(plant):
        # There are as many pairs as a batch holds, so each batch is all of them.
        pairs = PairList(make_pairs(case.pairs))
        batch = Batches(experiment, [pairs], make_tokenizer(case.model), mesh).make(0)
        find = jax.jit(
            partial(compute_gradient, experiment),
            out_shardings=(named(mesh), layouts.params),
            compiler_options=options,
        )
        base: Any = {}
        trained = draw_encoder(case.model)
        if experiment.adapter is not None:
            base, trained = split_params(trained, name_axes(make_encoder(experiment)))
        found = []
        for scale in SCALES if experiment.objective == "contrastive" else SCALES[:1]:
            params = {"encoder": trained, "log_scale": np.log(np.float32(scale))}
            placed = jax.tree.map(place, params, layouts.params)
            metrics, gradient = find(placed, batch, jax.tree.map(place, base, layouts.base))
            assert metrics["pairs"] == case.pairs, "a pair did not fit into the batch"
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
        truth = find_truth(case.model, case.pairs, case.negatives, scale)
        found, true = flatten(gradient["encoder"]), flatten(truth.encoder)
        whole, whole_true = np.concatenate(found), np.concatenate(true)
        length, length_true = np.linalg.norm(whole), np.linalg.norm(whole_true)
        worst = max(
            np.linalg.norm(a - b) / np.linalg.norm(b)
            for a, b in zip(found, true, strict=True)
            if np.linalg.norm(b) > 1e-9 * length_true  # the true gradient of a key bias is zero
        )
        yield Row(
            case=case,
            scale=scale,
            encoder=float(length / length_true),
            cosine=float(whole @ whole_true / (length * length_true)),
            worst=float(worst),
            temperature=find_ratio(float(gradient["log_scale"]), truth.log_scale),
            loss=loss_value / truth.loss,
        )


def find_ratio(found: float, true: float) -> float:
    """found / true; of the generative objective, which has no temperature, both are 0."""
    return 1.0 if found == true == 0 else float(np.divide(found, true))


def flatten(gradient: Any) -> list[np.ndarray]:
    return [np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(gradient)]


COLUMNS = (
    "model        processes  data x fsdp x tensor  chunks  form       packed  negatives  pairs"
    "  scale   encoder/true - 1  1 - cosine  worst     temperature/true - 1  loss/true - 1"
)


def show(row: Row) -> str:
    c = row.case
    return (
        f"{c.model:<13}{c.processes:<11}{' x '.join(map(str, c.mesh)):<22}{c.chunks:<8}{c.form:<11}"
        f"{'yes' if c.pack else 'no':<8}{c.negatives:<11}{c.pairs:<7}{row.scale:<8.1f}"
        f"{row.encoder - 1:<+18.1e}{1 - row.cosine:<+12.1e}{row.worst:<10.1e}"
        f"{row.temperature - 1:<+22.1e}{row.loss - 1:<+14.1e} {'exact' if row.exact else 'WRONG'}"
    )


def show_rounded(row: RoundedRow) -> str:
    return (
        f"{' x '.join(map(str, row.case.mesh))}, {row.case.chunks} chunks: "
        f"from undivided: encoder {row.encoder_cut:.1e}, temperature {row.temperature_cut:.1e}; "
        f"from the truth: encoder {row.encoder_truth:.1e}, "
        f"temperature {row.temperature_truth:.1e}  {'exact' if row.exact else 'WRONG'}"
    )


def measure_processes(processes: int, options: argparse.Namespace) -> Iterator[Row]:
    """Starts so many processes of two devices each; yields the rows that the first one prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, __file__, "--plant", options.plant, *["--quick"] * options.quick]
    command += ["--model", *options.model, "--join"]
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
            if line.startswith("{"):  # other lines come from the transport
                fields = json.loads(line)
                yield Row(case=Case(**fields.pop("case")), **fields)
        if sum(process.wait() for process in started):
            sys.exit(f"gradient table: one of {processes} processes failed")
    finally:
        for process in started:
            process.kill()


def join(coordinator: str, processes: int, number: int, options: argparse.Namespace) -> None:
    """Runs as one of several processes. Each makes its part of the batch; the first prints rows."""
    jax.distributed.initialize(coordinator, processes, number)
    for case in choose(list_process_cases(processes, options.quick), options.model):
        for row in measure(case, options.plant):
            if jax.process_index() == 0:
                print(json.dumps(dataclasses.asdict(row)), flush=True)


def compare_bfloat16(quick: bool) -> Iterator[RoundedRow]:
    """Cases where the encoder computes in bfloat16, at the temperature of the start.

    XLA may leave out a rounding to bfloat16 where it fuses two operations, and it fuses differently
    for different chunk counts. So the comparison with the undivided batch forbids that.
    """
    as_written: dict[str, bool | str] = {"xla_allow_excess_precision": False}
    for mesh in ((1, 1, 1), (2, 2, 2)):
        undivided = make_case(
            mesh, (1, "dense"), (True, 2, 64), model=BFLOAT16_MODEL, compute_dtype="bfloat16"
        )
        _, _, whole = find_gradients(undivided, options=as_written)[0]
        truth = find_truth(undivided.model, undivided.pairs, undivided.negatives, SCALES[0])
        for chunks in (4,) if quick else (1, 2, 4, 8):
            case = replace(undivided, chunks=chunks)
            _, _, cut = find_gradients(case, options=as_written)[0]
            _, _, trained = find_gradients(case)[0]
            yield RoundedRow(
                case=case,
                encoder_cut=differ(cut["encoder"], whole["encoder"]),
                temperature_cut=differ(cut["log_scale"], whole["log_scale"]),
                encoder_truth=differ(trained["encoder"], truth.encoder),
                temperature_truth=differ(trained["log_scale"], truth.log_scale),
            )


def differ(found: Any, wanted: Any) -> float:
    """Length of the difference of two gradients, relative to the second."""
    a, b = np.concatenate(flatten(found)), np.concatenate(flatten(wanted))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def measure_alone(cases: Sequence[Case], plant: Plant, jobs: int) -> Iterator[Row]:
    """The rows of cases of one process, in order. Compiling keeps one core busy, so `jobs`
    processes share the cases."""
    if jobs == 1:
        yield from itertools.chain.from_iterable(measure(case, plant) for case in cases)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, use_cpu_devices, (8,)) as pool:
        for rows in pool.map(measure_list, cases, itertools.repeat(plant)):
            yield from rows


def measure_list(case: Case, plant: Plant) -> list[Row]:
    return list(measure(case, plant))


def use_cpu_devices(count: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def print_table(options: argparse.Namespace) -> int:
    """Prints every line as soon as it is found. Returns how many are wrong."""
    begun = time.monotonic()
    print(COVERED_QUICKLY if options.quick else COVERED)
    print(f"Streaming in tiles of {SMALL_TILES}. Planted fault: {options.plant}.\n\n{COLUMNS}")
    lines: list[Row | RoundedRow] = []
    several = (measure_processes(count, options) for count in (2, 4))
    cases = choose(list_cases(options.quick), options.model)
    alone = measure_alone(cases, options.plant, options.jobs)
    for row in itertools.chain(alone, *several):
        print(show(row), flush=True)
        lines.append(row)

    if BFLOAT16_MODEL in options.model:
        print(
            f"\nComputing in bfloat16. Bounds: {BFLOAT16_CUT:.1e} and {RATIO:.1e} from the "
            f"undivided batch, {BFLOAT16_TRUTH:.1e} from the truth"
        )
        for rounded_row in compare_bfloat16(options.quick):
            print(show_rounded(rounded_row), flush=True)
            lines.append(rounded_row)

    wrong = sum(not line.exact for line in lines)
    print(f"\n{len(lines)} lines, {wrong} wrong; {time.monotonic() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(line) for line in lines], indent=1))
    return wrong


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--quick", action="store_true", help="a part of the table, for CI")
    parser.add_argument("--plant", default="none", choices=FAULTS, help="a fault to be found")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes that compile")
    parser.add_argument("--join", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}"
    use_cpu_devices(2 if options.join else 8)
    if options.join:
        coordinator, processes, number = options.join
        join(coordinator, int(processes), int(number), options)
        return
    sys.exit(print_table(options) > 0)


if __name__ == "__main__":
    main()
