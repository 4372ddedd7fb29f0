"""The frozen `Experiment` tree: every value of a run, its defaults, and what must fit together.

It knows neither files nor arrays nor devices: what depends on those is checked where it is known.
What a user can get wrong anywhere in the package is raised as `Refusal`.
"""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

# An experiment imports all it names from here.
from jaxcpt.sources import (  # noqa: F401
    ArrayRecordPairs,
    BeirPairs,
    Data,
    DatasetsPairs,
    JsonlPairs,
    ParquetPairs,
    PythonPackages,
    TfdsPairs,
    TokenizedPairs,
)


class Refusal(Exception):
    """An error that the user caused and can mend: shown as one line, exit code 2, no traceback."""


Side = Literal["x", "y"]


@dataclass(frozen=True)
class Tokenizer:
    vocabulary: int
    kind: Literal["bpe", "unigram"] = "bpe"
    split_identifiers: bool = False
    """Lower-case, and cut parseDate and parse_date into words, inside the model's normaliser."""
    split_digits: bool = False
    """Each digit is a token of its own."""
    x_tokens: int = 512
    """Longest x, delimiters included; what is longer is cut and keeps its closing delimiter."""
    y_tokens: int = 512
    model_file: str | None = None
    """A SentencePiece model made earlier; None: train one on the training pairs."""


@dataclass(frozen=True)
class Batching:
    pairs_per_batch: int
    """Pairs in the global batch; need not divide anything, the remainder is masked."""
    chunks: int = 1
    """Parts encoded one after another. The loss still sees the whole batch (update.py)."""
    row_tokens: int = 512
    rows_per_cell: int | None = None
    """Packed rows of a (data shard, chunk) cell; None: measured on the training pairs."""
    pack: bool = True
    """Several texts to a row, so that hardly any token is padding; False: one text a row."""
    negatives: int = 0
    """Hard negatives taken from each pair; absent ones are masked."""
    in_memory: bool = True
    """Tokenise all pairs once at the start, and let each batch take one pair of each stratum of
    length, so that all batches hold as many tokens. False: read and tokenise batch by batch."""
    token_dropout: float = 0.0
    """Share of inner tokens left out, drawn anew for each text and step."""


@dataclass(frozen=True)
class Model:
    width: int
    layers: int
    heads: int
    kv_heads: int | None = None
    """Fewer than `heads` for grouped-query attention; None: as many."""
    mlp_width: int | None = None
    """None: four times the width."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    positions: Literal["learnt", "rotary"] = "learnt"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    qk_norm: bool = False
    biases: bool = True
    causal: bool = True
    pooling: Literal["eos", "mean"] = "eos"
    """eos: hidden state at the closing delimiter (paper, section 2.1); mean: over the text."""
    token_weights: bool = False
    """Weigh each token in the mean by exp of a number learnt per vocabulary entry."""
    position_weights: bool = False
    """Weigh each position in the mean by exp of a number learnt per position."""
    final_norm: bool = True
    """Off, a hidden state's length counts in the mean, as it does in a bag of tokens."""
    embedding_scale: float = 1.0
    """Multiplies what is looked up, and so says how large the stream is beside its branches."""
    residual_start: Literal["gpt", "zero"] = "gpt"
    """Start of a branch's last matrix: GPT's 0.02 / sqrt(2 layers), or zero."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    cut_residual: bool = False
    """Cut the residual stream's width over the mesh axis tensor, too: less memory, more traffic."""
    remat: Literal["nothing", "dots", "everything"] = "everything"
    """What a layer recomputes in the backward pass: nothing; all but its matrix products and its
    attention; all."""


@dataclass(frozen=True)
class Loss:
    scale_start: float = 1 / 0.07
    """exp(log_scale) at step 0; CLIP's value."""
    scale_max: float = 100.0
    form: Literal["dense", "streaming"] = "dense"
    """dense: each data shard holds its x against all candidates; streaming: a tile of that."""
    prefixes: tuple[int, ...] = ()
    """Widths of leading parts of the embedding that get the same loss (Matryoshka, 2205.13147)."""


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float
    embedding_learning_rate: float | None = None
    """For the token and position tables and token weights; None: `learning_rate`."""
    warmup_steps: int = 0
    final_share: float = 0.1
    """Learning rate at the last step, as a share of its peak."""
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of them may be -1: whatever the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Checkpoints:
    every_steps: int = 1000
    keep: int = 2


@dataclass(frozen=True)
class Evals:
    """What is measured every `every_steps` and at the end; the held-out pairs always are."""

    every_steps: int = 1000
    suites: tuple[Literal["linear_probe", "sts", "retrieval", "code_search", "open_qa"], ...] = ()
    """They need `data`."""
    data: str = ""
    """A folder with a folder for each suite."""


@dataclass(frozen=True)
class Baseline:
    """A second, cheaper run to stand beside this one: same data, tokenizer and all else."""

    name: str
    train_steps: int
    batching: Batching
    model: Model
    optimizer: Optimizer


@dataclass(frozen=True)
class Experiment:
    name: str
    train_steps: int
    data: Data
    tokenizer: Tokenizer
    batching: Batching
    model: Model
    optimizer: Optimizer
    loss: Loss = field(default_factory=Loss)
    mesh: Mesh = field(default_factory=Mesh)
    topology: str = ""
    """The machine it is made for, such as v5p:4x4x8; `tools/plan.py` compiles the step for it."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    seed: int = 0
    log_every_steps: int = 10
    evals: Evals = field(default_factory=Evals)
    baseline: Baseline | None = None
    """Trained first, in a folder inside this run's, and shown beside it."""


def validate(experiment: Experiment) -> Experiment:
    """Cross-checks that need no device. Returns the experiment; raises Refusal naming a field."""
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
            raise Refusal(f"{e.name}: {message}")
    baseline = derive_baseline(e)
    if baseline is not None:
        validate(baseline)
    return e


def derive_baseline(experiment: Experiment) -> Experiment | None:
    """The experiment of the baseline; None where there is none."""
    if experiment.baseline is None:
        return None
    changes = {f.name: getattr(experiment.baseline, f.name) for f in fields(Baseline)}
    return replace(experiment, **(changes | {"baseline": None}))


def shrink(experiment: Experiment) -> Experiment:
    """The same run with tiny sizes and embedded data (`--smoke`): every code path, a minute.

    Each mesh axis in use keeps two devices, so sharding is exercised as the experiment has it.
    """
    packages = ("argparse", "email", "json")
    baseline, few = experiment.baseline, min(len(experiment.loss.prefixes), 3)
    return replace(
        experiment,
        **_shrink_parts(experiment),
        data=Data(
            train=(PythonPackages(heldout_functions=20, packages=packages),),
            homogeneous=experiment.data.homogeneous,
            heldout=PythonPackages("heldout", heldout_functions=20, packages=packages),
        ),
        tokenizer=replace(
            experiment.tokenizer, vocabulary=600, x_tokens=16, y_tokens=48, model_file=None
        ),
        loss=replace(experiment.loss, prefixes=tuple(8 * (i + 1) for i in range(few))),
        mesh=Mesh(*(1 if size == 1 else 2 for size in dataclasses.astuple(experiment.mesh))),
        checkpoints=Checkpoints(every_steps=2),
        log_every_steps=1,
        evals=Evals(every_steps=2),
        baseline=baseline and replace(baseline, **_shrink_parts(baseline)),
    )


def _shrink_parts(part: Experiment | Baseline) -> dict[str, Any]:
    m, b = part.model, part.batching
    grouped = m.kv_heads is not None and m.kv_heads < m.heads
    return {
        "train_steps": 4,
        "batching": replace(
            b, pairs_per_batch=30, chunks=min(b.chunks, 2), row_tokens=64, rows_per_cell=None
        ),
        "model": replace(
            m,
            width=32,
            layers=min(m.layers, 2),
            heads=4,
            kv_heads=2 if grouped else None,
            mlp_width=64,
        ),
        "optimizer": replace(part.optimizer, warmup_steps=1),
    }


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; a Refusal becomes one line on stderr and exit code 2.

    So does what the machine refuses: a full disk, a folder without permission. Ctrl-C is told in
    one line too, with exit code 130.
    """
    try:
        main()
    except (Refusal, OSError) as refusal:
        print("jaxcpt:", " ".join(str(refusal).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("jaxcpt: interrupted", file=sys.stderr)
        sys.exit(130)
