"""Plans several experiments in parallel processes.

In: experiments and their topologies. Out: a `Plan` or `TooLarge` for each, in the same order. The
module prints nothing.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import jax

from jaxcpt.config import Experiment
from jaxcpt.experiments import to_json
from jaxcpt.planning.step import Plan, TooLarge, make_plan
from jaxcpt.planning.topology import Topology


def plan_all(tasks: Sequence[tuple[Experiment, Topology]], jobs: int) -> list[Plan | TooLarge]:
    """Plans each task, `jobs` at a time. Tasks with the same training step are compiled once."""
    # The training step depends neither on the name nor on the data.
    keys = [to_json(replace(e, name="", data=tasks[0][0].data)) + t.name for e, t in tasks]
    distinct = dict(zip(keys, tasks, strict=True))
    if len(distinct) == 1 or jobs == 1:
        plans = [_plan_one(*task) for task in distinct.values()]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
            plans = list(pool.map(_plan_one, *zip(*distinct.values(), strict=True)))
    by_key = dict(zip(distinct, plans, strict=True))
    return [_rename(by_key[key], task[0].name) for key, task in zip(keys, tasks, strict=True)]


def _plan_one(experiment: Experiment, topology: Topology) -> Plan | TooLarge:
    jax.config.update("jax_platforms", "cpu")
    try:
        return make_plan(experiment, topology)
    except TooLarge as too_large:
        return too_large


def _rename(plan: Plan | TooLarge, name: str) -> Plan | TooLarge:
    return replace(plan, experiment=name) if isinstance(plan, Plan) else plan
