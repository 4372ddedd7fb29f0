"""The options that mine-text, mine-code and clean-pairs share, and the function that runs them.

In: the parsed options, and the command's own reader options and miner. Out: a finished dataset
folder, and a summary on the terminal. The module does not know what the miner does.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from jaxcpt.errors import CommandParser, UserError
from jaxcpt.files import is_object, to_path
from jaxcpt.mining.documents import Reading
from jaxcpt.mining.inputs import Mining


def make_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the shared options. Each command adds its own options to it."""
    parser = CommandParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    # A repeated option adds to its earlier values.
    several: dict[str, Any] = {"action": "extend", "default": []}
    inputs = "files, folders and tfds:NAME#SPLIT"
    add("--input", nargs="*", metavar="PATH", help=inputs, **several)
    add("--output", required=True, metavar="DIR", help="new folder to write")
    add("--name", help="name of the dataset; default: name of the output folder")
    add(
        "--version",
        metavar="X.Y.Z",
        default=Mining.version,
        help="version of the dataset; default: %(default)s",
    )
    add(
        "--split-by",
        choices=("document", "module", "repository"),
        default=Mining.split_by,
        help="put all pairs of one such group in the same split; default: %(default)s",
    )
    share = "share of the groups that go to the heldout split; default: %(default)s"
    add("--heldout-share", type=float, default=Mining.heldout_share, metavar="SHARE", help=share)
    near = "drop a pair at this Jaccard similarity to another pair; 0: drop exact duplicates only"
    near += "; default: %(default)s"
    add("--near-duplicate", type=float, default=Mining.near_duplicate, metavar="SHARE", help=near)
    evaluations = "folders of evaluation sets; drop pairs that share words with them"
    add("--decontaminate", nargs="+", metavar="DIR", help=evaluations, **several)
    ngram = "number of consecutive shared words that make a pair contaminated; default: %(default)s"
    add("--ngram-words", type=int, default=Mining.ngram_words, metavar="N", help=ngram)
    add(
        "--shards",
        type=int,
        metavar="N",
        help="files in each split; default: one per 64 MiB of input",
    )
    bad = "stop if more than this share of files and records cannot be read; default: %(default)s"
    add("--max-bad-share", type=float, default=Mining.max_bad_share, metavar="SHARE", help=bad)
    workers = "processes on this machine; default: %(default)s, one per core"
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help=workers)
    add("runner", nargs="*", metavar="-- RUNNER OPTION", help="options for another Beam runner")
    return parser


def run_mining(
    arguments: argparse.Namespace, reading: Reading, miner: Callable, options: dict[str, Any]
) -> None:
    """Mines with the shared options and prints a summary.

    options: the command's own options, for the data card. Raises UserError for a wrong option. It
    disables log messages below ERROR for the rest of the process, because Beam logs a warning for
    each cloud service whose library is not installed.
    """
    output = to_path(arguments.output)
    if is_object(output):
        raise UserError(
            f"--output {output}: the miners write to a local disk; copy the dataset from there"
        )
    name = arguments.name or re.sub(r"\W", "_", output.name)
    if not re.fullmatch(r"[a-zA-Z]\w*", name, re.ASCII):
        raise UserError(f"--name {name}: expected a letter, then letters, digits and underscores")
    if not re.fullmatch(r"\d+\.\d+\.\d+", arguments.version):
        raise UserError(f"--version {arguments.version}: expected three numbers, such as 1.0.0")
    if arguments.runner and not arguments.runner[0].startswith("--"):
        raise UserError(f"{arguments.runner[0]}: unexpected argument; give paths after --input")
    mining = Mining(
        inputs=tuple(arguments.input),
        name=name,
        version=arguments.version,
        split_by=arguments.split_by,
        heldout_share=arguments.heldout_share,
        near_duplicate=arguments.near_duplicate,
        decontaminate=tuple(arguments.decontaminate),
        ngram_words=arguments.ngram_words,
        shards=arguments.shards,
        max_bad_share=arguments.max_bad_share,
    )
    _check(mining, arguments.workers)
    logging.disable(logging.WARNING)
    # Importing Beam takes seconds, so the options are checked first.
    from jaxcpt.mining.pipeline import mine

    card = mine(
        mining,
        reading,
        miner,
        output,
        runner_arguments=arguments.runner,
        workers=arguments.workers,
        options=options,
    )
    for what, count in {**card["counts"], **card["dropped"], **card["pairs"]}.items():
        print(f"{count:>12,}  {what}", file=sys.stderr)
    print(f"{output}: {sum(card['pairs'].values()):,} pairs; see {output / 'data_card.md'}")


def _check(mining: Mining, workers: int) -> None:
    rules = [
        (0 <= mining.heldout_share < 1, "--heldout-share", mining.heldout_share, "in [0, 1)"),
        (0 <= mining.near_duplicate <= 1, "--near-duplicate", mining.near_duplicate, "in [0, 1]"),
        (0 <= mining.max_bad_share <= 1, "--max-bad-share", mining.max_bad_share, "in [0, 1]"),
        (workers > 0, "--workers", workers, "1 or more"),
        (mining.shards is None or mining.shards > 0, "--shards", mining.shards, "1 or more"),
    ]
    for holds, option, value, expected in rules:
        if not holds:
            raise UserError(f"{option} {value}: expected a number {expected}")
