"""What commands that read pairs share: the options that name them, and opening what they name."""

import argparse
import tempfile
from pathlib import Path

from jaxcpt.config import Experiment, Refusal
from jaxcpt.experiments import load_experiment
from jaxcpt.pairs import Pairs, find_source, open_source
from jaxcpt.sources import Source


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """--experiment, or --pairs with --split, --x and --y."""
    add = parser.add_argument
    add("--experiment", metavar="FILE", help="take its training sources")
    kinds = "or these, of any kind of source"
    add("--pairs", action="extend", nargs="+", default=[], metavar="PATH", help=kinds)
    add("--split", default="train", help="of --pairs that have splits")
    add("--x", default="x", metavar="NAME", help="column or field of x in --pairs")
    add("--y", default="y", metavar="NAME", help="column or field of y in --pairs")


def name_sources(arguments: argparse.Namespace) -> tuple[list[Source], Experiment | None]:
    """The sources that the options name, and the experiment where one does. Raises Refusal."""
    if bool(arguments.experiment) == bool(arguments.pairs):
        raise Refusal("name the pairs by either --experiment FILE or --pairs PATH...")
    if arguments.experiment:
        experiment = load_experiment(arguments.experiment)
        return list(experiment.data.train), experiment
    return [
        find_source(path, arguments.split, arguments.x, arguments.y) for path in arguments.pairs
    ], None


def open_sources(sources: list[Source], seed: int = 0) -> list[Pairs]:
    """Their texts; what is mined on the way is not kept. Raises Refusal for one without pairs."""
    with tempfile.TemporaryDirectory() as folder:
        opened = [open_source(source, Path(folder), seed) for source in sources]
    if not sum(map(len, opened)):
        raise Refusal("no pairs in what was named; it needs at least one")
    return opened
