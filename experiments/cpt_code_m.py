"""cpt-code M: 1.2B parameters, everything else as cpt-code S.

    python -m jaxcpt.train --experiment experiments/cpt_code_m.py

Expect, from the paper: CodeSearchNet MRR 93.5; not reproduced here yet.
"""

from dataclasses import replace

from cpt_code_s import experiment as small
from cpt_text_m import experiment as text

from jaxcpt.config import Experiment


def experiment() -> Experiment:
    return replace(text(), name="cpt_code_m", data=small().data)
