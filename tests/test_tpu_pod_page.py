"""Runs the commands of docs/tpu-pod.md in order, at a tiny size, with a store on this machine."""

import json
import re
import shlex
import subprocess

import pytest
from conftest import PAIRS, REPOSITORY
from object_store import find_port, running_store, start_command, use_store

from jaxcpt.files import to_path, write_file
from jaxcpt.pairs import write_pairs

pytest.importorskip("gcsfs", reason="needs the extra cloud-test")
pytest.importorskip("gcp_storage_emulator", reason="needs the extra cloud-test")

PAGE = (REPOSITORY / "docs" / "tpu-pod.md").read_text()
COMMANDS = re.findall(r"^(?:until )?(jaxcpt [^;\n]*)", PAGE, re.MULTILINE)
DATA = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
TINY = f"""
from dataclasses import replace
from jaxcpt.config import *

{DATA}

def experiment():
    return Experiment(
        name="tiny", train_steps=4, log_every_steps=1, data=data,
        tokenizer=replace(tokenizer, vocabulary=275, x_tokens=12, y_tokens=24),
        batching=Batching(pairs_per_batch=16, row_tokens=32),
        model=Model(width=16, layers=1, heads=2, compute_dtype="float32"),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=1),
        checkpoints=Checkpoints(2), evals=Evals(every_steps=2),
    )
"""
HOSTS = 2


@pytest.fixture
def start(tmp_path):
    with running_store("my-bucket") as address:
        use_store(address)

        def start(command, host):
            folder = tmp_path / f"host{host}"
            folder.mkdir(exist_ok=True)
            (folder / "experiment.py").write_text(TINY)
            arguments = shlex.split(command)[1:]
            return start_command(address, folder, *arguments, stderr=subprocess.STDOUT)

        yield start


def test_every_command_of_the_page_works(start):
    verbs = [command.split()[1] for command in COMMANDS]
    assert verbs.count("train") == 3
    assert verbs[:2] == ["train-tokenizer", "tokenize-pairs"]
    data = to_path("gs://my-bucket/data")
    for name in ("pairs", "heldout"):
        write_pairs(data / f"{name}.jsonl", PAIRS)
    corpus = [json.dumps({"text": pair.y}) for pair in PAIRS]
    write_file(data / "corpus.jsonl", "\n".join(corpus))
    trained = 0
    for command in COMMANDS:
        command, hosts = command.replace("--vocabulary 32000", "--vocabulary 275"), 1
        if " train " in command:
            trained += 1
            if trained < 3:  # the last one is on another slice: on one host
                hosts, port = HOSTS, find_port()
                command += f" --coordinator localhost:{port} --num-processes {hosts}"
                command += " --wait 200 --process-id "
        several = [start(command + str(host) * (hosts > 1), host) for host in range(hosts)]
        outputs = [process.communicate(timeout=900)[0] for process in several]
        assert [process.returncode for process in several] == [0] * hosts, "\n".join(
            [command, *outputs]
        )
        assert ("resuming at step 4 of 4" in outputs[0]) == (" train " in command and trained > 1)
        assert "warn" not in " ".join(outputs).lower()
    assert (to_path("gs://my-bucket/exported") / "modules.json").is_file()
