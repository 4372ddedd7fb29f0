"""A generative start for cpt-text S: the same 300M parameters, trained to predict the next token.

    jaxcpt mine-text --input TEXT... --output data/neighbours
    python -m jaxcpt.train --experiment experiments/lm_text_s.py
    python -m jaxcpt.train --experiment experiments/cpt_text_s.py \\
        --set 'init_from={"run": "runs/lm_text_s"}'

The last command tunes the run (docs/generative.md). The paper starts cpt-text from GPT models.
Hardware: planned for 128 TPU v5p chips, as cpt-text S (docs/plans.md).
Data: cpt-text's pairs, each text by itself.
Widths, layers and heads are cpt-text's. The paper says nothing about the training of its GPT
models: the learning rate is GPT-3's for the size, and 2M tokens a step and 300B in all are near
GPT-3's figures.
Expect: bits per byte fall from step to step; not trained here yet.
"""

from dataclasses import replace

from cpt_text_s import experiment as tuned

from jaxcpt.config import Experiment


def experiment() -> Experiment:
    run = tuned()
    return replace(
        run,
        name="lm_text_s",
        objective="generative",
        train_steps=150_000,
        batching=replace(run.batching, pairs_per_batch=2_048),
    )
