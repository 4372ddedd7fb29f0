"""A GPT of 0.5M parameters on (docstring, function) pairs. It starts at random, or from lm_small.

    python -m jaxcpt.train --experiment experiments/small_code.py --run-dir runs/small_from_random
    python -m jaxcpt.train --experiment experiments/small_code.py --run-dir runs/small_from_lm \\
        --set 'init_from={"run": "runs/lm_small"}'

It shows how much a generative start helps, at a size that two CPU cores can train
(docs/generative.md).
Data: the pairs of the quickstart and its 1,000 held-out functions. It downloads nothing.
"""

from jaxcpt.config import (
    Batching,
    Data,
    Evals,
    Experiment,
    Model,
    Optimizer,
    PythonPackages,
    Tokenizer,
)


def experiment() -> Experiment:
    return Experiment(
        name="small_code",
        train_steps=100,
        data=Data(train=(PythonPackages(),), heldout=PythonPackages("heldout")),
        tokenizer=Tokenizer(vocabulary=2048, split_identifiers=True, x_tokens=32, y_tokens=96),
        batching=Batching(pairs_per_batch=64, row_tokens=96),
        model=Model(width=96, layers=3, heads=4, compute_dtype="float32", remat="nothing"),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=10),
        evals=Evals(every_steps=50),
    )
