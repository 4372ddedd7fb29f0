"""cpt-text XL: 175B parameters, everything else as cpt-text S (paper, table 1).

    python -m jaxcpt.train --experiment experiments/cpt_text_xl.py

Hardware: planned for 1,024 TPU v5p chips; each layer's weights are cut over a plane of 128 and
gathered while the layer before is computed. Fewer chips need mesh.tensor and model.cut_residual.
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
