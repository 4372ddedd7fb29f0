"""Folds the words of texts, so that texts with the same words can be found.

In: texts. Out: their folded words, and digests. Duplicates and evaluation texts are found by these
words. This module does not know pairs.
"""

import re
import unicodedata
from hashlib import blake2b

ASSIGNED = (*range(0x20000), *range(0xE0000, 0xE0200))
"""Ranges of code points that include all marks and format characters."""
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u303c\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U000323af"
)
"""The characters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Tai, Chinese
and Japanese."""


def is_mark(character: str) -> bool:
    """Returns whether a character belongs to the letter before it, such as a vowel sign."""
    return unicodedata.category(character)[0] == "M"


MARKS = "".join(chr(code) for code in ASSIGNED if is_mark(chr(code)))
FORMATS = "".join(chr(code) for code in ASSIGNED if unicodedata.category(chr(code)) == "Cf")
INVISIBLE = re.compile(f"[{FORMATS}\u034f\u180b-\u180d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Format characters, such as a soft hyphen or a zero-width space, and variation selectors."""
NEEDS_CARE = re.compile(f"[{MARKS}{UNSPACED}]")
WORDS = re.compile(rf"(?=\w)[{UNSPACED}][{MARKS}]*|(?:(?![{UNSPACED}])\w[{MARKS}]*)+")


def fold_words(text: str) -> list[str]:
    """Returns the words of letters, digits and underscores, normalised (NFKC) and case-folded.

    An invisible character does not divide a word. In a script without spaces, each letter with its
    marks is a word.
    """
    if not text.isascii():
        text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    text = text.casefold()
    return WORDS.findall(text) if NEEDS_CARE.search(text) else re.findall(r"\w+", text)


def digest(*texts: str) -> bytes:
    """Returns a hash of 16 bytes that identifies the sequence of texts."""
    return blake2b("\0".join(texts).encode(errors="surrogatepass"), digest_size=16).digest()
