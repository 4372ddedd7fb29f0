"""The mining commands for a user: errors, damaged input, and killed runs."""

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter

import pytest
from conftest import REPOSITORY

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

import pyarrow
import pyarrow.parquet
import tensorflow_datasets as tfds

from jaxcpt.mining.command import make_parser

OPEN = ["--languages", "all", "--no-quality-filter"]


def make_text(seed, sentences=40):
    rng = random.Random(seed)
    words = (f"word{rng.randrange(3000)}" for _ in range(8 * sentences))
    return " ".join(f"{next(words)}{'.' * (n % 8 == 7)}" for n in range(8 * sentences))


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def start(verb, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "jaxcpt", verb, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell makes its background jobs ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    ("verb", "arguments", "told"),
    [
        ("mine-text", ["--languages", "xx"], "--languages: unknown language 'xx'"),
        ("mine-code", ["--languages", "c"], "--languages: unknown language 'c'; known: python"),
        ("mine-code", ["--name", "1st"], "--name 1st: expected a letter, then letters, digits"),
        ("mine-code", ["--version", "1"], "--version 1: expected three numbers, such as 1.0.0"),
        ("mine-code", ["--heldout-share", "1"], "--heldout-share 1.0: expected a number"),
        ("mine-code", ["--near-duplicate", "2"], "--near-duplicate 2.0: expected a number in"),
        ("mine-code", ["--max-bad-share", "2"], "--max-bad-share 2.0: expected a number in"),
        ("mine-code", ["--shards", "0"], "--shards 0: expected a number 1 or more"),
        ("mine-code", ["--workers", "0"], "--workers 0: expected a number 1 or more"),
        ("mine-text", ["--document-start", "["],
         "--document-start [: not a regular expression: unterminated"),
        ("mine-code", ["--", "--runner", "No"], "--runner No: Unexpected pipeline runner: No."),
        ("mine-code", ["--", "--shards", "2"], "--shards: not an option of Beam; give this"),
        ("mine-code", ["--", "stray"], "stray: unexpected argument; give paths after --input"),
        ("mine-code", ["--input"], "--input: no input files; name files of a type"),
    ],
)  # fmt: skip
def test_commands_refuse_in_one_line(tmp_path, verb, arguments, told):
    (tmp_path / "in").mkdir()
    for name in ("a.py", "a.txt"):
        (tmp_path / "in" / name).write_text("def f(): pass\n")
    if "--input" not in arguments:
        arguments = ["--input", tmp_path / "in", *arguments]
    process = start(verb, "--output", tmp_path / "out", *arguments)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith(f"jaxcpt: {told}")
    assert errors.count("\n") == 1
    assert output == ""


def test_a_repeated_option_adds_to_its_earlier_values():
    given = ["--input", "a", "b", "--input", "c", "--decontaminate", "d", "--decontaminate", "e"]
    for _ in range(2):  # One command must not change the defaults of the next.
        arguments = make_parser("jaxcpt mine-text", None).parse_args(["--output", "o", *given])
        assert arguments.input == ["a", "b", "c"]
        assert arguments.decontaminate == ["d", "e"]
    assert make_parser("jaxcpt mine-text", None).parse_args(["--output", "o"]).input == []


def test_document_start_cuts_a_file_into_documents(tmp_path):
    titles = (f"= Title {n} =\n{make_text(n)}\n" for n in range(3))
    (tmp_path / "a.txt").write_text("".join(titles))
    options = ["--document-start", "^= Title", "--workers", 1, *OPEN]
    command = start(
        "mine-text", "--input", tmp_path / "a.txt", "--output", tmp_path / "out", *options
    )
    said = command.communicate(timeout=300)
    assert command.returncode == 0, said
    card = json.loads((tmp_path / "out" / "data_card.json").read_text())
    assert card["counts"]["documents read"] == 3


def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path):
    source, work = tmp_path / "a.jsonl", tmp_path / "out.unfinished"
    write_jsonl(source, [make_text(seed, 24) for seed in range(60)] * 60)
    arguments = ["--input", source, "--output", tmp_path / "out", "--workers", "2", *OPEN]
    for number, code, left in ((signal.SIGINT, 130, False), (signal.SIGKILL, -9, True)):
        process = start("mine-text", *arguments)
        while not list(work.glob("run-*/fingerprints/*")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert errors == ("" if left else "jaxcpt: interrupted\n")
        assert work.exists() == left
        assert not (tmp_path / "out").exists()
    again = start("mine-text", *arguments)
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "pairs; see" in output
    assert "pairs mined" in errors
    assert not work.exists()
    train = tfds.builder_from_directory(tmp_path / "out").as_data_source("train")
    assert len(train) > 100


def write_damaged_text(folder):
    """Writes good and damaged files to the folder. Returns the expected count of each problem."""
    texts = [make_text(seed) for seed in range(40)]
    write_jsonl(folder / "whole.jsonl", texts[:20])
    lines = (folder / "whole.jsonl").read_bytes()
    packed = gzip.compress(lines)
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "never.txt.gz").write_bytes(b"no gzip")
    with pyarrow.CompressedOutputStream(str(folder / "whole.jsonl.zst"), "zstd") as stream:
        stream.write(lines)
    packed = (folder / "whole.jsonl.zst").read_bytes()
    (folder / "cut.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[20:30]}), folder / "whole.parquet")
    (folder / "cut.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-50])
    (folder / "odd.jsonl").write_bytes(
        b'{"text": \n{"title": "x"}\n{"text": ""}\n{"text": "\xe9"}\n'
    )
    (folder / "latin.txt").write_bytes("é".encode("latin-1") * 400)
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "long.txt").write_bytes(b"word " * (20 * 2**20 // 5))
    (folder / "passwd.txt").symlink_to("/etc/passwd")
    (folder / "etc").symlink_to("/etc")
    with tarfile.open(folder / "climbs.tar.gz", "w:gz") as archive:
        for name in ("../a.txt", "/b.txt", "fine.txt"):
            member, content = tarfile.TarInfo(name), texts[30].encode()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(folder / "climbs.zip", "w") as archive:
        archive.writestr("../a.txt", texts[31])
        archive.writestr("fine.txt", texts[31])
    return {
        "JSON does not parse": 1,
        "archive member climbs out of its folder": 3,
        "bad UTF-8": 2,
        "binary file": 1,
        "broken gzip": 2,
        "broken parquet": 1,
        "broken zstd": 1,
        "line or record too long": 1,
        "record without text under 'text'": 2,
        "symbolic link out of the input": 2,
    }


def write_damaged_code(folder):
    for number in range(6):
        function = (
            f'def f{number}(a):\n    """Does the {number}. of six."""\n    b = a + {number}\n'
        )
        (folder / f"whole{number}.py").write_text(function + "    return b\n")
    (folder / "broken.go").write_text("package a\nfunc (\n")
    (folder / "latin.rb").write_bytes("# é\n".encode("latin-1"))
    (folder / "binary.js").write_bytes(b"var a\0")
    (folder / "out.py").symlink_to("/etc/passwd")
    (folder / "cut.zip").write_bytes(b"PK\3\4")
    return {
        "bad UTF-8": 1,
        "binary file": 1,
        "broken zip": 1,
        "source does not parse": 1,
        "symbolic link out of the input": 1,
    }


@pytest.mark.parametrize(
    ("verb", "write", "options", "pairs"),
    [("mine-text", write_damaged_text, OPEN, 50), ("mine-code", write_damaged_code, [], 6)],
)
def test_damaged_input_is_counted_and_listed_and_too_much_is_refused(
    tmp_path, verb, write, options, pairs
):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    expected = write(folder)
    options = ["--input", folder, "--output", out, "--workers", "1", *options]
    process = start(verb, *options, "--max-bad-share", "0.01")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    told = f"{sum(expected.values())} of "
    assert errors.startswith(f"jaxcpt: {folder}: {told}")
    assert errors.endswith(", above --max-bad-share 0.01\n")
    assert errors.count("\n") == 1
    assert os.listdir(tmp_path) == ["in"]

    process = start(verb, *options, "--max-bad-share", "0.9")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    card = json.loads((out / "data_card.json").read_text())
    problem = "problem: "
    counts = {
        what.removeprefix(problem): n for what, n in card["counts"].items() if problem in what
    }
    assert counts == expected
    listed = "".join(path.read_text() for path in (out / "dropped").iterdir()).splitlines()
    reasons = Counter(json.loads(line)["reason"] for line in listed)
    assert {reason: reasons[reason] for reason in expected} == expected
    assert sum(card["pairs"].values()) >= pairs
    assert "root:" not in (out / "data_card.md").read_text()  # This text is in /etc/passwd.
