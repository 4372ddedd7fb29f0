"""The command `jaxcpt train`: a whole run, from an experiment file to its report.

    python -m jaxcpt.train --experiment FILE [--run-dir DIR] [--set a.b=v ...] [--smoke] [--dry-run]

If a run is started again in its folder, it continues from its newest whole checkpoint. The module
is written to be read from top to bottom.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxcpt import bad_steps
from jaxcpt.batches import Batch, Batches, size_full_batches
from jaxcpt.budget import count_budget, describe, describe_rows, find_peak_flops
from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.checks import validate
from jaxcpt.config import Experiment, derive_baseline
from jaxcpt.embed import Embedder
from jaxcpt.errors import CommandParser, Stopped, ending_at_once, run_command
from jaxcpt.evals.suites import check_suites
from jaxcpt.experiments import BASELINE, EXPERIMENT_FILE, apply_overrides, load_experiment, to_json
from jaxcpt.files import to_path, write_file
from jaxcpt.fingerprints import check_data, check_model, describe_data, describe_model
from jaxcpt.hang_watch import HangWatch
from jaxcpt.interruption import Interruption
from jaxcpt.live import add_live_arguments, check_libraries
from jaxcpt.loss import Scalars
from jaxcpt.metrics import MetricsLog, Throughput
from jaxcpt.model import check_model_fits
from jaxcpt.object_cache import fetch
from jaxcpt.pair import Pair
from jaxcpt.pairs import label_sources, open_training
from jaxcpt.prefixes import describe_differences
from jaxcpt.processes import (
    add_arguments,
    agree_to_stop,
    any_process,
    check_agreement,
    first_goes_first,
    is_first,
    join,
    own_together,
    run_together,
)
from jaxcpt.profiling import add_profile_argument, trace_steps
from jaxcpt.provenance import record_start
from jaxcpt.run_folder import check_same_experiment, remove_run
from jaxcpt.scoring import conclude, lacks_evals, read_heldout, score
from jaxcpt.sharding import describe_mesh, make_mesh, size_mesh, use_devices
from jaxcpt.smoke import shrink
from jaxcpt.start import (
    find_start,
    foresee_start,
    forget_start,
    obtain_tokenizer,
    resolve_start,
    restore_start,
)
from jaxcpt.terminal import print_table
from jaxcpt.tokenizer import Tokenizer
from jaxcpt.update import TrainState, compile_train_step, init_state, shard_state

EXIT_CODES = (
    "Exit codes: 0 the run is done; 2 a mistake to correct, named in one line; 3 another process "
    "is lost, or a step does not end: start all again; 75 stopped by a signal, and saved: start "
    "again to go on; 129, 130, 143 ended at once, by a second signal or before training began."
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that stays the same during a run."""

    experiment: Experiment
    run_dir: Path
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    heldout: list[Pair]
    batches: Batches
    step_flops: list[float]
    """Model FLOPs of a step, by the source of its batch."""
    labels: list[str]
    """Names of the data sources, if batches are homogeneous; otherwise empty."""
    derived: dict[str, str]
    """The derived numbers of the run in words, from `budget.describe`."""
    meta: dict[str, Any]
    """The fingerprints that the checkpoints record."""
    accept_changed_data: bool


def open_mesh(experiment: Experiment) -> jax.sharding.Mesh:
    """The mesh. Raises UserError if the model does not fit it, or if processes disagree."""
    mesh = make_mesh(experiment.mesh)
    if experiment.init_from is None:
        check_model_fits(mesh, validate(experiment))
    check_agreement(experiment)
    return mesh


def prepare(
    experiment: Experiment,
    run_dir: Path,
    shared_dir: Path,
    mesh: jax.sharding.Mesh,
    accept_changed_data: bool,
) -> Prepared:
    """Fills in the experiment from its start, and makes pairs, tokenizer and batches."""
    with first_goes_first("start"):
        sources = open_training(experiment.data, shared_dir, experiment.seed)
        heldout = read_heldout(experiment, shared_dir)
        if experiment.init_from is not None and not (run_dir / EXPERIMENT_FILE).is_file():
            find_start(experiment.init_from, run_dir)
    experiment = validate(resolve_start(experiment, run_dir))
    check_model_fits(mesh, experiment)
    with first_goes_first("prepare"):
        changed = check_same_experiment(run_dir, experiment)
        if changed and is_first():
            print(f"{run_dir}: goes on with other values: {'; '.join(changed)}")
        tokenizer = obtain_tokenizer(experiment, shared_dir, sources)
        if is_first():
            tokenizer.save(run_dir / "tokenizer")
    if experiment.evals.suites:
        evals_data = fetch(to_path(experiment.evals.data))
        check_suites(evals_data, experiment.evals.suites)  # now and not only at the first eval
    data = describe_data(experiment.data, sources, heldout, tokenizer)
    batches = Batches(experiment, sources, tokenizer, mesh)
    labels = label_sources(experiment.data.train) if experiment.data.homogeneous else []
    budgets = [count_budget(experiment, sizes) for sizes in batches.sizes_by_source]
    derived = describe(experiment, batches.sizes, count_budget(experiment, batches.sizes))
    derived |= describe_rows(labels, batches.sizes_by_source)
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
        step_flops=[budget.model_flops_per_step for budget in budgets],
        labels=labels,
        derived=derived,
        meta={**describe_model(experiment, tokenizer), "data": data},
        accept_changed_data=accept_changed_data,
    )


def train(
    experiment: Experiment,
    run_dir: Path,
    shared_dir: Path,
    accept_changed_data: bool = False,
    profile_steps: int = 0,
    live: Sequence[str] = (),
) -> None:
    """Trains to the last step and evaluates.

    shared_dir: the run folder with the mined pairs and the tokenizer. For a baseline it is the
    folder of the run that it belongs to. accept_changed_data: resume even if the pairs have changed
    since the last checkpoint. profile_steps: how many steps are traced. live: names of
    `live.BOARDS` that get the numbers too. The numbers of a baseline are not sent.
    """
    mesh = open_mesh(experiment)
    with own_together(run_dir):
        run = prepare(experiment, run_dir, shared_dir, mesh, accept_changed_data)
        train_in(run, shared_dir, profile_steps, live)


def train_in(run: Prepared, shared_dir: Path, profile_steps: int, live: Sequence[str]) -> None:
    """Does the work of `train`, once the run folder is claimed and locked."""
    run_dir, experiment = run.run_dir, run.experiment
    if (baseline := derive_baseline(experiment)) is not None:
        train(baseline, run_dir / BASELINE, shared_dir, run.accept_changed_data)
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
        if is_first():
            bad_steps.forget_from(run_dir, first + 1)
            record_start(run_dir, first, run.derived["mesh"], run.meta["data"])
        left = experiment.train_steps - first
        with MetricsLog(run_dir, experiment.train_steps, first, is_first(), live) as metrics:
            shapes = run.batches.shapes if left else []  # a finished run compiles nothing
            train_step = compile_train_step(experiment, run.mesh, shapes)
            train_step = trace_steps(train_step, profile_steps, run_dir / "profile", left)
            embedder = run_steps(run, train_step, state, first, checkpoints, interruption, metrics)
    if run_dir == shared_dir:  # a baseline is reported with its run
        with Interruption() as interruption:
            if interruption.run(lambda: conclude(run_dir, embedder, run.heldout, run.derived)):
                raise Stopped("stopped in the report; all steps are saved; start again to go on")


def begin(run: Prepared, checkpoints: CheckpointStore) -> tuple[int, TrainState]:
    """The last step that is done, and the state after it. The first possible choice is taken:

    1. the newest whole checkpoint of this run folder;
    2. the parameters of `init_from`, with new adapters, optimizer state and temperature;
    3. new parameters, where each array is created on the devices that hold it.
    """
    experiment, mesh = run.experiment, run.mesh

    def restore(step: int) -> TrainState:
        meta = checkpoints.read_meta(step)
        check_model(meta, run.meta, run.run_dir)
        check_data(meta, run.meta["data"], run.accept_changed_data)
        return checkpoints.restore(step, shard_state(experiment, mesh))

    if (found := checkpoints.find(restore)) is not None:
        step, state = found
        if is_first():
            print(f"resuming at step {step} of {experiment.train_steps}")
        return step, state
    if experiment.init_from is None:
        return 0, init_state(experiment, mesh)
    state = init_state(experiment, mesh, restore_start(experiment, run.run_dir, mesh))
    checkpoints.save_base(state.base)
    checkpoints.save(state, run.meta)  # from now on, a resume does not need the start
    checkpoints.finish()
    with first_goes_first("forget"):
        forget_start(run.run_dir)
    return 0, state


def run_steps(
    run: Prepared,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Scalars]],
    state: TrainState,
    first: int,
    checkpoints: CheckpointStore,
    interruption: Interruption,
    metrics: MetricsLog,
) -> Embedder:
    """The training loop. Returns an Embedder of the last state. Raises Stopped after a signal."""
    experiment, last, step = run.experiment, run.experiment.train_steps, first
    embedder = Embedder(experiment, state.encoder, run.tokenizer, run.mesh)
    speed, watch = Throughput(find_peak_flops(run.mesh)), HangWatch(experiment.safety.hang_seconds)
    waiting: list[dict[str, jax.Array]] = []

    def save() -> None:
        jax.block_until_ready(state)
        with speed.paused("save"), watch.paused(), metrics.flushed():
            checkpoints.save(state, run.meta)

    def measure() -> bool:
        """Runs an eval. Returns whether a signal ended it early."""
        jax.block_until_ready(state)
        with speed.paused("eval"), watch.paused():
            scored = embedder.with_params(state.encoder, step)
            interruption.run(lambda: evaluate(run, scored, interruption, metrics))
        return any_process(interruption.noted)

    saves = bad_steps.Due(experiment.checkpoints.every_steps, last)
    evals = bad_steps.Due(experiment.evals.every_steps, last)
    missed = not int(state.bad_steps) and lacks_evals(run.run_dir, experiment, first)
    if any_process(missed) and measure():
        stop(step, checkpoints)
    for coming in watch.steps(run.batches.stream(first, last)):
        step += 1
        # Start at most two steps in advance, and none while the next batch is not ready.
        jax.block_until_ready(waiting[-2:-1] if coming.done() else waiting[-1:])
        with speed.waiting_for_data():
            batch = coming.result()
        with jax.transfer_guard("disallow"):  # no implicit transfer to or from the host
            state, scalars = train_step(state, batch)
        waiting.append(scalars)

        if step % experiment.log_every_steps == 0 or step in (first + 1, last):
            rows, waiting = jax.device_get(waiting), []
            log_steps(run, step, rows, speed, metrics)
            if rows[-1]["bad_steps"] >= experiment.safety.max_bad_steps:
                with watch.paused():
                    bad_steps.stop_at(step, state, run.run_dir, run.meta, checkpoints)
        stops = agree_to_stop(step, interruption.noted)
        if is_saved := saves.are_due(step, scalars) or stops:
            save()
        if not stops and evals.are_due(step, scalars):
            stops = measure()
            if stops and not is_saved:
                save()
        if stops:
            with watch.paused():
                stop(step, checkpoints)
    return embedder.with_params(state.encoder, last)


def stop(step: int, checkpoints: CheckpointStore) -> None:
    """Waits until all processes have saved the step, and raises Stopped."""
    checkpoints.finish()
    any_process(True)  # every process waits here until the first one has verified the save
    raise Stopped(f"stopped at step {step}, which is saved; start again to go on")


def log_steps(
    run: Prepared, step: int, rows: list[dict[str, Any]], speed: Throughput, metrics: MetricsLog
) -> None:
    """Records the metrics of `step`, and each bad step. rows: the metrics of the newest steps."""
    first = step - len(rows) + 1
    padding: dict[str, list[float]] = {}
    for at, row in enumerate(rows, start=first):
        source = run.batches.order.source_at(at - 1)
        speed.count(int(row["pairs"]), int(row["tokens"]), run.step_flops[source])
        for label in run.labels[source : source + 1]:
            padding.setdefault(f"padding/{label}", []).append(float(row["padding"]))
    timing = speed.read() | {name: sum(all_) / len(all_) for name, all_ in padding.items()}
    for at, row in enumerate(rows, start=first):
        numbers = {k: v for k, v in row.items() if k not in ("pairs", "tokens", "bad_steps")}
        if row["bad_steps"]:
            numbers["bad_steps"] = row["bad_steps"]
            pairs = run.batches.pair_ids(at - 1).tolist()
            metrics.warn(bad_steps.describe(at, numbers, pairs))
            if is_first():
                bad_steps.record(run.run_dir, at, numbers, pairs)
        if row["bad_steps"] or at == step:
            metrics.log(at, numbers | (timing if at == step else {}))


def evaluate(
    run: Prepared, embedder: Embedder, interruption: Interruption, metrics: MetricsLog
) -> None:
    """Scores the embedder's parameters and records the scores."""
    if scores := score(run.experiment, embedder, run.heldout, interruption.check):
        metrics.log_evals(embedder.step, scores)


def show_budget(experiment: Experiment) -> None:
    """Prints the derived numbers without reading data or using the devices.

    If the number of rows would be measured on the pairs, every text counts with the most tokens
    allowed, so the numbers are upper bounds.
    """
    shape = experiment.mesh
    fixed = math.prod(n for n in (shape.data, shape.fsdp, shape.tensor) if n != -1)
    here = jax.device_count()
    wild = -1 in (shape.data, shape.fsdp, shape.tensor)
    axes = size_mesh(shape, here if wild and here % fixed == 0 else fixed)
    sizes = size_full_batches(experiment, axes["data"] * axes["fsdp"])
    derived = describe(experiment, sizes, count_budget(experiment, sizes))
    derived["mesh"] = " x ".join(f"{name} {size}" for name, size in axes.items())
    print_table(f"{experiment.name}, if each text had the most tokens", list(derived.items()))


@ending_at_once()  # until the steps begin, when `Interruption` takes over
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="jaxcpt train",
        description="Train an experiment, or go on with its run.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--experiment", required=True, help="a Python file, see experiments/")
    parser.add_argument("--run-dir", type=to_path, help="default: runs/<experiment name>")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="changes")
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="go on although the pairs have changed since the last checkpoint",
    )
    add_profile_argument(parser)
    add_live_arguments(parser)
    parser.add_argument("--smoke", action="store_true", help="tiny, on built-in data and the CPU")
    parser.add_argument("--dry-run", action="store_true", help="print the derived numbers and stop")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    check_libraries(arguments.live)

    experiment = load_experiment(arguments.experiment)
    if arguments.smoke:
        experiment = shrink(experiment)
    experiment = apply_overrides(experiment, arguments.changes)
    if experiment.init_from is None:
        validate(experiment)  # before any device is touched
    if arguments.smoke:
        jax.config.update("jax_platforms", "cpu")
    use_devices(experiment.mesh, arguments.num_processes or 1)
    join(arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.wait)
    if arguments.dry_run:
        show_budget(validate(foresee_start(experiment)))
        return
    name = f"{experiment.name}_smoke" if arguments.smoke else experiment.name
    run_dir = arguments.run_dir or Path("runs") / name
    if arguments.smoke and arguments.run_dir is None and is_first():
        remove_run(run_dir)  # a smoke run must not resume an earlier one
    options = arguments.accept_changed_data, arguments.profile, arguments.live
    run_together(lambda: train(experiment, run_dir, run_dir, *options))


if __name__ == "__main__":
    run_command(main)
