"""The options by which a command names pairs, and the functions that open these pairs.

In: the parsed options. Out: data sources, or pairs. The module knows no kind of data source.
"""

import argparse
import tempfile
from pathlib import Path

from jaxcpt.config import Experiment
from jaxcpt.errors import UserError
from jaxcpt.experiments import load_experiment
from jaxcpt.pairs import Pairs, find_source, open_source
from jaxcpt.sources import Source


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds --experiment, and --pairs with --split, --x and --y."""
    add = parser.add_argument
    experiment = "experiment file; use its training sources"
    add("--experiment", metavar="FILE", help=experiment)
    paths = "files and folders of pairs, of any kind that docs/data.md lists"
    add("--pairs", action="extend", nargs="+", default=[], metavar="PATH", help=paths)
    add("--split", metavar="NAME", help="split of --pairs, if they have splits; default: train")
    add("--x", default="x", metavar="NAME", help="column or field of x in --pairs; default: x")
    add("--y", default="y", metavar="NAME", help="column or field of y in --pairs; default: y")


def name_sources(arguments: argparse.Namespace) -> tuple[list[Source], Experiment | None]:
    """Returns the data sources that the options name, and the experiment if they name one.

    Raises UserError if the options contradict each other or a source does not exist.
    """
    if bool(arguments.experiment) == bool(arguments.pairs):
        raise UserError("give the pairs by either --experiment FILE or --pairs PATH...")
    if arguments.experiment:
        if arguments.split is not None:
            raise UserError("--split: works only with --pairs; an experiment names its own splits")
        experiment = load_experiment(arguments.experiment)
        return list(experiment.data.train), experiment
    split = "train" if arguments.split is None else arguments.split
    sources = [find_source(path, split, arguments.x, arguments.y) for path in arguments.pairs]
    if arguments.split is not None and not any(getattr(source, "split", "") for source in sources):
        raise UserError(f"--split {split}: none of the --pairs have splits; remove the option")
    return sources, None


def open_sources(sources: list[Source], seed: int = 0) -> list[Pairs]:
    """Opens the texts of the data sources. Raises UserError if they have no pairs.

    Pairs that are mined from installed packages are not kept on disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        opened = [open_source(source, Path(folder), seed) for source in sources]
    if not sum(map(len, opened)):
        raise UserError("found no pairs to read; name a source with at least one pair")
    return opened
