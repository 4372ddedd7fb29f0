"""A document in, pairs of neighbouring pieces out (paper, section 2.1); it reads no files.

White space is normalised: every run of it becomes one space. Both sides of a pair are slices of
the document normalised so. Pieces end where a sentence's own hash says so, hence a copy with
another beginning is cut at the same places and its pairs are found as duplicates.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import py3langid

from jaxcpt.errors import UserError
from jaxcpt.mining.documents import Document

ENDS = re.compile(r"""[.!?\u2026]["'\u201d\u2019)\]]?\s|[\u3002\uff01\uff1f]\s?""")
"""A sentence ends at white space after its mark and closing quote; CJK marks need no space."""
PIECE_END_ONE_IN = 3
"""A piece that is long enough ends at one sentence in three, chosen by the sentence's hash."""


@dataclass(frozen=True)
class TextOptions:
    piece_chars: tuple[int, int] = (200, 1000)
    gap: int = 0
    """Pieces left out between the two sides."""
    pairs_per_document: int = 8
    languages: tuple[str, ...] = ("en",)
    """Languages kept, as ISO 639-1 codes; empty: all."""
    quality: bool = True


def check_text_options(options: TextOptions) -> TextOptions:
    """Returns the options; raises UserError naming the one that cannot be."""
    shortest, longest = options.piece_chars
    if not 0 < shortest <= longest:
        raise UserError(f"--piece-chars {shortest} {longest}: expected 0 < MIN <= MAX")
    if options.gap < 0 or options.pairs_per_document < 1:
        raise UserError("--gap must be 0 or more and --pairs-per-document 1 or more")
    if unknown := sorted(set(options.languages) - _known_languages()):
        known = ", ".join(sorted(_known_languages()))
        raise UserError(f"--languages: unknown language '{unknown[0]}'; known: all, {known}")
    return options


def _known_languages() -> set[str]:
    return {language for language, _ in py3langid.rank("")}


def mine_text(
    document: Document, drops: Counter[str], options: TextOptions
) -> Iterator[tuple[str, str]]:
    """Yields (piece, later piece), no piece twice; counts in `drops` what it leaves out."""
    text, pieces = cut_pieces(document.text, options.piece_chars)
    step = options.gap + 1
    # With a gap of 1, pieces 0 and 2, then 1 and 3; then 4 and 6, and so on.
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
    # Spread over the document, when it has more than wanted.
    kept = min(len(pairs), options.pairs_per_document)
    drops["pair over --pairs-per-document"] += len(pairs) - kept
    yield from (pairs[k * len(pairs) // kept] for k in range(kept))


def cut_pieces(text: str, piece_chars: tuple[int, int]) -> tuple[str, list[tuple[int, int]]]:
    """The text with white space normalised, and (start, end) of its pieces, one after another."""
    shortest, longest = piece_chars
    # Hard-wrapped text has blank lines between paragraphs; other text has one paragraph a line.
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
    """Spans of sentences in text[start:end]; one over `longest` is cut between words."""
    marks = [match.end() for match in ENDS.finditer(text, start, end)]
    for mark in [*marks, end]:
        while mark - start > longest:
            space = text.rfind(" ", start, start + longest + 1)
            cut = space if space > start else start + longest
            yield start, cut
            start = cut + (text[cut] == " ")
        stop = mark - (text[mark - 1] == " ")
        if stop > start:
            yield start, stop
        start = mark


def find_flaw(piece: str, options: TextOptions) -> str | None:
    """What makes a piece unfit: its length, or a rule after Gopher's (arXiv 2112.11446, A1)."""
    if len(piece) < options.piece_chars[0]:
        return "too short"
    if not options.quality:
        return None
    words = piece.split()
    if sum(map(str.isalpha, piece)) < 0.6 * (len(piece) - len(words) + 1):
        return "of few letters"
    if not 2.5 <= len(piece) / len(words) <= 13:
        return "of odd word lengths"
    if len(set(words)) < 0.35 * len(words):
        return "that repeats itself"
    return None
