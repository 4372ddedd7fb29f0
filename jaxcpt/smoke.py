"""Shrinks any experiment to the tiny one that `--smoke` runs.

In: an experiment. Out: an experiment. The module knows neither files nor devices.
"""

import dataclasses
from dataclasses import replace
from typing import Any

from jaxcpt.config import Baseline, Checkpoints, Data, Evals, Experiment, Mesh, PythonPackages


def shrink(experiment: Experiment) -> Experiment:
    """The same run with tiny sizes and built-in data. It takes a minute and uses the same code.

    Each mesh axis that the experiment uses keeps two devices, so the same axes are sharded. The
    built-in data has no hard negatives, so none are used.
    """
    packages = ("argparse", "email", "json")
    baseline, few = experiment.baseline, min(len(experiment.loss.prefixes), 3)
    return replace(
        experiment,
        **_shrink_parts(experiment),
        data=Data(
            train=(PythonPackages(heldout_functions=20, packages=packages),),
            homogeneous=experiment.data.homogeneous,
            heldout=PythonPackages("heldout", heldout_functions=20, packages=packages),
        ),
        tokenizer=replace(
            experiment.tokenizer,
            vocabulary=600,
            kind="unigram" if experiment.tokenizer.kind == "unigram" else "bpe",
            delimiters="brackets",
            x_tokens=16,
            y_tokens=48,
            model_file=None,
        ),
        loss=replace(experiment.loss, prefixes=tuple(8 * (i + 1) for i in range(few))),
        init_from=None,  # a tiny model cannot start from a large one
        adapter=None,
        mesh=Mesh(*(1 if size == 1 else 2 for size in dataclasses.astuple(experiment.mesh))),
        checkpoints=Checkpoints(every_steps=2),
        log_every_steps=1,
        evals=Evals(every_steps=2),
        baseline=baseline and replace(baseline, **_shrink_parts(baseline)),
    )


def _shrink_parts(part: Experiment | Baseline) -> dict[str, Any]:
    m, b = part.model, part.batching
    grouped = m.kv_heads is not None and m.kv_heads < m.heads
    return {
        "train_steps": 4,
        "batching": replace(
            b,
            pairs_per_batch=30,
            chunks=min(b.chunks, 2),
            row_tokens=64,
            rows_per_cell=None,
            negatives=0,
        ),
        "model": replace(
            m,
            width=32,
            layers=min(m.layers, 2) if m.width else 2,
            heads=4,
            kv_heads=2 if grouped else None,
            head_width=None,
            mlp_width=64,
        ),
        "optimizer": replace(part.optimizer, warmup_steps=1),
    }
