"""Scores a run: its held-out pairs beside the baselines, and the paper's suites on given data.

python -m jaxcpt.evaluate --run-dir DIR [--step N] [--data DIR --suite NAME] [--json FILE]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxcpt.config import Experiment, Refusal, run_command
from jaxcpt.embed import Embedder
from jaxcpt.evals import (
    EmbedFn,
    code_search,
    linear_probe,
    open_qa,
    pair_search,
    retrieval,
    sts,
)
from jaxcpt.evals.table import tabulate
from jaxcpt.experiments import read_experiment
from jaxcpt.metrics import print_table, record_evals
from jaxcpt.mining import Pair
from jaxcpt.pairs import open_source
from jaxcpt.report import write_report
from jaxcpt.search import top_k
from jaxcpt.sharding import use_cpu_cores

SUITES: dict[str, Callable[[EmbedFn, Path], dict[str, float]]] = {
    "linear_probe": linear_probe.run,
    "sts": sts.run,
    "retrieval": retrieval.run,
    "code_search": code_search.run,
    "open_qa": open_qa.run,
}
FOLDERS = {name: name for name in SUITES} | {"open_qa": "dpr"}
WORD_SUITES = {"retrieval": retrieval.bm25, "code_search": code_search.bm25}

KEYS = ("mrr", "recall_at_1", "recall_at_10")
EXAMPLES = 3
RESULTS = 3


def read_heldout(experiment: Experiment, run_dir: Path) -> list[Pair]:
    """The held-out pairs of a run; none where the experiment names none."""
    if experiment.data.heldout is None:
        return []
    pairs = open_source(experiment.data.heldout, run_dir, experiment.seed)
    return pairs.read(range(len(pairs)))


def score(experiment: Experiment, embed_fn: EmbedFn, heldout: Sequence[Pair]) -> dict[str, float]:
    """What a run measures of itself every so many steps."""
    scores = {}
    if heldout:
        found = pair_search.run(embed_fn, heldout)
        scores = {f"heldout/{name}": value for name, value in found.items()}
    if experiment.evals.suites:
        scores |= run_suites(embed_fn, Path(experiment.evals.data), experiment.evals.suites)
    return scores


def run_suites(embed_fn: EmbedFn, data: Path, names: Sequence[str]) -> dict[str, float]:
    """Scores by `<suite>/<name>`. Raises Refusal for a suite that there is none of."""
    if unknown := [name for name in names if name not in SUITES]:
        raise Refusal(f"suite {unknown[0]}: there are {', '.join(SUITES)}")
    return {
        f"{suite}/{name}": value
        for suite in names
        for name, value in SUITES[suite](embed_fn, data).items()
    }


def list_suites(data: Path, asked: str) -> list[str]:
    """The suites to run: the one asked for, or all whose folder is in `data`."""
    if not data.is_dir():
        raise Refusal(f"--data {data}: no such folder; it holds a folder for each suite")
    if asked != "all":
        return [asked]
    present = [name for name, folder in FOLDERS.items() if (data / folder).is_dir()]
    if not present:
        raise Refusal(f"--data {data}: none of the folders {', '.join(FOLDERS.values())} is there")
    return present


def compare_heldout(
    run_dir: Path, embedder: Embedder, heldout: Sequence[Pair]
) -> dict[str, list[dict[str, Any]]]:
    """`table`: mrr, recall_at_1 and recall_at_10 by name; `examples`: a few queries, answered."""
    scores = {"this run": pair_search.run(embedder.embed, heldout)}
    if (run_dir / "baseline").is_dir():
        baseline = Embedder.load(run_dir / "baseline")
        scores[baseline.experiment.name] = pair_search.run(baseline.embed, heldout)
    scores["BM25"] = pair_search.bm25(heldout)
    scores["chance"] = pair_search.chance(len({pair.y for pair in heldout}))
    table = [{"name": name, **row} for name, row in scores.items()]
    return {"table": table, "examples": find_examples(embedder, heldout)}


def find_examples(embedder: Embedder, heldout: Sequence[Pair]) -> list[dict[str, Any]]:
    """Queries spread evenly over the held-out pairs, with what is found for them."""
    queries = heldout[:: max(len(heldout) // EXAMPLES, 1)][:EXAMPLES]
    zx_qd = embedder.embed([pair.x for pair in queries], "x")
    zy_nd = embedder.embed([pair.y for pair in heldout], "y")
    scores, found = top_k(zx_qd, zy_nd, RESULTS)
    return [
        {
            "query": query.x,
            "results": [
                {
                    "score": float(score),
                    "text": heldout[index].y,
                    "source": heldout[index].source,
                    "right": heldout[index].y == query.y,
                }
                for score, index in zip(scores[number], found[number], strict=True)
            ],
        }
        for number, query in enumerate(queries)
    ]


def show_comparison(summary: dict[str, Any]) -> None:
    """Prints what `compare_heldout` found."""
    headings = ("searcher", "MRR", "recall@1", "recall@10")
    rows = [[row[key] for key in ("name", *KEYS)] for row in summary.get("table", [])]
    if rows:
        print_table("Each held-out x searches the y of all", rows, headings)
    for example in summary.get("examples", []):
        print(f"\n{' '.join(example['query'].split())[:100]}")
        for result in example["results"]:
            mark = "  <- right" if result["right"] else ""
            print(f"  {result['score']:.3f}  {result['source']}{mark}")


def show_suites(scores: dict[str, float], bm25: dict[str, float], data: Path) -> None:
    """Prints a table for each suite, and below it what must not be compared."""
    for suite, lines in tabulate(scores, bm25, data).items():
        rows = [
            (
                line.name + ("*" if line.caveat else ""),
                line.score,
                "" if line.bm25 is None else f"{line.bm25:.3f}",
                line.published,
            )
            for line in lines
        ]
        print_table(suite, rows, ("", "this run", "BM25", "published"))
        for name, caveat in {line.name: line.caveat for line in lines if line.caveat}.items():
            print(f"  * {name}: {caveat}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a run.")
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--step", type=int, help="default: the newest whole checkpoint")
    parser.add_argument("--data", type=Path, help="folder with a folder for each suite")
    parser.add_argument("--suite", default="all", choices=[*SUITES, "all"])
    parser.add_argument("--json", type=Path, help="write all scores to this file, too")
    arguments = parser.parse_args()
    run_dir = arguments.run_dir
    experiment = read_experiment(run_dir)
    use_cpu_cores()
    heldout = read_heldout(experiment, run_dir)
    if not heldout and arguments.data is None:
        raise Refusal(f"{run_dir}: holds out no pairs (data.heldout); name --data to score it on")
    suites = list_suites(arguments.data, arguments.suite) if arguments.data else []
    embedder = Embedder.load(run_dir, arguments.step)
    if arguments.data is None:
        summary = compare_heldout(run_dir, embedder, heldout)
        show_comparison(summary)
        written: dict[str, Any] = {"step": embedder.step, **summary}
    else:
        scores = run_suites(embedder.embed, arguments.data, suites)
        bm25 = {
            f"{suite}/{name}": value
            for suite in suites
            if suite in WORD_SUITES
            for name, value in WORD_SUITES[suite](arguments.data).items()
        }
        show_suites(scores, bm25, arguments.data)
        record_evals(run_dir, embedder.step, scores)
        written = {"step": embedder.step, "scores": scores, "bm25": bm25}
        tables = tabulate(scores, bm25, arguments.data)
        lines = {suite: [line._asdict() for line in table] for suite, table in tables.items()}
        kept = json.dumps({"step": embedder.step, "suites": lines}, indent=1)
        (run_dir / "suites.json").write_text(kept)
        write_report(run_dir)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
