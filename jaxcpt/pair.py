"""`Pair`, two texts that belong together, and the names of its two sides."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["x", "y"]
"""x is what searches (a query, a docstring); y is what is found (a document, a function)."""


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together, and texts known not to answer x."""

    x: str
    y: str
    source: str = ""
    """Where the pair is from, such as a file and a line."""
    negatives: tuple[str, ...] = ()
    """Hard negatives: texts like y that do not answer x, hardest first."""
