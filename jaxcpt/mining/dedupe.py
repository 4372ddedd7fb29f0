"""Pairs in, fingerprints out; fingerprints that share a key in, duplicates out.

Every rule keeps the pair with the smallest id among those that match, and an id is made from the
pair's own content, so the result depends on neither order nor sharding nor workers.
"""

import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import rensa

from jaxcpt.mining.words import digest

SHINGLE_WORDS = 3
BANDS, ROWS = 18, 7
"""MinHash bands: two pairs of Jaccard 0.8 share one with probability 0.986, of 0.3 with 0.004."""
SLACK = 0.07
"""Below the threshold by which an estimate still counts: two standard errors of it at 0.8."""
LEADERS = 1000
"""Pairs of one band that a pair is compared with, at most."""

Fingerprint = tuple[bytes, bytes, bytes]
"""(key, id of the pair, sketch): equal keys make candidates, an empty sketch makes duplicates."""


def fingerprint(
    pair_id: bytes, x_words: list[str], y_words: list[str], near: bool
) -> Iterator[Fingerprint]:
    """A key for each side, whichever side it is, and one for each MinHash band of both."""
    for words in (x_words, y_words):
        yield digest(*words), pair_id, b""
    if near:
        words = x_words + y_words
        count = max(1, len(words) - SHINGLE_WORDS + 1)
        hasher = rensa.RMinHash(num_perm=BANDS * ROWS, seed=1)
        hasher.update([" ".join(words[i : i + SHINGLE_WORDS]) for i in range(count)])
        signature = np.array(hasher.digest(), "<u4")
        # One byte of each hash: 1 in 256 agrees by chance.
        sketch = (signature & 0xFF).astype(np.uint8).tobytes()
        for band in range(BANDS):
            rows = signature[band * ROWS : (band + 1) * ROWS].tobytes()
            # The key begins with hashed bytes, as digest's does: they choose its bucket.
            yield zlib.crc32(rows, band).to_bytes(4) + rows, pair_id, sketch


def find_duplicates(
    candidates: Iterable[tuple[bytes, bytes]], threshold: float
) -> Iterator[tuple[bytes, str, bytes]]:
    """(id, reason, id of the pair kept) for (id, sketch) under one key that repeat a smaller id."""
    first, *others = sorted(set(candidates))
    if not first[1]:
        yield from ((pair_id, "exact duplicate", first[0]) for pair_id, _ in others)
        return
    leaders = [first]
    sketches = np.empty((min(LEADERS, len(others) + 1), BANDS * ROWS), np.uint8)
    sketches[0] = np.frombuffer(first[1], np.uint8)
    for pair_id, sketch in others:
        row = np.frombuffer(sketch, np.uint8)
        agreeing = (sketches[: len(leaders)] == row).mean(axis=1)
        estimates = (agreeing - 1 / 256) / (1 - 1 / 256)
        best = int(estimates.argmax())
        if estimates[best] >= threshold - SLACK:
            yield pair_id, "near duplicate", leaders[best][0]
        elif len(leaders) < LEADERS:
            sketches[len(leaders)] = row
            leaders.append((pair_id, sketch))
