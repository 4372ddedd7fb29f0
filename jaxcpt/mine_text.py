"""Mines pairs of neighbouring pieces from raw text into a tensorflow-datasets folder.

    jaxcpt mine-text --input PATH... --output DIR [options] [-- RUNNER OPTIONS]

Inputs are files of plain text, HTML, JSONL, Parquet, WARC and WET, also compressed by gzip or zstd;
tar and zip archives and folders of these; and tfds:NAME#SPLIT. docs/mining.md explains how pieces
are cut and which pairs are dropped.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from jaxcpt.errors import UserError, run_command
from jaxcpt.mining.command import make_parser, run_mining
from jaxcpt.mining.documents import Reading
from jaxcpt.mining.text import TextOptions, check_text_options, mine_text


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("jaxcpt mine-text", __doc__)
    add = parser.add_argument
    default = TextOptions()
    field = "field of the text in JSONL, Parquet and tfds records; default: %(default)s"
    add("--text-field", default="text", metavar="NAME", help=field)
    start = "regular expression for the first line of each document in a plain text file"
    add("--document-start", metavar="PATTERN", help=start)
    chars = "fewest and most characters of a piece; default: {} {}".format(*default.piece_chars)
    sizes = ("MIN", "MAX")
    add("--piece-chars", type=int, nargs=2, metavar=sizes, default=default.piece_chars, help=chars)
    gap = "number of pieces left out between x and y; default: %(default)s"
    add("--gap", type=int, default=default.gap, metavar="N", help=gap)
    pairs = "most pairs to take from one document; default: %(default)s"
    add("--pairs-per-document", type=int, default=default.pairs_per_document, help=pairs)
    languages = "ISO 639-1 codes of the languages to keep, or all; default: en"
    add("--languages", nargs="+", default=["en"], metavar="CODE", help=languages)
    quality = "also keep tables, lists of numbers and the like"
    add("--no-quality-filter", action="store_true", help=quality)
    arguments = parser.parse_args(argv)
    options = TextOptions(
        piece_chars=tuple(arguments.piece_chars),
        gap=arguments.gap,
        pairs_per_document=arguments.pairs_per_document,
        languages=tuple(code for code in arguments.languages if code != "all"),
        quality=not arguments.no_quality_filter,
    )
    try:
        re.compile(arguments.document_start or "")
    except re.error as error:
        raise UserError(
            f"--document-start {arguments.document_start}: not a regular expression: {error}"
        ) from None
    reading = Reading(text_field=arguments.text_field, document_start=arguments.document_start)
    miner = partial(mine_text, options=check_text_options(options))
    fields = {"text_field": reading.text_field, "document_start": reading.document_start}
    run_mining(arguments, reading, miner, asdict(options) | fields)


if __name__ == "__main__":
    run_command(main)
