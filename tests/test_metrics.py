"""Numbers of a run are in its files, once and in order, also after a kill and a resume."""

import json
import math
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxcpt.errors import UserError
from jaxcpt.metrics import MetricsLog, Throughput, read_rows, record_evals


def record(run_dir, steps, start=0, total=100, scalars=None):
    with MetricsLog(run_dir, total, start, writes=True) as log:
        for step in steps:
            log.log(step, scalars or {"loss": 1 / step})


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def read_events(run_dir):
    """Yields (tag, step, value) of every scalar. A record is length, crc, bytes, crc."""
    events = []
    for path in sorted(run_dir.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack_from("<Q", data)
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            events += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return events


def test_each_line_holds_the_step_and_its_scalars(tmp_path):
    scalars = {"loss": np.float32(2.5), "padding": 0.25}
    record(tmp_path, [10, 20], scalars=scalars)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "loss": 2.5, "padding": 0.25},
        {"step": 20, "loss": 2.5, "padding": 0.25},
    ]


def test_tensorboard_events_hold_the_same_numbers(tmp_path):
    with MetricsLog(tmp_path, 100, 0, writes=True) as log:
        log.log(10, {"loss": 2.5})
        log.log_evals(10, {"heldout/mrr": 0.5})
    assert read_events(tmp_path) == [("train/loss", 10, 2.5), ("heldout/mrr", 10, 0.5)]


def test_resume_leaves_each_step_once_and_in_order(tmp_path):
    with MetricsLog(tmp_path, 100, 0, writes=True) as log:
        for step in (10, 20, 30, 40):
            log.log(step, {"loss": step})
            log.log_evals(step, {"heldout/mrr": step})
    with MetricsLog(tmp_path, 100, 20, writes=True) as log:
        log.log(30, {"loss": -30})
        log.log_evals(30, {"heldout/mrr": -30})
    assert [row["loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [10, 20, -30]
    assert [row["heldout/mrr"] for row in read_rows(tmp_path / "evals.jsonl")] == [10, 20, -30]


def test_a_torn_last_line_is_dropped_on_resume(tmp_path):
    record(tmp_path, [10, 20, 30])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    record(tmp_path, [30], start=20)
    assert steps_in(path) == [10, 20, 30]


def test_a_complete_last_line_without_its_end_is_kept(tmp_path):
    record(tmp_path, [10, 20])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    record(tmp_path, [30], start=20)
    assert steps_in(path) == [10, 20, 30]


@pytest.mark.parametrize("line", ["{oops", "[]", '{"loss": 1}', '{"step": 3, "loss": null}', ""])
def test_a_broken_line_before_the_last_is_refused(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError) as refusal:
        record(tmp_path, [4], start=3)
    expected = f"{path}:2: not an object of a step and its numbers; remove the line"
    assert str(refusal.value) == expected


KILLED = """
import os, signal, sys, pathlib
from jaxcpt.metrics import MetricsLog
with MetricsLog(pathlib.Path(sys.argv[1]), 100, 0, writes=True) as log:
    for step in range(1, 51):
        log.log(step, {"loss": 1.0})
        if step % 10 == 0:
            log.log_evals(step, {"heldout/mrr": 0.5})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_loses_no_line_that_was_logged(tmp_path):
    result = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True)
    assert result.returncode == -signal.SIGKILL
    assert steps_in(tmp_path / "metrics.jsonl") == list(range(1, 51))
    assert steps_in(tmp_path / "evals.jsonl") == [10, 20, 30, 40, 50]


def test_not_finite_is_valid_json_comes_back_and_is_said_once(tmp_path, capsys):
    bad = {"loss": math.nan, "gradient_norm": math.inf}
    with MetricsLog(tmp_path, 100, 0, writes=True) as log:
        for step, scalars in [(1, bad), (2, bad), (3, {"loss": 1.0}), (4, {"loss": -math.inf})]:
            log.log(step, scalars)

    def refuse(constant):
        raise AssertionError(constant)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0], parse_constant=refuse)
    assert first == {"step": 1, "loss": "nan", "gradient_norm": "inf"}
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert math.isnan(rows[0]["loss"])
    assert rows[0]["gradient_norm"] == math.inf
    assert rows[3]["loss"] == -math.inf
    said = [line for line in capsys.readouterr().out.splitlines() if " is " in line]
    assert said == ["step 1: loss is nan, gradient_norm is inf", "step 4: loss is -inf"]


def test_evals_of_a_step_are_joined_and_ordered(tmp_path):
    record_evals(tmp_path, 20, {"heldout/mrr": 0.2, "heldout/recall_at_1": 0.1})
    record_evals(tmp_path, 10, {"heldout/mrr": 0.1})
    record_evals(tmp_path, 20, {"baseline/mrr": 0.3, "heldout/mrr": 0.25})
    assert read_rows(tmp_path / "evals.jsonl") == [
        {"step": 10, "heldout/mrr": 0.1},
        {"step": 20, "heldout/mrr": 0.25, "heldout/recall_at_1": 0.1, "baseline/mrr": 0.3},
    ]


def test_other_processes_write_and_print_nothing(tmp_path, capsys):
    with MetricsLog(tmp_path, 100, 0, writes=False) as log:
        log.log(10, {"loss": math.nan})
        log.log_evals(10, {"heldout/mrr": 0.5})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_evals_are_recorded_beyond_those_that_are_shown(tmp_path, capsys):
    scores = {f"heldout/recall_at_{k}": 0.5 for k in range(11)}
    with MetricsLog(tmp_path, 100, 10, writes=True) as log:
        log.log_evals(20, scores)
    assert capsys.readouterr().out.endswith("  and 2 more in evals.jsonl\n")
    assert len(read_rows(tmp_path / "evals.jsonl")[-1]) == 12


def test_throughput_counts_work_without_pauses(tmp_path):
    now = 0.0
    throughput = Throughput(peak_flops=1000.0, clock=lambda: now)
    for _ in range(2):
        with throughput.waiting_for_data():
            now += 1
        now += 3
        throughput.count(pairs=40, tokens=800, flops=2000.0)
    with throughput.paused("save"):
        now += 2
    with throughput.paused("eval"):
        now += 30
    assert throughput.read() == {
        "pairs_per_s": 10.0,
        "tokens_per_s": 200.0,
        "data_wait": 0.25,
        "save_share": 0.05,
        "eval_share": 0.75,
        "mfu": 0.5,
    }
    now += 2
    throughput.count(pairs=1, tokens=4)
    assert throughput.read() == {
        "pairs_per_s": 0.5,
        "tokens_per_s": 2.0,
        "data_wait": 0.0,
        "save_share": 0.0,
        "eval_share": 0.0,
        "mfu": 0.0,
    }


def test_without_a_known_peak_there_is_no_mfu():
    throughput = Throughput()
    throughput.count(pairs=1, tokens=1, flops=1.0)
    assert "mfu" not in throughput.read()


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "7",
        "null",
        '{"loss": 1}',
        '{"step": "1"}',
        '{"step": 1.0}',
        '{"step": true}',
        '{"step": -1}',
        '{"step": 1e400}',
        '{"step": 1000000000000000}',
        '{"step": 1, "loss": null}',
        '{"step": 1, "loss": true}',
        '{"step": 1, "loss": "0.5"}',
        '{"step": 1, "loss": [1]}',
        '{"step": 1, "loss": 1e400}',
        f'{{"step": 1, "loss": {"9" * 400}}}',
        f'{{"step": 1, "loss": {"9" * 5000}}}',
        '{"step": 1, "\\ud800": 1}',
        '{"step": 1, "loss": ' + "[" * 100_000,
        '{"step": 1, "lo',
    ],
)
def test_a_line_of_another_kind_is_refused_unless_it_is_the_torn_last_one(tmp_path, line):
    path = tmp_path / "evals.jsonl"
    for content in (f'{line}\n{{"step": 2}}\n', f"{line}\n"):
        path.write_text(content)
        with pytest.raises(UserError) as refusal:
            read_rows(path)
        said = f"{path}:1: not an object of a step and its numbers; remove the line"
        assert str(refusal.value) == said
    path.write_text(f'{{"step": 2}}\n{line}')
    assert read_rows(path) == [{"step": 2}]
