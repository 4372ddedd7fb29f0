"""The model card of an exported folder: what it is, how to use it, how it was made and scored."""

from collections.abc import Mapping

from jaxcpt.config import Experiment
from jaxcpt.experiments import to_json

LIBRARY_EXAMPLE = """    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer("{name}")
    queries = model.encode_query(["parse a date from a string"])
    documents = model.encode_document(["def parse_date(text): ..."])
    print(model.similarity(queries, documents))
"""


def write_card(experiment: Experiment, step: int, name: str, scores: Mapping[str, float]) -> str:
    """README.md with the front matter that model hubs read.

    scores: the last row of evals.jsonl. Empty: the run has measured none.
    """
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
    lines += _list_scores(scores)
    lines += _list_sources(experiment)
    lines += ["", "## Configuration", "", "```json", to_json(experiment), "```", ""]
    return "\n".join(lines)


def _list_scores(scores: Mapping[str, float]) -> list[str]:
    if not scores:
        return []
    title = f"## Scores at step {scores['step']:,}"
    lines = [f"| {name} | {score:.4f} |" for name, score in scores.items() if name != "step"]
    return ["", title, "", "| score | value |", "|---|---|", *lines]


def _list_sources(experiment: Experiment) -> list[str]:
    if not experiment.data.train:
        return []
    names = [f"- `{source}`" for source in experiment.data.train]
    return ["", "## Training data", "", *names]
