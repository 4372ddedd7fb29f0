"""Scores several models by the same suites on the same texts, with one column for each model.

In: the data folder, and columns, each with a name and a function that embeds. Out: a table for each
suite, the file of --json, and the scores of runs in their own folders. The module knows neither how
a model is loaded nor how a score is computed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxcpt.evals import CorpusFn, EmbedFn, collect, finish
from jaxcpt.evals.suites import SUITES, run_suites, score_words
from jaxcpt.evals.table import Line, tabulate
from jaxcpt.files import write_file
from jaxcpt.suite_tables import record, show_side_by_side, show_suites


@dataclass(frozen=True, kw_only=True)
class Column:
    """A model, and the scores that it has so far."""

    name: str
    about: str
    """Text that says which model it is, and how much of a text it reads."""
    embed_fn: EmbedFn
    corpus_fn: CorpusFn | None = None
    step: int | None = None
    """The step of a run; None for other models."""
    records_in: Path | None = None
    """The run folder in which the scores are recorded; None: they are not recorded."""
    scores: dict[str, float] = field(default_factory=dict)

    def take(self, of_suite: dict[str, float], tables: dict[str, list[Line]] | None = None) -> None:
        """Adds scores. If the column has a run folder, records them and their tables there."""
        self.scores.update(of_suite)
        if self.records_in and self.step is not None:
            record(self.records_in, self.step, of_suite, tables)


def score_suites(
    columns: Sequence[Column], data: Path, suites: Sequence[str], json_file: Path | None
) -> None:
    """Runs the suites. Shows and records each suite as soon as it ends, also in `json_file`.

    Raises DataRefused at the end if some sets could not be read. The scores of the others are kept.
    """
    words: dict[str, float] = {}
    problems: list[str] = []
    for suite in suites:
        found: dict[str, dict[str, float]] = {}
        for column in columns:
            of_model = f" of {column.name}" if len(columns) > 1 else ""
            print(f"scoring {suite}{of_model}", flush=True)
            found[column.name] = collect(
                problems, run_suites, column.embed_fn, data, [suite], column.corpus_fn
            )
            if found[column.name]:
                column.take(found[column.name])
                write_json(json_file, describe_scores(columns, words))
        if not any(found.values()):
            continue  # none of its sets can be read; the error at the end says why
        print(f"scoring {suite} by {SUITES[suite].words_label}", flush=True)
        words |= collect(problems, score_words, data, [suite])  # after all scores are kept
        tables = {name: tabulate(scores, words, data) for name, scores in found.items()}
        if len(columns) == 1 and columns[0].step is not None:
            show_suites(tables[columns[0].name])
        else:
            show_side_by_side(suite, {name: table.get(suite, []) for name, table in tables.items()})
        for column in columns:
            if found[column.name]:
                column.take({}, tables[column.name])
        write_json(json_file, describe_scores(columns, words))
    finish({}, problems)


def describe_scores(columns: Sequence[Column], words: Mapping[str, float]) -> dict[str, Any]:
    """The content of --json: the step and scores of a single run, or the scores of each model."""
    if len(columns) == 1:
        return {"step": columns[0].step, "scores": columns[0].scores, "words": words}
    models = {
        column.name: {"about": column.about, "step": column.step, "scores": column.scores}
        for column in columns
    }
    return {"models": models, "words": words}


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Writes the scores to the file of --json, if it was given."""
    if path is not None:
        write_file(path, json.dumps(content, indent=1) + "\n")
