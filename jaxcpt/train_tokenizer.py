"""Trains a SentencePiece tokenizer on pairs, for an experiment's `tokenizer.model_file`.

    jaxcpt train-tokenizer --pairs PATH... --vocabulary 32000 --output FILE.model
    jaxcpt train-tokenizer --experiment FILE --output FILE.model

The tokenizer has byte fallback, so it can encode every text. The four delimiters are control
symbols, so a text cannot contain them. Unless identifiers are split, white space is kept, and there
are pieces for line ends and indentation. The same pairs give the same file. If an option is
missing, the experiment's value is used. A run without a `model_file` trains its own tokenizer.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxcpt import config
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.files import to_path, write_file
from jaxcpt.pairs import sample_texts
from jaxcpt.pairs.command import add_source_options, name_sources, open_sources
from jaxcpt.tokenizer import read_model, train_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="jaxcpt train-tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    add = parser.add_argument
    flag = argparse.BooleanOptionalAction
    add("--output", required=True, type=to_path, metavar="FILE", help="new model file to write")
    vocabulary = "number of pieces, including 256 bytes, 4 delimiters and 2 other special pieces"
    add("--vocabulary", type=int, metavar="N", help=vocabulary)
    add("--kind", choices=("bpe", "unigram"), help="algorithm; default: bpe, or the experiment's")
    identifiers = "lower-case all text, and cut names such as parseDate into words"
    add("--split-identifiers", action=flag, help=identifiers)
    add("--split-digits", action=flag, help="make each digit a piece of its own")
    most = "most pairs to read from each source, spread evenly over it; default: %(default)s"
    add("--max-pairs", type=int, default=1_000_000, metavar="N", help=most)
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    if output.exists():
        raise UserError(f"{output}: exists; remove it or give another --output")
    if arguments.max_pairs < 1:
        raise UserError(f"--max-pairs {arguments.max_pairs}: must be at least 1")
    sources, experiment = name_sources(arguments)
    if experiment is None and arguments.vocabulary is None:
        raise UserError(
            "--vocabulary: missing; give the number of pieces, such as 32000 for text and code"
        )
    settings = (
        experiment.tokenizer if experiment else config.Tokenizer(vocabulary=0, split_digits=True)
    )
    changes = {
        name: value
        for name in ("vocabulary", "kind", "split_identifiers", "split_digits")
        if (value := getattr(arguments, name)) is not None
    }
    settings = replace(settings, **changes)
    output.parent.mkdir(parents=True, exist_ok=True)
    seed = experiment.seed if experiment else 0
    texts = sample_texts(open_sources(sources, seed), arguments.max_pairs)
    tokenizer = train_tokenizer(texts, settings)
    write_file(output, tokenizer.model)
    pieces = read_model(str(output), settings.x_tokens, settings.y_tokens).vocabulary
    if pieces < settings.vocabulary:
        print(f"the pairs give only {pieces} of the {settings.vocabulary} pieces")
    print(f'{output}: use it with Tokenizer(vocabulary={pieces}, model_file="{output}")')


if __name__ == "__main__":
    run_command(main)
