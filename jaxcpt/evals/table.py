"""Tables of the paper's suites: our scores beside those of words alone and published ones.

In: scores by `<suite>/<name>`. Out: the lines of a table for each suite. It computes no score.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxcpt.evals.published import FIGURES, list_caveats


class Line(NamedTuple):
    name: str
    score: float
    words: float | None
    """The score of matching words alone, where there is one."""
    before: float | None
    """The score at step 0 of a run that starts from another model."""
    published: str
    """Systems and their scores, as text."""
    caveat: str
    """Why the score cannot be compared with published ones. Empty: it can."""


def tabulate(
    scores: Mapping[str, float],
    words: Mapping[str, float],
    data: Path,
    before: Mapping[str, float] | None = None,
) -> dict[str, list[Line]]:
    """The lines of each suite. The suite sts shows only Spearman correlations of whole sets.

    before: the scores at step 0. None: the run did not start from another model.
    """
    caveats = list_caveats(data)
    tables: dict[str, list[Line]] = {}
    for full_name, score in scores.items():
        suite, _, name = full_name.partition("/")
        if suite == "sts" and not name.endswith(("/mean/spearman", "/all/spearman")):
            continue
        published = ", ".join(
            f"{who} {value:.3f}" for who, value in FIGURES.get(full_name, {}).items()
        )
        caveat = next((why for start, why in caveats.items() if full_name.startswith(start)), "")
        first = (before or {}).get(full_name)
        line = Line(name, score, words.get(full_name), first, published, caveat)
        tables.setdefault(suite, []).append(line)
    return tables
