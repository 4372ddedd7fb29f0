"""Decontamination: evaluation texts are found in pairs, and texts that are only similar are not."""

import gzip
import json
import random

import numpy as np
import pytest
from conftest import DATA, needs_data

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcpt.errors import UserError
from jaxcpt.mining.decontaminate import Index, hash_ngrams, read_evaluations
from jaxcpt.mining.words import fold_words

WORDS = st.lists(st.text("aäz_1数", min_size=1, max_size=3), min_size=1, max_size=20)


@settings(max_examples=200)
@given(words=WORDS, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_hashes_are_equal_if_and_only_if_the_words_are_equal(words, lengths):
    runs = [tuple(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1)]
    hashes = hash_ngrams(words, lengths)
    assert len(hashes) == len(runs)
    assert len(set(hashes.tolist())) == len(set(runs))
    for run, value in zip(runs, hashes, strict=True):
        assert hash_ngrams(list(run), [len(run)])[0] == value
    assert not np.any(hashes & np.uint64(4095))


@pytest.fixture
def folder(tmp_path):
    """A folder of evaluation sets, with training text beside them."""
    made = tmp_path / "data"
    for name in ("linear_probe/mr", "retrieval/nq/qrels", "prose"):
        (made / name).mkdir(parents=True)
    long = " ".join(f"l{n}" for n in range(30))
    rows = f"0\t{long}\n1\tone two three four five six seven eight\n1\tjust a few words\n1\t\n"
    (made / "linear_probe/mr/all.tsv").write_text("label\ttext\n" + rows)
    (made / "retrieval/nq/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    record = {"_id": "d1", "title": 'A "title', "text": " ".join(f"r{n}" for n in range(20))}
    content = json.dumps(record).encode() + b"\n"
    (made / "retrieval/nq/corpus.jsonl.gz").write_bytes(gzip.compress(content))
    (made / "retrieval/nq/queries.jsonl").write_text('{"_id": "q1", "text": ""}\n')
    (made / "prose/a.jsonl").write_text(json.dumps({"text": "training text " * 9}) + "\n")
    return made


def test_evaluation_texts_are_read_from_the_known_folders(folder):
    texts = list(read_evaluations(str(folder)))
    assert [name for name, _ in texts] == ["linear_probe/mr"] * 3 + ["retrieval/nq"] * 2
    assert texts[3] == ("retrieval/nq", 'A "title')
    assert [name for name, _ in read_evaluations(str(folder / "prose"))] == ["."]


def test_only_judged_texts_are_read_from_a_set_with_qrels(folder):
    made = folder / "retrieval/nq"
    (made / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td2\t1\n")
    (made / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td3\t0\n")
    rows = {
        name: "".join(
            json.dumps({"_id": f"{name}{n}", "text": f"{name}{n}"}) + "\n" for n in range(5)
        )
        for name in "dq"
    }
    (made / "corpus.jsonl.gz").write_bytes(gzip.compress(rows["d"].encode()))
    (made / "queries.jsonl").write_text(rows["q"])
    (made / "more.jsonl").write_text(rows["q"])
    for below in (made, folder):  # The set's own folder gives the same.
        texts = [text for _, text in read_evaluations(str(below))]
        assert texts[-4:] == ["d1", "d3", "q1", "q3"]
    (made / "qrels/dev.tsv").write_text("q3\td3\t0\nq4\td4\t0\n")
    with pytest.raises(UserError, match=r"dev.tsv:1: expected the header \['query-id', "):
        list(read_evaluations(str(folder)))


def test_training_files_are_not_read(folder):
    for name in ("linear_probe/mr/train.tsv", "linear_probe/mr/train_sentences.tsv"):
        (folder / name).write_text("text\nto train on\n")
    for name in ("sts/sts12_train/OnWN.tsv", "sts/sts12/OnWN.tsv"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("text_a\ttext_b\nleft\tright\n")
    texts = list(read_evaluations(str(folder)))
    assert "to train on" not in {text for _, text in texts}
    assert texts[-2:] == [("sts/sts12", "left"), ("sts/sts12", "right")]
    # A training folder is read if the user names it. A folder with only training files is refused.
    assert len(list(read_evaluations(str(folder / "sts/sts12_train")))) == 2
    for path in (folder / "sts/sts12").iterdir():
        path.unlink()
    with pytest.raises(
        UserError, match=r"found no evaluation texts \(training text is not read\); expected"
    ):
        list(read_evaluations(str(folder / "sts")))


def test_only_the_test_questions_of_dpr_are_read(folder):
    made = folder / "dpr/retriever/qas"
    made.mkdir(parents=True)
    (made / "nq-test.csv").write_text('who won?\t[\'no one\']\n"a ""quoted"" one"\t[\'x\']\n')
    (made / "trivia-test.csv.gz").write_bytes(gzip.compress(b"what is it?\t['y']\n"))
    for name in ("nq-dev.csv", "nq-train.csv"):
        (made / name).write_text("who lost?\t['them']\n")
    (folder / "dpr/wikipedia_split").mkdir()
    (folder / "dpr/wikipedia_split/psgs_w100.tsv").write_text("id\ttext\ttitle\n1\tpassage\tP\n")
    questions = ["who won?", 'a "quoted" one', "what is it?"]
    found = [text for name, text in read_evaluations(str(folder)) if name.startswith("dpr/")]
    assert found == questions
    # The folder of DPR alone gives the same.
    assert [text for _, text in read_evaluations(str(folder / "dpr"))] == questions


def test_planted_evaluation_texts_are_found(folder, tmp_path):
    Index.build([str(folder)], 13).save(tmp_path / "index")
    index = Index.load(tmp_path / "index")

    def find(text):
        return index.find(fold_words(text))

    thirteen = " ".join(f"l{n}" for n in range(5, 18))
    assert find(f"Before it {thirteen.upper()}, and after.") == ("linear_probe/mr", thirteen)
    assert find(thirteen.removesuffix(" l17") + " and after") is None  # Twelve words are too few.
    assert find("r0 r1 r2 r3 r4 r5 r6 r7 r8 r9 r10 r11 r12")[0] == "retrieval/nq"
    # A text of fewer than thirteen words is found if the side contains all of it.
    eight = "one two three four five six seven eight"
    assert find(f"zero, {eight}; nine") == ("linear_probe/mr", eight)
    assert find(eight.removesuffix(" eight")) is None
    # A text of fewer than eight words is found only if it is the whole side.
    assert find("Just a few words!") == ("linear_probe/mr", "just a few words")
    assert find("there are just a few words here") is None
    assert find("training text " * 9) is None
    assert find("") is None


def test_very_long_texts_and_irregular_rows_are_read(tmp_path):
    long = " ".join(f"l{n}" for n in range(10**5))
    (tmp_path / "a.tsv").write_text(f"text\tlabel\r\n{long}\t1\tmore\r\nonly\r\n\tempty\n")
    (tmp_path / "b.jsonl").write_text('\n{"text": "one", "code": 3, "title": null}\n')
    assert [text for _, text in read_evaluations(str(tmp_path))] == [long, "only", "one"]


def test_queries_and_code_of_codesearchnet_are_read(tmp_path):
    folder, train = (
        tmp_path / f"code_search/codesearchnet/go/final/jsonl/{split}"
        for split in ("test", "train")
    )
    folder.mkdir(parents=True)
    train.mkdir()
    (train / "go_train_0.jsonl.gz").write_bytes(gzip.compress(b'{"docstring": "Trained on."}'))
    row = {"repo": "a/b", "path": "c.go", "code": "func F() {}", "code_tokens": ["func", "F"]}
    row |= {"docstring": "F does it all.", "docstring_tokens": ["F", "does"], "func_name": "F"}
    (folder / "go_test_0.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    texts = {text for _, text in read_evaluations(str(tmp_path))}
    assert texts == {"func F() {}", "F does it all."}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": \n',
            "a.jsonl:2: does not parse as JSON: Expecting value",
        ),
        ("a.jsonl", b'["a"]\n', "a.jsonl:1: expected an object, found list"),
        (
            "a.jsonl",
            b'{"text": "\xe9"}\n',
            "a.jsonl:1: not UTF-8 at byte 10 of the text; convert it",
        ),
        ("a.tsv", b"text\n\xe9\n", "a.tsv:2: not UTF-8 at byte 5 of the text; convert it"),
        ("a.tsv.gz", gzip.compress(b"text\na\n", mtime=0)[:-9], "a.tsv.gz: broken gzip after line"),
        ("a.tsv.gz", b"no gzip", "a.tsv.gz: broken gzip after line 0 (Not a gzipped file"),
    ],
)
def test_a_damaged_evaluation_set_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        Index.build([str(tmp_path)], 13)
    assert str(caught.value).startswith(f"--decontaminate: {tmp_path}/{told}")
    assert "\n" not in str(caught.value)


QRELS = "query-id\tcorpus-id\tscore\nq\t7\t1\n"
QUERY = b'{"_id": "q", "text": "who?"}\n'


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"corpus.jsonl": b'{"_id": 7, "text": "a"}\n'}, "corpus.jsonl:1: expected an object"),
        ({"corpus.jsonl": b'{"_id": [7], "text": "a"}\n'}, "corpus.jsonl:1: expected an object"),
        ({"corpus.jsonl": b'{"_id": null, "text": ""}\n'}, "corpus.jsonl:1: expected an object"),
        ({"corpus.jsonl": b'{"id": "7", "text": "a"}\n'}, "corpus.jsonl:1: expected an object"),
        ({"corpus.jsonl": b'{"_id": "8", "text": "a"}\n'},
         "corpus.jsonl: lacks 1 of 1 rows that the qrels name, such as '7'; add them, or remove"),
        ({"corpus.jsonl": b'{"_id": "7", "contents": "a"}\n'},
         "corpus.jsonl:1: found no text; expected a column or field whose name begins with text"),
        ({"corpus.jsonl": b'{"_id": "7", "text": 5}\n'}, "corpus.jsonl:1: found no text"),
        ({"corpus.jsonl": b'{"_id": "7", "text": ["a"]}\n'},
         "corpus.jsonl:1: 'text' must be a text, found list; make it one"),
        ({"corpus.jsonl": b"\xff\xfe{\0"}, "corpus.jsonl: is UTF-16; convert it with: iconv"),
        ({"corpus.jsonl": b"\xff{\0"}, "corpus.jsonl:1: not UTF-8"),
        ({}, "corpus.jsonl: no such file, nor corpus.jsonl.gz; expected the texts that the qrels"),
        ({"corpus.jsonl": b'{"_id": "7", "text": ""}', "queries.jsonl": b'{"_id": "", "text": ""}'},
         "queries.jsonl: lacks 1 of 1 rows that the qrels name, such as 'q'"),
    ],
)  # fmt: skip
def test_a_set_of_which_a_part_would_not_be_read_is_refused(tmp_path, files, told):
    made = tmp_path / "retrieval" / "s"
    (made / "qrels").mkdir(parents=True)
    (made / "qrels" / "test.tsv").write_text(QRELS)
    for name, content in ({"queries.jsonl": QUERY} | files).items():
        (made / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        Index.build([str(tmp_path)], 13)
    assert str(caught.value).startswith(f"--decontaminate: {made}/{told}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.tsv", b"label\tphrase\n1\tb\n", "a.tsv:1: found no text; expected a column"),
        ("a.tsv", b"5\tred cat\tblue sky\n", "a.tsv:1: found no text; expected a column"),
        ("a.jsonl", b'{"text": "b"}\n{"label": 1}\n', "a.jsonl:2: found no text; expected"),
        ("a.jsonl", b'{"text": {"en": "b"}}\n', "a.jsonl:1: 'text' must be a text, found dict"),
        ("a.csv", b"text\nb\n", "a.csv: cannot be read; convert it to .tsv or .jsonl"),
        ("a.parquet", b"PAR1", "a.parquet: cannot be read"),
        ("a.TSV", b"text\nb\n", "a.TSV: cannot be read"),
        ("a.jsonl.zst", b"(", "a.jsonl.zst: cannot be read"),
    ],
)
def test_a_file_that_would_not_be_read_is_refused(folder, name, content, told):
    (folder / "sts" / "s").mkdir(parents=True)
    (folder / "sts" / "s" / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_evaluations(str(folder)))
    assert str(caught.value).startswith(f"--decontaminate: {folder}/sts/s/{told}")


def test_sick_is_read_as_it_is_distributed(tmp_path):
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    for name in ("SICK_train.txt", "SICK_test_annotated.txt"):
        path = tmp_path / "sts" / "sick-r" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{header}1\ta of {name}\tb of {name}\t4.5\tNEUTRAL\n")
    texts = [text for _, text in read_evaluations(str(tmp_path))]
    assert texts == ["a of SICK_test_annotated.txt", "b of SICK_test_annotated.txt"]


def test_a_byte_order_mark_hides_no_column(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbftext\tlabel\nfirst\t1\n\nsecond\t0\n")
    assert [text for _, text in read_evaluations(str(tmp_path))] == ["first", "second"]


def test_invisible_characters_hide_no_evaluation_text(tmp_path):
    text = "the quick silver harbour ferry carried seventeen wooden crates of oranges"
    (tmp_path / "a.tsv").write_text(f"text\n{text}\n")
    index = Index.build([str(tmp_path)], 13)
    for hidden in ("\u00ad", "\u200b", "\u2060"):
        assert index.find(
            fold_words(text.replace("rr", f"r{hidden}r").replace("oo", f"o{hidden}o"))
        )
    (tmp_path / "a.tsv").write_text("text\n渔民们在码头上修补渔网、孩子们在一旁观看。\n")
    index = Index.build([str(tmp_path)], 13)
    assert index.find(fold_words("据说渔民们在码头上修补渔网、孩子们在一旁观看、然后回家。"))
    assert not index.find(fold_words("渔民们在码头上修补渔船、大人们在一旁观看。"))


@needs_data
def test_sentences_of_the_real_sets_are_found():
    index = Index.build([str(DATA / "sts"), str(DATA / "linear_probe" / "mr")], 13)
    rng = random.Random(0)
    texts = [fold_words(text) for _, text in read_evaluations(str(DATA / "sts" / "sts14"))]
    for words in rng.sample([words for words in texts if words], 300):
        planted = ["so", "it", "was", "said", *words, "and", "that", "was", "all"]
        assert index.find(planted if len(words) >= 8 else words)
        assert index.find([word + "x" for word in planted]) is None


def test_missing_folders_and_short_ngrams_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"--decontaminate .*nowhere: no such folder"):
        Index.build([str(tmp_path / "nowhere")], 13)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty: found no evaluation texts"):
        Index.build([str(empty)], 13)
    with pytest.raises(UserError, match=r"--ngram-words 7: expected 8 or more"):
        Index.build([str(folder)], 7)
