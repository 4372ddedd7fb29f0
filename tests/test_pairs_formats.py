"""Every format of a data source gives the same pairs by index, and its errors are one line."""

import argparse
import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from jaxcpt.config import (
    ArrayRecordPairs,
    BeirPairs,
    DatasetsPairs,
    JsonlPairs,
    ParquetPairs,
    PythonPackages,
    TfdsPairs,
    TokenizedPairs,
)
from jaxcpt.errors import UserError
from jaxcpt.pair import Pair
from jaxcpt.pairs import find_source, name_source, open_source
from jaxcpt.pairs.command import add_source_options, name_sources

pyarrow = pytest.importorskip("pyarrow", reason="needs pip install 'jaxcpt[sources]'")
parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets", reason="needs pip install 'jaxcpt[sources]'")

ROWS = [
    {
        "x": f"query {i} é",
        "y": f"document {i}\n" * (i % 4),
        "negatives": [f"other {i} {n}" for n in range(i % 3)],
        "source": f"place {i}",
    }
    for i in range(70)
]
PAIRS = [Pair(r["x"], r["y"], r["source"], tuple(r["negatives"])) for r in ROWS]


def refuse(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def open_it(source):
    return open_source(source, Path("nowhere"), 0)


def write_jsonl(folder, rows):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return JsonlPairs(str(path))


def write_jsonl_gz(folder, rows):
    path = folder / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(Path(write_jsonl(folder, rows).path).read_bytes()))
    return JsonlPairs(str(path))


def write_tfds(folder, rows):
    text = tfds.features.Text()
    features = dict.fromkeys(rows[0], text)
    if "negatives" in features:
        features["negatives"] = tfds.features.Sequence(text)

    # Not registered, so that only its files are found by name, as in another process.
    class Mine(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, description="", features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": enumerate(rows)}

        def _generate_examples(self):
            raise AssertionError("the generators are given above")

    builder = Mine(data_dir=folder / "tfds", file_format="array_record")
    builder.download_and_prepare()
    return TfdsPairs(str(builder.data_dir))


def write_tfds_by_name(folder, rows):
    write_tfds(folder, rows)
    return TfdsPairs(name="mine", data_dir=str(folder / "tfds"))


def write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_array_record_json(folder, rows):
    records = [json.dumps(row).encode() for row in rows]
    write_records(folder / "a.array_record", records[:30])
    write_records(folder / "b.array_record", records[30:])
    return ArrayRecordPairs(str(folder))


def to_example(row):
    example = tf_example_pb2.Example()
    for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        example.features.feature[name].bytes_list.value.extend(v.encode() for v in values)
    return example.SerializeToString()


def write_array_record_examples(folder, rows):
    write_records(folder / "only.array_record", map(to_example, rows))
    return ArrayRecordPairs(str(folder / "only.array_record"))


def write_parquet(folder, rows):
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table[:50], folder / "0.parquet", row_group_size=7)
    parquet.write_table(table[50:], folder / "1.parquet")
    return ParquetPairs(str(folder))


def write_saved_dataset(folder, rows):
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved", num_shards=min(3, len(rows)))
    return DatasetsPairs(str(folder / "saved"))


def write_saved_dict(folder, rows):
    both = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:9])}
    datasets.DatasetDict(both).save_to_disk(folder / "saved")
    return DatasetsPairs(str(folder / "saved"), split="train")


WRITERS = [
    write_jsonl,
    write_jsonl_gz,
    write_tfds,
    write_tfds_by_name,
    write_array_record_json,
    write_array_record_examples,
    write_parquet,
    write_saved_dataset,
    write_saved_dict,
]
each_format = pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__[6:])


@each_format
def test_reads_what_was_written_in_any_order(write, tmp_path):
    pairs = open_it(write(tmp_path, ROWS))
    assert len(pairs) == 70
    whole = pairs.read(range(70))
    if "tfds" in write.__name__:  # tensorflow-datasets shuffles
        assert sorted(whole, key=lambda p: p.x) == sorted(PAIRS, key=lambda p: p.x)
    else:
        assert whole == PAIRS
    some = [69, 0, 31, 31, 5]
    assert pairs.read(some) == [whole[index] for index in some]
    assert pairs.read([]) == []


@each_format
def test_the_kind_of_source_is_found_by_its_path(write, tmp_path):
    source = write(tmp_path, ROWS)
    if not getattr(source, "name", ""):
        assert find_source(name_source(source)) == source


@each_format
def test_columns_of_other_names_without_negatives(write, tmp_path):
    rows = [{"question": row["x"], "code": row["y"], "more": "z"} for row in ROWS]
    source = write(tmp_path, rows)
    pairs = open_it(replace(source, x="question", y="code"))
    (pair,) = pairs.read([17])
    assert {(p.x, p.y) for p in PAIRS} >= {(pair.x, pair.y)}
    assert pair.negatives == ()

    def read(**names):
        open_it(replace(source, **names)).read([0])

    if not isinstance(source, JsonlPairs):
        assert "no column 'x'; there are: code, more, question" in refuse(read)
        names = {"x": "question", "y": "code", "negatives": "hard"}
        assert "no column 'hard'; there are: code" in refuse(lambda: read(**names))


@each_format
def test_prefixes_stand_before_every_text(write, tmp_path):
    source = write(tmp_path, ROWS)
    plain = open_it(source).read(range(70))
    told = open_it(replace(source, x_prefix="query: ", y_prefix="passage: ")).read(range(70))
    for pair, prefixed in zip(plain, told, strict=True):
        negatives = tuple(f"passage: {negative}" for negative in pair.negatives)
        expected = Pair(f"query: {pair.x}", f"passage: {pair.y}", pair.source, negatives)
        assert prefixed == expected


@pytest.mark.parametrize("rows", [[{"x": "a", "y": None}], [{"x": 3, "y": "b"}]])
@pytest.mark.parametrize("write", [write_array_record_json, write_parquet, write_saved_dataset])
def test_refuses_what_is_no_text(write, rows, tmp_path):
    source = write(tmp_path, [{"x": "a", "y": "b"}, *rows] if rows[0]["x"] == "a" else rows)
    said = refuse(lambda: open_it(source).read([0, 1] if rows[0]["x"] == "a" else [0]))
    assert f"{name_source(source)}: row " in said
    assert "must be text, found " in said


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ParquetPairs("nothing"), "nothing: no such file, nor a folder with *.parquet files in it"),
        (ArrayRecordPairs("nothing"), "nothing: no such file, nor a folder with *.array_record*"),
        (DatasetsPairs("nothing"), "nothing: not a dataset that save_to_disk wrote: "),
        (
            TfdsPairs(name="mine", data_dir="nothing"),
            "mine: Dataset mine not found; prepare it in",
        ),
        (TokenizedPairs("nothing"), "nothing: holds only token ids; name the source of the texts"),
        (BeirPairs("nothing"), "nothing: no such folder; expected one with corpus.jsonl,"),
        (JsonlPairs("nothing"), "nothing: no such file"),
    ],
)
def test_refuses_what_is_not_there(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refuse(open_it, source).startswith(message)


def test_refuses_damage(tmp_path):
    for name in ("a.parquet", "a.array_record", "a.jsonl.gz"):
        path = tmp_path / name
        path.write_bytes(b"this is nothing of the kind" * 10)
        said = refuse(lambda path=path: open_it(find_source(str(path))).read([0]))
        assert said.startswith(str(path))
    write_records(tmp_path / "b.array_record", [b"\xff\xfe"])
    said = refuse(lambda: open_it(ArrayRecordPairs(f"{tmp_path}/b.array_record")).read([0]))
    assert said.endswith("record 0: neither a tf.train.Example nor a JSON object")
    said = refuse(find_source, str(tmp_path / "none"))
    assert said == f"{tmp_path}/none: no such file or folder"
    (tmp_path / "empty").mkdir()
    said = refuse(find_source, str(tmp_path / "empty"))
    assert said.startswith(f"{tmp_path}/empty: no pairs; expected .jsonl, .parquet")


def test_refuses_splits_that_are_not_there(tmp_path):
    source = write_saved_dict(tmp_path, ROWS)
    said = refuse(open_it, replace(source, split=""))
    assert said.endswith("has no split '', only train, test")
    single = write_saved_dataset(tmp_path / "single", ROWS)
    said = refuse(open_it, replace(single, split="train"))
    assert said.endswith("a single dataset, without a split 'train'")


def test_refuses_a_split_that_would_be_ignored(tmp_path):
    parser = argparse.ArgumentParser()
    add_source_options(parser)
    plain = name_source(write_parquet(tmp_path, ROWS))
    single = name_source(write_saved_dataset(tmp_path / "single", ROWS))
    many = name_source(write_saved_dict(tmp_path, ROWS))

    def name(*arguments):
        return name_sources(parser.parse_args(arguments))[0]

    assert [source.path for source in name("--pairs", plain)] == [plain]
    assert name("--pairs", many)[0].split == "train"
    assert name("--pairs", many, plain, "--split", "test")[0].split == "test"
    said = refuse(name, "--pairs", plain, single, "--split", "test")
    assert said == "--split test: none of the --pairs have splits; remove the option"
    said = refuse(name, "--experiment", "any.py", "--split", "test")
    assert said.startswith("--split: works only with --pairs; an experiment names its own splits")


@pytest.mark.parametrize("library", ["pyarrow", "datasets"])
def test_says_what_to_install(library, tmp_path, monkeypatch):
    source = (write_parquet if library == "pyarrow" else write_saved_dataset)(tmp_path, ROWS)
    monkeypatch.setitem(sys.modules, library, None)
    assert refuse(open_it, source).endswith("needs pip install 'jaxcpt[sources]'")


def test_parquet_decodes_only_the_row_groups_asked_for_and_keeps_few(tmp_path, monkeypatch):
    from jaxcpt.pairs import columns

    pairs = open_it(write_parquet(tmp_path, ROWS))
    pairs.read([0, 6])
    assert list(pairs.cache) == [0]
    pairs.read([69, 7, 1])
    assert set(pairs.cache) == {0, 1, 8}
    monkeypatch.setattr(columns, "CACHE_BYTES", 1)
    assert pairs.read([20, 40]) == [PAIRS[20], PAIRS[40]]
    assert len(pairs.cache) == 1


JUDGED = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td3\t2\nq2\td1\t1\n"


def write_beir(folder, qrels=JUDGED, hard=None):
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{n}", "title": f"T{n}" * (n % 2), "text": f"text {n}"} for n in range(6)]
    content = "".join(json.dumps(row) + "\n" for row in corpus).encode()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(content))
    queries = [{"_id": f"q{n}", "text": f"query {n}"} for n in range(3)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "train.tsv").write_text(qrels)
    if hard is not None:
        (folder / "hard.tsv").write_text(hard)
    return BeirPairs(str(folder), negatives="" if hard is None else "hard.tsv")


def test_search_tasks_are_pairs_with_judged_and_listed_negatives(tmp_path):
    source = write_beir(tmp_path / "task")
    pairs = open_it(source)
    assert pairs.read(range(len(pairs))) == [
        Pair("query 1", "T1 text 1", "task/d1", ("text 2",)),
        Pair("query 2", "T3 text 3", "task/d3"),
        Pair("query 2", "T1 text 1", "task/d1"),
    ]
    assert find_source(source.directory) == source
    # A listed document that the qrels call relevant is not a negative.
    listed = "query-id\tcorpus-id\tscore\nq2\td1\t9.5\nq2\td5\t9\nq2\td4\t8\nq1\td4\t0\n"
    hard = open_it(write_beir(tmp_path / "hard", hard=listed)).read([0, 1])
    assert [pair.negatives for pair in hard] == [("text 4", "text 2"), ("T5 text 5", "text 4")]


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("", "train: no"),
        (
            "q1\td1\t1\n",
            "train.tsv:1: expected the header ['query-id', 'corpus-id', 'score'], found ['q",
        ),
        (
            JUDGED + "q1\td1\n",
            "train.tsv:6: expected 3 fields (query-id, corpus-id, score), found 2",
        ),
        (JUDGED + "q1\td1\tyes\n", "train.tsv:6: score must be a number, found 'yes'"),
        (JUDGED + "q1\td9\t1\n", "corpus.jsonl.gz: lacks 'd9', which the judgements name"),
        (JUDGED + "q9\td1\t1\n", "queries.jsonl: lacks 'q9', which the judgements name"),
    ],
)
def test_refuses_a_broken_search_task(qrels, message, tmp_path):
    source = write_beir(tmp_path / "task", qrels)
    if not qrels:
        assert len(open_it(source)) == 0
    else:
        assert message in refuse(open_it, source)


def test_the_sources_of_a_run_without_a_path_have_a_name():
    assert name_source(PythonPackages()) == "installed packages"
    assert name_source(TfdsPairs(name="mine")) == "mine"
