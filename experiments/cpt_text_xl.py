"""cpt-text XL: 175B parameters, everything else as cpt-text S (paper, table 1).

    python -m jaxcpt.train --experiment experiments/cpt_text_xl.py

Hardware: a multiple of 8 devices with fast links; heads, MLP and vocabulary are cut over 8.
"""

from dataclasses import replace

from cpt_text_s import experiment as small

from jaxcpt.config import Experiment, Mesh, Model


def experiment() -> Experiment:
    run = small()
    return replace(
        run,
        name="cpt_text_xl",
        batching=replace(run.batching, pairs_per_batch=4_976, chunks=8),
        model=Model(width=12_288, layers=96, heads=96, cut_residual=True),
        optimizer=replace(run.optimizer, learning_rate=6e-5),
        mesh=Mesh(data=1, fsdp=-1, tensor=8),
    )
