"""Chooses the prefixes that a run puts before texts in search, embed, evaluate and export.

In: an experiment, the prefixes of its tokenizer, and the prefixes that a user chose instead. Out:
the prefix of each side. Texts that are read from a data source already have the prefix of that
source (`jaxcpt.pairs`), so they are not the subject of this module.
"""

import argparse
from collections.abc import Mapping
from typing import get_args

from jaxcpt.config import Experiment
from jaxcpt.pair import Side

SIDES: tuple[Side, ...] = get_args(Side)


def list_prefixes(experiment: Experiment, side: Side) -> list[str]:
    """The distinct prefixes that the training sources put before this side."""
    found = [getattr(source, f"{side}_prefix") for source in experiment.data.train]
    return list(dict.fromkeys(found))


def choose_prefix(
    experiment: Experiment, side: Side, of_tokenizer: str, given: Mapping[Side, str]
) -> str:
    """The prefix that the user gave. Without one: the tokenizer's prefix, followed by that of the
    training sources if all of them have the same."""
    if side in given:
        return given[side]
    shared = list_prefixes(experiment, side)
    return of_tokenizer + (shared[0] if len(shared) == 1 else "")


def describe_differences(experiment: Experiment, given: Mapping[Side, str]) -> list[str]:
    """Warning lines for sides whose training sources have several prefixes.

    A side for which the user gave a prefix gets no line.
    """
    return [
        f"note: data.train has several prefixes of {side} ({', '.join(map(repr, found))}), so none "
        f"of them is put before a text; choose one with --{side}-prefix"
        for side in SIDES
        if side not in given and len(found := list_prefixes(experiment, side)) > 1
    ]


def add_prefix_options(parser: argparse.ArgumentParser) -> None:
    """Adds --x-prefix and --y-prefix."""
    for side in SIDES:
        described = f"text to put before each {side}; default: the run's, if its sources agree"
        parser.add_argument(f"--{side}-prefix", metavar="TEXT", help=described)


def read_prefix_options(arguments: argparse.Namespace) -> dict[Side, str]:
    """The prefixes that the user gave, by side."""
    found = {side: getattr(arguments, f"{side}_prefix") for side in SIDES}
    return {side: prefix for side, prefix in found.items() if prefix is not None}
