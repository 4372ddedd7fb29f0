"""Scores a run: its held-out pairs beside the baselines, and the paper's suites on given data.

python -m jaxcpt.evaluate --run-dir DIR [--step N] [--data DIR --suite NAME] [--json FILE]
python -m jaxcpt.evaluate --run-dir DIR --mteb TASK...
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.config import Experiment
from jaxcpt.embed import Embedder, add_arguments, parse_mesh
from jaxcpt.errors import UserError, run_command
from jaxcpt.evals import (
    CorpusFn,
    EmbedFn,
    code_search,
    linear_probe,
    mteb_tasks,
    open_qa,
    pair_search,
    retrieval,
    sts,
)
from jaxcpt.evals.table import WORDS, Line, tabulate
from jaxcpt.experiments import read_experiment
from jaxcpt.files import hash_file, write_file
from jaxcpt.lines import find_file
from jaxcpt.metrics import EVALS_FILE, print_table, read_rows, record_evals
from jaxcpt.pair import Pair
from jaxcpt.pairs import open_source
from jaxcpt.report import write_report
from jaxcpt.sharding import use_cpu_cores
from jaxcpt.top_k import top_k
from jaxcpt.vectors import Storage, TextWithId, fill

SUITES: dict[str, Callable[..., dict[str, float]]] = {
    "linear_probe": linear_probe.run,
    "sts": sts.run,
    "retrieval": retrieval.run,
    "code_search": code_search.run,
    "open_qa": open_qa.run,
}
WORD_SUITES: dict[str, Callable[[Path], dict[str, float]]] = {
    "linear_probe": linear_probe.bag_of_words,
    "sts": sts.bag_of_words,
    "retrieval": retrieval.bm25,
    "code_search": code_search.bm25,
    "open_qa": open_qa.bm25,
}
FOLDERS = {name: name for name in SUITES} | {"open_qa": "dpr"}
CORPUS_SUITES = ("retrieval", "open_qa")  # their corpora need not fit in memory

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


def run_suites(
    embed_fn: EmbedFn, data: Path, names: Sequence[str], corpus_fn: CorpusFn | None = None
) -> dict[str, float]:
    """Scores by `<suite>/<name>`. Raises UserError for a suite that there is none of."""
    if unknown := [name for name in names if name not in SUITES]:
        raise UserError(f"suite {unknown[0]}: there are {', '.join(SUITES)}")
    scores: dict[str, float] = {}
    for suite in names:
        kept = {"corpus_fn": corpus_fn} if suite in CORPUS_SUITES else {}
        found = SUITES[suite](embed_fn, data, **kept)
        scores |= {f"{suite}/{name}": value for name, value in found.items()}
    return scores


def score_words(data: Path, names: Sequence[str]) -> dict[str, float]:
    """What matching words alone scores, by `<suite>/<name>`."""
    return {f"{suite}/{k}": v for suite in names for k, v in WORD_SUITES[suite](data).items()}


def tabulate_suites(
    experiment: Experiment, run_dir: Path, words: dict[str, float]
) -> dict[str, list[Line]]:
    """The tables of the suites that a run measures of itself, with the scores recorded last."""
    *_, last = read_rows(run_dir / EVALS_FILE) or [{}]
    scores = {k: v for k, v in last.items() if k.partition("/")[0] in experiment.evals.suites}
    return tabulate(scores, words, Path(experiment.evals.data))


def keep_corpora(folder: Path, embedder: Embedder, storage: Storage) -> CorpusFn:
    """Embeds a corpus into shards below `folder`, which a killed evaluation goes on with."""

    def embed(path: Path, documents: Iterable[TextWithId]) -> Iterator[np.ndarray]:
        file = find_file(path)
        assert file is not None  # its ids have been read
        about = {
            "step": embedder.step,
            "checkpoint": embedder.fingerprint,
            "side": "y",
            "input": hash_file(file),
            "path": str(file.resolve()),
        }
        kept = folder / path.parent.name
        return fill(kept, about, documents, lambda t: embedder.embed(t, "y"), storage).shards()

    return embed


def list_suites(data: Path, asked: str) -> list[str]:
    """The suites to run: the one asked for, or all whose folder is in `data`. Raises UserError."""
    if asked not in (*SUITES, "all"):
        raise UserError(f"--suite {asked}: there are {', '.join(SUITES)}, and all")
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; it holds a folder for each suite")
    if asked != "all":
        return [asked]
    present = [name for name, folder in FOLDERS.items() if (data / folder).is_dir()]
    if not present:
        raise UserError(
            f"--data {data}: none of the folders {', '.join(FOLDERS.values())} is there"
        )
    return present


def compare_heldout(
    run_dir: Path, embed_fn: EmbedFn, heldout: Sequence[Pair]
) -> dict[str, list[dict[str, Any]]]:
    """`table`: mrr, recall_at_1 and recall_at_10 by name; `examples`: a few queries, answered."""
    scores = {"this run": pair_search.run(embed_fn, heldout)}
    if (run_dir / "baseline").is_dir():
        baseline = Embedder.load(run_dir / "baseline")
        scores[baseline.experiment.name] = pair_search.run(baseline.embed, heldout)
    scores["BM25"] = pair_search.bm25(heldout)
    scores["chance"] = pair_search.chance(len({pair.y for pair in heldout}))
    table = [{"name": name, **row} for name, row in scores.items()]
    return {"table": table, "examples": find_examples(embed_fn, heldout)}


def find_examples(embed_fn: EmbedFn, heldout: Sequence[Pair]) -> list[dict[str, Any]]:
    """Queries spread evenly over the held-out pairs, with what is found for them."""
    queries = heldout[:: max(len(heldout) // EXAMPLES, 1)][:EXAMPLES]
    zx_qd = embed_fn([pair.x for pair in queries], "x")
    zy_nd = embed_fn([pair.y for pair in heldout], "y")
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


def show_suites(tables: dict[str, list[Line]]) -> None:
    """Prints a table for each suite, and below it what must not be compared."""
    for suite, lines in tables.items():
        rows = [
            (
                line.name + ("*" if line.caveat else ""),
                line.score,
                "" if line.words is None else f"{line.words:.3f}",
                line.published,
            )
            for line in lines
        ]
        print_table(suite, rows, ("", "this run", WORDS[suite], "published"))
        for caveat in dict.fromkeys(line.caveat for line in lines if line.caveat):
            names = ", ".join(line.name for line in lines if line.caveat == caveat)
            print(f"  * {names}: {caveat}; not to be compared with published figures")


def score_data(arguments: argparse.Namespace, embedder: Embedder) -> None:
    """The paper's suites, each shown and recorded, in --json too, as soon as it is done."""
    run_dir, data, storage = arguments.run_dir, arguments.data, read_storage(arguments, embedder)
    corpus_fn = keep_corpora(arguments.vectors, embedder, storage) if arguments.vectors else None
    scores: dict[str, float] = {}
    words: dict[str, float] = {}
    for suite in list_suites(data, arguments.suite):
        print(f"scoring {suite}", flush=True)
        scores |= (found := run_suites(store(embedder, storage), data, [suite], corpus_fn))
        words |= score_words(data, [suite])
        tables = tabulate(found, words, data)
        show_suites(tables)
        if storage == Storage():  # what cut or rounded vectors score is not the run's own score
            record_evals(run_dir, embedder.step, found)
            record_tables(run_dir, embedder.step, tables)
        write_json(arguments.json, {"step": embedder.step, "scores": scores, "words": words})


def write_json(path: Path | None, written: dict[str, Any]) -> None:
    """Writes the scores to the file of --json, where it was given."""
    if path is not None:
        write_file(path, json.dumps(written, indent=1) + "\n")


def record_tables(run_dir: Path, step: int, tables: dict[str, list[Line]]) -> None:
    """Adds the tables to suites.json, where those of other suites at the same step stay, and to the
    report."""
    path = run_dir / "suites.json"
    kept = _read_tables(path)
    suites = kept["suites"] if kept.get("step") == step else {}
    suites |= {suite: [line._asdict() for line in lines] for suite, lines in tables.items()}
    write_file(path, json.dumps({"step": step, "suites": suites}, indent=1))
    write_report(run_dir)


def _read_tables(path: Path) -> dict[str, Any]:
    """What suites.json holds. A damaged file is replaced, which a printed line says."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        print(f"{path}: does not parse; writing it anew, without the suites that it held")
        return {}


def score_mteb(arguments: argparse.Namespace, embedder: Embedder) -> None:
    """MTEB's main scores, shown and recorded; its own result files stand in the run folder."""
    run_dir, storage = arguments.run_dir, read_storage(arguments, embedder)
    revision = "-".join([embedder.fingerprint[:12], *map(str, dataclasses.astuple(storage))])
    found = mteb_tasks.run(
        store(embedder, storage),
        arguments.mteb,
        run_dir / "mteb",
        embedder.experiment.name,
        revision,
    )
    print_table("MTEB, main scores", list(found.items()), ("task", "this run"))
    scores = {f"mteb/{name}": value for name, value in found.items()}
    if storage == Storage():
        record_evals(run_dir, embedder.step, scores)
        write_report(run_dir)
    write_json(arguments.json, {"step": embedder.step, "scores": scores})


def read_storage(arguments: argparse.Namespace, embedder: Embedder) -> Storage:
    return Storage(arguments.width, arguments.int8).check(embedder.width)


def store(embedder: Embedder, storage: Storage) -> EmbedFn:
    """`embedder.embed`, with the precision that vectors of this storage have."""
    if storage == Storage():
        return embedder.embed
    return lambda texts, side: storage.round_trip(embedder.embed(texts, side))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="jaxcpt evaluate", description="Score a run.")
    add_arguments(parser)
    parser.add_argument("--data", type=Path, help="folder with a folder for each suite")
    parser.add_argument("--suite", default="all", help=f"{', '.join(SUITES)}, or all")
    parser.add_argument("--mteb", nargs="+", metavar="TASK", help="tasks of MTEB, by name")
    parser.add_argument(
        "--vectors", type=Path, help="keep corpora's vectors here; a killed evaluation goes on"
    )
    parser.add_argument("--json", type=Path, help="write all scores to this file, too")
    arguments = parser.parse_args(argv)
    run_dir = arguments.run_dir
    experiment = read_experiment(run_dir)
    if arguments.json and not arguments.json.parent.is_dir():
        raise UserError(f"--json {arguments.json}: no such folder {arguments.json.parent}")
    if arguments.mteb and arguments.data:
        raise UserError("--mteb: comes without --data; MTEB loads its own")
    if not arguments.data and (arguments.vectors or arguments.suite != "all"):
        raise UserError("--suite and --vectors: come with --data, the folder of the suites")
    use_cpu_cores()
    if arguments.data:
        list_suites(arguments.data, arguments.suite)
    elif not arguments.mteb and not (heldout := read_heldout(experiment, run_dir)):
        raise UserError(f"{run_dir}: holds out no pairs (data.heldout); name --data to score it on")
    embedder = Embedder.load(run_dir, arguments.step, parse_mesh(arguments.mesh))
    if arguments.data:
        score_data(arguments, embedder)
    elif arguments.mteb:
        score_mteb(arguments, embedder)
    else:
        embed_fn = store(embedder, read_storage(arguments, embedder))
        summary = compare_heldout(run_dir, embed_fn, heldout)
        show_comparison(summary)
        write_json(arguments.json, {"step": embedder.step, **summary})


if __name__ == "__main__":
    run_command(main)
