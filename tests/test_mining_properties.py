"""What holds for every document and every source file, with generators of both (hypothesis)."""

import gzip
import json
import re
from collections import Counter
from functools import partial

import pytest

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

import pyarrow
import pyarrow.parquet
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxcpt.mining.code import LANGUAGES, mine_code
from jaxcpt.mining.documents import RawDocument, Reading
from jaxcpt.mining.inputs import Mining
from jaxcpt.mining.pipeline import mine
from jaxcpt.mining.text import TextOptions, mine_text
from jaxcpt.mining.words import fold_words

TEXT = partial(mine_text, options=TextOptions(piece_chars=(30, 90), languages=(), quality=False))
SPACES = st.sampled_from([" ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", ". ", "! "])
WORDS = st.sampled_from(["one", "two", "größe", "数", "naïve", "Ωmega", "seven", "eight"])


@st.composite
def corpora(draw):
    """Documents whose every word tells its author; an author may write several, or one twice."""
    texts = []
    for author in draw(st.lists(st.integers(0, 5), min_size=2, max_size=8)):
        parts = draw(st.lists(st.tuples(WORDS, SPACES), min_size=20, max_size=60))
        texts.append("".join(f"{word}{at % 7}by{author}{space}"
                             for at, (word, space) in enumerate(parts)))  # fmt: skip
    return texts + draw(st.lists(st.sampled_from(texts), max_size=2))


def write_files(folder, texts, forms):
    """Each text goes to a file of one of the forms, together with others or alone."""
    folder.mkdir()
    for number, form in enumerate(forms):
        own = texts[number :: len(forms)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in own).encode()
        if form == "jsonl":
            (folder / f"{number}.jsonl").write_bytes(lines)
        elif form == "gzip":
            (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines))
        elif form == "zstd":
            with pyarrow.CompressedOutputStream(str(folder / f"{number}.jsonl.zst"), "zstd") as out:
                out.write(lines)
        elif form == "parquet":
            table = pyarrow.table({"text": pyarrow.array(own, pyarrow.string())})
            pyarrow.parquet.write_table(table, folder / f"{number}.parquet", row_group_size=2)
        else:
            for place, text in enumerate(own):
                (folder / f"{number}-{place}.txt").write_bytes(text.encode())
    return folder


def mine_files(folder, output, workers=1):
    """{split: [(x, y)]}"""
    mining = Mining(inputs=(str(folder),), name="mined", heldout_share=0.3, shards=2)
    mine(mining, Reading(), TEXT, output, workers=workers)
    splits = tfds.builder_from_directory(output).as_data_source()
    return {
        split: [(row["x"].decode(), row["y"].decode()) for row in rows]
        for split, rows in splits.items()
    }


FORMS = st.lists(
    st.sampled_from(["jsonl", "gzip", "zstd", "parquet", "text"]), min_size=1, max_size=4
)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=corpora(), forms=st.tuples(FORMS, FORMS), order=st.randoms(use_true_random=False))
def test_pairs_of_any_documents_in_any_files(tmp_path_factory, texts, forms, order):
    folder = tmp_path_factory.mktemp("corpus")
    pairs = mine_files(write_files(folder / "a", texts, forms[0]), folder / "mined_a")
    normal = {" ".join(text.split()) for text in texts}
    sides = [side for rows in pairs.values() for pair in rows for side in pair]
    for rows in pairs.values():
        for x, y in rows:
            assert len(set(re.findall(r"by\d", x + y))) == 1  # of one author, and of one document
            assert any(y in text[text.find(x) + len(x) :] for text in normal if x in text)
    assert len({tuple(fold_words(side)) for side in sides}) == len(sides)
    shuffled = list(texts)
    order.shuffle(shuffled)
    again = mine_files(write_files(folder / "b", shuffled, forms[1]), folder / "mined_b", workers=2)
    assert again == pairs


NAMES = st.sampled_from(["alpha", "größe", "数", "total", "cursor", "naïve"])
MORE = {  # what ends the description, and must not stay in the code either
    "python": "\n\n    Args:\n        a: rest of the documentation",
    "java": "\n * @param a rest of the documentation",
    "javascript": "\n * @param a rest of the documentation",
    "php": "\n * @param a rest of the documentation",
    "go": "\n//\n// Example:\n//\trest of the documentation",
    "ruby": "\n#\n# @param a rest of the documentation",
}
FRAMES = {  # of a function, and what may stand above or before it
    "python": ("{above}def f{n}(a):\n    {quotes}{doc}{quotes}\n{body}\n", ["@cache(1)\n"]),
    "java": ("/**\n * {doc}\n */\n{above}int f{n}(int a) {{\n{body}\n}}\n", ["@Pure ", "public "]),
    "javascript": ("/**\n * {doc}\n */\n{above}function f{n}(a) {{\n{body}\n}}\n", ["async "]),
    "php": ("/**\n * {doc}\n */\n{above}function f{n}($a) {{\n{body}\n}}\n", ["#[Pure]\n"]),
    "go": ("// {doc}\n{above}func f{n}(a int) {{\n{body}\n}}\n", []),
    "ruby": ("# {doc}\n{above}def f{n}(a)\n{body}\nend\n", []),
}
LINES = {
    "python": "    {v}{n} = '{w}body{n}'",
    "java": '    String {v}{n} = "{w}body{n}";',
    "javascript": '    var {v}{n} = "{w}body{n}";',
    "php": '    ${v}{n} = "{w}body{n}";',
    "go": '    {v}{n} := "{w}body{n}"',
    "ruby": '    {v}{n} = "{w}body{n}"',
}
INNER = "    def inner():\n        '''Its own words are inner ones.'''\n        return a"
OUTSIDE = {"java": "class A {{\n{}}}\n", "php": "<?php\n{}", "go": "package a\n\n{}"}


@st.composite
def sources(draw):
    """(language, source, [(documentation, words of the body)]) of a file with several functions."""
    language = draw(st.sampled_from(list(LANGUAGES)))
    frame, aboves = FRAMES[language]
    source, expected = [], []
    for n in range(draw(st.integers(1, 5))):
        words = draw(st.lists(NAMES, min_size=3, max_size=8))
        doc = " ".join(f"{word}doc{n}" for word in words)
        names = draw(st.lists(NAMES, min_size=3, max_size=6))
        body = [LINES[language].format(v=f"v{at}_", n=n, w=w) for at, w in enumerate(names)]
        if language == "python" and draw(st.booleans()):
            body.append(INNER)
        told = doc.replace(" ", draw(st.sampled_from([" ", "  "])))
        told += MORE[language] * draw(st.booleans())
        quotes = draw(st.sampled_from(['"""', "'''", 'r"""']))
        text = frame.format(
            above=draw(st.sampled_from(["", *aboves])), n=n, doc=told, quotes=quotes,
            body="\n".join(body),
        )  # fmt: skip
        source.append(text.replace('r"""\n', '"""\n'))
        expected.append((doc, {f"{name}body{n}" for name in names}))
    text = OUTSIDE.get(language, "{}").format("\n".join(source))
    if language != "python" and draw(st.booleans()):
        text = text.replace("    ", "\t")
    return language, text.replace("\n", draw(st.sampled_from(["\n", "\r\n"]))), expected


@settings(max_examples=200, deadline=None)
@given(made=sources())
def test_functions_of_any_file(made):
    language, source, expected = made
    name = f"a/b{LANGUAGES[language].suffixes[0]}"
    pairs = list(mine_code(RawDocument(name, source), Counter()))
    assert [x for x, _ in pairs] == [doc for doc, _ in expected]
    words = " ".join(fold_words(source))
    normal = " ".join(source.split())
    docstrings = re.compile(r"""r?(\"{3}|'{3})(?=\w+doc\d).*?\1 ?""")
    without = docstrings.sub("", normal) if language == "python" else normal
    for (x, y), (_, body) in zip(pairs, expected, strict=True):
        assert " ".join(fold_words(x)) in words
        assert " ".join(y.split()) in without
        assert not re.search(r"doc\d|rest of the documentation", y)
        assert set(re.findall(r"\w+body\d", y)) == body
