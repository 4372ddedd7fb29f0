"""Mines pairs of neighbouring pieces from a document (paper, section 2.1).

In: a document. Out: pairs. White space is normalised to single spaces, and both sides of a pair are
slices of this text. A piece ends at a sentence that is chosen by its own hash. A copy of the
document with another beginning is therefore cut at the same places, and its pairs are found as
duplicates. The module reads no files.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import py3langid

from jaxcpt.errors import UserError
from jaxcpt.mining.raw_document import RawDocument
from jaxcpt.mining.words import UNSPACED, is_mark

ENDS = re.compile(
    r"""[.!?\u2026\u0589\u061f\u06d4\u0964\u0965\u1362\u104b\u17d4]["'\u201d\u2019)\]]?\s"""
    r"""|[\u3002\uff01\uff1f\uff0e\uff61]\s?"""
)
"""Matches the end of a sentence: its mark, a closing quote, and white space. CJK marks need no
white space. Marks of Armenian, Arabic, Urdu, Hindi, Amharic, Burmese and Khmer are included."""
UNSPACED_LETTER = re.compile(f"[{UNSPACED}]")
PIECE_END_ONE_IN = 3
"""One in this many sentences, chosen by its hash, ends a piece that is long enough."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How to cut documents into pieces, and which pairs to keep."""

    piece_chars: tuple[int, int] = (200, 1000)
    """The fewest and the most characters of a piece."""
    gap: int = 0
    """The number of pieces left out between x and y."""
    pairs_per_document: int = 8
    languages: tuple[str, ...] = ("en",)
    """ISO 639-1 codes of the languages to keep. Empty: keep all."""
    quality: bool = True
    """Drop tables, lists of numbers and the like (see `find_flaw`)."""


def check_text_options(options: TextOptions) -> TextOptions:
    """Returns the options. Raises UserError that names an option with a wrong value."""
    shortest, longest = options.piece_chars
    if not 0 < shortest <= longest:
        raise UserError(f"--piece-chars {shortest} {longest}: expected 0 < MIN <= MAX")
    if options.gap < 0:
        raise UserError(f"--gap {options.gap}: must be 0 or more")
    if options.pairs_per_document < 1:
        raise UserError(f"--pairs-per-document {options.pairs_per_document}: must be 1 or more")
    if unknown := sorted(set(options.languages) - _known_languages()):
        known = ", ".join(sorted(_known_languages()))
        raise UserError(f"--languages: unknown language '{unknown[0]}'; known: all, {known}")
    return options


def _known_languages() -> set[str]:
    return {language for language, _ in py3langid.rank("")}


def mine_text(
    document: RawDocument, drops: Counter[str], options: TextOptions
) -> Iterator[tuple[str, str]]:
    """Yields (piece, later piece). No piece is used twice. Counts left-out pairs in `drops`."""
    text, pieces = cut_pieces(document.text, options.piece_chars)
    step = options.gap + 1
    # With a gap of 1, the pairs are pieces (0, 2), (1, 3), (4, 6), (5, 7), and so on.
    firsts = [i for i in range(len(pieces) - step) if i // step % 2 == 0]
    if not firsts:
        drops["document with fewer than two pieces"] += 1
        return
    if options.languages and py3langid.classify(text[:300])[0] not in options.languages:
        drops["document in another language"] += 1
        return
    pairs = []
    for i in firsts:
        sides = (text[slice(*pieces[i])], text[slice(*pieces[i + step])])
        flaws = [flaw for side in sides if (flaw := find_flaw(side, options))]
        if flaws:
            drops[f"pair with a piece {flaws[0]}"] += 1
        else:
            pairs.append(sides)
    # If there are too many pairs, take pairs that are spread evenly over the document.
    count = min(len(pairs), options.pairs_per_document)
    drops["pair over --pairs-per-document"] += len(pairs) - count
    yield from (pairs[k * len(pairs) // count] for k in range(count))


def cut_pieces(text: str, piece_chars: tuple[int, int]) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text with normalised white space, and the (start, end) of each piece in it."""
    shortest, longest = piece_chars
    # Text with hard line breaks has blank lines between paragraphs. Other text has one paragraph
    # on each line.
    text = text.strip()
    blank_line = r"\n[^\S\n]*\n"
    paragraphs = re.split(blank_line if re.search(blank_line, text) else "\n", text)
    paragraphs = [joined for p in paragraphs if (joined := " ".join(p.split()))]
    normal = " ".join(paragraphs)
    sentences, position = [], 0
    for paragraph in paragraphs:
        sentences += list(_cut_sentences(normal, position, position + len(paragraph), longest))
        position += len(paragraph) + 1
    pieces: list[tuple[int, int]] = []
    open_piece = False
    for start, end in sentences:
        if open_piece and end - pieces[-1][0] <= longest:
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((start, end))
        chosen = zlib.crc32(normal[start:end].encode()) % PIECE_END_ONE_IN == 0
        open_piece = not (chosen and end - pieces[-1][0] >= shortest)
    return normal, pieces


def _cut_sentences(text: str, start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of each sentence in text[start:end]. Cuts a longer one at a space."""
    marks = [match.end() for match in ENDS.finditer(text, start, end)]
    for mark in [*marks, end]:
        while mark - start > longest:
            space = text.rfind(" ", start, start + longest + 1)
            cut = space if space > start else start + longest
            while cut - 1 > start and is_mark(text[cut]):
                cut -= 1  # do not cut between a letter and its mark
            yield start, cut
            start = cut + (text[cut] == " ")
        stop = mark - (text[mark - 1] == " ")
        if stop > start:
            yield start, stop
        start = mark


def find_flaw(piece: str, options: TextOptions) -> str | None:
    """Returns the reason to drop a piece, or None.

    The reason is its length, or a rule like those of Gopher (arXiv 2112.11446, section A1).
    """
    if len(piece) < options.piece_chars[0]:
        return "too short"
    if not options.quality:
        return None
    words = piece.split()
    marks = 0 if piece.isascii() else sum(map(is_mark, piece))
    letters = sum(map(str.isalpha, piece)) + marks
    if letters < 0.6 * (len(piece) - len(words) + 1):
        return "of few letters"
    if not piece.isascii() and 2 * len(UNSPACED_LETTER.findall(piece)) > letters:
        words = [piece[i : i + 2] for i in range(len(piece) - 1)]  # text without spaces
    elif not 2.5 <= (len(piece) - marks) / len(words) <= 13:
        return "of odd word lengths"
    if len(set(words)) < 0.35 * len(words):
        return "that repeats itself"
    return None
