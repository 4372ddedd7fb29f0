"""How Hugging Face writes each family of models: its options, its tensors and their axes.

In: the values of a config.json. Out: a `config.Model`, and a `Rule` for each tensor, which names
our parameter in it. Letters of axes are those of the package docstring. Each word of letters is one
axis of the tensor, so "hk d" is a matrix with heads x head width rows. The module knows neither
files nor arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxcpt.config import Model, RotaryScaling
from jaxcpt.errors import UserError


class Rule(NamedTuple):
    """What a tensor holds: one of our parameters, or several of them along the axis `c`."""

    parameters: tuple[str, ...]
    """The paths of our parameters."""
    letters: str
    """The letters of the tensor's axes, with a space between axes."""


Rules = dict[str, Rule]
"""Rules by the name of the tensor, in which {i} is the number of the layer, from 0."""


def linear(name: str, ours: str, letters: str, bias: str = "") -> Rules:
    """The rules of a matrix and its bias. bias: letters of the bias; empty if it has none."""
    parts = [f"blocks/{part}" for part in ours.split()]
    rules = {f"{name}.weight": Rule(tuple(parts), letters)}
    if bias:
        rules[f"{name}.bias"] = Rule(tuple(f"{part}_bias" for part in parts), bias)
    return rules


def norm(name: str, ours: str, letter: str = "d", bias: bool = False) -> Rules:
    rules = {f"{name}.weight": Rule((f"{ours}/scale",), letter)}
    return rules | ({f"{name}.bias": Rule((f"{ours}/bias",), letter)} if bias else {})


BERT_RULES: Rules = {
    "embeddings.word_embeddings.weight": Rule(("tokens",), "v d"),
    "embeddings.position_embeddings.weight": Rule(("positions",), "l d"),
    **norm("embeddings.LayerNorm", "embedding_norm", bias=True),
    **linear("encoder.layer.{i}.attention.self.query", "query", "hk d", "hk"),
    **linear("encoder.layer.{i}.attention.self.key", "key", "jk d", "jk"),
    **linear("encoder.layer.{i}.attention.self.value", "value", "jk d", "jk"),
    **linear("encoder.layer.{i}.attention.output.dense", "out", "d hk", "d"),
    **norm("encoder.layer.{i}.attention.output.LayerNorm", "blocks/attention_norm", bias=True),
    **linear("encoder.layer.{i}.intermediate.dense", "up", "f d", "f"),
    **linear("encoder.layer.{i}.output.dense", "down", "d f", "d"),
    **norm("encoder.layer.{i}.output.LayerNorm", "blocks/mlp_norm", bias=True),
}
GPT2_RULES: Rules = {
    "wte.weight": Rule(("tokens",), "v d"),
    "wpe.weight": Rule(("positions",), "l d"),
    **norm("h.{i}.ln_1", "blocks/attention_norm", bias=True),
    **linear("h.{i}.attn.c_attn", "query key value", "d chk", "chk"),
    **linear("h.{i}.attn.c_proj", "out", "hk d", "d"),
    **norm("h.{i}.ln_2", "blocks/mlp_norm", bias=True),
    **linear("h.{i}.mlp.c_fc", "up", "d f", "f"),
    **linear("h.{i}.mlp.c_proj", "down", "f d", "d"),
    **norm("ln_f", "final_norm", bias=True),
}
GPT_NEOX_RULES: Rules = {
    "embed_in.weight": Rule(("tokens",), "v d"),
    **norm("layers.{i}.input_layernorm", "blocks/attention_norm", bias=True),
    **linear("layers.{i}.attention.query_key_value", "query key value", "hck d", "hck"),
    **linear("layers.{i}.attention.dense", "out", "d hk", "d"),
    **norm("layers.{i}.post_attention_layernorm", "blocks/mlp_norm", bias=True),
    **linear("layers.{i}.mlp.dense_h_to_4h", "up", "f d", "f"),
    **linear("layers.{i}.mlp.dense_4h_to_h", "down", "d f", "d"),
    **norm("final_layer_norm", "final_norm", bias=True),
}
LLAMA_RULES: Rules = {
    "embed_tokens.weight": Rule(("tokens",), "v d"),
    **norm("layers.{i}.input_layernorm", "blocks/attention_norm"),
    **linear("layers.{i}.self_attn.q_proj", "query", "hk d"),
    **linear("layers.{i}.self_attn.k_proj", "key", "jk d"),
    **linear("layers.{i}.self_attn.v_proj", "value", "jk d"),
    **linear("layers.{i}.self_attn.o_proj", "out", "d hk"),
    **norm("layers.{i}.post_attention_layernorm", "blocks/mlp_norm"),
    **linear("layers.{i}.mlp.gate_proj", "gate", "f d"),
    **linear("layers.{i}.mlp.up_proj", "up", "f d"),
    **linear("layers.{i}.mlp.down_proj", "down", "d f"),
    **norm("norm", "final_norm"),
}
QWEN2_RULES: Rules = {
    **LLAMA_RULES,
    "layers.{i}.self_attn.q_proj.bias": Rule(("blocks/query_bias",), "hk"),
    "layers.{i}.self_attn.k_proj.bias": Rule(("blocks/key_bias",), "jk"),
    "layers.{i}.self_attn.v_proj.bias": Rule(("blocks/value_bias",), "jk"),
}
QWEN3_RULES: Rules = {
    **LLAMA_RULES,
    **norm("layers.{i}.self_attn.q_norm", "blocks/query_norm", "k"),
    **norm("layers.{i}.self_attn.k_norm", "blocks/key_norm", "k"),
}


class Options:
    """The values of a config.json. Reading a value that does not fit raises UserError."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number above 0. An absent value or null gives the default, if there is one."""
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or value <= 0:
            raise UserError(f"{self.where}: {name}: expected a number above 0, found {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.where}: {name}: expected a number, found {value!r}")
        return float(value)

    def choose(self, name: str, default: Any, *allowed: Any) -> Any:
        """One of the values `allowed`. An absent value or null gives the default."""
        value = self.values.get(name)
        value = default if value is None else value
        if not any(value is option or value == option for option in allowed):
            supported = ", ".join(map(repr, allowed))
            raise UserError(
                f"{self.where}: {name}: {value!r} is not supported; there is {supported}"
            )
        return value


ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}


def read_bert(o: Options) -> Model:
    o.choose("position_embedding_type", "absolute", "absolute")
    o.choose("is_decoder", False, False)
    o.choose("add_cross_attention", False, False)
    return Model(
        width=o.size("hidden_size"),
        layers=o.size("num_hidden_layers"),
        heads=o.size("num_attention_heads"),
        mlp_width=o.size("intermediate_size"),
        norm_epsilon=o.number("layer_norm_eps", 1e-12),
        norm_placement="post",
        embedding_norm=True,
        final_norm=False,
        position_rows=o.size("max_position_embeddings"),
        mlp=ACTIVATIONS[o.choose("hidden_act", "gelu", *ACTIVATIONS)],
        causal=False,
    )


def read_roberta(o: Options) -> Model:
    rows = o.size("max_position_embeddings") - count_padding_rows(o)
    return replace(read_bert(o), position_rows=rows)


def count_padding_rows(o: Options) -> int:
    """The number of rows in RoBERTa's position table before that of a text's first token."""
    return int(o.number("pad_token_id", 1)) + 1


def read_gpt2(o: Options) -> Model:
    o.choose("scale_attn_weights", True, True)
    o.choose("scale_attn_by_inverse_layer_idx", False, False)
    o.choose("add_cross_attention", False, False)
    width = o.size("n_embd")
    return Model(
        width=width,
        layers=o.size("n_layer"),
        heads=o.size("n_head"),
        mlp_width=o.size("n_inner", 4 * width),
        norm_epsilon=o.number("layer_norm_epsilon", 1e-5),
        position_rows=o.size("n_positions"),
        mlp=ACTIVATIONS[o.choose("activation_function", "gelu_new", *ACTIVATIONS)],
        causal=is_causal(o),
    )


def read_gpt_neox(o: Options) -> Model:
    o.choose("attention_bias", True, True)
    rope = read_rope(o, "rotary_emb_base")
    return Model(
        width=o.size("hidden_size"),
        layers=o.size("num_hidden_layers"),
        heads=o.size("num_attention_heads"),
        mlp_width=o.size("intermediate_size"),
        norm_epsilon=o.number("layer_norm_eps", 1e-5),
        parallel_residual=o.choose("use_parallel_residual", True, True, False),
        positions="rotary",
        rotary_base=rope.number("rope_theta", 10_000.0),
        rotary_share=rope.number("partial_rotary_factor", o.number("rotary_pct", 0.25)),
        rotary_scaling=read_scaling(rope),
        mlp=ACTIVATIONS[o.choose("hidden_act", "gelu", *ACTIVATIONS)],
        causal=is_causal(o),
    )


def read_llama(o: Options) -> Model:
    """The model of a Llama or Mistral config.json."""
    o.choose("attention_bias", False, False)
    o.choose("mlp_bias", False, False)
    o.choose("hidden_act", "silu", "silu")
    rope = read_rope(o, "rope_theta")
    rope.choose("partial_rotary_factor", 1.0, 1.0)
    for kind in o.values.get("layer_types") or ():
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(f"{o.where}: layer_types: {kind!r} is not supported")
    return Model(
        width=o.size("hidden_size"),
        layers=o.size("num_hidden_layers"),
        heads=(heads := o.size("num_attention_heads")),
        kv_heads=o.size("num_key_value_heads", heads),
        head_width=o.size("head_dim", max(o.size("hidden_size") // heads, 1)),
        mlp_width=o.size("intermediate_size"),
        norm="rmsnorm",
        norm_epsilon=o.number("rms_norm_eps", 1e-6),
        positions="rotary",
        rotary_base=rope.number("rope_theta", 10_000.0),
        rotary_scaling=read_scaling(rope),
        mlp="swiglu",
        biases=False,
        causal=is_causal(o),
    )


def read_qwen2(o: Options) -> Model:
    return replace(read_llama(o), qkv_biases=True)


def read_qwen3(o: Options) -> Model:
    return replace(read_llama(o), qk_norm=True)


def is_causal(o: Options) -> bool:
    """Whether a token attends only to earlier ones. Some embedding models attend to all."""
    return o.choose("is_causal", True, True, False)


def read_rope(o: Options, base: str) -> Options:
    """The options of rotary positions.

    New files have all of them in `rope_parameters`. Old files have `rope_scaling`, and the base
    beside it.
    """
    original = "original_max_position_embeddings"
    values: dict[str, Any] = {
        "rope_theta": o.values.get(base),
        original: o.values.get(original, o.values.get("max_position_embeddings")),
    }
    for name in ("rope_scaling", "rope_parameters"):
        found = o.values.get(name) or {}
        if not isinstance(found, dict):
            raise UserError(f"{o.where}: {name}: expected options by name, found {found!r}")
        values |= found
    values["rope_type"] = values.get("rope_type", values.get("type"))
    return Options(values, f"{o.where}: rope")


def read_scaling(rope: Options) -> RotaryScaling | None:
    kind = rope.choose("rope_type", "default", "default", "linear", "llama3")
    if kind == "default":
        return None
    factor = rope.number("factor", 1.0)
    if kind == "linear":
        return RotaryScaling(kind="linear", factor=factor)
    return RotaryScaling(
        kind="llama3",
        factor=factor,
        low_frequency_factor=rope.number("low_freq_factor", 1.0),
        high_frequency_factor=rope.number("high_freq_factor", 4.0),
        original_tokens=rope.size("original_max_position_embeddings"),
    )


@dataclass(frozen=True, kw_only=True)
class Family:
    prefix: str
    """Prefix of the names of tensors in folders of a model with a head."""
    rules: Rules
    read: Callable[[Options], Model]
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that embeddings do not need: heads, and buffers of old versions."""
    token_types: str = ""
    """A tensor whose first row is added to every position."""
    position_offset: Callable[[Options], int] = lambda _: 0
    """The number of rows in the position table before that of the first token."""
    window: Callable[[Options], int | None] = lambda _: None
    """To how many tokens each token attends; None: to its whole text."""


def find_mistral_window(o: Options) -> int | None:
    if "sliding_window" in o.values and o.values["sliding_window"] is None:
        return None
    return o.size("sliding_window", 4096)


def find_qwen_window(o: Options) -> int | None:
    return find_mistral_window(o) if o.choose("use_sliding_window", False, True, False) else None


HEADS = ("lm_head.*", "score.*", "classifier.*", "qa_outputs.*")
_BERT = Family(
    prefix="bert.",
    rules=BERT_RULES,
    read=read_bert,
    ignored=(*HEADS, "pooler.*", "cls.*", "embeddings.position_ids"),
    token_types="embeddings.token_type_embeddings.weight",
)
_ROBERTA = replace(_BERT, prefix="roberta.", read=read_roberta, position_offset=count_padding_rows)
_LLAMA = Family(
    prefix="model.",
    rules=LLAMA_RULES,
    read=read_llama,
    ignored=(*HEADS, "layers.*.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"),
)
FAMILIES = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "gpt2": Family(
        prefix="transformer.",
        rules=GPT2_RULES,
        read=read_gpt2,
        ignored=(*HEADS, "h.*.attn.bias", "h.*.attn.masked_bias", "multiple_choice_head.*"),
    ),
    "gpt_neox": Family(
        prefix="gpt_neox.",
        rules=GPT_NEOX_RULES,
        read=read_gpt_neox,
        ignored=(
            *HEADS,
            "embed_out.*",
            "layers.*.attention.bias",
            "layers.*.attention.masked_bias",
            "layers.*.attention.rotary_emb.inv_freq",
            "rotary_emb.inv_freq",
        ),
    ),
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, window=find_mistral_window),
    "qwen2": replace(_LLAMA, rules=QWEN2_RULES, read=read_qwen2, window=find_qwen_window),
    "qwen3": replace(_LLAMA, rules=QWEN3_RULES, read=read_qwen3, window=find_qwen_window),
}
REFUSED = {"modernbert": "its layers alternate between local and global attention"}


def find_family(o: Options) -> Family:
    """The family that `model_type` names. Raises UserError if it is not supported."""
    name = o.values.get("model_type")
    if name in REFUSED:
        raise UserError(f"{o.where}: model_type: {name} is not supported: {REFUSED[name]}")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{o.where}: model_type: {name!r} is not supported; there are {', '.join(FAMILIES)}"
        )
    if "auto_map" in o.values:
        raise UserError(
            f"{o.where}: auto_map: the model needs its own code, which is not run; "
            f"only the standard form of {name} is supported"
        )
    return FAMILIES[name]
