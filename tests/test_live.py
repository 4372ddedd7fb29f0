"""A run's numbers reach Weights & Biases and MLflow. A resumed run goes on in the same place."""

import json
import struct

import pytest
from conftest import make_experiment

from jaxcpt import train as training
from jaxcpt.errors import UserError
from jaxcpt.experiments import EXPERIMENT_FILE, to_json
from jaxcpt.live import BOARDS, LIVE_FILE, LiveBoards
from jaxcpt.metrics import MetricsLog, read_rows
from jaxcpt.train import train


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run folder as the current folder's child; the libraries write into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / EXPERIMENT_FILE).write_text(to_json(make_experiment()))
    return tmp_path / "run"


def read_records(path):
    """The messages of a file that wandb writes offline: LevelDB's log format after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # the end of a block is empty
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def read_wandb(folder):
    """The rows of all offline runs in the order of their starts, and their ids."""
    rows, ids = [], set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for record in read_records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = {item.nested_key[0]: item.value_json for item in record.history.item}
                rows.append({name: json.loads(value) for name, value in items.items()})
    return rows, ids


def test_a_run_that_resumes_goes_on_in_the_same_run_of_wandb(run_dir, pairs_file):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    (run_dir / EXPERIMENT_FILE).unlink()
    run = make_experiment(pairs_file, train_steps=3)
    for _ in range(2):
        train(run, run_dir, run_dir, live=("wandb",))
    rows, ids = read_wandb(run_dir.parent)
    assert ids == {json.loads((run_dir / LIVE_FILE).read_text())["wandb"]}
    sent = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert sent == {row["step"]: row["loss"] for row in read_rows(run_dir / "metrics.jsonl")}
    assert [row["step"] for row in rows if "heldout/mrr" in row] == [3]


def test_a_run_that_resumes_goes_on_in_the_same_run_of_mlflow(run_dir):
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow import MlflowClient

    for start in (0, 1):
        with MetricsLog(run_dir, 9, start, writes=True, live=("mlflow",)) as log:
            log.log(start + 1, {"loss": 3.0 - start})
            log.log_evals(start + 1, {"heldout/mrr": 0.5})
    run_id = json.loads((run_dir / LIVE_FILE).read_text())["mlflow"]
    history = MlflowClient().get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 2.0)]
    history = MlflowClient().get_metric_history(run_id, "heldout/mrr")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.5)]


@pytest.mark.parametrize("library", BOARDS)
def test_a_library_that_is_missing_is_named_before_the_experiment_is_read(
    library, refuse, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = refuse(training, "--experiment", "absent.py", f"--{library}")
    assert said == f"--{library}: needs {library}: pip install 'jaxcpt[{library}]'"


class Broken:
    """A board whose server is gone."""

    id = "1"

    def __init__(self, *_):
        pass

    def log(self, step, scalars):
        raise ConnectionError("no answer\nfrom the server")

    def close(self):
        raise AssertionError("it is not used again")


def test_a_board_that_fails_is_named_once_and_the_run_goes_on(run_dir, monkeypatch):
    monkeypatch.setitem(BOARDS, "wandb", Broken)
    said = []
    boards = LiveBoards(["wandb"], run_dir, said.append)
    boards.log(1, {"loss": 1.0})
    boards.log(2, {"loss": 1.0})
    boards.close()
    assert said == ["wandb gets no more numbers of this start: ConnectionError: no answer"]


def test_a_board_that_cannot_begin_is_refused(run_dir, monkeypatch):
    def fail(*_):
        raise ConnectionError("no answer\nfrom the server")

    monkeypatch.setitem(BOARDS, "wandb", fail)
    with pytest.raises(UserError, match=r"^--wandb: ConnectionError: no answer$"):
        LiveBoards(["wandb"], run_dir, print)


def test_a_run_without_boards_keeps_no_ids(run_dir):
    with MetricsLog(run_dir, 9, 0, writes=True) as log:
        log.log(1, {"loss": 1.0})
    assert not (run_dir / LIVE_FILE).exists()
