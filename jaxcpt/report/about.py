"""The sections in words: the purpose of the run, its limits, its data, its history and its use.

In: the files of a run. Out: HTML. Each sentence is left out if the files do not support it, so the
page of a run of an older version, which recorded less, has fewer sentences. The module draws no
curves.
"""

import json
import math
import shlex
from collections.abc import Sequence
from datetime import datetime
from html import escape
from urllib.parse import quote

from jaxcpt.data_cards import CARD_TABLES, read_data_card
from jaxcpt.errors import UserError
from jaxcpt.evals.suites import SUITES
from jaxcpt.fingerprints import HELD_OUT
from jaxcpt.quantities import shorten
from jaxcpt.report.charts import format_score
from jaxcpt.report.inputs import Run
from jaxcpt.report.sections import LOWER_IS_BETTER, draw_list, make_label

MOST_NAMED = 4
"""Most scores that a sentence names. Further ones are only counted."""
LONGEST_SECONDS = 1e12
"""Most seconds of training. A larger number means that the file is damaged."""
FILES = {
    "experiment.json": "every value of the run",
    "metrics.jsonl": "the numbers of training",
    "evals.jsonl": "the scores by step",
    "summary.json": "the last comparison on held-out pairs",
    "suites.json": "the last scores on test sets",
    "starts.jsonl": "each start: date, command, commit, versions, machine",
    "imported.json": "the model that was imported",
}


def describe_run(run: Run) -> str:
    """What the run is, in a sentence: its start, and the number and the origin of its pairs."""
    if run.is_imported:
        source = run.imported.get("source", "an imported model")
        return f"This is {source}, which has not been trained here."
    start = (run.experiment.get("init_from") or {}).get("run", "a new model")
    data = run.starts[-1]["data"] if run.starts else []
    trained = [entry for entry in data if not entry["name"].startswith(HELD_OUT)]
    count = f"{sum(entry['pairs'] for entry in trained):,} " if trained else ""
    names = list(dict.fromkeys([entry["name"] for entry in trained] or _name_sources(run)))
    if more := names[MOST_NAMED:]:
        names[MOST_NAMED:] = [f"{len(more)} more"]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return f"This run trains {start}{f' on {count}pairs of {listed}' if names else ''}."


def _name_sources(run: Run) -> list[str]:
    """The name of each data source in the experiment."""
    sources = run.experiment.get("data", {}).get("train", [])
    return [s.get("directory") or s.get("path") or "installed packages" for s in sources]


def draw_purpose(run: Run) -> str:
    """The section on what the model does, and on its known limits."""
    width = run.experiment.get("model", {}).get("width")
    if run.is_generative:
        what = (
            "This model predicts the next token of a text. A model that embeds texts can be "
            "trained from it. It cannot search texts itself."
        )
    else:
        what = (
            f"This model turns a text into a vector{f' of {width:,} numbers' if width else ''}. "
            "Texts that belong together get vectors that point in nearly the same direction. Use "
            "it to search texts, to compare them and to group them."
        )
    limits = [*_list_length_limits(run), *_list_training_limits(run), *_compare(run)]
    items = "".join(f"<li>{escape(limit)}</li>" for limit in limits)
    return f"<p>{what}</p><ul>{items}</ul>"


def _list_length_limits(run: Run) -> list[str]:
    tokenizer = run.experiment.get("tokenizer", {})
    x, y = tokenizer.get("x_tokens"), tokenizer.get("y_tokens")
    if not x or not y:
        return []
    return [
        f"It reads the first {x:,} tokens of a query (x) and the first {y:,} of a document (y). "
        "Further tokens are cut off."
    ]


def _list_training_limits(run: Run) -> list[str]:
    limits = ["It knows the kind of text that it was trained on. Measure it on your own texts."]
    total = run.experiment.get("train_steps", 0)
    if run.step < total:
        limits.append(f"Its training has not ended: step {run.step:,} of {total:,}.")
    if not run.evals:
        limits.append("It has not been scored yet, so its quality is not known.")
    elif run.experiment.get("data", {}).get("heldout"):
        limits.append(
            "Held-out scores hold for texts like the held-out pairs. On other texts they are "
            "likely to be lower."
        )
    return limits


def _compare(run: Run) -> list[str]:
    """Sentences that compare the scores with word matching and with the start of training."""
    by_name = {row["name"]: row for row in run.summary.get("table", [])}
    own = by_name.pop("this run", {})
    place = "predicting the held-out texts" if run.is_generative else "the held-out search"
    sentences = []
    for other in ("BM25", "xz", "before training"):
        against = by_name.get(other, {})
        both = [name for name in own if name in against and name != "name"]
        lines = [(make_label(name), own[name], against[name], name) for name in both]
        sentences += _weigh(f"In {place}", other, lines)
    for suite in SUITES.values():
        lines = run.suites.get("suites", {}).get(suite.name, [])
        for other, column in ((suite.words_label, "words"), ("before training", "before")):
            found = [
                (make_label(line["name"]), line["score"], line[column], line["name"])
                for line in lines
                if line.get(column) is not None
            ]
            sentences += _weigh(f"In {make_label(suite.name)}", other, found)
    return sentences


def _weigh(place: str, other: str, lines: Sequence[tuple[str, float, float, str]]) -> list[str]:
    """A sentence about the scores that are worse than those of `other`, or that none is worse.

    lines: label, this run's score, the other's score, and the name of the score. A score of the
    run that is not a number is worse than any. Nothing is compared with another's that is none.
    """
    lines = [line for line in lines if not math.isnan(line[2])]
    if not lines:
        return []
    worse = [
        f"{label} {format_score(own)} against {format_score(against)}"
        for label, own, against, name in lines
        if not (own <= against if name.rpartition("/")[2] in LOWER_IS_BETTER else own >= against)
    ]
    against = "it was before training" if other == "before training" else other
    if not worse:
        return [
            f"{place} it is at least as good as {against} in {len(lines)} of {len(lines)} scores."
        ]
    more = f", and {len(worse) - MOST_NAMED} more" if len(worse) > MOST_NAMED else ""
    return [
        f"{place} it is worse than {against} in {len(worse)} of {len(lines)} scores: "
        f"{'; '.join(worse[:MOST_NAMED])}{more}."
    ]


def draw_pairs(run: Run) -> str:
    """The section on the pairs: their number, their data sources and their data cards."""
    rows = []
    if run.starts:
        found = [(entry["name"], entry["pairs"]) for entry in run.starts[-1]["data"]]
        rows = [(_say_held_out(name), f"{pairs:,} pairs") for name, pairs in found]
    sources = run.experiment.get("data", {}).get("train", [])
    folders = [source.get("directory") or source.get("path") or "" for source in sources]
    if not rows:
        kinds = [str(source.get("type", "")) for source in sources]
        rows = list(zip(_name_sources(run), kinds, strict=True))
    cards = "".join(_draw_card(folder) for folder in dict.fromkeys(folders))
    return draw_list(rows) + cards


def _say_held_out(name: str) -> str:
    """The recorded name of a data source in plain words."""
    bare = name.removeprefix(HELD_OUT)
    return name if bare == name else f"held-out pairs: {bare}"


def _draw_card(folder: str) -> str:
    """The data card of a mined data source, folded. For a damaged card, a line that says so."""
    try:
        card = read_data_card(folder)
    except (UserError, OSError) as error:
        return f'<p class="bad">{escape(str(error))}</p>'
    if card is None:
        return ""
    numbers = [
        (f"{part}: {name}", str(value))
        for part in CARD_TABLES
        for name, value in card[part].items()
    ]
    head = escape(f"How {card['name']} {card['version']} was mined into {folder}")
    return f"<details><summary>{head}</summary>{draw_list(numbers)}</details>"


def draw_history(run: Run) -> str:
    """The section on dates, duration, command, commit, versions, machine, memory and work done."""
    facts: dict[str, str] = {}
    end = run.summary.get("end", {})
    if run.starts:
        first, last = run.starts[0], run.starts[-1]
        facts["started"] = _format_date(first["date"])
        if resumes := len(run.starts) - 1:
            steps = ", ".join(f"{start['step']:,}" for start in run.starts[1:][-MOST_NAMED:])
            count = f"{resumes:,} times, at last " if resumes > MOST_NAMED else ""
            facts["started again"] = f"{count}after step {steps}"
    if end:
        facts["ended"] = _format_date(end["date"])
    if run.starts and end:
        begun, ended = (datetime.fromisoformat(text) for text in (first["date"], end["date"]))
        facts["from start to end"] = format_seconds((ended - begun).total_seconds())
    facts |= _count_work(run)
    if run.starts:
        facts |= {
            "command": last["command"],
            "commit": last["commit"] or "",
            "versions": ", ".join(f"{name} {text}" for name, text in last["versions"].items()),
            "host": last["host"],
            "processes": f"{last['processes']:,}",
            "devices": last["devices"],
        }
    for name, label in (
        ("host_memory_bytes", "peak host memory"),
        ("device_memory_bytes", "peak device memory"),
    ):
        if name in end:
            facts[label] = f"{shorten(end[name])}B"
    return draw_list((name, text) for name, text in facts.items() if text)


def _count_work(run: Run) -> dict[str, str]:
    """Pairs, tokens and seconds of training, computed from the rates in the rows of metrics.

    A row has the rates since the row before it. Steps without a row, because the run was stopped,
    are assumed to have the rates of the next row.
    """
    batch = run.experiment.get("batching", {}).get("pairs_per_batch")
    if not batch or not run.rows:
        return {}
    facts = {"pairs seen": f"{batch * int(run.rows[-1]['step']):,}"}
    seconds, tokens, before = 0.0, 0.0, 0.0
    for row in run.rows:
        if "pairs_per_s" not in row or "tokens_per_s" not in row:
            continue  # the row of a bad step has no rates
        pairs, before = batch * (row["step"] - before), row["step"]
        seconds += pairs / (row["pairs_per_s"] or math.inf)
        tokens += pairs * row["tokens_per_s"] / (row["pairs_per_s"] or math.inf)
    if 0 < seconds < LONGEST_SECONDS and 0 < tokens < math.inf:
        facts["tokens seen"] = f"about {shorten(tokens)}, without padding"
        facts["time in steps"] = f"{format_seconds(seconds)}, without evals and checkpoints"
    return facts


def _format_date(text: str) -> str:
    """The recorded date in a form that is easier to read."""
    return text.replace("T", " ").replace("+00:00", " UTC")


def format_seconds(seconds: float) -> str:
    """A duration in at most two units, such as 1 d 3 h, 2 min 5 s or 4 s."""
    left = max(round(seconds), 0)
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size or parts:
            parts.append(f"{left // size:,} {unit}")
        left %= size
    return " ".join(parts[:2]) or "0 s"


def draw_use(run: Run) -> str:
    """The section with commands and code that load the run."""
    text, word = json.dumps(str(run.folder)), shlex.quote(str(run.folder))
    if run.is_generative:
        code = f"init_from=InitFrom({text})"
        return f"<p>In a contrastive experiment:</p><pre>{escape(code)}</pre>"
    search = f'jaxcpt search --run-dir {word} "your words"'
    python = (
        "from jaxcpt import Embedder\n\n"
        f"embedder = Embedder.load({text})\n"
        'queries = embedder.embed(["your words"], side="x")\n'
        'documents = embedder.embed(["a text", "another"], side="y")\n'
        "print(queries @ documents.T)"
    )
    export = f"jaxcpt export --run-dir {word} --output exported"
    library = (
        "from sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("exported")\n'
        'queries = model.encode_query(["your words"])\n'
        'documents = model.encode_document(["a text", "another"])\n'
        "print(model.similarity(queries, documents))"
    )
    return (
        f"<p>Search:</p><pre>{escape(search)}</pre><p>From Python:</p><pre>{escape(python)}</pre>"
        "<p>With sentence-transformers, transformers, or another tool that loads such folders:</p>"
        f"<pre>{escape(export)}</pre><pre>{escape(library)}</pre>"
    )


def draw_files(run: Run, start: str = "") -> str:
    """Links to the files of the run. start: the relative path from the page to the run folder."""
    names = [name for name in FILES if (run.folder / name).is_file()]
    links = {name: quote(start + name, safe="/:") for name in names}
    items = "".join(
        f'<li><a href="{link}">{name}</a>: {FILES[name]}</li>' for name, link in links.items()
    )
    return f"<ul>{items}</ul>"
