"""Mining on a Dask cluster of two worker processes gives the same bytes as on one machine."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[dask]'")
pytest.importorskip("distributed", reason="needs pip install 'jaxcpt[dask]'")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a scheduler with two workers, each a process of its own."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    start = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    scheduler = [*start, "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-dashboard", "--no-nanny"]
    worker += ["--nthreads", "2", "--scheduler-file", str(file)]
    options = {"env": ENVIRONMENT, "cwd": folder, "stdout": subprocess.DEVNULL}
    options["stderr"] = subprocess.DEVNULL
    processes = [subprocess.Popen(command, **options) for command in (scheduler, worker, worker)]
    while not file.is_file():
        assert processes[0].poll() is None
        time.sleep(0.1)
    yield json.loads(file.read_text())["address"]
    for process in reversed(processes):
        process.terminate()
        process.wait()


def mine(folder, output, *options):
    command = [sys.executable, "-m", "jaxcpt", "mine-text", "--input", folder, "--output", output]
    command += ["--name", "mined", "--languages", "all", "--no-quality-filter", "--shards", "3"]
    command += ["--piece-chars", "150", "400"]
    done = subprocess.run(
        [*map(str, command), *options], env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }


def make_document(seed):
    words = [f"word{random.Random(seed * 1000 + n).randrange(3000)}" for n in range(192)]
    return " ".join(f"{word}{'.' * (n % 8 == 7)}" for n, word in enumerate(words))


def test_a_dask_cluster_gives_the_same_bytes(tmp_path, address):
    documents = [make_document(seed) for seed in range(60)]
    words = documents[1].split()
    near = " ".join("other" if n % 32 == 9 else word for n, word in enumerate(words))
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        texts = documents[number::6] + ([documents[0], near] if number == 4 else [])
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        # The long blank line makes each file a separate unit, so that both workers mine.
        (folder / f"{number}.jsonl").write_text(lines + " " * (5 * 2**20) + "\n")
    (folder / "bad.jsonl").write_text('{"text": \n')
    expected = mine(folder, tmp_path / "direct", "--workers", "2")
    client = ["--", "--runner", RUNNER, "--dask_client_address", address]
    for name, partitions in (("one", []), ("many", ["--dask_partition_size", "1"])):
        assert mine(folder, tmp_path / name, *client, *partitions) == expected
    card = json.loads(expected["data_card.json"])
    assert card["dropped"]["near duplicate"]
    assert card["dropped"]["exact duplicate"]
