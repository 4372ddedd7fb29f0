"""Finds duplicate pairs in two steps: fingerprints of each pair, and duplicates in each group.

In: pairs. Out: fingerprints. Then in: all fingerprints with the same key. Out: the duplicates among
their pairs. Of the pairs that match, the one with the smallest id is kept. An id is a hash of the
pair's own content, so the result does not depend on order, sharding or the number of workers. This
module does not know how fingerprints are grouped by key.
"""

import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import rensa

from jaxcpt.mining.words import digest

SHINGLE_WORDS = 3
BANDS, ROWS = 18, 7
"""MinHash bands. Two pairs share a band with probability 0.986 at a Jaccard similarity of 0.8, and
with probability 0.004 at 0.3."""
SLACK = 0.07
"""Estimates up to this much below the threshold still count as duplicates. It is two standard
errors of the estimate at 0.8."""
LEADERS = 1000
"""A pair is compared with at most this many other pairs of its band."""

Fingerprint = tuple[bytes, bytes, bytes]
"""(key, id of the pair, sketch). Pairs with the same key are candidates. If the sketch is empty,
they are exact duplicates."""


def fingerprint(
    pair_id: bytes, x_words: list[str], y_words: list[str], near: bool
) -> Iterator[Fingerprint]:
    """Yields a fingerprint for each side and, if `near`, one for each MinHash band of both sides.

    The key of a side does not say whether it is x or y, so a text is found on either side.
    """
    for words in (x_words, y_words):
        yield digest(*words), pair_id, b""
    if near:
        words = x_words + y_words
        count = max(1, len(words) - SHINGLE_WORDS + 1)
        hasher = rensa.RMinHash(num_perm=BANDS * ROWS, seed=1)
        hasher.update([" ".join(words[i : i + SHINGLE_WORDS]) for i in range(count)])
        signature = np.array(hasher.digest(), "<u4")
        # The sketch keeps one byte of each hash, so 1 in 256 agrees by chance.
        sketch = (signature & 0xFF).astype(np.uint8).tobytes()
        for band in range(BANDS):
            rows = signature[band * ROWS : (band + 1) * ROWS].tobytes()
            # The key's first four bytes choose its bucket, so they must be a hash.
            yield zlib.crc32(rows, band).to_bytes(4) + rows, pair_id, sketch


def find_duplicates(
    candidates: Iterable[tuple[bytes, bytes]], threshold: float
) -> Iterator[tuple[bytes, str, bytes]]:
    """Yields (id, reason, id of the pair that is kept) for each duplicate in one group.

    `candidates` holds the (id, sketch) of all fingerprints with one key.
    """
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
