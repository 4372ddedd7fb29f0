"""Lists the values of an experiment, and whether each is the default.

In: the object in `experiment.json`, also of an older version. Out: for each value its path, such as
`optimizer.b2`, its text, and whether it is the default in `config`. The module does not know what
a value means.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NamedTuple

from jaxcpt import config

CLASSES = {name: found for name, found in vars(config).items() if is_dataclass(found)}


class Setting(NamedTuple):
    path: str
    """The path in the form that `--set` takes."""
    value: str
    is_default: bool


def list_settings(tree: Mapping[str, Any], path: str = "") -> Iterator[Setting]:
    """Yields the settings in the order of the file. Unknown fields have no default."""
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
        if path.rpartition(".")[2].replace("_", "") != kind.lower():  # it could be another class
            yield Setting(path, kind, kind == type(default).__name__)
        yield from list_settings({"type": kind} | value, f"{path}.")
    else:
        same = value == (list(default) if isinstance(default, tuple) else default)
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield Setting(path, text, same)


def _find_defaults(kind: str) -> dict[str, Any]:
    """The defaults of the dataclass `kind` by field; empty for an unknown class."""
    if kind not in CLASSES:
        return {}
    given = {f.name: f.default for f in fields(CLASSES[kind]) if f.default is not MISSING}
    made = {
        f.name: f.default_factory()
        for f in fields(CLASSES[kind])
        if f.default_factory is not MISSING
    }
    return given | made
