"""Finds the config.json of a Hugging Face family that computes the same as a `config.Model`.

In: a `config.Model`. Out: the values of a config.json. Each family proposes the config.json that
is most similar to the model. The proposal is used only if `families` reads the same model back from
it, so a family need not know which models it fits. The module knows no tensors.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from jaxcpt.config import Model, RotaryScaling
from jaxcpt.errors import UserError
from jaxcpt.interop.families import FAMILIES, Options

ACTIVATIONS = {"gelu": "gelu_new", "gelu_exact": "gelu", "relu": "relu", "swiglu": "silu"}


def choose_config(model: Model, vocabulary: int, longest: int) -> dict[str, Any]:
    """The config.json of the first family that computes this model.

    longest: tokens of the longest text. If there is no such family, raises UserError that names the
    most similar family and the fields that differ.
    """
    rows = model.position_rows or longest
    wanted = resolve(replace(model, position_rows=rows))
    nearest: tuple[str, list[str]] | None = None
    for family, propose in PROPOSALS.items():
        values = propose(wanted, longest) | {"model_type": family, "vocab_size": vocabulary}
        try:
            found = resolve(FAMILIES[family].read(Options(values, family)))
        except UserError:  # such as for an activation that the family does not have
            continue
        differing = _compare(wanted, found)
        if not differing:
            return values
        if nearest is None or len(differing) < len(nearest[1]):
            nearest = family, differing
    assert nearest is not None
    raise UserError(
        f"no Hugging Face architecture computes this model; the nearest, {nearest[0]}, differs "
        f"in {', '.join(nearest[1])}; export with --format safetensors"
    )


def resolve(model: Model) -> Model:
    """The model with explicit sizes, and with defaults in the fields that no config.json has."""
    epsilon = 1e-5 if model.norm == "layernorm" else 1e-6
    is_rotary = model.positions == "rotary"
    return replace(
        model,
        kv_heads=model.key_heads,
        head_width=model.head_size,
        mlp_width=model.mlp_size,
        norm_epsilon=epsilon if model.norm_epsilon is None else model.norm_epsilon,
        qkv_biases=model.has_qkv_biases,
        rotary_base=model.rotary_base if is_rotary else 10_000.0,
        rotary_share=model.rotary_share if is_rotary else 1.0,
        position_rows=None if is_rotary else model.position_rows,
        pooling="mean",
        compute_dtype="float32",
        cut_residual=False,
        remat="nothing",
    )


def _compare(wanted: Model, found: Model) -> list[str]:
    return [
        f"model.{field.name} ({getattr(wanted, field.name)} here)"
        for field in fields(Model)
        if getattr(wanted, field.name) != getattr(found, field.name)
    ]


def _bert(m: Model, _: int) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "hidden_size": m.width,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "intermediate_size": m.mlp_size,
        "hidden_act": ACTIVATIONS[m.mlp],
        "layer_norm_eps": m.norm_epsilon,
        "max_position_embeddings": m.position_rows,
        "type_vocab_size": 1,
        "pad_token_id": 0,
    }


def _gpt2(m: Model, _: int) -> dict[str, Any]:
    return {
        "architectures": ["GPT2Model"],
        "n_embd": m.width,
        "n_layer": m.layers,
        "n_head": m.heads,
        "n_inner": m.mlp_size,
        "n_positions": m.position_rows,
        "activation_function": ACTIVATIONS[m.mlp],
        "layer_norm_epsilon": m.norm_epsilon,
    }


def _gpt_neox(m: Model, longest: int) -> dict[str, Any]:
    rope = _rope(m) | {"partial_rotary_factor": m.rotary_share}
    return {
        "architectures": ["GPTNeoXModel"],
        "hidden_size": m.width,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "intermediate_size": m.mlp_size,
        "hidden_act": ACTIVATIONS[m.mlp],
        "layer_norm_eps": m.norm_epsilon,
        "use_parallel_residual": m.parallel_residual,
        "max_position_embeddings": longest,
        "rotary_pct": m.rotary_share,
        "rope_parameters": rope,
    }


def _llama(m: Model, longest: int, architecture: str = "LlamaModel") -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "hidden_size": m.width,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.key_heads,
        "head_dim": m.head_size,
        "intermediate_size": m.mlp_size,
        "hidden_act": ACTIVATIONS[m.mlp],
        "rms_norm_eps": m.norm_epsilon,
        "max_position_embeddings": longest,
        "rope_theta": m.rotary_base,
        "rope_parameters": _rope(m),
        "attention_bias": False,
    }


def _qwen2(m: Model, longest: int) -> dict[str, Any]:
    return _llama(m, longest, "Qwen2Model") | {"use_sliding_window": False}


def _qwen3(m: Model, longest: int) -> dict[str, Any]:
    return _llama(m, longest, "Qwen3Model") | {"use_sliding_window": False}


def _rope(m: Model) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": m.rotary_base}
    scaling: RotaryScaling | None = m.rotary_scaling
    if scaling is None:
        return rope | {"rope_type": "default"}
    rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return rope
    return rope | {
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_tokens,
    }


PROPOSALS: dict[str, Callable[[Model, int], dict[str, Any]]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}
