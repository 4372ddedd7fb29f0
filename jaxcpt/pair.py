"""`Pair`, two texts that belong together, and the names of its two sides."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["x", "y"]
"""x is what searches (a query, a docstring); y is what is found (a document, a function)."""


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together, and texts that are known not to answer x."""

    x: str
    y: str
    source: str = ""
    """The origin of the pair, such as a file and a line. It is not a data source of `config`."""
    negatives: tuple[str, ...] = ()
    """Hard negatives: texts that are similar to y but do not answer x, hardest first."""
