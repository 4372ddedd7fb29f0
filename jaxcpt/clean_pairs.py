"""Removes duplicates and evaluation texts from your own pairs; writes a tensorflow-datasets folder.

    jaxcpt clean-pairs --input PATH... --x NAME --y NAME --output DIR [-- RUNNER OPTIONS]

Inputs are JSONL files (also compressed by gzip or zstd), Parquet files, archives and folders of
these, and tfds:NAME#SPLIT. Pairs are dropped, counted and listed by the same rules as mined pairs
(see docs/mining.md). Hard negatives are not copied; find new ones with jaxcpt mine-negatives.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from jaxcpt.errors import run_command
from jaxcpt.mining.command import make_parser, run_mining
from jaxcpt.mining.documents import Reading
from jaxcpt.mining.raw_document import RawDocument


def take_pair(document: RawDocument, drops: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields the pair in a document, or counts the document in `drops` if it holds no pair."""
    if document.y:
        yield document.text, document.y
    else:
        drops["document that is no pair"] += 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("jaxcpt clean-pairs", __doc__)
    parser.add_argument("--x", default="x", metavar="NAME", help="column or field of x; default: x")
    parser.add_argument("--y", default="y", metavar="NAME", help="column or field of y; default: y")
    arguments = parser.parse_args(argv)
    reading = Reading(text_field=arguments.x, y_field=arguments.y)
    run_mining(arguments, reading, take_pair, {"x": arguments.x, "y": arguments.y})


if __name__ == "__main__":
    run_command(main)
