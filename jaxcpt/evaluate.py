"""The command `jaxcpt evaluate`: scores runs on held-out pairs, the paper's suites or MTEB's tasks.

python -m jaxcpt.evaluate --run-dir DIR [--step N] [--data DIR --suite NAME] [--json FILE]
python -m jaxcpt.evaluate --run-dir DIR... --library FOLDER... --data DIR
python -m jaxcpt.evaluate --run-dir DIR --mteb TASK...
"""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from jaxcpt.config import Experiment
from jaxcpt.embed import Embedder, add_embedding_options, load_embedder
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.evals import EmbedFn, mteb_tasks, require_library
from jaxcpt.evals import sentence_transformers_folder as library
from jaxcpt.evals.suites import SUITES, describe_unknown, list_suites, require_libraries
from jaxcpt.experiments import read_experiment
from jaxcpt.files import to_path
from jaxcpt.interop.folder import find_folder
from jaxcpt.metrics import EVALS_FILE, find_row
from jaxcpt.object_cache import fetch
from jaxcpt.pair import Pair
from jaxcpt.prefixes import read_prefix_options
from jaxcpt.scoring import (
    compare_heldout,
    compare_likelihood,
    embed_as_stored,
    keep_corpora,
    read_heldout,
    show_comparison,
)
from jaxcpt.sharding import use_cpu_cores
from jaxcpt.side_by_side import Column, score_suites, write_json
from jaxcpt.suite_tables import record
from jaxcpt.terminal import print_table
from jaxcpt.vectors import Storage


def score_heldout(
    arguments: argparse.Namespace, embedder: Embedder, storage: Storage, heldout: Sequence[Pair]
) -> None:
    """Scores a run on its held-out pairs. Shows it beside its baselines, with example searches."""
    embed_fn = embed_as_stored(show_embedding(embedder.of_sources), storage)
    as_trained = not embedder.given and storage == Storage()  # else step 0 cannot be compared
    before = find_row(arguments.run_dir / EVALS_FILE, 0) if embedder.step and as_trained else None
    summary = compare_heldout(arguments.run_dir, embed_fn, heldout, before, embedder.given)
    show_comparison(summary)
    write_json(arguments.json, {"step": embedder.step, **summary})


def score_prediction(
    arguments: argparse.Namespace, embedder: Embedder, heldout: Sequence[Pair]
) -> None:
    """Shows how well a generative run predicts its held-out texts."""
    summary = compare_likelihood(embedder, heldout)
    show_comparison(summary)
    write_json(arguments.json, {"step": embedder.step, **summary})


def score_data(arguments: argparse.Namespace, columns: Sequence[Column]) -> None:
    """Runs the paper's suites on --data."""
    suites = list_suites(arguments.data, arguments.suite)
    for line in describe_unknown(arguments.data, arguments.suite):
        print(line)
    score_suites(columns, arguments.data, suites, arguments.json)


def show_embedding(embedder: Embedder) -> EmbedFn:
    """A function that embeds texts and shows a progress bar on the terminal."""
    return functools.partial(embedder.embed, progress=True)


def make_column(
    arguments: argparse.Namespace, run_dir: Path, name: str, embedder: Embedder, storage: Storage
) -> Column:
    """The column of a run in the tables of scores."""
    kept = arguments.vectors and keep_corpora(arguments.vectors, embedder, storage)
    limits = embedder.experiment.tokenizer
    most = f"at most {limits.x_tokens} tokens of x and {limits.y_tokens} of y"
    prefixes = [f"{side} prefix {text!r}" for side, text in embedder.prefixes.items() if text]
    return Column(
        name=name,
        about=", ".join([f"step {embedder.step}", most, *prefixes]),
        embed_fn=embed_as_stored(show_embedding(embedder), storage),
        corpus_fn=kept or None,
        step=embedder.step,
        records_in=run_dir if is_own(embedder, storage) else None,
    )


def make_library_column(folder: Path, name: str, storage: Storage) -> Column:
    """The column of a sentence-transformers folder in the tables of scores."""
    model = library.load(folder)
    storage.check(library.get_width(model))
    return Column(
        name=name,
        about=library.describe(model),
        embed_fn=embed_as_stored(library.make_embed(model), storage),
    )


def compare_models(arguments: argparse.Namespace) -> None:
    """Scores several models side by side. Loads all of them before it embeds the first text."""
    storage = Storage(arguments.width, arguments.int8)
    folders = {name: library.check_folder(find_folder(name)) for name in arguments.library}
    names = name_columns([*map(str, arguments.run_dir), *folders])
    columns = []
    for run_dir in arguments.run_dir:
        embedder = load_embedder(arguments, run_dir)
        storage.check(embedder.width)
        columns.append(make_column(arguments, run_dir, names[str(run_dir)], embedder, storage))
    for name, folder in folders.items():
        columns.append(make_library_column(folder, f"{names[name]} (library)", storage))
    for column in columns:
        print(f"{column.name}: {column.about}")
    score_data(arguments, columns)


def name_columns(paths: Sequence[str]) -> dict[str, str]:
    """The column's name of each path: its last part, or the whole path if that is not unique."""
    last = [PurePosixPath(path).name for path in paths]
    return {
        path: name if name and last.count(name) == 1 else path
        for path, name in zip(paths, last, strict=True)
    }


def score_mteb(arguments: argparse.Namespace, embedder: Embedder, storage: Storage) -> None:
    """Shows and records MTEB's main scores. MTEB's own result files go into the run folder."""
    run_dir = arguments.run_dir
    prefixes = [f"{side} {prefix}" for side, prefix in embedder.prefixes.items() if prefix]
    settings = [*map(str, dataclasses.astuple(storage)), *prefixes]
    revision = "-".join([embedder.fingerprint[:12], *settings])
    by_task = mteb_tasks.run(
        embed_as_stored(show_embedding(embedder), storage),
        arguments.mteb,
        run_dir / "mteb",
        embedder.experiment.name,
        revision,
    )
    print_table("MTEB, main scores", list(by_task.items()), ("task", "this run"))
    scores = {f"mteb/{name}": value for name, value in by_task.items()}
    write_json(arguments.json, {"step": embedder.step, "scores": scores})
    if is_own(embedder, storage):
        record(run_dir, embedder.step, scores)


def is_own(embedder: Embedder, storage: Storage) -> bool:
    """Whether the scores are the run's own: of whole vectors, and with its own prefixes."""
    return storage == Storage() and not embedder.given


def check_options(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that exclude each other, before a model is loaded."""
    if arguments.json and not arguments.json.parent.is_dir():
        raise UserError(f"--json {arguments.json}: no such folder {arguments.json.parent}")
    if arguments.mteb and arguments.data:
        raise UserError("--mteb: comes without --data; MTEB loads its own")
    if not arguments.data and (arguments.vectors or arguments.suite != "all"):
        raise UserError("--suite and --vectors: come with --data, the folder of the suites")
    if not (arguments.run_dir or arguments.library):
        raise UserError("name a run with --run-dir, or a sentence-transformers folder: --library")
    if is_comparison(arguments):
        check_comparison(arguments)
    if arguments.mteb:
        require_library("mteb", extra="mteb")
    if arguments.data:
        require_libraries(list_suites(arguments.data, arguments.suite))


def is_comparison(arguments: argparse.Namespace) -> bool:
    """Whether the options name more than one run."""
    return bool(arguments.library) or len(arguments.run_dir) > 1


def check_comparison(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that do not work with several models."""
    paths = [*map(str, arguments.run_dir), *arguments.library]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UserError(f"{twice[0]}: is named twice; name it once")
    for option in ("mteb", "step", "vectors", "x_prefix", "y_prefix"):
        if getattr(arguments, option) is not None:
            name = option.replace("_", "-")
            raise UserError(f"--{name}: comes with one --run-dir and without --library")
    if not arguments.data:
        raise UserError("several models are compared on --data, the folder of the suites")
    for name in arguments.library:
        library.check_folder(find_folder(name))


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(prog="jaxcpt evaluate", description="Score runs and other models.")
    parser.add_argument(
        "--run-dir",
        type=to_path,
        nargs="+",
        action="extend",
        default=[],
        help="a run; several are scored side by side, on --data",
    )
    parser.add_argument(
        "--library",
        nargs="+",
        action="extend",
        default=[],
        metavar="FOLDER",
        help="sentence-transformers folders, scored by that library beside the runs",
    )
    add_embedding_options(parser)
    parser.add_argument("--data", type=to_path, help="folder with one folder for each suite")
    parser.add_argument("--suite", default="all", help=f"{', '.join(SUITES)}, or all")
    parser.add_argument("--mteb", nargs="+", metavar="TASK", help="names of MTEB tasks")
    parser.add_argument(
        "--vectors",
        type=to_path,
        help="folder to keep the vectors of corpora, so that a killed evaluation can resume",
    )
    parser.add_argument("--json", type=to_path, help="also write all scores to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_options(argv)
    if arguments.data:
        arguments.data = fetch(arguments.data)
    experiments = [read_experiment(run_dir) for run_dir in arguments.run_dir]
    check_options(arguments)
    if is_comparison(arguments):
        use_cpu_cores()
        compare_models(arguments)
    else:
        [arguments.run_dir], [experiment] = arguments.run_dir, experiments
        score_run(arguments, experiment)


def score_run(arguments: argparse.Namespace, experiment: Experiment) -> None:
    """Scores a single run on --data, by MTEB, or on its held-out pairs."""
    run_dir = arguments.run_dir
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
        score_data(arguments, [make_column(arguments, run_dir, "this run", embedder, storage)])
    elif arguments.mteb:
        score_mteb(arguments, embedder, storage)
    elif predicts:
        score_prediction(arguments, embedder, heldout)
    else:
        score_heldout(arguments, embedder, storage, heldout)


if __name__ == "__main__":
    run_command(main)
