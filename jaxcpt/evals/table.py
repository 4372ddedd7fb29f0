"""Scores of the paper's suites for a person to read: ours, those of words alone and
published ones in a row.

In: scores by `<suite>/<name>`. Out: rows, suite by suite. It computes no score.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxcpt.evals.published import FIGURES, list_caveats

WORDS = {
    "linear_probe": "bag of words",
    "sts": "bag of words",
    "retrieval": "BM25",
    "code_search": "BM25",
    "open_qa": "BM25",
}
"""What matches words alone in each suite."""


class Line(NamedTuple):
    name: str
    score: float
    words: float | None
    published: str
    """Systems and their scores, in words."""
    caveat: str
    """Why the published ones cannot be compared with it; empty: they can."""


def tabulate(
    scores: Mapping[str, float], words: Mapping[str, float], data: Path
) -> dict[str, list[Line]]:
    """The lines of each suite. Of similarity, the Spearman correlations over whole sets alone."""
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
        line = Line(name, score, words.get(full_name), published, caveat)
        tables.setdefault(suite, []).append(line)
    return tables
