"""Mines pairs of neighbouring pieces from raw text into a tensorflow-datasets folder.

    jaxcpt mine-text --input PATH... --output DIR [options] [-- RUNNER OPTIONS]

Inputs are plain text, HTML, JSONL and Parquet, gzip or zstd of these, WARC and WET, tar and zip
archives, folders of all of these, and tfds:NAME#SPLIT. docs/mining.md tells the rest.
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
    add("--text-field", default="text", help="field of JSONL, Parquet and tfds records")
    add("--document-start", help="pattern of a line that begins a new document of plain text")
    add("--piece-chars", type=int, nargs=2, metavar=("MIN", "MAX"), default=default.piece_chars)
    add("--gap", type=int, default=default.gap, help="pieces left out between the two sides")
    add("--pairs-per-document", type=int, default=default.pairs_per_document)
    add("--languages", nargs="+", default=["en"], help="ISO 639-1 codes to keep; all: no filter")
    add("--no-quality-filter", action="store_true", help="keep tables, lists of numbers and such")
    arguments = parser.parse_args(argv)
    options = TextOptions(
        tuple(arguments.piece_chars),
        arguments.gap,
        arguments.pairs_per_document,
        tuple(code for code in arguments.languages if code != "all"),
        not arguments.no_quality_filter,
    )
    try:
        re.compile(arguments.document_start or "")
    except re.error as error:
        raise UserError(
            f"--document-start {arguments.document_start}: no pattern: {error}"
        ) from None
    reading = Reading(text_field=arguments.text_field, document_start=arguments.document_start)
    miner = partial(mine_text, options=check_text_options(options))
    told = {"text_field": reading.text_field, "document_start": reading.document_start}
    run_mining(arguments, reading, miner, asdict(options) | told)


if __name__ == "__main__":
    run_command(main)
