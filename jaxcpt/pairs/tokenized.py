"""Pairs as token ids in ArrayRecord files: written, and read by index.

A folder of them holds `tokens-NNNNN.array_record`, the tokenizer's model, and `tokens.json`, which
is written last. A record holds, in little-endian numbers: the count of its texts (uint16), the
length of each (uint32), the hash of each (two uint32), and all ids, as uint16 where the vocabulary
allows it, else as uint32. The module uses a tokenizer only to compare it with the one that made the
ids.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.files import write_file
from jaxcpt.pairs.interface import Encoded, hash_text
from jaxcpt.pairs.records import open_records, read_records
from jaxcpt.sources import TokenizedPairs
from jaxcpt.tokenizer import Tokenizer

ABOUT_FILE, MODEL_FILE = "tokens.json", "tokenizer.model"


@dataclass(frozen=True)
class TokensAbout:
    """What `tokens.json` holds."""

    pairs: int
    tokens: int
    fingerprint: str
    vocabulary: int
    x_tokens: int
    y_tokens: int
    files: tuple[str, ...]
    x_closing: int = 1
    """Closing delimiters of each x. They stay when its ids are cut."""
    y_closing: int = 1


class TokenizedReader:
    """Pairs that `jaxcpt tokenize-pairs` wrote, read from disk as asked."""

    def __init__(self, source: TokenizedPairs) -> None:
        self.where = source.directory
        folder = Path(source.directory)
        try:
            read = json.loads((folder / ABOUT_FILE).read_text())
            self.about = TokensAbout(**(read | {"files": tuple(read["files"])}))
        except FileNotFoundError:
            raise UserError(
                f"{folder}: no {ABOUT_FILE} in it; make the folder with jaxcpt tokenize-pairs"
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / ABOUT_FILE}: damaged: {error}") from None
        self.records = open_records([str(folder / file) for file in self.about.files])
        if len(self.records) != self.about.pairs:
            raise UserError(
                f"{folder}: holds {len(self.records)} pairs where {ABOUT_FILE} tells of "
                f"{self.about.pairs}; make it anew"
            )

    def __len__(self) -> int:
        return self.about.pairs

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises UserError unless the tokenizer would give these ids now."""
        if tokenizer.fingerprint != self.about.fingerprint:
            raise UserError(
                f"{self.where}: made with another tokenizer; set tokenizer.model_file to "
                f"{self._find_model()}, or tokenize the pairs anew"
            )
        for side in ("x_tokens", "y_tokens"):
            asked, held = getattr(tokenizer, side), getattr(self.about, side)
            if asked > held:
                raise UserError(
                    f"tokenizer.{side}: {asked}, but {self.where} holds at most {held} of each "
                    "text; lower it, or tokenize the pairs anew"
                )

    def _find_model(self) -> Path:
        """What `tokenizer.model_file` names: a SentencePiece model, or the folder of another."""
        file = Path(self.where) / MODEL_FILE
        return file if file.is_file() else file.parent

    def read_encoded(
        self, indices: Sequence[int], tokenizer: Tokenizer, negatives: int
    ) -> list[Encoded]:
        """The ids, cut where the tokenizer would cut them."""
        dtype = np.dtype("<u2" if self.about.vocabulary <= 1 << 16 else "<u4")
        x_limit = (tokenizer.x_tokens, self.about.x_closing)
        y_limit = (tokenizer.y_tokens, self.about.y_closing)
        return [
            _cut(_decode(record, dtype), x_limit, y_limit, negatives)
            for record in read_records(self.records, indices, self.where)
        ]

    def sample_texts(self, every: int) -> Iterator[str]:
        raise UserError(
            f"{self.where}: holds no texts; set tokenizer.model_file to the model beside it"
        )


def _decode(record: bytes, dtype: np.dtype) -> Encoded:
    (texts,) = np.frombuffer(record, "<u2", 1)
    lengths = np.frombuffer(record, "<u4", texts, offset=2)
    hashes = np.frombuffer(record, "<u4", 2 * texts, offset=2 + 4 * texts)
    ids = np.frombuffer(record, dtype, offset=2 + 12 * texts).astype(np.int32)
    cut = np.split(ids, np.cumsum(lengths)[:-1])
    low_high = hashes.reshape(-1, 2).tolist()
    return Encoded(cut, [(low, high) for low, high in low_high])


def _cut(
    pair: Encoded, x_limit: tuple[int, int], y_limit: tuple[int, int], negatives: int
) -> Encoded:
    """Limits: the most tokens of a text, and how many closing delimiters are among them."""
    ids, hashes = pair.ids[: 2 + negatives], pair.hashes[: 2 + negatives]
    limits = [x_limit] + [y_limit] * (len(ids) - 1)
    ids = [
        text if len(text) <= most else np.append(text[: most - closing], text[-closing:])
        for text, (most, closing) in zip(ids, limits, strict=True)
    ]
    absent = 2 + negatives - len(ids)
    return Encoded(ids + [np.zeros(0, np.int32)] * absent, hashes + [hash_text("")] * absent)


def encode_record(pair: Encoded, vocabulary: int) -> bytes:
    """The record of a pair; absent negatives are left out."""
    kept = [n for n, text in enumerate(pair.ids) if len(text)]
    dtype = "<u2" if vocabulary <= 1 << 16 else "<u4"
    parts = [
        np.array([len(kept)], "<u2"),
        np.array([len(pair.ids[n]) for n in kept], "<u4"),
        np.array([pair.hashes[n] for n in kept], "<u4"),
        np.concatenate([pair.ids[n] for n in kept]).astype(dtype),
    ]
    return b"".join(part.tobytes() for part in parts)


def write_records(path: Path, pairs: Iterable[Encoded], vocabulary: int) -> int:
    """Writes the records of `pairs` into one file. Returns the number of their tokens."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")  # each record can be read alone
    tokens = 0
    for pair in pairs:
        tokens += sum(map(len, pair.ids))
        writer.write(encode_record(pair, vocabulary))
    writer.close()
    return tokens


def write_about(folder: Path, about: TokensAbout) -> None:
    write_file(folder / ABOUT_FILE, json.dumps(asdict(about), indent=1) + "\n")
