"""Encodes texts with a SentencePiece model, and trains such a model.

In: texts. Out: the ids of their pieces, or a model file. The model file holds all normalisation, so
other programs that read it split texts in the same way. The module knows no lengths: the caller
cuts the ids and adds the delimiters.
"""

import io
import unicodedata
from collections.abc import Iterable, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import sentencepiece

from jaxcpt import config
from jaxcpt.errors import UserError
from jaxcpt.pair import Side

PAD = 0
RESERVED = "\u2585"
"""SentencePiece skips training texts that contain this character, so texts are split there."""
# The paper's delimiters (section 2.1), which differ between the sides. They are control symbols,
# which are never matched in a text, so no text can contain one.
DELIMITERS: dict[Side, tuple[str, str]] = {"x": ("<[>", "<]>"), "y": ("<{>", "<}>")}


class SentencePieceModel:
    """A SentencePiece model that has the delimiters."""

    def __init__(self, content: bytes) -> None:
        """content: the bytes of a model file. Raises UserError if they are not such a model."""
        try:
            if not content:  # SentencePiece would accept it and log errors later
                raise RuntimeError
            self._content = content
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except Exception:  # RuntimeError, or an error in decoding its message
            raise UserError("not a SentencePiece model; name one or train one") from None
        self.pieces = self._processor.get_piece_size()
        delimiters = [piece for both in DELIMITERS.values() for piece in both]
        for piece in delimiters:
            if not self._processor.is_control(self._processor.piece_to_id(piece)):
                raise UserError(
                    f"lacks the delimiter {piece}; train it with "
                    f"control_symbols={','.join(delimiters)}"
                )

    @property
    def kind(self) -> str:
        """bpe, unigram, or another of SentencePiece's kinds."""
        number = _read_fields(_read_fields(self._content)[2])[3]
        return {1: "unigram", 2: "bpe"}.get(number, f"number {number}")

    @property
    def normalises(self) -> bool:
        """Whether the model changes a text before splitting it, other than replacing spaces."""
        fields = _read_fields(_read_fields(self._content)[3])
        # Fields of NormalizerSpec: 2 replaces characters, 3 adds a space before the text, and 4
        # removes spaces.
        return bool(fields.get(2)) or fields.get(3, 1) == 1 or fields.get(4, 1) == 1

    def list_pieces(self) -> list[tuple[str, bool]]:
        """Every piece, and whether it is ordinary: not a byte, a control symbol or unknown."""
        p = self._processor
        return [
            (p.id_to_piece(i), not (p.is_control(i) or p.is_byte(i) or p.is_unknown(i)))
            for i in range(self.pieces)
        ]

    def find_delimiters(self, side: Side) -> tuple[int, int]:
        opening, closing = DELIMITERS[side]
        return self._processor.piece_to_id(opening), self._processor.piece_to_id(closing)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without delimiters. Raises TypeError for a lone surrogate."""
        return self._processor.encode(list(texts))

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


def _read_fields(message: bytes) -> dict[int, Any]:
    """The fields of a serialised protobuf message by number, as integers or bytes.

    A repeated field gives its last value. SentencePiece's own Python classes are not used, because
    they need a newer protobuf than tensorflow-datasets.
    """
    fields: dict[int, Any] = {}
    at = 0

    def read_number() -> int:
        nonlocal at
        number = shift = 0
        while message[at] & 0x80:
            number |= (message[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        number |= message[at] << shift
        at += 1
        return number

    while at < len(message):
        key = read_number()
        if key & 7 == 0:
            fields[key >> 3] = read_number()
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        size = read_number() if size is None else size
        fields[key >> 3] = message[at : at + size]
        at += size
    return fields


def train_model(texts: Iterable[str], settings: config.Tokenizer) -> bytes:
    """Trains a model. Returns the bytes of its file. texts: held in memory.

    The same texts give the same bytes. Few texts give fewer pieces than `settings.vocabulary`. No
    piece contains RESERVED or NUL, which are encoded as bytes.
    """
    if settings.kind == "hugging_face":
        raise UserError("tokenizer.kind: hugging_face cannot be trained; choose bpe or unigram")
    if not 0 < settings.vocabulary < 1 << 31:
        raise UserError(f"tokenizer.vocabulary: must be above 0, found {settings.vocabulary}")
    # Make a list first: SentencePiece would replace a UserError in an iterator by its own error.
    texts = [part for text in texts for part in text.split(RESERVED) if part.strip(" \0\t\r\n")]
    if not texts:
        raise UserError("tokenizer: no text to train on; data.train has no pairs with text")
    sentencepiece.set_min_log_level(2)  # only errors
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
            num_threads=1,  # with several threads, sums depend on their order
        )
    except RuntimeError as error:
        if "smaller than required_chars" in str(error):
            raise UserError(
                f"tokenizer.vocabulary: {settings.vocabulary} is too small for bytes, delimiters "
                "and the characters of the data; try 1000 or more"
            ) from None
        raise UserError(
            f"tokenizer: SentencePiece cannot train on these texts: {str(error).strip()[:200]}"
        ) from None
    return model.getvalue()


def split_rules() -> dict[str, str]:
    """Replacements that lower-case and split identifiers: getHTTPResponse -> get http response.

    SentencePiece replaces the longest match at each place and continues after it, so a rule cannot
    see earlier letters. Three kinds of rule are enough for ASCII: `tX` -> `t x` at the end of a
    word, `Xa` -> ` xa` at the start of a word, and `XaY` -> ` xa y` for a word of two letters.
    Digits do not split a word. Other alphabets are only lower-cased; a letter with marks is only
    lower-cased if NFKC composes it into a single code point.
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
