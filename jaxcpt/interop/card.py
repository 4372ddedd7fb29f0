"""The model card of an exported folder: what it is, how to use it, how it was made and scored."""

import json
from pathlib import Path
from typing import Any

from jaxcpt.config import Experiment
from jaxcpt.experiments import to_json

LIBRARY_EXAMPLE = """    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer("{name}")
    queries = model.encode_query(["parse a date from a string"])
    documents = model.encode_document(["def parse_date(text): ..."])
    print(model.similarity(queries, documents))
"""


def write_card(run_dir: Path, experiment: Experiment, step: int, name: str) -> str:
    """README.md with the front matter that model hubs read."""
    m, t = experiment.model, experiment.tokenizer
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, feature-extraction, sentence-similarity, jaxcpt]",
        "---",
        "",
        f"# {name}",
        "",
        f"Text embeddings of {m.width} dimensions, compared by the cosine. Made by jaxcpt from the "
        f"run `{experiment.name}`, step {step:,}.",
        "",
        "## Use",
        "",
        LIBRARY_EXAMPLE.format(name=name),
        "## Model",
        "",
        "| | |",
        "|---|---|",
        f"| layers, width, heads | {m.layers}, {m.width}, {m.heads} |",
        f"| pooling | {m.pooling} |",
        f"| longest x, longest y | {t.x_tokens}, {t.y_tokens} tokens |",
        f"| vocabulary | {t.vocabulary:,} |",
    ]
    if experiment.init_from is not None:
        lines.append(f"| started from | {experiment.init_from.run} |")
    lines += _list_scores(run_dir)
    lines += _list_sources(experiment)
    lines += ["", "## Configuration", "", "```json", to_json(experiment), "```", ""]
    return "\n".join(lines)


def _list_scores(run_dir: Path) -> list[str]:
    """The last scores of the run, if it has measured any."""
    path = run_dir / "evals.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if not rows:
        return []
    scores: dict[str, Any] = rows[-1]
    table = [
        f"| {key} | {value:.4f} |" for key, value in scores.items() if isinstance(value, float)
    ]
    return [
        "",
        f"## Scores at step {scores.get('step')}",
        "",
        "| score | value |",
        "|---|---|",
        *table,
    ]


def _list_sources(experiment: Experiment) -> list[str]:
    if not experiment.data.train:
        return []
    names = [f"- `{source}`" for source in experiment.data.train]
    return ["", "## Training data", "", *names]
