"""Tables of the paper's suites: our scores beside those of word matching and published ones.

In: scores by `<suite>/<name>`. Out: the lines of a table for each suite. The module computes no
score.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxcpt.evals.published import FIGURES, is_published_form, list_caveats
from jaxcpt.evals.sts_files import ALL, MEAN, STS_B

PUBLISHED_FORM = "this form"
"""Marks the row to compare with published figures, if a set has several rows."""


class Line(NamedTuple):
    name: str
    score: float
    words: float | None
    """The score of the baseline that only matches words; None if there is none."""
    before: float | None
    """The score at step 0, if the run starts from another model."""
    published: str
    """Published systems and their scores, as text. Begins with PUBLISHED_FORM in a marked row."""
    caveat: str
    """Why the score cannot be compared with published ones; empty if it can."""


def is_shown(name: str) -> bool:
    """Whether the table of a suite shows this score. Only the suite sts leaves some out."""
    part = name.split("/")[1]
    is_whole = name.startswith(f"{STS_B}/") or part in (MEAN, ALL)
    return is_whole and name.endswith("/spearman")


def tabulate(
    scores: Mapping[str, float],
    words: Mapping[str, float],
    data: Path,
    before: Mapping[str, float] | None = None,
) -> dict[str, list[Line]]:
    """The lines of each suite's table.

    The suite sts shows only Spearman correlations of whole sets and of the parts of STS-B. before:
    the scores at step 0; None if the run did not start from another model.
    """
    caveats = list_caveats(data)
    tables: dict[str, list[Line]] = {}
    for full_name, score in scores.items():
        suite, _, name = full_name.partition("/")
        is_form = is_published_form(full_name)
        if suite == "sts" and not is_shown(name):
            continue
        figures = FIGURES.get(full_name, {})
        published = ", ".join(
            [PUBLISHED_FORM] * is_form + [f"{who} {value:.3f}" for who, value in figures.items()]
        )
        caveat = next((why for start, why in caveats.items() if full_name.startswith(start)), "")
        first = (before or {}).get(full_name)
        line = Line(name, score, words.get(full_name), first, published, caveat)
        tables.setdefault(suite, []).append(line)
    return tables
