"""Cross-checks of an experiment that need no device, one function for each part."""

import dataclasses
from dataclasses import replace

from jaxcpt.config import Experiment, PythonPackages, TfdsPairs, TokenizedPairs, derive_baseline
from jaxcpt.errors import UserError


def validate(experiment: Experiment) -> Experiment:
    """Cross-checks that need no device. Returns the experiment; raises UserError naming a field."""
    e, m, b, t = experiment, experiment.model, experiment.batching, experiment.tokenizer
    kv_heads = m.heads if m.kv_heads is None else m.kv_heads
    head_width = m.width // max(m.heads, 1)
    longest = max(t.x_tokens, t.y_tokens)
    positive = {
        "train_steps": e.train_steps,
        "log_every_steps": e.log_every_steps,
        "evals.every_steps": e.evals.every_steps,
        "checkpoints.every_steps": e.checkpoints.every_steps,
        "checkpoints.keep": e.checkpoints.keep,
        "batching.pairs_per_batch": b.pairs_per_batch,
        "batching.chunks": b.chunks,
        "model.width": m.width,
        "model.heads": m.heads,
        "model.mlp_width": 1 if m.mlp_width is None else m.mlp_width,
        "batching.rows_per_cell": 1 if b.rows_per_cell is None else b.rows_per_cell,
        "tokenizer.vocabulary": t.vocabulary,
        "data.weights": min(e.data.weights, default=1),
        "model.embedding_scale": m.embedding_scale,
        "loss.scale_start": e.loss.scale_start,
        "optimizer.learning_rate": e.optimizer.learning_rate,
        "optimizer.clip_norm": e.optimizer.clip_norm,
    }
    rules: list[tuple[bool, str]] = [
        (value > 0, f"{name}: must be above 0, found {value}") for name, value in positive.items()
    ]
    sources = (*e.data.train, e.data.heldout)
    mined = {replace(s, split="train") for s in sources if isinstance(s, PythonPackages)}
    o = e.optimizer
    rules += [
        (len(mined) <= 1, "data: PythonPackages sources must agree in all but their split"),
        (
            all(bool(s.directory) != bool(s.name) for s in sources if isinstance(s, TfdsPairs)),
            "data: a TfdsPairs source needs either a directory or a name",
        ),
        (
            not isinstance(e.data.heldout, TokenizedPairs),
            "data.heldout: TokenizedPairs hold no texts, which evals need",
        ),
        (
            all(size == -1 or size > 0 for size in dataclasses.astuple(e.mesh)),
            "mesh: each axis must be above 0, or -1 for what the others leave",
        ),
        (
            not e.evals.suites or e.evals.data != "",
            "evals.data: evals.suites need a folder to read from",
        ),
        (
            0 <= o.b1 < 1 and 0 <= o.b2 < 1 and o.eps > 0,
            "optimizer: b1 and b2 must be in [0, 1) and eps above 0",
        ),
        (
            0 <= o.final_share <= 1 and o.weight_decay >= 0,
            "optimizer: final_share must be in [0, 1] and weight_decay 0 or more",
        ),
        (
            o.embedding_learning_rate is None or o.embedding_learning_rate >= 0,
            f"optimizer.embedding_learning_rate: below 0: {o.embedding_learning_rate}",
        ),
        (0 <= e.seed < 1 << 24, f"seed: must be from 0 to {(1 << 24) - 1}, found {e.seed}"),
        (m.layers >= 0, f"model.layers: must be 0 or more, found {m.layers}"),
        (bool(e.data.train), "data.train: no data; name at least one source"),
        (
            len(e.data.weights) in (0, len(e.data.train)),
            f"data.weights: {len(e.data.weights)} weights for {len(e.data.train)} sources",
        ),
        (
            head_width * m.heads == m.width,
            f"model.heads: {m.heads} heads do not divide the width {m.width}",
        ),
        (
            kv_heads > 0 and m.heads % kv_heads == 0,
            f"model.kv_heads: {kv_heads} key heads do not divide the {m.heads} heads",
        ),
        (
            m.positions == "learnt" or head_width % 2 == 0,
            f"model.positions: rotary needs an even head width, found {head_width}",
        ),
        (
            m.pooling == "mean" or not (m.token_weights or m.position_weights),
            "model.token_weights, position_weights: only used with model.pooling=mean",
        ),
        (
            b.chunks <= b.pairs_per_batch,
            f"batching.chunks: {b.chunks} chunks for a batch of {b.pairs_per_batch} pairs",
        ),
        (
            longest <= b.row_tokens,
            f"batching.row_tokens: rows of {b.row_tokens} tokens cannot hold a text of {longest}",
        ),
        (min(t.x_tokens, t.y_tokens) >= 3, "tokenizer.x_tokens, y_tokens: must be at least 3"),
        (
            0 <= b.token_dropout < 1,
            f"batching.token_dropout: must be in [0, 1), found {b.token_dropout}",
        ),
        (b.negatives >= 0, f"batching.negatives: must be 0 or more, found {b.negatives}"),
        (
            all(0 < prefix < m.width for prefix in e.loss.prefixes),
            f"loss.prefixes: must lie between 0 and the width {m.width}",
        ),
        (
            e.loss.scale_start <= e.loss.scale_max,
            f"loss.scale_start: {e.loss.scale_start} is above loss.scale_max {e.loss.scale_max}",
        ),
        (
            0 <= e.optimizer.warmup_steps < e.train_steps,
            f"optimizer.warmup_steps: {e.optimizer.warmup_steps} of {e.train_steps} steps",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise UserError(f"{e.name}: {message}")
    baseline = derive_baseline(e)
    if baseline is not None:
        validate(baseline)
    return e
