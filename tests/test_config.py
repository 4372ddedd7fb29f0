"""The experiment tree: JSON, `--set`, differences, checks of the settings, and `--smoke`."""

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_experiment

from jaxcpt.checks import validate
from jaxcpt.config import (
    Baseline,
    Data,
    JsonlPairs,
    Mesh,
    PythonPackages,
    TfdsPairs,
    TokenizedPairs,
    derive_baseline,
)
from jaxcpt.errors import UserError, run_command
from jaxcpt.experiments import (
    apply_overrides,
    differences,
    from_json,
    load_experiment,
    read_experiment,
    to_json,
)
from jaxcpt.smoke import shrink

EVERY_KIND_OF_VALUE = replace(
    make_experiment(loss__prefixes=(4, 8), model__kv_heads=2, batching__rows_per_cell=7),
    data=Data(
        train=(PythonPackages(packages=("json",)), JsonlPairs("a.jsonl", y="code"), TfdsPairs("d")),
        weights=(1.0, 2.5, 0.5),
    ),
    mesh=Mesh(-1, 2, 2),
)


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def refuse(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_json_and_back():
    experiment = with_baseline(EVERY_KIND_OF_VALUE, train_steps=3)
    assert from_json(to_json(experiment), "here") == experiment


def test_a_file_is_the_experiment_it_returns(tmp_path):
    (tmp_path / "sibling.py").write_text(
        "from conftest import make_experiment\n"
        "def experiment(): return make_experiment(optimizer__learning_rate=1)\n"
    )
    path = write(tmp_path, "from sibling import experiment\n")
    loaded = load_experiment(path)
    assert loaded == make_experiment(optimizer__learning_rate=1.0)
    assert isinstance(loaded.optimizer.learning_rate, float)  # the same type as after JSON


def test_loading_leaves_the_path_as_it_was(tmp_path):
    before = list(sys.path)
    refuse(load_experiment, write(tmp_path, "raise ValueError('no')"))
    assert sys.path == before


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=7", lambda e: e.seed, 7),
        ("name=other", lambda e: e.name, "other"),
        ("model.width=32", lambda e: e.model.width, 32),
        ("model.kv_heads=None", lambda e: e.model.kv_heads, None),
        ("model.causal=False", lambda e: e.model.causal, False),
        ("model.pooling=mean", lambda e: e.model.pooling, "mean"),
        ("optimizer.learning_rate=1", lambda e: e.optimizer.learning_rate, 1.0),
        ("loss.prefixes=(2, 3)", lambda e: e.loss.prefixes, (2, 3)),
        ("loss.prefixes=[]", lambda e: e.loss.prefixes, ()),
        ("data.weights.1=9", lambda e: e.data.weights, (1.0, 9.0, 0.5)),
        ("data.train.1.path=b=c.jsonl", lambda e: e.data.train[1].path, "b=c.jsonl"),
        ("data.train.2.split=heldout", lambda e: e.data.train[2].split, "heldout"),
        ("data.train.0.packages=('email',)", lambda e: e.data.train[0].packages, ("email",)),
        ("data.heldout=None", lambda e: e.data.heldout, None),
    ],
)
def test_set(override, read, value):
    assert read(apply_overrides(EVERY_KIND_OF_VALUE, [override])) == value


def test_set_in_order_and_leaves_the_rest():
    changed = apply_overrides(EVERY_KIND_OF_VALUE, ["seed=1", "model.heads=2", "seed=3"])
    model = replace(EVERY_KIND_OF_VALUE.model, heads=2)
    assert changed == replace(EVERY_KIND_OF_VALUE, seed=3, model=model)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected dotted.path=value"),
        ("model.widht=8", "--set model.widht: Model has no field 'widht'; nearest: width, "),
        ("modle.width=8", "--set modle.width: Experiment has no field 'modle'; nearest: model"),
        ("=8", "--set : Experiment has no field ''; nearest: adapter, baseline, batching, "),
        (
            "baseline.model.width=8",
            "--set baseline.model.width: its parent is None, so there is nothing to set below it",
        ),
        ("seed.bits=8", "--set seed.bits: nothing lies below a int; drop '.bits'"),
        ("model.width=wide", "--set model.width: expected int, found 'wide' (str)"),
        ("model.width=", "--set model.width: expected int, found '' (str)"),
        ("model.width=8.0", "--set model.width: expected int, found 8.0 (float)"),
        ("model.width=True", "--set model.width: expected int, found True (bool)"),
        ("model.width=None", "--set model.width: expected int, found None (NoneType)"),
        ("model.causal=1", "--set model.causal: expected bool, found 1 (int)"),
        ("name=3", "--set name: expected str, found 3 (int)"),
        ("model.norm=batchnorm", "expected one of layernorm, rmsnorm, found 'batchnorm'"),
        ("optimizer.b2=1e400", "--set optimizer.b2: expected a finite number, found inf"),
        ("loss.prefixes=4", "--set loss.prefixes: expected a tuple, found 4"),
        ("loss.prefixes=(4, 'a')", "--set loss.prefixes.1: expected int, found 'a' (str)"),
        (
            "data.train.3.path=a",
            "--set data.train.3.path: '3' is not an index; there are 3",
        ),
        (
            "data.train.x.path=a",
            "--set data.train.x.path: 'x' is not an index; there are 3",
        ),
        ("data.train.1=a.jsonl", "expected one of PythonPackages, JsonlPairs, TfdsPairs"),
        ("model=small", "--set model: expected Model, found 'small'"),
    ],
)
def test_set_refuses(override, message):
    assert message in refuse(apply_overrides, EVERY_KIND_OF_VALUE, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def experiment(:\n", ":1: not Python: invalid syntax"),
        ("x = 1\n", ": defines no function `experiment() -> Experiment`"),
        ("def experiment(): return 3\n", ": experiment() returned int; it must return Experiment"),
        ("\n\nimport nothing_of_this_name\n", ":3: ModuleNotFoundError: No module named"),
        ("def experiment():\n    x = 1\n    return x / 0\n", ":3: ZeroDivisionError: division"),
        ("def experiment():\n    raise SystemExit(0)\n", ":2: SystemExit: 0"),
        ("def f():\n    f()\ndef experiment():\n    f()\n", ": RecursionError: "),
    ],
)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_refuses_a_bad_file(tmp_path, monkeypatch, text, message, relative):
    path = write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    said = refuse(load_experiment, "mine.py" if relative else path)
    assert said.startswith(("mine.py", path))
    assert message in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnie.py", "mnie.py: no such experiment file; nearest: {folder}/mine.py"),
        ("xyz.py", "xyz.py: no such experiment file; see experiments/ for the ones there are"),
        (".", ": no such experiment file"),
        ("mine.txt", "mine.txt: not a Python file; an experiment is a .py file"),
    ],
)
def test_refuses_what_is_no_file_of_python(tmp_path, monkeypatch, name, message):
    for file in ("mine.py", "mine.txt"):
        (tmp_path / file).touch()
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    message = message.format(folder=tmp_path)
    assert message in refuse(load_experiment, str(tmp_path / name))
    assert message.replace(f"{tmp_path}/", "") in refuse(load_experiment, name)


def test_refuses_text_of_another_encoding(tmp_path):
    path = tmp_path / "mine.py"
    path.write_bytes(b"name = '\xe9'\n")
    assert f"{path}:1: not Python: (unicode error)" in refuse(load_experiment, str(path))


def test_refuses_a_wrong_type_in_a_file(tmp_path):
    path = write(
        tmp_path,
        "from pathlib import Path\n"
        "from dataclasses import replace\n"
        "from conftest import make_experiment\n"
        "from jaxcpt.config import Data, JsonlPairs\n"
        "def experiment():\n"
        "    return replace(make_experiment(), data=Data(train=(JsonlPairs(Path('a')),)))\n",
    )
    assert f"{path}: data.train.0.path: expected str, found" in refuse(load_experiment, path)


def test_names_the_nearest_fields_of_an_unknown_one_in_a_file(tmp_path):
    path = write(
        tmp_path,
        "from jaxcpt.config import Optimizer\n"
        "def experiment():\n"
        "    return Optimizer(learnin_rate=1e-3)\n",
    )
    said = refuse(load_experiment, path)
    assert said == (
        f"{path}:3: Optimizer has no field 'learnin_rate'; nearest: learning_rate, "
        "embedding_learning_rate"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-5], ":112: not JSON: Expecting"),
        (lambda t: "", ":1: not JSON: Expecting value"),
        (lambda t: "[]", ": expected Experiment, found []"),
        (lambda t: t.replace('"width": 16', '"width": "16"'), ": model.width: expected int, found"),
        (lambda t: t.replace('"width"', '"wide"'), ": model: Model has no field 'wide'; nearest: "),
        (lambda t: t.replace('"seed": 0,\n', ""), None),  # has a default
        (lambda t: t.replace('"train_steps": 6,\n', ""), ": Experiment needs the field 'train_st"),
        (lambda t: t.replace('"Model"', '"Mode"'), ": model: expected Model, found {"),
        (lambda t: t.replace('"JsonlPairs"', '["JsonlPairs"]'), "expected one of PythonPackages"),
        (lambda t: t.replace("0.98", "NaN"), ": optimizer.b2: expected a finite number, found nan"),
    ],
)
def test_refuses_a_damaged_run_folder(tmp_path, change, message):
    (tmp_path / "experiment.json").write_text(change(to_json(make_experiment())))
    if message is None:
        assert read_experiment(tmp_path) == make_experiment()
    else:
        said = refuse(read_experiment, tmp_path)
        assert said.startswith(str(tmp_path / "experiment.json"))
        assert message.lstrip(":0123456789") in said


def test_refuses_bytes_in_a_run_folder(tmp_path):
    (tmp_path / "experiment.json").write_bytes(b'{"name": "\xff"}')
    said = refuse(read_experiment, tmp_path)
    assert said == f"{tmp_path}/experiment.json: byte 10 is not UTF-8; the file is damaged"


def test_refuses_what_is_no_run_folder(tmp_path):
    said = refuse(read_experiment, tmp_path)
    assert said == f"{tmp_path}: not a run folder: it has no experiment.json"


def test_names_the_run_folders_beside_one_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = Path("runs/mien")
    assert refuse(read_experiment, missing) == "runs/mien: no such folder"
    for name in ("other", "third"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "experiment.json").touch()
    said = "runs/mien: no such folder; beside it: runs/other, runs/third"
    assert refuse(read_experiment, missing) == said
    Path("runs/other").rename("runs/mine")
    assert refuse(read_experiment, missing) == "runs/mien: no such folder; nearest: runs/mine"


def test_differences_name_each_leaf():
    old = make_experiment()
    assert differences(old, old) == []
    new = with_baseline(make_experiment(model__width=32, loss__prefixes=(8,)))
    found = differences(old, new)
    assert "model.width: 16 -> 32" in found
    assert "loss.prefixes.0: None -> 8" in found
    assert any(line.startswith("baseline") for line in found)


VALID = {
    "train_steps": "must be above 0, found 0",
    "log_every_steps": "must be above 0, found 0",
    "evals.every_steps": "must be above 0, found 0",
    "checkpoints.every_steps": "must be above 0, found 0",
    "checkpoints.keep": "must be above 0, found 0",
    "batching.pairs_per_batch": "must be above 0, found 0",
    "batching.chunks": "must be above 0, found 0",
    "batching.rows_per_cell": "must be above 0, found 0",
    "tokenizer.vocabulary": "must be above 0, found 0",
    "model.width": "must be above 0, found 0",
    "model.heads": "must be above 0, found 0",
    "model.mlp_width": "must be above 0, found 0",
    "loss.scale_start": "must be above 0, found 0",
    "optimizer.learning_rate": "must be above 0, found 0",
    "optimizer.clip_norm": "must be above 0, found 0",
}


@pytest.mark.parametrize("field", VALID)
def test_refuses_nothing_of_it(field):
    said = refuse(validate, apply_overrides(make_experiment(), [f"{field}=0"]))
    assert f"tiny: {field}: {VALID[field]}" in said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mesh.tensor=0"], "mesh: each axis must be above 0, or -1 for what the others leave"),
        (["optimizer.b2=1.0"], "optimizer: b1 and b2 must be in [0, 1) and eps above 0"),
        (["evals.suites=['sts']"], "evals.data: evals.suites need a folder to read from"),
        (["seed=-1"], "seed: must be from 0 to 16777215, found -1"),
        (["seed=16777216"], "seed: must be from 0 to 16777215, found 16777216"),
        (["model.layers=-1"], "model.layers: must be 0 or more, found -1"),
        (["data.train=()"], "data.train: no data; name at least one source"),
        (["data.weights=(1, 2)"], "data.weights: 2 weights for 1 sources"),
        (["data.weights=(-1,)"], "data.weights: must be above 0, found -1.0"),
        (["model.heads=3"], "model.heads: 3 heads do not divide the width 16"),
        (["model.heads=32"], "model.heads: 32 heads do not divide the width 16"),
        (["model.kv_heads=3"], "model.kv_heads: 3 key heads do not divide the 4 heads"),
        (["model.kv_heads=0"], "model.kv_heads: 0 key heads do not divide the 4 heads"),
        (
            ["model.positions=rotary", "model.heads=16"],
            "model.positions: rotary needs an even head width, found 1",
        ),
        (
            ["model.weighted_mean.token_weights=True"],
            "model.weighted_mean: token_weights and position_weights go with model.pooling=mean",
        ),
        (["batching.chunks=16"], "batching.chunks: 16 chunks for a batch of 15 pairs"),
        (
            ["tokenizer.y_tokens=33"],
            "batching.row_tokens: rows of 32 tokens cannot hold a text of 33",
        ),
        (["tokenizer.x_tokens=2"], "tokenizer.x_tokens, y_tokens: must be at least 3"),
        (["batching.token_dropout=1"], "batching.token_dropout: must be in [0, 1), found 1.0"),
        (["batching.negatives=-1"], "batching.negatives: must be 0 or more, found -1"),
        (["loss.prefixes=(16,)"], "loss.prefixes: must lie between 0 and the width 16"),
        (["loss.scale_start=101"], "loss.scale_start: 101.0 is above loss.scale_max 100.0"),
        (["optimizer.warmup_steps=6"], "optimizer.warmup_steps: 6 of 6 steps"),
        (["optimizer.warmup_steps=-1"], "optimizer.warmup_steps: -1 of 6 steps"),
    ],
)
def test_refuses_values_that_contradict(overrides, message):
    said = refuse(validate, apply_overrides(make_experiment(), overrides))
    assert said == f"tiny: {message}"


def test_refuses_sources_that_contradict():
    def told(source, field="train"):
        run = make_experiment()
        value = source if field == "heldout" else (source,)
        return refuse(validate, replace(run, data=replace(run.data, **{field: value})))

    needs = "tiny: data: a TfdsPairs source needs either a directory or a name"
    assert told(TfdsPairs()) == told(TfdsPairs("data/x", name="x"), "heldout") == needs
    assert told(TokenizedPairs("data/tokens"), "heldout") == (
        "tiny: data.heldout: TokenizedPairs hold no texts, which evals need"
    )


def with_baseline(run, **changes):
    given = {f.name: getattr(run, f.name) for f in dataclasses.fields(Baseline)}
    return replace(run, baseline=Baseline(**(given | {"name": "bag"} | changes)))


def test_a_baseline_is_its_run_but_for_what_it_names():
    run = with_baseline(EVERY_KIND_OF_VALUE, train_steps=3)
    baseline = derive_baseline(run)
    assert baseline == replace(EVERY_KIND_OF_VALUE, name="bag", train_steps=3)
    assert derive_baseline(baseline) is None
    # The tokenizer is shared, so a table of another size would be read beyond its end.
    larger = apply_overrides(run, ["tokenizer.vocabulary=500"])
    assert derive_baseline(larger).tokenizer.vocabulary == 500


def test_refuses_a_bad_baseline():
    run = with_baseline(make_experiment(), model=replace(make_experiment().model, heads=3))
    assert refuse(validate, run) == "bag: model.heads: 3 heads do not divide the width 16"


def test_shrink_keeps_what_is_no_size():
    experiment = with_baseline(EVERY_KIND_OF_VALUE, train_steps=900)
    small = validate(shrink(experiment))
    sizes = {"train_steps", "data", "tokenizer", "batching", "model", "optimizer", "mesh"}
    sizes |= {"checkpoints", "log_every_steps", "evals", "baseline", "loss"}
    for field in dataclasses.fields(experiment):
        if field.name not in sizes:
            assert getattr(small, field.name) == getattr(experiment, field.name)
    for part in ("tokenizer", "model", "optimizer", "batching", "loss"):
        changed = {
            d.split(".")[1].split(":")[0]
            for d in differences(experiment, small)
            if d.startswith(part)
        }
        assert changed <= {
            "vocabulary",
            "x_tokens",
            "y_tokens",
            "width",
            "layers",
            "heads",
            "kv_heads",
            "mlp_width",
            "pairs_per_batch",
            "chunks",
            "row_tokens",
            "rows_per_cell",
            "warmup_steps",
            "prefixes",
        }
    assert small.model.kv_heads == 2
    assert small.mesh == Mesh(2, 2, 2)
    assert derive_baseline(small).train_steps == small.train_steps


def test_a_command_says_one_line(capsys):
    def refuse_at_length(_):
        raise UserError("first\n   and second")

    def fill_the_disk(_):
        raise OSError(28, "No space left on device", "a.npy")

    def press_ctrl_c(_):
        raise KeyboardInterrupt

    for main, code, line in (
        (refuse_at_length, 2, "jaxcpt: first and second\n"),
        (fill_the_disk, 2, "jaxcpt: [Errno 28] No space left on device: 'a.npy'\n"),
        (press_ctrl_c, 130, "jaxcpt: interrupted\n"),
    ):
        with pytest.raises(SystemExit) as left:
            run_command(main, [])
        assert left.value.code == code
        assert capsys.readouterr() == ("", line)


def test_json_is_plain():
    tree = json.loads(to_json(EVERY_KIND_OF_VALUE))
    expected = {"type": "JsonlPairs", "path": "a.jsonl", "x": "x", "y": "code"}
    assert tree["data"]["train"][1].items() >= expected.items()
