"""What the two mining commands share: their common options, and the run they end in."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxcpt.errors import UserError
from jaxcpt.mining.documents import Reading
from jaxcpt.mining.inputs import Mining


def make_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """The options of both commands; each adds its own."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    several: dict[str, Any] = {"action": "extend", "default": []}  # given twice, both count
    inputs = "files, folders, tfds:NAME#SPLIT"
    add("--input", nargs="*", metavar="PATH", help=inputs, **several)
    add("--output", required=True, metavar="DIR", help="folder to make; must not exist")
    add("--name", help="name of the dataset; default: the output folder's")
    add("--version", default=Mining.version, help="version of the dataset")
    add("--split-by", choices=("document", "module", "repository"), default=Mining.split_by)
    add("--heldout-share", type=float, default=Mining.heldout_share)
    near = "Jaccard similarity from which a pair repeats another; 0: exact duplicates only"
    add("--near-duplicate", type=float, default=Mining.near_duplicate, help=near)
    add("--decontaminate", nargs="+", metavar="DIR", help="evaluation sets", **several)
    add("--ngram-words", type=int, default=Mining.ngram_words, help="shared words that count")
    add("--shards", type=int, help="files of each split; default: one for each 64 MiB of input")
    bad = "the run fails when more than this share of the files and records cannot be read"
    add("--max-bad-share", type=float, default=Mining.max_bad_share, help=bad)
    add("--workers", type=int, default=os.cpu_count(), help="processes on this machine")
    add("runner", nargs="*", metavar="-- RUNNER OPTION", help="options of another Beam runner")
    return parser


def run_mining(
    arguments: argparse.Namespace, reading: Reading, miner: Callable, options: dict[str, Any]
) -> None:
    """Mines as the shared options say; `options` are the command's own, for the data card."""
    output = Path(arguments.output)
    name = arguments.name or re.sub(r"\W", "_", output.name)
    if not re.fullmatch(r"[a-zA-Z]\w*", name, re.ASCII):
        raise UserError(f"--name {name}: expected a letter, then letters, digits and underscores")
    if not re.fullmatch(r"\d+\.\d+\.\d+", arguments.version):
        raise UserError(f"--version {arguments.version}: expected three numbers, such as 1.0.0")
    if arguments.runner and not arguments.runner[0].startswith("--"):
        raise UserError(f"{arguments.runner[0]}: stray argument; paths follow --input")
    mining = Mining(
        tuple(arguments.input),
        name,
        arguments.version,
        arguments.split_by,
        arguments.heldout_share,
        arguments.near_duplicate,
        tuple(arguments.decontaminate),
        arguments.ngram_words,
        arguments.shards,
        arguments.max_bad_share,
    )
    _check(mining, arguments.workers)
    logging.disable(logging.WARNING)  # Beam tells at import which clouds it lacks
    from jaxcpt.mining.pipeline import mine  # takes seconds, so it comes after what may refuse

    card = mine(mining, reading, miner, output, arguments.runner, arguments.workers, options)
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
