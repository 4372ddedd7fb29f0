"""Documents in, pairs out: pure functions that know no model, no tokenizer and no batch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together, and texts known not to answer x."""

    x: str
    y: str
    source: str = ""
    negatives: tuple[str, ...] = ()
