"""A user's mistake at a command gives one line on stderr and exit code 2, without a traceback."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import PAIRS, REPOSITORY
from test_checkpoint import array_files, flip_bit
from tiny_run import PAIRS_FILE, copy_run, tiny_experiment, tiny_run

from jaxcpt import embed, evaluate, report, search, train
from jaxcpt.experiments import to_json
from jaxcpt.pairs import write_pairs
from jaxcpt.tokenizer import Tokenizer, train_tokenizer
from jaxcpt.vectors import Storage, fill

GOOD = '{"x": "a", "y": "b", "text": "c"}\n'

pytestmark = pytest.mark.usefixtures("as_many_cores_as_devices")


@pytest.fixture
def experiment_file(tmp_path):
    """The file of an experiment with correct pairs."""
    write_pairs(PAIRS_FILE, PAIRS)
    path = tmp_path / "mine.py"
    path.write_text(
        "from jaxcpt.experiments import from_json\n"
        f"def experiment(): return from_json({to_json(tiny_experiment())!r}, 'here')\n"
    )
    return path


@pytest.fixture
def refuse_set(refuse, experiment_file, tmp_path):
    """A function that runs `jaxcpt.train` with these `--set` and returns its error."""

    def call(*changes):
        options = [part for change in changes for part in ("--set", change)]
        run_dir = tmp_path / "a new run"
        return refuse(train, "--experiment", experiment_file, "--run-dir", run_dir, *options)

    return call


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("optimizer.learning_rat=1", "--set optimizer.learning_rat: Optimizer has no field "
         "'learning_rat'; nearest: learning_rate, embedding_learning_rate"),
        ("model.width=wide", "--set model.width: expected int, found 'wide' (str)"),
        ("baseline.model.width=8", "--set baseline.model.width: its parent is None, so there is "
         "nothing to set below it"),
        ("model.heads=3", "tiny: model.heads: 3 heads do not divide the width 16"),
        ("batching.chunks=16", "tiny: batching.chunks: 16 chunks for a batch of 15 pairs"),
        ("data.train=()", "tiny: data.train: no data; name at least one source"),
    ],
)  # fmt: skip
def test_values(refuse_set, tmp_path, change, line):
    assert refuse_set(change) == line
    assert not (tmp_path / "a new run").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["batching.pairs_per_batch=3"], "batching.pairs_per_batch: 3 pairs for 4 data shards of "
         "the mesh; each needs at least one"),
        (["batching.pairs_per_batch=91"], "batching.pairs_per_batch: 91 pairs of a batch come from "
         "a source that has 90; lower it"),
        (["mesh.data=2", "mesh.fsdp=3"], "mesh: data 2 x fsdp 3 x tensor 2 does not multiply to "
         "the 8 devices here; set mesh.data=-1 to take all remaining devices"),
        (["mesh.fsdp=-1"], "mesh: only one axis may be -1, found data and fsdp"),
        (["mesh.tensor=8", "mesh.fsdp=1"], "model.heads: 4 does not divide by the mesh axis "
         "tensor=8"),
        (["tokenizer.vocabulary=250"], "tokenizer.vocabulary: 250 is too small for bytes, "
         "delimiters and the characters of the data; try 1000 or more"),
        (["tokenizer.model_file=none.model"], "tokenizer.model_file: none.model: no such file"),
    ],
)  # fmt: skip
def test_values_that_need_devices_or_data(refuse_set, monkeypatch, changes, line):
    # This process cannot have 12 devices.
    monkeypatch.setattr(train, "use_devices", lambda *_: None)
    assert refuse_set(*changes) == line


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("none.py", None, ": no such experiment file; jaxcpt init writes one"),
        ("mine.json", "{}", ": not a Python file; an experiment is a .py file"),
        ("mine.py", "def f(:\n", ":1: not Python: invalid syntax"),
        ("mine.py", "", ": defines no function `experiment() -> Experiment`"),
        ("mine.py", "def experiment():\n  pass\n", ": experiment() returned NoneType; it must "
         "return Experiment"),
        ("mine.py", "def experiment():\n  x = 0\n  assert x, 'one\\ntwo'\n",
         ":3: AssertionError: one two"),
    ],
)  # fmt: skip
def test_experiment_files(refuse, tmp_path, monkeypatch, name, text, line):
    if text is not None:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    said = refuse(train, "--experiment", tmp_path / name, "--dry-run")
    assert said == f"{tmp_path / name}{line}"
    assert refuse(train, "--experiment", name, "--dry-run").endswith(line)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, ": no such file"),
        (GOOD.encode() + b'{"x": "\xff"}\n', ":2: not UTF-8 at byte 41 of the text; convert it"),
        (GOOD + "{", ":2: does not parse as JSON: Expecting property name enclosed in double "
         "quotes: line 1 column 2 (char 1)"),
        (GOOD + '{"x": "a"}', ":2: no text under 'y'; keys: x"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["data.train.0", "data.heldout"])
def test_data(refuse_set, tmp_path, content, line, where):
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refuse_set(f"{where}.path={path}") == f"{path}{line}"


def test_no_pairs(refuse_set, tmp_path):
    path = tmp_path / "data.jsonl"
    path.touch()
    said = refuse_set(f"data.train.0.path={path}")
    assert said == f"{path}: no pairs in it; training needs some"


def test_missing_data_says_what_makes_it(refuse, tmp_path):
    for name in ("cpt_text_s", "cpt_code_m"):
        path = REPOSITORY / "experiments" / f"{name}.py"
        here = ("--set", "mesh.fsdp=8")
        said = refuse(train, "--experiment", path, "--run-dir", tmp_path / name, *here)
        assert re.fullmatch(
            r"data/\w+: no tensorflow-datasets directory; make it with: jaxcpt mine-.*", said
        )


def test_a_package_that_is_not_installed(refuse, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\n"
        "from conftest import make_experiment\n"
        "from jaxcpt.config import Data, PythonPackages\n"
        "mined = PythonPackages(packages=('nothing_here',))\n"
        "def experiment(): return replace(make_experiment(), data=Data((mined,)))\n"
    )
    said = refuse(train, "--experiment", path, "--run-dir", tmp_path / "run")
    assert said == "data: no package 'nothing_here' is installed; `pip install` it or remove it"


def test_a_run_folder_of_another_experiment(refuse, experiment_file, tmp_path):
    run_dir = copy_run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    said = refuse(
        train, "--experiment", experiment_file, "--run-dir", run_dir,
        "--set", "seed=1", "--set", "model.causal=False",
    )  # fmt: skip
    assert said == (
        f"{run_dir}: holds a run of a different experiment (model.causal: True -> False; "
        "seed: 0 -> 1); choose another --run-dir; to train further, start there with "
        f"init_from=InitFrom('{run_dir}')"
    )
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}


def test_a_run_folder_that_cannot_be_written(refuse, experiment_file, tmp_path):
    (tmp_path / "a file").touch()
    for run_dir, reason in (
        (tmp_path / "a file", "File exists"),
        (tmp_path / "a file" / "run", "Not a directory"),
        ("/proc/run", "No such file or directory"),
    ):
        said = refuse(train, "--experiment", experiment_file, "--run-dir", run_dir)
        assert said == f"{run_dir}: cannot be written: {reason}; choose --run-dir"


def test_a_damaged_run_folder(refuse, experiment_file, tmp_path):
    run_dir = copy_run(tmp_path)
    config = run_dir / "experiment.json"
    config.write_text(config.read_text()[:100])
    commands = {
        train: ["--experiment", experiment_file, "--run-dir", run_dir],
        embed: ["--run-dir", run_dir, "--input", PAIRS_FILE, "--output", "none.npy", "--side", "x"],
        search: ["--run-dir", run_dir, "a query"],
        evaluate: ["--run-dir", run_dir],
        report: ["--run-dir", run_dir],
    }
    for command, arguments in commands.items():
        assert refuse(command, *arguments).startswith(f"{config}:")
    config.write_text(to_json(tiny_experiment()))
    (run_dir / "tokenizer" / "tokenizer.model").write_bytes(b"not a model")
    for command in (train, embed, search, evaluate):
        assert refuse(command, *commands[command]) == (
            f"{run_dir}/tokenizer/tokenizer.model: not a SentencePiece model; name one or train one"
        )
    (run_dir / "tokenizer" / "tokenizer.model").unlink()
    for command in (train, embed, search, evaluate):
        assert refuse(command, *commands[command]) == (
            f"{run_dir}/tokenizer/tokenizer.model: missing; this run has no whole tokenizer"
        )
    assert not (REPOSITORY / "none.npy.partial").exists()


def test_damaged_metrics(refuse, experiment_file, tmp_path):
    run_dir = copy_run(tmp_path)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text("\n".join([lines[0], "{", *lines[2:]]))
    for command, arguments in (
        (train, ["--experiment", experiment_file, "--run-dir", run_dir]),
        (report, ["--run-dir", run_dir]),
    ):
        said = refuse(command, *arguments)
        assert said.startswith(f"{run_dir}/metrics.jsonl:2: not an object of a step")


def test_a_tokenizer_of_another_vocabulary(refuse, experiment_file, tmp_path):
    run_dir = copy_run(tmp_path)
    settings = tiny_experiment().tokenizer
    train_tokenizer(["quite another text than before"], settings).save(run_dir / "tokenizer")
    fingerprint = Tokenizer.load(run_dir / "tokenizer").fingerprint
    for command, arguments in (
        (train, ["--experiment", experiment_file]),
        (embed, ["--input", PAIRS_FILE, "--output", tmp_path / "out.npy", "--side", "x"]),
        (search, ["a query"]),
        (evaluate, []),
    ):
        said = refuse(command, "--run-dir", run_dir, *arguments)
        assert said.startswith(
            f"{run_dir}/tokenizer: the checkpoint was trained with another vocabulary (sha256 "
        )
        assert said.endswith(f", found {fingerprint[:12]}); put the old one back")
    assert not (tmp_path / "out.npy").exists()


def test_no_run(refuse, tmp_path):
    for command, arguments in (
        (embed, ["--input", PAIRS_FILE, "--output", "none.npy", "--side", "x"]),
        (search, ["a query"]),
        (evaluate, []),
        (report, []),
    ):
        said = refuse(command, "--run-dir", tmp_path, *arguments)
        assert said.startswith(f"{tmp_path}: not a run folder: it has no experiment.json")


def test_no_checkpoint_yet_and_none_that_is_whole(refuse, tmp_path):
    run_dir = copy_run(tmp_path)
    for step in (3, 6):
        flip_bit(array_files(run_dir / "checkpoints", step)[0])
    said = refuse(search, "--run-dir", run_dir, "a query")
    assert said.startswith(f"{run_dir}/checkpoints: no whole checkpoint (step 6: ")
    assert "is not as it was written; step 3: " in said
    said = refuse(evaluate, "--run-dir", run_dir, "--step", 3)
    assert said.startswith(f"{run_dir}/checkpoints: checkpoint of step 3 is damaged: ")
    said = refuse(evaluate, "--run-dir", run_dir, "--step", 4)
    assert said == f"{run_dir}/checkpoints: no checkpoint of step 4; there are: 3, 6"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, ": no such file"),
        ("", ": no texts in it; it needs one JSON object a line"),
        ("\n\n", ": no texts in it; it needs one JSON object a line"),
        (GOOD + "c\n", ":2: does not parse as JSON: Expecting value: line 1 column 1 (char 0)"),
        (GOOD + '{"z": "c", "q": 1}\n', ":2: no text under 'text' or 'y'; keys: z, q"),
        (GOOD + '{"text": 1}\n', ":2: 'text' must be text, found int"),
        (GOOD + '{"text": null}\n', ":2: 'text' must be text, found null"),
        (GOOD + '{"text": null, "y": null}\n', ":2: 'y' must be text, found null"),
        (b"\xff\xfd", ":1: not UTF-8 at byte 0 of the text; convert it"),
        (b"\xff\xfe", ": is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8 texts.jsonl"),
        (GOOD + '{"text": "c", "title": 3}\n', ":2: 'title' must be text, found int"),
        (
            GOOD + '{"text": "c", "_id": "a\\nb"}\n',
            ":2: '_id' holds a line break; an id must be one line",
        ),
        (GOOD + '{"text": "c", "_id": ["a"]}\n', ":2: '_id' must be text or a number, found list"),
    ],
)
def test_texts_to_embed_and_to_search(refuse, tmp_path, content, line):
    path = tmp_path / "texts.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    output = ["--output", tmp_path / "out.npy", "--side", "y"]
    assert refuse(embed, "--run-dir", tiny_run(), "--input", path, *output) == f"{path}{line}"
    assert refuse(search, "--run-dir", tiny_run(), "--corpus", path, "query") == f"{path}{line}"


def test_side(refuse):
    arguments = ["--run-dir", tiny_run(), "--input", PAIRS_FILE, "--output", "none.npy"]
    for side in ("z", "X", ""):
        said = refuse(embed, *arguments, "--side", side)
        assert said == f"--side {side}: must be x (queries) or y (what is searched)"


def test_output_that_cannot_be_written(refuse, tmp_path):
    arguments = ["--run-dir", tiny_run(), "--input", PAIRS_FILE, "--side", "x", "--output"]
    (tmp_path / "a file").touch()
    below = tmp_path / "a file" / "out"
    assert refuse(embed, *arguments, below) == f"{below}: cannot be written: Not a directory"
    assert refuse(embed, *arguments, below.parent).endswith("cannot be written: File exists")
    said = refuse(embed, *arguments, tmp_path)
    assert said == f"{tmp_path}: holds other files than vectors; choose a new folder"


def test_vectors_of_other_parameters_or_of_queries(refuse, tmp_path):
    search_options = ["--run-dir", tiny_run(), "--vectors", tmp_path / "v", "query"]
    assert refuse(search, *search_options) == (
        f"{tmp_path / 'v'}: no vectors: it has no about.json; jaxcpt.embed makes one"
    )
    embedder = embed.Embedder.load(tiny_run())
    about = embed.describe(embedder, "y", PAIRS_FILE)
    for changes, line in (
        ({"step": 3, "checkpoint": "ab" * 32}, "made by another checkpoint (step 3, sha256 ababa"),
        ({"side": "x"}, "holds vectors of side x, which are queries; embed with --side y"),
    ):
        shutil.rmtree(tmp_path / "v", ignore_errors=True)
        fill(tmp_path / "v", about | changes, [], embedder.embed, Storage())
        assert refuse(search, *search_options).startswith(f"{tmp_path / 'v'}: {line}")
    corpus = tmp_path / "corpus.jsonl"
    shutil.copy(PAIRS_FILE, corpus)
    shutil.rmtree(tmp_path / "v")
    texts, about = embed.read_documents(corpus, "y"), embed.describe(embedder, "y", corpus)
    fill(tmp_path / "v", about, texts, lambda texts: embedder.embed(texts, "y"), Storage())
    corpus.write_text(GOOD)
    assert refuse(search, *search_options).startswith(f"{corpus}: changed since {tmp_path / 'v'}")
    corpus.unlink()
    assert refuse(search, *search_options) == f"{corpus}: no such file"
    assert refuse(search, *search_options, "--int8") == (
        "--vectors: comes without --width and --int8; it has its own"
    )


def test_mesh_and_width(refuse, tmp_path):
    for command, arguments in (
        (embed, ["--input", PAIRS_FILE, "--side", "y", "--output", tmp_path / "v"]),
        (search, ["query"]),
    ):
        options = ["--run-dir", tiny_run(), *arguments]
        assert refuse(command, *options, "--mesh", "1,8") == (
            "--mesh 1,8: must be DATA,FSDP,TENSOR, such as 1,8,4"
        )
        assert refuse(command, *options, "--mesh", "1,8,8").startswith(
            "mesh: data 1 x fsdp 8 x tensor 8 does not multiply to the 8 devices here"
        )
        assert refuse(command, *options, "--width", "17") == (
            "--width 17: must be from 1 to the model's width, 16"
        )
    assert not (tmp_path / "v").exists()


def test_top(refuse):
    said = refuse(search, "--run-dir", tiny_run(), "--top", 0, "query")
    assert said == "--top 0: must be at least 1"


def test_nothing_held_out(refuse, tmp_path):
    run_dir = copy_run(tmp_path)
    tree = json.loads((run_dir / "experiment.json").read_text())
    tree["data"]["heldout"] = None
    (run_dir / "experiment.json").write_text(json.dumps(tree))
    said = refuse(evaluate, "--run-dir", run_dir)
    assert said.startswith(f"{run_dir}: ")
    assert "data.heldout" in said


def test_scores_that_cannot_be_taken_or_written(refuse, tmp_path):
    options = ["--run-dir", tiny_run()]
    before = sorted(path.name for path in tiny_run().iterdir())
    nowhere = tmp_path / "nowhere"
    for arguments, line in (
        (
            ["--data", nowhere],
            f"--data {nowhere}: no such folder; it holds a folder for",
        ),
        (["--data", tmp_path], f"--data {tmp_path}: none of the folders linear_probe, sts, "),
        (["--json", nowhere / "s.json"], f"--json {nowhere / 's.json'}: no such folder {nowhere}"),
        (["--suite", "sts"], "--suite and --vectors: come with --data, the folder of the suites"),
        (["--vectors", tmp_path], "--suite and --vectors: come with --data"),
        (["--data", tmp_path, "--mteb", "STS12"], "--mteb: comes without --data; MTEB loads its"),
        (["--data", tmp_path, "--suite", "sts"], f"{tmp_path / 'sts'}: none of the folders sts12"),
        (
            ["--data", tmp_path, "--suite", "stss"],
            "--suite stss: unknown; choose linear_probe, sts, retrieval, code_search, open_qa or "
            "all",
        ),
    ):
        assert refuse(evaluate, *options, *arguments).startswith(line)
    assert sorted(path.name for path in tiny_run().iterdir()) == before


def test_no_question_set(refuse, tmp_path):
    pytest.importorskip("regex")  # otherwise its absence is named first
    said = refuse(evaluate, "--run-dir", tiny_run(), "--data", tmp_path, "--suite", "open_qa")
    assert said.startswith(f"{tmp_path / 'dpr'}: no question set; ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--experiment", "none.py"], "none.py: no such experiment file"),
        (["train", "--experiment", "{quickstart}", "--smoke", "--set", "model.heads=5"],
         "quickstart: model.heads: 5 heads do not divide the width 32"),
        (["embed", "--run-dir", "none", "--input", "{pairs}", "--output", "o", "--side", "x"],
         "none: no such folder"),
    ],
)  # fmt: skip
def test_as_a_process(tmp_path, experiment_file, arguments, line):
    names = {"quickstart": REPOSITORY / "experiments" / "quickstart.py", "pairs": PAIRS_FILE}
    command, *rest = (argument.format(**names) for argument in arguments)
    done = subprocess.run(
        [sys.executable, "-m", f"jaxcpt.{command}", *rest],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"jaxcpt: {line}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == [experiment_file.name]
