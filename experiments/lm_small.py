"""A generative model of 0.5M parameters on this machine's Python source: nothing is downloaded.

    python -m jaxcpt.train --experiment experiments/lm_small.py

The experiment small_code can start from it (docs/generative.md).
Hardware: two CPU cores, about ten minutes (2 s per step while other programs use the cores too).
Data: the pairs of the quickstart. Each docstring and each function is a separate text.
"""

from dataclasses import replace

from small_code import experiment as tuned

from jaxcpt.config import Evals, Experiment, Optimizer


def experiment() -> Experiment:
    return replace(
        tuned(),
        name="lm_small",
        objective="generative",
        train_steps=300,
        optimizer=Optimizer(learning_rate=3e-3, warmup_steps=20),
        evals=Evals(every_steps=100),
    )
