"""cpt-text L: 6B parameters. Everything else is the same as in cpt-text S (paper, table 1).

    python -m jaxcpt.train --experiment experiments/cpt_text_l.py

The devices need not divide the batch of 5,896 pairs: empty places are masked, and the loss is
exact.
"""

from dataclasses import replace

from cpt_text_s import experiment as small

from jaxcpt.config import Experiment, Model


def experiment() -> Experiment:
    run = small()
    return replace(
        run,
        name="cpt_text_l",
        batching=replace(run.batching, pairs_per_batch=5_896),
        model=Model(width=4096, layers=32, heads=32),
        optimizer=replace(run.optimizer, learning_rate=1.2e-4),
        topology="v5p:4x4x4",
    )
