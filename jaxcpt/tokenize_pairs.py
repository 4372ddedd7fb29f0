"""Turns pairs into token ids on disk, for where the tokenizer is the limit of the input.

    jaxcpt tokenize-pairs --pairs PATH... --tokenizer FILE.model --output DIR
    jaxcpt tokenize-pairs --pairs PATH... --tokenizer tokenizer.json --delimiters own --output DIR
    jaxcpt tokenize-pairs --experiment FILE --output DIR

An experiment then names TokenizedPairs(DIR) as a source. Its `tokenizer.model_file` is
DIR/tokenizer.model for SentencePiece, and DIR for a Hugging Face tokenizer. Batches are those of
the texts, to the bit. A source is read from front to back, so this is also how Parquet too large
for random access becomes fit for it. Prefixes are part of the ids. The same pairs give the same
bytes.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from jaxcpt import config
from jaxcpt.errors import UserError, run_command
from jaxcpt.files import write_file
from jaxcpt.metrics import show_progress
from jaxcpt.pairs import PAIRS_AT_ONCE, Pairs, read_all
from jaxcpt.pairs.command import add_source_options, name_sources, open_sources
from jaxcpt.pairs.interface import Encoded, encode_pairs
from jaxcpt.pairs.tokenized import MODEL_FILE, TokensAbout, write_about, write_records
from jaxcpt.sources import Source
from jaxcpt.tokenizer import Tokenizer, read_model


def write_tokens(
    sources: list[Pairs], tokenizer: Tokenizer, folder: Path, negatives: int, shard_pairs: int
) -> TokensAbout:
    """Writes the records of all pairs, and beside them the tokenizer's model."""
    if tokenizer.template is None:
        write_file(folder / MODEL_FILE, tokenizer.model)
    else:
        tokenizer.save(folder)
    pairs = (pair for source in sources for pair in read_all(source))
    total, tokens = sum(map(len, sources)), 0
    files = [f"tokens-{number:05d}.array_record" for number in range(-(-total // shard_pairs))]

    def encode() -> Iterator[Encoded]:
        while block := list(islice(pairs, PAIRS_AT_ONCE)):
            yield from encode_pairs(block, tokenizer, negatives)
            advance(len(block))

    with show_progress("tokenizing", total, True) as advance:
        encoded = encode()
        for file in files:
            part = islice(encoded, shard_pairs)
            tokens += write_records(folder / file, part, tokenizer.vocabulary)
    return TokensAbout(
        total,
        tokens,
        tokenizer.fingerprint,
        tokenizer.vocabulary,
        tokenizer.x_tokens,
        tokenizer.y_tokens,
        tuple(files),
        len(tokenizer.delimiters("x").closing),
        len(tokenizer.delimiters("y").closing),
    )


def choose(sources: list[Source], number: int | None) -> Source:
    """One of an experiment's sources: each keeps a folder, and so a weight, of its own."""
    if number is None and len(sources) > 1:
        raise UserError(f"--source: which of the {len(sources)} sources? the first is 0")
    if not 0 <= (number or 0) < len(sources):
        raise UserError(f"--source {number}: there are {len(sources)}, and the first is 0")
    return sources[number or 0]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="jaxcpt tokenize-pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="DIR", help="folder to make; must not exist")
    add(
        "--tokenizer",
        metavar="FILE",
        help="SentencePiece model, Hugging Face tokenizer.json, or the tokenizer folder of a run; "
        "default: the experiment's",
    )
    add(
        "--delimiters",
        choices=("brackets", "own"),
        help="of a tokenizer.json, as in an experiment; default: brackets",
    )
    add("--x-tokens", type=int, help="longest x, delimiters included; default: 512")
    add("--y-tokens", type=int, help="longest y and negatives; an experiment may cut them further")
    add("--negatives", type=int, default=8, help="hard negatives kept of each pair, at most")
    add("--source", type=int, help="which of the experiment's sources, from 0; if it has several")
    add("--shard-pairs", type=int, default=1_000_000, help="pairs in a file")
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    if output.exists():
        raise UserError(f"{output}: exists; remove it or give another --output")
    for name, least in (("negatives", 0), ("shard_pairs", 1)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name.replace('_', '-')}: must be at least {least}")
    sources, experiment = name_sources(arguments)
    if experiment:
        sources = [choose(sources, arguments.source)]
    settings = experiment.tokenizer if experiment else config.Tokenizer(vocabulary=0)
    model = arguments.tokenizer or settings.model_file
    if model is None:
        raise UserError("--tokenizer: name a model; jaxcpt train-tokenizer makes one")
    x_tokens = arguments.x_tokens or settings.x_tokens
    y_tokens = arguments.y_tokens or settings.y_tokens
    if min(x_tokens, y_tokens) < 3:
        raise UserError("--x-tokens, --y-tokens: must be at least 3")
    delimiters = arguments.delimiters
    if delimiters is None and experiment and settings.kind == "hugging_face":
        delimiters = settings.delimiters
    tokenizer = read_model(model, x_tokens, y_tokens, delimiters=delimiters)
    opened = open_sources(sources, experiment.seed if experiment else 0)
    unfinished = output.with_name(f"{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir(parents=True)
    try:
        about = write_tokens(
            opened, tokenizer, unfinished, arguments.negatives, arguments.shard_pairs
        )
        write_about(unfinished, about)
        unfinished.rename(output)
    except RuntimeError as error:
        if "write() failed" not in str(error):  # as ArrayRecord tells of a full disk
            raise
        raise UserError(f"{output}: cannot be written: {str(error).split(';')[0]}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{output}: {about.pairs:,} pairs, {about.tokens:,} tokens")


if __name__ == "__main__":
    run_command(main)
