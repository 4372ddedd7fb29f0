"""The command `jaxcpt evaluate` on the tiny run, and suites during training."""

import gc
import json
import re
import shutil
import sys
from dataclasses import replace

import jax
import pytest
from conftest import PAIRS
from test_evals_sts import write_subset
from tiny_run import copy_run, tiny_experiment, tiny_run

from jaxcpt import evaluate, vectors
from jaxcpt.config import Evals
from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError, run_command
from jaxcpt.evals import retrieval, sts
from jaxcpt.evals.suites import describe_unknown
from jaxcpt.metrics import read_rows
from jaxcpt.scoring import record_tables
from jaxcpt.train import train
from jaxcpt.vectors import Storage, VectorFolder


@pytest.fixture(autouse=True)
def as_many_cores_as_devices(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))


@pytest.fixture
def data(tmp_path):
    """A data folder: STS12 without one subset, and a search among the y of 60 pairs."""
    folder = tmp_path / "data"
    for name in ("sts12", "sts14"):
        texts = [f"w{i} w{i % 7}" for i in range(40)]
        write_subset(folder / "sts" / name, "OnWN", [i % 11 / 2 for i in range(40)], texts)
    task = folder / "retrieval" / "made"
    (task / "qrels").mkdir(parents=True)
    for file, side in (("corpus", "y"), ("queries", "x")):
        rows = [{"_id": f"{i}", "text": getattr(pair, side)} for i, pair in enumerate(PAIRS[:60])]
        prefix = "q" if side == "x" else "d"
        lines = (json.dumps({**row, "_id": prefix + row["_id"]}) + "\n" for row in rows)
        (task / f"{file}.jsonl").write_text("".join(lines))
    qrels = "".join(f"q{i}\td{i}\t1\n" for i in range(60))
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """A function that runs the command and returns its output and the content of --json."""

    def run(*arguments):
        output = tmp_path / "scores.json"
        run_command(evaluate.main, [*map(str, arguments), "--json", str(output)])
        return capsys.readouterr().out, json.loads(output.read_text())

    return run


def needs_evals():
    pytest.importorskip("pytrec_eval", reason="needs the evals extra")
    pytest.importorskip("Stemmer", reason="needs the evals extra")


def test_suites_on_data(tmp_path, data, call):
    needs_evals()
    run_dir = copy_run(tmp_path)
    said, written = call("--run-dir", run_dir, "--data", data)
    embedder = Embedder.load(run_dir)
    want = {f"sts/{name}": value for name, value in sts.run(embedder.embed, data).items()}
    own = retrieval.run(embedder.embed, data)
    want |= {f"retrieval/{name}": value for name, value in own.items()}
    assert written["step"] == 6
    assert written["scores"] == pytest.approx(want, abs=1e-9)
    words = {f"retrieval/{name}": value for name, value in retrieval.bm25(data).items()}
    words |= {f"sts/{name}": value for name, value in sts.bag_of_words(data).items()}
    assert written["words"] == words
    assert re.search(r"sts12/mean/spearman\* +│", said)
    assert (
        "  * sts12/mean/spearman, sts12/all/spearman: without MSRpar, MSRvid, SMTeuroparl, "
        "SMTnews, which published figures include; not to be compared with published figures"
    ) in said
    assert not re.search(r"sts14/mean/spearman\*", said)
    row = read_rows(run_dir / "evals.jsonl")[-1]
    assert row["step"] == 6
    assert row.items() >= written["scores"].items()
    page = (run_dir / "report.html").read_text()
    assert "without MSRpar, MSRvid" in page
    assert "made nDCG@10" in page


def test_suites_inside_a_run_equal_the_command(tmp_path, data, call, capsys, monkeypatch):
    """They run on the training mesh with the run's own arrays.

    During training there are three arrays for each parameter: itself and Adam's two moments. After
    the last step the moments are freed. The scores are in evals.jsonl, in the report and on the
    terminal.
    """
    needs_evals()
    run = tiny_experiment()
    run = replace(run, evals=Evals(every_steps=3, suites=("sts", "retrieval"), data=str(data)))
    tiny_run()  # writes the pairs
    shape = (run.tokenizer.vocabulary, run.model.width)

    def count():
        return sum(array.shape == shape for array in jax.live_arrays())

    gc.collect()  # free the arrays of earlier tests
    before, embed, counts = count(), Embedder.embed, []

    def watch(self, texts, side, progress=False):
        assert [leaf.shape for leaf in jax.tree.leaves(self.params)].count(shape) == 1
        vectors_nd = embed(self, texts, side, progress)
        counts.append(count() - before)
        return vectors_nd

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", watch)
        train(run, run_dir, run_dir)
    assert len(counts) > 8
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {3, 1}
    assert re.search(r"sts12/mean/spearman\* +│", capsys.readouterr().out)
    tables = json.loads((run_dir / "suites.json").read_text())
    page = (run_dir / "report.html").read_text()
    assert "<h3>retrieval, step 6</h3>" in page
    assert "made nDCG@10" in page

    rows = {row["step"]: row for row in read_rows(run_dir / "evals.jsonl")}
    assert set(rows) == {3, 6}
    for step, row in rows.items():
        _, written = call("--run-dir", run_dir, "--data", data, "--step", step)
        assert written["step"] == step
        inside = {name: row[name] for name in written["scores"]}
        assert inside == pytest.approx(written["scores"], abs=1e-6)
    found = json.loads((run_dir / "suites.json").read_text())
    assert found["step"] == tables["step"] == 6
    for suite, lines in found["suites"].items():
        for line, other in zip(lines, tables["suites"][suite], strict=True):
            assert line.pop("score") == pytest.approx(other.pop("score"), abs=1e-6)
            assert line == other


def test_corpora_are_kept_in_shards_and_gone_on_with(tmp_path, data, call, monkeypatch):
    needs_evals()
    monkeypatch.setattr(vectors.fill, "__defaults__", (16,))
    arguments = ["--run-dir", copy_run(tmp_path), "--data", data, "--suite", "retrieval"]
    _, whole = call(*arguments)
    kept = tmp_path / "kept"
    embed, calls = Embedder.embed, []

    def embed_some(self, texts, side, progress=False):
        calls.append(len(texts))
        if calls.count(16) == 3:
            raise KeyboardInterrupt
        return embed(self, texts, side, progress)

    monkeypatch.setattr(Embedder, "embed", embed_some)
    with pytest.raises(SystemExit, match="130"):
        call(*arguments, "--vectors", kept)
    assert len(list((kept / "retrieval-made").glob("*.npy"))) == 2
    _, resumed = call(*arguments, "--vectors", kept)
    assert calls.count(16) == 4  # three shards, one of them twice
    assert resumed["scores"] == pytest.approx(whole["scores"], abs=1e-6)
    assert len(VectorFolder.open(kept / "retrieval-made")) == 60
    assert list(VectorFolder.open(kept / "retrieval-made").ids())[:2] == ["d0", "d1"]


@pytest.mark.parametrize("options", [["--width", "8"], ["--int8"], ["--width", "8", "--int8"]])
def test_scores_of_cut_and_rounded_vectors(tmp_path, data, call, options):
    needs_evals()
    run_dir = copy_run(tmp_path)
    before = (run_dir / "evals.jsonl").read_bytes()
    _, written = call("--run-dir", run_dir, "--data", data, *options)
    storage = Storage(8 if "--width" in options else None, "--int8" in options)
    embed = Embedder.load(run_dir).embed
    want = retrieval.run(lambda texts, side: storage.round_trip(embed(texts, side)), data)
    scores = {k: v for k, v in written["scores"].items() if k.startswith("retrieval/")}
    assert scores == pytest.approx({f"retrieval/{k}": v for k, v in want.items()}, abs=1e-9)
    assert (run_dir / "evals.jsonl").read_bytes() == before  # they are not the run's own scores
    assert not (run_dir / "suites.json").exists()
    kept = ["--vectors", tmp_path / "kept"]
    _, from_shards = call("--run-dir", run_dir, "--data", data, *options, *kept)
    # int8 vectors may tie.
    assert from_shards["scores"] == pytest.approx(written["scores"], abs=0.02)
    assert VectorFolder.open(tmp_path / "kept" / "retrieval-made").storage == storage


def test_heldout_alone(tmp_path, call):
    said, written = call("--run-dir", copy_run(tmp_path), "--step", 3)
    counts = written["heldout"]
    assert f"Each of {counts['x']} held-out x searches {counts['y']} y" in said
    assert written["step"] == 3
    assert [row["name"] for row in written["table"]] == ["this run", "BM25", "chance"]
    _, cut = call("--run-dir", tiny_run(), "--step", 3, "--width", 2, "--int8")
    assert cut["table"][0]["mrr"] < written["table"][0]["mrr"]
    assert cut["table"][1:] == written["table"][1:]


def test_what_was_done_before_a_refusal_is_kept(tmp_path, data, call, capsys):
    """Suites run one after another. Those of an earlier call stay in the report."""
    needs_evals()
    run_dir = copy_run(tmp_path)
    arguments = ["--run-dir", run_dir, "--data", data]
    (data / "retrieval" / "made" / "queries.jsonl").rename(tmp_path / "queries.jsonl")
    with pytest.raises(SystemExit):
        call(*arguments)
    row = read_rows(run_dir / "evals.jsonl")[-1]
    assert "sts/sts14/mean/spearman" in row
    assert "retrieval/made/map" not in row
    assert "queries.jsonl: no such file" in capsys.readouterr().err
    written = json.loads((tmp_path / "scores.json").read_text())
    assert {name.partition("/")[0] for name in written["scores"]} == {"sts"}
    assert not (tmp_path / "scores.json.partial").exists()
    (tmp_path / "queries.jsonl").rename(data / "retrieval" / "made" / "queries.jsonl")
    call(*arguments, "--suite", "retrieval")
    kept = json.loads((run_dir / "suites.json").read_text())
    assert list(kept["suites"]) == ["sts", "retrieval"]
    call(*arguments, "--suite", "retrieval", "--step", 3)
    assert list(json.loads((run_dir / "suites.json").read_text())["suites"]) == ["retrieval"]


def test_scores_that_cannot_be_recorded_are_shown(tmp_path, data, call):
    needs_evals()
    run_dir = copy_run(tmp_path)
    (run_dir / "evals.jsonl").write_text("damaged\n")
    said, written = call("--run-dir", run_dir, "--data", data, "--suite", "sts")
    line = (
        f"these scores are shown and not recorded; evaluate again for that: {run_dir}/evals.jsonl"
    )
    assert line in said
    assert "sts/sts14/mean/spearman" in written["scores"]


def test_a_set_that_does_not_fit_leaves_all_other_scores(tmp_path, data, call, capsys):
    """The other scores of its suite and of later suites are kept, also those of word matching."""
    needs_evals()
    run_dir = copy_run(tmp_path)
    path = data / "sts" / "sts12" / "OnWN.tsv"
    path.write_text("score\ttext_a\ttext_b\n5\talone\n")
    with pytest.raises(SystemExit, match="2"):
        call("--run-dir", run_dir, "--data", data)
    line = f"jaxcpt: {path}:2: expected 3 fields (score, text_a, text_b), found 2\n"
    assert capsys.readouterr().err == line
    written = json.loads((tmp_path / "scores.json").read_text())
    for scores in (written["scores"], written["words"], read_rows(run_dir / "evals.jsonl")[-1]):
        assert {"sts/sts14/mean/spearman", "retrieval/made/map"} <= scores.keys()
        assert "sts/sts12/mean/spearman" not in scores
    assert list(json.loads((run_dir / "suites.json").read_text())["suites"]) == ["sts", "retrieval"]


def test_a_run_goes_on_where_a_set_does_not_fit(tmp_path, data, capsys):
    (data / "sts" / "sts12" / "OnWN.tsv").write_text("score\ttext_a\ttext_b\n")
    run = tiny_experiment()
    run = replace(run, evals=Evals(every_steps=3, suites=("sts",), data=str(data)))
    tiny_run()  # writes the pairs
    train(run, tmp_path / "run", tmp_path / "run")
    said = capsys.readouterr().out
    line = f"not scored: {data / 'sts' / 'sts12' / 'OnWN.tsv'}: 0 pairs, 0 scores; needs at least 2"
    assert said.count(line) == 1
    rows = read_rows(tmp_path / "run" / "evals.jsonl")
    assert [row["step"] for row in rows if "sts/sts14/all/spearman" in row] == [3, 6]


def test_scores_of_a_second_data_folder_are_added(tmp_path, data, call):
    run_dir, other = copy_run(tmp_path), tmp_path / "other"
    shutil.copytree(data / "sts" / "sts14", other / "sts" / "sts15")
    call("--run-dir", run_dir, "--data", data, "--suite", "sts")
    call("--run-dir", run_dir, "--data", other, "--suite", "sts")
    lines = json.loads((run_dir / "suites.json").read_text())["suites"]["sts"]
    assert {line["name"].partition("/")[0] for line in lines} == {"sts12", "sts14", "sts15"}
    assert "sts/sts12/all/spearman" in read_rows(run_dir / "evals.jsonl")[-1]


def test_folders_that_no_suite_reads_are_named(tmp_path, data, call):
    for name in ("stories", ".git", "STS-B", "trec", "sts/quora", "linear_probe/imdb"):
        (data / name).mkdir(parents=True)
    (data / "scifact").mkdir()
    (data / "scifact" / "corpus.jsonl").write_text("")
    (data / "retrieval" / "made" / "qrels" / "old").mkdir()
    (data / "retrieval" / "empty" / "part").mkdir(parents=True)
    for forum in ("android", "broken"):
        (data / "retrieval" / "cqadupstack" / forum).mkdir(parents=True)
    (data / "retrieval" / "cqadupstack" / "android" / "corpus.jsonl").write_text("")
    (data / "code_search" / "a" / "b" / "c").mkdir(parents=True)
    (data / "code_search" / "a" / "b" / "c" / "corpus.jsonl").write_text("")
    (data / "code_search" / "codesearchnet" / "rust").mkdir(parents=True)
    beir = "corpus.jsonl, queries.jsonl and qrels/ in it or in its folders"
    expected = {
        "STS-B": "sts-b in the folder sts",
        "scifact": "a folder with a corpus.jsonl in the folder retrieval or code_search",
        "stories": "one of linear_probe, sts, retrieval, code_search, dpr",
        "trec": "trec in the folder linear_probe",
        "linear_probe/imdb": "one of mr, cr, subj, mpqa, sst2, trec, mrpc",
        "sts/quora": "one of sts12, sts13, sts14, sts15, sts16, sick-r, sts-b",
        "retrieval/empty": beir,
        "retrieval/cqadupstack/broken": beir,
        "code_search/a": beir,
        "code_search/codesearchnet/rust": "one of go, java, javascript, php, python, ruby",
    }
    lines = {
        name: f"{data / name}: no suite reads it, so it is not scored; expected {what}"
        for name, what in expected.items()
    }
    assert sorted(describe_unknown(data, "all")) == sorted(lines.values())
    said, _ = call("--run-dir", copy_run(tmp_path), "--data", data, "--suite", "sts")
    for name, line in lines.items():
        assert (f"{line}\n" in said) == name.startswith("sts/")


def test_a_bar_shows_how_many_texts_are_embedded(tmp_path, data, call, monkeypatch):
    embed, shown = Embedder.embed, []

    def watch(self, texts, side, progress=False):
        shown.append(progress)
        return embed(self, texts, side, progress)

    monkeypatch.setattr(Embedder, "embed", watch)
    call("--run-dir", copy_run(tmp_path), "--data", data, "--suite", "sts")
    assert set(shown) == {True}


def test_what_a_name_means_stands_below_its_table(tmp_path, data, call):
    run_dir = copy_run(tmp_path)
    said, _ = call("--run-dir", run_dir, "--data", data, "--suite", "sts")
    assert re.search(r"sts14/all/spearman +│.*│ this form │", said)
    assert re.search(r"sts14/mean/spearman +│.*│ +│\n", said)
    meaning = "all: the pairs of all subsets of a set together, as MTEB and model cards publish"
    assert meaning in said
    assert meaning in (run_dir / "report.html").read_text()


@pytest.mark.parametrize("library", ["sklearn", "pytrec_eval", "mteb"])
def test_a_missing_library_is_refused_before_a_model_is_loaded(
    tmp_path, data, library, monkeypatch, capsys
):
    needs_evals()  # otherwise another library is named first
    (data / "linear_probe").mkdir()
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(Embedder, "load", None)
    of_library = ["--mteb", "STS12"] if library == "mteb" else ["--data", str(data)]
    with pytest.raises(SystemExit, match="2"):
        run_command(evaluate.main, ["--run-dir", str(tiny_run()), *of_library])
    extra = "mteb" if library == "mteb" else "evals"
    line = f"jaxcpt: this evaluation needs {library}: pip install 'jaxcpt[{extra}]'\n"
    assert capsys.readouterr().err == line


def test_training_refuses_a_missing_library_before_its_first_step(tmp_path, data, monkeypatch):
    needs_evals()
    tiny_run()  # writes the pairs
    run = tiny_experiment()
    run = replace(run, evals=Evals(every_steps=3, suites=("retrieval",), data=str(data)))
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(UserError, match=r"^this evaluation needs pytrec_eval: pip install 'jaxcpt"):
        train(run, tmp_path / "run", tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


DAMAGED = [
    '{"step": 6, "suites": {"sts',
    "[1]",
    '{"step": 6}',
    '{"step": 6, "suites": []}',
    '{"step": "6", "suites": {}}',
    '{"step": 6, "suites": {"sts": [{"name": "a"}]}}',
    "[" * 100_000,
]


def test_a_damaged_table_of_suites_is_written_anew(tmp_path, capsys):
    run_dir = copy_run(tmp_path)
    path = run_dir / "suites.json"
    for damaged in DAMAGED:
        path.write_text(damaged)
        record_tables(run_dir, 6, {"retrieval": []})
        assert json.loads(path.read_text()) == {"step": 6, "suites": {"retrieval": []}}
        assert capsys.readouterr().out == (
            f"{path}: does not parse; writing a new one, without the suites that it held\n"
        )
