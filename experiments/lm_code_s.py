"""A generative start for cpt-code S: the same 300M parameters, trained to predict the next token.

    jaxcpt mine-code --input SOURCES... --output data/functions
    python -m jaxcpt.train --experiment experiments/lm_code_s.py
    python -m jaxcpt.train --experiment experiments/cpt_code_s.py \\
        --set 'init_from={"run": "runs/lm_code_s"}'

The last command tunes the run (docs/generative.md). The paper starts cpt-code from Codex models.
Data: cpt-code's pairs: each docstring and each function by itself.
Steps: 50,000 of 2M tokens at most, 100B tokens, as Codex. Everything else as lm_text_s.
Expect: bits per byte fall from step to step; not trained here yet.
"""

from dataclasses import replace

from cpt_code_s import experiment as tuned
from lm_text_s import experiment as text

from jaxcpt.config import Experiment


def experiment() -> Experiment:
    return replace(text(), name="lm_code_s", train_steps=50_000, data=tuned().data)
