"""Code search in blocks of 1,000 functions (CodeSearchNet) and in whole corpora (BEIR layout)."""

import gzip
import json
import re

import numpy as np
import pytest

from jaxcpt import beir
from jaxcpt.errors import UserError
from jaxcpt.evals import code_search


def write_language(data, language, count, files=2):
    folder = data / "code_search" / "codesearchnet" / language / "final" / "jsonl" / "test"
    folder.mkdir(parents=True)
    for part in range(files):
        rows = [
            {"docstring_tokens": ["find", f"w{i}"], "code_tokens": ["def", f"w{i}", "(", ")"]}
            for i in range(part, count, files)
        ]
        with gzip.open(folder / f"{language}_test_{part}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, rows)))


def embed_number(texts, side):
    """Points on a circle, one for each number, so that a text is nearest to an equal text."""
    numbers = np.array([int(re.search(r"w(\d+)", text)[1]) for text in texts])
    angles_n = numbers * (2 * np.pi / 2_600)
    return np.stack([np.cos(angles_n), np.sin(angles_n)], axis=1)


def write_beir(data, qrels):
    folder = data / "code_search" / "cosqa"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": str(i), "title": "", "text": f"def w{i}(): ..."} for i in range(50)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"_id": f"q{i}", "text": f"call w{i}"} for i in range(50)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = ["\t".join(beir.QRELS), *("\t".join(row) for row in qrels)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines))
    return folder


def test_planted_answers_of_codesearchnet(tmp_path):
    for language in code_search.LANGUAGES:
        write_language(tmp_path, language, 1_000)
    scores = code_search.run(embed_number, tmp_path)
    assert set(scores.values()) == {1.0}
    assert "codesearchnet/average/mrr" in scores
    assert "codesearchnet/ruby/recall_at_10" in scores


def test_each_function_has_999_others_and_the_rest_is_left_out(tmp_path):
    write_language(tmp_path, "go", 2_300)
    sizes = []

    def embed(texts, side):
        sizes.append(len(texts))
        return np.ones((len(texts), 4))

    scores = code_search.run(embed, tmp_path)
    assert sizes == [2_000] * 2  # two blocks
    assert scores["codesearchnet/go/mrr"] == pytest.approx(1 / 1_000)
    assert set(code_search.bm25(tmp_path).values()) == {1.0}


def test_whole_corpus_takes_the_best_of_several_answers(tmp_path):
    # The neighbours of w7 on the circle are 6 and 8, and then 5 and 9. Two are before 5.
    write_beir(tmp_path, [("q3", "3", "1"), ("q7", "20", "1"), ("q7", "5", "2"), ("q7", "6", "0")])
    scores = code_search.run(embed_number, tmp_path)
    ahead = 1 + 2 + 1  # w7 itself, 6, 8, and 9, which ties with 5
    assert scores["cosqa/mrr"] == pytest.approx((1 + 1 / (ahead + 1)) / 2)
    assert scores["cosqa/recall_at_1"] == 0.5
    assert scores["cosqa/recall_at_10"] == 1.0


def test_absent_documents_and_queries_without_answers_count_as_never_answered(tmp_path, capsys):
    """They count as in pytrec_eval."""
    rows = [("q3", "3", "1"), ("q4", "4", "0"), ("q5", "gone", "1"), ("q5", "5", "0")]
    folder = write_beir(tmp_path, rows)
    for scores in (code_search.run(embed_number, tmp_path), code_search.bm25(tmp_path)):
        assert set(scores.values()) == {1 / 3}
    assert capsys.readouterr().out == (
        f"{folder}: judged documents that are not in corpus.jsonl: 1; they count as never found\n"
        f"{folder}: queries without a relevant document: 1; they score 0\n"
    )


def test_functions_are_searched_among_more_candidates_where_there_are_so_many(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(code_search, "CODESEARCHNET", {100: "codesearchnet", 250: "more"})
    write_language(tmp_path, "go", 520)
    write_language(tmp_path, "ruby", 249)
    constant = code_search.run(lambda texts, side: np.ones((len(texts), 4)), tmp_path)
    mrrs = {name: value for name, value in constant.items() if name.endswith("mrr")}
    assert mrrs == {
        "codesearchnet/go/mrr": pytest.approx(1 / 100),
        "more/go/mrr": pytest.approx(1 / 250),
        "codesearchnet/ruby/mrr": pytest.approx(1 / 100),
    }
    assert set(code_search.run(embed_number, tmp_path).values()) == {1.0}
    assert code_search.bm25(tmp_path) == code_search.run(embed_number, tmp_path)
    said = "codesearchnet/ruby: 249 functions; not ranked among 250\n"
    assert capsys.readouterr().out == said  # once


def test_sets_in_folders_are_searched_too(tmp_path):
    folder = write_beir(tmp_path, [("q3", "3", "1")])
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    (tmp_path / "moved").rename(folder / "python")
    assert code_search.run(embed_number, tmp_path).keys() == {
        f"cosqa/python/{name}" for name in ("mrr", "recall_at_1", "recall_at_10")
    }


def test_a_language_of_codesearchnet_is_ranked_by_its_own_protocol_alone(tmp_path):
    """In BEIR layout its whole corpus would be searched, unlike in the published figures."""
    folder = write_beir(tmp_path, [("q3", "3", "1")])
    (tmp_path / "code_search" / "codesearchnet").mkdir()
    language = folder.rename(tmp_path / "code_search" / "codesearchnet" / "go")
    with refuse(f"{language}: no final/jsonl/test/*.jsonl.gz; unpack the language's archive"):
        code_search.run(embed_number, tmp_path)


def refuse(text):
    return pytest.raises(UserError, match=re.escape(text))


def test_refusals(tmp_path):
    with refuse(f"{tmp_path / 'code_search'}: no set to search; expected <set>/corpus.jsonl,"):
        code_search.run(embed_number, tmp_path)
    data = tmp_path / "other"
    write_language(data, "java", 30, files=0)
    folder = data / "code_search" / "codesearchnet" / "java"
    with refuse(f"{folder}: no final/jsonl/test/*.jsonl.gz; unpack the language's archive"):
        code_search.run(embed_number, data)
    write_language(data, "go", 30)
    folder = data / "code_search" / "codesearchnet" / "go"
    with refuse(f"{folder}: 30 functions; the protocol ranks each among 1000"):
        code_search.run(embed_number, data)
    path = folder / "final" / "jsonl" / "test" / "go_test_0.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"docstring_tokens": "text", "code_tokens": []}'))
    with refuse(f"{path}:1: expected an object with a list 'docstring_tokens', found "):
        code_search.run(embed_number, data)
    path.write_bytes(gzip.compress(b'{"docstring_tokens": ["a", 7], "code_tokens": []}'))
    with refuse(f"{path}:1: a token is not a text; both lists hold texts"):
        code_search.run(embed_number, data)
    (path.parent / "go_test_0.jsonl").write_text("{}")
    with refuse(f"{path}: go_test_0.jsonl is there as well; keep one of the two"):
        code_search.run(embed_number, data)
