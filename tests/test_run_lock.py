"""Only one process at a time writes to a run folder. The lock of a killed process is removed."""

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest
from conftest import REPOSITORY
from tiny_run import copy_run, tiny_experiment

from jaxcpt import evaluate, run_lock
from jaxcpt.errors import LOST_PEER, UserError
from jaxcpt.run_folder import claim, own_folder, remove_run
from jaxcpt.run_lock import PREFIX, FolderInUse, Holder, RunLock, describe_self
from jaxcpt.train import train

ELSEWHERE = replace(describe_self(), host="far", machine="other boot", pid=77, held=True)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", 0.8)
    monkeypatch.setattr(run_lock, "UNREADABLE_SECONDS", 0.4)


def leave_lock(folder, holder: Holder | bytes, name="1"):
    path = folder / f"{PREFIX}{name}.json"
    content = holder if isinstance(holder, bytes) else json.dumps(asdict(holder)).encode()
    path.write_bytes(content)
    return path


def list_locks(folder):
    """The lock files, without the temporary file of a renewal."""
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if name.startswith(PREFIX) and name.endswith(".json")]


def start_holder(folder):
    """Starts a process that holds the lock of a folder."""
    code = (
        "import sys, time; from pathlib import Path; from jaxcpt import run_lock\n"
        "run_lock.BEAT_SECONDS = 0.1\n"
        "with run_lock.RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_nothing_stays_and_the_next_one_may_enter(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path) as held:
            assert list_locks(tmp_path) == [held.path.name]
        assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path):
    first = start_holder(tmp_path)
    try:
        with pytest.raises(FolderInUse) as refused, RunLock(tmp_path):
            pass
        (lock,) = list_locks(tmp_path)
        text = str(refused.value)
        assert text.startswith(f"{tmp_path}: process {first.pid} on {describe_self().host} has ")
        assert text.endswith(
            f"; wait for it or stop it (kill {first.pid}); if it is surely gone, delete "
            f"{tmp_path / lock}"
        )
    finally:
        first.kill()  # without waiting for it: a zombie holds no lock
    with RunLock(tmp_path) as held:
        assert list_locks(tmp_path) == [held.path.name]
    first.communicate()


def test_a_process_id_in_use_again_holds_nothing(tmp_path):
    leave_lock(tmp_path, replace(describe_self(), process_start="12", held=True))
    with RunLock(tmp_path) as held:
        assert list_locks(tmp_path) == [held.path.name]


def test_another_machine_is_watched(tmp_path, capsys):
    path = leave_lock(tmp_path, ELSEWHERE)
    with RunLock(tmp_path):
        assert not path.exists()
    assert "locked by process 77 on far; watching for 1 s" in capsys.readouterr().out
    leave_lock(tmp_path, ELSEWHERE)
    ended = threading.Event()

    def renew(beat=0):
        while not ended.wait(0.1):
            leave_lock(tmp_path, replace(ELSEWHERE, beat=(beat := beat + 1)))

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(FolderInUse, match="process 77 on far has been writing there"):
        RunLock(tmp_path).__enter__()
    ended.set()
    renewing.join()
    assert list_locks(tmp_path) == [path.name]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"host": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_lock_is_removed_after_a_while(tmp_path, content):
    leave_lock(tmp_path, content)
    with RunLock(tmp_path) as held:
        assert list_locks(tmp_path) == [held.path.name]


def test_a_pipe_in_place_of_a_lock_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / f"{PREFIX}1.json")
    with RunLock(tmp_path) as held:
        assert list_locks(tmp_path) == [held.path.name]


def test_a_folder_in_place_of_a_lock_is_named(tmp_path):
    (tmp_path / f"{PREFIX}1.json").mkdir()
    with pytest.raises(FolderInUse, match=r"1\.json: not a lock of jaxcpt; move it away"):
        RunLock(tmp_path).__enter__()


def test_of_many_at_once_one_gets_it(tmp_path):
    """The processes start at the same moment, and each would hold the lock for seconds."""
    code = (
        "import sys, time; from pathlib import Path; from jaxcpt import run_lock\n"
        "run_lock.PATIENCE_SECONDS = 0.0\n"
        "print('ready', flush=True)\n"
        "while not Path(sys.argv[1], 'go').exists(): time.sleep(0.001)\n"
        "try:\n"
        "    with run_lock.RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(4)\n"
        "except run_lock.FolderInUse: print('refused')\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    assert {process.stdout.readline() for process in processes} == {"ready\n"}
    (tmp_path / "go").touch()
    said = sorted(process.communicate()[0] for process in processes)
    assert said == ["held\n"] + ["refused\n"] * 5
    assert list_locks(tmp_path) == []


def test_a_process_that_was_taken_for_dead_stops_writing(tmp_path):
    first = start_holder(tmp_path)
    leave_lock(tmp_path, ELSEWHERE, "9")
    _, said = first.communicate(timeout=20)
    assert first.returncode == LOST_PEER
    assert said == (
        f"jaxcpt: {tmp_path}: process 77 on far has taken it over, because this process did not "
        "answer for a while; stopped\n"
    )


def test_commands_respect_the_lock(tmp_path, capsys):
    run_dir = copy_run(tmp_path)
    before = (run_dir / "evals.jsonl").read_bytes()
    first = start_holder(run_dir)
    try:
        with pytest.raises(FolderInUse, match=rf"run: process {first.pid} on "):
            train(tiny_experiment(), run_dir, run_dir)
        claim(run_dir)
        with pytest.raises(FolderInUse):
            remove_run(run_dir)
        evaluate.record(run_dir, 6, {"sts/mean": 1.0})
        said = capsys.readouterr().out
        assert f"shown and not recorded; evaluate again for that: {run_dir}: process" in said
        assert (run_dir / "evals.jsonl").read_bytes() == before
    finally:
        first.kill()
        first.communicate()
    evaluate.record(run_dir, 6, {"sts/mean": 1.0})
    assert b"sts/mean" in (run_dir / "evals.jsonl").read_bytes()


def test_a_second_start_does_not_clear_what_the_first_has_begun(tmp_path):
    with own_folder(tmp_path):
        (tmp_path / "tokenizer").mkdir()
        with pytest.raises(UserError, match=re.escape(str(tmp_path))), own_folder(tmp_path):
            pass
        assert (tmp_path / "tokenizer").is_dir()
