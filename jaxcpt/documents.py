"""A JSONL file of texts in, the texts with their ids out: what is embedded or searched.

A line that does not fit raises UserError by file and line. The module knows no model and no pairs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcpt.beir import join_title
from jaxcpt.errors import UserError
from jaxcpt.lines import read_jsonl
from jaxcpt.pair import Side
from jaxcpt.vectors import TextWithId


def read_documents(path: Path, side: Side) -> Iterator[TextWithId]:
    """The texts of a JSONL file, plain or gzipped, with their ids. Raises UserError.

    The text is under `text` or under the name of the side. A `title`, as in BEIR, goes before it.
    The id is under `_id`, `id` or `source`; otherwise it is the line's number. Ids may repeat. A
    null counts as absent.
    """
    number = 0
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        text, title = row.get("text"), row.get("title")
        text = row.get(side) if text is None else text
        if not isinstance(text, str):
            raise UserError(f"{where}: no text under 'text' or '{side}'")
        if not isinstance(title, str | None):
            raise UserError(f"{where}: 'title' must be text, found {type(title).__name__}")
        name = _read_id(row, where) or str(number)
        yield TextWithId(name, join_title(title, text) if title else text)
    if not number:
        raise UserError(f"{path}: no texts in it; it needs one JSON object a line")


def _read_id(row: dict[str, Any], where: str) -> str | None:
    """The id of a text; None where it has none. Raises UserError for what a line cannot hold."""
    for key in ("_id", "id", "source"):
        value = row.get(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            name = str(value)
            if "\n" in name or "\r" in name:
                raise UserError(f"{where}: '{key}' holds a line break; ids are kept one a line")
            return name
        if value is not None and key != "source":  # which may be an object that nobody named
            raise UserError(
                f"{where}: '{key}' must be text or a number, found {type(value).__name__}"
            )
    return None
