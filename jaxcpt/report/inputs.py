"""Reads and checks the files of a run folder.

In: a run folder. Out: a `Run`. If a file is not JSON, or if a field has another type than `jaxcpt
train` writes, it raises a UserError that names the file, the field and what was found. The module
draws nothing.
"""

import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jaxcpt.errors import UserError
from jaxcpt.experiments import describe_no_run
from jaxcpt.provenance import STARTS_FILE
from jaxcpt.rows import EVALS_FILE, METRICS_FILE, Row, read_rows

DEEPEST = 50
"""Most levels of nested objects. An experiment has five."""
ANY = "*"


class Kind(NamedTuple):
    """A type of values: its name for messages, and a function that checks a value."""

    words: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not math.isinf(value) if isinstance(value, float) else abs(value) < sys.float_info.max


def _is_date(value: Any) -> bool:
    with suppress(TypeError, ValueError):
        return datetime.fromisoformat(value).tzinfo is not None
    return False


NUMBER = Kind("a number", _is_number)
NUMBER_OR_NULL = Kind("a number or null", lambda value: value is None or _is_number(value))
TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXT_OR_NULL = Kind("a text or null", lambda value: value is None or isinstance(value, str))
DATE = Kind("a date with its time zone", _is_date)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number", lambda value: type(value) is int and 0 <= value < 10**15)
OBJECT_OR_NULL = Kind("an object or null", lambda value: value is None or isinstance(value, dict))
ANYTHING = Kind("anything", lambda _: True)

# A "?" marks a field that may be missing. ANY means all fields that are not named.
SOURCE = {"type?": TEXT, "path?": TEXT, "directory?": TEXT, ANY: ANYTHING}
EXPERIMENT = {
    "name?": TEXT,
    "train_steps?": COUNT,
    "objective?": TEXT,
    "batching?": {"pairs_per_batch?": COUNT, ANY: ANYTHING},
    "model?": {"width?": COUNT, ANY: ANYTHING},
    "tokenizer?": {"x_tokens?": COUNT, "y_tokens?": COUNT, ANY: ANYTHING},
    "data?": {"train?": [SOURCE], ANY: ANYTHING},
    "init_from?": OBJECT_OR_NULL,
}
IMPORTED = {"source": TEXT, ANY: ANYTHING}
START = {
    "step": COUNT,
    "date": DATE,
    "command": TEXT,
    "commit": TEXT_OR_NULL,
    "versions": {ANY: TEXT},
    "host": TEXT,
    "processes": COUNT,
    "devices": TEXT,
    "data": [{"name": TEXT, "pairs": COUNT}],
}
SUMMARY = {
    "end?": {"date": DATE, "host_memory_bytes": COUNT, "device_memory_bytes?": COUNT},
    "table?": [{"name": TEXT, ANY: NUMBER}],
    "examples?": [
        {
            "query": TEXT,
            "results": [{"score": NUMBER, "text": TEXT, "source?": TEXT, "right?": FLAG}],
        }
    ],
    "derived?": {ANY: ANYTHING},
    "heldout?": {"x": COUNT, "y": COUNT},
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of a run folder's files. A missing file is empty here."""

    folder: Path
    experiment: dict[str, Any]
    rows: list[Row]
    evals: list[Row]
    starts: list[dict[str, Any]]
    """The starts of the run; empty for runs of older versions."""
    summary: dict[str, Any]
    suites: dict[str, Any]
    imported: dict[str, Any]
    """Facts about the model that the run was imported from; empty for a trained run."""

    @property
    def name(self) -> str:
        return str(self.experiment.get("name", self.folder.name))

    @property
    def step(self) -> int:
        """The last step that has numbers."""
        return int(max((row["step"] for row in self.rows[-1:] + self.evals[-1:]), default=0))

    @property
    def is_imported(self) -> bool:
        return self.experiment.get("train_steps", 0) == 0 and not self.rows

    @property
    def is_generative(self) -> bool:
        return self.experiment.get("objective") == "generative"


def read_run(folder: Path) -> Run:
    """Reads a run folder. Raises UserError if it is not one, or if a file in it does not fit."""
    experiment = read_object(folder / "experiment.json", EXPERIMENT)
    if experiment is None:
        raise UserError(
            f"{folder}: {describe_no_run(folder)}; give the folder that jaxcpt.train wrote"
        )
    return Run(
        folder=folder,
        experiment=experiment,
        rows=read_rows(folder / METRICS_FILE),
        evals=read_rows(folder / EVALS_FILE),
        starts=read_objects(folder / STARTS_FILE, START),
        summary=read_object(folder / "summary.json", SUMMARY) or {},
        suites=read_object(folder / "suites.json", SUITES) or {},
        imported=read_object(folder / "imported.json", IMPORTED) or {},
    )


def read_object(path: Path, shape: dict[str, Any]) -> dict[str, Any] | None:
    """The object in a file; None if there is no such file."""
    return _parse(path.read_bytes(), shape, str(path)) if path.is_file() else None


def read_objects(path: Path, shape: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects in the lines of a file; none if there is no such file."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [_parse(line, shape, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _parse(content: bytes, shape: dict[str, Any], where: str) -> dict[str, Any]:
    """The object in some JSON. Raises UserError whose text begins with `where`."""
    try:
        value = json.loads(content, parse_float=_parse_float)
        json.dumps(value, ensure_ascii=False).encode()  # raises for half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not JSON: {error}; put back the file that jaxcpt.train wrote"
        ) from error
    _check(value, shape, where, [])
    if _is_deeper(value, DEEPEST):
        raise UserError(f"{where}: more than {DEEPEST} levels of nested objects")
    return value


def _parse_float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text[:60]} is out of range")
    return value


def _check(value: Any, shape: Any, where: str, place: list[str]) -> None:
    """Raises UserError for the first field that does not fit. place: the names of outer fields."""

    def refuse(expected: str) -> None:
        field = f"{'.'.join(place)}: " if place else ""
        found = json.dumps(value, ensure_ascii=False)[:60]
        raise UserError(
            f"{where}: {field}expected {expected}, found {found}; "
            "put back the file that jaxcpt.train wrote"
        )

    if isinstance(shape, Kind):
        if not shape.fits(value):
            refuse(shape.words)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            refuse("a list")
        for index, item in enumerate(value):
            _check(item, shape[0], where, [*place, str(index)])
    else:
        if not isinstance(value, dict):
            refuse("an object")
        named = {name.removesuffix("?"): kind for name, kind in shape.items() if name != ANY}
        for name in named.keys() - value.keys():
            if name in shape:
                refuse(f"an object with '{name}'")
        for name, item in value.items():
            _check(item, named.get(name, shape.get(ANY, ANYTHING)), where, [*place, name])


def _is_deeper(value: Any, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_is_deeper(item, most - 1) for item in items)
