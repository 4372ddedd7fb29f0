"""The sections of the page in words: purpose, limits, settings, pairs, history, use and files."""

import json

import pytest
from planted_run import SUMMARY, Page, headings, plant

from jaxcpt.errors import UserError
from jaxcpt.report import write_report
from jaxcpt.report.about import format_seconds
from jaxcpt.report.meanings import explain
from jaxcpt.report.settings import list_settings

START = {
    "step": 0,
    "date": "2026-11-26T04:00:00+00:00",
    "command": "jaxcpt train --experiment 'a b.py'",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "versions": {"jaxcpt": "0.1.0", "jax": "0.10.2", "python": "3.11.7"},
    "host": "vm, 2 cores",
    "processes": 1,
    "devices": "data 2 on 2 cpu devices",
    "data": [{"name": "a.jsonl", "pairs": 21000}, {"name": "held out of b.jsonl", "pairs": 1000}],
}
END = {"date": "2026-11-26T05:02:05+00:00", "host_memory_bytes": 1234567890}
LINE = {"name": "a/mrr", "score": 0.5, "words": 0.4, "published": "", "caveat": ""}


def write(run_dir, *starts, summary=None, suites=None):
    """Adds the files of a newer run to a planted run folder. Returns its page."""
    if starts:
        lines = "".join(json.dumps(start) + "\n" for start in starts)
        (run_dir / "starts.jsonl").write_text(lines)
    if summary:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    if suites:
        (run_dir / "suites.json").write_text(json.dumps({"step": 9, "suites": suites}))
    return Page(write_report(run_dir))


def change(run_dir, **changes):
    path = run_dir / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_history_of_a_run_that_ended(tmp_path):
    page = write(plant(tmp_path, 400), START, summary=SUMMARY | {"end": END})
    assert (
        "How it was made started 2026-11-26 04:00:00 UTC ended 2026-11-26 05:02:05 UTC "
        "from start to end 1 h 2 min pairs seen 12,000 tokens seen about 1.91 M, without padding "
    ) in page.text
    for shown in (
        "command jaxcpt train --experiment 'a b.py' commit 0123456789abcdef",
        "versions jaxcpt 0.1.0, jax 0.10.2, python 3.11.7 host vm, 2 cores processes 1",
        "devices data 2 on 2 cpu devices peak host memory 1.23 GB",
    ):
        assert shown in page.text


def test_time_and_tokens_come_from_the_rates(tmp_path):
    """A step has 30 pairs. Step 1 runs at 10 pairs/s, and 399 steps at 400; 58,123 tokens/s."""
    page = Page(write_report(plant(tmp_path, 400)))
    seconds = 30 / 10 + 399 * 30 / 400
    assert f"time in steps {round(seconds)} s" in page.text
    assert f"about {seconds * 58_123 / 1e6:.3g} M, without padding" in page.text


def test_a_run_that_was_started_again_says_so(tmp_path):
    again = START | {"step": 200, "date": "2026-11-27T04:00:00+00:00", "commit": None}
    page = write(plant(tmp_path, 400), START, again, again | {"step": 300})
    assert "started 2026-11-26 04:00:00 UTC started again after step 200, 300 " in (page.text)
    assert "commit" not in page.text.partition("How it was made")[2].partition("Files")[0]


def test_of_many_starts_the_last_ones_are_named(tmp_path):
    page = write(plant(tmp_path, 400), *(START | {"step": 10 * i} for i in range(8)))
    assert "started again 7 times, at last after step 40, 50, 60, 70 " in page.text


def test_a_run_of_an_older_version_says_nothing_that_it_did_not_record(tmp_path):
    page = Page(write_report(plant(tmp_path, 400, summary=SUMMARY)))
    history = page.text.partition("How it was made")[2].partition("Derived")[0]
    assert history.split()[0] == "pairs"
    assert not {"started", "ended", "command", "commit", "host"} & set(history.split())


def test_the_pairs_with_their_numbers_and_their_data_card(tmp_path):
    card = {
        "name": "prose",
        "version": "1.0.0",
        "pairs": {"train": 70},
        "counts": {"<b>documents": 9},
        "dropped": {"same x": 3},
        "options": {"inputs": ["books"]},
    }
    mined = tmp_path / "mined"
    mined.mkdir()
    (mined / "data_card.json").write_text(json.dumps(card))
    plant(tmp_path / "run", 3)
    change(tmp_path / "run", data={"train": [{"type": "TfdsPairs", "directory": str(mined)}]})
    text = write(tmp_path / "run", START).text
    assert "The pairs a.jsonl 21,000 pairs held-out pairs: b.jsonl 1,000 pairs" in text
    assert f"How prose 1.0.0 was mined into {mined} pairs: train 70 counts: <b>documents 9" in text
    assert "options: inputs ['books']" in text
    (mined / "data_card.json").write_text("{}")
    damaged = f"{mined / 'data_card.json'}: damaged: it has no name; mine the pairs again"
    assert damaged in write(tmp_path / "run", START).text


def test_the_sources_of_a_run_that_recorded_no_numbers(tmp_path):
    plant(tmp_path, 3)
    twice = [{"type": "JsonlPairs", "path": "a.jsonl"}, {"type": "JsonlPairs", "path": "a.jsonl"}]
    change(tmp_path, data={"train": [*twice, {"type": "PythonPackages"}]})
    text = Page(write_report(tmp_path)).text
    shown = "The pairs a.jsonl JsonlPairs a.jsonl JsonlPairs installed packages PythonPackages"
    assert shown in text


def test_the_first_sentence_names_the_start_and_the_pairs(tmp_path):
    plant(tmp_path, 400)
    assert "This run trains a new model on 21,000 pairs of a.jsonl. Finished at step 400." in (
        write(tmp_path, START).text
    )
    change(tmp_path, init_from={"type": "InitFrom", "run": "runs/<b>"})
    sources = [{"name": f"{i}.jsonl", "pairs": 1000} for i in range(6)]
    text = write(tmp_path, START | {"data": sources}).text
    assert (
        "trains runs/<b> on 6,000 pairs of 0.jsonl, 1.jsonl, 2.jsonl, 3.jsonl and 2 more." in text
    )
    text = write(tmp_path, START | {"data": []}).text
    assert "This run trains runs/<b> on pairs of installed packages. Finished" in text
    change(tmp_path, data={"train": []})
    assert "This run trains runs/<b>. Finished" in write(tmp_path, START | {"data": []}).text


def test_limits_name_where_the_run_is_worse_than_words_alone(tmp_path):
    table = [{"name": "this run", "mrr": 0.4, "r": 0.3}, {"name": "BM25", "mrr": 0.5, "r": 0.2}]
    worse = [LINE | {"name": f"{i}/mrr", "words": 0.6} for i in range(6)]
    suites = {"retrieval": [*worse, LINE], "sts": [LINE | {"before": 0.6}]}
    text = write(plant(tmp_path, 400), summary={"table": table}, suites=suites).text
    for sentence in (
        "In the held-out search it is worse than BM25 in 1 of 2 scores: MRR 0.400 against 0.500.",
        "In retrieval it is worse than BM25 in 6 of 7 scores: 0 MRR 0.500 against 0.600; "
        "1 MRR 0.500 against 0.600; 2 MRR 0.500 against 0.600; 3 MRR 0.500 against 0.600, "
        "and 2 more.",
        "In sts it is at least as good as bag of words in 1 of 1 scores.",
        "In sts it is worse than it was before training in 1 of 1 scores: a MRR 0.500 against",
    ):
        assert sentence in text


def test_limits_count_a_score_that_is_not_a_number_as_worse(tmp_path):
    nan = float("nan")
    table = [{"name": "this run", "mrr": nan, "r": 0.3}, {"name": "BM25", "mrr": 0.5, "r": nan}]
    page = write(plant(tmp_path, 400), summary={"table": table})
    assert "search it is worse than BM25 in 1 of 1 scores: MRR nan against 0.500." in page.text


def test_limits_of_lengths_of_unfinished_training_and_of_missing_scores(tmp_path):
    plant(tmp_path, 30)
    (tmp_path / "evals.jsonl").unlink()
    text = Page(write_report(tmp_path)).text
    for sentence in (
        "turns a text into a vector of 32 numbers.",
        "Its training has not ended: step 30 of 400.",
        "It has not been scored yet, so its quality is not known.",
    ):
        assert sentence in text


def test_of_a_generative_run_lower_is_better_and_nothing_is_searched(tmp_path):
    table = [{"name": "this run", "bits_per_byte": 3.5}, {"name": "xz", "bits_per_byte": 2.25}]
    plant(tmp_path, 3)
    change(tmp_path, objective="generative")
    page = write(tmp_path, summary={"table": table})
    assert "worse than xz in 1 of 1 scores: bits/byte 3.500 against 2.250." in page.text
    assert "This model predicts the next token of a text." in page.text
    assert f'init_from=InitFrom("{tmp_path}")' in page.text
    assert "jaxcpt search" not in page.text
    assert "Mean cross-entropy of the next token, in nats." in page.text


def test_how_to_use_it_names_the_folder(tmp_path):
    text = Page(write_report(plant(tmp_path / "a b", 3))).text
    assert f"jaxcpt search --run-dir '{tmp_path / 'a b'}' \"your words\"" in text
    assert f"jaxcpt export --run-dir '{tmp_path / 'a b'}' --output exported" in text
    assert f'Embedder.load("{tmp_path / "a b"}")' in text


def test_links_lead_to_files_whose_folder_has_any_name(tmp_path):
    plant(tmp_path / "a #1", 3)
    page = Page(write_report(tmp_path / "a #1", tmp_path / "page.html"))
    links = [value for name, value in page.attributes if name == "href"]
    assert links[0] == "a%20%231/experiment.json"


def test_an_imported_model_has_a_page(tmp_path):
    plant(tmp_path, 0)
    for name in ("metrics.jsonl", "evals.jsonl"):
        (tmp_path / name).unlink()
    change(tmp_path, train_steps=0, data={"train": []})
    page = Page(write_report(tmp_path))
    assert "This is an imported model, which has not been trained here." in page.text
    assert headings(page) == ["What it is for", "How to use it", "Settings", "Files"]
    (tmp_path / "imported.json").write_text('{"source": "package:a/<b>"}')
    page = Page(write_report(tmp_path))
    assert "This is package:a/<b>, which has not been trained here." in page.text
    assert "imported.json : the model that was imported" in page.text


def test_settings_that_were_chosen_come_first_and_defaults_are_folded(tmp_path):
    page = Page(write_report(plant(tmp_path, 3)))
    settings = page.source.partition("<h2>Settings</h2>")[2].partition("<h2>")[0]
    chosen, folded = settings.split("<details>")
    assert "<dt>optimizer.learning_rate</dt><dd>0.123</dd>" in chosen
    assert "<dt>optimizer.b2</dt>" in folded
    assert "values that are the default</summary>" in folded
    assert "<details open" not in settings


def test_defaults_are_those_of_the_class_that_a_value_has():
    tree = {
        "type": "Experiment",
        "seed": 0,
        "log_every_steps": 7,
        "init_from": None,
        "data": {
            "type": "Data",
            "train": [{"type": "JsonlPairs", "path": "a", "x": "x", "y": "code"}],
            "weights": [],
        },
        "adapter": {"type": "Adapter", "rank": 4, "targets": ["query", "value"]},
        "loss": {"type": "Loss", "gone": 1},
    }
    found = {s.path: (s.value, s.is_default) for s in list_settings(tree)}
    assert found == {
        "seed": ("0", True),
        "log_every_steps": ("7", False),
        "init_from": ("None", True),
        "data.train.0": ("JsonlPairs", False),
        "data.train.0.path": ("a", False),
        "data.train.0.x": ("x", True),
        "data.train.0.y": ("code", False),
        "data.weights": ("", True),
        "adapter.rank": ("4", False),
        "adapter.targets": ("query, value", True),
        "loss.gone": ("1", False),
    }


def test_every_number_of_training_is_explained(tmp_path):
    """The scalars of a run's rows and the scores of held-out pairs have explanations."""
    page = Page(write_report(plant(tmp_path, 400, summary=SUMMARY)))
    figures = page.source.split("<figure>")[1:]
    assert len(figures) == 9
    assert [figure[:80] for figure in figures if "<p>" not in figure] == []
    folded = "What the scores mean MRR Mean of 1 / rank of the right text; 1 means that it always"
    assert folded in page.text


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("heldout/recall_at_1", "Share of the searches whose first text is right."),
        ("retrieval/x/recall_at_100", "Share of the right texts that are among the first 100."),
        ("retrieval/x/ndcg_at_10", "How early the right texts come among the first 10."),
        ("open_qa/nq/answer_recall_at_20", "Share of questions whose answer is in one of the"),
        ("loss", "Mean cross-entropy of finding the other text"),
        ("unheard_of", ""),
    ],
)
def test_explanations(name, start):
    assert explain(name).startswith(start)
    assert bool(explain(name)) == bool(start)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (7325, "2 h 2 min"), (90061, "1 d 1 h"), (-5, "0 s")],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("{oops", ":2: not JSON: "),
        ('{"step": 1}', ":2: expected an object with '"),
        (
            json.dumps(START | {"date": "2026-11-26"}),
            ":2: date: expected a date with its",
        ),
        (json.dumps(START | {"commit": 7}), ":2: commit: expected a text or null, found 7"),
        (json.dumps(START | {"data": [{"name": "a"}]}), ":2: data.0: expected an object with 'pa"),
    ],
)
def test_a_damaged_line_of_a_start_is_refused(tmp_path, line, refusal):
    path = plant(tmp_path, 3) / "starts.jsonl"
    path.write_text(f"{json.dumps(START)}\n{line}\n")
    with pytest.raises(UserError) as refused:
        write_report(tmp_path)
    assert str(refused.value).startswith(f"{path}{refusal}")


def test_text_of_a_start_is_escaped(tmp_path):
    attack = dict.fromkeys(("command", "commit", "host", "devices"), "<script>")
    attack |= {"versions": {"<script>": "<script>"}, "data": [{"name": "<script>", "pairs": 1}]}
    page = write(plant(tmp_path / "<script>", 3), START | attack)
    assert "script" not in page.tags
    assert page.text.count("<script>") >= 7
