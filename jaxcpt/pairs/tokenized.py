"""Writes pairs as token ids in ArrayRecord files, and reads them by index.

In: pairs as token ids. Out: a folder with `tokens-NNNNN.array_record`, the tokenizer's model, and
`tokens.json`, which is written last; and, from such a folder, pairs as token ids. A record holds
little-endian numbers: a checksum (uint32), the number of its texts (uint16), the length of each
text (uint32), the hash of each text (two uint32), and all ids (uint16 if the vocabulary allows it,
otherwise uint32). The checksum also covers the number of the record and the fingerprint of the
tokenizer, so that records of another folder or in another order are noticed. The module uses a
tokenizer only to compare it with the one that made the ids.
"""

import json
import reprlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.files import write_file
from jaxcpt.pairs.interface import Encoded, hash_text
from jaxcpt.pairs.records import open_records, read_records
from jaxcpt.sources import TokenizedPairs
from jaxcpt.tokenizer import Tokenizer

ABOUT_FILE, MODEL_FILE = "tokens.json", "tokenizer.model"
CHECKSUM_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class TokensAbout:
    """The content of `tokens.json`."""

    pairs: int
    pairs_with_negatives: int
    tokens: int
    fingerprint: str
    """The fingerprint of the tokenizer."""
    vocabulary: int
    x_tokens: int
    y_tokens: int
    negatives: int
    """Most hard negatives of a pair."""
    x_prefix: str
    """The prefixes of the data source, with which the ids begin."""
    y_prefix: str
    files: tuple[str, ...]
    x_closing: int
    """Number of closing delimiters of an x. They are kept when its ids are cut."""
    y_closing: int


def _read_about(folder: Path) -> TokensAbout:
    """Reads tokens.json. Raises UserError if it is missing or damaged."""
    path = folder / ABOUT_FILE
    try:
        read: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError(f"expected an object, found {type(read).__name__}")
        files = read.get("files")
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise ValueError("expected names of files under 'files'")
        if any(Path(file).name != file or len(file) > 100 for file in files):
            raise ValueError("files must be in the folder itself")
        read["files"] = tuple(files)
        kinds = {field.name: field.type for field in fields(TokensAbout)}
        if missing := sorted(set(kinds) - set(read)):
            raise ValueError(f"'{missing[0]}' is missing; make the folder again")
        if unknown := sorted(set(read) - set(kinds)):
            raise ValueError(f"'{unknown[0]}' is unknown")
        for name, value in read.items():
            kind: Any = {"int": int, "str": str}.get(getattr(kinds[name], "__name__", ""), tuple)
            if type(value) is not kind or (kind is int and not 0 <= value < 1 << 62):
                raise ValueError(f"'{name}' cannot be {str(value)[:40]}")
        about = TokensAbout(**read)
        if not min(about.x_closing, about.y_closing, about.vocabulary) >= 1:
            raise ValueError("'x_closing', 'y_closing' and 'vocabulary' must be at least 1")
        return about
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no {ABOUT_FILE} in it; make the folder with jaxcpt tokenize-pairs"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: {error}") from None


SHORT = reprlib.Repr()
SHORT.maxstring = 200


class TokenizedReader:
    """Reads pairs that `jaxcpt tokenize-pairs` wrote, by index."""

    def __init__(self, source: TokenizedPairs) -> None:
        self.source, self.where = source, source.directory
        folder = Path(source.directory)
        self.about = _read_about(folder)
        self.dtype = choose_dtype(self.about.vocabulary)
        self.records = open_records([str(folder / file) for file in self.about.files])
        if len(self.records) != self.about.pairs:
            raise UserError(
                f"{folder}: holds {len(self.records)} pairs, but {ABOUT_FILE} says "
                f"{self.about.pairs}; make the folder again"
            )

    def __len__(self) -> int:
        return self.about.pairs

    def has_negatives(self) -> bool:
        return self.about.pairs_with_negatives > 0

    def check(self, tokenizer: Tokenizer, negatives: int) -> None:
        """Raises UserError if the tokenizer would give other ids, or if there are too few hard
        negatives."""
        if tokenizer.fingerprint != self.about.fingerprint:
            raise UserError(
                f"{self.where}: made with another tokenizer; set tokenizer.model_file to "
                f"{self._find_model()}, or tokenize the pairs again"
            )
        if negatives > self.about.negatives:
            raise UserError(
                f"batching.negatives: {negatives}, but {self.where} holds at most "
                f"{self.about.negatives} of each pair; lower it, or tokenize the pairs again with "
                f"--negatives {negatives}"
            )
        for name in ("x_prefix", "y_prefix"):
            asked, held = getattr(self.source, name), getattr(self.about, name)
            if asked != held:
                raise UserError(
                    f"{self.where}: made with {name}={SHORT.repr(held)}, but the experiment says "
                    f"{SHORT.repr(asked)}; change the experiment, or tokenize the pairs again"
                )
        for side in ("x_tokens", "y_tokens"):
            asked, held = getattr(tokenizer, side), getattr(self.about, side)
            if asked > held:
                raise UserError(
                    f"tokenizer.{side}: {asked}, but {self.where} holds at most {held} of each "
                    "text; lower it, or tokenize the pairs again"
                )

    def _find_model(self) -> Path:
        """The path for `tokenizer.model_file`: a SentencePiece model, or this folder."""
        file = Path(self.where) / MODEL_FILE
        return file if file.is_file() else file.parent

    def read_encoded(
        self, indices: Sequence[int], tokenizer: Tokenizer, negatives: int
    ) -> list[Encoded]:
        """The ids, cut as the tokenizer would cut them. Raises UserError for a damaged record."""
        x_limit = (tokenizer.x_tokens, self.about.x_closing)
        y_limit = (tokenizer.y_tokens, self.about.y_closing)
        records = read_records(self.records, indices, self.where)
        pairs = []
        for index, record in zip(indices, records, strict=True):
            pair = decode_record(record, int(index), self.about.fingerprint, self.dtype)
            if pair is None or any(ids.max() >= self.about.vocabulary for ids in pair.ids):
                raise UserError(
                    f"{self.where}: record {index} is not as it was written; make the folder again"
                )
            pairs.append(_cut(pair, x_limit, y_limit, negatives))
        return pairs

    def sample_texts(self, every: int) -> Iterator[str]:
        raise UserError(
            f"{self.where}: holds no texts; set tokenizer.model_file to the model in that folder"
        )


def choose_dtype(vocabulary: int) -> np.dtype:
    """The type of the ids in a record: uint16 if the vocabulary allows it, otherwise uint32."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def decode_record(record: bytes, number: int, fingerprint: str, dtype: np.dtype) -> Encoded | None:
    """The pair in a record; None if its checksum or its length is wrong."""
    content = record[CHECKSUM_BYTES:]
    if record[:CHECKSUM_BYTES] != _make_checksum(content, number, fingerprint):
        return None
    (texts,) = np.frombuffer(content, "<u2", 1)
    lengths = np.frombuffer(content, "<u4", texts, offset=2)
    hashes = np.frombuffer(content, "<u4", 2 * texts, offset=2 + 4 * texts)
    if len(content) != 2 + 12 * int(texts) + dtype.itemsize * int(lengths.sum()):
        return None  # the ids have another number of bytes
    ids = np.frombuffer(content, dtype, offset=2 + 12 * texts).astype(np.int32)
    cut = np.split(ids, np.cumsum(lengths)[:-1])
    low_high = hashes.reshape(-1, 2).tolist()
    return Encoded(cut, [(low, high) for low, high in low_high])


def _make_checksum(content: bytes, number: int, fingerprint: str) -> bytes:
    start = zlib.crc32(f"{fingerprint} {number}".encode())
    return zlib.crc32(content, start).to_bytes(CHECKSUM_BYTES, "little")


def _cut(
    pair: Encoded, x_limit: tuple[int, int], y_limit: tuple[int, int], negatives: int
) -> Encoded:
    """Cuts the texts of a pair, and drops negatives after the first `negatives`.

    x_limit, y_limit: the most tokens of a text, and the number of its closing delimiters.
    """
    ids, hashes = pair.ids[: 2 + negatives], pair.hashes[: 2 + negatives]
    limits = [x_limit] + [y_limit] * (len(ids) - 1)
    ids = [
        text if len(text) <= most else np.append(text[: most - closing], text[-closing:])
        for text, (most, closing) in zip(ids, limits, strict=True)
    ]
    absent = 2 + negatives - len(ids)
    return Encoded(ids + [np.zeros(0, np.int32)] * absent, hashes + [hash_text("")] * absent)


def encode_record(pair: Encoded, number: int, fingerprint: str, dtype: np.dtype) -> bytes:
    """The record of a pair. number: its index. Absent negatives are left out."""
    kept = [n for n, text in enumerate(pair.ids) if len(text)]
    parts = [
        np.array([len(kept)], "<u2"),
        np.array([len(pair.ids[n]) for n in kept], "<u4"),
        np.array([pair.hashes[n] for n in kept], "<u4"),
        np.concatenate([pair.ids[n] for n in kept]).astype(dtype),
    ]
    content = b"".join(part.tobytes() for part in parts)
    return _make_checksum(content, number, fingerprint) + content


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Writes the records into one file."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")  # each record can be read by itself
    for record in records:
        writer.write(record)
    writer.close()


def write_about(folder: Path, about: TokensAbout) -> None:
    write_file(folder / ABOUT_FILE, json.dumps(asdict(about), indent=1) + "\n")
