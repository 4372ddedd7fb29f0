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


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """How texts become token ids."""

    vocabulary: int = 0
    """Rows of the token table, and pieces that a new tokenizer is trained to have at most. 0: taken
    from init_from."""
    kind: Literal["bpe", "unigram", "hugging_face"] = "bpe"
    """bpe and unigram: SentencePiece. hugging_face: `model_file` is a tokenizer.json."""
    delimiters: Literal["brackets", "own"] = "brackets"
    """What stands round a text. brackets: `[` x `]` and `{` y `}` (paper, section 2.1). own: the
    template of the model that the tokenizer belongs to, such as [CLS] x [SEP]."""
    split_identifiers: bool = False
    """Lower-case, and cut parseDate and parse_date into words, inside the model's normaliser."""
    split_digits: bool = False
    """Make each digit a token of its own."""
    x_tokens: int = 512
    """Longest x, delimiters included. A longer text is cut and keeps its closing delimiter."""
    y_tokens: int = 512
    """Longest y, counted like x_tokens."""
    model_file: str | None = None
    """A tokenizer made earlier. None: train one on the training pairs."""
    x_prefix: str = ""
    """Put before every x, in training and wherever a text is embedded, such as `query: `."""
    y_prefix: str = ""
    """Put before every y and hard negative."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text of either side."""
        return max(self.x_tokens, self.y_tokens)


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How pairs become packed global batches."""

    pairs_per_batch: int
    """Pairs in the global batch. The number need not divide anything; the remainder is masked."""
    chunks: int = 1
    """Parts that are encoded one after another. The loss still sees the whole batch (update.py)."""
    row_tokens: int = 512
    """Length of a packed row. Rows are shorter where that leaves less padding in a cell."""
    rows_per_cell: int | None = None
    """Packed rows of a (data shard, chunk) cell. None: measured on the training pairs."""
    pack: bool = True
    """Put several texts into a row, so that hardly any token is padding. False: one text a row."""
    negatives: int = 0
    """Hard negatives taken from each pair. Where a pair has fewer, the rest is masked."""
    in_memory: bool = True
    """Tokenise all pairs once at the start, and draw one pair from each length bucket, so that
    batches have nearly equal token counts. False: read and tokenise batch by batch."""
    token_dropout: float = 0.0
    """Share of inner tokens left out, drawn anew for each text and step."""


@dataclass(frozen=True, kw_only=True)
class WeightedMean:
    """Settings for a model that starts as a bag of weighted subwords and is pooled by the mean.

    The quickstart uses them; the paper does not.
    """

    token_weights: bool = False
    """Weight each token in the mean by exp of a number learnt per vocabulary entry."""
    position_weights: bool = False
    """Weight each position in the mean by exp of a number learnt per position."""
    embedding_scale: float = 1.0
    """Factor on the token embeddings: how large they are beside what the layers add to them."""
    residual_start: Literal["gpt", "zero"] = "gpt"
    """Initial last matrix of each layer's two branches: GPT's 0.02 / sqrt(2 layers), or zero."""


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """Stretches rotary positions, for models that were extended to longer texts."""

    kind: Literal["linear", "llama3"] = "linear"
    """linear: divide all positions by `factor`. llama3: divide only slow rotations (Llama 3.1)."""
    factor: float = 1.0
    """Positions are divided by it (linear); so are slow rotations (llama3)."""
    low_frequency_factor: float = 1.0
    """llama3: wavelengths above original_tokens / this are divided by `factor`."""
    high_frequency_factor: float = 4.0
    """llama3: wavelengths below original_tokens / this stay as they are."""
    original_tokens: int = 8192
    """llama3: longest text before the extension."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The Transformer that encodes both sides of a pair."""

    width: int = 0
    """Width of the residual stream, which is also the size of the embedding. 0: the whole model is
    taken from init_from."""
    layers: int = 0
    """Number of Transformer layers. 0: a bag of tokens."""
    heads: int = 0
    """Number of attention heads."""
    kv_heads: int | None = None
    """Fewer than `heads` for grouped-query attention. None: as many."""
    head_width: int | None = None
    """Width of an attention head. None: width / heads."""
    mlp_width: int | None = None
    """None: four times the width."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """layernorm: subtract the mean and divide by the deviation. rmsnorm: only divide."""
    norm_epsilon: float | None = None
    """Added to the variance. None: 1e-5 for layernorm and 1e-6 for rmsnorm."""
    norm_placement: Literal["pre", "post"] = "pre"
    """pre: norm the input of each branch (GPT). post: norm the stream after each branch (BERT)."""
    embedding_norm: bool = False
    """Norm the sum of the token and position embeddings (BERT)."""
    final_norm: bool = True
    """Norm the last hidden state. If False, longer hidden states weigh more in a mean."""
    parallel_residual: bool = False
    """Attention and MLP read the same input, and both results are added to it (GPT-NeoX)."""
    positions: Literal["learnt", "rotary"] = "learnt"
    """learnt: add a vector per position to the token embedding (GPT-2). rotary: rotate queries and
    keys by their position (RoPE, 2104.09864)."""
    position_rows: int | None = None
    """Rows of the learnt position table. None: as many as the longest text has tokens."""
    rotary_base: float = 10_000.0
    """The slowest rotation has a wavelength near 2 pi times this number of tokens."""
    rotary_share: float = 1.0
    """Leading share of each head's width that is rotated (GPT-NeoX: 0.25)."""
    rotary_scaling: RotaryScaling | None = None
    """None: positions are not stretched."""
    mlp: Literal["gelu", "gelu_exact", "relu", "swiglu"] = "gelu"
    """gelu: the tanh approximation (GPT-2). gelu_exact: by the error function (BERT)."""
    qk_norm: bool = False
    """Norm each head's query and key (Qwen3)."""
    biases: bool = True
    """Add a bias to each matrix product of a layer, and to each layernorm."""
    qkv_biases: bool | None = None
    """Biases of query, key and value. None: as `biases` (Qwen2 has these alone)."""
    causal: bool = True
    """A token attends only to itself and earlier tokens. False: to the whole text (BERT)."""
    pooling: Literal["eos", "mean", "first"] = "eos"
    """eos: hidden state at the closing delimiter (paper, section 2.1). mean: over the text. first:
    at the text's first token (BERT's [CLS]). A generative run pools nothing: the contrastive run
    that starts from it chooses."""
    weighted_mean: WeightedMean = field(default_factory=WeightedMean)
    """Settings of the mean that pools a text."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations and matrix products. Parameters stay in float32."""
    cut_residual: bool = False
    """Cut the residual stream's width over the mesh axis tensor too: less memory, more traffic."""
    remat: Literal["nothing", "dots", "everything"] = "everything"
    """What a layer recomputes in the backward pass: nothing; everything but its matrix products
    and its attention; everything."""

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
    """exp(log_scale) at step 0; CLIP's value."""
    scale_max: float = 100.0
    """Upper limit of exp(log_scale)."""
    form: Literal["dense", "streaming"] = "dense"
    """dense: each data shard holds the similarities of its x with all candidates. streaming:
    computes the similarity matrix tile by tile."""
    prefixes: tuple[int, ...] = ()
    """Widths of leading parts of the embedding that get the same loss (Matryoshka, 2205.13147)."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with a linear warmup and a cosine decay."""

    learning_rate: float
    """Peak learning rate, reached after the warmup."""
    embedding_learning_rate: float | None = None
    """For the token and position tables and their weights in the mean. None: `learning_rate`."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from 0 to its peak."""
    final_share: float = 0.1
    """Learning rate at the last step, as a share of its peak."""
    weight_decay: float = 0.1
    """Applied to the weight matrices of the layers alone."""
    b1: float = 0.9
    """Adam's decay rate of the mean gradient."""
    b2: float = 0.98
    """Adam's decay rate of the mean squared gradient."""
    eps: float = 1e-8
    """Adam's constant in the denominator."""
    clip_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it."""


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis. One axis may be -1: it takes the devices that the others leave."""

    data: int = -1
    """Data shards that each hold the whole model, up to what fsdp and tensor cut."""
    fsdp: int = 1
    """Data shards that cut the parameters and the optimizer state among them."""
    tensor: int = 1
    """Devices that cut heads, MLP width and vocabulary among them."""


@dataclass(frozen=True)
class InitFrom:
    """Start from the parameters and the tokenizer of another model instead of random numbers.

    Fields of `model` and `tokenizer` that an experiment leaves at their defaults are taken from
    that model. Others must agree with it, except those that only this run decides: the longest
    texts, the compute dtype, remat and cut_residual.
    """

    run: str
    """A run folder, a Hugging Face folder, or `package:NAME/PATH` for a folder in an installed
    package. A Hugging Face folder is imported into the new run first."""
    step: int | None = None
    """Checkpoint of a run folder. None: the newest whole one."""
    fingerprint: str | None = None
    """sha256 of the checkpoint that the run started from. None: the run records it; if you state
    it, the checkpoint must have it."""
    prepare: str = ""
    """The command that makes the run folder, shown when it is missing."""


@dataclass(frozen=True)
class Adapter:
    """Low-rank adapters on frozen weights (LoRA, arXiv 2106.09685).

    A target W becomes W + alpha / rank * A B. The parameters of `init_from` are frozen and stored
    in bfloat16; A, B and the temperature are trained.
    """

    rank: int
    """Columns of A and rows of B."""
    alpha: float = 16.0
    """The product A B is scaled by alpha / rank, so that another rank needs no other rate."""
    targets: tuple[str, ...] = ("query", "value")
    """Weights of each layer to adapt: query, key, value, out, up, gate, down. The default is that
    of the paper. All seven of a 7B model at rank 16 have an optimizer state of 2.4 % of the base's
    bytes; the default has 0.5 %."""


@dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are saved, and how many are kept."""

    every_steps: int = 1000
    """A checkpoint is saved every so many steps, and at the end."""
    keep: int = 2
    """Newest checkpoints that are kept."""


@dataclass(frozen=True, kw_only=True)
class Safety:
    """When a run ends itself. A resumed run may have other values here than before."""

    max_bad_steps: int = 3
    """A step whose loss or gradient is not finite changes nothing. After so many in a row the run
    stops; `jaxcpt replay` then shows where the first of them went wrong."""
    hang_seconds: float | None = None
    """A step that takes longer ends the process with the stacks of its threads and exit code 3.
    None: 20 times the median step, at least 600. Evals and saves may take any time, and the
    first step may take an hour."""


SuiteName = Literal["linear_probe", "sts", "retrieval", "code_search", "open_qa"]
"""The names of `evals.suites.SUITES`. They are listed here too, because config imports nothing."""


@dataclass(frozen=True, kw_only=True)
class Evals:
    """What is measured every `every_steps` and at the end; the held-out pairs always are."""

    every_steps: int = 1000
    """An evaluation runs every so many steps, and at the end."""
    suites: tuple[SuiteName, ...] = ()
    """Suites of the paper that a run scores itself on; they need `data`."""
    data: str = ""
    """A folder that holds one folder for each suite."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A second, cheaper run to stand beside this one: same data, tokenizer and all else."""

    name: str
    """Name of the baseline in tables and in its folder."""
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
    """Name of the run, and of its folder below runs/."""
    train_steps: int
    """Steps of training. 0: an imported model, which has no data of its own."""
    data: Data
    """Where the pairs come from."""
    batching: Batching
    """How pairs become batches."""
    optimizer: Optimizer
    """AdamW and its schedule."""
    objective: Literal["contrastive", "generative"] = "contrastive"
    """contrastive: embed both texts of each pair. generative: predict the next token of each text
    of each pair, by the token table; for a start that a contrastive run takes by `init_from`."""
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    """Left out: taken from `init_from`."""
    model: Model = field(default_factory=Model)
    """Left out: taken from `init_from`."""
    init_from: InitFrom | None = None
    """None: start from random parameters."""
    adapter: Adapter | None = None
    """Train adapters on the parameters of `init_from`. None: train all parameters."""
    loss: Loss = field(default_factory=Loss)
    """The contrastive loss. A generative run has no settings of its loss."""
    mesh: Mesh = field(default_factory=Mesh)
    """How the devices share the work."""
    topology: str = ""
    """The machine it is made for, such as v5p:4x4x8; `jaxcpt plan` compiles the step for it."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """When checkpoints are saved."""
    safety: Safety = field(default_factory=Safety)
    """When the run ends itself."""
    seed: int = 0
    """Seed of the initial parameters and of the order of pairs."""
    log_every_steps: int = 10
    """Metrics are logged every so many steps."""
    evals: Evals = field(default_factory=Evals)
    """What is measured during the run."""
    baseline: Baseline | None = None
    """Trained first, in a folder inside this run's, and shown beside it."""


def derive_baseline(experiment: Experiment) -> Experiment | None:
    """The experiment of the baseline; None where there is none."""
    if experiment.baseline is None:
        return None
    changes = {f.name: getattr(experiment.baseline, f.name) for f in fields(Baseline)}
    return replace(experiment, **(changes | {"baseline": None, "init_from": None, "adapter": None}))
