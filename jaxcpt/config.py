"""The frozen `Experiment` tree: every setting of a run, with its default and its meaning.

The module knows neither files nor arrays nor devices. `checks.py` checks that the settings fit
together.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

# An experiment file imports every class that it needs from this module.
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


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """How texts become token ids."""

    vocabulary: int = 0
    """Rows of the token table, and the most pieces of a newly trained tokenizer. 0: taken from
    init_from."""
    kind: Literal["bpe", "unigram", "hugging_face"] = "bpe"
    """bpe and unigram: SentencePiece. hugging_face: `model_file` is a tokenizer.json."""
    delimiters: Literal["brackets", "own"] = "brackets"
    """The tokens before and after a text. brackets: `[` x `]` and `{` y `}` (paper, section 2.1).
    own: the template of the tokenizer's own model, such as [CLS] x [SEP]."""
    split_identifiers: bool = False
    """The tokenizer lower-cases all text, and splits parseDate and parse_date into words."""
    split_digits: bool = False
    """Make each digit a token of its own."""
    x_tokens: int = 512
    """Most tokens of an x, with its delimiters. A longer text is cut; it keeps its closing one.
    With `init_from`, 512 counts as left out, and stands for the limit of that model."""
    y_tokens: int = 512
    """Most tokens of a y, counted like x_tokens."""
    model_file: str | None = None
    """File of an existing tokenizer. None: train a new one on the training pairs."""
    x_prefix: str = ""
    """Text put before every x, in training and when a text is embedded; such as `query: `."""
    y_prefix: str = ""
    """Text put before every y and every hard negative."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text of either side."""
        return max(self.x_tokens, self.y_tokens)


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How pairs become packed global batches."""

    pairs_per_batch: int
    """Pairs in the global batch. Any number works; places that no pair fills are masked."""
    chunks: int = 1
    """Parts that are encoded one after another. The loss still covers the whole batch."""
    row_tokens: int = 512
    """Length of a packed row in tokens. If a cell then has less padding, rows are made shorter, or
    longer by at most a sixteenth."""
    rows_per_cell: int | None = None
    """Packed rows of one chunk of one data shard. None: measured on the training pairs."""
    pack: bool = True
    """True: put several texts into a row, so that few tokens are padding. False: one text a row."""
    negatives: int = 0
    """Number of hard negatives used from each pair. If a pair has fewer, the others are masked."""
    in_memory: bool = True
    """Tokenise all pairs once at the start, and draw one pair from each length bucket, so that
    batches have nearly equal token counts. False: read and tokenise batch by batch."""
    token_dropout: float = 0.0
    """Share of a text's inner tokens that is left out, chosen at random for each text and step."""


@dataclass(frozen=True, kw_only=True)
class WeightedMean:
    """Settings of mean pooling, for a model that starts as a weighted bag of tokens.

    The quickstart uses them; the paper does not.
    """

    token_weights: bool = False
    """Weight each token in the mean by exp(w), with a learnt number w for each vocabulary entry."""
    position_weights: bool = False
    """Weight each position in the mean by exp(w), with a learnt number w for each position."""
    embedding_scale: float = 1.0
    """Factor on the token embeddings, which sets their size relative to the layers' outputs."""
    residual_start: Literal["gpt", "zero"] = "gpt"
    """Initial values of the last matrix of attention and of the MLP. gpt: random, with the standard
    deviation 0.02 / sqrt(2 layers). zero: all 0, so that a layer first adds nothing."""


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How rotary positions are stretched, for models that were extended to longer texts."""

    kind: Literal["linear", "llama3"] = "linear"
    """linear: divide all positions by `factor`. llama3: divide only slow rotations (Llama 3.1)."""
    factor: float = 1.0
    """linear: positions are divided by it. llama3: the frequencies of slow rotations are."""
    low_frequency_factor: float = 1.0
    """llama3: rotations with a wavelength above original_tokens / this value are slow."""
    high_frequency_factor: float = 4.0
    """llama3: rotations with a wavelength below original_tokens / this value are not changed."""
    original_tokens: int = 8192
    """llama3: longest text before the extension."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The Transformer that encodes both sides of a pair."""

    width: int = 0
    """Width of the residual stream, which is also the size of the embedding. 0: the whole model is
    taken from init_from."""
    layers: int = 0
    """Number of Transformer layers. 0: no layers, which makes the model a bag of tokens."""
    heads: int = 0
    """Number of attention heads."""
    kv_heads: int | None = None
    """Key and value heads; fewer than `heads` means grouped-query attention. None: as `heads`."""
    head_width: int | None = None
    """Width of an attention head. None: width / heads."""
    mlp_width: int | None = None
    """Width inside the MLP. None: four times `width`."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """layernorm: subtract the mean, divide by the standard deviation. rmsnorm: divide by the root
    mean square."""
    norm_epsilon: float | None = None
    """Added to the variance. None: 1e-5 for layernorm and 1e-6 for rmsnorm."""
    norm_placement: Literal["pre", "post"] = "pre"
    """pre: norm the input of each branch (GPT). post: norm the stream after each branch (BERT)."""
    embedding_norm: bool = False
    """Norm the sum of the token and position embeddings (BERT)."""
    final_norm: bool = True
    """Norm the last hidden states. If False, longer hidden states weigh more in a mean."""
    parallel_residual: bool = False
    """Attention and MLP read the same input, and both results are added to it (GPT-NeoX). False:
    the MLP reads the sum after attention."""
    positions: Literal["learnt", "rotary"] = "learnt"
    """learnt: add a vector per position to the token embedding (GPT-2). rotary: rotate queries and
    keys by their position (RoPE, 2104.09864)."""
    position_rows: int | None = None
    """Rows of the learnt position table. None: as many as the longest text has tokens."""
    rotary_base: float = 10_000.0
    """Base of the rotary frequencies. The longest wavelength is about 2 pi times as many tokens."""
    rotary_share: float = 1.0
    """Share of each head's width that is rotated, from the first coordinate (GPT-NeoX: 0.25)."""
    rotary_scaling: RotaryScaling | None = None
    """None: positions are not stretched."""
    mlp: Literal["gelu", "gelu_exact", "relu", "swiglu"] = "gelu"
    """Activation of the MLP. gelu: the tanh approximation (GPT-2). gelu_exact: with the error
    function (BERT). swiglu: SiLU times a second product of the input (Llama)."""
    qk_norm: bool = False
    """Norm each head's query and key (Qwen3)."""
    biases: bool = True
    """Add a bias to each matrix product of a layer, and to each layernorm."""
    qkv_biases: bool | None = None
    """Add biases to query, key and value. None: the same as `biases`. Qwen2 has only these."""
    causal: bool = True
    """True: a token attends only to itself and earlier tokens. False: to the whole text (BERT)."""
    pooling: Literal["eos", "mean", "first"] = "eos"
    """Which hidden state becomes the embedding. eos: at the closing delimiter (paper, section 2.1).
    mean: the mean over the text. first: at the first token (BERT's [CLS]). A generative run does
    not pool; the contrastive run that starts from it sets this field."""
    weighted_mean: WeightedMean = field(default_factory=WeightedMean)
    """Settings of pooling by the mean."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations and matrix products. Trained parameters stay in float32."""
    cut_residual: bool = False
    """Shard the residual stream's width over the mesh axis `tensor`: less memory, more traffic."""
    remat: Literal["nothing", "dots", "everything"] = "everything"
    """What a layer recomputes in the backward pass. dots: everything except its matrix products
    and its attention."""

    @property
    def key_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        return self.width // max(self.heads, 1) if self.head_width is None else self.head_width

    @property
    def mlp_size(self) -> int:
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def has_qkv_biases(self) -> bool:
        return self.biases if self.qkv_biases is None else self.qkv_biases


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The contrastive loss over the global batch."""

    scale_start: float = 1 / 0.07
    """exp(log_scale), the factor on the similarities, at step 0. The default is CLIP's."""
    scale_max: float = 100.0
    """Upper limit of exp(log_scale)."""
    form: Literal["dense", "streaming"] = "dense"
    """dense: each data shard holds the similarities of its x with all candidates at once.
    streaming: the similarities are computed tile by tile, which takes less memory."""
    prefixes: tuple[int, ...] = ()
    """Shorter embedding widths that are trained too: the loss is also computed on the first so many
    coordinates (Matryoshka, 2205.13147)."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with a linear warmup and a cosine decay."""

    learning_rate: float
    """Peak learning rate, reached after the warmup."""
    embedding_learning_rate: float | None = None
    """Peak learning rate of the token and position tables and of their weights in the mean. None:
    `learning_rate`."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly to its peak. The first step has
    learning_rate / (warmup_steps + 1)."""
    final_share: float = 0.1
    """Learning rate at the last step, as a share of its peak."""
    weight_decay: float = 0.1
    """Weight decay of the layers' weight matrices. Other parameters do not decay."""
    b1: float = 0.9
    """Adam's decay rate for the mean of gradients."""
    b2: float = 0.98
    """Adam's decay rate for the mean of squared gradients."""
    eps: float = 1e-8
    """Adam's constant in the denominator."""
    clip_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it."""


@dataclass(frozen=True)
class Mesh:
    """Number of devices along each axis. One axis may be -1: it takes all remaining devices."""

    data: int = -1
    """Groups of devices that divide the batch. Each group holds a whole copy of the model."""
    fsdp: int = 1
    """Devices that divide the batch, the parameters and the optimizer state among themselves."""
    tensor: int = 1
    """Devices that divide the heads, the MLP width and the vocabulary among themselves."""


@dataclass(frozen=True)
class InitFrom:
    """Another model, whose parameters and tokenizer the run starts from.

    Fields of `model` and `tokenizer` that keep their defaults are taken from that model. Other
    fields must agree with it, except x_tokens, y_tokens, and pooling after a generative run.
    compute_dtype, remat and cut_residual say how this run computes, and are never taken from that
    model.
    """

    run: str
    """A run folder, a Hugging Face folder, or `package:NAME/PATH` for a folder in an installed
    package. A Hugging Face folder is imported into the new run first."""
    step: int | None = None
    """Checkpoint of a run folder. None: the newest whole one."""
    fingerprint: str | None = None
    """sha256 of the checkpoint to start from; another checkpoint is refused. None: any checkpoint,
    whose sha256 the run then records here."""
    prepare: str = ""
    """The command that creates the run folder. It is shown if the folder is missing."""


@dataclass(frozen=True)
class Adapter:
    """Low-rank adapters on frozen weights (LoRA, arXiv 2106.09685).

    A target W becomes W + alpha / rank * A B. The parameters of `init_from` are frozen and stored
    in bfloat16; A, B and the temperature are trained.
    """

    rank: int
    """Columns of A and rows of B."""
    alpha: float = 16.0
    """The product A B is scaled by alpha / rank, so that the learning rate need not change with the
    rank."""
    targets: tuple[str, ...] = ("query", "value")
    """Weights of each layer to adapt: query, key, value, out, up, gate, down. The default is that
    of the LoRA paper. For a 7B model at rank 16, the optimizer state of all seven takes 2.4 % of
    the base's bytes; that of the default takes 0.5 %."""


@dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are saved, and how many are kept."""

    every_steps: int = 1000
    """Save a checkpoint every so many steps, and at the end."""
    keep: int = 2
    """How many of the newest checkpoints are kept."""


@dataclass(frozen=True, kw_only=True)
class Safety:
    """When a run stops by itself. These values may change when a run is resumed."""

    max_bad_steps: int = 3
    """A step whose loss or gradient is not finite changes nothing. After this many such steps in a
    row, the run stops. `jaxcpt replay` then shows where the first of them went wrong."""
    hang_seconds: float | None = None
    """If a step takes longer, the process prints the stacks of its threads and exits with code 3.
    None: 20 times the median step, but at least 600 seconds. Evals and saves have no limit. The
    first step may take an hour."""


SuiteName = Literal["linear_probe", "sts", "retrieval", "code_search", "open_qa"]
"""The names of `evals.suites.SUITES`. They are listed here too, because config imports nothing."""


@dataclass(frozen=True, kw_only=True)
class Evals:
    """What is measured during the run and at its end. The held-out pairs are always measured."""

    every_steps: int = 1000
    """Evaluate every so many steps, and at the end."""
    suites: tuple[SuiteName, ...] = ()
    """Evaluation suites of the paper to score as well. They need `data`."""
    data: str = ""
    """A folder that holds one folder for each suite."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A cheaper run for comparison. All settings that are not listed here are those of the run."""

    name: str
    """Name of the baseline in tables. Its folder in the run folder is always `baseline`."""
    train_steps: int
    """Steps of training."""
    batching: Batching
    """Its batches."""
    model: Model
    """Its model."""
    optimizer: Optimizer
    """Its optimizer."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Every value of a run."""

    name: str
    """Name of the run, and of its folder in runs/."""
    train_steps: int
    """Steps of training. 0: an imported model, which was not trained here and has no data."""
    data: Data
    """Where the pairs come from."""
    batching: Batching
    """How pairs become batches."""
    optimizer: Optimizer
    """AdamW and its learning rate over the steps."""
    objective: Literal["contrastive", "generative"] = "contrastive"
    """contrastive: embed both texts of each pair. generative: predict each next token of both
    texts, with the token table as output layer. A contrastive run can start from it (init_from)."""
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    """How texts become token ids. If left out, it is taken from `init_from`."""
    model: Model = field(default_factory=Model)
    """The Transformer. If left out, it is taken from `init_from`."""
    init_from: InitFrom | None = None
    """The model to start from. None: start from random parameters."""
    adapter: Adapter | None = None
    """Train adapters on the parameters of `init_from`. None: train all parameters."""
    loss: Loss = field(default_factory=Loss)
    """The contrastive loss. The loss of a generative run has no settings."""
    mesh: Mesh = field(default_factory=Mesh)
    """How the devices share the work."""
    topology: str = ""
    """The machine for which `jaxcpt plan` compiles the step, such as v5p:4x4x8."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """When checkpoints are saved."""
    safety: Safety = field(default_factory=Safety)
    """When the run stops by itself."""
    seed: int = 0
    """Seed of the initial parameters and of the order of pairs."""
    log_every_steps: int = 10
    """Log the metrics every so many steps."""
    evals: Evals = field(default_factory=Evals)
    """What is measured during the run."""
    baseline: Baseline | None = None
    """A cheaper run for comparison. It is trained first, in a folder inside this run's folder."""


def derive_baseline(experiment: Experiment) -> Experiment | None:
    """The experiment of the baseline; None if the experiment has no baseline."""
    if experiment.baseline is None:
        return None
    changes = {f.name: getattr(experiment.baseline, f.name) for f in fields(Baseline)}
    return replace(experiment, **(changes | {"baseline": None, "init_from": None, "adapter": None}))
