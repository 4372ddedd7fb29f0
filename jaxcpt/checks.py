"""Checks an experiment before any file or device is used, with one function for each part.

In: an experiment. Out: the same experiment, or a UserError that names the field, what was found
and what is allowed. The modules that know files and devices check what depends on them.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import replace

from jaxcpt.config import (
    Experiment,
    Loss,
    PythonPackages,
    TfdsPairs,
    TokenizedPairs,
    derive_baseline,
)
from jaxcpt.errors import UserError

Check = tuple[bool, str]
"""Whether a rule holds, and the error text if it does not."""


def validate(experiment: Experiment) -> Experiment:
    """Returns the experiment. Raises UserError that names the first invalid field."""
    parts = (_run, _data, _tokenizer, _batching, _model, _adapter, _loss, _optimizer, _mesh)
    for part in (*parts, *((_generative,) if experiment.objective == "generative" else ())):
        for holds, message in part(experiment):
            if not holds:
                raise UserError(f"{experiment.name}: {message}")
    baseline = derive_baseline(experiment)
    if baseline is not None:
        validate(baseline)
    return experiment


def _above_zero(**values: float | None) -> Iterator[Check]:
    """Rules that each value is above 0. In names, `__` means a dot. None passes."""
    for name, value in values.items():
        if value is not None:
            yield value > 0, f"{name.replace('__', '.')}: must be above 0, found {value}"


def _run(e: Experiment) -> Iterator[Check]:
    yield (
        re.fullmatch(r"[^/\\\0]+", e.name) is not None and e.name not in (".", ".."),
        f"name: {e.name!r} cannot name a folder",
    )
    is_imported = e.train_steps == 0 and not e.data.train
    yield (
        e.train_steps > 0 or is_imported,
        f"train_steps: must be above 0, found {e.train_steps}",
    )
    yield from _above_zero(
        log_every_steps=e.log_every_steps,
        evals__every_steps=e.evals.every_steps,
        checkpoints__every_steps=e.checkpoints.every_steps,
        checkpoints__keep=e.checkpoints.keep,
        safety__max_bad_steps=e.safety.max_bad_steps,
        safety__hang_seconds=e.safety.hang_seconds,
    )
    yield 0 <= e.seed < 1 << 24, f"seed: must be from 0 to {(1 << 24) - 1}, found {e.seed}"
    yield (
        not e.evals.suites or e.evals.data != "",
        "evals.data: evals.suites need a folder to read from",
    )


def _data(e: Experiment) -> Iterator[Check]:
    data = e.data
    yield from _above_zero(data__weights=min(data.weights, default=1))
    sources = (*data.train, data.heldout)
    mined = {replace(s, split="train") for s in sources if isinstance(s, PythonPackages)}
    yield len(mined) <= 1, "data: PythonPackages sources must agree in all but their split"
    yield (
        all(bool(s.directory) != bool(s.name) for s in sources if isinstance(s, TfdsPairs)),
        "data: a TfdsPairs source needs either a directory or a name",
    )
    yield (
        not isinstance(data.heldout, TokenizedPairs),
        "data.heldout: TokenizedPairs hold no texts, which evals need",
    )
    for side, prefix in (("x", e.tokenizer.x_prefix), ("y", e.tokenizer.y_prefix)):
        yield (
            not prefix or all(getattr(s, f"{side}_prefix") != prefix for s in sources if s),
            f"data: a source has the {side}_prefix {prefix!r}, which the tokenizer puts before "
            f"every {side} already; leave it out",
        )
    yield (
        bool(data.train) or e.train_steps == 0,
        "data.train: no data; name at least one source",
    )
    yield (
        len(data.weights) in (0, len(data.train)),
        f"data.weights: {len(data.weights)} weights for {len(data.train)} sources",
    )


def _tokenizer(e: Experiment) -> Iterator[Check]:
    t = e.tokenizer
    given = "" if e.init_from is None else "; leave `tokenizer` out to take that of init_from"
    yield t.vocabulary > 0, f"tokenizer.vocabulary: must be above 0, found {t.vocabulary}{given}"
    yield min(t.x_tokens, t.y_tokens) >= 3, "tokenizer.x_tokens, y_tokens: must be at least 3"
    yield (
        t.kind != "hugging_face" or bool(t.model_file or e.init_from or e.train_steps == 0),
        "tokenizer.model_file: kind hugging_face needs a tokenizer.json",
    )
    yield (
        t.delimiters == "brackets" or t.kind == "hugging_face",
        "tokenizer.delimiters: own is for kind hugging_face; SentencePiece has brackets",
    )


def _batching(e: Experiment) -> Iterator[Check]:
    b, longest = e.batching, e.tokenizer.longest
    yield from _above_zero(
        batching__pairs_per_batch=b.pairs_per_batch,
        batching__chunks=b.chunks,
        batching__rows_per_cell=b.rows_per_cell,
    )
    yield (
        b.chunks <= b.pairs_per_batch,
        f"batching.chunks: {b.chunks} chunks for a batch of {b.pairs_per_batch} pairs",
    )
    yield (
        longest <= b.row_tokens,
        f"batching.row_tokens: rows of {b.row_tokens} tokens cannot hold a text of {longest}",
    )
    yield (
        0 <= b.token_dropout < 1,
        f"batching.token_dropout: must be in [0, 1), found {b.token_dropout}",
    )
    yield b.negatives >= 0, f"batching.negatives: must be 0 or more, found {b.negatives}"


def _model(e: Experiment) -> Iterator[Check]:
    m, mean, longest = e.model, e.model.weighted_mean, e.tokenizer.longest
    yield from _above_zero(
        model__width=m.width,
        model__heads=m.heads,
        model__head_width=m.head_width,
        model__mlp_width=m.mlp_width,
        model__norm_epsilon=m.norm_epsilon,
        model__rotary_base=m.rotary_base,
        model__weighted_mean__embedding_scale=mean.embedding_scale,
    )
    yield m.layers >= 0, f"model.layers: must be 0 or more, found {m.layers}"
    yield (
        m.head_width is not None or m.head_size * m.heads == m.width,
        f"model.heads: {m.heads} heads do not divide the width {m.width}",
    )
    yield (
        m.key_heads > 0 and m.heads % m.key_heads == 0,
        f"model.kv_heads: {m.kv_heads} key heads do not divide the {m.heads} heads",
    )
    rotated = m.head_size * m.rotary_share
    yield (
        m.positions == "learnt" or rotated % 2 == 0,
        f"model.positions: rotary needs an even head width, found {m.head_size}"
        if m.rotary_share == 1
        else f"model.rotary_share: {m.rotary_share} of {m.head_size} is not an even width",
    )
    yield (
        0 < m.rotary_share <= 1,
        f"model.rotary_share: must be above 0 and at most 1, found {m.rotary_share}",
    )
    yield (
        m.rotary_scaling is None or m.rotary_scaling.factor >= 1,
        "model.rotary_scaling.factor: must be 1 or more",
    )
    yield (
        m.position_rows is None or m.positions != "learnt" or longest <= m.position_rows,
        f"model.position_rows: {m.position_rows} positions cannot hold a text of {longest} tokens",
    )
    yield (
        m.norm_placement == "pre" or not m.parallel_residual,
        "model.parallel_residual: goes with norm_placement=pre",
    )
    yield (
        m.pooling == "mean"
        or not (m.weighted_mean.token_weights or m.weighted_mean.position_weights),
        "model.weighted_mean: token_weights and position_weights go with model.pooling=mean",
    )
    yield (
        m.pooling != "eos" or e.tokenizer.delimiters == "brackets" or m.causal,
        "model.pooling: eos at a closing token of the model's own needs a causal model",
    )


def _adapter(e: Experiment) -> Iterator[Check]:
    if (adapter := e.adapter) is None:
        return
    yield e.init_from is not None, "adapter: needs init_from, whose parameters it adapts"
    yield from _above_zero(adapter__rank=adapter.rank, adapter__alpha=adapter.alpha)
    weights = ("query", "key", "value", "out", "up", "gate", "down")
    unknown = [target for target in adapter.targets if target not in weights]
    yield (
        not unknown,
        f"adapter.targets: no weight is named {''.join(unknown[:1])}; there are "
        f"{', '.join(weights)}",
    )
    have = [name for name in weights if name != "gate" or e.model.mlp == "swiglu"]
    have = have if e.model.layers else []
    yield (
        bool(set(adapter.targets) & set(have)),
        f"adapter.targets: ({', '.join(adapter.targets)}) match no weight of the model; it has "
        f"{', '.join(have) or 'no layers'}",
    )


def _loss(e: Experiment) -> Iterator[Check]:
    loss = e.loss
    yield from _above_zero(loss__scale_start=loss.scale_start)
    yield (
        all(0 < prefix < e.model.width for prefix in loss.prefixes),
        f"loss.prefixes: must lie between 0 and the width {e.model.width}",
    )
    yield (
        loss.scale_start <= loss.scale_max,
        f"loss.scale_start: {loss.scale_start} is above loss.scale_max {loss.scale_max}",
    )


def _optimizer(e: Experiment) -> Iterator[Check]:
    o = e.optimizer
    yield from _above_zero(
        optimizer__learning_rate=o.learning_rate, optimizer__clip_norm=o.clip_norm
    )
    yield (
        0 <= o.b1 < 1 and 0 <= o.b2 < 1 and o.eps > 0,
        "optimizer: b1 and b2 must be in [0, 1) and eps above 0",
    )
    yield (
        0 <= o.final_share <= 1 and o.weight_decay >= 0,
        "optimizer: final_share must be in [0, 1] and weight_decay 0 or more",
    )
    yield (
        o.embedding_learning_rate is None or o.embedding_learning_rate >= 0,
        f"optimizer.embedding_learning_rate: below 0: {o.embedding_learning_rate}",
    )
    yield (
        0 <= o.warmup_steps < max(e.train_steps, 1),
        f"optimizer.warmup_steps: {o.warmup_steps} of {e.train_steps} steps",
    )


def _mesh(e: Experiment) -> Iterator[Check]:
    yield (
        all(size == -1 or size > 0 for size in dataclasses.astuple(e.mesh)),
        "mesh: each axis must be above 0, or -1 for what the others leave",
    )


def _generative(e: Experiment) -> Iterator[Check]:
    """Refuses what the generative objective cannot do, and fields that it does not read."""
    goes = "objective=generative"
    mean = e.model.weighted_mean
    yield (
        e.model.causal,
        f"model.causal: {goes} needs a causal model; a token that sees the next one predicts "
        "nothing",
    )
    yield (
        e.loss == Loss(),
        f"loss: belongs to the contrastive loss; leave it out for {goes}",
    )
    yield (
        e.model.pooling == "eos" and not (mean.token_weights or mean.position_weights),
        f"model.pooling, weighted_mean: {goes} pools nothing; state them in the run that starts "
        "from this one",
    )
    yield (
        e.batching.token_dropout == 0,
        f"batching.token_dropout: {goes} would predict tokens that do not follow; leave it out",
    )
    yield not e.evals.suites, f"evals.suites: need embeddings, which {goes} does not train"
    yield (
        e.baseline is None,
        f"baseline: is compared by search, which {goes} does not train; leave it out",
    )
