"""Converts texts to token ids between delimiters.

In: texts and their side. Out: token ids between the delimiters of that side. One model serves both
sides: SentencePiece, or a Hugging Face tokenizer.json. The rest of the package uses only the class
`Tokenizer`, whose settings are in `config.Tokenizer`. The package knows no pairs and no batches.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcpt import config
from jaxcpt.errors import UserError
from jaxcpt.files import to_path, write_file
from jaxcpt.pair import Side
from jaxcpt.tokenizer.hugging_face import HuggingFaceModel, parse_end_token
from jaxcpt.tokenizer.sentencepiece_model import (
    DELIMITERS,
    PAD,
    SentencePieceModel,
    split_rules,
    train_model,
)

__all__ = [
    "DELIMITERS",
    "PAD",
    "Delimiters",
    "Template",
    "Tokenizer",
    "has_tokenizer",
    "put_prefixes",
    "read_model",
    "read_tokenizer",
    "split_rules",
    "train_tokenizer",
]

LIMITS_FILE = "limits.json"
_LIMITS = ("vocabulary", "x_tokens", "y_tokens")
_PREFIXES = ("x_prefix", "y_prefix")
SENTENCEPIECE_FILE, HUGGING_FACE_FILE = "tokenizer.model", "tokenizer.json"


class Delimiters(NamedTuple):
    """The ids before and after a text. There is at least one closing id."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]


@dataclass(frozen=True)
class Template:
    """The delimiters of both sides."""

    x: Delimiters
    y: Delimiters

    @property
    def kind(self) -> str:
        """brackets if the delimiters of the sides differ; a model's own template is the same."""
        return "own" if self.x == self.y else "brackets"


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer model with its delimiters, its prefixes and the longest text of each side."""

    model: bytes
    vocabulary: int
    """Rows of the token table. The model may have fewer pieces. All ids are smaller than this."""
    x_tokens: int
    y_tokens: int
    template: Template | None = None
    """Delimiters of a Hugging Face tokenizer. None: SentencePiece, which has DELIMITERS."""
    x_prefix: str = ""
    y_prefix: str = ""
    """Texts that are put before every x and every y."""

    @property
    def file_name(self) -> str:
        return SENTENCEPIECE_FILE if self.template is None else HUGGING_FACE_FILE

    @property
    def processor(self) -> SentencePieceModel | HuggingFaceModel:
        return _parse(self.model, self.file_name)

    @property
    def fingerprint(self) -> str:
        """A sha256 that shows whether a checkpoint was trained with this tokenizer.

        It covers the model, the prefixes and, for Hugging Face, the ids of the delimiters.
        """
        digest = hashlib.sha256(self.model)
        if self.template is not None:
            digest.update(json.dumps(asdict(self.template)).encode())
        if self.x_prefix or self.y_prefix:
            digest.update(json.dumps([self.x_prefix, self.y_prefix]).encode())
        return digest.hexdigest()

    def delimiters(self, side: Side) -> Delimiters:
        if self.template is not None:
            return self.template.x if side == "x" else self.template.y
        assert isinstance(self.processor, SentencePieceModel)
        opening, closing = self.processor.find_delimiters(side)
        return Delimiters((opening,), (closing,))

    def encode(self, texts: Sequence[str], side: Side) -> list[np.ndarray]:
        """The int32 ids of each text, between the delimiters of its side.

        A text with more than x_tokens or y_tokens is cut, and keeps all delimiters. An empty text
        gives only the delimiters. Raises UserError for a lone surrogate, which is half of a
        character.
        """
        opening, closing = self.delimiters(side)
        longest = self.x_tokens if side == "x" else self.y_tokens
        inner = longest - len(opening) - len(closing)
        if prefix := self.x_prefix if side == "x" else self.y_prefix:
            texts = [prefix + text for text in texts]
        try:
            encoded = self.processor.encode(texts)
        except TypeError:
            _refuse_lone_surrogates(texts)
            raise
        return [np.array([*opening, *ids[:inner], *closing], np.int32) for ids in encoded]

    def check_limits(self, settings: config.Tokenizer, where: Path) -> "Tokenizer":
        """Returns the tokenizer. Raises UserError if a run's experiment has other limits."""
        for name in _LIMITS:
            found, asked = getattr(self, name), getattr(settings, name)
            if found != asked:
                raise UserError(
                    f"{where}: holds {name} {found}, but the run's experiment.json says {asked}; "
                    "put back the file that was changed"
                )
        return self

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The normalised text of `ids`. Control symbols and special tokens are left out.

        The brackets of a Hugging Face vocabulary are ordinary tokens and stay.
        """
        return self.processor.decode([int(i) for i in ids])

    def save(self, folder: Path) -> None:
        """Writes the model and then the limits. Files with the same content are not written."""
        folder.mkdir(parents=True, exist_ok=True)
        limits: dict[str, Any] = {k: getattr(self, k) for k in _LIMITS}
        if self.template is not None:
            limits["template"] = asdict(self.template)
        limits |= {name: text for name in _PREFIXES if (text := getattr(self, name))}
        limits_json = (json.dumps(limits, indent=2) + "\n").encode()
        for name, content in ((self.file_name, self.model), (LIMITS_FILE, limits_json)):
            if not (folder / name).is_file() or (folder / name).read_bytes() != content:
                write_file(folder / name, content)

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """Reads a folder that `save` wrote. Raises UserError if it is missing or damaged."""
        limits_file = folder / LIMITS_FILE
        try:
            limits = json.loads(limits_file.read_text(encoding="utf-8"))
            template = limits.pop("template", None)
            prefixes = {name: limits.pop(name, "") for name in _PREFIXES}
            if not all(isinstance(text, str) for text in prefixes.values()):
                raise ValueError(f"expected prefixes that are texts, found {prefixes}")
            if set(limits) != set(_LIMITS):
                raise ValueError(f"expected vocabulary, x_tokens and y_tokens, found {[*limits]}")
            if not all(type(value) is int and 0 < value < 1 << 31 for value in limits.values()):
                raise ValueError("expected numbers above 0 and below 2^31")
            if template is not None:
                sides = {
                    side: Delimiters(*(tuple(map(index, ids)) for ids in both))
                    for side, both in template.items()
                }
                limits["template"] = Template(**sides)
            file = folder / (SENTENCEPIECE_FILE if template is None else HUGGING_FACE_FILE)
            tokenizer = Tokenizer(model=file.read_bytes(), **limits, **prefixes)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing; this run has no whole tokenizer") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{limits_file}: damaged: {error}") from None
        with _naming(str(file)):
            _check(tokenizer)
        return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether `Tokenizer.save` finished in this folder."""
    return (folder / LIMITS_FILE).is_file()


@lru_cache(maxsize=4)  # a model of 250,000 pieces takes seconds to parse
def _parse(content: bytes, file_name: str) -> SentencePieceModel | HuggingFaceModel:
    """Parses a model file. Its name shows its kind. Raises UserError without the file's path."""
    return HuggingFaceModel(content) if file_name.endswith(".json") else SentencePieceModel(content)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """A context that puts `where` before the text of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _check(tokenizer: Tokenizer) -> None:
    """Raises UserError if the model cannot be read, or does not fit the table or the lengths."""
    pieces = tokenizer.processor.pieces
    if pieces > tokenizer.vocabulary:
        raise UserError(f"has {pieces} pieces, but its table has {tokenizer.vocabulary} rows")
    if tokenizer.template is None:
        if min(tokenizer.x_tokens, tokenizer.y_tokens) < 3:
            raise UserError("x_tokens and y_tokens: must be at least 3, with two delimiters")
        return
    for side, tokens in (("x", tokenizer.x_tokens), ("y", tokenizer.y_tokens)):
        opening, closing = getattr(tokenizer.template, side)
        delimiters = [*opening, *closing]
        if not closing or not all(0 <= token < pieces for token in delimiters):
            raise UserError(f"{side} needs delimiters with ids below {pieces}, found {delimiters}")
        if tokens <= len(delimiters):
            raise UserError(
                f"{side}_tokens: {tokens} leaves no room for text beside {len(delimiters)} "
                f"delimiters; set it to {len(delimiters) + 1} or more"
            )


def _refuse_lone_surrogates(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = ascii(text[max(0, error.start - 20) : error.start + 20])
            raise UserError(
                f"text {shown}: holds {text[error.start]!a}, which is half of a character; "
                "write the text as valid UTF-8"
            ) from None


def read_tokenizer(settings: config.Tokenizer) -> Tokenizer:
    """Reads the file `settings.model_file`. Raises UserError if it does not fit the settings."""
    assert settings.model_file is not None
    path = settings.model_file
    found = read_model(
        path,
        settings.x_tokens,
        settings.y_tokens,
        "tokenizer.model_file: ",
        settings.delimiters if settings.kind == "hugging_face" else None,
    )
    if (found.template is not None) != (settings.kind == "hugging_face"):
        fits = "bpe or unigram" if found.template is None else "hugging_face"
        raise UserError(f"tokenizer.kind: {settings.kind}, but {path} needs {fits}")
    found = put_prefixes(found, settings, path)
    if found.template is not None and found.vocabulary < settings.vocabulary:
        return replace(found, vocabulary=settings.vocabulary)  # a padded table
    if found.vocabulary != settings.vocabulary:
        raise UserError(
            f"tokenizer.vocabulary: {settings.vocabulary}, but {path} has "
            f"{found.vocabulary} pieces; set it to {found.vocabulary}"
        )
    return found


def put_prefixes(found: Tokenizer, settings: config.Tokenizer, path: str) -> Tokenizer:
    """The tokenizer with the prefixes of an experiment. Raises UserError if it has other ones."""
    for name in _PREFIXES:
        own, asked = getattr(found, name), getattr(settings, name)
        if own and own != asked:
            raise UserError(
                f"tokenizer.{name}: {asked!r}, but {path} was stored with {own!r}; set it to that"
            )
    return replace(found, x_prefix=settings.x_prefix, y_prefix=settings.y_prefix)


def read_model(
    path: str,
    x_tokens: int,
    y_tokens: int,
    option: str = "",
    delimiters: str | None = None,
    end_token: str | None = None,
) -> Tokenizer:
    """Reads the tokenizer of a file or folder.

    path: a SentencePiece model that has the delimiters; a tokenizer.json; a folder with one; or a
    folder that `Tokenizer.save` wrote. option: the option or field that named the path, for errors.
    delimiters: "brackets" or "own" for a tokenizer.json; None: as stored, or else brackets.
    end_token: the token that closes a text if the model's own template has none; None: the
    eos_token in the tokenizer_config.json beside it, if there is one.
    """
    file = to_path(path)
    if has_tokenizer(file):
        stored = replace(Tokenizer.load(file), x_tokens=x_tokens, y_tokens=y_tokens)
        if stored.template and delimiters not in (None, stored.template.kind):
            raise UserError(
                f"{option}{path}: was stored with delimiters {stored.template.kind}, not "
                f"{delimiters}; use {stored.template.kind} or name the original tokenizer.json"
            )
        with _naming(f"{option}{path}"):
            _check(stored)
        return stored
    if file.is_dir():
        file = file / HUGGING_FACE_FILE
    where = f"{option}{file}"
    if not file.is_file():
        raise UserError(f"{where}: no such file")
    content, template = file.read_bytes(), None
    with _naming(where):
        model = _parse(content, HUGGING_FACE_FILE if file.suffix == ".json" else SENTENCEPIECE_FILE)
        if isinstance(model, HuggingFaceModel):
            template = _make_template(model, delimiters or "brackets", end_token, file.parent)
        tokenizer = Tokenizer(content, model.pieces, x_tokens, y_tokens, template)
        _check(tokenizer)
    return tokenizer


def _make_template(
    model: HuggingFaceModel, delimiters: str, end_token: str | None, folder: Path
) -> Template:
    if delimiters == "brackets":
        x_opening, x_closing, y_opening, y_closing = ((token,) for token in model.find_brackets())
        return Template(Delimiters(x_opening, x_closing), Delimiters(y_opening, y_closing))
    settings = folder / "tokenizer_config.json"
    if end_token is None and settings.is_file():
        with _naming(settings.name):
            end_token = parse_end_token(settings.read_bytes())
    opening, closing = model.find_template(end_token)
    own = Delimiters(tuple(opening), tuple(closing))
    return Template(own, own)


def train_tokenizer(texts: Iterable[str], settings: config.Tokenizer) -> Tokenizer:
    """Trains a SentencePiece tokenizer. texts: held in memory; the same texts give the same bytes.

    If the texts are too few for `settings.vocabulary` pieces, there are fewer pieces, and the token
    table has unused rows.
    """
    model = train_model(texts, settings)
    return Tokenizer(
        model,
        settings.vocabulary,
        settings.x_tokens,
        settings.y_tokens,
        x_prefix=settings.x_prefix,
        y_prefix=settings.y_prefix,
    )
