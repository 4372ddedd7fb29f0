"""The engines that `bench_train` compares: one training step at a time, in turns.

In: a `Case`, whose folder holds a model and pairs that both engines read. Out: what `Turns.end` is
told of each round: pairs, tokens, and places (tokens with padding). Loading and tokenising are
part of the first round.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from bench_turns import Turns

MATRIX = 2048
PRODUCTS = 20
GROUPS = 4
MINI_BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. `folder` holds `model/` and `pairs.jsonl`."""

    folder: Path
    pairs: int
    """In a batch."""
    x_tokens: int
    y_tokens: int
    row_tokens: int
    chunks: int
    """Parts of a batch past memory. 1: the batch is encoded as a whole."""
    rounds: int
    """Of all turns, besides the first round."""


def train_with_jaxcpt(turns: Turns, case: Case, dtype: Literal["float32", "bfloat16"]) -> None:
    """What `jaxcpt train` does from the start to each step, without logs and evals."""
    import jax

    from jaxcpt import train
    from jaxcpt.checkpoint import CheckpointStore
    from jaxcpt.config import (
        Batching,
        Data,
        Experiment,
        InitFrom,
        JsonlPairs,
        Loss,
        Model,
        Optimizer,
        Tokenizer,
    )
    from jaxcpt.sharding import use_devices
    from jaxcpt.update import compile_train_step

    experiment = Experiment(
        name="benchmark",
        train_steps=case.rounds + 2,
        init_from=InitFrom(str(case.folder / "model")),
        data=Data((JsonlPairs(str(case.folder / "pairs.jsonl")),)),
        tokenizer=Tokenizer(x_tokens=case.x_tokens, y_tokens=case.y_tokens),
        batching=Batching(
            pairs_per_batch=case.pairs, chunks=case.chunks, row_tokens=case.row_tokens
        ),
        model=Model(compute_dtype=dtype, remat="nothing"),
        optimizer=Optimizer(learning_rate=5e-5),
        loss=Loss(scale_start=20.0),
    )
    use_devices(experiment.mesh, 1)
    run_dir = case.folder / f"run_{dtype}"
    run = train.prepare(experiment, run_dir, run_dir, train.open_mesh(experiment), False)
    experiment, batches = run.experiment, run.batches
    with jax.set_mesh(run.mesh), CheckpointStore(run_dir / "checkpoints", 1) as checkpoints:
        _, state = train.begin(run, checkpoints)
        train_step = compile_train_step(experiment, run.mesh, batches.shapes)
        for coming in batches.stream(0, experiment.train_steps):
            state, scalars = train_step(state, coming.result())
            found = {name: float(value) for name, value in jax.device_get(scalars).items()}
            turns.end(
                pairs=found["pairs"],
                tokens=found["tokens"],
                places=batches.sizes.tokens_per_batch,
                flops=run.step_flops[0],
                loss=found["loss"],
            )


def train_with_library(turns: Turns, case: Case, best: bool, bfloat16: bool) -> None:
    """sentence-transformers' trainer: at its defaults, or with batches of nearly equal length."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import datasets
    import transformers
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    model = SentenceTransformer(str(case.folder / "model"), device="cpu")
    path, cache = str(case.folder / "pairs.jsonl"), str(case.folder / f"cache_{best}_{bfloat16}")
    pairs = datasets.Dataset.from_json(path, cache_dir=cache)
    loss = _make_loss(model, case, best)
    counts = dict.fromkeys(("pairs", "tokens", "places"), 0.0)

    def count(_: Any, inputs: tuple) -> None:
        masks = [side["attention_mask"] for side in inputs[0]]
        counts["pairs"] += len(masks[0])
        counts["tokens"] += sum(int(mask.sum()) for mask in masks)
        counts["places"] += sum(mask.numel() for mask in masks)

    loss.register_forward_pre_hook(count)
    groups = GROUPS if best and case.chunks == 1 else 1

    class EndRounds(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1 or (state.global_step - 1) % groups == 0:
                turns.end(**counts)
                counts.update(dict.fromkeys(counts, 0.0))

    more: dict[str, Any] = {}
    if best:
        more = {"dataloader_num_workers": 1, "batch_sampler": group_by_length}
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(case.folder / f"trainer_{best}_{bfloat16}"),
        per_device_train_batch_size=case.pairs,
        max_steps=2 + groups * case.rounds,
        learning_rate=5e-5,
        use_cpu=True,
        bf16=bfloat16,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )
    SentenceTransformerTrainer(
        model=model, args=settings, train_dataset=pairs, loss=loss, callbacks=[EndRounds()]
    ).train()


def _make_loss(model: Any, case: Case, best: bool) -> Any:
    """The loss in both directions, as jaxcpt's."""
    from sentence_transformers.sentence_transformer import losses

    directions: Any = {
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    }
    if case.chunks == 1:
        return losses.MultipleNegativesRankingLoss(model, **directions)
    budget = MINI_BATCH_TOKENS if best else None
    return losses.CachedMultipleNegativesRankingLoss(
        model, mini_batch_num_tokens=budget, **directions
    )


def group_by_length(dataset: Any, batch_size: int, **_: Any) -> Any:
    """Batches of pairs of nearly equal length, in random order.

    Of a whole epoch's batches sorted by length, each round of GROUPS takes one of every quarter, so
    that a round has the lengths of the epoch. A batch with many more pairs is only sorted inside,
    which brings mini-batches of nearly equal length.
    """
    from sentence_transformers.base.sampler import DefaultBatchSampler

    lengths = np.array([len(text) for text in dataset["y"]])
    random = np.random.default_rng(0)

    class Grouped(DefaultBatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            by_length = np.argsort(lengths, kind="stable")
            whole = len(by_length) // batch_size
            if whole < 4 * GROUPS:
                drawn = random.permutation(len(by_length))[: whole * batch_size]
                for batch in drawn.reshape(whole, batch_size):
                    yield batch[np.argsort(lengths[batch])].tolist()
                return
            batches = by_length[: whole * batch_size].reshape(whole, batch_size)
            quarters = np.array_split(batches, GROUPS)
            yield quarters[GROUPS // 2][0].tolist()  # the first round, which is not timed
            turns = min(map(len, quarters))
            for turn in random.permutation(turns):
                for quarter in random.permutation(GROUPS):
                    yield quarters[quarter][turn].tolist()

    return Grouped(dataset, batch_size=batch_size, drop_last=True)


def multiply_with_jax(turns: Turns, dtype: str) -> None:
    """The rate of products of 2,048-cubed matrices, with results in float32."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX)).astype(dtype)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    while True:
        for _ in range(PRODUCTS):
            multiply(a, a).block_until_ready()
        turns.end(flops=PRODUCTS * 2 * MATRIX**3)


def multiply_with_torch(turns: Turns, dtype: str) -> None:
    import torch

    a = torch.randn(MATRIX, MATRIX).to(getattr(torch, dtype))
    while True:
        for _ in range(PRODUCTS):
            torch.matmul(a, a)
        turns.end(flops=PRODUCTS * 2 * MATRIX**3)
