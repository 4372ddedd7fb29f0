"""Imports a Hugging Face folder as a run folder at step 0, which every other command can use.

In: a Hugging Face folder. Out: a run folder, which is written atomically after all checks. The
module does not know how the model was trained.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt import config
from jaxcpt.checkpoint import save_params
from jaxcpt.checks import validate
from jaxcpt.config import Batching, Data, Experiment, Optimizer
from jaxcpt.errors import UserError
from jaxcpt.experiments import EXPERIMENT_FILE, to_json
from jaxcpt.files import hash_file, is_object, new_folder, write_file
from jaxcpt.fingerprints import describe_model
from jaxcpt.interop.convert import Sizes, list_slots, match_tensors, write_parameters
from jaxcpt.interop.families import Family, find_family
from jaxcpt.interop.folder import Delimiters, ModelFolder, Pooling, find_folder, read_model_folder
from jaxcpt.interop.safetensors import Tensor, open_weights
from jaxcpt.run_folder import MARKER
from jaxcpt.tokenizer import Tokenizer, read_model
from jaxcpt.update import name_parameters

IMPORTED_FILE = "imported.json"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a user may choose. None: as in the model's folder."""

    delimiters: Delimiters | None = None
    pooling: Pooling | None = None
    x_tokens: int | None = None
    y_tokens: int | None = None


def import_model(source: str, run_dir: Path, choices: Choices | None = None) -> dict[str, str]:
    """Writes the run folder. Returns facts about it for the user, by name.

    source: a folder, or `package:NAME/PATH` for a folder in an installed package. If it raises
    UserError, no run folder is left.
    """
    if run_dir.exists():
        raise UserError(f"{run_dir}: exists; name a folder that does not exist")
    found = read_model_folder(find_folder(source))
    family = find_family(found.options)
    tensors = open_weights(found.folder)
    experiment = plan_run(run_dir.name, found, family, tensors, choices or Choices())
    tokenizer = open_tokenizer(found, experiment.tokenizer)
    sizes = measure(experiment, found, family)
    matched, ignored = match_tensors(tensors, family, list_slots(family, sizes), str(found.folder))
    axes = flatten(name_parameters(experiment)["encoder"])
    about = {
        "source": source if source.startswith("package:") else found.folder.resolve().name,
        "model_type": found.options.values["model_type"],
        "weights": {
            file.name: hash_file(file) for file in sorted({t.file for t in tensors.values()})
        },
        "ignored": ignored,
        "prompts": found.prompts,
    }
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    near = None if is_object(run_dir) else run_dir.parent
    with (
        new_folder(run_dir) as partial,
        tempfile.TemporaryDirectory(
            prefix=f".{run_dir.name}.", dir=near, ignore_cleanup_errors=True
        ) as scratch,
    ):
        arrays = Path(scratch)
        tokenizer.save(partial / "tokenizer")
        params = {
            "encoder": unflatten(write_parameters(matched, family, sizes, axes, arrays)),
            "log_scale": np.log(np.float32(experiment.loss.scale_start)),
        }
        save_params(partial / "checkpoints", params, describe_model(experiment, tokenizer))
        write_file(partial / IMPORTED_FILE, json.dumps(about, indent=1) + "\n")
        write_file(partial / EXPERIMENT_FILE, to_json(experiment))
        (partial / MARKER).touch()
    return describe(experiment, found, about)


def foresee_import(source: str) -> Experiment:
    """The experiment that `import_model` would write. It reads no weights and writes nothing."""
    found = read_model_folder(find_folder(source))
    family = find_family(found.options)
    return plan_run(found.folder.name, found, family, open_weights(found.folder), Choices())


def plan_run(
    name: str, found: ModelFolder, family: Family, tensors: Mapping[str, Tensor], choices: Choices
) -> Experiment:
    """The experiment of the imported run, with the sizes of config.json. Raises UserError."""
    model = family.read(found.options)
    is_half = any(tensor.dtype == "BF16" for tensor in tensors.values())
    bidirectional_or_embedding = not model.causal or found.pooling is not None
    tokenizer = config.Tokenizer(
        vocabulary=found.options.size("vocab_size"),
        kind="hugging_face",
        delimiters=choices.delimiters or ("own" if bidirectional_or_embedding else "brackets"),
        x_tokens=choices.x_tokens or found.longest,
        y_tokens=choices.y_tokens or found.longest,
        x_prefix=found.x_prompt,
        y_prefix=found.y_prompt,
    )
    window = family.window(found.options)
    if window is not None and tokenizer.longest > window:
        raise UserError(
            f"{found.options.where}: sliding_window: {window} tokens, fewer than a text of "
            f"{tokenizer.longest}; lower --x-tokens and --y-tokens to {window}"
        )
    return validate(
        Experiment(
            name=name,
            train_steps=0,
            data=Data(train=()),
            batching=Batching(pairs_per_batch=1, row_tokens=tokenizer.longest),
            optimizer=Optimizer(learning_rate=1e-5),
            tokenizer=tokenizer,
            model=replace(
                model,
                pooling=choices.pooling or found.pooling or ("eos" if model.causal else "mean"),
                compute_dtype="bfloat16" if is_half else "float32",
            ),
        )
    )


def open_tokenizer(found: ModelFolder, settings: config.Tokenizer) -> Tokenizer:
    """Opens the folder's tokenizer.json. Raises UserError if its ids do not fit the token table."""
    file = found.folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"{found.folder}: no tokenizer.json; write one: python -c \"from transformers import "
            f"AutoTokenizer as T; T.from_pretrained('{found.folder}').save_pretrained("
            f"'{found.folder}')\""
        )  # fmt: skip
    tokenizer = read_model(
        str(file), settings.x_tokens, settings.y_tokens, delimiters=settings.delimiters
    )
    if tokenizer.vocabulary > settings.vocabulary:
        raise UserError(
            f"{file}: has {tokenizer.vocabulary:,} tokens, but the table of tokens has "
            f"{settings.vocabulary:,} rows; put the model's own tokenizer.json there"
        )
    return replace(
        tokenizer,
        vocabulary=settings.vocabulary,
        x_prefix=settings.x_prefix,
        y_prefix=settings.y_prefix,
    )


def measure(experiment: Experiment, found: ModelFolder, family: Family) -> Sizes:
    return replace(
        measure_letters(experiment.model, experiment.tokenizer.vocabulary),
        position_offset=family.position_offset(found.options),
        token_types=found.options.size("type_vocab_size", 2) if family.token_types else 0,
    )


def measure_letters(m: config.Model, vocabulary: int) -> Sizes:
    letters = {"d": m.width, "h": m.heads, "j": m.key_heads, "k": m.head_size, "f": m.mlp_size}
    letters |= {"i": m.layers, "l": m.position_rows or 0, "v": vocabulary}
    return Sizes(letters=letters)


def describe(
    experiment: Experiment, found: ModelFolder, about: Mapping[str, Any]
) -> dict[str, str]:
    """Facts about the imported run for the user, by name, in the order of the printed table."""
    m, t = experiment.model, experiment.tokenizer
    ignored = about["ignored"]
    return {
        "model": f"{about['model_type']}, {m.layers} layers, width {m.width}, {m.compute_dtype}",
        "pooling": f"{m.pooling}, to unit length"
        + ("" if found.normalises or found.pooling is None else ", which the model does not do"),
        "delimiters": t.delimiters,
        "longest texts": f"x {t.x_tokens} tokens, y {t.y_tokens} tokens",
        "ignored tensors": f"{len(ignored)}: {', '.join(ignored)}" if ignored else "none",
        "prompts": f"before x {t.x_prefix!r}, before y {t.y_prefix!r}"
        if t.x_prefix or t.y_prefix
        else "none",
    }


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of nested dicts by their path, such as blocks/query."""
    leaves: dict[str, Any] = {}
    for name, node in tree.items():
        if isinstance(node, dict):
            leaves |= {f"{name}/{path}": leaf for path, leaf in flatten(node).items()}
        else:
            leaves[name] = node
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
