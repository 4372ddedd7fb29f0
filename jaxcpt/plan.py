"""Plans a run before you rent its machine: memory, traffic and step time.

    jaxcpt plan --experiment experiments/cpt_text_xl.py
    jaxcpt plan --experiment experiments/cpt_text_s.py --topology v5e:8x16 --search

For a TPU, XLA compiles the real training step from abstract arrays (install `jaxcpt[tpu]`). Memory
and cycles come from the compiler. The time of communication comes from the published figures of the
chip. For a GPU, or for a quick look with `cpu:8`, the step is compiled for the CPU. That shows the
memory and traffic of the layout, and the least time that a step can take.
"""

import argparse
import json
from collections.abc import Iterator, Sequence

import jax

from jaxcpt.checks import validate
from jaxcpt.config import Experiment
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.experiments import apply_overrides, load_experiment
from jaxcpt.files import to_path, write_file
from jaxcpt.planning.layouts import Layout, list_layouts
from jaxcpt.planning.parallel import plan_all
from jaxcpt.planning.step import Plan, TooLarge, list_devices, make_plan
from jaxcpt.planning.topology import Topology, parse_topology
from jaxcpt.quantities import shorten
from jaxcpt.start import foresee_start
from jaxcpt.terminal import print_table

GIB = 2**30


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="jaxcpt plan", description=__doc__.split("\n\n")[0])
    parser.add_argument("--experiment", required=True, nargs="+", help="experiment files")
    parser.add_argument("--topology", help="such as v5p:4x4x8; default: the experiment's own")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="changes")
    parser.add_argument("--json", type=to_path, help="write the plans to this file")
    parser.add_argument("--search", action="store_true", help="rank other layouts by step time")
    parser.add_argument("--tries", type=_count, default=6, help="layouts to compile at most")
    parser.add_argument("--jobs", type=_count, default=1, help="plans to compile at the same time")
    arguments = parser.parse_args(argv)

    jax.config.update("jax_platforms", "cpu")
    tasks = [
        load_task(path, arguments.topology, arguments.changes) for path in arguments.experiment
    ]
    plans: list[Plan] = []
    refused: list[str] = []
    if arguments.search:
        if len(tasks) > 1:
            raise UserError("--search: takes one experiment")
        plans = search(*tasks[0], arguments.tries)
    else:
        results = plan_all(tasks, arguments.jobs)
        for (experiment, topology), plan in zip(tasks, results, strict=True):
            if isinstance(plan, TooLarge):
                refused.append(find_fit(experiment, topology, plan, arguments.tries))
            else:
                show(plan)
                plans.append(plan)
    if arguments.json is not None:
        write_file(arguments.json, json.dumps([plan.to_json() for plan in plans], indent=1) + "\n")
    if refused:
        raise UserError("; ".join(refused))


def load_task(path: str, topology: str | None, changes: list[str]) -> tuple[Experiment, Topology]:
    """Loads the experiment of a file, and the topology to plan it for. Raises UserError."""
    experiment = apply_overrides(load_experiment(path), changes)
    experiment = validate(foresee_start(experiment))
    name = topology or experiment.topology
    if not name:
        raise UserError(f"{path}: declares no topology; name one, such as --topology v5p:4x4x4")
    return experiment, parse_topology(name)


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _try_layouts(
    experiment: Experiment, topology: Topology, tries: int
) -> Iterator[tuple[Plan, Layout]]:
    """Compiles the first `tries` layouts and yields those that fit."""
    if experiment.batching.rows_per_cell is not None:
        raise UserError("batching.rows_per_cell: leave it unset; it depends on the layout")
    list_devices(topology)
    layouts = list_layouts(experiment, topology)
    for layout in layouts[:tries]:
        try:
            plan = make_plan(apply_overrides(experiment, layout.changes()), topology)
        except TooLarge as too_large:
            print(f"  {too_large.missing / GIB:6.1f} GiB missing: {layout.describe()}", flush=True)
        except UserError as refusal:
            print(f"  {refusal}: {layout.describe()}", flush=True)
        else:
            print(f"  {_describe(plan)}: {layout.describe()}", flush=True)
            yield plan, layout


def find_fit(experiment: Experiment, topology: Topology, too_large: TooLarge, tries: int) -> str:
    """Looks for a layout that fits. Returns one line with the missing memory and that layout."""
    missing = (
        f"{experiment.name} on {topology.name}: does not fit, "
        f"{too_large.missing / GIB:.1f} GiB a chip are missing"
    )
    print(f"{missing}; other layouts:", flush=True)
    for plan, layout in _try_layouts(experiment, topology, tries):
        return f"{missing}; this fits, {_describe(plan)}: {layout.describe()}"
    return f"{missing}; no other layout that was tried fits; try more chips, or raise --tries"


def search(experiment: Experiment, topology: Topology, tries: int) -> list[Plan]:
    """Compiles the most promising layouts. Shows and returns their plans, fastest first."""
    results = list(_try_layouts(experiment, topology, tries))
    if not results:
        raise UserError(f"{experiment.name} on {topology.name}: no layout that was tried fits")
    results.sort(key=lambda result: result[0].step_seconds)
    print_table(
        f"{experiment.name} on {topology.name}, fastest first",
        [(_describe(plan), layout.describe()) for plan, layout in results],
    )
    return [plan for plan, _ in results]


def _describe(plan: Plan) -> str:
    return (
        f"{1000 * plan.step_seconds:,.0f} ms, MFU {plan.mfu:.1%}, "
        f"{plan.memory.peak / GIB:.1f} of {plan.memory.available / GIB:.0f} GiB"
    )


def show(plan: Plan) -> None:
    """Prints everything that a plan says, as one table."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    layout = f"{plan.chunks} chunks, remat {plan.remat}"
    rows = [
        ("machine", f"{plan.topology}: {mesh}"),
        ("layout", layout + (", residual cut over tensor" if plan.cut_residual else "")),
        ("parameters", shorten(plan.parameters)),
        ("step", f"{plan.pairs:,} pairs, {plan.tokens:,} tokens"),
        *_list_memory(plan),
        ("model FLOPs of a chip", shorten(plan.model_flops) + "FLOP"),
        ("hardware FLOPs of a chip", shorten(plan.hardware_flops) + "FLOP"),
        *_list_exchanges(plan),
        *(_list_bounds(plan) if plan.is_prediction else []),
        *(_list_times(plan) if plan.step_seconds else []),
    ]
    print_table(f"{plan.experiment}, planned", rows)


def _list_memory(plan: Plan) -> list[tuple[str, str]]:
    m = plan.memory
    temporaries = "temporaries" if plan.is_prediction else "temporaries, in a program for the CPU"
    return [
        ("HBM of a chip: parameters", _gib(m.parameters)),
        *([("  of them frozen", _gib(m.frozen))] if m.frozen else []),
        (
            "optimizer state",
            _gib(m.optimizer)
            + (f", {m.optimizer / m.frozen:.2%} of the frozen parameters" if m.frozen else ""),
        ),
        ("batch", _gib(m.batch)),
        (temporaries, _gib(m.temporaries)),
        ("peak", f"{_gib(m.peak)} of {_gib(m.available)}"),
        *(("  filled by", array) for array in m.largest),
    ]


def _list_exchanges(plan: Plan) -> list[tuple[str, str]]:
    return [
        (
            f"{e['kind']} over {e['axes']}" + ("" if plan.is_prediction else ", on a CPU"),
            f"{e['times']:,} x, {shorten(e['bytes'])}B a chip, "
            f"{1000 * (e['link_seconds'] + e['network_seconds']):.1f} ms",
        )
        for e in plan.exchanges
    ]


def _list_bounds(plan: Plan) -> list[tuple[str, str]]:
    share = plan.exposed_seconds / plan.step_seconds
    return [
        ("bound: compute", _ms(plan.compute_bound)),
        ("HBM", _ms(plan.hbm_bound)),
        ("interconnect in a slice", _ms(plan.link_bound)),
        ("network between slices", _ms(plan.network_bound)),
        ("what binds", plan.bound),
        ("[rows, heads, l, l] arrays", str(plan.score_arrays)),
        ("computing", _ms(plan.compute_seconds)),
        ("attention kernels", _ms(plan.attention_seconds)),
        ("waiting for exchanges", f"{_ms(plan.exposed_seconds)} ({share:.1%})"),
    ]


def _list_times(plan: Plan) -> list[tuple[str, str]]:
    step = plan.step_seconds
    days = step * plan.train_steps / 86_400
    chips = parse_topology(plan.topology).chips
    return [
        ("predicted step" if plan.is_prediction else "step, at least (its products)", _ms(step)),
        ("MFU" if plan.is_prediction else "MFU, at most", f"{plan.mfu:.1%}"),
        ("speed", f"{plan.pairs / step:,.0f} pairs/s, {plan.tokens / step:,.0f} tokens/s"),
        (
            f"all {plan.train_steps:,} steps",
            f"{days:.2f} days, {days * 24 * chips:,.0f} chip-hours",
        ),
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


if __name__ == "__main__":
    run_command(main)
