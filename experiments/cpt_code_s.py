"""cpt-code S: 300M parameters on (docstring, function) pairs (paper, section 2 and table 7).

    jaxcpt mine-code --input SOURCES... --output data/functions
    python -m jaxcpt.train --experiment experiments/cpt_code_s.py

Data: functions and methods with their documentation, in the six languages of CodeSearchNet.
The paper gives no batch size for cpt-code, so it is that of cpt-text S.
Expect: CodeSearchNet MRR 93.4 in the paper; not reproduced here yet.
"""

from dataclasses import replace

from cpt_text_s import experiment as text

from jaxcpt.config import Data, Experiment, TfdsPairs


def experiment() -> Experiment:
    prepare = "jaxcpt mine-code --input SOURCES... --output data/functions"
    return replace(
        text(),
        name="cpt_code_s",
        data=Data(train=(TfdsPairs(directory="data/functions", prepare=prepare),)),
    )
