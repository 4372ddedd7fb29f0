"""cpt-text S, tuned on entailment for sentence similarity (paper, sections 2.2 and 3.1.1).

    jaxcpt nli-pairs --input snli_1.0_train.jsonl multinli_1.0_train.jsonl --output data/nli.jsonl
    python -m jaxcpt.train --experiment experiments/cpt_text_s_nli.py

Start: the parameters of experiments/cpt_text_s.py, which must be trained first.
Hardware: planned for 16 TPU v5p chips.
Data: SNLI and MNLI. y is a sentence that x entails, or that entails x; the hard negative of a pair
is a sentence that contradicts the premise. Sentences have up to 128 tokens.
The paper does not give batch, learning rate, steps and temperature of this tuning, so we chose
them. 1,500 steps are about three passes over the pairs.
Expect: better linear probes and sentence similarity (paper); not reproduced here yet.
"""

from jaxcpt.config import (
    Batching,
    Data,
    Experiment,
    InitFrom,
    JsonlPairs,
    Mesh,
    Model,
    Optimizer,
    Tokenizer,
)


def experiment() -> Experiment:
    return Experiment(
        name="cpt_text_s_nli",
        train_steps=1_500,
        init_from=InitFrom(
            "runs/cpt_text_s",
            prepare="python -m jaxcpt.train --experiment experiments/cpt_text_s.py",
        ),
        data=Data(train=(JsonlPairs("data/nli.jsonl"),)),
        tokenizer=Tokenizer(vocabulary=50_304, x_tokens=128, y_tokens=128),
        batching=Batching(pairs_per_batch=1_024, row_tokens=512, negatives=1),
        model=Model(width=1024, layers=24, heads=16, remat="dots"),
        optimizer=Optimizer(learning_rate=1e-5, warmup_steps=100),
        mesh=Mesh(data=-1, fsdp=16),
        topology="v5p:2x2x4",
    )
