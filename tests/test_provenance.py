"""The facts that a run records about its starts and its end."""

import json
import subprocess
import sys
from datetime import datetime

import jax

from jaxcpt import __version__
from jaxcpt.provenance import describe_end, find_commit, record_start
from jaxcpt.report.inputs import START, read_objects

DATA = [{"name": "pairs.jsonl", "pairs": 30, "texts": "a hash"}]


def test_each_start_adds_a_line(tmp_path):
    record_start(tmp_path, 0, "8 cpu devices", DATA)
    record_start(tmp_path, 3, "1 cpu device", DATA)
    first, second = read_objects(tmp_path / "starts.jsonl", START)
    assert (first["step"], second["step"]) == (0, 3)
    assert (first["devices"], second["devices"]) == ("8 cpu devices", "1 cpu device")
    assert first["data"] == [{"name": "pairs.jsonl", "pairs": 30}]
    assert first["versions"]["jaxcpt"] == __version__
    assert first["versions"]["jax"] == jax.__version__
    assert datetime.fromisoformat(first["date"]) <= datetime.fromisoformat(second["date"])


def test_the_command_can_be_typed_again(tmp_path):
    code = (
        "import pathlib, sys; from jaxcpt.provenance import record_start; "
        "record_start(pathlib.Path(sys.argv[1]), 0, '', [])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), "--set", "name=two words"]
    subprocess.run(command, check=True)
    recorded = json.loads((tmp_path / "starts.jsonl").read_text())["command"]
    assert recorded.startswith("python")
    assert recorded.endswith(f"{tmp_path} --set 'name=two words'")


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    git(tmp_path, "tag", "v1")  # the name of a tag is not a commit
    assert find_commit(tmp_path) == commit
    (tmp_path / "a.py").write_text("2")
    assert find_commit(tmp_path) == f"{commit}-dirty"


def test_a_folder_inside_another_checkout_has_no_commit(tmp_path):
    """For example, jaxcpt may be in a virtual environment inside the user's own checkout."""
    git(tmp_path, "init")
    (tmp_path / "site-packages").mkdir()
    assert find_commit(tmp_path / "site-packages") is None


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    git(tmp_path, "init")
    monkeypatch.setenv("PATH", "")
    assert find_commit(tmp_path) is None


def test_the_end_has_a_date_and_the_peak_of_memory():
    end = describe_end()
    assert datetime.fromisoformat(end["date"]).tzinfo is not None
    assert 10**7 < end["host_memory_bytes"] < 10**12
    assert "device_memory_bytes" not in end  # a CPU does not count its memory
