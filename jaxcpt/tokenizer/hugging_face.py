"""Encodes texts with a Hugging Face tokenizer.json.

In: a tokenizer.json, and texts. Out: token ids of texts, and the ids of its delimiters. The module
knows neither sides nor lengths, and the caller adds the delimiters. Truncation, padding and the
template of the file are not applied when a text is encoded.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import tokenizers

from jaxcpt.errors import UserError

# Encode a batch on all cores. If this is not set, the library prints a warning after a fork. The
# results do not depend on it.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

BRACKETS = "[]{}"


class HuggingFaceModel:
    """The tokenizer of one tokenizer.json. No text gives the id of a special token.

    Special tokens, such as [SEP] and <|endoftext|>, are not matched in texts. Some models would
    still produce one as an ordinary piece of the vocabulary. There the piece is renamed (`_hide`).
    """

    def __init__(self, content: bytes) -> None:
        """Raises UserError if `content` is not a tokenizer.json."""
        try:
            file = json.loads(content)
            self._post_processor = file.pop("post_processor", None)
            file |= {"truncation": None, "padding": None}
            self._tokenizer = _build(file)
            # The number of ids is one more than the largest id.
            self.pieces = max(self._tokenizer.get_vocab().values(), default=-1) + 1
            if self.pieces >= 1 << 31:
                raise ValueError(f"a token has the id {self.pieces - 1}, which needs 32 bits")
            self._hidden = _find_special_pieces(self._tokenizer)
            if self._hidden:
                self._tokenizer = _build(_hide(file, self._hidden))
        except BaseException as error:
            raise _explain("not a tokenizer.json", error) from None

    def find_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(self._hidden.get(token, token))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without delimiters. Raises TypeError for a lone surrogate."""
        try:
            batch = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            raise
        except BaseException as error:
            raise _explain("the tokenizer cannot encode a text", error) from None
        return [encoding.ids for encoding in batch]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def find_brackets(self) -> list[int]:
        """The ids of `[`, `]`, `{` and `}`. Raises UserError if one is not a single token."""
        found = {character: self.find_id(character) for character in BRACKETS}
        for character, token in found.items():
            if token is None:
                raise UserError(
                    f"has no single token for {character}, which delimiters "
                    '"brackets" need; use delimiters "own"'
                )
        return [token for token in found.values() if token is not None]

    def find_template(self, end_token: str | None) -> tuple[list[int], list[int]]:
        """The ids before and after a text in the model's own template.

        end_token: closes a text if the template does not, as in most generative models.
        """
        try:
            opening, closing = _read_template(self._post_processor)
        except Exception as error:  # the JSON may have any form
            raise UserError(f"post_processor: damaged: {repr(error)[:200]}") from None
        if not closing:
            if end_token is None:
                raise UserError(
                    "its template has no closing token; name one as eos_token in "
                    "a tokenizer_config.json beside it"
                )
            end = self.find_id(end_token)
            if end is None:
                raise UserError(f"its vocabulary lacks the end token {end_token}")
            closing = [end]
        if not all(0 <= token < self.pieces for token in opening + closing):
            raise UserError(
                f"post_processor: token ids {opening + closing} must be below {self.pieces}"
            )
        return opening, closing


def _explain(what: str, error: BaseException) -> BaseException:
    """A UserError for an error of the library, which may be a Rust panic and not an Exception.

    Any other error is returned unchanged.
    """
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return UserError(f"{what}: {' '.join(str(error).split())[:200]}")
    return error


def _build(file: dict[str, Any]) -> tokenizers.Tokenizer:
    built = tokenizers.Tokenizer.from_str(json.dumps(file))
    built.encode_special_tokens = True  # as text: special tokens are not matched
    return built


def _find_special_pieces(built: tokenizers.Tokenizer) -> dict[str, str]:
    """New names for special tokens that are also ordinary pieces, which a text could produce.

    Examples are Unigram with </s> in its vocabulary (XLM-RoBERTa), and BPE whose merges produce it.
    """
    found = {}
    for token, added in built.get_added_tokens_decoder().items():
        if added.special and added.content:
            texts = [added.content, f"a{added.content}a", f"a {added.content} a"]
            encodings = built.encode_batch_fast(texts, add_special_tokens=False)
            if any(token in encoding.ids for encoding in encodings):
                # Models replace spaces or split texts at them, so no piece contains a space.
                found[added.content] = f"\0 {added.content}"
    return found


def _hide(file: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The tokenizer.json with these pieces renamed, and without the merges that produce them."""
    model = dict(file["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): token for piece, token in vocabulary.items()}
    else:  # Unigram
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [(a, b) for a, b in pairs if not names.keys() & {a, b, a + b}]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    added = [
        token | {"content": names.get(token["content"], token["content"])}
        for token in file["added_tokens"]
    ]
    return file | {"model": model, "added_tokens": added}


def _read_template(processor: dict[str, Any] | None) -> tuple[list[int], list[int]]:
    """The ids that a post-processor puts before and after a single text."""
    if processor is None or processor["type"] == "ByteLevel":  # ByteLevel only changes offsets
        return [], []
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return [int(processor["cls"][1])], [int(processor["sep"][1])]
    if processor["type"] == "Sequence":
        opening: list[int] = []
        closing: list[int] = []
        for part in processor["processors"]:
            before, after = _read_template(part)
            opening, closing = before + opening, closing + after
        return opening, closing
    if processor["type"] != "TemplateProcessing":
        raise ValueError(f"the type {processor['type']} is unknown")
    pieces = [next(iter(piece.items())) for piece in processor["single"]]
    text = [kind for kind, _ in pieces].index("Sequence")
    before, after = (
        [
            int(token)
            for _, piece in part
            for token in processor["special_tokens"][piece["id"]]["ids"]
        ]
        for part in (pieces[:text], pieces[text + 1 :])
    )
    return before, after


def parse_end_token(content: bytes) -> str | None:
    """The eos_token of a tokenizer_config.json. Raises UserError if the file is damaged."""
    try:
        token = json.loads(content).get("eos_token")
        token = token["content"] if isinstance(token, dict) else token
        if not isinstance(token, str | None):
            raise TypeError(f"eos_token: expected text, found {token!r}")
        return token
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UserError(f"damaged: {str(error)[:200]}") from None
