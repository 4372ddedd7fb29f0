"""Readers of text files and of search tasks: plain and gzipped files, and their errors."""

import gzip
import json
import re

import pytest

from jaxcpt import beir, lines
from jaxcpt.errors import UserError

COLUMNS = ("label", "text")


def refuse(text):
    return pytest.raises(UserError, match=re.escape(text))


def read(path):
    return list(lines.read_tsv(path, COLUMNS))


def test_quotes_are_characters_and_texts_may_be_empty(tmp_path):
    path = tmp_path / "all.tsv"
    path.write_text('label\ttext\n1\tsay "hi\n0\t\n1\t\u2028 \x85 stays\n', newline="\n")
    rows = [["1", 'say "hi'], ["0", ""], ["1", "\u2028 \x85 stays"]]
    assert read(path) == list(enumerate(rows, 2))


def test_gzip_reads_the_same(tmp_path):
    with gzip.open(tmp_path / "all.tsv.gz", "wt") as file:
        file.write("label\ttext\n1\ta")
    assert read(tmp_path / "all.tsv") == [(2, ["1", "a"])]
    with gzip.open(tmp_path / "all.tsv.gz", "wt") as file:
        file.write("label\ttext\n1")
    with refuse(f"{tmp_path / 'all.tsv.gz'}:2: expected 2 fields (label, text), found 1"):
        read(tmp_path / "all.tsv")


def test_refuses_what_is_missing_or_malformed(tmp_path):
    path = tmp_path / "all.tsv"
    with refuse(f"{path}: no such file, nor all.tsv.gz; expected tab-separated lines below the"):
        read(path)
    path.write_text("text\tlabel\n")
    with refuse(f"{path}:1: expected the header ['label', 'text'], found ['text', 'label']"):
        read(path)
    path.write_text("label\ttext\n1\ta\n1\ta\tb\n")
    with refuse(f"{path}:3: expected 2 fields (label, text), found 3"):
        read(path)
    path.write_bytes(b"label\ttext\n1\ta\xffb\n")
    with refuse(f"{path}:2: not UTF-8 at byte 14"):
        read(path)
    with refuse(f"{path}:7: label must be an integer, found 'yes'"):
        lines.parse_int("yes", path, 7, "label")
    for text in ("", "high", "nan", "-inf"):
        with refuse(f"{path}:7: score must be a number, found {text!r}"):
            lines.parse_float(text, path, 7, "score")


def test_refuses_a_broken_gzip(tmp_path):
    path = tmp_path / "all.tsv.gz"
    whole = gzip.compress(b"label\ttext\n" + b"1\tsome words\n" * 1000)
    path.write_bytes(whole[: len(whole) // 2])
    with refuse(f"{path}: broken gzip after line"):
        read(tmp_path / "all.tsv")
    path.write_bytes(b"not gzip at all")
    with refuse(f"{path}: broken gzip after line 0"):
        read(tmp_path / "all.tsv")


def test_refuses_json_that_does_not_fit(tmp_path):
    path = tmp_path / "corpus.jsonl"
    fields = {"_id": str}
    path.write_text('{"_id": "1"}\n{"_id": \n')
    with refuse(f"{path}:2: does not parse as JSON: "):
        list(lines.read_jsonl(path, fields))
    for line in ('{"_id": "a", "text": "\\ud800"}', "[" * 100_000, "1" * 5_000):
        path.write_text(line + "\n")
        with refuse(f"{path}:1: does not parse as JSON: "):
            list(lines.read_jsonl(path, fields))
    for line in ('{"id": "1"}', '{"_id": 1}'):
        path.write_text(line)
        with refuse(f"{path}:1: expected an object with a str '_id', found {line}"):
            list(lines.read_jsonl(path, fields))
    path.write_text("[]")
    with refuse(f"{path}:1: expected an object, found list"):
        list(lines.read_jsonl(path, fields))


def write_task(folder, corpus=("a", "b"), queries=("q",), qrels=(("q", "a", "1"),)):
    (folder / "qrels").mkdir(exist_ok=True)
    rows = [json.dumps({"_id": name, "title": "T", "text": f"of {name}"}) for name in corpus]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"_id": name, "text": name}) for name in queries]
    (folder / "queries.jsonl").write_text("\n".join(rows))
    lines = ["\t".join(row) for row in [beir.QRELS, *qrels]]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines))
    return folder


def test_beir_keeps_the_queries_of_its_split(tmp_path):
    task = beir.read_task(write_task(tmp_path, queries=("p", "q")), "test")
    assert task.queries == {"q": "q"}
    assert task.qrels == {"q": {"a": 1}}
    assert task.document_ids == ["a", "b"]
    assert list(beir.read_documents(tmp_path)) == [("a", "T of a"), ("b", "T of b")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "aba"}, "corpus.jsonl:3: the id 'a' occurred before; ids must be unique"),
        ({"queries": "qq"}, "queries.jsonl:2: the id 'q' occurred before; ids must be unique"),
        ({"corpus": ""}, "corpus.jsonl: empty; it needs at least one line"),
        ({"qrels": ["qz1"]}, "test.tsv: no relevant document is in corpus.jsonl; is it of another"),
        ({"qrels": [("q", "a", "1001")]}, "test.tsv:2: score 1001 is out of range"),
        ({"qrels": ["qa1", "za1"]}, "test.tsv:3: query 'z' is not in queries.jsonl"),
        ({"qrels": ["qax"]}, "test.tsv:2: score must be an integer, found 'x'"),
        ({"qrels": ["qa1", "qa0"]}, "test.tsv:3: query 'q' judges 'a' twice; keep one"),
        ({"qrels": ["qa0", "qb0"]}, "test.tsv: no document is relevant; a score above 0 marks one"),
        ({"qrels": []}, "test.tsv: the split is empty; it needs at least one judged document"),
    ],
)
def test_beir_refuses(tmp_path, changes, message):
    with refuse(message):
        beir.read_task(write_task(tmp_path, **changes), "test")


def test_beir_refuses_a_split_that_is_not_there(tmp_path):
    with refuse("dev.tsv: no such file, nor dev.tsv.gz; expected tab-separated lines below the "):
        beir.read_task(write_task(tmp_path), "dev")
