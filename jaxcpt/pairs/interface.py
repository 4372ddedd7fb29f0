"""The interfaces of sources of pairs: pairs by index, as token ids or as texts.

In: indices. Out: `EncodedPairs` give token ids, and `Pairs` give texts too. `Batches` only needs
token ids, so it works with both. The module knows no format.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxcpt.pair import Pair
from jaxcpt.tokenizer import Tokenizer

PAIRS_AT_ONCE = 4096
SAMPLED_PAIRS = 1000
"""Pairs to read at each of three places of a source, to learn whether it has hard negatives."""


@dataclass(frozen=True)
class Encoded:
    """A pair as token ids: x, y and hard negatives. An absent negative has no ids."""

    ids: list[np.ndarray]
    hashes: list[tuple[int, int]]
    """64-bit hashes of the whole texts, as two uint32. The ids may be of a cut text."""


class EncodedPairs(Protocol):
    """A fixed sequence of pairs, read as token ids."""

    def __len__(self) -> int: ...

    def check(self, tokenizer: Tokenizer, negatives: int) -> None:
        """Raises UserError if the source does not have ids of this tokenizer, or has too few hard
        negatives."""

    def has_negatives(self) -> bool:
        """Whether some pairs have hard negatives. It may look at only a part of the pairs."""

    def read_encoded(
        self, indices: Sequence[int], tokenizer: Tokenizer, negatives: int
    ) -> list[Encoded]:
        """The pairs at these indices, in this order. Each gets `negatives` hard negatives; if it
        has fewer, the others are absent."""

    def sample_texts(self, every: int) -> Iterator[str]:
        """Yields x and y of every n-th pair. Raises UserError for a source without texts."""


class Pairs(ABC):
    """A fixed sequence of pairs, read as texts. Used as `EncodedPairs`, it tokenises them."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> list[Pair]:
        """The pairs at these indices, in this order. An index may occur more than once."""

    def check(self, tokenizer: Tokenizer, negatives: int) -> None:  # noqa: B027 - nothing to check
        """Does nothing, because any tokenizer can encode texts."""

    def has_negatives(self) -> bool:
        return any(pair.negatives for pair in self.read(sample_places(len(self))))

    def read_encoded(
        self, indices: Sequence[int], tokenizer: Tokenizer, negatives: int
    ) -> list[Encoded]:
        return encode_pairs(self.read(indices), tokenizer, negatives)

    def sample_texts(self, every: int) -> Iterator[str]:
        for pair in read_all(self, every):
            yield from (pair.x, pair.y)


def sample_places(count: int) -> list[int]:
    """The indices of the first, the middle and the last SAMPLED_PAIRS of `count` pairs."""
    last = max(count - SAMPLED_PAIRS, 0)
    starts = (0, last // 2, last)
    return sorted({n for start in starts for n in range(start, min(start + SAMPLED_PAIRS, count))})


def read_all(pairs: Pairs, every: int = 1) -> Iterator[Pair]:
    """Yields all pairs, or every n-th one, in order. Only a few are in memory at a time."""
    for first in range(0, len(pairs), PAIRS_AT_ONCE * every):
        yield from pairs.read(range(first, min(first + PAIRS_AT_ONCE * every, len(pairs)), every))


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, negatives: int) -> list[Encoded]:
    """Tokenises many pairs at once. Each gets `negatives` hard negatives; if it has fewer, the
    others are absent."""
    columns = [[pair.x for pair in pairs], [pair.y for pair in pairs]]
    ids = [tokenizer.encode(columns[0], "x"), tokenizer.encode(columns[1], "y")]
    for number in range(negatives):
        texts = [p.negatives[number] if number < len(p.negatives) else "" for p in pairs]
        absent = [number >= len(pair.negatives) for pair in pairs]
        columns.append(texts)
        encoded = tokenizer.encode(texts, "y")
        ids.append([e[:0] if a else e for e, a in zip(encoded, absent, strict=True)])
    return [
        Encoded(list(of_pair), [hash_text(text) for text in texts])
        for of_pair, texts in zip(zip(*ids, strict=True), zip(*columns, strict=True), strict=True)
    ]


def hash_text(text: str) -> tuple[int, int]:
    """A 64-bit hash as two unsigned 32-bit numbers, low first."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
