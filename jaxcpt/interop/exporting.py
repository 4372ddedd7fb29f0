"""Exports a run as a folder that sentence-transformers and transformers load without our code.

In: a trained or imported run. Out: config.json and safetensors of the matching Hugging Face
architecture, tokenizer.json, settings of pooling and normalisation, prompts, and a model card. If
the two sides of the run have different delimiters, the folder is a Router with one branch for
queries and one for documents. `export_arrays` writes the arrays of any run under jaxcpt's own
names, and a JSON of their shapes. The module does not know how the run was trained.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxcpt.config import Experiment
from jaxcpt.errors import UserError
from jaxcpt.experiments import to_json
from jaxcpt.files import write_file
from jaxcpt.interop.config_json import choose_config
from jaxcpt.interop.families import FAMILIES, Family, Rule
from jaxcpt.interop.importing import flatten
from jaxcpt.interop.safetensors import WEIGHTS_FILE, write_safetensors
from jaxcpt.pair import Side
from jaxcpt.tokenizer import Tokenizer
from jaxcpt.tokenizer.export import to_bag_tokenizer, to_hugging_face
from jaxcpt.update import name_parameters

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
POOLINGS = {"eos": "lasttoken", "mean": "mean", "first": "cls"}
MODULES = "sentence_transformers.models"
SIDES: dict[str, Side] = {"query": "x", "document": "y"}
"""The names that sentence-transformers has for our sides."""


@dataclass(frozen=True, kw_only=True)
class ExportedRun:
    """The parts of a run that are exported."""

    experiment: Experiment
    tokenizer: Tokenizer
    params: Mapping[str, Any]
    """The encoder's parameters on the host: float32, as a nested dict."""
    prompts: dict[str, str]
    """The texts that are put before every `query` and every `document`."""
    card: str
    """The text of README.md in the folder."""


def export_library(run: ExportedRun, output: Path, dtype: str) -> list[str]:
    """Writes a sentence-transformers folder. Returns lines that say what differs from the run.

    Raises UserError if no Hugging Face architecture computes the model.
    """
    experiment, tokenizer = run.experiment, run.tokenizer
    if not experiment.model.layers:
        return export_bag(run, output, dtype)
    rows = len(run.params["tokens"])
    values = choose_config(experiment.model, rows, experiment.tokenizer.longest)
    if values["model_type"] == "qwen2" and tokenizer.template is None:
        raise UserError(
            "transformers reads the tokenizer of a qwen2 model as Qwen2's own kind, so this "
            "SentencePiece model would split texts differently; export with --format safetensors"
        )
    tensors = name_tensors(experiment, run.params, FAMILIES[values["model_type"]])
    values |= {"dtype": dtype}
    write_file(output / "README.md", run.card)
    _write_settings(output, run.prompts)

    if tokenizer.delimiters("x") != tokenizer.delimiters("y"):
        for name, side in SIDES.items():
            longest = tokenizer.x_tokens if side == "x" else tokenizer.y_tokens
            folder = output / f"{name}_0_Transformer"
            _write_transformer(folder, tokenizer, side, longest, values, tensors)
        _write_router(output, experiment)
        return [
            "queries and documents have different closing delimiters, so the folder is a Router "
            "that holds the weights twice; use encode_query and encode_document"
        ]
    longest = max(tokenizer.x_tokens, tokenizer.y_tokens)
    _write_transformer(output, tokenizer, "y", longest, values, tensors)
    _write_json(
        output / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": f"{MODULES}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{MODULES}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{MODULES}.Normalize"},
        ],
    )
    _write_pooling(output / "1_Pooling", output / "2_Normalize", experiment)
    if tokenizer.x_tokens == tokenizer.y_tokens:
        return []
    return [
        f"x is cut at {tokenizer.x_tokens} tokens and y at {tokenizer.y_tokens} in the run; the "
        f"folder cuts both at {longest}"
    ]


def export_bag(run: ExportedRun, output: Path, dtype: str) -> list[str]:
    """Writes a run without layers as a StaticEmbedding. Raises UserError if that is impossible.

    A StaticEmbedding adds no delimiters to a text. In a bag of tokens the order does not matter, so
    both delimiters of a side become a prompt of two characters. The tokenizer maps these characters
    to the ids of the delimiters.
    """
    model, params = run.experiment.model, run.params
    weights = model.weighted_mean.position_weights
    if model.pooling != "mean" or weights or model.embedding_norm:
        raise UserError(
            "a bag of tokens is a StaticEmbedding only with pooling mean and without "
            "position_weights and embedding_norm; export with --format safetensors"
        )
    table_vd = params["tokens"]
    if model.weighted_mean.token_weights:
        table_vd = table_vd * np.exp(params["token_weights"])[:, None]
    text, marks = to_bag_tokenizer(run.tokenizer)
    prompts = {name: marks[side] + run.prompts[name] for name, side in SIDES.items()}
    write_file(output / "README.md", run.card)
    _write_settings(output, prompts)
    write_file(output / "tokenizer.json", text)
    write_safetensors(output / WEIGHTS_FILE, {"embedding.weight": table_vd}, DTYPES[dtype])
    (output / "1_Normalize").mkdir()
    _write_json(output / "1_Normalize" / "config.json", {})
    _write_json(
        output / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": f"{MODULES}.StaticEmbedding"},
            {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{MODULES}.Normalize"},
        ],
    )
    t = run.tokenizer
    return [
        "the delimiters are part of the prompts; use encode_query and encode_document",
        f"x is cut at {t.x_tokens} tokens and y at {t.y_tokens} in the run; a StaticEmbedding "
        "cuts nothing",
    ]


def export_arrays(run: ExportedRun, output: Path, dtype: str) -> list[str]:
    """Writes every parameter under jaxcpt's own name, and a JSON of their shapes and letters.

    All layers of a parameter are in one array.
    """
    flat = flatten(run.params)
    letters = flatten(name_parameters(run.experiment)["encoder"])
    write_safetensors(output / WEIGHTS_FILE, flat, DTYPES[dtype])
    shapes = {
        name: {"shape": list(array.shape), "letters": "".join(letters[name])}
        for name, array in flat.items()
    }
    _write_json(output / "shapes.json", {"dtype": dtype, "arrays": shapes})
    write_file(output / "experiment.json", to_json(run.experiment))
    run.tokenizer.save(output / "tokenizer")
    write_file(output / "README.md", run.card)
    return []


def name_tensors(
    experiment: Experiment, params: Mapping[str, Any], family: Family
) -> dict[str, np.ndarray]:
    """The parameters as tensors of the family, by their names. They are views if possible."""
    flat = flatten(params)
    axes = {
        name: "".join(letters)
        for name, letters in flatten(name_parameters(experiment)["encoder"]).items()
    }
    tensors: dict[str, np.ndarray] = {}
    for name, rule in family.rules.items():
        if "{i}" not in name:
            tensors[name] = arrange([flat[p] for p in rule.parameters], axes, rule)
            continue
        for layer in range(experiment.model.layers):
            arrays = [flat[parameter][layer] for parameter in rule.parameters]
            tensors[name.replace("{i}", str(layer))] = arrange(arrays, axes, rule)
    if family.token_types:  # our position table includes their row
        width = experiment.model.width
        tensors[family.token_types] = np.zeros((1, width), np.float32)
        # Without a pooler transformers would print a warning. Sentence embeddings do not use it.
        tensors["pooler.dense.weight"] = np.zeros((width, width), np.float32)
        tensors["pooler.dense.bias"] = np.zeros(width, np.float32)
    return tensors


def arrange(arrays: list[np.ndarray], axes: Mapping[str, str], rule: Rule) -> np.ndarray:
    """The inverse of `convert.rearrange`: parameters of one layer -> the tensor of the rule."""
    theirs = rule.letters.replace(" ", "")
    parts = []
    for parameter, array in zip(rule.parameters, arrays, strict=True):
        ours = axes[parameter].removeprefix("i")
        order = theirs.replace("c", "")
        if "j" in ours:  # in one tensor, query, key and value have equally many heads
            order = order.replace("h", "j")
        parts.append(array.transpose([ours.index(letter) for letter in order]))
    whole = np.stack(parts, axis=theirs.index("c")) if "c" in theirs else parts[0]
    lengths = iter(whole.shape)
    shape = [int(np.prod([next(lengths) for _ in word])) for word in rule.letters.split()]
    return whole.reshape(shape)


def _write_transformer(
    folder: Path,
    tokenizer: Tokenizer,
    side: Side,
    longest: int,
    values: dict[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Writes config.json, weights and tokenizer of one Transformer module."""
    folder.mkdir(exist_ok=True)
    _write_json(folder / "config.json", values)
    write_safetensors(folder / WEIGHTS_FILE, tensors, DTYPES[values["dtype"]])
    text, padding = to_hugging_face(tokenizer, side)
    write_file(folder / "tokenizer.json", text)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "padding_side": "right",
        "pad_token": padding,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest})


def _write_settings(output: Path, prompts: dict[str, str]) -> None:
    _write_json(
        output / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def _write_router(output: Path, experiment: Experiment) -> None:
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    for name in SIDES:
        folders = [
            f"{name}_{n}_{kind}" for n, kind in enumerate(("Transformer", "Pooling", "Normalize"))
        ]
        types |= {folder: f"{MODULES}.{folder.rpartition('_')[2]}" for folder in folders}
        structure[name] = folders
        _write_pooling(output / folders[1], output / folders[2], experiment)
    parameters = {"default_route": "document", "allow_empty_key": True}
    _write_json(
        output / "router_config.json",
        {"types": types, "structure": structure, "parameters": parameters},
    )
    router = {"idx": 0, "name": "0", "path": "", "type": f"{MODULES}.Router"}
    _write_json(output / "modules.json", [router])


def _write_pooling(pooling: Path, normalize: Path, experiment: Experiment) -> None:
    mode = POOLINGS[experiment.model.pooling]
    names = {
        "mean": "mean_tokens",
        "cls": "cls_token",
        "max": "max_tokens",
        "lasttoken": "lasttoken",
    }
    pooling.mkdir(exist_ok=True)
    normalize.mkdir(exist_ok=True)
    _write_json(
        pooling / "config.json",
        {"word_embedding_dimension": experiment.model.width}
        | {f"pooling_mode_{name}": kind == mode for kind, name in names.items()}
        | {"include_prompt": True},
    )
    _write_json(normalize / "config.json", {})


def _write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=2) + "\n")
