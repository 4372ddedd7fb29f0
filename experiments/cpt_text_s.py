"""cpt-text S: 300M parameters on neighbouring pieces of text (paper, table 1 and section 2).

    jaxcpt mine-text --input TEXT... --output data/neighbours
    python -m jaxcpt.train --experiment experiments/cpt_text_s.py

Hardware: planned for 128 TPU v5p chips; docs/plans.md has memory, time and MFU. To plan it for
other chips, run `jaxcpt plan --experiment experiments/cpt_text_s.py --topology NAME`.
If the memory is too small, raise batching.chunks, which only changes the time of a step.
Data: neighbouring pieces of documents, up to 512 tokens each; the paper used web text.
Width and batch are the paper's. The paper gives neither heads, learning rates, steps nor the first
temperature. Here layers, heads and learning rate are GPT-3's for this size, and the temperature is
CLIP's. On a TPU, 8 heads of 128 would be faster (docs/plans.md), but published models of this width
have 16.
Expect: the BEIR and linear-probe scores in tables 3 and 5 of the paper; not reproduced here yet.
"""

from jaxcpt.config import Batching, Data, Experiment, Mesh, Model, Optimizer, TfdsPairs, Tokenizer


def experiment() -> Experiment:
    return Experiment(
        name="cpt_text_s",
        train_steps=20_000,
        data=Data(
            train=(
                TfdsPairs(
                    directory="data/neighbours",
                    prepare="jaxcpt mine-text --input TEXT... --output data/neighbours",
                ),
            ),
        ),
        tokenizer=Tokenizer(vocabulary=50_304, x_tokens=512, y_tokens=512),
        batching=Batching(pairs_per_batch=12_288, row_tokens=512, in_memory=False),
        model=Model(width=1024, layers=24, heads=16, remat="dots"),
        optimizer=Optimizer(learning_rate=3e-4, warmup_steps=1_000),
        mesh=Mesh(data=-1, fsdp=16),
        topology="v5p:4x4x8",
    )
