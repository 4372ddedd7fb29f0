"""Texts in, their folded words and their digests out.

Duplicates and evaluation texts are found by these words. This module knows nothing about pairs.
"""

import re
import unicodedata
from hashlib import blake2b


def fold_words(text: str) -> list[str]:
    """Returns the words of letters, digits and underscores, normalised (NFKC) and case-folded."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return re.findall(r"\w+", text.casefold())


def digest(*texts: str) -> bytes:
    """Returns a hash of 16 bytes that identifies the sequence of texts."""
    return blake2b("\0".join(texts).encode(errors="surrogatepass"), digest_size=16).digest()
