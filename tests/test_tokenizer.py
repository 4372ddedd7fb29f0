"""The SentencePiece tokenizer: ids, truncation, splitting of identifiers, and errors."""

import random
import re
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece

from jaxcpt import config
from jaxcpt.errors import UserError
from jaxcpt.tokenizer import DELIMITERS, Tokenizer, read_tokenizer, split_rules, train_tokenizer

TEXTS = [
    "def read_line(self, path):\n    return open(path).read()\n",
    "Return the next line of the file at path.",
    "def parseDate(text):\n    return datetime.strptime(text, FORMAT)\n",
    "Parse a date from a string and return it.",
] * 3
SETTINGS = config.Tokenizer(vocabulary=600, split_identifiers=True, x_tokens=6, y_tokens=8)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, SETTINGS)


def test_each_side_has_its_delimiters(tokenizer):
    (x,), (y,) = tokenizer.encode(["a path"], "x"), tokenizer.encode(["a path"], "y")
    assert x.dtype == np.int32
    assert ((x[0],), (x[-1],)) == tokenizer.delimiters("x")
    assert ((y[0],), (y[-1],)) == tokenizer.delimiters("y")
    assert len({x[0], x[-1], y[0], y[-1]}) == 4
    np.testing.assert_array_equal(x[1:-1], y[1:-1])


def test_truncation_keeps_the_closing_delimiter(tokenizer):
    for side, longest in (("x", 6), ("y", 8)):
        (cut,) = tokenizer.encode(["one two three four five six seven " * 20], side)
        assert len(cut) == longest
        assert ((cut[0],), (cut[-1],)) == tokenizer.delimiters(side)


def test_an_empty_text_is_its_delimiters(tokenizer):
    (opening,), (closing,) = tokenizer.delimiters("x")
    assert [list(ids) for ids in tokenizer.encode(["", " \n"], "x")] == [[opening, closing]] * 2
    assert tokenizer.encode([], "x") == []


def test_delimiters_cannot_be_injected(tokenizer):
    text = " ".join(piece for pieces in DELIMITERS.values() for piece in pieces)
    long = Tokenizer(tokenizer.model, 600, 100, 100)
    (ids,) = long.encode([text + "[x]{y}"], "x")
    controls = {i for side in "xy" for both in tokenizer.delimiters(side) for i in both}
    assert not controls & set(ids[1:-1].tolist())
    assert long.decode(ids) == text + "[x]{y}"


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("getXValue", "get x value"),
        ("HTTPServerError2", "http server error2"),
        ("parse_dateFromXML", "parse date from xml"),
        ("getHTTPResponse", "get http response"),
        ("ToXML", "to xml"),
        ("AbCdE", "ab cd e"),
        ("self.readLines(IOError)", "self.read lines(io error)"),
        ("__init__", "init"),
        ("conv2D utf8Decoder", "conv2d utf8 decoder"),
        ("MAX_LEN\n\tIsDir", "max len is dir"),
        ("\ufb01le \uff21 É", "file a é"),
    ],
)
def test_identifiers_are_split_and_lower_cased(tokenizer, text, split):
    (ids,) = Tokenizer(tokenizer.model, 600, 500, 500).encode([text], "x")
    assert tokenizer.decode(ids) == split


def test_the_rules_equal_a_regular_expression(tokenizer):
    """The replacement rules give the same splits as a regular expression with look-around."""
    draw = random.Random(0)
    long = Tokenizer(tokenizer.model, 600, 500, 500)
    for _ in range(500):
        text = "".join(draw.choice("aAbBcC_1. ") for _ in range(12))
        cut = re.sub("(?<=[a-z])(?=[A-Z])|(?<![a-z])(?=[A-Z][a-z])", " ", text.replace("_", " "))
        assert long.decode(long.encode([text], "y")[0]) == " ".join(cut.lower().split())


def test_every_single_code_point_is_normalised_as_nfkc():
    rules = split_rules()
    for code in (0x41, 0xC9, 0xA0, 0x130, 0xFB01, 0xFF21, 0x1D400):
        letter = unicodedata.normalize("NFKC", chr(code)).lower()
        assert rules[chr(code)] == unicodedata.normalize("NFKC", letter)


def test_without_splitting_nothing_is_lost():
    plain = train_tokenizer(TEXTS, config.Tokenizer(vocabulary=600))
    text = "def f(x):\n    return  X_yZ  # é☃\n"
    assert plain.decode(plain.encode([text], "y")[0]) == text


def test_training_is_deterministic_and_survives_the_disk(tokenizer, tmp_path):
    again = train_tokenizer(iter(TEXTS), SETTINGS)
    again.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded == tokenizer
    assert loaded.fingerprint == tokenizer.fingerprint
    assert train_tokenizer(TEXTS[:1], SETTINGS).fingerprint != tokenizer.fingerprint


def test_saving_again_leaves_equal_files_alone(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    tokenizer.save(tmp_path)
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model[:-1])
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path) == tokenizer


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_small_corpus_keeps_the_configured_vocabulary(kind):
    small = train_tokenizer(["two words"], config.Tokenizer(vocabulary=5000, kind=kind))
    assert small.vocabulary == 5000
    assert small.encode(["two words"], "x")[0].max() < 5000


def test_refuses_no_text():
    with pytest.raises(UserError, match=r"tokenizer: no text to train on; data.train has no pairs"):
        train_tokenizer(["", " "], SETTINGS)


def test_refuses_a_vocabulary_below_the_characters():
    with pytest.raises(UserError, match=r"tokenizer.vocabulary: 100 is too small for bytes"):
        train_tokenizer(TEXTS, config.Tokenizer(vocabulary=100))


def settings_with(path, vocabulary=600):
    return config.Tokenizer(vocabulary=vocabulary, model_file=str(path))


def test_reads_a_model_of_the_users(tmp_path):
    texts = [" ".join(f"word{i} other{i * i}" for i in range(300))]
    made = train_tokenizer(texts, config.Tokenizer(vocabulary=400))
    path = tmp_path / "own.model"
    path.write_bytes(made.model)
    assert read_tokenizer(settings_with(path, 400)).fingerprint == made.fingerprint
    with pytest.raises(
        UserError, match=r"vocabulary: 600, but .*own.model has 400 .* set it to 400"
    ):
        read_tokenizer(settings_with(path))


def test_refuses_a_missing_or_foreign_model(tmp_path):
    path = tmp_path / "own.model"
    with pytest.raises(UserError, match=r"model_file: .*own.model: no such file"):
        read_tokenizer(settings_with(path))
    for content in (b"no such model", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"own.model: not a SentencePiece model"):
            read_tokenizer(settings_with(path))


def test_refuses_a_model_without_delimiters(tmp_path):
    prefix = tmp_path / "bare"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(prefix),
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(
        UserError, match=r"lacks the delimiter <\[>; train it with control_symbols="
    ):
        read_tokenizer(settings_with(f"{prefix}.model"))


def test_refuses_a_folder_without_or_with_half_a_tokenizer(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"limits.json: missing; this run has no whole tokenizer"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "limits.json").write_text("{")
    with pytest.raises(UserError, match=r"limits.json: damaged: "):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(
        UserError, match=r"tokenizer.model: missing; this run has no whole tokenizer"
    ):
        Tokenizer.load(tmp_path)


def test_prefixes_stand_before_every_text_of_their_side(tokenizer, tmp_path):
    prefixed = replace(tokenizer, x_tokens=60, y_tokens=60, x_prefix="w1 ", y_prefix="w2 w3 ")
    plain = replace(tokenizer, x_tokens=60, y_tokens=60)
    for side, prefix in (("x", "w1 "), ("y", "w2 w3 ")):
        (ours,), (theirs,) = prefixed.encode(["w4"], side), plain.encode([f"{prefix}w4"], side)
        assert ours.tolist() == theirs.tolist()
    prefixed.save(tmp_path)
    assert Tokenizer.load(tmp_path) == prefixed
    assert prefixed.fingerprint != plain.fingerprint == tokenizer.fingerprint


def test_a_new_tokenizer_has_the_prefixes_of_its_settings():
    settings = config.Tokenizer(vocabulary=400, x_prefix="query: ")
    assert train_tokenizer(["a text", "another"], settings).x_prefix == "query: "
