"""Open-domain question answering: DPR's files, its matching of words, and ties."""

import gzip
import re

import numpy as np
import pytest

from jaxcpt.errors import UserError
from jaxcpt.evals import DataRefused, open_qa, words

pytest.importorskip("regex", reason="needs the evals extra")


def write_dpr(data, passages, questions, name="nq"):
    folder = data / "dpr"
    for part in ("wikipedia_split", "retriever/qas"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows = [f'{i}\t"{text}"\tT{i}' for i, text in enumerate(passages, 1)]
    with gzip.open(folder / "wikipedia_split" / "psgs_w100.tsv.gz", "wt") as file:
        file.write("\n".join(["id\ttext\ttitle", *rows]) + "\n")
    rows = [f"{question}\t{answers}" for question, answers in questions]
    (folder / "retriever" / "qas" / f"{name}-test.csv").write_text("\n".join(rows))
    return folder


def embed_place(texts, side):
    """Vectors by angle: x at 0, and passage T<i> at an angle that grows with i."""
    if side == "x":
        return np.tile(np.array([1, 0], np.float32), (len(texts), 1))
    angles_n = np.array([int(re.match(r"T(\d+) ", text)[1]) for text in texts]) / 200
    return np.stack([np.cos(angles_n), np.sin(angles_n)], axis=1).astype(np.float32)


def test_an_answer_counts_from_the_place_where_it_stands(tmp_path):
    passages = [f"passage number{i} of many" for i in range(1, 151)]
    questions = [
        ("first?", ["number1"]),
        ("twentieth?", ["nothing", "number20 of"]),
        ("later?", ["number21"]),
        ("hundredth?", ["NUMBER100"]),
        ("too late?", ["number101"]),
        ("part of a word?", ["number"]),
    ]
    write_dpr(tmp_path, passages, questions)
    scores = open_qa.run(embed_place, tmp_path)
    assert scores == {"nq/answer_recall_at_20": 2 / 6, "nq/answer_recall_at_100": 4 / 6}


@pytest.mark.parametrize("passages", [60, 150])
def test_a_constant_model_finds_answers_last(tmp_path, passages):
    texts = ["the answer is here"] + ["nothing"] * (passages - 1)
    write_dpr(tmp_path, texts, [("where?", ["answer"])], name="trivia")
    scores = open_qa.run(lambda texts, side: np.ones((len(texts), 3), np.float32), tmp_path)
    want = float(passages <= 100)  # the whole corpus is among the best 100
    assert scores == {"trivia/answer_recall_at_20": 0.0, "trivia/answer_recall_at_100": want}


def test_bm25_finds_answers_by_the_words_of_the_question(tmp_path, monkeypatch, capsys):
    pytest.importorskip("Stemmer", reason="needs the evals extra")
    passages = [f"place{i} lies in country{i}" for i in range(150)]
    questions = [("Where is place7 lying?", ["country7"]), ("Where is place8?", ["country9"])]
    folder = write_dpr(tmp_path, passages, questions)
    # Only the passage of place8 shares a word with the second question. All others tie after it.
    assert open_qa.bm25(tmp_path) == {"nq/answer_recall_at_20": 0.5, "nq/answer_recall_at_100": 0.5}
    monkeypatch.setattr(words, "MOST_DOCUMENTS", 149)
    assert open_qa.bm25(tmp_path) == {}
    said = f"{folder / open_qa.PASSAGES}: BM25 is left out, 150 documents\n"
    assert capsys.readouterr().out == said


def test_words_are_those_of_dpr():
    assert open_qa.split_like_dpr("U.S. Émile's\u00a042%") == (
        ["u", ".", "s", ".", "e\u0301mile", "'", "s", "42", "%"]
    )


def test_quoted_fields_are_read_as_csv(tmp_path):
    folder = write_dpr(tmp_path, ['say ""hi"" twice'], [('"who says ""hi""?"', '["it\'s"]')])
    assert list(open_qa.read_passages(folder / open_qa.PASSAGES)) == [('say "hi" twice', "T1")]
    path = folder / open_qa.QUESTIONS.format("nq")
    path.write_text('"who says ""hi""?"\t"[""it\'s"", \'b\']"\n')
    assert open_qa.read_questions(path) == (['who says "hi"?'], [["it's", "b"]])


@pytest.mark.parametrize("answers", ["['']", "[' ']", "['\u200b']", "[]"])
def test_an_answer_without_words_is_in_no_passage(tmp_path, answers, capsys):
    folder = write_dpr(tmp_path, ["some text"] * 3, [("where?", answers), ("what?", ["text"])])
    scores = open_qa.run(embed_place, tmp_path)
    assert scores == {"nq/answer_recall_at_20": 0.5, "nq/answer_recall_at_100": 0.5}
    path = folder / open_qa.QUESTIONS.format("nq")
    assert capsys.readouterr().out == (
        f"{path}: questions without an answer that has a word: 1; they count as not answered\n"
    )


def test_a_set_that_does_not_fit_leaves_the_scores_of_the_other(tmp_path):
    write_dpr(tmp_path, ["a"], [("who?", "7")])
    write_dpr(tmp_path, ["a"], [("who?", ["a"])], name="trivia")
    with pytest.raises(DataRefused, match=r"nq-test.csv:1: expected a list of answers") as refused:
        open_qa.run(embed_place, tmp_path)
    assert refused.value.scores.keys() == {f"trivia/answer_recall_at_{n}" for n in (20, 100)}


def refuse(text):
    return pytest.raises(UserError, match=re.escape(text))


def test_refusals(tmp_path):
    with refuse(f"{tmp_path / 'dpr'}: no question set; expected retriever/qas/nq-test.csv, or tri"):
        open_qa.run(embed_place, tmp_path)
    folder = write_dpr(tmp_path, ["a"], [("who?", ["a"]), ("what?", "a, b")])
    path = folder / "retriever" / "qas" / "nq-test.csv"
    with refuse(f"{path}:2: expected a list of answers, found a, b"):
        open_qa.run(embed_place, tmp_path)
    for answers in ("[" * 9_000, "{[]: 1}", "[7]", "['a', None]"):
        path.write_text(f"who?\t{answers}\n")
        with refuse(f"{path}:1: expected a list of answers, found {answers[:60]}"):
            open_qa.run(embed_place, tmp_path)
    path.write_text("who?\n")
    with refuse(f"{path}:1: expected 2 columns, found 1"):
        open_qa.run(embed_place, tmp_path)
    path.write_text("who?\t\"['a']\n" + "what?\t['b']\n" * 20_000)
    with refuse("field larger than field limit (131072); is a quote left open?"):
        open_qa.run(embed_place, tmp_path)
    path.write_text("")
    with refuse(f"{path}: empty; it needs at least one question"):
        open_qa.run(embed_place, tmp_path)
    path.write_text("who?\t['a']\n")
    passages = folder / "wikipedia_split" / "psgs_w100.tsv.gz"
    passages.write_bytes(gzip.compress(b"id\ttext\ttitle\n"))
    with refuse("psgs_w100.tsv: empty; it needs at least one passage"):
        open_qa.run(embed_place, tmp_path)
    passages.unlink()
    with refuse("psgs_w100.tsv: no such file, nor psgs_w100.tsv.gz; expected the DPR download's"):
        open_qa.run(embed_place, tmp_path)
