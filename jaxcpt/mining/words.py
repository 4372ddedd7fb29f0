"""What duplicates are judged by: the words of a text, and digests of texts."""

import re
import unicodedata
from hashlib import blake2b


def split_words(text: str) -> list[str]:
    """Words of letters, digits and underscores, in lower case."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return re.findall(r"\w+", text.casefold())


def digest(*texts: str) -> bytes:
    """16 bytes that name the texts."""
    return blake2b("\0".join(texts).encode(errors="surrogatepass"), digest_size=16).digest()
