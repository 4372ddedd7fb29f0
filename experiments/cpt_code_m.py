"""cpt-code M: 1.2B parameters. Everything else is the same as in cpt-code S.

    python -m jaxcpt.train --experiment experiments/cpt_code_m.py

Expect: CodeSearchNet MRR 93.5 in the paper; not reproduced here yet.
"""

from dataclasses import replace

from cpt_code_s import experiment as small
from cpt_text_m import experiment as text

from jaxcpt.config import Experiment


def experiment() -> Experiment:
    return replace(text(), name="cpt_code_m", data=small().data)
