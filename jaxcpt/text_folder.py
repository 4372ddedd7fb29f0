"""A folder of texts in, pieces of them out: what `jaxcpt search --text` searches.

A piece is some paragraphs that follow each other, with `path:line` as its id. Hidden files and
folders are left out, and so are files that are no text; all but hidden ones are counted. The
module knows no model.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.vectors import TextWithId

SUFFIXES = (".adoc", ".markdown", ".md", ".org", ".rst", ".tex", ".text", ".txt")
PIECE_CHARACTERS = 1000
"""Paragraphs are joined up to this length, about 250 tokens. A longer one stays whole."""


def read_pieces(folder: Path) -> tuple[list[TextWithId], Counter[str]]:
    """The pieces of all texts, and how many files were left out and why.

    Paths count from the folder. Raises UserError where it holds no text.
    """
    if not folder.is_dir():
        raise UserError(f"--text {folder}: no such folder")
    pieces: list[TextWithId] = []
    left_out: Counter[str] = Counter()
    for path in list_files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in SUFFIXES:
            left_out[f"file that ends in {path.suffix or 'nothing'}"] += 1
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
            name.encode()
        except (OSError, UnicodeError):
            left_out["unreadable file"] += 1
            continue
        pieces += [TextWithId(f"{name}:{line}", piece) for line, piece in cut(text)]
    if not pieces:
        raise UserError(f"--text {folder}: no text in it; files must end in {', '.join(SUFFIXES)}")
    return pieces, left_out


def cut(text: str) -> Iterator[tuple[int, str]]:
    """The pieces of a text, each with the number of its first line."""
    begin = end = 0
    for paragraph in re.finditer(r"\S[^\n]*(?:\n[^\n]*\S[^\n]*)*", text):
        if end > begin and paragraph.end() - begin > PIECE_CHARACTERS:
            yield text.count("\n", 0, begin) + 1, text[begin:end]
            end = begin
        if end <= begin:
            begin = paragraph.start()
        end = paragraph.end()
    if end > begin:
        yield text.count("\n", 0, begin) + 1, text[begin:end]


def list_files(folder: Path, not_searched: Collection[str] = ()) -> Iterator[Path]:
    """Files below the folder, in the order of their paths. Links are not followed.

    Hidden files and folders are left out, and folders whose names are in `not_searched`.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in not_searched)
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path
