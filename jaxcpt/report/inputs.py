"""The JSON files of a run folder in, checked objects out. It draws nothing.

A file that is not JSON, or in which a field has another type than `jaxcpt train` writes, raises
UserError with the file, the field and what was found.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxcpt.errors import UserError

DEEPEST = 50
"""Objects in objects. A whole experiment has five."""
ANY = "*"


class Kind(NamedTuple):
    """What a value must be, in words, and whether one is."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not math.isinf(value) if isinstance(value, float) else abs(value) < sys.float_info.max


NUMBER = Kind("a number", _is_number)
NUMBER_OR_NULL = Kind("a number or null", lambda value: value is None or _is_number(value))
TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number", lambda value: type(value) is int and 0 <= value < 10**15)
ANYTHING = Kind("anything", lambda _: True)

# A "?" marks a field that may be missing. ANY stands for all fields that are not named.
EXPERIMENT = {"name?": TEXT, "train_steps?": COUNT}
SUMMARY = {
    "table?": [{"name": TEXT, ANY: NUMBER}],
    "examples?": [
        {
            "query": TEXT,
            "results": [{"score": NUMBER, "text": TEXT, "source?": TEXT, "right?": FLAG}],
        }
    ],
    "derived?": {ANY: ANYTHING},
}
LINE = {
    "name": TEXT,
    "score": NUMBER,
    "words": NUMBER_OR_NULL,
    "before?": NUMBER_OR_NULL,
    "published": TEXT,
    "caveat": TEXT,
}
SUITES = {"step": COUNT, "suites": {ANY: [LINE]}}


def read_object(path: Path, shape: dict[str, Any]) -> dict[str, Any] | None:
    """The object in the file; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes(), parse_float=_parse_float)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be shown
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON: {error}; put back the file that jaxcpt.train wrote"
        ) from error
    _check(value, shape, path, [])
    if _is_deeper(value, DEEPEST):
        raise UserError(f"{path}: more than {DEEPEST} objects in one another")
    return value


def _parse_float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text[:60]} is out of range")
    return value


def _check(value: Any, shape: Any, path: Path, place: list[str]) -> None:
    """Raises UserError for the first field that does not fit. `place`: the names above it."""

    def refuse(expected: str) -> None:
        field = f"{'.'.join(place)}: " if place else ""
        found = json.dumps(value, ensure_ascii=False)[:60]
        raise UserError(
            f"{path}: {field}expected {expected}, found {found}; "
            "put back the file that jaxcpt.train wrote"
        )

    if isinstance(shape, Kind):
        if not shape.fits(value):
            refuse(shape.words)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            refuse("a list")
        for index, item in enumerate(value):
            _check(item, shape[0], path, [*place, str(index)])
    else:
        if not isinstance(value, dict):
            refuse("an object")
        named = {name.removesuffix("?"): kind for name, kind in shape.items() if name != ANY}
        for name in named.keys() - value.keys():
            if name in shape:
                refuse(f"an object with '{name}'")
        for name, item in value.items():
            _check(item, named.get(name, shape.get(ANY, ANYTHING)), path, [*place, name])


def _is_deeper(value: Any, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_is_deeper(item, most - 1) for item in items)
