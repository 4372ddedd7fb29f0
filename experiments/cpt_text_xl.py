"""cpt-text XL: 175B parameters. Everything else is the same as in cpt-text S (paper, table 1).

    python -m jaxcpt.train --experiment experiments/cpt_text_xl.py

Hardware: planned for 1,024 TPU v5p chips. Each layer's weights are sharded over a plane of 128
chips and gathered while the layer before is computed. With fewer chips, use mesh.tensor and
model.cut_residual.
"""

from dataclasses import replace

from cpt_text_s import experiment as small

from jaxcpt.config import Experiment, Mesh, Model


def experiment() -> Experiment:
    run = small()
    return replace(
        run,
        name="cpt_text_xl",
        batching=replace(run.batching, pairs_per_batch=4_976),
        model=Model(width=12_288, layers=96, heads=96),
        optimizer=replace(run.optimizer, learning_rate=6e-5),
        mesh=Mesh(data=-1, fsdp=128),
        topology="v5p:8x8x16",
    )
