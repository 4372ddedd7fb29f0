"""Reads the settings of a Hugging Face or sentence-transformers folder.

In: the folder. Out: a `ModelFolder` with the options of config.json, pooling, longest text and
prompts. The module only reads JSON files. It knows neither tensors nor tokenizers.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jaxcpt.errors import UserError
from jaxcpt.files import to_path
from jaxcpt.interop.families import Options
from jaxcpt.interop.safetensors import read_json
from jaxcpt.object_cache import fetch

Delimiters = Literal["own", "brackets"]
Pooling = Literal["eos", "mean", "first"]
POOLINGS: dict[str, Pooling] = {"lasttoken": "eos", "mean": "mean", "cls": "first"}
PACKAGE = "package:"
LONGEST = 512
"""Most tokens of a text, if the folder names no smaller limit."""


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    folder: Path
    """The folder with config.json and the weights."""
    options: Options
    """The values of config.json."""
    pooling: Pooling | None
    """None if the folder is not an embedding model."""
    normalises: bool
    """Whether the model scales its vectors to unit length."""
    longest: int
    """Most tokens of a text."""
    prompts: dict[str, str]
    """All prompts by name."""
    x_prompt: str
    """Text put before a query."""
    y_prompt: str
    """Text put before a document."""

    @property
    def is_embedding_model(self) -> bool:
        return self.pooling is not None


def find_folder(source: str) -> Path:
    """The folder at a path, or at `package:NAME/PATH` in an installed package.

    The package is not imported. Raises UserError if it is not installed.
    """
    if not source.startswith(PACKAGE):
        return fetch(to_path(source))
    name, *rest = PurePosixPath(source.removeprefix(PACKAGE)).parts or ("",)
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:
        spec = None
    if ".." in rest or spec is None or not spec.submodule_search_locations:
        raise UserError(f"{source}: no such package; install it, and write {PACKAGE}NAME/PATH")
    return Path(spec.submodule_search_locations[0], *rest)


def read_model_folder(folder: Path) -> ModelFolder:
    """Reads the settings. Raises UserError if the folder holds no model, or one that jaxcpt cannot
    compute."""
    modules = _read_modules(folder)
    inner = _inside(folder, modules["Transformer"]) if modules else folder
    if not (inner / "config.json").is_file():
        raise UserError(f"{inner}: no config.json; name the folder of a Hugging Face model")
    options = Options(read_json(inner / "config.json"), str(inner / "config.json"))
    prompts, default = _read_prompts(folder) if modules else ({}, "")
    return ModelFolder(
        folder=inner,
        options=options,
        pooling=_read_pooling(_inside(folder, modules["Pooling"])) if modules else None,
        normalises="Normalize" in modules,
        longest=_read_longest(inner, options, bool(modules)),
        prompts=prompts,
        x_prompt=_choose_prompt(prompts, ("query",), default),
        y_prompt=_choose_prompt(prompts, ("document", "passage", "corpus"), default),
    )


def _read_modules(folder: Path) -> dict[str, str]:
    """The folders of the modules by their class: Transformer, Pooling and perhaps Normalize."""
    file = folder / "modules.json"
    if not file.is_file():
        return {}
    try:
        modules = [
            (str(module["type"]), str(module["path"])) for module in json.loads(file.read_bytes())
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: damaged: {error!r}") from None
    names = [kind.rpartition(".")[2] for kind, _ in modules]
    for (kind, _), name in zip(modules, names, strict=True):
        if name not in ("Transformer", "Pooling", "Normalize") or not kind.startswith(
            "sentence_transformers."
        ):
            raise UserError(
                f"{file}: the module {kind} is not supported; "
                "there are Transformer, Pooling, Normalize"
            )
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{file}: its modules are {', '.join(names)}; "
            "expected Transformer, Pooling and perhaps Normalize"
        )
    return {name: path for name, (_, path) in zip(names, modules, strict=True)}


def _inside(folder: Path, path: str) -> Path:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UserError(f"{folder / 'modules.json'}: {path!r} is not in its folder")
    return folder / path


def _read_pooling(folder: Path) -> Pooling:
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{file}: missing; modules.json names it")
    values = read_json(file)
    old = "pooling_mode_"
    modes = values.get("pooling_mode") or [
        name.removeprefix(old).removesuffix("_tokens").removesuffix("_token")
        for name, used in values.items()
        if name.startswith(old) and used is True
    ]
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        found = " with ".join(map(str, modes)) or "none"
        raise UserError(
            f"{file}: pooling {found} is not supported; there are {', '.join(POOLINGS)}"
        )
    if values.get("include_prompt") is False:
        raise UserError(f"{file}: include_prompt: False is not supported; prompts are pooled too")
    return POOLINGS[modes[0]]


def _read_longest(folder: Path, options: Options, is_embedding_model: bool) -> int:
    """The most tokens of a text, as in sentence-transformers.

    It is max_seq_length, or else the tokenizer's limit, and at most the number of positions.
    """
    limits: list[Any] = [
        options.values.get("max_position_embeddings"),
        options.values.get("n_positions"),
    ]
    settings = _read_optional(folder / "sentence_bert_config.json")
    limits.append(settings.get("max_seq_length"))
    if limits[-1] is None:
        limits.append(_read_optional(folder / "tokenizer_config.json").get("model_max_length"))
    if not is_embedding_model:
        limits.append(LONGEST)
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and limit > 0]
    if settings.get("do_lower_case") is True and not _lowers(folder / "tokenizer.json"):
        raise UserError(
            f"{folder / 'sentence_bert_config.json'}: do_lower_case is not supported if "
            "tokenizer.json does not lower-case"
        )
    return min(known, default=LONGEST)


def _lowers(tokenizer: Path) -> bool:
    normalizer = json.dumps(_read_optional(tokenizer).get("normalizer"))
    return '"lowercase": true' in normalizer or '"Lowercase"' in normalizer


def _read_prompts(folder: Path) -> tuple[dict[str, str], str]:
    """All prompts by name, and the default prompt."""
    file = folder / "config_sentence_transformers.json"
    values = _read_optional(file)
    prompts, default = values.get("prompts") or {}, values.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise UserError(f"{file}: prompts: expected texts by name, found {prompts!r}")
    if default is None:
        return prompts, ""
    if default not in prompts:
        raise UserError(
            f"{file}: default_prompt_name: {default!r} is not among the prompts "
            f"({', '.join(prompts) or 'none'})"
        )
    return prompts, prompts[default]


def _choose_prompt(prompts: Mapping[str, str], names: Sequence[str], default: str) -> str:
    """The first prompt of `names` that exists, or the default, as in sentence-transformers."""
    return next((prompts[name] for name in names if name in prompts), default)


def _read_optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
