"""Makes a `Pair` from a row of any format, by the same rules for every reader.

In: a row, which is a mapping from the names of columns to values. Out: a `Pair`. Texts are str, or
bytes of UTF-8. Hard negatives are a list of texts; a missing list or a null means none. The column
`source` is optional and names the origin of the pair: text and numbers are used, and for any other
value the file's own name is used instead. The module knows no format.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from jaxcpt.errors import MissingField, UserError
from jaxcpt.lines import list_names, name_type
from jaxcpt.pair import Pair
from jaxcpt.sources import Columns

NEGATIVES = "negatives"
"""The default name of the column of hard negatives. A column of this name may be absent."""


def check_columns(have: Collection[Any], source: Columns, where: str) -> None:
    """Raises UserError if `have` lacks a column that the data source names, or has it twice."""
    needed = [source.x, source.y] + [source.negatives] * (source.negatives != NEGATIVES)
    if missing := [name for name in needed if name not in have]:
        there = list_names(sorted(map(str, have)))
        raise MissingField(f"{where}: no column '{missing[0]}'; there are: {there}")
    names = list(have)
    if twice := [name for name in list_wanted(source) if names.count(name) > 1]:
        raise UserError(f"{where}: has the column '{twice[0]}' twice; rename one")


def list_wanted(source: Columns) -> list[str]:
    """The distinct columns from which a pair is made."""
    return list(dict.fromkeys((source.x, source.y, source.negatives, "source")))


def make_pair(row: Mapping[str, Any], source: Columns, where: str, label: str) -> Pair:
    """The pair in a row, by the column names of the data source.

    where: the row's file and place, for errors. label: the pair's origin if the row names none.
    Raises UserError for a value that is not text.
    """

    def text(name: str, value: Any) -> str:
        try:
            read = read_text(value)
        except UnicodeError as error:
            raise UserError(f"{where}: '{name}' is not UTF-8: {error}") from None
        if read is None:
            raise UserError(f"{where}: '{name}' must be text, found {name_type(value)}")
        return read

    own_label = make_label(row.get("source"))
    return Pair(
        text(source.x, row.get(source.x)),
        text(source.y, row.get(source.y)),
        label if own_label is None else own_label,
        tuple(text(source.negatives, n) for n in _list_negatives(row, source.negatives, where)),
    )


def _list_negatives(row: Mapping[str, Any], name: str, where: str) -> Iterable[Any]:
    found = row.get(name)
    if found is None:
        return []
    if isinstance(found, str | bytes):  # a tf.train.Example has a list of one as the text itself
        return [found]
    # Iterating over a mapping gives its keys. In MS MARCO these are names of search systems.
    is_list = isinstance(found, list | tuple) or (isinstance(found, np.ndarray) and found.ndim)
    wrong = found if not is_list else next((n for n in found if not isinstance(n, str | bytes)), "")
    if not isinstance(wrong, str | bytes):
        kind = "a list with " * bool(is_list) + type(wrong).__name__
        raise UserError(f"{where}: '{name}' must be a list of texts, found {kind}")
    return found


def read_text(value: Any) -> str | None:
    """The text in a value; None if it is not text. Raises UnicodeError if it is not UTF-8."""
    value = value.decode() if isinstance(value, bytes) else value
    if not isinstance(value, str):
        return None
    value.encode()  # finds lone surrogates
    return str(value)


def make_label(value: Any) -> str | None:
    """The value as text, if it is text or a finite number; otherwise None."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return None if value != value or abs(value) == math.inf else str(value)
    try:
        return read_text(value)
    except UnicodeError:
        return None
