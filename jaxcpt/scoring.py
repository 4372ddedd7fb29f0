"""Scores a run: during training, at its end, and when it is evaluated later.

In: an experiment, `embed_fn` or an `Embedder`, and a run folder. Out: scores by name, tables on the
terminal, and the files `summary.json`, `suites.json`, `evals.jsonl` and the report in the run
folder. `evals` computes the scores; this module does not know how.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt import likelihood
from jaxcpt.config import Experiment
from jaxcpt.embed import Embedder, describe_file
from jaxcpt.evals import CorpusFn, EmbedFn, collect, note, pair_search
from jaxcpt.evals.suites import run_suites, score_words
from jaxcpt.evals.table import tabulate
from jaxcpt.experiments import BASELINE, find_shared_folder
from jaxcpt.files import to_path, write_file
from jaxcpt.lines import find_file
from jaxcpt.metrics import EVALS_FILE, find_row
from jaxcpt.object_cache import fetch
from jaxcpt.pair import Pair, Side
from jaxcpt.pairs import open_source
from jaxcpt.processes import is_first
from jaxcpt.provenance import SUMMARY_FILE, find_end
from jaxcpt.report import write_report
from jaxcpt.suite_tables import record_tables, show_suites
from jaxcpt.terminal import print_table
from jaxcpt.top_k import top_k
from jaxcpt.vectors import Storage, TextWithId, fill

SEARCH_HEADINGS = {
    "name": "searcher",
    "mrr": "MRR",
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
}
PREDICTION_TITLE = "The held-out texts, token by token"
PREDICTION_HEADINGS = {
    "name": "predicted by",
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity",
}
EXAMPLES = 3
RESULTS_PER_EXAMPLE = 3


def read_heldout(
    experiment: Experiment, run_dir: Path, given: Mapping[Side, str] | None = None
) -> list[Pair]:
    """The held-out pairs of a run, with the prefixes of their data source; empty if it has none.

    given: prefixes that the user chose. A side in it gets no prefix here, because `Embedder` adds
    the chosen one.
    """
    if experiment.data.heldout is None:
        return []
    bare: Any = {f"{side}_prefix": "" for side in given or ()}
    source = dataclasses.replace(experiment.data.heldout, **bare)
    pairs = open_source(source, find_shared_folder(run_dir), experiment.seed)
    return pairs.read(range(len(pairs)))


def score(
    experiment: Experiment,
    embedder: Embedder,
    heldout: Sequence[Pair],
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The scores of one eval of a run, by `heldout/<score>` and `<suite>/<score>`.

    If a set of a suite cannot be read, a printed line names it and its scores are left out. check:
    called before each set of texts is embedded. It may raise an error to stop the eval.
    """

    def checked(embedder: Embedder) -> EmbedFn:
        def embed(texts: Sequence[str], side: Side) -> np.ndarray:
            check()
            return embedder.embed(texts, side)

        return embed

    scores: dict[str, float] = {}
    if heldout and experiment.objective == "generative":
        measured = measure_likelihood(embedder, heldout, check)
        scores = {f"heldout/{name}": value for name, value in measured.score().items()}
    elif heldout:
        of_heldout = pair_search.run(checked(embedder.of_sources), heldout)
        scores = {f"heldout/{name}": value for name, value in of_heldout.items()}
    if experiment.evals.suites:
        problems: list[str] = []
        data, suites = fetch(to_path(experiment.evals.data)), experiment.evals.suites
        scores |= collect(problems, run_suites, checked(embedder), data, suites)
        for problem in problems:
            note(f"not scored: {problem}")
    return scores


def lacks_evals(run_dir: Path, experiment: Experiment, step: int) -> bool:
    """Whether the eval of a saved step was due but has no row, because the run ended before it."""
    if step == 0:
        is_due = experiment.init_from is not None  # to show what training adds
    else:
        is_due = step % experiment.evals.every_steps == 0 or step == experiment.train_steps
    wanted = {*(["heldout"] if experiment.data.heldout else []), *experiment.evals.suites}
    found = {name.partition("/")[0] for name in find_row(run_dir / EVALS_FILE, step)}
    return is_due and not wanted <= found


def conclude(
    run_dir: Path, embedder: Embedder, heldout: Sequence[Pair], derived: dict[str, str]
) -> None:
    """Compares a trained run with its baselines, shows the tables, and writes the report.

    derived: the derived numbers of the run, for the report (`budget.describe`). All processes must
    call it, because all of them embed. Only the first one prints and writes.
    """
    experiment = embedder.experiment
    data, suites = fetch(to_path(experiment.evals.data)), experiment.evals.suites
    summary: dict[str, Any] = {"derived": derived}
    before, last = (find_row(run_dir / EVALS_FILE, step) for step in (0, embedder.step))
    is_generative = experiment.objective == "generative"
    if heldout and is_generative:
        summary |= compare_likelihood(embedder, heldout, before)
    elif heldout:
        embed_fn = embedder.of_sources.embed
        summary |= compare_heldout(run_dir, embed_fn, heldout, before)
    # All processes compute these, so that the others do not wait for the first one.
    words = collect([], score_words, data, suites)  # `score` has printed the problems
    if not is_first():
        return
    scores = {name: value for name, value in last.items() if name.partition("/")[0] in suites}
    tables = tabulate(scores, words, data, before)
    show_comparison(summary)
    show_suites(tables)
    summary["end"] = find_end(run_dir, embedder.step)
    write_file(run_dir / SUMMARY_FILE, json.dumps(summary, indent=1))
    if tables:
        record_tables(run_dir, embedder.step, tables)
    print(f"report: {write_report(run_dir)}")
    if is_generative:
        print(f"tune it: train a contrastive experiment with init_from=InitFrom('{run_dir}')")
    else:
        print(f"search: jaxcpt search --run-dir {run_dir} 'your words'")


def compare_heldout(
    run_dir: Path,
    embed_fn: EmbedFn,
    heldout: Sequence[Pair],
    before: Mapping[str, float] | None = None,
    given: Mapping[Side, str] | None = None,
) -> dict[str, Any]:
    """Compares a run on its held-out pairs with other models.

    Returns `table`, the scores of this run, of its start, of its baseline, of BM25 and of chance,
    `heldout`, the numbers of texts, and `examples` (see `find_examples`). before: the row of
    evals.jsonl at step 0, for a run that starts from another model. given: prefixes that the user
    chose; the baseline uses them too.
    """
    scores = {"this run": pair_search.run(embed_fn, heldout)}
    if first := find_heldout(before or {}):
        scores["before training"] = first
    if (run_dir / BASELINE).is_dir():
        baseline = Embedder.load(run_dir / BASELINE, prefixes=given).of_sources
        scores[baseline.experiment.name] = pair_search.run(baseline.embed, heldout)
    scores["BM25"] = pair_search.bm25(heldout)
    counts = pair_search.count(heldout)
    scores["chance"] = pair_search.chance(counts["y"])
    table = [{"name": name, **row} for name, row in scores.items()]
    return {"heldout": counts, "table": table, "examples": find_examples(embed_fn, heldout)}


def find_heldout(row: Mapping[str, float]) -> dict[str, float]:
    """The held-out scores in a row of evals.jsonl."""
    start = "heldout/"
    return {k.removeprefix(start): v for k, v in row.items() if k.startswith(start)}


def measure_likelihood(
    embedder: Embedder, heldout: Sequence[Pair], check: Callable[[], None] = lambda: None
) -> likelihood.Likelihood:
    """How well a generative run predicts the held-out texts."""
    experiment, params, tokenizer = embedder.experiment, embedder.params, embedder.tokenizer
    return likelihood.measure(experiment, params, tokenizer, embedder.mesh, heldout, check)


def compare_likelihood(
    embedder: Embedder, heldout: Sequence[Pair], before: Mapping[str, float] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Compares how well a generative run, its start and the yardsticks predict the held-out texts.

    Returns the rows as `table`. before: as in `compare_heldout`.
    """
    measured = measure_likelihood(embedder, heldout)
    scores = {"this run": measured.score()}
    if first := find_heldout(before or {}):
        scores["before training"] = first
    scores |= likelihood.score_yardsticks(embedder.tokenizer, heldout, measured)
    return {"table": [{"name": name, **row} for name, row in scores.items()]}


def find_examples(embed_fn: EmbedFn, heldout: Sequence[Pair]) -> list[dict[str, Any]]:
    """A few queries, spread evenly over the held-out pairs, each with its highest-ranked texts."""
    queries = heldout[:: max(len(heldout) // EXAMPLES, 1)][:EXAMPLES]
    zx_qd = embed_fn([pair.x for pair in queries], "x")
    zy_nd = embed_fn([pair.y for pair in heldout], "y")
    scores_qk, rows_qk = top_k(zx_qd, zy_nd, RESULTS_PER_EXAMPLE)
    return [
        {
            "query": query.x,
            "results": [
                {
                    "score": float(score),
                    "text": heldout[row].y,
                    "source": heldout[row].source,
                    "right": heldout[row].y == query.y,
                }
                for score, row in zip(scores_k, rows_k, strict=True)
            ],
        }
        for query, scores_k, rows_k in zip(queries, scores_qk, rows_qk, strict=True)
    ]


def show_comparison(summary: dict[str, Any]) -> None:
    """Prints the result of `compare_heldout` or `compare_likelihood`, if the summary has one."""
    table = summary.get("table", [])
    title, headings = PREDICTION_TITLE, PREDICTION_HEADINGS
    if "heldout" in summary:
        title, headings = pair_search.describe(**summary["heldout"]), SEARCH_HEADINGS
    rows = [[row.get(key, "") for key in headings] for row in table]
    if rows:
        print_table(title, rows, [*headings.values()])
    for example in summary.get("examples", []):
        print(f"\n{_shorten(example['query'], 100)}")
        for result in example["results"]:
            mark = "  <- right" if result["right"] else ""
            shown = f"{result['source']}  {_shorten(result['text'], 60)}"
            print(f"  {result['score']:.3f}  {shown}{mark}")


def _shorten(text: str, characters: int) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[: characters - 3]}..."


def embed_as_stored(embed_fn: EmbedFn, storage: Storage) -> EmbedFn:
    """A function that embeds, and then changes the vectors as `storage` does: to a smaller width
    or to int8."""
    if storage == Storage():
        return embed_fn

    def embed(texts: Sequence[str], side: Side) -> np.ndarray:
        return storage.round_trip(embed_fn(texts, side))

    return embed


def keep_corpora(folder: Path, embedder: Embedder, storage: Storage) -> CorpusFn:
    """A function that embeds corpora into vector shards below `folder`, from which a killed
    evaluation can resume."""

    def embed(path: Path, documents: Iterable[TextWithId]) -> Iterator[np.ndarray]:
        file = find_file(path)
        assert file is not None  # its ids have been read
        about = describe_file(embedder, "y", file)
        embed_shard = functools.partial(embedder.embed, side="y", progress=True)
        name = "-".join(path.parent.parts[-2:])  # nested sets may have the same last name
        vectors = fill(folder / name, about, documents, embed_shard, storage)
        return vectors.shards()

    return embed
