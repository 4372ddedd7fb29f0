"""A whole run, from an experiment file to its report; read it from top to bottom.

    python -m jaxcpt.train --experiment FILE [--run-dir DIR] [--set a.b=v ...] [--smoke] [--dry-run]

Started again on its run folder, a run goes on where its newest whole checkpoint ends.
"""

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxcpt.batches import Batches, size_full_batches
from jaxcpt.budget import Budget, count_budget, describe
from jaxcpt.checkpoint import CheckpointStore, check_tokenizer
from jaxcpt.checks import validate
from jaxcpt.chips import FLOPS_BY_DEVICE_KIND
from jaxcpt.config import Experiment, derive_baseline
from jaxcpt.embed import Embedder
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.evals.suites import list_suites
from jaxcpt.experiments import EXPERIMENT_FILE, apply_overrides, load_experiment, to_json
from jaxcpt.files import write_file
from jaxcpt.metrics import MetricsLog, Throughput
from jaxcpt.model import check_model_fits
from jaxcpt.pair import Pair
from jaxcpt.pairs import EncodedPairs, open_training, sample_texts
from jaxcpt.prefixes import describe_differences
from jaxcpt.processes import (
    any_process,
    check_agreement,
    first_goes_first,
    is_first,
    join,
    run_together,
)
from jaxcpt.run_folder import check_same_experiment, claim, remove_run
from jaxcpt.scoring import conclude, read_heldout, score
from jaxcpt.sharding import (
    make_mesh,
    size_mesh,
    use_cpu_cores,
)
from jaxcpt.smoke import shrink
from jaxcpt.start import (
    find_start,
    foresee_start,
    forget_start,
    resolve_start,
    restore_start,
)
from jaxcpt.terminal import print_table
from jaxcpt.tokenizer import Tokenizer, has_tokenizer, read_model, read_tokenizer, train_tokenizer
from jaxcpt.update import TrainState, init_state, make_train_step, shard_state


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that stays the same through a run."""

    experiment: Experiment
    run_dir: Path
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    heldout: list[Pair]
    batches: Batches
    budget: Budget
    derived: dict[str, str]


def prepare(experiment: Experiment, run_dir: Path, shared_dir: Path) -> Prepared:
    """Devices; a run folder that is this experiment's; pairs -> tokenizer -> batches."""
    mesh = make_mesh(experiment.mesh)
    if experiment.init_from is None:
        check_model_fits(mesh, validate(experiment))
    check_agreement(experiment)
    with first_goes_first("claim"):
        claim(run_dir)
        if experiment.init_from is not None and not (run_dir / EXPERIMENT_FILE).is_file():
            find_start(experiment.init_from, run_dir)
    experiment = validate(resolve_start(experiment, run_dir))
    check_model_fits(mesh, experiment)
    with first_goes_first("prepare"):
        check_same_experiment(run_dir, experiment)
        sources = open_training(experiment.data, shared_dir, experiment.seed)
        heldout = read_heldout(experiment, shared_dir)
        tokenizer = obtain_tokenizer(experiment, shared_dir, sources)
        if is_first():
            tokenizer.save(run_dir / "tokenizer")
    if experiment.evals.suites:
        list_suites(Path(experiment.evals.data), "all")  # refused now, not at the first eval
    batches = Batches(experiment, sources, tokenizer, mesh)
    budget = count_budget(experiment, batches.sizes)
    derived = describe(experiment, batches.sizes, budget)
    derived |= {"mesh": describe_mesh(mesh), "run folder": str(run_dir)}
    if is_first():  # written last: a refused start can be retried with a changed experiment
        write_file(run_dir / EXPERIMENT_FILE, to_json(experiment))
    return Prepared(
        experiment=experiment,
        run_dir=run_dir,
        mesh=mesh,
        tokenizer=tokenizer,
        heldout=heldout,
        batches=batches,
        budget=budget,
        derived=derived,
    )


def train(experiment: Experiment, run_dir: Path, shared_dir: Path) -> None:
    """Trains to the last step and evaluates.

    shared_dir: the run folder that keeps mined pairs and the tokenizer. A baseline uses those of
    the run that it is the baseline of.
    """
    run = prepare(experiment, run_dir, shared_dir)
    if (baseline := derive_baseline(run.experiment)) is not None:
        train(baseline, run_dir / "baseline", shared_dir)
    if is_first():
        print_table(experiment.name, list(run.derived.items()))
        for line in describe_differences(experiment, {}) if experiment.evals.suites else ():
            print(line)
    keep = experiment.checkpoints.keep
    with (
        jax.set_mesh(run.mesh),
        CheckpointStore(run_dir / "checkpoints", keep) as checkpoints,
        Interruption() as interruption,
    ):
        first, state = begin(run, checkpoints)
        with MetricsLog(run_dir, run.experiment.train_steps, first, is_first()) as metrics:
            embedder = run_steps(run, state, first, checkpoints, interruption, metrics)
    if run_dir == shared_dir:  # a baseline is shown with its run
        conclude(run_dir, embedder, run.heldout, run.derived)


def begin(run: Prepared, checkpoints: CheckpointStore) -> tuple[int, TrainState]:
    """The step that is done, and its state, in this order of preference:

    1. the newest whole checkpoint of this run folder;
    2. the parameters of `init_from`, with new adapters, optimizer and temperature;
    3. new parameters, each array born on the devices it belongs to.
    """
    experiment, mesh = run.experiment, run.mesh
    step = checkpoints.find_whole()
    if step is not None:
        check_tokenizer(run.tokenizer.fingerprint, checkpoints.read_meta(step), run.run_dir)
        state = checkpoints.restore(step, shard_state(experiment, mesh))
        if is_first():
            print(f"resuming at step {step} of {experiment.train_steps}")
        return step, state
    if experiment.init_from is None:
        return 0, init_state(experiment, mesh)
    state = init_state(experiment, mesh, restore_start(experiment, run.run_dir, mesh))
    checkpoints.save_base(state.base)
    checkpoints.save(state, make_meta(run))  # from now on a resume does not need the source
    checkpoints.finish()
    with first_goes_first("start"):
        forget_start(run.run_dir)
    return 0, state


def make_meta(run: Prepared) -> dict[str, Any]:
    """What a checkpoint says of itself besides its arrays."""
    return {"tokenizer": run.tokenizer.fingerprint}


def run_steps(
    run: Prepared,
    state: TrainState,
    first: int,
    checkpoints: CheckpointStore,
    interruption: "Interruption",
    metrics: MetricsLog,
) -> Embedder:
    """The loop. Returns what embeds with the last state. Raises UserError after a signal."""
    experiment, last = run.experiment, run.experiment.train_steps
    train_step = make_train_step(experiment, run.mesh)
    embedder = Embedder(experiment, state.encoder, run.tokenizer, run.mesh)
    speed = Throughput(find_peak_flops(run.mesh))
    stream = run.batches.stream(first, last)
    waiting: list[dict[str, jax.Array]] = []

    def measure(step: int) -> None:
        jax.block_until_ready(state)
        with speed.paused():
            scored = embedder.with_params(state.encoder, step)
            if scores := score(experiment, scored, run.heldout):
                metrics.log_evals(step, scores)

    if first == 0 and experiment.init_from is not None:
        measure(0)  # to show what training adds
    for step in range(first + 1, last + 1):
        coming = next(stream)
        if not coming.done():  # the wait counts from when the devices have nothing to do
            jax.block_until_ready(waiting)
        with speed.waiting_for_data():
            batch = coming.result()
        with jax.transfer_guard("disallow"):  # nothing moves to or from the host unseen
            state, scalars = train_step(state, batch)
        waiting.append(scalars)

        logs = step % experiment.log_every_steps == 0 or step in (first + 1, last)
        if logs:
            rows, waiting = jax.device_get(waiting), []
            for row in rows:
                pairs, tokens = int(row.pop("pairs")), int(row.pop("tokens"))
                speed.count(pairs, tokens, run.budget.model_flops_per_step)
            timing = speed.read()
            metrics.log(step, rows[-1] | (timing if step > first + 1 else {}))

        # Several processes ask each other only when they wait for the devices anyway.
        stops = (logs or jax.process_count() == 1) and any_process(interruption.noted)
        if step % experiment.checkpoints.every_steps == 0 or step == last or stops:
            jax.block_until_ready(scalars)
            with speed.paused():
                checkpoints.save(state, make_meta(run))
        if stops and step < last:
            checkpoints.finish()
            any_process(True)  # nobody leaves before the first has proved the save
            raise UserError(f"stopped at step {step}, which is saved; start again to go on")

        if step % experiment.evals.every_steps == 0 or step == last:
            measure(step)
    return embedder.with_params(state.encoder, last)


def obtain_tokenizer(
    experiment: Experiment, shared_dir: Path, sources: Sequence[EncodedPairs]
) -> Tokenizer:
    """That of the run folder; of what the run starts from; the user's own; or a new one, trained
    on the training pairs."""
    own = shared_dir / "tokenizer"
    if has_tokenizer(own):
        return Tokenizer.load(own).check_limits(experiment.tokenizer, own)
    if experiment.init_from is not None:
        folder = find_start(experiment.init_from, shared_dir) / "tokenizer"
        return read_model(str(folder), experiment.tokenizer.x_tokens, experiment.tokenizer.y_tokens)
    if experiment.tokenizer.model_file is not None:
        return read_tokenizer(experiment.tokenizer)
    return train_tokenizer(sample_texts(sources), experiment.tokenizer)


def describe_mesh(mesh: jax.sharding.Mesh) -> str:
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"{axes} on {mesh.size} {mesh.devices.flat[0].device_kind} devices"


def find_peak_flops(mesh: jax.sharding.Mesh) -> float | None:
    """Published FLOP/s of all devices together. None: the device is not in jaxcpt/chips.py."""
    flops = FLOPS_BY_DEVICE_KIND.get(mesh.devices.flat[0].device_kind)
    return None if flops is None else flops * mesh.size


class Interruption:
    """Notes a first SIGTERM or SIGINT, so that the step under way is finished and saved."""

    def __init__(self) -> None:
        self.noted = False

    def __enter__(self) -> "Interruption":
        numbers = (signal.SIGTERM, signal.SIGINT)
        self.before: dict[int, Any] = {n: signal.signal(n, self._note) for n in numbers}
        return self

    def _note(self, number: int, _: Any) -> None:
        self.noted = True
        signal.signal(number, self.before[number])  # the second one ends the process

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def show_budget(experiment: Experiment) -> None:
    """Prints the derived numbers without reading data or using the devices.

    Where the number of rows would be measured on the data, every text counts with its full length.
    So the numbers are upper bounds.
    """
    shape = experiment.mesh
    fixed = math.prod(n for n in (shape.data, shape.fsdp, shape.tensor) if n != -1)
    here = jax.device_count()
    wild = -1 in (shape.data, shape.fsdp, shape.tensor)
    axes = size_mesh(shape, here if wild and here % fixed == 0 else fixed)
    sizes = size_full_batches(experiment, axes["data"] * axes["fsdp"])
    derived = describe(experiment, sizes, count_budget(experiment, sizes))
    derived["mesh"] = " x ".join(f"{name} {size}" for name, size in axes.items())
    print_table(f"{experiment.name}, at full length", list(derived.items()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="jaxcpt train", description="Train an experiment, or go on with its run."
    )
    parser.add_argument("--experiment", required=True, help="a Python file, see experiments/")
    parser.add_argument("--run-dir", type=Path, help="default: runs/<experiment name>")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="changes")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and data, on the CPU")
    parser.add_argument("--dry-run", action="store_true", help="print the derived numbers and stop")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where all processes meet")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument(
        "--process-id", type=int, help="from 0; TPU VMs and Slurm tell by themselves"
    )
    parser.add_argument("--wait", type=int, default=300, help="seconds to wait for other processes")
    arguments = parser.parse_args(argv)

    experiment = load_experiment(arguments.experiment)
    if arguments.smoke:
        experiment = shrink(experiment)
    experiment = apply_overrides(experiment, arguments.changes)
    if experiment.init_from is None:
        validate(experiment)  # before any device is touched
    if arguments.smoke:
        jax.config.update("jax_platforms", "cpu")
    axes = (experiment.mesh.data, experiment.mesh.fsdp, experiment.mesh.tensor)
    processes = arguments.num_processes or 1
    use_cpu_cores(None if -1 in axes else max(math.prod(axes) // processes, 1))
    join(arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.wait)
    if arguments.dry_run:
        show_budget(validate(foresee_start(experiment)))
        return
    name = f"{experiment.name}_smoke" if arguments.smoke else experiment.name
    run_dir = arguments.run_dir or Path("runs") / name
    if arguments.smoke and arguments.run_dir is None and is_first():
        remove_run(run_dir)  # a smoke run that resumes shows nothing
    run_together(lambda: train(experiment, run_dir, run_dir))


if __name__ == "__main__":
    run_command(main)
