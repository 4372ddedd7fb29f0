"""Mines (documentation, function) pairs from source trees into a tensorflow-datasets folder.

    jaxcpt mine-code --input PATH... --output DIR [options] [-- RUNNER OPTIONS]

Inputs are source files, folders of them, tar and zip archives, and wheels. docs/mining.md explains
which functions are left out and why.
"""

from collections.abc import Sequence

from jaxcpt.errors import run_command
from jaxcpt.mining.code import LANGUAGES, check_languages, list_source_suffixes, mine_code
from jaxcpt.mining.command import make_parser, run_mining
from jaxcpt.mining.documents import Reading


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("jaxcpt mine-code", __doc__)
    languages_help = f"programming languages to read; default: {' '.join(LANGUAGES)}"
    parser.add_argument(
        "--languages",
        nargs="+",
        default=list(LANGUAGES),
        metavar="LANGUAGE",
        help=languages_help,
    )
    parser.set_defaults(split_by="module")
    arguments = parser.parse_args(argv)
    languages = check_languages(tuple(arguments.languages))
    reading = Reading(source_suffixes=list_source_suffixes(languages))
    run_mining(arguments, reading, mine_code, {"languages": languages})


if __name__ == "__main__":
    run_command(main)
