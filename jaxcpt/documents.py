"""Reads the texts that are embedded or searched from a JSONL file.

In: a file. Out: its texts with their ids. A line that does not fit raises a UserError that names
the file and the line. The module knows no model and no pairs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcpt.beir import join_title
from jaxcpt.errors import UserError
from jaxcpt.lines import list_names, name_type, read_jsonl
from jaxcpt.pair import Side
from jaxcpt.vectors import TextWithId


def read_documents(path: Path, side: Side) -> Iterator[TextWithId]:
    """The texts of a JSONL file, plain or gzipped, with their ids. Raises UserError.

    The text is the value of `text` or of the side's name (x or y). A `title`, as in BEIR, is put
    before it. The id is the value of `_id`, `id` or `source`, or else the line's number. Ids may
    repeat. A null counts as absent.
    """
    number = 0
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        key = side if row.get("text") is None and side in row else "text"
        if key not in row:
            raise UserError(f"{where}: no text under 'text' or '{side}'; keys: {list_names(row)}")
        text, title = row[key], row.get("title")
        if not isinstance(text, str):
            raise UserError(f"{where}: '{key}' must be text, found {name_type(text)}")
        if not isinstance(title, str | None):
            raise UserError(f"{where}: 'title' must be text, found {type(title).__name__}")
        name = _read_id(row, where) or str(number)
        yield TextWithId(name, join_title(title, text) if title else text)
    if not number:
        raise UserError(f"{path}: no texts in it; it needs one JSON object a line")


def _read_id(row: dict[str, Any], where: str) -> str | None:
    """The id of a text; None if it has none. Raises UserError for an id that is not one line."""
    for key in ("_id", "id", "source"):
        value = row.get(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            name = str(value)
            if "\n" in name or "\r" in name:
                raise UserError(f"{where}: '{key}' holds a line break; an id must be one line")
            return name
        if value is not None and key != "source":  # `source` may hold something else
            raise UserError(
                f"{where}: '{key}' must be text or a number, found {type(value).__name__}"
            )
    return None
