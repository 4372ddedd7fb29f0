"""`jaxcpt mine-negatives` finds texts that rank high, without known and likely positives."""

import argparse
import json
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import PAIRS
from test_tokenized import run_tool
from tiny_run import copy_run, tiny_experiment, tiny_run

from jaxcpt import mine_negatives
from jaxcpt.config import Data, JsonlPairs, PythonPackages
from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError, run_command
from jaxcpt.mine_negatives import Known, Margins, choose_negatives, open_pairs
from jaxcpt.pair import Pair
from jaxcpt.pairs import PairList, open_source, read_all, read_pairs, write_pairs


def test_the_limit_of_negatives_is_below_the_positive():
    positive = np.array([0.8, 0.0, -0.4])
    np.testing.assert_allclose(Margins(0.95, 0.0).limit(positive), [0.76, 0.0, -0.42])
    np.testing.assert_allclose(Margins(1.0, 0.1).limit(positive), [0.7, -0.1, -0.5])
    np.testing.assert_allclose(Margins(0.5, 0.5).limit(positive), [0.3, -0.5, -0.9])


def test_chooses_the_best_candidates_that_are_not_known_or_likely_positives():
    scores, candidates = [0.9, 0.8, 0.7, 0.6, 0.5], [4, 2, 9, 1, 7]
    assert choose_negatives(scores, candidates, 0.75, {9}, 2) == (
        [1, 7],
        Counter({"passed over: known to be right": 1, "passed over: within the margin": 2}),
    )
    assert choose_negatives(scores, candidates, 1.0, set(), 2) == ([4, 2], Counter())
    assert choose_negatives(scores, candidates, 0.1, set(), 2)[0] == []


def test_known_positives_are_found_by_their_words():
    pairs = [
        Pair("how", "An Answer"),
        Pair("how", "another"),
        Pair("what", "an  answer!"),  # It has the words of the first y.
        Pair("another", "third"),
    ]
    known = Known(PairList(pairs))
    assert len(known.first_m) == 3
    answer, another, third = (known.candidate_n[n] for n in (0, 1, 3))
    assert known.candidate_n[2] == answer
    assert known.first_m[answer] == 0
    assert [known.find_positives(n) for n in range(4)] == [
        {answer, another}, {answer, another}, {answer}, {third, another},
    ]  # fmt: skip
    with pytest.raises(
        UserError, match="found no pairs to read; name a source with at least one pair"
    ):
        Known(PairList([]))


@pytest.fixture
def mined(tmp_path, monkeypatch, capsys):
    # The test session has already chosen its devices.
    monkeypatch.setattr(mine_negatives, "use_cpu_cores", lambda: None)

    def mine(*options, output="out.jsonl"):
        where = ("--run-dir", tiny_run(), "--output", tmp_path / output)
        code, said = run_tool(mine_negatives, monkeypatch, capsys, *where, *options)
        return said if code else list(read_pairs(tmp_path / output))

    return mine


def test_negatives_equal_those_of_an_exact_search(mined, tmp_path):
    # Without margins, negatives are the best of all y except the known positives.
    pairs = [Pair(p.x, p.y, "here") for p in PAIRS]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    found = mined("--pairs", tmp_path / "pairs.jsonl", "--relative-margin", 1, "--negatives", 3)
    assert [(p.x, p.y, p.source) for p in found] == [(p.x, p.y, p.source) for p in pairs]
    embedder = Embedder.load(tiny_run())
    zx, zy = (embedder.embed([getattr(p, side) for p in pairs], side) for side in "xy")
    scores = zx @ zy.T
    for number, pair in enumerate(found):
        below = [
            n
            for n in np.argsort(-scores[number], kind="stable")
            if scores[number, n] <= scores[number, number]
            and pairs[n].y != pair.y
            and pairs[n].x != pair.x
        ]
        assert list(pair.negatives) == [pairs[n].y for n in below[:3]]
    # Training can read the file as a source of pairs.
    assert open_source(JsonlPairs(str(tmp_path / "out.jsonl")), tmp_path, 0).read([5]) == [found[5]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl"]


def test_a_larger_margin_leaves_out_more_and_a_pairs_own_negatives_come_first(mined):
    own, strict = mined(), mined("--absolute-margin", 0.05, output="strict.jsonl")
    assert sum(len(p.negatives) for p in strict) <= sum(len(p.negatives) for p in own)
    for before, after in zip(PAIRS, own, strict=True):
        assert after.negatives[: len(before.negatives)] == before.negatives
        assert before.y not in after.negatives
        assert len(set(after.negatives)) == len(after.negatives) <= 8


def test_counts_own_negatives_that_are_left_out(tmp_path, capsys, as_many_cores_as_devices):
    arguments = ["--run-dir", str(tiny_run()), "--output", str(tmp_path / "out.jsonl")]
    run_command(mine_negatives.main, [*arguments, "--negatives", "1"])
    over = sum(max(len(set(pair.negatives)) - 1, 0) for pair in PAIRS)
    said = capsys.readouterr().out
    assert re.search(rf"\b{over}  left out: the pair's own negatives over --negatives", said)


def test_pairs_of_another_experiment_are_mined_for_it(tmp_path, monkeypatch):
    """The pairs that the run's folder keeps are not those of the experiment."""
    run_dir = copy_run(tmp_path)
    (run_dir / "pairs").mkdir()
    for split in ("train", "heldout"):
        write_pairs(run_dir / "pairs" / f"{split}.jsonl", PAIRS)
    arguments = argparse.Namespace(run_dir=run_dir, pairs=None, split=None, experiment="other.py")
    source = PythonPackages(packages=("json",), heldout_functions=2)
    other = replace(tiny_experiment(), data=Data((source,)))
    monkeypatch.setattr("jaxcpt.pairs.command.load_experiment", lambda path: other)
    _, bare, _ = open_pairs(arguments)
    assert {pair.source.partition(".")[0] for pair in read_all(bare)} == {"json"}


def test_the_model_embeds_prefixes_and_the_file_has_none(mined, tmp_path, monkeypatch):
    write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    experiment = tmp_path / "prefixed.py"
    experiment.write_text(
        "from jaxcpt.config import *\nfrom jaxcpt.config import Tokenizer\n"
        "def experiment():\n"
        f"    source = JsonlPairs({str(tmp_path / 'pairs.jsonl')!r}, y_prefix='w1 w2 w3 ')\n"
        "    return Experiment(name='t', train_steps=1, data=Data((source,)),\n"
        "        tokenizer=Tokenizer(vocabulary=9), batching=Batching(pairs_per_batch=8),\n"
        "        model=Model(width=8, layers=1, heads=1),\n"
        "        optimizer=Optimizer(learning_rate=1e-3))\n"
    )
    prefixed = mined("--experiment", experiment)
    bare = mined("--pairs", tmp_path / "pairs.jsonl", output="bare.jsonl")
    assert [p.y for p in prefixed] == [p.y for p in bare]
    assert not any(n.startswith("w1 w2 w3") for p in prefixed for n in p.negatives)
    assert prefixed != bare  # The vectors differ.


def test_a_killed_run_continues_with_its_own_vectors_and_refuses_others(
    mined, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(mine_negatives, "top_k", die)
        mined()
    kept = tmp_path / "out.jsonl.unfinished"
    assert (kept / "00000.npy").is_file()
    assert not (tmp_path / "out.jsonl").exists()
    shutil.copytree(kept, tmp_path / "other.jsonl.unfinished")

    def embeds_no_y(self, texts, side, progress=False, real=Embedder.embed):
        assert side == "x"
        return real(self, texts, side, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", embeds_no_y)
        assert len(mined()) == len(PAIRS)
    assert not kept.exists()
    write_pairs(tmp_path / "fewer.jsonl", PAIRS[:50])
    said = mined("--pairs", tmp_path / "fewer.jsonl", output="other.jsonl")
    assert said.startswith(f"{tmp_path}/other.jsonl.unfinished: holds other vectors (input: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--relative-margin", "1.5"), "--relative-margin 1.5: must be in [0, 1]"),
        (("--absolute-margin", "-1"), "--absolute-margin -1.0: must be 0 or more"),
        (("--negatives", "0"), "--negatives 0: must be at least 1"),
        (("--depth", "3"), "--depth 3: must be at least --negatives 8"),
        (("--output", "a.txt"), "--output a.txt: expected a name that ends in .jsonl"),
        (("--output", "there.jsonl"), "there.jsonl: exists; remove it or give another --output"),
        (("--run-dir", "none"), "none: no such folder"),
        (("--pairs", "none"), "none: no such file or folder"),
        (("--step", "4"), ""),
    ],
)
def test_refuses_in_one_line(options, message, mined, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text(json.dumps({"x": "a", "y": "b"}) + "\n")
    assert mined(*options).startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]
