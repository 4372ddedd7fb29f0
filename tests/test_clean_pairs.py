"""`jaxcpt clean-pairs` reads pairs from every format, deduplicates and decontaminates them."""

import gzip
import json

import pytest
from conftest import DATA, needs_data

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

import pyarrow
import pyarrow.parquet
import tensorflow_datasets as tfds

from jaxcpt.clean_pairs import take_pair
from jaxcpt.errors import UserError
from jaxcpt.mining.documents import Reading
from jaxcpt.mining.inputs import Mining
from jaxcpt.mining.pipeline import mine

READING = Reading(text_field="question", y_field="answer")


def make_rows(first, last):
    words = [" ".join(f"{side}{n}w{at}" for at in range(20)) for n in range(100) for side in "qa"]
    return [{"question": words[2 * n], "answer": words[2 * n + 1]} for n in range(first, last)]


def clean(inputs, output, reading=READING, **changes):
    """Returns (data card, set of pairs). `output` must not exist."""
    mining = Mining(
        inputs=tuple(map(str, inputs)), name="cleaned", **{"heldout_share": 0.0} | changes
    )
    card = mine(mining, reading, take_pair, output)
    rows = tfds.builder_from_directory(output).as_data_source("train")
    return card, {(row["x"].decode(), row["y"].decode()) for row in rows}


def write_lines(path, rows):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_pairs_are_read_from_all_formats(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "a.jsonl", make_rows(0, 10))
    write_lines(folder / "b.jsonl.gz", make_rows(10, 20))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(make_rows(20, 30)), folder / "c.parquet")
    (folder / "README.txt").write_text("No pairs here.")
    _, pairs = clean([folder], tmp_path / "out")
    assert pairs == {(row["question"], row["answer"]) for row in make_rows(0, 30)}
    # The output is a valid input too, and gives the same pairs.
    again = Reading(text_field="x", y_field="y")
    assert clean([f"tfds:{tmp_path / 'out'}"], tmp_path / "again", again)[1] == pairs


@pytest.mark.parametrize("form", ["jsonl", "parquet", "tfds"])
def test_a_records_own_source_is_kept_and_decides_its_split(tmp_path, form):
    rows = make_rows(0, 40)
    rows = [row | {"source": f"in/r{n % 8}/a{n}.py"} for n, row in enumerate(rows)]
    reading = READING
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    else:
        write_lines(tmp_path / "a.jsonl", rows)
    given = next(tmp_path.iterdir())
    if form == "tfds":
        clean([given], tmp_path / "first")
        given, reading = f"tfds:{tmp_path / 'first'}", Reading(text_field="x", y_field="y")
    clean([given], tmp_path / "out", reading, split_by="repository", heldout_share=0.4)
    train, heldout = (source_of(tmp_path / "out", split) for split in ("train", "heldout"))
    assert train | heldout == {row["source"] for row in rows}
    assert len({name.split("/")[1] for name in train}) > 1
    assert not {name.split("/")[1] for name in train} & {name.split("/")[1] for name in heldout}


def source_of(folder, split):
    rows = tfds.builder_from_directory(folder).as_data_source(split)
    return {row["source"].decode() for row in rows}


def test_duplicate_and_contaminated_pairs_are_dropped(tmp_path):
    rows = make_rows(0, 10)
    near = {
        "question": rows[1]["question"].replace("q1w0 ", "first "),
        "answer": rows[1]["answer"].replace(" a1w19", " last"),
    }
    same_answer = {"question": "another one", "answer": rows[2]["answer"].upper()}
    bad = [{"question": "no answer"}, {"question": "blank", "answer": " "}]
    write_lines(tmp_path / "a.jsonl", [*rows, near, same_answer, *bad])
    (tmp_path / "sts").mkdir()
    found = " ".join(rows[3]["question"].split()[2:17])
    (tmp_path / "sts" / "test.tsv").write_text(f"text\n{found}\n")
    inputs = [tmp_path / "a.jsonl"]
    card, pairs = clean(
        inputs, tmp_path / "out", decontaminate=(str(tmp_path / "sts"),), max_bad_share=0.5
    )
    assert card["dropped"] == {"exact duplicate": 1, "near duplicate": 1}
    assert card["counts"]["contaminated: ."] == 1
    assert card["counts"]["problem: record without text under 'answer'"] == 2
    assert len(pairs) == 9
    assert not [pair for pair in pairs if found in pair[0]]


def test_inputs_without_pairs_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("Some text.")
    with pytest.raises(UserError, match=r"no pairs found \(.*document that is no pair 1"):
        clean([tmp_path / "a.txt"], tmp_path / "out")
    write_lines(tmp_path / "b.jsonl", make_rows(0, 3))
    told = r"3 of 3 files or records are bad \(record without text under 'x' 3\)"
    with pytest.raises(UserError, match=told):
        clean([tmp_path / "b.jsonl"], tmp_path / "out", Reading(text_field="x", y_field="y"))
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"1 of 1 files or records are bad"):
        clean([tmp_path / "c.parquet"], tmp_path / "out")


@needs_data
def test_functions_of_a_search_corpus_that_are_not_judged_are_kept(tmp_path):
    """Only the judged functions of the corpus are evaluation texts."""
    reading = Reading(text_field="text", y_field="code")
    path = DATA / "code_pairs" / "cosqa_functions.jsonl"
    card, _ = clean([path], tmp_path / "out", reading, decontaminate=(str(DATA / "code_search"),))
    assert 0 < card["counts"]["contaminated: cosqa"] < 100
