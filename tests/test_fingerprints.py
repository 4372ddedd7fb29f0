"""A checkpoint is only read with the data, the tokenizer and the model that it belongs to."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import PAIRS, make_pairs
from test_train import forget, read_state
from tiny_run import copy_run, tiny_experiment, tiny_run

import jaxcpt
from jaxcpt import fingerprints
from jaxcpt.errors import UserError
from jaxcpt.experiments import to_json
from jaxcpt.fingerprints import check_data, check_model, describe_data, describe_model
from jaxcpt.pair import Pair
from jaxcpt.pairs import PairList, open_training, write_pairs
from jaxcpt.sources import Data, JsonlPairs
from jaxcpt.tokenizer import Tokenizer
from jaxcpt.train import main, train


def describe(pairs, tokenizer=None, heldout=(), path="pairs.jsonl"):
    held = JsonlPairs(path) if heldout else None
    data = Data(train=(JsonlPairs(path),), heldout=held)
    return describe_data(data, [PairList(pairs)], heldout, tokenizer)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (PAIRS[::-1], "pairs.jsonl.texts: "),
        (PAIRS[:60], "pairs.jsonl.pairs: 90 -> 60"),
        ([*PAIRS[:-1], Pair("other", "text")], "pairs.jsonl.texts: "),
        ([replace(p, negatives=(*p.negatives, "more")) for p in PAIRS], "pairs.jsonl.texts: "),
        ([Pair("\ud800", "half a character"), *PAIRS[1:]], "pairs.jsonl.texts: "),
    ],
)
def test_changed_pairs_are_refused_by_name_and_accepted_on_demand(changed, says, capsys):
    meta = {"data": describe(PAIRS)}
    check_data(meta, describe(PAIRS), accepted=False)
    with pytest.raises(UserError) as refused:
        check_data(meta, describe(changed), accepted=False)
    text = str(refused.value)
    assert text.startswith("data changed since the last checkpoint (")
    assert says in text
    assert text.endswith("; put it back, or go on with --accept-changed-data")
    check_data(meta, describe(changed), accepted=True)
    assert capsys.readouterr().out.startswith("going on with changed data (")


def test_a_source_that_came_or_went_is_named():
    both = describe(PAIRS, heldout=PAIRS)
    for before, now in ((describe(PAIRS), both), (both, describe(PAIRS))):
        with pytest.raises(UserError, match=r"held out of pairs\.jsonl: "):
            check_data({"data": before}, now, accepted=False)


@pytest.mark.parametrize("damaged", [None, 3, "x", {}])
def test_a_checkpoint_without_data_is_not_compared(damaged):
    check_data({"data": damaged}, describe(PAIRS), accepted=False)


def test_a_copy_with_new_dates_is_the_same_data(tmp_path, tokenizer):
    found = []
    for name in ("one", "two"):
        path = tmp_path / name / "pairs.jsonl"
        path.parent.mkdir()
        write_pairs(path, PAIRS)
        data = Data(train=(JsonlPairs(str(path)),))
        (entry,) = describe_data(data, open_training(data, tmp_path, 0), (), tokenizer)
        found.append({k: v for k, v in entry.items() if k != "name"})
    assert found[0] == found[1]


def test_a_large_source_is_sampled_from_first_to_last(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(fingerprints, "MOST_PAIRS", 500)
    monkeypatch.setattr(fingerprints, "BLOCKS", 5)
    monkeypatch.setattr(fingerprints, "PAIRS_PER_BLOCK", 10)
    pairs, path = make_pairs(2000), tmp_path / "pairs.jsonl"

    def describe_file(pairs):
        write_pairs(path, pairs)
        data = Data(train=(JsonlPairs(str(path)),))
        return describe_data(data, open_training(data, tmp_path, 0), (), tokenizer)

    (before,) = describe_file(pairs)
    assert before["bytes"] == path.stat().st_size
    other = Pair("other", "text")
    for at in (0, 5, 1999, 500):  # the first three are in blocks, and the last changes the length
        assert describe_file([*pairs[:at], other, *pairs[at + 1 :]]) != [before]
    assert describe_file(pairs) == [before]


def test_token_ids_are_compared_by_the_hashes_of_their_texts(tmp_path, tokenizer):
    class Encoded:
        def __init__(self, pairs):
            self.pairs = PairList(pairs)

        def __len__(self):
            return len(self.pairs)

        def read_encoded(self, indices, tokenizer, negatives):
            return self.pairs.read_encoded(indices, tokenizer, negatives)

    data = Data(train=(JsonlPairs("p"),))
    one, same, other = (
        describe_data(data, [Encoded(pairs)], (), tokenizer)
        for pairs in (PAIRS, PAIRS, [*PAIRS[1:], PAIRS[0]])
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("part", "change", "file", "says"),
    [
        ("model", {"causal": False}, "experiment.json", "model.causal: True -> False"),
        ("tokenizer", {"y_tokens": 6}, "tokenizer/limits.json", "limits.y_tokens: 24 -> 6"),
        ("tokenizer", {"x_tokens": 11}, "tokenizer/limits.json", "limits.x_tokens: 12 -> 11"),
    ],
)
def test_readers_refuse_what_was_changed_by_hand(tmp_path, part, change, file, says):
    """Limits that differ from experiment.json are refused earlier. Here both files were changed."""
    run_dir = copy_run(tmp_path)
    path = run_dir / "experiment.json"
    tree = json.loads(path.read_text())
    tree[part] |= change
    path.write_text(json.dumps(tree))
    if part == "tokenizer":
        limits = run_dir / "tokenizer" / "limits.json"
        limits.write_text(json.dumps(json.loads(limits.read_text()) | change))
    with pytest.raises(UserError) as refused:
        jaxcpt.Embedder.load(run_dir)
    assert str(refused.value) == (
        f"{run_dir / file}: changed since the checkpoint was saved ({says}); put it back"
    )


@pytest.mark.parametrize("side", ["x_tokens", "y_tokens"])
def test_limits_that_were_changed_in_both_files_are_refused(tmp_path, side):
    run_dir = copy_run(tmp_path)
    for name, part in (("experiment.json", "tokenizer"), ("tokenizer/limits.json", None)):
        tree = json.loads((run_dir / name).read_text())
        (tree[part] if part else tree)[side] = 11
        (run_dir / name).write_text(json.dumps(tree))
    with pytest.raises(UserError) as refused:
        jaxcpt.Embedder.load(run_dir)
    before = {"x_tokens": 12, "y_tokens": 24}[side]
    assert str(refused.value) == (
        f"{run_dir}/tokenizer/limits.json: changed since the checkpoint was saved "
        f"(limits.{side}: {before} -> 11); put it back"
    )


def test_a_vocabulary_of_another_run_is_refused(tmp_path, tokenizer):
    found = describe_model(tiny_experiment(), tokenizer)
    check_model(found, found, tmp_path)
    with pytest.raises(UserError) as caught:
        check_model(found | {"tokenizer": "a" * 64}, found, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer: the checkpoint was trained with another vocabulary "
        f"(sha256 aaaaaaaaaaaa, found {found['tokenizer'][:12]}); put the old one back"
    )


def test_how_a_model_is_computed_may_change(tmp_path, tokenizer):
    experiment = tiny_experiment()
    other = replace(experiment, model=replace(experiment.model, compute_dtype="bfloat16"))
    assert describe_model(experiment, tokenizer) == describe_model(other, tokenizer)


def test_an_older_checkpoint_goes_on_with_one_line(tmp_path, tokenizer, capsys):
    found = describe_model(tiny_experiment(), tokenizer)
    check_model({"tokenizer": found["tokenizer"]}, found, tmp_path)
    assert capsys.readouterr().out == (
        f"{tmp_path}: an older version wrote its checkpoint; model and data not checked\n"
    )


def test_a_resume_on_changed_data_is_refused_or_accepted(tmp_path, monkeypatch, capsys):
    run_dir = copy_run(tmp_path)
    forget(run_dir, 6)
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs, PAIRS[::-1])
    experiment = tiny_experiment()
    moved = replace(
        experiment, data=Data(train=(JsonlPairs(str(pairs)),), heldout=JsonlPairs(str(pairs)))
    )
    (run_dir / "experiment.json").write_text(to_json(moved))
    with pytest.raises(UserError, match=r"data changed .*texts: .* --accept-changed-data"):
        train(moved, run_dir, run_dir)
    assert not (run_dir / "checkpoints" / "6").exists()
    train(moved, run_dir, run_dir, accept_changed_data=True)
    assert "going on with changed data" in capsys.readouterr().out
    train(moved, run_dir, run_dir)  # the newest checkpoint knows the new data
    with pytest.raises(AssertionError):
        jax.tree.map(
            np.testing.assert_array_equal, read_state(run_dir).params, read_state(tiny_run()).params
        )


def test_the_command_has_the_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"--accept-changed-data\s+go on although", capsys.readouterr().out)


def test_a_run_keeps_its_fingerprints():
    tokenizer = Tokenizer.load(tiny_run() / "tokenizer")
    assert describe_model(tiny_experiment(), tokenizer)["limits"] == {
        "vocabulary": 400, "x_tokens": 12, "y_tokens": 24, "x_prefix": "", "y_prefix": "",
    }  # fmt: skip
