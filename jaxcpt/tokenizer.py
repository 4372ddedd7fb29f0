"""Texts and their side in, token ids between that side's two delimiters out.

One SentencePiece model serves both sides and holds all normalisation, so whatever reads the model
file elsewhere cuts texts the same way. It knows no pairs, batches or arrays of several texts.
"""

import hashlib
import io
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase

import numpy as np
import sentencepiece

from jaxcpt import config
from jaxcpt.errors import UserError
from jaxcpt.pair import Side

PAD = 0
# The paper's delimiters (section 2.1), each side its own. As control symbols they are never
# matched in a text, so no text can inject one.
DELIMITERS: dict[Side, tuple[str, str]] = {"x": ("<[>", "<]>"), "y": ("<{>", "<}>")}
_MODEL_FILE, _LIMITS_FILE = "tokenizer.model", "tokenizer.json"


@dataclass(frozen=True)
class Tokenizer:
    """A trained SentencePiece model (its file's bytes) with the longest text of each side."""

    model: bytes
    vocabulary: int
    """Rows of the embedding table. The model may have fewer pieces; ids stay below."""
    x_tokens: int
    y_tokens: int

    @cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @property
    def fingerprint(self) -> str:
        """sha256 of the model: checkpoints are only good for the tokenizer of their training."""
        return hashlib.sha256(self.model).hexdigest()

    def delimiters(self, side: Side) -> tuple[int, int]:
        opening, closing = DELIMITERS[side]
        return self._processor.piece_to_id(opening), self._processor.piece_to_id(closing)

    def encode(self, texts: Sequence[str], side: Side) -> list[np.ndarray]:
        """int32 ids of each text in its side's delimiters, at most the side's longest.

        What is longer is cut and keeps the closing delimiter; an empty text is the two delimiters.
        """
        opening, closing = self.delimiters(side)
        inner = (self.x_tokens if side == "x" else self.y_tokens) - 2
        return [
            np.array([opening, *ids[:inner], closing], np.int32)
            for ids in self._processor.encode(list(texts))
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The normalised text of `ids`, without delimiters."""
        return self._processor.decode([int(i) for i in ids])

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        limits = {k: getattr(self, k) for k in ("vocabulary", "x_tokens", "y_tokens")}
        (folder / _MODEL_FILE).write_bytes(self.model)
        (folder / _LIMITS_FILE).write_text(json.dumps(limits, indent=2) + "\n")

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """Reads what `save` wrote. Raises UserError where it is missing or damaged."""
        try:
            limits = json.loads((folder / _LIMITS_FILE).read_text())
            tokenizer = Tokenizer(model=(folder / _MODEL_FILE).read_bytes(), **limits)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing; this run has no whole tokenizer") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder / _LIMITS_FILE}: damaged: {error}") from None
        _check(tokenizer, str(folder / _MODEL_FILE))
        return tokenizer


def _check(tokenizer: Tokenizer, where: str) -> None:
    try:
        processor = tokenizer._processor
        if not tokenizer.model:  # which SentencePiece takes for a model and then logs errors
            raise RuntimeError
    except RuntimeError:
        raise UserError(f"{where}: not a SentencePiece model; name one or train one") from None
    for piece in (piece for pieces in DELIMITERS.values() for piece in pieces):
        if not processor.is_control(processor.piece_to_id(piece)):
            raise UserError(
                f"{where}: lacks the delimiter {piece}; train it with "
                f"control_symbols={','.join(p for pieces in DELIMITERS.values() for p in pieces)}"
            )


def read_tokenizer(settings: config.Tokenizer) -> Tokenizer:
    """Reads the user's own `settings.model_file`. Raises UserError if it does not fit."""
    assert settings.model_file is not None
    found = read_model(
        settings.model_file, settings.x_tokens, settings.y_tokens, "tokenizer.model_file: "
    )
    if found.vocabulary != settings.vocabulary:
        raise UserError(
            f"tokenizer.vocabulary: {settings.vocabulary}, but {settings.model_file} has "
            f"{found.vocabulary} pieces; set it to {found.vocabulary}"
        )
    return found


def read_model(path: str, x_tokens: int, y_tokens: int, option: str = "") -> Tokenizer:
    """The tokenizer of a SentencePiece model that has the delimiters; `option` told the path."""
    if not Path(path).is_file():
        raise UserError(f"{option}{path}: no such file")
    tokenizer = Tokenizer(Path(path).read_bytes(), 0, x_tokens, y_tokens)
    _check(tokenizer, f"{option}{path}")
    return replace(tokenizer, vocabulary=tokenizer._processor.get_piece_size())


def train_tokenizer(texts: Iterable[str], settings: config.Tokenizer) -> Tokenizer:
    """Trains on `texts`, which are held in memory; the same texts give the same bytes.

    A corpus too small for `settings.vocabulary` pieces gives fewer, the table keeps its size.
    """
    # A list: SentencePiece would turn a UserError raised during iteration into its own error.
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError("tokenizer: no text to train on; data.train has no pairs")
    sentencepiece.set_min_log_level(2)  # errors
    normalizer = (
        sentencepiece.SentencePieceNormalizer(
            norm_map=sorted(split_rules().items()),
            add_dummy_prefix=True,
            remove_extra_whitespaces=True,
        )
        if settings.split_identifiers
        else sentencepiece.SentencePieceNormalizer(
            rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False
        )
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            normalizer=normalizer,
            model_type=settings.kind,
            vocab_size=settings.vocabulary,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=settings.split_digits,
            control_symbols=[piece for pieces in DELIMITERS.values() for piece in pieces],
            pad_id=PAD,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            allow_whitespace_only_pieces=True,
            max_sentence_length=1 << 30,
            num_threads=1,  # sums of several threads would depend on their order
        )
    except RuntimeError as error:
        if "smaller than required_chars" not in str(error):
            raise
        raise UserError(
            f"tokenizer.vocabulary: {settings.vocabulary} is too small for bytes, delimiters "
            "and the characters of the data; try 1000 or more"
        ) from None
    return Tokenizer(model.getvalue(), settings.vocabulary, settings.x_tokens, settings.y_tokens)


def split_rules() -> dict[str, str]:
    """Replacements that lower-case and split identifiers: getHTTPResponse -> get http response.

    SentencePiece replaces the longest match at each place and goes on behind it, so a rule sees
    no letter before its own. Three kinds of rule suffice for ASCII: `tX` -> `t x` at the end of a
    word, `Xa` -> ` xa` at the start of one, and `XaY` -> ` xa y` for a word of two letters. Digits
    do not split. Other alphabets are only lower-cased, and composed marks only where NFKC
    composes a single code point.
    """
    rules = dict.fromkeys("\t\n\r_", " ")
    for code in (*range(0x80), *range(0xA0, 0xD800), *range(0xE000, 0x110000)):
        letter = chr(code)
        lowered = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", letter).lower())
        if lowered != letter:
            rules[letter] = lowered
    for big in ascii_uppercase:
        for small in ascii_lowercase:
            rules[small + big] = f"{small} {big.lower()}"
            rules[big + small] = f" {big.lower()}{small}"
            for next_big in ascii_uppercase:
                rules[big + small + next_big] = f" {big.lower()}{small} {next_big.lower()}"
    return rules
