"""Searching the pieces of a folder of texts, and marking weak hits."""

import json
from collections import Counter

import numpy as np
import pytest
from tiny_run import copy_run

from jaxcpt import search
from jaxcpt.errors import UserError
from jaxcpt.search import Corpus, find_chance, sample_rows
from jaxcpt.text_folder import PIECE_CHARACTERS, cut, read_pieces
from jaxcpt.vectors import Storage, TextWithId, fill

LONG = "word " * (PIECE_CHARACTERS // 5)


def test_paragraphs_are_joined_up_to_a_length():
    assert list(cut("\n\none\nline\n \n\ntwo\n")) == [(3, "one\nline\n \n\ntwo")]
    assert list(cut(f"one\n\n{LONG}\n\ntwo\n\nthree")) == [
        (1, "one"),
        (3, LONG),
        (5, "two\n\nthree"),
    ]
    assert list(cut(" \n\n")) == []


def test_no_text_is_lost_between_pieces():
    random = np.random.default_rng(0)
    text = "".join(random.choice(["a", "bb ", "\n", "\n\n", " \n", "é"], 20_000).tolist())
    pieces = list(cut(text))
    assert "".join(p for _, p in pieces).split() != []
    assert Counter("".join("".join(p for _, p in pieces).split())) == Counter("".join(text.split()))
    for line, piece in pieces:
        assert text.splitlines()[line - 1].strip() == piece.splitlines()[0].strip()
        assert len(piece) <= PIECE_CHARACTERS or "\n\n" not in piece


@pytest.fixture
def folder(tmp_path, monkeypatch):
    # This process already has its devices.
    monkeypatch.setattr(search, "use_cpu_cores", lambda: None)
    folder = tmp_path / "notes"
    (folder / "b").mkdir(parents=True)
    (folder / "a.md").write_text("# w1\n\nw2 w3\n")
    (folder / "b" / "c.TXT").write_text("\ufeffw5")
    return folder


def test_what_is_left_out_is_counted(folder):
    (folder / ".hidden.md").write_text("w1")
    (folder / "d.pdf").write_bytes(b"%PDF")
    (folder / "Makefile").write_text("w1")
    (folder / "e.txt").write_bytes(b"\xe9")
    (folder / "link.txt").symlink_to(folder / "a.md")
    pieces, left_out = read_pieces(folder)
    assert pieces == [("a.md:1", "# w1\n\nw2 w3"), ("b/c.TXT:1", "w5")]
    assert left_out == {
        "file that ends in .pdf": 1,
        "file that ends in nothing": 1,
        "unreadable file": 1,
    }


def test_a_folder_without_texts_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--text .*: no text in it; files must end in .adoc, "):
        read_pieces(tmp_path)
    with pytest.raises(UserError, match=r"--text .*gone: no such folder"):
        read_pieces(tmp_path / "gone")


def test_the_command_searches_the_pieces(folder, tmp_path, capsys):
    options = ["--run-dir", str(copy_run(tmp_path)), "--text", str(folder), "--json", "w5"]
    found = []
    for _ in range(2):  # the second time with the stored vectors
        capsys.readouterr()
        search.main(options)
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert found[0] == found[1]
    assert {hit["id"] for hit in found[0]["hits"]} == {"a.md:1", "b/c.TXT:1"}
    assert not any(hit["is_weak"] for hit in found[0]["hits"])  # too few to tell


def unit(random, *shape):
    vectors = random.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("storage", [Storage(), Storage(int8=True)])
def test_chance_explains_hits_among_random_texts_and_no_planted_one(tmp_path, storage):
    random = np.random.default_rng(0)
    texts_nd, queries_qd = unit(random, 5000, 32), unit(random, 50, 32)
    texts = [TextWithId(str(n), str(n)) for n in range(5000)]
    vectors = fill(
        tmp_path / "v", {}, texts, lambda names: texts_nd[[int(n) for n in names]], storage
    )
    chance_q = find_chance(queries_qd, sample_rows(vectors), len(vectors))
    best_q = (queries_qd @ texts_nd.T).max(axis=1)
    assert 0.8 < np.mean(best_q <= chance_q) <= 1
    planted_q = (queries_qd * texts_nd[:50]).sum(axis=1)  # unrelated ones
    assert (planted_q < chance_q).all()
    assert (chance_q < 0.9).all()  # a text that equals its query would not be weak


def test_chance_is_estimated_on_few_texts_of_many_shards(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    texts_nd, queries_qd = unit(random, 1000, 8), unit(random, 3, 8)
    texts = [TextWithId(str(n), str(n)) for n in range(1000)]

    def embed(names):
        return texts_nd[[int(n) for n in names]]

    vectors = fill(tmp_path / "v", {}, texts, embed, Storage(), texts_per_shard=7)
    monkeypatch.setattr(search, "SAMPLED_TEXTS", 50)
    scores_qn = queries_qd @ texts_nd[::20].T
    deviations = np.sqrt(2 * np.log(1000))
    expected_q = scores_qn.mean(axis=1) + deviations * scores_qn.std(axis=1)
    corpus = Corpus(vectors, lambda: texts)
    chance_q = find_chance(queries_qd, corpus.sample_nd, len(vectors))
    np.testing.assert_allclose(chance_q, expected_q, rtol=1e-5)
    assert corpus.sample_nd is corpus.sample_nd  # read once for all queries


def test_a_small_corpus_marks_nothing(tmp_path):
    texts = [TextWithId(str(n), "") for n in range(99)]
    vectors = fill(
        tmp_path / "v", {}, texts, lambda names: np.ones((len(names), 4), np.float32), Storage()
    )
    chance_q = find_chance(np.ones((2, 4), np.float32), sample_rows(vectors), len(vectors))
    assert chance_q.tolist() == [-np.inf, -np.inf]


def test_weak_hits_are_marked(capsys):
    hits = [search.Hit(0.5, "a", "x", False), search.Hit(0.1, "b", "y\nz", True)]
    search.show("query", 200, hits, 1)
    assert capsys.readouterr().out == (
        "query  (of 200 texts)\n\n0.500  a\n    x\n\n0.100  b  (weak)\n    y\n"
        "    ... 1 more lines\n"
        "\n(weak): the best of as many unrelated texts would reach this score by chance\n\n"
    )
