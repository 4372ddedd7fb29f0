"""Plans a run on machines that are not here: does it fit, how long does a step take, what binds?

    jaxcpt plan --experiment experiments/cpt_text_xl.py
    jaxcpt plan --experiment experiments/cpt_text_s.py --topology v5e:8x16 --search

The training step itself is compiled for the topology by XLA's own compiler (`pip install -e
'.[tpu]'`), from abstract arrays; memory and cycles are the compiler's, exchanges are timed with
the chip's published figures. For GPUs, and for a quick look with `cpu:8`, it is compiled for the
CPU: what the layout holds and exchanges is read from that, and the step is only said to take at
least as long as its products do.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxcpt.budget import shorten
from jaxcpt.checks import validate
from jaxcpt.config import Experiment
from jaxcpt.errors import UserError, run_command
from jaxcpt.experiments import apply_overrides, load_experiment, to_json
from jaxcpt.files import write_file
from jaxcpt.planning.chips import Topology, parse_topology
from jaxcpt.planning.layouts import Layout, list_layouts
from jaxcpt.planning.step import Plan, TooLarge, list_devices, make_plan
from jaxcpt.terminal import print_table

GIB = 2**30
TOLERANCE = 0.05


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="jaxcpt plan", description=__doc__.split("\n\n")[0])
    parser.add_argument("--experiment", required=True, nargs="+", help="files, see experiments/")
    parser.add_argument("--topology", help="such as v5p:4x4x8; default: the experiment's own")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="changes")
    parser.add_argument("--json", type=Path, help="write the plans there")
    parser.add_argument("--search", action="store_true", help="rank other layouts by step time")
    parser.add_argument("--tries", type=_count, default=6, help="layouts to compile at most")
    parser.add_argument("--jobs", type=_count, default=1, help="plans to compile at the same time")
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep memory and exchanges there")
    parser.add_argument("--check", type=Path, metavar="DIR", help="compare with what is kept there")
    arguments = parser.parse_args(argv)

    jax.config.update("jax_platforms", "cpu")
    tasks = [_load(path, arguments.topology, arguments.changes) for path in arguments.experiment]
    plans: list[Plan] = []
    refused: list[str] = []
    if arguments.search:
        if len(tasks) > 1 or arguments.write or arguments.check:
            raise UserError("--search: takes one experiment, and neither --write nor --check")
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
    for plan in plans:
        if arguments.write is not None:
            arguments.write.mkdir(parents=True, exist_ok=True)
            path = arguments.write / f"{plan.experiment}.json"
            write_file(path, json.dumps(summarise(plan), indent=1) + "\n")
        if arguments.check is not None:
            refused += check(plan, arguments.check / f"{plan.experiment}.json")
    if refused:
        raise UserError("; ".join(refused))


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _load(path: str, topology: str | None, changes: list[str]) -> tuple[Experiment, Topology]:
    experiment = validate(apply_overrides(load_experiment(path), changes))
    name = topology or experiment.topology
    if not name:
        raise UserError(f"{path}: declares no topology; name one, such as --topology v5p:4x4x4")
    return experiment, parse_topology(name)


def plan_all(tasks: list[tuple[Experiment, Topology]], jobs: int) -> list[Plan | TooLarge]:
    """Experiments that differ in name and data alone are compiled once."""
    keys = [to_json(replace(e, name="", data=tasks[0][0].data)) + t.name for e, t in tasks]
    distinct = dict(zip(keys, tasks, strict=True))
    if len(distinct) == 1 or jobs == 1:
        plans = [_try(*task) for task in distinct.values()]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
            plans = list(pool.map(_try, *zip(*distinct.values(), strict=True)))
    by_key = dict(zip(distinct, plans, strict=True))
    named: list[Plan | TooLarge] = []
    for key, (experiment, _) in zip(keys, tasks, strict=True):
        plan = by_key[key]
        named.append(replace(plan, experiment=experiment.name) if isinstance(plan, Plan) else plan)
    return named


def _try(experiment: Experiment, topology: Topology) -> Plan | TooLarge:
    jax.config.update("jax_platforms", "cpu")
    try:
        return make_plan(experiment, topology)
    except TooLarge as too_large:
        return too_large


def _try_layouts(
    experiment: Experiment, topology: Topology, tries: int
) -> Iterator[tuple[Plan, Layout]]:
    """Compiles the likely best layouts, in their order; those that fit."""
    if experiment.batching.rows_per_cell is not None:
        raise UserError("batching.rows_per_cell: leave it unset, for it depends on the layout")
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
            print(f"  {_in_short(plan)}: {layout.describe()}", flush=True)
            yield plan, layout


def find_fit(experiment: Experiment, topology: Topology, too_large: TooLarge, tries: int) -> str:
    """What is missing, and the first other layout that fits, in one line."""
    missing = (
        f"{experiment.name} on {topology.name}: does not fit, "
        f"{too_large.missing / GIB:.1f} GiB a chip are missing"
    )
    print(f"{missing}; other layouts:", flush=True)
    for plan, layout in _try_layouts(experiment, topology, tries):
        return f"{missing}; this fits, {_in_short(plan)}: {layout.describe()}"
    return f"{missing}, and of other layouts none that was tried fits; try more chips, or --tries"


def search(experiment: Experiment, topology: Topology, tries: int) -> list[Plan]:
    """Compiles the likely best layouts and shows them, the fastest first."""
    results = list(_try_layouts(experiment, topology, tries))
    if not results:
        raise UserError(f"{experiment.name} on {topology.name}: no layout that was tried fits")
    results.sort(key=lambda result: result[0].step_seconds)
    print_table(
        f"{experiment.name} on {topology.name}, fastest first",
        [(_in_short(plan), layout.describe()) for plan, layout in results],
    )
    return [plan for plan, _ in results]


def _in_short(plan: Plan) -> str:
    return (
        f"{1000 * plan.step_seconds:,.0f} ms, MFU {plan.mfu:.1%}, "
        f"{plan.memory.peak / GIB:.1f} of {plan.memory.available / GIB:.0f} GiB"
    )


def show(plan: Plan) -> None:
    """Everything a plan says, as one table."""
    m, step = plan.memory, plan.step_seconds
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    layout = f"{plan.chunks} chunks, remat {plan.remat}"
    rows = [
        ("machine", f"{plan.topology}: {mesh}"),
        ("layout", layout + (", residual cut over tensor" if plan.cut_residual else "")),
        ("parameters", shorten(plan.parameters)),
        ("step", f"{plan.pairs:,} pairs, {plan.tokens:,} tokens"),
        ("HBM of a chip: parameters", _gib(m.parameters)),
        ("optimizer state", _gib(m.optimizer)),
        ("batch", _gib(m.batch)),
        (
            "temporaries" if plan.is_prediction else "temporaries, in a CPU's program",
            _gib(m.temporaries),
        ),
        ("peak", f"{_gib(m.peak)} of {_gib(m.available)}"),
        *(("  filled by", array) for array in m.largest),
        ("model FLOPs of a chip", shorten(plan.model_flops) + "FLOP"),
        ("hardware FLOPs of a chip", shorten(plan.hardware_flops) + "FLOP"),
        *(
            (
                f"{e['kind']} over {e['axes']}" + ("" if plan.is_prediction else ", on a CPU"),
                f"{e['times']:,} x, {shorten(e['bytes'])}B a chip, "
                f"{1000 * (e['link_seconds'] + e['network_seconds']):.1f} ms",
            )
            for e in plan.exchanges
        ),
    ]
    if plan.is_prediction:
        share = plan.exposed_seconds / step
        rows += [
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
    if step:
        days = step * plan.train_steps / 86_400
        chips = parse_topology(plan.topology).chips
        word = "predicted step" if plan.is_prediction else "step, at least (its products)"
        rows += [
            (word, _ms(step)),
            ("MFU" if plan.is_prediction else "MFU, at most", f"{plan.mfu:.1%}"),
            ("speed", f"{plan.pairs / step:,.0f} pairs/s, {plan.tokens / step:,.0f} tokens/s"),
            (
                f"all {plan.train_steps:,} steps",
                f"{days:.2f} days, {days * 24 * chips:,.0f} chip-hours",
            ),
        ]
    print_table(f"{plan.experiment}, planned", rows)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def summarise(plan: Plan) -> dict[str, Any]:
    """What a change must not alter unnoticed: memory and bytes exchanged, per chip."""
    exchanges: dict[str, float] = {}
    for exchange in plan.exchanges:
        name = f"{exchange['kind']} over {exchange['axes']}"
        exchanges[name] = exchange["bytes"]
    return {
        "topology": plan.topology,
        "mesh": plan.mesh,
        "peak_bytes": plan.memory.peak,
        "exchanged_bytes": exchanges,
        "score_arrays": plan.score_arrays,
    }


def check(plan: Plan, path: Path) -> list[str]:
    """What differs by more than 5 % from what is kept, in memory or bytes exchanged."""
    if not path.is_file():
        return [f"{path}: missing; make it with --write {path.parent}"]
    kept, now = json.loads(path.read_text()), summarise(plan)
    largest = max(kept["exchanged_bytes"].values(), default=0.0)
    pairs = {"peak_bytes": (kept["peak_bytes"], now["peak_bytes"])}
    for name in {*kept["exchanged_bytes"], *now["exchanged_bytes"]}:
        both = (kept["exchanged_bytes"].get(name, 0.0), now["exchanged_bytes"].get(name, 0.0))
        if max(both) > 0.001 * largest:  # a few scalars more are no news
            pairs[name] = both
    pairs["score_arrays"] = (kept["score_arrays"], now["score_arrays"])
    changed = [
        f"{path}: {name} was {before:,.0f}, is {after:,.0f} a chip; where that is meant, --write"
        for name, (before, after) in sorted(pairs.items())
        if abs(after - before) > TOLERANCE * before
    ]
    if not changed:
        print(f"{plan.experiment}: memory and exchanges as in {path}")
    return changed


if __name__ == "__main__":
    run_command(main)
