"""From files to a dataset: every way to run gives the same bytes, and a failure leaves nothing."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
from conftest import DATA, needs_data

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxcpt.errors import UserError
from jaxcpt.mining import pipeline
from jaxcpt.mining.code import LANGUAGES, list_source_suffixes, mine_code
from jaxcpt.mining.documents import Reading
from jaxcpt.mining.inputs import Mining
from jaxcpt.mining.pipeline import choose_split, mine
from jaxcpt.mining.raw_document import RawDocument
from jaxcpt.mining.text import TextOptions, mine_text

TEXT = partial(mine_text, options=TextOptions(piece_chars=(150, 400), languages=(), quality=False))


def make_document(seed, sentences=24):
    rng = random.Random(seed)
    words = [f"word{rng.randrange(3000)}" for _ in range(8 * sentences)]
    lines = (" ".join(words[8 * n : 8 * n + 8]) + "." for n in range(sentences))
    return " ".join(lines)


DOCUMENTS = [make_document(seed) for seed in range(60)]
NEAR = " ".join(
    "other" if place % 32 == 9 else word for place, word in enumerate(DOCUMENTS[1].split())
)


def write_jsonl(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three files. One has a copy and a near copy of another's documents, and one is damaged."""
    folder = tmp_path_factory.mktemp("pipeline") / "corpus"
    write_jsonl(folder / "a" / "one.jsonl", DOCUMENTS[:30])
    write_jsonl(folder / "b" / "two.jsonl", [*DOCUMENTS[30:], DOCUMENTS[0], NEAR])
    (folder / "b" / "bad.jsonl").write_text('{"text": \n')
    return folder


def run(inputs, output, **changes):
    """Returns (data card, {split: [(x, y, source)]}) of a run. `output` must not exist."""
    keys = ("miner", "reading", "workers", "runner_arguments")
    given = {key: changes.pop(key) for key in keys if key in changes}
    mining = Mining(
        inputs=tuple(map(str, inputs)), name="mined", **{"heldout_share": 0.2, **changes}
    )
    miner, reading = given.pop("miner", TEXT), given.pop("reading", Reading())
    return mine(mining, reading, miner, output, **given), read_pairs(output)


def read_pairs(output):
    import tensorflow_datasets as tfds

    sources = tfds.builder_from_directory(output).as_data_source()
    return {
        split: [tuple(row[key].decode() for key in ("x", "y", "source")) for row in source]
        for split, source in sources.items()
    }


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_second_run_and_four_workers_give_the_same_bytes(corpus, tmp_path):
    card, pairs = run([corpus], tmp_path / "first", shards=3)
    run([corpus], tmp_path / "second", shards=3)
    run([corpus], tmp_path / "four", shards=3, workers=4)
    first = contents(tmp_path / "first")
    assert set(first) == {
        *(f"mined-{s}.array_record-0000{n}-of-00003" for s in pairs for n in range(3)),
        *(f"dropped/dropped-0000{n}-of-00003.jsonl" for n in range(3)),
        "data_card.json", "data_card.md", "dataset_info.json", "features.json",
    }  # fmt: skip
    assert contents(tmp_path / "second") == first
    assert contents(tmp_path / "four") == first
    assert json.loads(first["data_card.json"]) == json.loads(json.dumps(card))
    assert sorted(os.listdir(tmp_path)) == ["first", "four", "second"]


def test_the_runners_own_shuffle_gives_the_same_bytes(corpus, tmp_path):
    run([corpus], tmp_path / "disk")
    # Under this name, the same engine counts as another runner, and it groups in memory.
    run([corpus], tmp_path / "memory", runner_arguments=["--runner", "FnApiRunner"])
    assert contents(tmp_path / "memory") == contents(tmp_path / "disk")


def test_the_counts_of_the_data_card_add_up(corpus, tmp_path):
    card, pairs = run([corpus], tmp_path / "out", shards=2)
    assert card["counts"]["documents read"] == 62
    assert card["counts"]["problem: JSON does not parse"] == 1
    kept = sum(card["pairs"].values())
    assert card["pairs"] == {split: len(rows) for split, rows in pairs.items()}
    assert card["counts"]["pairs mined"] == kept + sum(card["dropped"].values())
    for side in (0, 1):
        lengths = [len(row[side]) for rows in pairs.values() for row in rows]
        histogram = card["length_histograms"]["xy"[side]]
        assert sum(histogram.values()) == kept
        for interval, count in histogram.items():
            low, high = map(int, interval.split("-"))
            assert count == sum(low <= length <= high for length in lengths)
    lines = "".join(path.read_text() for path in sorted((tmp_path / "out/dropped").iterdir()))
    listed = [json.loads(line) for line in lines.splitlines()]
    assert len(listed) == 1 + sum(card["dropped"].values())
    bad = next(item for item in listed if item["reason"] == "JSON does not parse")
    assert bad["name"] == "corpus/b/bad.jsonl@0"
    for file, sha in card["sha256"].items():
        command = ["sha256sum", str(tmp_path / "out" / file)]
        assert subprocess.check_output(command, text=True).split()[0] == sha
    for sample in card["samples"]:
        assert (sample["x"], sample["y"], sample["source"]) in pairs[sample["split"]]
    markdown = (tmp_path / "out" / "data_card.md").read_text()
    for told in ("JSON does not parse", "near duplicate", "pairs mined", "array_record-00001"):
        assert told in markdown


def test_a_pair_comes_from_one_document_and_a_document_is_in_one_split(corpus, tmp_path):
    _, pairs = run([corpus], tmp_path / "out")
    texts = [*DOCUMENTS, NEAR]
    homes = {}
    for split, rows in pairs.items():
        for x, y, _ in rows:
            owners = [n for n, text in enumerate(texts) if x in text and y in text]
            assert owners
            for owner in owners if len(owners) == 1 else []:
                assert homes.setdefault(owner, split) == split
    assert set(homes.values()) == {"train", "heldout"}


def mine_plain(texts):
    return [pair for text in texts for pair in TEXT(RawDocument("", text), Counter())]


def test_near_duplicates_in_other_files_are_dropped_and_distinct_pairs_kept(corpus, tmp_path):
    card, pairs = run([corpus], tmp_path / "out")
    assert sum(map(len, pairs.values())) == len(mine_plain(DOCUMENTS))
    assert card["dropped"]["near duplicate"] >= 1
    assert card["dropped"]["exact duplicate"] >= len(mine_plain(DOCUMENTS[:1]))
    exact_only, _ = run([corpus], tmp_path / "exact", near_duplicate=0)
    assert "near duplicate" not in exact_only["dropped"]


def test_no_text_occurs_twice_in_the_output(tmp_path):
    same = "Always the same sentence, which is long enough to be a piece of its own here. " * 8
    texts = [same, DOCUMENTS[0], DOCUMENTS[0] + DOCUMENTS[1], DOCUMENTS[1] + same]
    card, pairs = run([write_jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "out")
    sides = [side.lower() for rows in pairs.values() for row in rows for side in row[:2]]
    assert len(set(sides)) == len(sides)
    assert card["counts"]["left out: pair of equal sides"] >= 1


@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.randoms(use_true_random=False), files=st.integers(1, 5))
def test_order_and_number_of_files_change_only_the_names(tmp_path_factory, order, files):
    texts = [*DOCUMENTS[:20], *DOCUMENTS[:5], NEAR]
    folder = tmp_path_factory.mktemp("order")
    _, expected = run([write_jsonl(folder / "all" / "a.jsonl", texts)], folder / "expected")
    order.shuffle(texts)
    for number in range(files):
        write_jsonl(folder / "some" / f"{number}.jsonl", texts[number::files])
    _, found = run([folder / "some"], folder / "found")
    for split, rows in expected.items():
        assert [row[:2] for row in found[split]] == [row[:2] for row in rows]


@pytest.mark.parametrize(
    ("split_by", "document", "group"),
    [
        ("module", RawDocument("in/repo/pkg/a.py", "x"), RawDocument("in/repo/pkg/b.py", "y")),
        ("repository", RawDocument("in/repo/a.py", "x"), RawDocument("in/repo/pkg/b.py", "y")),
        ("repository", RawDocument("http://a.org/1", "x"), RawDocument("http://a.org/b/2", "y")),
        ("document", RawDocument("in/a", "x"), RawDocument("in/b", "x")),
        ("document", RawDocument("in/a", "x", "in/long"), RawDocument("in/b", "y", "in/long")),
    ],
)
def test_documents_of_one_group_are_in_one_split(split_by, document, group):
    def split(item, share):
        mining = Mining(inputs=(), name="m", split_by=split_by, heldout_share=share)
        return choose_split(item, pipeline.digest(item.text), mining)

    shares = [n / 50 for n in range(50)]
    assert [split(document, n) for n in shares] == [split(group, n) for n in shares]
    assert split(document, 0) == "train"
    many = [RawDocument(f"in/{n}/m/f", str(n)) for n in range(1000)]
    heldout = sum(split(item, 0.3) == "heldout" for item in many)
    assert 240 < heldout < 360


def test_a_heldout_share_of_0_gives_no_heldout_split(corpus, tmp_path):
    card, pairs = run([corpus], tmp_path / "out", heldout_share=0.0)
    assert list(card["pairs"]) == list(pairs) == ["train"]
    assert not [name for name in contents(tmp_path / "out") if "heldout" in name]


def test_contaminated_pairs_are_dropped_and_listed(corpus, tmp_path):
    sentence = " ".join(DOCUMENTS[40].split()[1:15])
    folder = tmp_path / "evaluations" / "sts" / "planted"
    folder.mkdir(parents=True)
    (folder / "test.tsv").write_text(f"score\ttext_a\ttext_b\n1\t{sentence}\tshort\n")
    clean, _ = run([corpus], tmp_path / "clean")
    card, pairs = run([corpus], tmp_path / "out", decontaminate=(str(tmp_path / "evaluations"),))
    assert card["counts"]["contaminated: sts/planted"] == 1
    assert sum(card["pairs"].values()) == sum(clean["pairs"].values()) - 1
    listed = (tmp_path / "out" / "dropped" / "dropped-00000-of-00001.jsonl").read_text()
    hit = next(json.loads(line) for line in listed.splitlines() if "contaminated" in line)
    assert hit["name"].startswith("corpus/b/two.jsonl@")
    assert hit["detail"].startswith("sts/planted: word")
    assert not [row for rows in pairs.values() for row in rows if sentence in row[0]]


def test_a_run_of_which_no_pair_is_left_is_refused(corpus, tmp_path):
    folder = tmp_path / "evaluations"
    folder.mkdir()
    (folder / "test.tsv").write_text("text\n" + "\n".join([*DOCUMENTS, NEAR]) + "\n")
    with pytest.raises(UserError, match=r"no pairs are left \(.*contaminated: \. \d+, doc"):
        run([corpus], tmp_path / "out", decontaminate=(str(folder),))
    assert os.listdir(tmp_path) == ["evaluations"]


def test_source_code_gives_documented_functions(tmp_path):
    source = tmp_path / "src"
    for repo, name in (("r1", "a"), ("r1", "b"), ("r2", "c")):
        (source / repo).mkdir(parents=True, exist_ok=True)
        function = f'def {name}(v):\n    """Does the work of {name} {name}."""\n    w = {name}(v)\n'
        (source / repo / f"{name}.py").write_text(function + f"    return w + {ord(name)}\n")
    shutil.copy(source / "r1" / "a.py", source / "r2" / "copy.py")
    (source / "r2" / "broken.rb").write_text("def a(\n")
    reading = Reading(source_suffixes=list_source_suffixes(tuple(LANGUAGES)))
    changes = {"miner": mine_code, "reading": reading, "split_by": "repository"}
    card, pairs = run([source], tmp_path / "out", max_bad_share=0.5, **changes)
    rows = sorted(row for rows in pairs.values() for row in rows)
    assert [x for x, _, _ in rows] == [f"Does the work of {n} {n}." for n in "abc"]
    assert card["dropped"] == {"exact duplicate": 1}
    assert card["counts"]["problem: source does not parse"] == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_bad_share": 0.01}, r"1 of 63 files or records are bad \(JSON does not parse 1\), "
                                  r"above --max-bad-share 0.01"),
        ({"miner": partial(mine_text, options=TextOptions(piece_chars=(10**6, 10**6)))},
         r"no pairs found \(.*document with fewer than two pieces 62"),
        ({"decontaminate": ("nowhere",)}, r"--decontaminate nowhere: no such folder"),
    ],
)  # fmt: skip
def test_refused_runs_leave_nothing(corpus, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        run([corpus], tmp_path / "out", **changes)
    assert os.listdir(tmp_path) == []


def test_outputs_that_exist_or_are_in_use_are_refused(corpus, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=r"there: exists; remove it or give another --output"):
        run([corpus], tmp_path / "there")
    with pytest.raises(UserError, match=r"out: no such file or folder"):
        run([tmp_path / "out"], tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out.unfinished: cannot be written: Not a directory"):
        run([corpus], tmp_path / "file" / "out")
    with pipeline._claim(tmp_path / "busy.unfinished"):
        with pytest.raises(UserError, match=r"busy.unfinished: another run is writing there"):
            run([corpus], tmp_path / "busy")
        assert (tmp_path / "busy.unfinished").is_dir()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs to mount")
@pytest.mark.parametrize(("workers", "evaluations"), [(1, ()), (2, ()), (1, ("evaluations",))])
def test_a_full_disk_is_reported_and_leaves_nothing(
    corpus, tmp_path, monkeypatch, workers, evaluations
):
    small = tmp_path / "small"
    small.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluations").mkdir()
    many = " ".join(map(str, range(10**5)))  # The index of these texts alone fills the disk.
    (tmp_path / "evaluations" / "test.tsv").write_text(f"text\n{many}\n")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)])
    if mounted.returncode:
        pytest.skip("may not mount here")
    try:
        with pytest.raises(
            UserError, match=r"out: the disk is full; free some space; this run has left no output"
        ):
            run([corpus], small / "out", workers=workers, decontaminate=evaluations)
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@needs_data
def test_real_prose_is_mined_without_importing_tensorflow(tmp_path):
    _, pairs = run([DATA / "prose" / "inaugural.jsonl.gz"], tmp_path / "out", miner=partial(
        mine_text, options=TextOptions()
    ))  # fmt: skip
    assert len(pairs["train"]) > 300
    assert "tensorflow" not in sys.modules
