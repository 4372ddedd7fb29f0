"""A generative start for cpt-text S: the same 300M parameters, trained to predict the next token.

    jaxcpt mine-text --input TEXT... --output data/neighbours
    python -m jaxcpt.train --experiment experiments/lm_text_s.py
    python -m jaxcpt.train --experiment experiments/cpt_text_s.py \\
        --set 'init_from={"run": "runs/lm_text_s"}'

The last command tunes the run (docs/generative.md). In the paper, cpt-text starts from GPT models.
Hardware: planned for 128 TPU v5p chips, as for cpt-text S (docs/plans.md).
Data: the pairs of cpt-text. Each text of a pair is a separate text.
Widths, layers and heads are those of cpt-text. The paper does not describe the training of its GPT
models. The learning rate is GPT-3's for this size. 2M tokens per step and 300B in total are close
to GPT-3's numbers.
Expect: bits per byte that fall during training; not trained here yet.
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
