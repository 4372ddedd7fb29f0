"""The frozen `Experiment` tree: every value of a run, its defaults, and what must fit together.

It knows neither files nor arrays nor devices: what depends on those is checked where it is known.
What a user can get wrong anywhere in the package is raised as `UserError`.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

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
    """The machine it is made for, such as v5p:4x4x8; `jaxcpt plan` compiles the step for it."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    seed: int = 0
    log_every_steps: int = 10
    evals: Evals = field(default_factory=Evals)
    baseline: Baseline | None = None
    """Trained first, in a folder inside this run's, and shown beside it."""


def derive_baseline(experiment: Experiment) -> Experiment | None:
    """The experiment of the baseline; None where there is none."""
    if experiment.baseline is None:
        return None
    changes = {f.name: getattr(experiment.baseline, f.name) for f in fields(Baseline)}
    return replace(experiment, **(changes | {"baseline": None}))
