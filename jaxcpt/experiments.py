"""Reads and writes experiments: from Python files, with `--set` on top, and as JSON.

In: a Python file that defines `experiment()`, overrides `a.b=value`, or JSON. Out: an `Experiment`,
or its JSON. A mistake raises a UserError that names the file, the line or the field. The module
knows the fields of `config.py` only by their type hints, not what they mean.
"""

import ast
import importlib.util
import json
import re
import reprlib
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from jaxcpt import config
from jaxcpt.checks import validate
from jaxcpt.config import Experiment
from jaxcpt.errors import UserError, find_nearest
from jaxcpt.files import is_object

EXPERIMENT_FILE, BASELINE = "experiment.json", "baseline"
LARGEST_INTEGER = (1 << 63) - 1
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxtuple = 8


def _show(value: Any) -> str:
    """A value as it is shown in a message, in few characters."""
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return f"an integer of {value.bit_length()} bits"
    return _SHORT.repr(value)


def load_experiment(path: str) -> Experiment:
    """Calls `experiment()` of the Python file at `path`. Raises UserError with file and line."""
    if not Path(path).is_file():
        _refuse_missing(Path(path))
    spec = importlib.util.spec_from_file_location("jaxcpt_experiment", Path(path).resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file; an experiment is a .py file")
    module = importlib.util.module_from_spec(spec)
    # An experiment may import one in the same folder: `from cpt_text_s import experiment as small`.
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "experiment"):
            raise UserError(f"{path}: defines no function `experiment() -> Experiment`")
        experiment = module.experiment()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}:{error.lineno}: not Python: {error.msg}") from error
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename) == Path(path).resolve()]
        line = f":{own[-1].lineno}" if own else ""
        raise UserError(f"{path}{line}: {_explain(error)}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"{path}: experiment() returned {type(experiment).__name__}; it must return Experiment"
        )
    # Convert to plain values and back, which checks the type of every value.
    return _build(Experiment, _plain(experiment), path)


def _refuse_missing(path: Path) -> NoReturn:
    if near := _find_nearest_paths(path, path.parent.glob("*.py")):
        remedy = f"nearest: {near}"
    elif Path("experiments").is_dir():
        remedy = "see experiments/ for the ones there are"
    else:
        remedy = "jaxcpt init writes one"
    raise UserError(f"{path}: no such experiment file; {remedy}")


def _find_nearest_paths(path: Path, beside: Iterable[Path]) -> str:
    """The paths whose names are nearest to that of a missing path; empty if none is near."""
    by_name = {other.name.removesuffix(".py"): str(other) for other in beside}
    return ", ".join(by_name[name] for name in find_nearest(path.name.removesuffix(".py"), by_name))


def _explain(error: BaseException) -> str:
    """What an experiment file raised. For an unknown field, its nearest fields are named."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if found and is_dataclass(kind := getattr(config, found[1], None)):
        return _describe_unknown(kind, found[2])
    return f"{type(error).__name__}: {error}"


def _describe_unknown(kind: Any, name: str) -> str:
    """The end of an error about a field that a dataclass does not have."""
    hints = typing.get_type_hints(kind)
    near = find_nearest(name, hints) or sorted(hints)
    return f"{kind.__name__} has no field '{name[:40]}'; nearest: {', '.join(near)}"


def apply_overrides(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """Applies `a.b=v` in order. v is a Python literal, or else a string."""
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--set {override[:100]}: expected dotted.path=value")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = text
        experiment = _override(experiment, path.split("."), value, path[:100])
    return experiment


def _override(node: Any, names: list[str], value: Any, path: str) -> Any:
    name, *rest = names
    if node is None:
        raise UserError(f"--set {path}: its parent is None, so there is nothing to set below it")
    if isinstance(node, tuple):
        # isdigit alone would accept superscripts, and more digits than Python reads as a number.
        if not (name.isascii() and name.isdigit() and len(name) < 5 and int(name) < len(node)):
            raise UserError(
                f"--set {path}: '{name[:40]}' is not an index; there are {len(node)} entries"
            )
        changed = _override(node[int(name)], rest, value, path) if rest else value
        return (*node[: int(name)], changed, *node[int(name) + 1 :])
    if not is_dataclass(node) or isinstance(node, type):
        raise UserError(
            f"--set {path}: nothing lies below a {type(node).__name__}; drop '.{name[:40]}'"
        )
    hints = typing.get_type_hints(type(node))
    if name not in hints:
        raise UserError(f"--set {path}: {_describe_unknown(type(node), name)}")
    current = getattr(node, name)
    changed = _override(current, rest, value, path) if rest else value
    return replace(node, **{name: _build(hints[name], _plain(changed), f"--set {path}")})


def _plain(value: Any) -> Any:
    """Converts to values of JSON: dataclasses to dicts that name their class, tuples to lists."""
    if is_dataclass(value) and not isinstance(value, type):
        entries = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"type": type(value).__name__, **entries}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _build(hint: Any, value: Any, path: str) -> Any:
    """The inverse of `_plain`. Raises UserError for a value that does not have the type `hint`."""
    if is_dataclass(hint):
        return _build_dataclass(hint, value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        dataclass_hints: list[Any] = list(filter(is_dataclass, arguments))
        classes = {a.__name__: a for a in dataclass_hints}
        if isinstance(value, dict) and (named := _read_class(value)) in classes:
            return _build(classes[named], value, path)
        others = [a for a in arguments if a is not type(None)]
        if len(others) == 1:
            return _build(others[0], value, path)
        raise UserError(f"{path}: expected one of {', '.join(classes)}, found {_show(value)}")
    if origin is Literal:
        if value in arguments:
            return value
        choices = ", ".join(map(str, arguments))
        raise UserError(f"{path}: expected one of {choices}, found {_show(value)}")
    if origin is tuple:
        if isinstance(value, list):
            return tuple(_build(arguments[0], v, f"{path}.{i}") for i, v in enumerate(value))
        raise UserError(f"{path}: expected a tuple, found {_show(value)}")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # false for nan too
            return float(value)
        raise UserError(f"{path}: expected a finite number, found {_show(value)}")
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        kind = type(value).__name__
        raise UserError(f"{path}: expected {hint.__name__}, found {_show(value)} ({kind})")
    if hint is int and abs(value) > LARGEST_INTEGER:
        raise UserError(f"{path}: expected an integer below 2^63, found {_show(value)}")
    if hint is str and ("\0" in value or (not value.isprintable() and _is_half(value))):
        raise UserError(f"{path}: expected text of whole characters, found {ascii(value)[:80]}")
    return value


def _is_half(text: str) -> bool:
    """Whether the text holds half of a surrogate pair, such as in arguments that are not UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _read_class(value: dict[Any, Any]) -> str | None:
    """The name of the dataclass that a dict was made from; None if it has none."""
    name = value.get("type")
    return name if isinstance(name, str) else None


def _build_dataclass(hint: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict) or value.get("type", hint.__name__) != hint.__name__:
        raise UserError(f"{path}: expected {hint.__name__}, found {_show(value)}")
    hints = typing.get_type_hints(hint)
    given = {str(name): item for name, item in value.items() if name != "type"}
    if unknown := sorted(set(given) - set(hints)):
        raise UserError(f"{path}: {_describe_unknown(hint, unknown[0])}")
    needed = {f.name for f in fields(hint) if f.default is f.default_factory}  # both MISSING
    if missing := sorted(needed - set(given)):
        raise UserError(f"{path}: {hint.__name__} needs the field '{missing[0]}'")
    start = f"{path}: " if hint is Experiment else f"{path}."  # an experiment is a whole file
    return hint(**{n: _build(hints[n], v, f"{start}{n}") for n, v in given.items()})


def to_json(experiment: Experiment) -> str:
    return json.dumps(_plain(experiment), indent=2)


def from_json(text: str, where: str) -> Experiment:
    """The experiment in a JSON text. Raises UserError that names `where` and the wrong field."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; deep nesting
        raise UserError(f"{where}: not JSON: {error}") from None
    return validate(_build(Experiment, _upgrade(value), where))


def _upgrade(value: Any) -> Any:
    """Moves the fields of runs of version 0.1 to their present places, so that old runs load."""
    moved = ("token_weights", "position_weights", "embedding_scale", "residual_start")
    for part in (value, value.get("baseline")) if isinstance(value, dict) else ():
        model = part.get("model") if isinstance(part, dict) else None
        if isinstance(model, dict) and "token_weights" in model:
            model["weighted_mean"] = {name: model.pop(name) for name in moved if name in model}
    return value


def read_experiment(run_dir: Path) -> Experiment:
    """The experiment of a run folder. Raises UserError if the folder has none."""
    path = run_dir / EXPERIMENT_FILE
    if not path.is_file():
        raise UserError(f"{run_dir}: {describe_no_run(run_dir)}")
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; the file is damaged") from None


def find_shared_folder(run_dir: Path) -> Path:
    """The folder with the mined pairs of a run: its own, or for a baseline that of its run."""
    parent = run_dir.parent
    is_baseline = run_dir.name == BASELINE and (parent / EXPERIMENT_FILE).is_file()
    return parent if is_baseline else run_dir


def describe_no_run(run_dir: Path) -> str:
    """Why a folder is no run folder. If it is missing, the run folders beside it are named."""
    if is_object(run_dir) or run_dir.exists():
        return f"not a run folder: it has no {EXPERIMENT_FILE}"
    runs = sorted(file.parent for file in run_dir.parent.glob(f"*/{EXPERIMENT_FILE}"))
    if near := _find_nearest_paths(run_dir, runs):
        return f"no such folder; nearest: {near}"
    return "no such folder" + f"; beside it: {', '.join(map(str, runs[:9]))}" * bool(runs)


def differences(old: Experiment, new: Experiment) -> list[str]:
    """One line `path: old -> new` for each leaf that differs."""

    def leaves(value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, dict):
            items = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
        elif isinstance(value, list):
            items = [(f"{path}.{index}", item) for index, item in enumerate(value)]
        else:
            return {path: value}
        return {k: v for key, item in items for k, v in leaves(item, key).items()}

    before, after = leaves(_plain(old), ""), leaves(_plain(new), "")
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys]
