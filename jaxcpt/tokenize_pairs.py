"""Writes pairs as token ids, for runs that would wait for the tokenizer.

    jaxcpt tokenize-pairs --pairs PATH... --tokenizer FILE.model --output DIR
    jaxcpt tokenize-pairs --pairs PATH... --tokenizer tokenizer.json --delimiters own --output DIR
    jaxcpt tokenize-pairs --experiment FILE --output DIR

An experiment then names TokenizedPairs(DIR) as a data source. Its `tokenizer.model_file` is
DIR/tokenizer.model for SentencePiece, and DIR for a Hugging Face tokenizer. Its batches are exactly
equal to those of the texts. The pairs are read from first to last, so the command also works for
Parquet files that are too large for random access. The ids include the prefixes of the data source.
The same pairs give the same files.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

from jaxcpt import config
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.files import new_folder, to_path, write_file
from jaxcpt.pairs import PAIRS_AT_ONCE, Pairs, read_all
from jaxcpt.pairs.command import add_source_options, name_sources, open_sources
from jaxcpt.pairs.interface import encode_pairs
from jaxcpt.pairs.tokenized import (
    MODEL_FILE,
    TokensAbout,
    choose_dtype,
    encode_record,
    write_about,
    write_records,
)
from jaxcpt.sources import Source
from jaxcpt.terminal import show_progress
from jaxcpt.tokenizer import Tokenizer, put_prefixes, read_model


def write_tokens(
    sources: list[Pairs],
    tokenizer: Tokenizer,
    folder: Path,
    negatives: int,
    shard_pairs: int,
    prefixes: tuple[str, str],
) -> TokensAbout:
    """Writes the records of all pairs and the tokenizer. Returns facts about them.

    prefixes: the prefixes of x and of y, which the texts of `sources` already have.
    """
    if tokenizer.template is None:
        write_file(folder / MODEL_FILE, tokenizer.model)
    else:
        tokenizer.save(folder)
    pairs = (pair for source in sources for pair in read_all(source))
    total = sum(map(len, sources))
    tokens = with_negatives = 0
    files = [f"tokens-{number:05d}.array_record" for number in range(-(-total // shard_pairs))]

    def encode() -> Iterator[bytes]:
        nonlocal tokens, with_negatives
        numbers = count()
        fingerprint, dtype = tokenizer.fingerprint, choose_dtype(tokenizer.vocabulary)
        while block := list(islice(pairs, PAIRS_AT_ONCE)):
            for encoded in encode_pairs(block, tokenizer, negatives):
                tokens += sum(map(len, encoded.ids))
                with_negatives += any(map(len, encoded.ids[2:]))
                yield encode_record(encoded, next(numbers), fingerprint, dtype)
            advance(len(block))

    with show_progress("tokenizing", total, True) as advance:
        records = encode()
        for file in files:
            write_records(folder / file, islice(records, shard_pairs))
    return TokensAbout(
        pairs=total,
        pairs_with_negatives=with_negatives,
        tokens=tokens,
        fingerprint=tokenizer.fingerprint,
        vocabulary=tokenizer.vocabulary,
        x_tokens=tokenizer.x_tokens,
        y_tokens=tokenizer.y_tokens,
        negatives=negatives,
        x_prefix=prefixes[0],
        y_prefix=prefixes[1],
        files=tuple(files),
        x_closing=len(tokenizer.delimiters("x").closing),
        y_closing=len(tokenizer.delimiters("y").closing),
    )


def choose_source(sources: list[Source], number: int | None) -> Source:
    """Returns one data source of an experiment. Each gets its own folder, to keep its weight."""
    last = len(sources) - 1
    if number is None and last > 0:
        raise UserError(f"--source: missing; the experiment has the sources 0 to {last}; give one")
    if not 0 <= (number or 0) <= last:
        raise UserError(f"--source {number}: not found; the experiment has the sources 0 to {last}")
    return sources[number or 0]


def _make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="jaxcpt tokenize-pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    add = parser.add_argument
    add("--output", required=True, type=to_path, metavar="DIR", help="new folder to write")
    model = "SentencePiece model, Hugging Face tokenizer.json, or the tokenizer folder of a run; "
    model += "default: the experiment's"
    add("--tokenizer", metavar="FILE", help=model)
    delimiters = "delimiters to use with a tokenizer.json; default: brackets, or the experiment's"
    add("--delimiters", choices=("brackets", "own"), help=delimiters)
    longest_x = "most tokens of an x, with delimiters; default: the experiment's, or 512"
    add("--x-tokens", type=int, metavar="N", help=longest_x)
    longest_y = "the same for y and negatives; an experiment that reads them may use fewer"
    add("--y-tokens", type=int, metavar="N", help=longest_y)
    most = "most hard negatives to keep for a pair; default: %(default)s"
    add("--negatives", type=int, default=8, metavar="N", help=most)
    source = "number of one of the experiment's sources, from 0; needed if it has several"
    add("--source", type=int, metavar="N", help=source)
    shard = "pairs in each file; default: %(default)s"
    add("--shard-pairs", type=int, default=1_000_000, metavar="N", help=shard)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _make_parser().parse_args(argv)
    output: Path = arguments.output
    if output.exists():
        raise UserError(f"{output}: exists; remove it or give another --output")
    for name, least in (("negatives", 0), ("shard_pairs", 1)):
        if (value := getattr(arguments, name)) < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    sources, experiment = name_sources(arguments)
    if experiment:
        sources = [choose_source(sources, arguments.source)]
    settings = experiment.tokenizer if experiment else config.Tokenizer(vocabulary=0)
    model = arguments.tokenizer or settings.model_file
    if model is None:
        raise UserError("--tokenizer: missing; name a model; jaxcpt train-tokenizer makes one")
    x_tokens = settings.x_tokens if arguments.x_tokens is None else arguments.x_tokens
    y_tokens = settings.y_tokens if arguments.y_tokens is None else arguments.y_tokens
    for option, value in (("--x-tokens", x_tokens), ("--y-tokens", y_tokens)):
        if value < 3:
            raise UserError(f"{option} {value}: must be at least 3")
    delimiters = arguments.delimiters
    if delimiters is None and experiment and settings.kind == "hugging_face":
        delimiters = settings.delimiters
    tokenizer = read_model(model, x_tokens, y_tokens, delimiters=delimiters)
    if experiment:
        tokenizer = put_prefixes(tokenizer, settings, model)
    opened = open_sources(sources, experiment.seed if experiment else 0)
    try:
        with new_folder(output) as folder:
            about = write_tokens(
                opened,
                tokenizer,
                folder,
                arguments.negatives,
                arguments.shard_pairs,
                (sources[0].x_prefix, sources[0].y_prefix),
            )
            write_about(folder, about)
    except RuntimeError as error:
        if "write() failed" not in str(error):  # ArrayRecord's error for a full disk.
            raise
        raise UserError(f"{output}: cannot be written: {str(error).split(';')[0]}") from error
    print(f"{output}: {about.pairs:,} pairs, {about.tokens:,} tokens")


if __name__ == "__main__":
    run_command(main)
