"""Writes the model card of an exported folder: what it is, how to use it, its data and scores.

In: an experiment, scores and data cards. Out: the text of README.md. The module reads no model.
"""

from collections.abc import Mapping

from jaxcpt.config import Experiment
from jaxcpt.data_cards import CARD_TABLES, DataCard, read_data_card
from jaxcpt.experiments import to_json

LIBRARY_EXAMPLE = """    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer("{name}")
    queries = model.encode_query(["a query"])
    documents = model.encode_document(["a document that it searches for"])
    print(model.similarity(queries, documents))
"""
LIBRARY_TAGS = [
    "library_name: sentence-transformers",
    "pipeline_tag: sentence-similarity",
    "tags: [sentence-transformers, feature-extraction, sentence-similarity, jaxcpt]",
]
ARRAYS = """`shapes.json` lists the arrays of `model.safetensors` under jaxcpt's own names. No other
library loads this folder.
"""


def write_card(
    experiment: Experiment,
    step: int,
    name: str,
    scores: Mapping[str, float],
    cards: Mapping[str, DataCard],
    for_library: bool,
) -> str:
    """The text of README.md, with the front matter that model hubs read.

    scores: the step's row of evals.jsonl; empty if the step was not evaluated. cards: the data
    cards of mined training data, from `read_data_cards`. for_library: whether sentence-transformers
    loads the folder.
    """
    m, t = experiment.model, experiment.tokenizer
    what = f"Text embeddings of {m.width} dimensions, compared by the cosine."
    if experiment.objective == "generative":
        what = f"A model of width {m.width} that predicts the next token."
    lines = [
        "---",
        *(LIBRARY_TAGS if for_library else ["tags: [jaxcpt]"]),
        "---",
        "",
        f"# {name}",
        "",
        f"{what} Made by jaxcpt from the run `{experiment.name}`, step {step:,}.",
        "",
        "## Use",
        "",
        LIBRARY_EXAMPLE.format(name=name) if for_library else ARRAYS,
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
    lines += _list_sources(experiment, cards)
    lines += ["", "## Configuration", "", "```json", to_json(experiment), "```", ""]
    return "\n".join(lines)


def _list_scores(scores: Mapping[str, float]) -> list[str]:
    if not scores:
        return []
    title = f"## Scores at step {scores['step']:,}"
    lines = [f"| {name} | {score:.4f} |" for name, score in scores.items() if name != "step"]
    return ["", title, "", "| score | value |", "|---|---|", *lines]


def _list_sources(experiment: Experiment, cards: Mapping[str, DataCard]) -> list[str]:
    if not experiment.data.train:
        return []
    names = [f"- `{source}`" for source in experiment.data.train]
    lines = ["", "## Training data", "", *names]
    for folder, card in cards.items():
        lines += ["", f"### {card['name']} {card['version']}", "", f"Mined into `{folder}`.", ""]
        lines += ["| | |", "|---|---|"]
        for part in CARD_TABLES:
            lines += [f"| {part}: {name} | {value} |" for name, value in card[part].items()]
    return lines


def read_data_cards(experiment: Experiment) -> dict[str, DataCard]:
    """The data cards in the folders of the training sources, by folder.

    A folder that is missing, or that jaxcpt did not mine, has none. Raises UserError for a damaged
    card.
    """
    folders = [
        getattr(source, "directory", "") or getattr(source, "path", "")
        for source in experiment.data.train
    ]
    return {f: card for f in folders if (card := read_data_card(f)) is not None}
