"""The options by which commands name pairs, and the opening of the pairs that they name."""

import argparse
import tempfile
from pathlib import Path

from jaxcpt.config import Experiment
from jaxcpt.errors import UserError
from jaxcpt.experiments import load_experiment
from jaxcpt.pairs import Pairs, find_source, open_source
from jaxcpt.sources import Source


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """--experiment, or --pairs with --split, --x and --y."""
    add = parser.add_argument
    add("--experiment", metavar="FILE", help="take its training sources")
    kinds = "or these, of any kind of source"
    add("--pairs", action="extend", nargs="+", default=[], metavar="PATH", help=kinds)
    add("--split", help="of --pairs that have splits; default: train")
    add("--x", default="x", metavar="NAME", help="column or field of x in --pairs")
    add("--y", default="y", metavar="NAME", help="column or field of y in --pairs")


def name_sources(arguments: argparse.Namespace) -> tuple[list[Source], Experiment | None]:
    """The sources that the options name, and the experiment if the options name one."""
    if bool(arguments.experiment) == bool(arguments.pairs):
        raise UserError("name the pairs by either --experiment FILE or --pairs PATH...")
    if arguments.experiment:
        if arguments.split is not None:
            raise UserError("--split: comes with --pairs; an experiment names its own")
        experiment = load_experiment(arguments.experiment)
        return list(experiment.data.train), experiment
    split = "train" if arguments.split is None else arguments.split
    sources = [find_source(path, split, arguments.x, arguments.y) for path in arguments.pairs]
    if arguments.split is not None and not any(getattr(source, "split", "") for source in sources):
        raise UserError(f"--split {split}: no pairs that were named have splits; leave it out")
    return sources, None


def open_sources(sources: list[Source], seed: int = 0) -> list[Pairs]:
    """The sources' texts; mined pairs are not kept. Raises UserError where there are no pairs."""
    with tempfile.TemporaryDirectory() as folder:
        opened = [open_source(source, Path(folder), seed) for source in sources]
    if not sum(map(len, opened)):
        raise UserError("no pairs in what was named; it needs at least one")
    return opened
