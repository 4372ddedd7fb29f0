"""Converts a tokenizer to a tokenizer.json for other libraries.

In: a `Tokenizer` and a side. Out: the text of a tokenizer.json that adds the delimiters of that
side, and the name of its padding token. A SentencePiece model is converted to byte-pair merges. A
tokenizer without an exact form in a tokenizer.json raises UserError. The module knows no model.
"""

import json
from typing import Any

import tokenizers
from tokenizers import models, normalizers

from jaxcpt.errors import UserError
from jaxcpt.pair import Side
from jaxcpt.tokenizer import Tokenizer
from jaxcpt.tokenizer.sentencepiece_model import SentencePieceModel

PADDING = ("[PAD]", "<pad>")
SIDES: tuple[Side, ...] = ("x", "y")
PRIVATE = 0xF0000
"""The first character of a range that Unicode reserves for private use."""
SPACE = "\u2581"
"""The character by which SentencePiece writes a space."""


def to_hugging_face(tokenizer: Tokenizer, side: Side) -> tuple[str, str]:
    """The text of a tokenizer.json, and the token that pads shorter texts of a batch.

    There is one difference: if a text contains the spelling of a special token, other libraries
    read it as that token. Raises UserError for a SentencePiece model that has no exact form.
    """
    if isinstance(tokenizer.processor, SentencePieceModel):
        file = _write_merges(tokenizer.processor)
    else:
        file = json.loads(tokenizer.model)
    ids = _list_ids(file)
    names = {number: piece for piece, number in ids.items()}
    opening, closing = tokenizer.delimiters(side)
    special = [names[token] for token in (*opening, *closing)]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [
        *({"SpecialToken": {"id": names[token], "type_id": 0}} for token in opening),
        text,
        *({"SpecialToken": {"id": names[token], "type_id": 0}} for token in closing),
    ]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in special
        },
    }
    padding = next((name for name in PADDING if name in ids), special[-1])
    file |= {"post_processor": template, "truncation": None, "padding": None}
    return json.dumps(file, ensure_ascii=False), padding


def to_bag_tokenizer(tokenizer: Tokenizer) -> tuple[str, dict[Side, str]]:
    """The text of a tokenizer.json for a bag of tokens, and each side's delimiters as characters.

    The pieces of the delimiters are renamed to private-use characters. So a prompt can contain
    them, and few texts do.
    """
    if not isinstance(tokenizer.processor, SentencePieceModel):
        raise UserError(
            "tokenizer: a bag of tokens is exported with a SentencePiece model only; export with "
            "--format safetensors"
        )
    file = _write_merges(tokenizer.processor)
    names = {number: piece for piece, number in file["model"]["vocab"].items()}
    marks: dict[Side, str] = {"x": "", "y": ""}
    for side in SIDES:
        for token in (*tokenizer.delimiters(side).opening, *tokenizer.delimiters(side).closing):
            mark = chr(PRIVATE + token)
            marks[side] += mark
            file["model"]["vocab"][mark] = file["model"]["vocab"].pop(names[token])
            file["added_tokens"].append(
                {
                    "id": token,
                    "content": mark,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            )
    file["added_tokens"].sort(key=lambda entry: entry["id"])
    return json.dumps(file, ensure_ascii=False), marks


def _list_ids(file: dict[str, Any]) -> dict[str, int]:
    built = tokenizers.Tokenizer.from_str(json.dumps(file | {"post_processor": None}))
    return built.get_vocab(with_added_tokens=True)


def _write_merges(model: SentencePieceModel) -> dict[str, Any]:
    """A SentencePiece BPE model in the form of the `tokenizers` library. Raises UserError if it is
    of another kind, or changes texts."""
    if model.kind != "bpe" or model.normalises:
        raise UserError(
            "tokenizer: a SentencePiece model of kind unigram, or one that splits identifiers, has "
            "no exact form in a tokenizer.json; export with --format safetensors"
        )
    pieces = model.list_pieces()
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    ordinary = {piece for piece, is_ordinary in pieces if is_ordinary}
    merges = []
    for piece, is_ordinary in pieces:  # ordered by score, best first
        if is_ordinary:
            cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
            pairs = [cut for cut in cuts if cut[0] in ordinary and cut[1] in ordinary]
            merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    built = tokenizers.Tokenizer(
        models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    )
    built.normalizer = normalizers.Replace(" ", SPACE)
    return json.loads(built.to_str())
