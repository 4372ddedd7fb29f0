"""Folders of vectors have the same bytes after a kill, are never mixed, and FAISS reads exports."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from tiny_run import tiny_run

from jaxcpt import embed as embed_command
from jaxcpt import vectors
from jaxcpt.errors import UserError, run_command
from jaxcpt.top_k import top_k
from jaxcpt.vectors import Storage, TextWithId, VectorFolder, fill, normalise_rows, quantize

FLOATS = Storage()
DOCUMENTS = [TextWithId(f"d{i}", f"text {i}") for i in range(100)]


def embed(texts):
    """A unit vector for each text, which does not depend on other texts."""
    numbers = [int(text.split()[1]) for text in texts]
    return normalise_rows(np.stack([np.random.default_rng(n).normal(size=12) for n in numbers]))


def fill_some(folder, about=None, storage=FLOATS, documents=DOCUMENTS, size=30, embed=embed):
    about = {"step": 3, "input": "abc", "path": "here"} | (about or {})
    return fill(folder, about, documents, embed, storage, size)


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("storage", [Storage(), Storage(5), Storage(int8=True), Storage(5, True)])
def test_shards_hold_all_vectors_and_ids_in_order(tmp_path, storage):
    folder = fill_some(tmp_path / "v", storage=storage)
    shards = list(folder.shards())
    assert [len(shard) for shard in shards] == [30, 30, 30, 10]
    whole = embed([document.text for document in DOCUMENTS])
    np.testing.assert_array_equal(np.concatenate(shards), storage.apply(whole))
    assert list(folder.ids()) == [document.id for document in DOCUMENTS]
    assert len(folder) == 100
    assert folder.storage == storage
    np.testing.assert_allclose(storage.round_trip(whole), normalise_rows(np.concatenate(shards)))


def test_says_how_far_it_is(tmp_path, capsys):
    fill_some(tmp_path / "v", {"documents": 100})
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"{tmp_path / 'v' / '00002.npy'}: 90 of 100 texts so far"


@pytest.mark.parametrize("stop", range(4))
def test_goes_on_after_any_shard_and_ends_with_the_same_bytes(tmp_path, stop):
    fill_some(tmp_path / "whole")
    calls = []

    def embed_some(texts):
        calls.append(texts)
        if len(calls) == stop + 1:
            raise KeyboardInterrupt
        return embed(texts)

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fill_some(folder, embed=embed_some)
    with pytest.raises(UserError, match="not complete; start the command that fills it again"):
        VectorFolder.open(folder)
    (folder / f"{stop:05}.npy.partial").write_bytes(b"half a shard")
    fill_some(folder, embed=embed_some)
    assert len(calls) == 5  # each once, and the stopped one twice
    assert read_bytes(folder) == read_bytes(tmp_path / "whole")
    fill_some(folder, embed=None)  # nothing is left to embed


SLOWLY = """
import os, time
from jaxcpt import embed, errors, vectors
os.sched_getaffinity = lambda _: range(8)
vectors.fill_part.__defaults__ = (16,)
write = vectors._write_shard
vectors._write_shard = lambda *arguments: (write(*arguments), time.sleep(0.5))
errors.run_command(embed.main)
"""


def test_a_killed_command_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """kill -9 between two shards of the real command."""
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"_id": f"d{i}", "text": f"w{i % 90} w{i % 7} w{i % 50}"} for i in range(96)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--run-dir", str(tiny_run()), "--input", str(corpus), "--side", "y", "--output"]
    folder = tmp_path / "killed"
    running = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 2 <= len(list(folder.glob("*.npy"))) < 6
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(vectors.fill_part, "__defaults__", (16,))
    for output in (folder, tmp_path / "whole"):
        run_command(embed_command.main, [*arguments, str(output)])
    found = read_bytes(folder)
    assert len(found) == 19  # vectors, ids and sums of six shards, and about.json
    assert found == read_bytes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"about": {"step": 6}}, "holds other vectors (step: 3 -> 6); choose a new folder"),
        ({"about": {"input": "b"}}, "holds other vectors (input: abc -> b); choose"),
        ({"about": {"side": "x"}}, "holds other vectors (side: None -> x); choose"),
        ({"storage": Storage(5)}, "holds other vectors (width: None -> 5); choose"),
        ({"storage": Storage(int8=True)}, "holds other vectors (int8: False -> True); choose"),
        ({"size": 20}, "holds other vectors (texts_per_shard: 30 -> 20); choose"),
    ],
)
def test_refuses_to_mix(tmp_path, change, message):
    fill_some(tmp_path)
    before = read_bytes(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: {message}")):
        fill_some(tmp_path, **change)
    assert read_bytes(tmp_path) == before
    fill_some(tmp_path, about={"path": "moved"})  # the same file elsewhere


def test_refusals(tmp_path):
    def refuse(text):
        return pytest.raises(UserError, match=re.escape(text))

    with refuse(f"{tmp_path}: no vectors: it has no about.json; jaxcpt.embed makes one"):
        VectorFolder.open(tmp_path)
    (tmp_path / "thesis.txt").touch()
    with refuse(f"{tmp_path}: holds other files than vectors; choose a new folder"):
        fill_some(tmp_path)
    with refuse("id 'a\\nb': holds a line break; an id must be one line"):
        fill_some(tmp_path / "ids", documents=[TextWithId("a\nb", "text 1")])
    folder = tmp_path / "v"
    fill_some(folder)
    (folder / "00001.npy").rename(tmp_path / "gone.npy")
    with refuse(f"{folder}: 70 vectors of 100; shards are missing"):
        VectorFolder.open(folder)
    (folder / "00001.npy").write_bytes((tmp_path / "gone.npy").read_bytes()[:200])
    with refuse(f"{folder / '00001.npy'}: damaged"):
        VectorFolder.open(folder)
    (folder / "about.json").write_text("{")
    with refuse(f"{folder / 'about.json'}: does not parse; delete the folder"):
        fill_some(folder)
    for width in (0, 13):
        with refuse(f"--width {width}: must be from 1 to the model's width, 12"):
            Storage(width).check(12)
    assert Storage(12).check(12) == Storage(12)


def flip(path, at=-9):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def swap(folder, endings):
    for ending in endings:
        one, other = folder / f"00000{ending}", folder / f"00001{ending}"
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)


def change_about(folder, **changes):
    about = json.loads((folder / "about.json").read_text()) | changes
    about = {name: value for name, value in about.items() if value != "gone"}
    (folder / "about.json").write_text(json.dumps(about))


def replace_by(path, make):
    path.unlink()
    make(path)


def write_array(path, array):
    np.save(path, array)


NOT_WRITTEN_SO = r": damaged \(not as it was written\); delete it and fill again$"


def replace_bytes(path, old, new):
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


HARM = {
    "a flipped bit": (lambda f: flip(f / "00001.npy"), "00001.npy" + NOT_WRITTEN_SO),
    "a vector of NaN": (
        lambda f: write_array(f / "00001.npy", np.full((30, 12), np.nan, np.float32)),
        "00001.npy" + NOT_WRITTEN_SO,
    ),
    "swapped vectors": (lambda f: swap(f, [".npy"]), "00000.npy" + NOT_WRITTEN_SO),
    "swapped shards": (
        lambda f: swap(f, [".npy", ".ids.txt", ".sha256"]), "its .sha256 files are not its own"
    ),
    "ids cut short": (
        lambda f: (f / "00002.ids.txt").write_text("d60\n"), "00002.ids.txt" + NOT_WRITTEN_SO
    ),
    "no ids": (lambda f: (f / "00002.ids.txt").unlink(), "00002.ids.txt" + NOT_WRITTEN_SO),
    "ids in another charset": (lambda f: flip(f / "00000.ids.txt"), "00000.ids.txt"),
    "no sums": (lambda f: (f / "00003.sha256").unlink(), "its .sha256 files are not its own"),
    "sums of ones": (lambda f: (f / "00003.sha256").write_bytes(b"\xff"), ".sha256 files are not"),
    "a 0-d array": (
        lambda f: write_array(f / "00000.npy", np.float32(1)), r"00000.npy: damaged \(holds float32"
    ),
    "texts for vectors": (
        lambda f: write_array(f / "00000.npy", np.array(["a", "b"])), "00000.npy: damaged"
    ),
    "objects": (
        lambda f: write_array(f / "00000.npy", np.array([{}], object)), "00000.npy: damaged"
    ),
    "an archive": (
        lambda f: (f / "00000.npy").write_bytes(b"PK\x03\x04" * 30), "00000.npy: damaged"
    ),
    "nothing": (lambda f: (f / "00000.npy").write_bytes(b""), "00000.npy: damaged"),
    "an open bracket": (
        lambda f: replace_bytes(f / "00000.npy", b"), }", b"(, }"), "00000.npy: damaged"
    ),
    "a folder": (lambda f: replace_by(f / "00000.npy", Path.mkdir), "00000.npy: damaged"),
    "a pipe": (lambda f: replace_by(f / "00000.npy", os.mkfifo), "00000.npy: damaged"),
    "no width": (lambda f: change_about(f, width="gone"), "about.json: damaged; delete"),
    "no int8": (lambda f: change_about(f, int8="gone"), "about.json: damaged; delete"),
    "a text for int8": (lambda f: change_about(f, int8="no"), "about.json: damaged; delete"),
    "a text for texts": (lambda f: change_about(f, texts="100"), "about.json: damaged; delete"),
    "another number": (lambda f: change_about(f, texts=99), "100 vectors of 99; shards are"),
    "sums of no text": (lambda f: change_about(f, sums=7), "about.json: damaged; delete"),
    "deep JSON": (
        lambda f: (f / "about.json").write_text("[" * 100_000), "about.json: does not parse; delete"
    ),
    "a list": (lambda f: (f / "about.json").write_text("[[1, 2]]"), "about.json: does not parse"),
    "bytes": (lambda f: (f / "about.json").write_bytes(b"\xff\xfe"), "about.json: does not parse"),
    "a pipe for about.json": (
        lambda f: replace_by(f / "about.json", os.mkfifo), "about.json: does not parse"
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_damage_is_found_when_a_folder_is_opened(tmp_path, harm):
    folder = tmp_path / "v"
    fill_some(folder)
    do, says = HARM[harm]
    do(folder)
    with pytest.raises(UserError, match=says) as refused:
        VectorFolder.open(folder)
    assert "\n" not in str(refused.value)


def test_any_flipped_bit_is_found(tmp_path):
    fill_some(tmp_path)
    rng = np.random.default_rng(0)
    files = sorted(path for path in tmp_path.iterdir() if path.name != "about.json")
    for _ in range(40):
        path = files[rng.integers(len(files))]
        before = path.read_bytes()
        flip(path, rng.integers(len(before)))
        with pytest.raises(UserError):
            VectorFolder.open(tmp_path)
        path.write_bytes(before)
    VectorFolder.open(tmp_path)


def test_a_damaged_shard_is_made_again_once_it_is_deleted(tmp_path):
    fill_some(tmp_path)
    before = read_bytes(tmp_path)
    flip(tmp_path / "00002.npy")
    with pytest.raises(UserError, match=r"00002\.npy: damaged"):
        fill_some(tmp_path, embed=None)
    (tmp_path / "00002.npy").unlink()
    fill_some(tmp_path)
    assert read_bytes(tmp_path) == before


def test_a_folder_of_an_older_version_is_opened_with_one_line(tmp_path, capsys):
    fill_some(tmp_path)
    change_about(tmp_path, sums="gone")
    for path in tmp_path.glob("*.sha256"):
        path.unlink()
    capsys.readouterr()
    assert len(VectorFolder.open(tmp_path)) == 100
    assert capsys.readouterr().out == (
        f"{tmp_path}: an older version made it without checksums; its bytes are not checked\n"
    )
    (tmp_path / "00000.ids.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"00000.ids.txt: damaged \(not UTF-8\)"):
        list(VectorFolder.open(tmp_path).ids())


def test_sums_are_those_of_sha256sum(tmp_path):
    fill_some(tmp_path)
    for path in tmp_path.glob("*.sha256"):
        subprocess.run(["sha256sum", "-c", path.name], cwd=tmp_path, check=True)


def export(monkeypatch, folder, output):
    run_command(vectors.main, ["--input", str(folder), "--output", str(output)])


def test_export(tmp_path, monkeypatch, capsys):
    folder = fill_some(tmp_path / "v")
    whole = np.concatenate(list(folder.shards()))
    capsys.readouterr()
    export(monkeypatch, tmp_path / "v", tmp_path / "all.npy")
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'all.npy'}: 100 vectors; ")
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), whole)
    ids = (tmp_path / "all.npy.ids.txt").read_text().splitlines()
    assert ids == [document.id for document in DOCUMENTS]

    export(monkeypatch, tmp_path / "v", tmp_path / "all.fvecs")
    rows = np.fromfile(tmp_path / "all.fvecs", "<i4").reshape(100, 13)
    assert set(rows[:, 0]) == {12}
    np.testing.assert_allclose(rows[:, 1:].view("<f4"), whole, rtol=1e-6)

    fill_some(tmp_path / "int8", storage=Storage(int8=True))
    export(monkeypatch, tmp_path / "int8", tmp_path / "int8.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "int8.npy"), quantize(whole))

    with pytest.raises(SystemExit):
        export(monkeypatch, tmp_path / "v", tmp_path / "all.bin")
    assert (
        capsys.readouterr().err == f"jaxcpt: {tmp_path / 'all.bin'}: must end in .npy or .fvecs\n"
    )


@pytest.mark.parametrize("storage", [Storage(), Storage(8), Storage(8, int8=True)])
def test_faiss_finds_the_same_in_what_is_exported(tmp_path, monkeypatch, storage):
    faiss = pytest.importorskip("faiss", reason="needs the faiss extra")
    folder = fill_some(tmp_path / "v", storage=storage)
    queries_qd = storage.round_trip(embed([f"text {i}" for i in range(200, 220)]))
    ours, our_rows = top_k(queries_qd, folder.shards(), 10)
    for name in ("all.fvecs", "all.npy"):
        export(monkeypatch, tmp_path / "v", tmp_path / name)
        if name == "all.fvecs":
            rows_nd = np.fromfile(tmp_path / name, "<f4").reshape(100, -1)[:, 1:].copy()
        else:
            rows_nd = np.asarray(np.load(tmp_path / name), np.float32)
            faiss.normalize_L2(rows_nd)  # int8 vectors have no unit length
        index = faiss.IndexFlatIP(queries_qd.shape[1])
        index.add(rows_nd)
        theirs, their_rows = index.search(queries_qd, 10)
        np.testing.assert_array_equal(our_rows, their_rows)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_search_of_a_folder_takes_memory_for_a_tile_alone(tmp_path):
    """Shards are memory-mapped, so 200 MB can be filled and searched with much less memory."""
    program = (
        "import sys, re; from pathlib import Path; import numpy as np\n"
        "from jaxcpt.top_k import top_k\n"
        "from jaxcpt.vectors import Storage, TextWithId, fill\n"
        "def peak(): return int(re.findall(r'RssAnon:\\s+(\\d+)', "
        "Path('/proc/self/status').read_text())[0]) // 1024\n"
        "def embed(texts): return np.full((len(texts), 1024), 1 / 32, np.float32)\n"
        "def run(count, name):\n"
        "    documents = (TextWithId(str(i), 'text') for i in range(count))\n"
        "    folder = fill(Path(sys.argv[1]) / name, {}, documents, embed, Storage(), 4096)\n"
        "    return top_k(np.ones((1, 1024), np.float32), folder.shards(), 5)\n"
        "run(4096, 'small'); before = peak()\n"
        "run(49152, 'large'); print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout.split()[-1]) < 100  # of the 192 MiB that the corpus has


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n\xff", b"one line\n"])
def test_damaged_sums_are_found_when_a_folder_is_filled_again(tmp_path, content):
    fill_some(tmp_path)
    sums = tmp_path / "00001.sha256"
    sums.write_bytes(content)
    with pytest.raises(UserError, match=r"00001\.(npy|sha256): damaged \(not as it was written\)"):
        fill_some(tmp_path)
