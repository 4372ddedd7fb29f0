"""Reads pieces of the texts in a folder, for `jaxcpt search --text`.

In: a folder. Out: pieces. A piece is one paragraph or several consecutive ones, and its id is
`path:line`. Hidden files and folders are left out. Files that are not text are left out and
counted. The module knows no model.
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
"""Most characters of joined paragraphs, about 250 tokens. A longer paragraph is one piece."""


def read_pieces(folder: Path) -> tuple[list[TextWithId], Counter[str]]:
    """Returns the pieces of all texts, and the number of left-out files by reason.

    Paths in ids are relative to the folder. Raises UserError if the folder has no text.
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
    """Yields (number of the first line, piece) for the pieces of a text."""
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
    """Yields the files below a folder, in the order of their paths. Links are not followed.

    Hidden files and folders, and folders with a name in `not_searched`, are left out.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in not_searched)
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path
