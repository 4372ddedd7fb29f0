"""JSONL and ArrayRecord sources are read by index, and errors name the line or the record."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from jaxcpt.checks import validate
from jaxcpt.config import Data, JsonlPairs, PythonPackages, TfdsPairs
from jaxcpt.errors import UserError
from jaxcpt.experiments import load_experiment
from jaxcpt.lines import read_jsonl
from jaxcpt.pair import Pair
from jaxcpt.pairs import open_source, open_training, read_pairs, write_pairs

GOOD = '{"x": "a", "y": "b"}\n'


def write(tmp_path, content):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refuse(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


texts = st.text(st.characters(exclude_categories=["Cs"]))
pairs = st.builds(Pair, texts, texts, texts, st.lists(texts, max_size=2).map(tuple))


@given(st.lists(pairs, max_size=5))
def test_written_pairs_are_read_back(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(path, written)
    assert list(read_pairs(path)) == written
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # nothing left over


def test_reads_other_keys_blank_lines_and_windows_lines(tmp_path):
    path = write(
        tmp_path, '\n  \r\n{"q": "a\u2028b", "code": "", "z": 1}\r\n\n{"q": "", "code": "c"}'
    )
    assert list(read_pairs(path, "q", "code")) == [
        Pair("a\u2028b", "", "pairs.jsonl:3"),
        Pair("", "c", "pairs.jsonl:5"),
    ]
    assert [number for number, _ in read_jsonl(path)] == [3, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "{x: 1}\n", ":2: does not parse as JSON: Expecting property name"),
        (GOOD + '{"x": "a", "y": \n', ":2: does not parse as JSON: Expecting value"),
        (GOOD + '{"x": "\\ud800", "y": ""}\n', ":2: does not parse as JSON: 'utf-8' codec can't"),
        (GOOD + "[" * 200_000 + "\n", ":2: does not parse as JSON: "),
        (GOOD + '{"x": ' + "9" * 5000 + "}\n", ":2: does not parse as JSON: Exceeds the limit"),
        (GOOD + "\ufeff" + GOOD, ":2: does not parse as JSON: Unexpected UTF-8 BOM"),
        (GOOD + '["a", "b"]\n', ":2: expected an object, found list"),
        ("null\n", ":1: expected an object, found null"),
        (GOOD + '{"x": "a"}\n', ":2: no text under 'y'; keys: x"),
        ('{"x": 1, "y": "b"}\n', ":1: 'x' must be text, found int"),
        ('{"x": null, "y": "b"}\n', ":1: 'x' must be text, found null"),
        (GOOD[:-2] + ', "negatives": "c"}\n', ":1: 'negatives' must be a list of texts"),
        (GOOD[:-2] + ', "negatives": [1]}\n', ":1: 'negatives' must be a list of texts"),
        (GOOD.encode() + b'{"x": "\xe9"}\n', ":2: not UTF-8 at byte 28 of the text; convert it"),
        (
            GOOD.encode() * 9 + b'{"x": "\xe2\x82',
            ":10: not UTF-8 at byte 196 of the text; convert it",
        ),
        (GOOD.encode("utf-16"), ": is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8 pairs"),
    ],
)
def test_refuses_a_bad_line(tmp_path, content, message):
    path = write(tmp_path, content)
    said = refuse(lambda: list(read_pairs(path)))
    assert said.startswith(f"{path}{message}")
    assert "\n" not in said


def test_refuses_a_missing_file(tmp_path):
    missing = tmp_path / "none.jsonl"
    for source in (missing, tmp_path):
        assert refuse(lambda s=source: list(read_pairs(s))) == f"{source}: no such file"


def test_refuses_no_pairs(tmp_path):
    path = write(tmp_path, "\n\n")
    said = refuse(open_training, Data(train=(JsonlPairs(str(path)),)), tmp_path, 0)
    assert said == f"{path}: no pairs in it; training needs some"


@pytest.fixture(scope="module")
def array_records(tmp_path_factory):
    """A dataset of 300 pairs in two splits, written by tensorflow-datasets."""
    rows = [{"x": f"x {i} é", "y": f"y {i}\n" * (i % 4), "source": f"{i}"} for i in range(300)]

    class Neighbours(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path_factory.mktemp("package")

        def _info(self):
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({"x": text, "y": text, "source": text})
            return tfds.core.DatasetInfo(builder=self, description="pairs", features=features)

        def _split_generators(self, _):
            return {"train": enumerate(rows[:260]), "heldout": enumerate(rows[260:])}

        def _generate_examples(self):
            raise AssertionError("the generators are given above")

    folder = tmp_path_factory.mktemp("tfds")
    builder = Neighbours(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir, rows


def test_reads_array_records(array_records, tmp_path):
    folder, rows = array_records
    train = open_source(TfdsPairs(str(folder)), tmp_path, 0)
    heldout = open_source(TfdsPairs(str(folder), split="heldout"), tmp_path, 0)
    assert (len(train), len(heldout)) == (260, 40)
    # tensorflow-datasets shuffles. Reading by index must agree with its order.
    whole = train.read(range(len(train)))
    assert sorted((p.x, p.y) for p in whole) == sorted((r["x"], r["y"]) for r in rows[:260])
    some = [259, 0, 17, 17, 3]
    assert train.read(some) == [whole[index] for index in some]
    assert {pair.source for pair in whole} == {f"{i}" for i in range(260)}
    assert {p.x for p in heldout.read(range(40))} == {r["x"] for r in rows[260:]}
    assert train.read([]) == []


def test_refuses_a_missing_directory_and_split(array_records, tmp_path):
    missing = TfdsPairs("data/none", prepare="jaxcpt mine-text --output data/none")
    said = refuse(open_source, missing, tmp_path, 0)
    assert said == (
        "data/none: no tensorflow-datasets directory; make it with: "
        "jaxcpt mine-text --output data/none"
    )
    assert refuse(open_source, TfdsPairs("data/none"), tmp_path, 0).endswith("datasets directory")
    folder = str(array_records[0])
    said = refuse(open_source, TfdsPairs(folder, split="test"), tmp_path, 0)
    assert said.startswith(f"{folder}: has no split 'test', only ")
    assert "train" in said


def test_refuses_a_damaged_directory(array_records, tmp_path):
    folder = shutil.copytree(array_records[0], tmp_path / "1.0.0")
    (file,) = folder.glob("*train*")
    file.unlink()
    said = refuse(open_source, TfdsPairs(str(folder)), tmp_path, 0)
    assert said == f"{file}: no such ArrayRecord file; write the dataset again"
    (folder / "dataset_info.json").write_text("{")
    said = refuse(open_source, TfdsPairs(str(folder)), tmp_path, 0)
    assert said.startswith(f"{folder}: damaged dataset: Failed to load JSON")


def test_refuses_another_kind_of_dataset(array_records, tmp_path):
    def change(name, old, new):
        folder = shutil.copytree(array_records[0], tmp_path / name)
        for path in folder.glob("*.json"):
            path.write_text(path.read_text().replace(old, new))
        return folder, refuse(open_source, TfdsPairs(str(folder)), tmp_path, 0)

    folder, said = change("features", '"x"', '"question"')
    assert said == f"{folder}: no column 'x'; there are: question, source, y"
    folder, said = change("format", "array_record", "tfrecord")
    assert said.endswith(
        "tfrecord-00000-of-00001: no such ArrayRecord file; write the dataset again"
    )


def test_mined_pairs_stay_with_the_run(tmp_path):
    source = PythonPackages(packages=("json", "argparse"), heldout_functions=5)
    train = open_source(source, tmp_path, 0)
    heldout = open_source(
        PythonPackages("heldout", heldout_functions=5, packages=("json", "argparse")), tmp_path, 0
    )
    assert len(heldout) == 5
    ys = {pair.y for pair in train.read(range(len(train)))}
    assert not ys & {pair.y for pair in heldout.read(range(5))}
    kept = (tmp_path / "pairs" / "train.jsonl").read_text().splitlines()
    # Later reads give the stored pairs, even if other packages are installed then.
    (tmp_path / "pairs" / "train.jsonl").write_text(kept[0] + "\n")
    (pair,) = open_source(source, tmp_path, 0).read([0])
    assert pair.y == json.loads(kept[0])["y"]


def test_json_lines_need_no_tensorflow_datasets():
    code = "import sys, jaxcpt.pairs; sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_documented_mixture_is_an_experiment(tmp_path):
    (block,) = re.findall(
        "^```python\n(.*?)^```", (REPOSITORY / "docs" / "data.md").read_text(), re.S | re.M
    )
    (tmp_path / "mixture.py").write_text(block)
    data = validate(load_experiment(str(tmp_path / "mixture.py"))).data
    assert len(data.train) == len(data.weights) == 4
