"""A run's held-out pairs searched by the run, its baseline, BM25 and chance, side by side.

python -m jaxcpt.evaluate --run-dir DIR [--step N]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcpt.config import Experiment, Refusal, read_experiment, run_command
from jaxcpt.embed import Embedder
from jaxcpt.evals import pair_search
from jaxcpt.metrics import print_table
from jaxcpt.mining import Pair
from jaxcpt.pairs import open_source
from jaxcpt.search import top_k
from jaxcpt.sharding import use_cpu_cores

EXAMPLES = 3
RESULTS = 3


def read_heldout(experiment: Experiment, run_dir: Path) -> list[Pair]:
    """The held-out pairs of a run; none where the experiment names none."""
    if experiment.data.heldout is None:
        return []
    pairs = open_source(experiment.data.heldout, run_dir, experiment.seed)
    return pairs.read(range(len(pairs)))


def compare_heldout(
    run_dir: Path, embedder: Embedder, heldout: Sequence[Pair]
) -> dict[str, list[dict[str, Any]]]:
    """`table`: mrr, recall_at_1 and recall_at_10 by name; `examples`: a few queries, answered."""
    scores = {"this run": pair_search.run(embedder.embed, heldout)}
    if (run_dir / "baseline").is_dir():
        baseline = Embedder.load(run_dir / "baseline")
        scores[baseline.experiment.name] = pair_search.run(baseline.embed, heldout)
    scores["BM25"] = pair_search.bm25(heldout)
    scores["chance"] = pair_search.chance(len(heldout))
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
    headings = ("", "MRR", "recall@1", "recall@10")
    rows = [[row[key] for key in ("name", *KEYS)] for row in summary.get("table", [])]
    if rows:
        print_table("held-out pairs: each x searches the y of all", rows, headings)
    for example in summary.get("examples", []):
        print(f"\n{first_line(example['query'])}")
        for result in example["results"]:
            mark = "  <- right" if result["right"] else ""
            print(f"  {result['score']:.3f}  {result['source']}{mark}")


KEYS = ("mrr", "recall_at_1", "recall_at_10")


def first_line(text: str) -> str:
    return text.strip().split("\n")[0][:100]


def main() -> None:
    parser = argparse.ArgumentParser(description="Search a run's held-out pairs.")
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--step", type=int, help="default: the newest whole checkpoint")
    arguments = parser.parse_args()
    experiment = read_experiment(arguments.run_dir)
    use_cpu_cores()
    heldout = read_heldout(experiment, arguments.run_dir)
    if not heldout:
        raise Refusal(f"{arguments.run_dir}: its experiment holds out no pairs (data.heldout)")
    embedder = Embedder.load(arguments.run_dir, arguments.step)
    show_comparison(compare_heldout(arguments.run_dir, embedder, heldout))


if __name__ == "__main__":
    run_command(main)
