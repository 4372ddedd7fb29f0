"""The command that scores a run on its held-out pairs, on the paper's suites, or on MTEB's tasks.

python -m jaxcpt.evaluate --run-dir DIR [--step N] [--data DIR --suite NAME] [--json FILE]
python -m jaxcpt.evaluate --run-dir DIR --mteb TASK...
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcpt.embed import Embedder, add_arguments, load_embedder
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.evals import collect, finish, mteb_tasks, require_library
from jaxcpt.evals.suites import (
    SUITES,
    describe_unknown,
    list_suites,
    require_libraries,
    run_suites,
    score_words,
)
from jaxcpt.evals.table import Line, tabulate
from jaxcpt.experiments import read_experiment
from jaxcpt.files import to_path, write_file
from jaxcpt.metrics import record_evals
from jaxcpt.object_cache import fetch
from jaxcpt.pair import Pair
from jaxcpt.prefixes import read_prefix_options
from jaxcpt.report import write_report
from jaxcpt.run_lock import FolderInUse, RunLock
from jaxcpt.scoring import (
    compare_heldout,
    compare_likelihood,
    embed_as_stored,
    keep_corpora,
    read_heldout,
    record_tables,
    show_comparison,
    show_suites,
)
from jaxcpt.sharding import use_cpu_cores
from jaxcpt.terminal import print_table
from jaxcpt.vectors import Storage


def score_heldout(
    arguments: argparse.Namespace, embedder: Embedder, storage: Storage, heldout: Sequence[Pair]
) -> None:
    """Shows the run beside its baselines, with example searches."""
    embed_fn = embed_as_stored(embedder.of_sources, storage)
    summary = compare_heldout(arguments.run_dir, embed_fn, heldout, given=embedder.given)
    show_comparison(summary)
    write_json(arguments.json, {"step": embedder.step, **summary})


def score_prediction(
    arguments: argparse.Namespace, embedder: Embedder, heldout: Sequence[Pair]
) -> None:
    """Shows how well a generative run predicts its held-out texts."""
    summary = compare_likelihood(embedder, heldout)
    show_comparison(summary)
    write_json(arguments.json, {"step": embedder.step, **summary})


def score_data(arguments: argparse.Namespace, embedder: Embedder, storage: Storage) -> None:
    """Runs the paper's suites. Each is shown and recorded, also in --json, as soon as it ends.

    Raises DataRefused at the end where sets did not fit; the scores of all others are kept.
    """
    run_dir, data, embed_fn = arguments.run_dir, arguments.data, embed_as_stored(embedder, storage)
    corpus_fn = keep_corpora(arguments.vectors, embedder, storage) if arguments.vectors else None
    scores: dict[str, float] = {}
    words: dict[str, float] = {}
    problems: list[str] = []
    suites = list_suites(data, arguments.suite)
    for line in describe_unknown(data, suites):
        print(line)
    records = is_own(embedder, storage)
    for suite in suites:
        print(f"scoring {suite}", flush=True)
        of_suite = collect(problems, run_suites, embed_fn, data, [suite], corpus_fn)
        if not of_suite:
            continue  # no set of it fits; the problems are told at the end
        scores |= of_suite
        if records:  # before words are matched, which can fail without loss then
            record(run_dir, embedder.step, of_suite)
        write_json(arguments.json, {"step": embedder.step, "scores": scores, "words": words})
        words |= collect(problems, score_words, data, [suite])
        tables = tabulate(of_suite, words, data)
        show_suites(tables)
        if records:
            record(run_dir, embedder.step, {}, tables)
        write_json(arguments.json, {"step": embedder.step, "scores": scores, "words": words})
    finish(scores, problems)


def score_mteb(arguments: argparse.Namespace, embedder: Embedder, storage: Storage) -> None:
    """Shows and records MTEB's main scores. MTEB's own result files go into the run folder."""
    run_dir = arguments.run_dir
    prefixes = [f"{side} {prefix}" for side, prefix in embedder.prefixes.items() if prefix]
    settings = [*map(str, dataclasses.astuple(storage)), *prefixes]
    revision = "-".join([embedder.fingerprint[:12], *settings])
    by_task = mteb_tasks.run(
        embed_as_stored(embedder, storage),
        arguments.mteb,
        run_dir / "mteb",
        embedder.experiment.name,
        revision,
    )
    print_table("MTEB, main scores", list(by_task.items()), ("task", "this run"))
    scores = {f"mteb/{name}": value for name, value in by_task.items()}
    if is_own(embedder, storage):
        record(run_dir, embedder.step, scores)
    write_json(arguments.json, {"step": embedder.step, "scores": scores})


def is_own(embedder: Embedder, storage: Storage) -> bool:
    """Whether the scores are the run's own: of whole vectors, and with its own prefixes."""
    return storage == Storage() and not embedder.given


def record(
    run_dir: Path,
    step: int,
    scores: dict[str, float],
    tables: dict[str, list[Line]] | None = None,
) -> None:
    """Records scores in the run folder. While a run trains there, says that they are not recorded.

    Both would write evals.jsonl, and the later one would drop the lines of the other.
    """
    try:
        with RunLock(run_dir):
            record_evals(run_dir, step, scores)
            if tables is None:
                write_report(run_dir)
            else:
                record_tables(run_dir, step, tables)
    except FolderInUse as refusal:
        print(f"these scores are shown and not recorded; evaluate again for that: {refusal}")


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Writes the scores to the file of --json, if it was given."""
    if path is not None:
        write_file(path, json.dumps(content, indent=1) + "\n")


def check_options(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, before a model is loaded."""
    if arguments.json and not arguments.json.parent.is_dir():
        raise UserError(f"--json {arguments.json}: no such folder {arguments.json.parent}")
    if arguments.mteb and arguments.data:
        raise UserError("--mteb: comes without --data; MTEB loads its own")
    if not arguments.data and (arguments.vectors or arguments.suite != "all"):
        raise UserError("--suite and --vectors: come with --data, the folder of the suites")
    if arguments.mteb:
        require_library("mteb", extra="mteb")
    if arguments.data:
        require_libraries(list_suites(arguments.data, arguments.suite))


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="jaxcpt evaluate", description="Score a run.")
    add_arguments(parser)
    parser.add_argument("--data", type=to_path, help="folder that holds a folder for each suite")
    parser.add_argument("--suite", default="all", help=f"{', '.join(SUITES)}, or all")
    parser.add_argument("--mteb", nargs="+", metavar="TASK", help="names of MTEB tasks")
    parser.add_argument(
        "--vectors",
        type=to_path,
        help="folder that keeps the vectors of corpora, so that a killed evaluation resumes",
    )
    parser.add_argument("--json", type=to_path, help="also write all scores to this file")
    arguments = parser.parse_args(argv)
    run_dir = arguments.run_dir
    if arguments.data:
        arguments.data = fetch(arguments.data)
    experiment = read_experiment(run_dir)
    check_options(arguments)
    given = read_prefix_options(arguments)
    heldout = [] if arguments.data or arguments.mteb else read_heldout(experiment, run_dir, given)
    if not (arguments.data or arguments.mteb or heldout):
        raise UserError(f"{run_dir}: holds out no pairs (data.heldout); name --data to score it on")
    use_cpu_cores()
    needs_vectors = arguments.data or arguments.mteb or arguments.width or arguments.int8 or given
    predicts = experiment.objective == "generative" and not needs_vectors
    embedder = load_embedder(arguments, embeds=not predicts)
    storage = Storage(arguments.width, arguments.int8).check(embedder.width)
    if arguments.data:
        score_data(arguments, embedder, storage)
    elif arguments.mteb:
        score_mteb(arguments, embedder, storage)
    elif predicts:
        score_prediction(arguments, embedder, heldout)
    else:
        score_heldout(arguments, embedder, storage, heldout)


if __name__ == "__main__":
    run_command(main)
