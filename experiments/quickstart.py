"""A small code-embedding model from the Python source on this machine: no download, minutes.

python -m jaxcpt.train --experiment experiments/quickstart.py
"""

from dataclasses import replace

from jaxcpt.config import (
    Baseline,
    Batching,
    Data,
    Evals,
    Experiment,
    Loss,
    Model,
    Optimizer,
    PythonPackages,
    Tokenizer,
)


def experiment() -> Experiment:
    run = Experiment(
        name="quickstart",
        train_steps=60,
        data=Data(train=(PythonPackages(),), heldout=PythonPackages("heldout")),
        tokenizer=Tokenizer(vocabulary=8192, split_identifiers=True, x_tokens=64, y_tokens=128),
        batching=Batching(pairs_per_batch=512, row_tokens=128, token_dropout=0.3),
        model=Model(
            width=256,
            layers=1,
            heads=4,
            causal=False,
            pooling="mean",
            token_weights=True,
            residual_start="zero",
            compute_dtype="float32",
            remat="nothing",
        ),
        optimizer=Optimizer(
            learning_rate=1e-3, embedding_learning_rate=1e-2, warmup_steps=10, final_share=0.1
        ),
        loss=Loss(scale_start=20.0),
        evals=Evals(every_steps=50),
    )
    bag = replace(run.model, layers=0)
    return replace(run, baseline=Baseline("bag of subwords", 60, run.batching, bag, run.optimizer))
