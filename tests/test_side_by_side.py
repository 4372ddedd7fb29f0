"""Several models in one table: runs, and folders that sentence-transformers scores."""

import json
import re
import shutil
import sys

import pytest
from conftest import make_experiment
from test_evals_sts import write_subset
from tiny_run import copy_run, tiny_run

from jaxcpt import evaluate
from jaxcpt.embed import Embedder
from jaxcpt.errors import run_command
from jaxcpt.evals import sts
from jaxcpt.export import export_run
from jaxcpt.metrics import read_rows

NEEDS = "sentence-transformers is absent: pip install 'jaxcpt[compare]'"

pytestmark = pytest.mark.usefixtures("as_many_cores_as_devices")


@pytest.fixture
def data(tmp_path):
    for name in ("sts13", "sts14"):
        texts = [f"w{i} w{i % 7}" for i in range(40)]
        scores = [i % 11 / 2 for i in range(40)]
        write_subset(tmp_path / "data" / "sts" / name, "OnWN", scores, texts)
    return tmp_path / "data"


@pytest.fixture
def call(monkeypatch, tmp_path, capsys, data):
    """A function that runs the command and returns its output and the content of --json."""

    def run(*arguments):
        output = tmp_path / "scores.json"
        options = [*map(str, arguments), "--data", str(data), "--json", str(output)]
        run_command(evaluate.main, options)
        return capsys.readouterr().out, json.loads(output.read_text())

    return run


@pytest.fixture
def exported(tmp_path):
    """A run, and the folder that it was exported to."""
    pytest.importorskip("sentence_transformers", reason=NEEDS)
    from test_export import write_run

    experiment = make_experiment(model__position_rows=40, tokenizer__x_tokens=24)
    write_run(tmp_path / "own", experiment)
    export_run(tmp_path / "own", tmp_path / "exported", None, "float32", "sentence-transformers")
    return tmp_path / "own", tmp_path / "exported"


def read_cells(said, name):
    """The cells of a row of the table."""
    line = next(line for line in said.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def copy_early_run(tmp_path):
    """A run whose newest step is 3."""
    early = tmp_path / "early"
    shutil.copytree(tiny_run(), early)
    shutil.rmtree(early / "checkpoints" / "6")
    return early


def test_two_runs_side_by_side(tmp_path, data, call):
    run_dir, early = copy_run(tmp_path), copy_early_run(tmp_path)
    said, written = call("--run-dir", run_dir, early)
    assert written["models"].keys() == {"run", "early"}
    for folder, step in ((run_dir, 6), (early, 3)):
        model = written["models"][folder.name]
        own = sts.run(Embedder.load(folder).embed, data)
        want = {f"sts/{name}": value for name, value in own.items()}
        assert model["scores"] == pytest.approx(want, abs=1e-9)
        assert model["step"] == step
        assert f"{folder.name}: step {step}, at most 12 tokens of x and 24 of y\n" in said
        rows = {row["step"]: row for row in read_rows(folder / "evals.jsonl")}
        assert rows[step].items() >= model["scores"].items()
        tables = json.loads((folder / "suites.json").read_text())
        assert tables["step"] == step
        assert "sts14/all/spearman" in {line["name"] for line in tables["suites"]["sts"]}
    name = "sts14/all/spearman"
    scores = [written["models"][model]["scores"][f"sts/{name}"] for model in ("run", "early")]
    words = written["words"][f"sts/{name}"]
    assert read_cells(said, name) == [name, *[f"{s:.3f}" for s in (*scores, words)], "this form"]
    assert said.index("scoring sts of run\n") < said.index("scoring sts of early\n")
    assert "all: the pairs of all subsets of a set together" in said


def test_runs_of_one_name_are_told_by_their_path(tmp_path, call):
    first, second = copy_run(tmp_path / "a"), copy_run(tmp_path / "b")
    said, written = call("--run-dir", first, "--run-dir", second, "--width", 8)
    assert written["models"].keys() == {str(first), str(second)}
    assert f"scoring sts of {first}\n" in said
    # The vectors were cut, so these are not the runs' own scores.
    assert not (first / "suites.json").exists()


def test_names_of_columns():
    assert evaluate.name_columns(["runs/a", "gs://bucket/b/", "."]) == {
        "runs/a": "a",
        "gs://bucket/b/": "b",
        ".": ".",
    }
    assert evaluate.name_columns(["runs/a", "exports/a", "b"]) == {
        "runs/a": "runs/a",
        "exports/a": "exports/a",
        "b": "b",
    }


def test_an_exported_run_scores_as_the_run(exported, call):
    """The library itself routes queries and documents, and adds their prompts."""
    run_dir, folder = exported
    said, written = call("--run-dir", run_dir, "--library", folder)
    own, library = (written["models"][name] for name in ("own", "exported (library)"))
    assert library["about"].startswith("sentence-transformers ")
    assert library["step"] is None
    assert library["scores"] == pytest.approx(own["scores"], abs=1e-3)
    name = "sts13/all/spearman"
    scores = [model["scores"][f"sts/{name}"] for model in (own, library)]
    assert read_cells(said, name)[1:3] == [f"{score:.3f}" for score in scores]
    said, alone = call("--library", folder)
    assert re.search(r"┃ exported \(library\) +┃ bag of words ┃ published +┃", said)
    assert alone["scores"] == library["scores"]
    assert alone["step"] is None


def test_a_set_that_does_not_fit_is_named_once_and_the_others_are_scored(tmp_path, data, call):
    (data / "sts" / "sts13" / "OnWN.tsv").write_text("score\ttext_a\ttext_b\n5\talone\n")
    with pytest.raises(SystemExit, match="2"):
        call("--run-dir", copy_run(tmp_path), copy_early_run(tmp_path))
    written = json.loads((tmp_path / "scores.json").read_text())
    for model in written["models"].values():
        assert "sts/sts14/all/spearman" in model["scores"]
        assert "sts/sts13/all/spearman" not in model["scores"]


def test_what_cannot_be_compared_is_refused_before_a_model_is_loaded(
    tmp_path, data, refuse, monkeypatch
):
    monkeypatch.setattr(Embedder, "load", None)
    runs = ["--run-dir", tiny_run(), copy_run(tmp_path)]
    of_data = ["--data", data]
    assert refuse(evaluate, *of_data) == (
        "name a run with --run-dir, or a sentence-transformers folder: --library"
    )
    assert refuse(evaluate, *runs) == (
        "several models are compared on --data, the folder of the suites"
    )
    assert refuse(evaluate, *of_data, "--run-dir", tiny_run(), tiny_run()) == (
        f"{tiny_run()}: is named twice; name it once"
    )
    for option, value in {
        "--step": "3", "--vectors": tmp_path, "--x-prefix": "a", "--y-prefix": ""
    }.items():  # fmt: skip
        assert refuse(evaluate, *runs, *of_data, option, value) == (
            f"{option}: comes with one --run-dir and without --library"
        )
    assert refuse(evaluate, *runs, "--mteb", "STS12") == (
        "--mteb: comes with one --run-dir and without --library"
    )


def test_a_folder_that_the_library_cannot_score_is_refused_before_a_model_is_loaded(
    tmp_path, data, refuse, monkeypatch
):
    pytest.importorskip("sentence_transformers", reason=NEEDS)
    options = ["--run-dir", tiny_run(), "--data", data, "--library"]
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "load", None)
        none = tmp_path / "none"
        assert refuse(evaluate, *options, none) == (
            f"--library {none}: no such folder; nothing is downloaded"
        )
        assert refuse(evaluate, *options, data) == (
            f"--library {data}: no modules.json; expected a sentence-transformers model"
        )
        patch.setitem(sys.modules, "sentence_transformers", None)
        assert refuse(evaluate, *options, data) == (
            "this evaluation needs sentence_transformers: pip install 'jaxcpt[compare]'"
        )
    (data / "modules.json").write_text("[")
    assert re.match(
        rf"--library {re.escape(str(data))}: sentence-transformers cannot load it: \w+Error: ",
        refuse(evaluate, *options, data),
    )


def test_what_the_library_cannot_embed_is_one_line(exported, data, refuse, monkeypatch):
    library = pytest.importorskip("sentence_transformers", reason=NEEDS)

    def fail(self, *_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(library.SentenceTransformer, "encode_query", fail)
    said = refuse(evaluate, "--library", exported[1], "--data", data)
    assert said == (
        "--library: sentence-transformers cannot embed texts such as '0': RuntimeError: out of "
        "memory"
    )


def test_widths_are_checked_for_every_model(tmp_path, data, refuse):
    width = make_experiment().model.width
    said = refuse(
        evaluate, "--run-dir", tiny_run(), copy_run(tmp_path), "--data", data, "--width", width + 1
    )
    assert said == f"--width {width + 1}: must be from 1 to the model's width, {width}"
