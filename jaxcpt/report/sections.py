"""Sections of the page with tables and lists.

In: values from the run's JSON files. Out: HTML. All text is escaped here. The module does not know
where the values come from.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from jaxcpt.evals import pair_search
from jaxcpt.evals.suites import SUITES, Suite
from jaxcpt.report.charts import format_score
from jaxcpt.report.meanings import explain
from jaxcpt.report.settings import Setting

LOWER_IS_BETTER = ("bits_per_byte", "perplexity")
LABELS = {
    "zx_norm": "length of x before normalising",
    "zy_norm": "length of y before normalising",
}
"""Labels of names that do not explain themselves."""


def make_label(name: str) -> str:
    """A label for people: heldout/recall_at_10 -> heldout recall@10, pairs_per_s -> pairs/s."""
    if name in LABELS:
        return LABELS[name]
    for old, new in ("/", " "), ("_at_", "@"), ("_per_", "/"), ("_", " "):
        name = name.replace(old, new)
    for word in ("MRR", "MAP", "nDCG"):
        name = re.sub(rf"\b{word.lower()}\b", word, name)
    return name


def draw_table(table: Sequence[Mapping[str, Any]], turned: bool = False) -> str:
    """A table of names and scores. The best value of each score is bold.

    The best value is the largest, or the smallest for a score in LOWER_IS_BETTER. turned: draw each
    row of `table` as a column.
    """
    if not table:
        return ""
    names = list(dict.fromkeys(name for row in table for name in row if name != "name"))
    columns = [["<th></th>"] + [f"<th>{escape(str(row.get('name', '')))}</th>" for row in table]]
    for name in names:
        values = [float(row[name]) if name in row else None for row in table]
        there = [value for value in values if value is not None and not math.isnan(value)]
        pick = min if name.rpartition("/")[2] in LOWER_IS_BETTER else max
        best = pick(there, default=math.nan)
        column = [f"<th>{escape(make_label(name))}</th>"]
        for value in values:
            mark = ' class="best"' if value == best else ""
            column.append(
                "<td>-</td>" if value is None else f"<td{mark}>{format_score(value)}</td>"
            )
        columns.append(column)
    lines = columns if turned else list(zip(*columns, strict=True))
    rows = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f"<table>{rows}</table>"


def draw_searches(summary: Mapping[str, Any]) -> str:
    """A line on how many held-out texts are searched; empty for runs of older versions."""
    counts = summary.get("heldout")
    return f"<p>{pair_search.describe(**counts)}.</p>" if counts else ""


def draw_suites(recorded: Mapping[str, Any]) -> str:
    """A table for each suite in suites.json, in the order of SUITES."""
    tables = recorded.get("suites", {})
    parts = [
        _draw_suite(suite, lines, recorded["step"])
        for suite in SUITES.values()
        if (lines := tables.get(suite.name))
    ]
    names = [line["name"] for lines in tables.values() for line in lines]
    meanings = draw_meanings(names)
    return f'<div class="suites">{"".join(parts)}</div>{meanings}' if parts else ""


def _draw_suite(suite: Suite, lines: Sequence[Mapping[str, Any]], step: int) -> str:
    """A table of this run's scores, those of word matching and published ones, and caveats."""
    published = any(line["published"] for line in lines)
    started = any(line.get("before") is not None for line in lines)
    rows = ""
    for line in lines:
        folder, _, score = line["name"].rpartition("/")  # names of sets are not changed
        star = "*" if line["caveat"] else ""
        name = f"{folder} {make_label(score)}{star}" if folder else f"{score}{star}"
        rows += f"<tr><th>{escape(name)}</th><td>{format_score(line['score'])}</td>"
        for score in [line.get("before")] * started + [line["words"]]:
            rows += f"<td>{'-' if score is None else format_score(score)}</td>"
        rows += f'<td class="text">{escape(line["published"])}</td>' * published + "</tr>"
    head = "<tr><th></th><th>this run</th>" + "<th>before training</th>" * started
    head += f"<th>{suite.words_label}</th>"
    head += '<th class="text">published</th>' * published + "</tr>"
    caveats = dict.fromkeys(line["caveat"] for line in lines if line["caveat"])
    notes = f"<p>{escape(suite.note)}.</p>" if suite.note else ""
    notes += "".join(f"<p>* Not to be compared: {escape(caveat)}.</p>" for caveat in caveats)
    title = f"<h3>{escape(make_label(suite.name))}, step {step:,}</h3>"
    return f"<div>{title}<table>{head}{rows}</table>{notes}</div>"


def draw_examples(examples: Sequence[Mapping[str, Any]]) -> str:
    """Each query with the texts found for it. The first text is unfolded."""
    parts = []
    for example in examples:
        parts.append(f"<h3>{escape(str(example['query']))}</h3>")
        for rank, result in enumerate(example["results"], start=1):
            right = ' <em class="right">✓ right</em>' if result.get("right") else ""
            parts.append(
                f"<details{' open' if rank == 1 else ''}><summary>{rank}. "
                f"<code>{escape(str(result.get('source', '')))}</code> "
                f"<span>{format_score(result['score'])}</span>{right}</summary>"
                f"<pre>{escape(str(result['text']))}</pre></details>"
            )
    return "".join(parts)


def draw_list(facts: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; empty if there are none."""
    items = "".join(f"<dt>{escape(n)}</dt><dd>{escape(text) or '-'}</dd>" for n, text in facts)
    return f"<dl>{items}</dl>" if items else ""


def draw_settings(settings: Sequence[Setting]) -> str:
    """The values that the experiment chose, followed by a folded list of the defaults."""
    chosen = [(s.path, s.value) for s in settings if not s.is_default]
    defaults = [(s.path, s.value) for s in settings if s.is_default]
    if not defaults:
        return draw_list(chosen)
    head = f"<summary>{len(defaults)} values that are the default</summary>"
    return f"{draw_list(chosen)}<details>{head}{draw_list(defaults)}</details>"


def draw_meanings(names: Iterable[str], is_generative: bool = False) -> str:
    """A folded list that explains the scores. Each kind of score occurs once."""
    kinds = dict.fromkeys(name.rpartition("/")[2] for name in names)
    meanings = {make_label(k): m for k in kinds if (m := explain(k, is_generative))}
    if not meanings:
        return ""
    return (
        f"<details><summary>What the scores mean</summary>{draw_list(meanings.items())}</details>"
    )
