"""cpt-text M: 1.2B parameters. Everything else is the same as in cpt-text S (paper, table 1).

    python -m jaxcpt.train --experiment experiments/cpt_text_m.py

The devices need not divide the batch of 6,912 pairs: empty places are masked, and the loss is
exact.
"""

from dataclasses import replace

from cpt_text_s import experiment as small

from jaxcpt.config import Experiment, Model


def experiment() -> Experiment:
    run = small()
    return replace(
        run,
        name="cpt_text_m",
        batching=replace(run.batching, pairs_per_batch=6_912),
        model=Model(width=2048, layers=24, heads=16, remat="dots"),
        optimizer=replace(run.optimizer, learning_rate=2e-4),
    )
