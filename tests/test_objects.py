"""Paths in a store behave like those of pathlib, and errors are one line.

The stores are real processes: an emulator of Google Cloud Storage, and moto's S3.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import PAIRS, REPOSITORY
from object_store import find_port, running_store, set_faults, use_store

from jaxcpt import object_cache, objects
from jaxcpt.errors import UserError
from jaxcpt.files import hash_file, new_folder, remove_tree, to_path, write_file
from jaxcpt.lines import read_lines
from jaxcpt.metrics import MetricsLog, read_rows
from jaxcpt.pairs import find_source, open_source, write_pairs
from jaxcpt.pairs.jsonl import read_pairs
from jaxcpt.sources import ArrayRecordPairs, JsonlPairs, ParquetPairs
from jaxcpt.tokenizer import Tokenizer
from jaxcpt.vectors import Part, Storage, TextWithId, VectorFolder, fill, fill_part

pytest.importorskip("gcsfs", reason="needs the extra cloud-test")
pytest.importorskip("gcp_storage_emulator", reason="needs the extra cloud-test")
pytest.importorskip("moto", reason="needs the extra cloud-test")

KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def running_s3():
    port = find_port()
    command = [sys.executable, "-m", "moto.server", "-H", "localhost", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {**KEYS, "AWS_ENDPOINT_URL": f"http://localhost:{port}"}
    import s3fs

    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def address():
    with running_store() as address, running_s3():
        use_store(address)
        yield address


@pytest.fixture(params=["gs", "s3"])
def folder(request, address, tmp_path, monkeypatch):
    """An empty folder of a store."""
    monkeypatch.setenv("JAXCPT_CACHE", str(tmp_path / "cache"))
    path = to_path(f"{request.param}://bucket/folder")
    remove_tree(path)
    return path


def test_writes_text_bytes_and_what_a_function_writes(folder):
    for content in ("é\n", "é\n".encode(), lambda file: file.write("é\n".encode())):
        write_file(folder / "a.txt", "an older and longer text")
        write_file(folder / "a.txt", content)
        assert (folder / "a.txt").read_bytes() == "é\n".encode()
        assert (folder / "a.txt").read_text() == "é\n"
        assert list(folder.iterdir()) == [folder / "a.txt"]
    assert hash_file(folder / "a.txt") == hashlib.sha256("é\n".encode()).hexdigest()


def test_a_failed_write_leaves_the_old_object(folder):
    def fill_half(file):
        file.write(b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_file(folder / "a.txt", fill_half)
    assert not (folder / "a.txt").exists()
    with pytest.raises(RuntimeError, match="killed"), (folder / "a.txt").open("wb") as file:
        fill_half(file)
    assert not (folder / "a.txt").exists()


def test_lists_as_pathlib_does(folder, tmp_path):
    """The same calls on a local folder and on a folder in a store have the same results."""
    answers = []
    for place in (tmp_path / "folder", folder):
        place.mkdir(parents=True, exist_ok=True)
        write_file(place / "b.txt", "b")
        (place / "sub" / "deeper").mkdir(parents=True, exist_ok=True)
        write_file(place / "sub" / "deeper" / "a.npy", "12")
        names = [
            sorted(str(path.relative_to(place)) for path in found)
            for found in (
                place.iterdir(),
                place.glob("*.txt"),
                place.glob("*/deeper/*.npy"),
                (path for path in place.rglob("*") if path.is_file()),
                place.rglob("*.npy"),
            )
        ]
        paths = (place, place / "b.txt", place / "sub", place / "no", place / "b")
        kinds = [(path.exists(), path.is_file(), path.is_dir()) for path in paths]
        sizes = (place / "sub" / "deeper" / "a.npy").stat().st_size
        parts = (place.name, place.parent.name, (place / "b.txt").with_suffix(".x").name)
        (place / "b.txt").unlink()
        (place / "b.txt").unlink(missing_ok=True)
        (place / "sub" / "deeper" / "a.npy").rename(place / "c.npy")
        answers.append((names, kinds, sizes, parts, (place / "c.npy").read_text()))
        remove_tree(place)
        remove_tree(place)
        assert not place.exists()
    assert answers[0][:3] == answers[1][:3]
    assert answers[0][3][0] == answers[1][3][0]
    assert answers[0][4] == answers[1][4]


def test_reads_in_part_and_by_lines(folder):
    content = b"".join(b"line %d\r\n" % n for n in range(100_000))
    write_file(folder / "a.txt", content)
    with (folder / "a.txt").open("rb") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]
        file.seek(5000)
        assert file.read(20) == content[5000:5020]
    assert [line.number for line in read_lines(folder / "a.txt")][-1] == 100_000
    with (folder / "a.txt").open(encoding="utf-8", newline="\n") as file:
        assert next(file) == "line 0\r\n"


def test_a_file_is_created_once(folder):
    (folder / "lock").touch(exist_ok=False)
    with pytest.raises(FileExistsError, match="lock"):
        (folder / "lock").touch(exist_ok=False)
    with pytest.raises(FileExistsError, match="lock"), (folder / "lock").open("x") as file:
        file.write("second")
    assert (folder / "lock").read_text() == ""


def test_a_missing_object_is_named(folder):
    with pytest.raises(FileNotFoundError) as error:
        (folder / "no.txt").read_bytes()
    assert error.value.filename == str(folder / "no.txt")


@pytest.mark.parametrize("call", [lambda p: p.exists(), lambda p: write_file(p, "text")])
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_missing_bucket_is_named(address, scheme, call):
    with pytest.raises(UserError, match=f"{scheme}://nowhere.*: no such bucket; make it, or corr"):
        call(to_path(f"{scheme}://nowhere/run"))


def test_only_paths_that_can_be_are_taken():
    with pytest.raises(UserError, match=r"hdfs://a/b: expected a local path, gs://BUCKET/NAME or"):
        to_path("hdfs://a/b")


def run_alone(code, **environment):
    command = [sys.executable, "-c", f"from jaxcpt.files import *\n{code}"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return done.stdout, done.stderr


def test_local_paths_load_no_library_of_a_store():
    code = "import sys; to_path('a/b').exists(); print({'fsspec', 'etils'} & set(sys.modules))"
    assert run_alone(code) == ("set()\n", "")


SAY = """
from jaxcpt.errors import run_command
run_command(lambda _: print(to_path(sys.argv[1] if len(sys.argv) > 1 else URL).exists()))
"""


def test_missing_credentials_are_said_in_one_line(address, tmp_path):
    set_faults(address, token="secret")
    try:
        said = run_alone(f"import sys; URL = 'gs://bucket/a'\n{SAY}", HOME=str(tmp_path))
    finally:
        set_faults(address)
    assert said[0] == ""
    assert re.fullmatch(
        r"jaxcpt: gs://bucket/a: no valid credentials; run gcloud auth application-default login, "
        r"or set GOOGLE_APPLICATION_CREDENTIALS \(.*\)\n",
        said[1],
    )
    empty = dict.fromkeys(KEYS, "") | {"AWS_EC2_METADATA_DISABLED": "true"}
    said = run_alone(f"import sys; URL = 's3://bucket/a'\n{SAY}", HOME=str(tmp_path), **empty)
    assert re.fullmatch(
        r"jaxcpt: s3://bucket/a: no valid credentials; set AWS_ACCESS_KEY_ID and "
        r"AWS_SECRET_ACCESS_KEY, or run aws configure \(.*\)\n",
        said[1],
    )


def test_errors_of_the_store_are_tried_again_and_not_told(address, tmp_path):
    set_faults(address, share=0.2)
    code = """
from jaxcpt import objects

objects.SLOW_SECONDS = 300  # some requests fail four times in a row, which takes over 10 s
p = to_path("gs://bucket/faulty")
for n in range(10):
    write_file(p / f"{n}.txt", "x" * n)
    write_file(p / "sub" / f"{n}.npy", lambda file: file.write(bytes(6_000_000)))
assert [len(path.read_text()) for path in sorted(p.glob("*.txt"))] == list(range(10))
assert len({hash_file(path) for path in p.rglob("*.npy")}) == 1
remove_tree(p)
print(p.exists())
"""
    try:
        said = run_alone(code)
    finally:
        faults = set_faults(address)
    assert said == ("False\n", "")
    assert faults > 5


def test_pairs_are_read_through_the_cache(folder, tmp_path):
    write_pairs(folder / "a.jsonl", PAIRS)
    write_pairs(tmp_path / "a.jsonl", PAIRS)
    assert list(read_pairs(folder / "a.jsonl")) == list(read_pairs(tmp_path / "a.jsonl"))
    source = find_source(str(folder / "a.jsonl"))
    assert source == JsonlPairs(str(folder / "a.jsonl"))
    opened = open_source(source, tmp_path, 0)
    assert opened.read([5, 3]) == [PAIRS[5], PAIRS[3]]
    os.unlink(object_cache.fetch(folder / "a.jsonl"))  # so that it is fetched again
    assert open_source(source, tmp_path, 0).read([1]) == [PAIRS[1]]
    write_pairs(folder / "a.jsonl", PAIRS[:7])
    assert len(open_source(source, tmp_path, 0)) == 7  # the object has changed


def test_a_line_that_is_no_pair_is_named_in_the_store(folder, tmp_path):
    write_file(folder / "a.jsonl", '{"x": "a", "y": "b"}\n{"x": 1, "y": "b"}\n')
    with pytest.raises(UserError, match=rf"^{folder}/a.jsonl:2: 'x' must be text, found int"):
        open_source(JsonlPairs(str(folder / "a.jsonl")), tmp_path, 0)
    with pytest.raises(UserError, match=f"^{folder}/none: no such object, nor a folder of objects"):
        open_source(ParquetPairs(str(folder / "none")), tmp_path, 0)


def write_array_records(path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for number in range(6):
        writer.write(json.dumps({"x": f"x {number}", "y": f"y {number}"}).encode())
    writer.close()


def test_folders_of_array_records_and_parquet_are_read(folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    with new_folder(folder / "records") as local:
        for number in range(2):
            write_array_records(local / f"part-{number}.array_record")
    with new_folder(folder / "tables") as local:
        rows = [{"x": f"x {n}", "y": f"y {n}"} for n in range(12)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), local / "a.parquet")
    for name, kind in (("records", ArrayRecordPairs), ("tables", ParquetPairs)):
        source = find_source(str(folder / name))
        assert isinstance(source, kind)
        opened = open_source(source, tmp_path, 0)
        assert len(opened) == 12
        assert opened.read([4])[0].y == "y 4"


def test_the_cache_keeps_to_its_limit(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCPT_CACHE_GB", "0.0000025")  # 2,500 bytes
    (tmp_path / "cache" / "lost+found").mkdir(parents=True)  # as in the root of a disk
    for number in range(3):
        write_file(folder / str(number), "x" * 1000)
    first = object_cache.fetch(folder / "0")
    second = object_cache.fetch(folder / "1")
    assert first.read_bytes() == second.read_bytes()
    message = "2: 0.0 GB do not fit into .*cache, which has room for 0.0; set JAXCPT_CACHE to a la"
    with pytest.raises(UserError, match=message):
        object_cache.fetch(folder / "2")  # this process uses both
    for lock in object_cache._held.values():
        lock.close()
    object_cache._held.clear()
    third = object_cache.fetch(folder / "2")
    assert (first.exists(), second.exists(), third.exists()) == (False, True, True)


def test_two_processes_use_a_copy_at_the_same_time(folder):
    write_file(folder / "a.txt", "old")
    assert object_cache.fetch(folder / "a.txt").read_text() == "old"
    write_file(folder / "a.txt", "newer")
    code = "import sys; from jaxcpt.files import to_path; from jaxcpt.object_cache import fetch; "
    code += "print(fetch(to_path(sys.argv[1])).read_text())"
    command = [sys.executable, "-c", code, str(folder / "a.txt")]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert output.stdout == "newer\n"  # although this process still uses the copy


def test_a_tokenizer_is_kept_in_a_store(folder, tokenizer):
    tokenizer.save(folder / "tokenizer")
    assert Tokenizer.load(folder / "tokenizer") == tokenizer
    with pytest.raises(UserError, match=r"limits.json: missing; this run has no whole tokenizer"):
        Tokenizer.load(folder / "none")


def log_steps(run_dir, first, last, start):
    with MetricsLog(run_dir, 100, start, writes=True) as metrics:
        for step in range(first, last + 1):
            metrics.log(step, {"loss": float(step), "nothing": float("nan")})
            metrics.log_evals(step, {"heldout/mrr": 0.5})
        with metrics.flushed():
            assert [row["step"] for row in read_rows(run_dir / "metrics.jsonl")][-1] == last


def test_metrics_are_written_in_parts_and_read_as_one(folder, monkeypatch):
    monkeypatch.setattr("jaxcpt.rows.PART_ROWS", 4)
    monkeypatch.setattr("jaxcpt.metrics.EVENTS_BYTES", 1000)
    log_steps(folder, 1, 10, start=0)
    parts = [path.name for path in (folder / "metrics").iterdir()]
    assert parts == [f"{n:010d}.jsonl" for n in (1, 5, 9)]
    assert len(list(folder.glob("events.*"))) >= 2
    log_steps(folder, 7, 9, start=6)  # resumed at 6: the rows of 7 to 10 are replaced
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert rows[-1]["loss"] == 9
    assert np.isnan(rows[0]["nothing"])
    assert [row["step"] for row in read_rows(folder / "evals.jsonl")] == list(range(1, 10))


def test_a_run_copied_from_a_store_goes_on_locally(folder, tmp_path):
    log_steps(folder, 1, 5, start=0)
    for path in folder.rglob("*"):
        local = tmp_path / "run" / path.relative_to(folder).as_posix()
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(path.read_bytes())
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == 5
    log_steps(tmp_path / "run", 4, 6, start=3)
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [*range(1, 7)]
    assert not (tmp_path / "run" / "metrics").exists()


TEXTS = [TextWithId(f"d{i}", f"text {i}") for i in range(100)]


def embed(texts):
    rows = [np.random.default_rng(int(text[5:])).normal(size=8) for text in texts]
    return np.stack(rows).astype(np.float32)


def test_vectors_are_kept_in_a_store(folder, tmp_path):
    for place in (folder / "v", tmp_path / "v"):
        vectors = fill(place, {"input": "a"}, TEXTS, embed, Storage(int8=True), 30)
        assert list(vectors.ids()) == [text.id for text in TEXTS]
    here, there = VectorFolder.open(tmp_path / "v"), VectorFolder.open(folder / "v")
    np.testing.assert_array_equal(
        np.concatenate([*here.shards()]), np.concatenate([*there.shards()])
    )


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 2, 1, 3, 1)])
def test_parts_fill_one_folder_in_any_order(folder, tmp_path, order):
    whole = fill(tmp_path / "whole", {"input": "a"}, TEXTS, embed, Storage(), 15)
    for count, number in enumerate(order, 1):
        missing = fill_part(folder, {"input": "a"}, TEXTS, embed, Storage(), Part(number, 3), 15)
        assert (missing == 0) == (set(order[:count]) == {1, 2, 3})
        if missing:
            with pytest.raises(UserError, match="not complete"):
                VectorFolder.open(folder)
    for path in whole.folder.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", ""])
def test_parts_are_parsed(text):
    assert Part.parse("2/8") == Part(2, 8)
    with pytest.raises(UserError, match="must be I/N with I from 1 to N, such as 2/8"):
        Part.parse(text)


def test_a_store_that_does_not_answer_is_named_while_it_is_waited_for(monkeypatch, capsys):
    monkeypatch.setattr(objects, "SLOW_SECONDS", 0.05)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://far:1")
    with objects._explain("gs://bucket/a"):
        time.sleep(0.5)
    assert capsys.readouterr().err == (
        "gs://bucket/a: a request to the store at http://far:1 is not done after 0.05 s; still "
        "trying, for some minutes\n"
    )
    with objects._explain("gs://bucket/a"):
        pass
    time.sleep(0.2)
    assert capsys.readouterr().err == ""
