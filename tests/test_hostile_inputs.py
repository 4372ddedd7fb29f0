"""Files of other systems and damaged files are read correctly, or refused in one line.

The fuzzes of tools/torture_inputs.py run here with few cases; tools/torture.py runs thousands.
"""

import gzip
import json
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torture_inputs
from array_record.python.array_record_module import ArrayRecordWriter
from conftest import PAIRS, make_experiment
from hypothesis import example, given
from hypothesis import strategies as st
from test_pairs_formats import (
    ROWS,
    open_it,
    refuse,
    write_array_record_json,
    write_beir,
    write_jsonl,
    write_parquet,
    write_records,
    write_saved_dataset,
    write_tfds,
)

from jaxcpt import lines
from jaxcpt.batches import Batches
from jaxcpt.checks import validate
from jaxcpt.config import (
    ArrayRecordPairs,
    DatasetsPairs,
    JsonlPairs,
    Mesh,
    ParquetPairs,
    TfdsPairs,
    TokenizedPairs,
)
from jaxcpt.documents import read_documents
from jaxcpt.errors import UserError
from jaxcpt.experiments import apply_overrides, from_json, to_json
from jaxcpt.pair import Pair
from jaxcpt.pairs import PairList, TokenizedReader, find_source
from jaxcpt.pairs.records import parse_record
from jaxcpt.pairs.rows import check_columns, make_pair
from jaxcpt.pairs.tokenized import write_about
from jaxcpt.sharding import make_mesh
from jaxcpt.tokenize_pairs import write_tokens
from jaxcpt.tokenizer import Tokenizer, read_model, read_tokenizer, train_tokenizer

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")


@pytest.mark.parametrize("name", torture_inputs.FUZZES)
def test_fuzz(name):
    assert torture_inputs.FUZZES[name](seed=1, count=40) == []


# Hard negatives must be a list of texts.


def write_array_record_rows(folder, rows):
    write_records(folder / "a.array_record", [json.dumps(row).encode() for row in rows])
    return ArrayRecordPairs(str(folder / "a.array_record"))


any_format = pytest.mark.parametrize(
    "write", [write_jsonl, write_array_record_rows, write_parquet, write_saved_dataset]
)


@any_format
@pytest.mark.parametrize(
    ("negatives", "found"),
    [
        ({"bm25": ["wrong"], "dense": ["worse"]}, "dict"),
        (7, "int"),
        ([["wrong"]], "a list with list"),
        ([3], "a list with int"),
        ([None], "a list with NoneType"),
    ],
)
def test_negatives_are_a_list_of_texts(write, negatives, found, tmp_path):
    source = write(tmp_path, [{"x": "q", "y": "a", "negatives": negatives}])
    said = refuse(lambda: open_it(source).read([0]))
    assert said.endswith(f"'negatives' must be a list of texts, found {found}")


@any_format
def test_null_negatives_are_none(write, tmp_path):
    rows = [{"x": "q", "y": "a", "negatives": None}, {"x": "q", "y": "a", "negatives": ["n"]}]
    pairs = open_it(write(tmp_path, rows))
    assert [pair.negatives for pair in pairs.read([0, 1])] == [(), ("n",)]
    assert pairs.has_negatives()


def test_a_text_column_of_negatives_is_one_negative(tmp_path):
    pairs = open_it(write_parquet(tmp_path, [{"x": "q", "y": "a", "negatives": "n"}]))
    assert pairs.read([0])[0].negatives == ("n",)


def test_a_named_column_of_negatives_must_exist(tmp_path):
    rows = [{"x": "q", "y": "a"}, {"x": "q", "y": "a", "hard": ["n"]}]
    source = replace(write_jsonl(tmp_path, rows), negatives="hard")
    assert [pair.negatives for pair in open_it(source).read([0, 1])] == [(), ("n",)]
    said = refuse(open_it, replace(source, negatives="hards"))
    assert said == f"{source.path}: no line has 'hards'; the first line has: x, y"


def test_a_record_without_negatives_need_not_have_their_column(tmp_path):
    rows = [{"x": "q", "y": "a"}, {"x": "q", "y": "a", "hard": ["n"]}]
    source = replace(write_array_record_rows(tmp_path, rows), negatives="hard")
    assert [pair.negatives for pair in open_it(source).read([0, 1])] == [(), ("n",)]
    said = refuse(open_it, replace(source, negatives="hards"))
    assert said == f"{source.path}: record 0: no column 'hards'; there are: x, y"


def test_negatives_that_no_pair_has_are_refused(tokenizer):
    def make(pairs, negatives):
        experiment = make_experiment(batching__negatives=negatives)
        return Batches(experiment, [PairList(pairs)], tokenizer, make_mesh(Mesh()))

    bare = [replace(pair, negatives=()) for pair in PAIRS]
    assert refuse(make, bare, 2) == (
        "batching.negatives: 2, but the pairs of data.train have no hard negatives; set it to 0, "
        "or name their column with negatives="
    )
    make(bare, 0)
    make([*bare, PAIRS[0], replace(PAIRS[1], negatives=("n",))], 2)


@any_format
def test_whether_a_source_has_negatives(write, tmp_path):
    plain = [{"x": "q", "y": "a", "negatives": []}] * 9
    for place, rows in enumerate((plain, [*plain, {"x": "q", "y": "a", "negatives": ["n"]}])):
        (tmp_path / str(place)).mkdir()
        assert open_it(write(tmp_path / str(place), rows)).has_negatives() == bool(place)


# Labels: the optional column `source` never stops the reading.


@any_format
@pytest.mark.parametrize(
    ("label", "shown"), [(3, "3"), (0.5, "0.5"), ("place", "place"), ("", ""), (True, None)]
)
def test_labels(write, label, shown, tmp_path):
    source = write(tmp_path, [{"x": "q", "y": "a", "source": label}])
    path = source.directory if isinstance(source, DatasetsPairs) else source.path
    default = "pairs.jsonl:1" if isinstance(source, JsonlPairs) else path
    assert open_it(source).read([0])[0].source == (default if shown is None else shown)


@any_format
def test_labels_may_be_absent_or_objects(write, tmp_path):
    rows = [{"x": "q", "y": "a", "source": None}, {"x": "q", "y": "a", "source": {"file": "f"}}]
    for pair in open_it(write(tmp_path, rows)).read([0, 1]):
        assert pair.source.startswith((str(tmp_path), "pairs.jsonl:"))


@pytest.mark.parametrize("label", ["1" + "0" * 400, "NaN", "1e999", "-Infinity"])
def test_labels_of_numbers_without_bounds(label, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"x": "q", "y": "a", "source": {label}}}')
    (pair,) = open_it(JsonlPairs(str(path))).read([0])
    assert pair.source == (label if label[0] == "1" and "e" not in label else "a.jsonl:1")


# Parquet and Hugging Face datasets.


def write_table(path, negatives):
    columns = {"x": ["q"] * 9, "y": ["a"] * 9} | ({"negatives": [["n"]] * 9} if negatives else {})
    parquet.write_table(pyarrow.table(columns), path)


@pytest.mark.parametrize("first", [True, False])
def test_each_parquet_file_has_its_own_columns(first, tmp_path):
    write_table(tmp_path / "a.parquet", first)
    write_table(tmp_path / "b.parquet", not first)
    pairs = open_it(ParquetPairs(str(tmp_path)))
    have = [bool(pair.negatives) for pair in pairs.read(range(18))]
    assert have == [first] * 9 + [not first] * 9
    # A column that the user names must be in every file.
    said = refuse(open_it, ParquetPairs(str(tmp_path), negatives="hard"))
    assert "no column 'hard'; there are: " in said


def test_a_flipped_bit_in_a_parquet_page_is_noticed(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"x": ["some words"] * 99, "y": [f"text {n}" for n in range(99)]})
    parquet.write_table(table, path, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(b"text 50")] ^= 1
    path.write_bytes(content)
    said = refuse(lambda: open_it(ParquetPairs(str(path))).read([0]))
    assert said.startswith(f"{path}: damaged Parquet: ")
    assert "CRC" in said


def test_texts_of_parquet_that_are_not_utf8_are_refused(tmp_path):
    text = pyarrow.array([b"caf\xe9"]).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"x": text, "y": text}), tmp_path / "a.parquet")
    assert "UTF8" in refuse(lambda: open_it(ParquetPairs(str(tmp_path))).read([0]))


def test_a_column_that_comes_twice_is_refused(tmp_path):
    text = pyarrow.array(["a"])
    twice = pyarrow.table([text, text, text], names=["x", "y", "y"])
    parquet.write_table(twice, tmp_path / "a.parquet")
    said = refuse(open_it, ParquetPairs(str(tmp_path)))
    assert said.endswith("has the column 'y' twice; rename one")


@pytest.mark.parametrize(
    ("kind", "columns"),
    [("pandas", None), ("arrow", None), ("numpy", ["x"]), ("numpy", ["other"]), (None, ["x", "y"])],
)
def test_a_saved_format_does_not_change_the_rows(kind, columns, tmp_path):
    rows = {"x": ["q"] * 3, "y": ["a"] * 3, "neg": [["n"]] * 3, "other": [1] * 3}
    saved = datasets.Dataset.from_dict(rows).with_format(kind, columns=columns)
    saved.save_to_disk(tmp_path / "saved")
    pairs = open_it(DatasetsPairs(str(tmp_path / "saved"), negatives="neg"))
    assert pairs.read([2]) == [Pair("q", "a", str(tmp_path / "saved"), ("n",))]


# tensorflow-datasets and ArrayRecord.


def test_a_damaged_dataset_is_refused(tmp_path):
    source = write_tfds(tmp_path, ROWS)
    folder = tmp_path / "tfds" / "mine" / "1.0.0"
    (records,) = folder.glob("*.array_record*")
    whole = records.read_bytes()
    records.write_bytes(whole[:300])
    assert refuse(lambda: open_it(source).read([0])).startswith(f"{folder}: damaged ")
    records.write_bytes(whole)
    for content in ("{", "[]", '{"splits": 3}', "[" * 10_000):
        (folder / "dataset_info.json").write_text(content)
        assert refuse(open_it, source).startswith(f"{folder}: ")


def test_the_folder_above_a_dataset_is_explained(tmp_path):
    write_tfds(tmp_path, ROWS)
    for folder in (tmp_path / "tfds" / "mine", tmp_path / "tfds"):
        assert refuse(open_it, TfdsPairs(str(folder))) == (
            f"{folder}: no tensorflow-datasets directory; did you mean {tmp_path}/tfds/mine/1.0.0?"
        )


@pytest.mark.parametrize("name", ["huggingface:squad", "a b", "mine:1", "x/y/z", "²", "a:b:c"])
def test_names_of_datasets_that_cannot_be(name, tmp_path):
    said = refuse(open_it, TfdsPairs(name=name, data_dir=str(tmp_path)))
    assert said.startswith(f"{name}: ")


@given(st.binary(max_size=60))
@example(b"{" + b'"x":[' * 50_000)
@example(b'{"x": "\\ud800", "y": ""}')
@example(b'{"x": "\xff"}')
def test_any_record_is_a_pair_or_is_refused(record):
    try:
        row = parse_record(record, "here")
        check_columns(row, ArrayRecordPairs("here"), "here")
        make_pair(row, ArrayRecordPairs("here"), "here", "there")
    except UserError as error:
        told = str(error)
        assert told.startswith("here: ")


# JSONL and other lines.


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"x": "a", "y": "b", "text": "c"}\n' * 2)
    pairs = open_it(JsonlPairs(str(path)))
    assert [pair.x for pair in pairs.read([0, 1, 0])] == ["a", "a", "a"]
    assert [text for _, text in read_documents(path, "y")] == ["c", "c"]
    zipped = tmp_path / "b.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert open_it(JsonlPairs(str(zipped))).read([0]) == [Pair("a", "b", "b.jsonl.gz:1")]
    table = tmp_path / "a.tsv"
    table.write_bytes(b"\xef\xbb\xbflabel\ttext\n1\ta\n")
    assert list(lines.read_tsv(table, ("label", "text"))) == [(2, ["1", "a"])]


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.Jsonl.GZ", "a.PARQUET"])
def test_capital_letters_in_names(name, tmp_path):
    path = tmp_path / name
    if name.endswith("PARQUET"):
        write_table(path, False)
    else:
        content = b'{"x": "q", "y": "a"}\n' * 9
        path.write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    assert len(open_it(find_source(str(path)))) == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x28\xb5\x2f\xfd\x04\x00", "is Zstandard; convert it with: zstd -d a.jsonl.zst"),
        (b"BZh91AY&SY", "is bzip2; convert it with: bunzip2 a.jsonl.zst"),
        (b"\xfd7zXZ\x00\x00", "is xz; convert it with: unxz a.jsonl.zst"),
        (b"PK\x03\x04\x14\x00", "is a zip archive; convert it with: unzip a.jsonl.zst"),
        (gzip.compress(b"", mtime=0), "is gzip; give it a name that ends in .gz"),
    ],
)
def test_other_compressions_are_named(content, message, tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(content)
    assert refuse(open_it, find_source(str(path))) == f"{path}: {message}"


def test_an_endless_line_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(b'{"x": "a", "y": "b"}\n{"x": "')
        for _ in range(300):
            file.write(b"a" * (1 << 20))
    tracemalloc.start()
    said = refuse(open_it, JsonlPairs(str(path)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said == (
        f"{path}:2: longer than 16,777,216 bytes; cut it, or end each line with a line feed"
    )
    assert peak < 100 << 20


def test_underscores_are_no_digits(tmp_path):
    for parse, kind in ((lines.parse_int, "an integer"), (lines.parse_float, "a number")):
        said = refuse(parse, "1_0", tmp_path / "a", 3, "score")
        assert said == f"{tmp_path}/a:3: score must be {kind}, found '1_0'"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\td1\tnan", "train.tsv:6: score must be a number, found 'nan'"),
        ("q1\td1\t1e999", "train.tsv:6: score must be a number, found '1e999'"),
        ("q1é\td1\t1", "train.tsv:6: not UTF-8 at byte"),
    ],
)
def test_judgements_that_cannot_be(line, message, tmp_path):
    source = write_beir(tmp_path / "task")
    path = tmp_path / "task" / "qrels" / "train.tsv"
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    assert message in refuse(open_it, source)
    path.write_text(path.read_text("latin-1"), "utf-16")
    assert "train.tsv: is UTF-16; convert it with: iconv" in refuse(open_it, source)


def test_the_title_of_a_document_is_text(tmp_path):
    source = write_beir(tmp_path / "task")
    (tmp_path / "task" / "corpus.jsonl.gz").unlink()
    row = {"_id": "d1", "title": ["T"], "text": "text"}
    (tmp_path / "task" / "corpus.jsonl").write_text(json.dumps(row))
    assert refuse(open_it, source).endswith("corpus.jsonl:1: 'title' must be text, found list")


def test_ids_of_texts_to_embed(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"_id": None, "id": "a"}, {"id": None}, {"_id": 7}, {"source": {"file": "f"}}]
    rows += [{"source": "s"}, {"_id": "a", "id": "b"}]
    path.write_text("".join(json.dumps(row | {"text": None, "y": "t"}) + "\n" for row in rows))
    assert [name for name, _ in read_documents(path, "y")] == ["a", "2", "7", "4", "s", "a"]


# Token ids.


@pytest.fixture
def tokens(tmp_path, tokenizer):
    folder = tmp_path / "tokens"
    folder.mkdir()
    write_about(folder, write_tokens([PairList(PAIRS)], tokenizer, folder, 1, 40, ("query: ", "")))
    return folder


def test_token_ids_know_their_negatives_and_prefixes(tokens, tokenizer):
    reader = TokenizedReader(TokenizedPairs(str(tokens), x_prefix="query: "))
    reader.check(tokenizer, 1)
    assert reader.has_negatives()
    assert refuse(reader.check, tokenizer, 2) == (
        f"batching.negatives: 2, but {tokens} holds at most 1 of each pair; lower it, or tokenize "
        "the pairs again with --negatives 2"
    )
    plain = TokenizedReader(TokenizedPairs(str(tokens)))
    assert refuse(plain.check, tokenizer, 0) == (
        f"{tokens}: made with x_prefix='query: ', but the experiment says ''; change the "
        "experiment, or tokenize the pairs again"
    )


def test_records_in_another_order_or_of_another_folder_are_noticed(tokens, tokenizer):
    reader = TokenizedReader(TokenizedPairs(str(tokens)))
    records = reader.records.__getitems__(list(range(40)))
    reader.read_encoded(range(90), tokenizer, 0)

    def rewrite(changed):
        writer = ArrayRecordWriter(str(tokens / "tokens-00000.array_record"), "group_size:1")
        for record in changed:
            writer.write(record)
        writer.close()
        opened = TokenizedReader(TokenizedPairs(str(tokens)))
        return refuse(opened.read_encoded, range(90), tokenizer, 0)

    said = f"{tokens}: record 3 is not as it was written; make the folder again"
    assert rewrite([*records[:3], records[4], records[3], *records[5:]]) == said
    for odd in (b"", b"\xff" * 3, records[3][:-1], records[3] + b"\0\0", b"\0" * 99):
        assert rewrite([*records[:3], odd, *records[4:]]) == said
    first, second = (tokens / f"tokens-0000{n}.array_record" for n in (1, 0))
    shutil.copy(first, second)
    opened = TokenizedReader(TokenizedPairs(str(tokens)))
    assert "record 0 is not as" in refuse(opened.read_encoded, [0], tokenizer, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": "90"}, "'pairs' cannot be 90"),
        ({"pairs": True}, "'pairs' cannot be True"),
        ({"vocabulary": -1}, "'vocabulary' cannot be -1"),
        ({"x_closing": 0}, "'x_closing', 'y_closing' and 'vocabulary' must be at least 1"),
        ({"files": "tokens"}, "expected names of files under 'files'"),
        ({"files": [3]}, "expected names of files under 'files'"),
        ({"files": ["../a"]}, "files must be in the folder itself"),
        ({"fingerprint": None}, "'fingerprint' cannot be None"),
        ({"more": 1}, "'more' is unknown"),
    ],
)
def test_what_tokens_json_may_hold(tokens, change, message):
    path = tokens / "tokens.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    said = refuse(TokenizedReader, TokenizedPairs(str(tokens)))
    assert said == f"{path}: damaged: {message}"


def test_token_ids_of_an_older_version_are_made_anew(tokens):
    path = tokens / "tokens.json"
    about = json.loads(path.read_text())
    del about["negatives"]
    path.write_text(json.dumps(about))
    said = refuse(TokenizedReader, TokenizedPairs(str(tokens)))
    assert said == f"{path}: damaged: 'negatives' is missing; make the folder again"


# Tokenizers.


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_character_that_sentencepiece_reserves_hides_no_text(kind):
    settings = make_experiment(tokenizer__kind=kind, tokenizer__vocabulary=300).tokenizer
    texts = ["load \u2585 the bar", "draw\u2585", "\u2585"] * 9
    tokenizer = train_tokenizer(texts, settings)
    plain = [part for text in texts for part in text.split("\u2585")]
    assert tokenizer.model == train_tokenizer(plain, settings).model
    (ids,) = tokenizer.encode(["load \u2585"], "x")
    assert tokenizer.decode(ids[1:-1]) == "load \u2585"
    for empty in (["\u2585"], ["\0", " "], []):
        assert refuse(train_tokenizer, empty, settings) == (
            "tokenizer: no text to train on; data.train has no pairs with text"
        )
    for vocabulary in (0, -1, 1 << 31, 1 << 40):
        said = refuse(train_tokenizer, texts, replace(settings, vocabulary=vocabulary))
        assert said.startswith("tokenizer.vocabulary: ")


def test_a_runs_tokenizer_keeps_the_limits_of_its_experiment(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    limits = json.loads((tmp_path / "limits.json").read_text())
    settings = make_experiment().tokenizer
    assert Tokenizer.load(tmp_path).check_limits(settings, tmp_path) == tokenizer
    (tmp_path / "limits.json").write_text(json.dumps(limits | {"y_tokens": 6}))
    assert refuse(Tokenizer.load(tmp_path).check_limits, settings, tmp_path) == (
        f"{tmp_path}: holds y_tokens 6, but the run's experiment.json says 24; put back the file "
        "that was changed"
    )
    for change, message in (
        ({"vocabulary": 6}, "pieces, but its table has 6 rows"),
        ({"x_tokens": 2}, "x_tokens and y_tokens: must be at least 3"),
        ({"x_tokens": 1 << 40}, "expected numbers above 0 and below 2^31"),
        ({"template": {}}, "limits.json: damaged: "),
        ({"template": []}, "limits.json: damaged: "),
    ):
        (tmp_path / "limits.json").write_text(json.dumps(limits | change))
        assert message in refuse(Tokenizer.load, tmp_path)
    (tmp_path / "limits.json").write_text("[" * 100_000)
    assert refuse(Tokenizer.load, tmp_path).startswith(f"{tmp_path}/limits.json: damaged: ")


def test_a_broken_piece_of_a_model_is_refused(tokenizer, tmp_path):
    path = tmp_path / "a.model"
    path.write_bytes(tokenizer.model.replace(b"<0x41>", b"<\xffx41>"))
    said = refuse(read_model, str(path), 12, 24)
    assert said == f"{path}: not a SentencePiece model; name one or train one"


def test_a_stored_prefix_is_not_dropped(tokenizer, tmp_path):
    replace(tokenizer, x_prefix="query: ").save(tmp_path)
    settings = replace(make_experiment().tokenizer, model_file=str(tmp_path))
    assert refuse(read_tokenizer, settings) == (
        f"tokenizer.x_prefix: '', but {tmp_path} was stored with 'query: '; set it to that"
    )
    read = read_tokenizer(replace(settings, x_prefix="query: ", y_prefix="passage: "))
    assert (read.x_prefix, read.y_prefix) == ("query: ", "passage: ")
    np.testing.assert_array_equal(
        read.encode(["a"], "y")[0], tokenizer.encode(["passage: a"], "y")[0]
    )


# Experiments.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x" * 3000 + "=1", "xxx: Experiment has no field 'xxx"),
        ("x" * 3000, "xxx: expected dotted.path=value"),
        ("data.train.²=1", "'²' is not an index; there are 1 entries"),
        ("data.train.99999999999999999999=1", "is not an index; there are 1 entries"),
        ("optimizer.learning_rate=1" + "0" * 400, "expected a finite number, found an integer of"),
        ("model.width=1" + "0" * 400, "expected an integer below 2^63, found an integer of 1329 b"),
        ("model.width=1e400", "expected int, found inf (float)"),
        ("optimizer.learning_rate=1e400", "expected a finite number, found inf"),
        ("model={1: 2}", "Model has no field '1'"),
        ("model={'type': []}", "expected Model, found {'type': []}"),
        ("data.train=({'type': ['JsonlPairs']},)", "expected one of PythonPackages, JsonlPairs"),
        ("name=caf\udce9", "expected text of whole characters, found 'caf\\udce9'"),
        ("name='a\\0b'", "expected text of whole characters, found 'a\\x00b'"),
        ("model.width=" + "(" * 5000, "expected int, found '((((("),
        ("model.width=" + "9" * 5000, "expected int, found '99999"),
    ],
)
def test_overrides_that_cannot_be(override, message):
    said = refuse(lambda: validate(apply_overrides(make_experiment(), [override])))
    assert message in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "here: not JSON: maximum recursion depth exceeded"),
        ('{"a": ' * 100_000, "here: not JSON: maximum recursion depth exceeded"),
        ("9" * 5000, "here: not JSON: Exceeds the limit"),
        ("null", "here: expected Experiment, found None"),
    ],
)
def test_texts_that_are_no_experiment(text, message):
    assert refuse(from_json, text, "here").startswith(message)


@pytest.mark.parametrize(
    ("field", "value"),
    [("heads", 0), ("width", 0), ("kv_heads", 0), ("head_width", 0), ("layers", -1), ("heads", -4)],
)
def test_sizes_of_a_run_that_cannot_be(field, value):
    tree = json.loads(to_json(make_experiment()))
    tree["model"][field] = value
    assert f"model.{field}: " in refuse(from_json, json.dumps(tree), "here")


def test_tests_write_array_records_as_the_readers_read_them(tmp_path):
    assert len(open_it(write_array_record_json(tmp_path, ROWS))) == 70
