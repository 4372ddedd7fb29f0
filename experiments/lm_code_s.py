"""A generative start for cpt-code S: the same 300M parameters, trained to predict the next token.

    jaxcpt mine-code --input SOURCES... --output data/functions
    python -m jaxcpt.train --experiment experiments/lm_code_s.py
    python -m jaxcpt.train --experiment experiments/cpt_code_s.py \\
        --set 'init_from={"run": "runs/lm_code_s"}'

The last command tunes the run (docs/generative.md). In the paper, cpt-code starts from Codex
models.
Data: the pairs of cpt-code. Each docstring and each function is a separate text.
Steps: 50,000 steps of at most 2M tokens, which are 100B tokens, as for Codex. Everything else is
the same as in lm_text_s.
Expect: bits per byte that fall during training; not trained here yet.
"""

from dataclasses import replace

from cpt_code_s import experiment as tuned
from lm_text_s import experiment as text

from jaxcpt.config import Experiment


def experiment() -> Experiment:
    return replace(text(), name="lm_code_s", train_steps=50_000, data=tuned().data)
