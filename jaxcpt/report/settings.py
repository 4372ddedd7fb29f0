"""The values of an experiment by path, and whether each is the default.

In: the object in `experiment.json`, also of an older version. Out: `optimizer.b2`, its value as
text, and whether the field of `config` has this value where an experiment leaves it out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NamedTuple

from jaxcpt import config

CLASSES = {name: found for name, found in vars(config).items() if is_dataclass(found)}


class Setting(NamedTuple):
    path: str
    """As `--set` takes it."""
    value: str
    is_default: bool


def list_settings(tree: Mapping[str, Any], path: str = "") -> Iterator[Setting]:
    """In the order of the file. Fields that `config` does not know have no default."""
    defaults = _find_defaults(str(tree.get("type", "Experiment")))
    for name, value in tree.items():
        if name != "type":
            yield from _list_value(f"{path}{name}", value, defaults.get(name, MISSING))


def _list_value(path: str, value: Any, default: Any) -> Iterator[Setting]:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _list_value(f"{path}.{index}", item, MISSING)
    elif isinstance(value, dict):
        kind = str(value.get("type", ""))
        if path.rpartition(".")[2].replace("_", "") != kind.lower():  # it could be of another class
            yield Setting(path, kind, kind == type(default).__name__)
        yield from list_settings({"type": kind} | value, f"{path}.")
    else:
        same = value == (list(default) if isinstance(default, tuple) else default)
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield Setting(path, text, same)


def _find_defaults(kind: str) -> dict[str, Any]:
    """The defaults of the dataclass `kind` by field. It is empty for an unknown class."""
    if kind not in CLASSES:
        return {}
    given = {f.name: f.default for f in fields(CLASSES[kind]) if f.default is not MISSING}
    made = {
        f.name: f.default_factory()
        for f in fields(CLASSES[kind])
        if f.default_factory is not MISSING
    }
    return given | made
