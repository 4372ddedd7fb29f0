"""A run puts its prefixes before every text that it embeds, once; options replace them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import CLOSE, PAIRS, make_experiment
from test_pairs_formats import refuse as refuse_call
from tiny_run import copy_run, tiny_run

from jaxcpt import Embedder, embed, evaluate, search
from jaxcpt.checks import validate
from jaxcpt.config import Data, JsonlPairs
from jaxcpt.evals import pair_search
from jaxcpt.experiments import read_experiment, to_json
from jaxcpt.prefixes import choose_prefix, describe_differences
from jaxcpt.scoring import read_heldout, score
from jaxcpt.vectors import VectorFolder

QUERY, PASSAGE = "w1 w2 ", "w3 "
"""Prefixes made of words of the tests' pairs, so that they change the results."""
TEXTS = ["w5 w7", "", "w9 w100 w3"]


@pytest.fixture(autouse=True)
def as_many_cores_as_devices(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))


def with_prefixes(run_dir, *prefixes):
    """Gives the training sources of a run these (x_prefix, y_prefix), and the held-out source the
    first of them."""
    run = read_experiment(run_dir)
    (source,) = run.data.train
    sources = [replace(source, x_prefix=x, y_prefix=y) for x, y in prefixes]
    run = replace(run, data=Data(train=tuple(sources), heldout=sources[0]))
    (run_dir / "experiment.json").write_text(to_json(run))
    return run_dir


@pytest.fixture
def prefixed(tmp_path):
    return with_prefixes(copy_run(tmp_path), (QUERY, PASSAGE))


def close(one, other):
    np.testing.assert_allclose(one, other, **CLOSE)


def test_a_text_gets_the_prefix_of_its_side_once(prefixed):
    plain, own = Embedder.load(tiny_run()), Embedder.load(prefixed)
    for side, prefix in (("x", QUERY), ("y", PASSAGE)):
        with_it = plain.embed([prefix + text for text in TEXTS], side)
        close(own.embed(TEXTS, side), with_it)
        close(own.of_sources.embed([prefix + text for text in TEXTS], side), with_it)
    other = Embedder.load(prefixed, prefixes={"x": "", "y": "w8 "})
    close(other.embed(TEXTS, "x"), plain.embed(TEXTS, "x"))
    close(other.embed(TEXTS, "y"), plain.embed(["w8 " + text for text in TEXTS], "y"))


def test_what_a_run_puts_before_a_text():
    pairs = JsonlPairs("a")

    def run(*sources):
        return make_experiment(data__train=sources)

    asked = replace(pairs, x_prefix="q: ")
    assert choose_prefix(run(pairs), "x", "", {}) == ""
    assert choose_prefix(run(asked), "x", "", {}) == "q: "
    assert choose_prefix(run(asked, asked), "x", "ask ", {}) == "ask q: "
    assert choose_prefix(run(asked, pairs), "x", "ask ", {}) == "ask "
    assert choose_prefix(run(asked), "x", "ask ", {"x": ""}) == ""
    assert choose_prefix(run(asked, pairs), "y", "", {}) == ""
    assert describe_differences(run(asked, asked), {}) == []
    assert describe_differences(run(asked, pairs), {"x": ""}) == []
    assert describe_differences(run(asked, pairs), {}) == [
        "note: data.train has several prefixes of x ('q: ', ''), so none of them is put before a "
        "text; choose one with --x-prefix"
    ]


def test_a_prefix_of_the_tokenizer_is_not_repeated():
    run = make_experiment(tokenizer__x_prefix="query: ")
    source = JsonlPairs("a", x_prefix="query: ")
    for data in (Data((source,)), Data((JsonlPairs("a"),), heldout=source)):
        assert refuse_call(validate, replace(run, data=data)) == (
            "tiny: data: a source has the x_prefix 'query: ', which the tokenizer puts before "
            "every x already; leave it out"
        )
    validate(replace(run, data=Data((replace(source, x_prefix="code "),))))


def run_search(capsys, *arguments):
    """The scores and texts that search shows, without the query."""
    search.main(list(map(str, arguments)))
    return [line for line in capsys.readouterr().out.splitlines() if line[:2] in ("0.", "-0", "  ")]


def test_search_puts_them_before_queries_and_texts(prefixed, tmp_path, capsys):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": pair.y}) + "\n" for pair in PAIRS[:20]))
    by_hand = tmp_path / "by_hand.jsonl"
    lines = (json.dumps({"text": PASSAGE + pair.y}) + "\n" for pair in PAIRS[:20])
    by_hand.write_text("".join(lines))
    plain = copy_run(tmp_path / "plain")

    def scores(*arguments):
        return [line for line in run_search(capsys, *arguments) if not line.startswith(" ")]

    own = scores("--run-dir", prefixed, "--corpus", corpus, "w5")
    assert own == scores("--run-dir", plain, "--corpus", by_hand, QUERY + "w5")
    options = ("--x-prefix", QUERY, "--y-prefix", PASSAGE)
    assert own == scores("--run-dir", plain, "--corpus", corpus, *options, "w5")
    assert own != scores("--run-dir", plain, "--corpus", corpus, "w5")
    # A run's own texts are shown without their prefix.
    shown = run_search(capsys, "--run-dir", prefixed, "w5")
    assert {line.strip() for line in shown if line.startswith(" ")} <= {pair.y for pair in PAIRS}


def test_vectors_know_their_prefix(prefixed, tmp_path, capsys, refuse):
    path, output = tmp_path / "texts.jsonl", tmp_path / "vectors"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    embed.main(
        [
            *("--run-dir", str(prefixed), "--input", str(path)),
            *("--output", str(output)),
            "--side=y",
        ]
    )
    vectors = VectorFolder.open(output)
    assert vectors.about["prefix"] == PASSAGE
    (shard_nd,) = vectors.shards()
    close(shard_nd, Embedder.load(prefixed).embed(TEXTS, "y"))
    options = ("--run-dir", prefixed, "--vectors", output)
    assert run_search(capsys, *options, "w5")
    assert refuse(search, *options, "--y-prefix", "", "w5") == (
        f"{output}: made with the prefix {PASSAGE!r} before each text, but this search "
        "uses ''; choose --y-prefix, or embed again"
    )


def test_scores_use_them_once(prefixed, tmp_path, capsys):
    experiment = read_experiment(prefixed)
    heldout = read_heldout(experiment, prefixed)
    assert heldout[0].x == QUERY + PAIRS[0].x
    plain = Embedder.load(tiny_run())
    want = pair_search.run(plain.embed, heldout)
    scores = score(experiment, Embedder.load(prefixed), heldout)
    assert scores == pytest.approx({f"heldout/{name}": value for name, value in want.items()})

    def mrr(run_dir, *options):
        path = tmp_path / "scores.json"
        evaluate.main(["--run-dir", str(run_dir), "--json", str(path), *options])
        return json.loads(path.read_text())["table"][0]["mrr"]

    assert mrr(prefixed) == pytest.approx(want["mrr"])
    bare = mrr(prefixed, "--x-prefix", "", "--y-prefix", "")
    assert bare == pytest.approx(mrr(copy_run(tmp_path / "plain")))
    capsys.readouterr()


def test_a_command_says_where_sources_differ(tmp_path, capsys):
    run_dir = with_prefixes(copy_run(tmp_path), (QUERY, PASSAGE), ("", PASSAGE))
    search.main(["--run-dir", str(run_dir), "w5"])
    said = capsys.readouterr().out
    assert said.count("note: ") == 1
    assert f"note: data.train has several prefixes of x ({QUERY!r}, ''), so none" in said
    search.main(["--run-dir", str(run_dir), "--x-prefix", "", "w5"])
    assert "note: " not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["query", "--x-prefix", "--y-prefix"])
def test_arguments_that_are_not_utf8(option, refuse):
    given = ["caf\udce9"] if option == "query" else [option, "caf\udce9", "w5"]
    said = refuse(search, "--run-dir", tiny_run(), *given)
    assert "half of a character; write the text as valid UTF-8" in said
