"""A run folder is claimed before anything is written, and other files are never touched."""

import pytest
from conftest import make_experiment

from jaxcpt.errors import UserError
from jaxcpt.experiments import to_json
from jaxcpt.run_folder import MARKER, check_same_experiment, claim, own_folder, remove_run
from jaxcpt.train import train


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    mine = tmp_path / "data" / "pairs" / "train.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("my only copy\n")
    with pytest.raises(UserError, match=r"data: not a run folder, and not empty: it holds pairs;"):
        claim(tmp_path / "data")
    experiment = make_experiment(mine)
    with pytest.raises(UserError, match="not a run folder, and not empty"):
        train(experiment, tmp_path / "data", tmp_path / "data")
    assert mine.read_text() == "my only copy\n"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["pairs"]


def test_an_absent_or_empty_folder_is_claimed(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deep"):
        claim(tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == [MARKER]


def test_what_a_refused_start_left_is_removed_and_nothing_else(tmp_path):
    claim(tmp_path / "run")
    for name in ("tokenizer", "notes"):
        (tmp_path / "run" / name).mkdir()
    with own_folder(tmp_path / "run"):
        pass
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [MARKER, "notes"]


def test_a_run_that_has_begun_keeps_everything(tmp_path):
    """This also holds for a run of a version that wrote no marker."""
    (tmp_path / "experiment.json").write_text(to_json(make_experiment()))
    (tmp_path / "tokenizer").mkdir()
    with own_folder(tmp_path):
        pass
    assert (tmp_path / "tokenizer").is_dir()
    assert check_same_experiment(tmp_path, make_experiment()) == []
    chunked = make_experiment(batching__chunks=3, safety__max_bad_steps=9, log_every_steps=7)
    assert check_same_experiment(tmp_path, chunked) == [
        "batching.chunks: 1 -> 3",
        "safety.max_bad_steps: 3 -> 9",
        "log_every_steps: 1 -> 7",
    ]
    with pytest.raises(UserError, match=r"different experiment \(model.layers: 2 -> 1\)"):
        check_same_experiment(tmp_path, make_experiment(model__layers=1))


def test_only_a_run_folder_is_ever_removed(tmp_path):
    claim(tmp_path / "run")
    remove_run(tmp_path / "run")
    remove_run(tmp_path / "run")  # there is none now
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine: not made by jaxcpt; move it away"):
        remove_run(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize("name", ["../mine", "/tmp/x", "..", "", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(UserError, match="cannot name a folder"):
        make_experiment(name=name)
