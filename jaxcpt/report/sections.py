"""Sections of the page that hold text: what the run's JSON files say in, HTML out.

All text is escaped here, whatever file it comes from.
"""

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxcpt.evals.suites import SUITES, Suite
from jaxcpt.report.charts import format_score

LOWER_IS_BETTER = ("bits_per_byte", "perplexity")


def make_label(name: str) -> str:
    """heldout/recall_at_10 -> heldout recall@10, pairs_per_s -> pairs/s"""
    for old, new in ("/", " "), ("_at_", "@"), ("_per_", "/"), ("_", " "):
        name = name.replace(old, new)
    for word in ("MRR", "MAP", "nDCG"):
        name = re.sub(rf"\b{word.lower()}\b", word, name)
    return name


def draw_table(table: Sequence[Mapping[str, Any]]) -> str:
    """Rows with a name and scores. The best score of each column is bold: the largest, but for
    LOWER_IS_BETTER."""
    if not table:
        return ""
    names = list(dict.fromkeys(name for row in table for name in row if name != "name"))
    best = {
        name: (min if name in LOWER_IS_BETTER else max)(float(r[name]) for r in table if name in r)
        for name in names
    }
    lines = []
    for row in table:
        cells = [f"<th>{escape(str(row.get('name', '')))}</th>"]
        for name in names:
            value = float(row[name]) if name in row else math.nan
            mark = ' class="best"' if value == best[name] else ""
            cells.append(f"<td{mark}>{format_score(value)}</td>" if name in row else "<td>-</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(make_label(name))}</th>" for name in names)
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def draw_suites(recorded: Mapping[str, Any]) -> str:
    """A table for each suite in suites.json, in the order of SUITES."""
    tables = recorded.get("suites", {})
    parts = [
        _draw_suite(suite, lines, recorded["step"])
        for suite in SUITES.values()
        if (lines := tables.get(suite.name))
    ]
    return f'<div class="suites">{"".join(parts)}</div>' if parts else ""


def _draw_suite(suite: Suite, lines: Sequence[Mapping[str, Any]], step: int) -> str:
    """This run's scores beside those of words alone and published ones; caveats below them."""
    published = any(line["published"] for line in lines)
    started = any(line.get("before") is not None for line in lines)
    rows = ""
    for line in lines:
        folder, _, score = line["name"].rpartition("/")  # names of sets stay as they are
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


def draw_tree(value: Mapping[str, Any]) -> str:
    """Nested objects and lists as nested lists of names and values."""
    leaves, branches = [], []
    for name, item in value.items():
        if isinstance(item, list) and any(isinstance(entry, dict) for entry in item):
            item = {str(index): entry for index, entry in enumerate(item)}
        if isinstance(item, dict):
            kind = escape(str(item.get("type", "")))
            head = f"<summary>{escape(name)} <span>{kind}</span></summary>"
            branches.append(f"<details open>{head}{draw_tree(item)}</details>")
        elif name != "type":
            text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
            leaves.append(f"<dt>{escape(name)}</dt><dd>{escape(text) or '-'}</dd>")
    listed = f"<dl>{''.join(leaves)}</dl>" if leaves else ""
    return f'{listed}<div class="tree">{"".join(branches)}</div>' if branches else listed
