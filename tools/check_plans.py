"""Compares the plans of experiments with stored plans, or stores new ones.

    python tools/check_plans.py --experiment experiments/cpt_*.py --check tests/golden/plans
    python tools/check_plans.py --experiment experiments/cpt_*.py --write tests/golden/plans

In: experiments, and a folder with one JSON file for each. Out: a line for each difference. The
check fails if the peak of memory or the exchanged bytes differ by more than 5 %, or if the number
of attention score arrays differs.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxcpt.errors import UserError, run_command
from jaxcpt.files import write_file
from jaxcpt.plan import load_task
from jaxcpt.planning.parallel import plan_all
from jaxcpt.planning.step import Plan, TooLarge

TOLERANCE = 0.05


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--experiment", required=True, nargs="+", help="experiment files")
    parser.add_argument("--topology", help="such as v5p:4x4x8; default: the experiment's own")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="changes")
    parser.add_argument("--jobs", type=int, default=1, help="plans to compile at the same time")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="DIR", help="write the plans there")
    action.add_argument("--check", type=Path, metavar="DIR", help="compare with the plans there")
    arguments = parser.parse_args(argv)

    jax.config.update("jax_platforms", "cpu")
    tasks = [
        load_task(path, arguments.topology, arguments.changes) for path in arguments.experiment
    ]
    problems: list[str] = []
    for (experiment, topology), plan in zip(tasks, plan_all(tasks, arguments.jobs), strict=True):
        if isinstance(plan, TooLarge):
            missing = f"{plan.missing / 2**30:.1f} GiB a chip are missing"
            problems.append(f"{experiment.name} on {topology.name}: does not fit, {missing}")
        elif arguments.write is not None:
            write(plan, arguments.write / f"{plan.experiment}.json")
        else:
            problems += check(plan, arguments.check / f"{plan.experiment}.json")
    if problems:
        raise UserError("; ".join(problems))


def write(plan: Plan, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(summarise(plan), indent=1) + "\n")
    print(f"{path}: written")


def summarise(plan: Plan) -> dict[str, Any]:
    """The figures that are checked: memory and exchanged bytes per chip."""
    return {
        "topology": plan.topology,
        "mesh": plan.mesh,
        "peak_bytes": plan.memory.peak,
        "exchanged_bytes": {f"{e['kind']} over {e['axes']}": e["bytes"] for e in plan.exchanges},
        "score_arrays": plan.score_arrays,
    }


def check(plan: Plan, path: Path) -> list[str]:
    """One line for each figure that differs from the file by more than 5 %."""
    if not path.is_file():
        return [f"{path}: missing; make it with --write {path.parent}"]
    golden, now = json.loads(path.read_text()), summarise(plan)
    figures = {key: (golden[key], now[key]) for key in ("peak_bytes", "score_arrays")}
    largest = max(golden["exchanged_bytes"].values(), default=0.0)
    for name in {*golden["exchanged_bytes"], *now["exchanged_bytes"]}:
        both = (golden["exchanged_bytes"].get(name, 0.0), now["exchanged_bytes"].get(name, 0.0))
        if max(both) > 0.001 * largest:  # exchanges of a few scalars may differ
            figures[name] = both
    changed = [
        f"{path}: {name} was {before:,.0f}, is {after:,.0f} a chip; if that is intended, --write"
        for name, (before, after) in sorted(figures.items())
        if abs(after - before) > TOLERANCE * before
    ]
    if not changed:
        print(f"{plan.experiment}: memory and exchanges as in {path}")
    return changed


if __name__ == "__main__":
    run_command(main)
