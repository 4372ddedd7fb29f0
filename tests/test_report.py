"""Planted run folders: whole, half, empty and hostile ones, and what their pages must show."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from jaxcpt.config import Batching, Data, Experiment, Model, Optimizer, PythonPackages, Tokenizer
from jaxcpt.errors import UserError, run_command
from jaxcpt.experiments import to_json
from jaxcpt.metrics import MetricsLog
from jaxcpt.report import main, write_report

EXPERIMENT = Experiment(
    name="planted",
    train_steps=400,
    data=Data(train=(PythonPackages(packages=("json", "email")),)),
    tokenizer=Tokenizer(vocabulary=600),
    batching=Batching(pairs_per_batch=30),
    model=Model(width=32, layers=2, heads=4),
    optimizer=Optimizer(learning_rate=0.123),
)
TABLE = [
    {"name": "this run", "mrr": 0.5432, "recall_at_1": 0.4},
    {"name": "BM25", "mrr": 0.4711, "recall_at_1": 0.45},
    {"name": "chance", "mrr": 0.0075},
]
RESULT = {"score": 0.8125, "text": "def f(a):\n    return a", "source": "m.f", "right": True}
SUMMARY = {
    "table": TABLE,
    "examples": [{"query": "find f", "results": [RESULT, RESULT | {"right": False}]}],
    "derived": {"parameters": "3.1 M"},
}
VOID = {"meta"}


class Page(HTMLParser):
    """The page's text, its tags in order and their attributes; fails where tags do not nest."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def scalars_at(step):
    return {
        "loss": 100 / step,
        "accuracy_x_to_y": 0.5,
        "accuracy_y_to_x": 0.7,
        "scale": 14.0,
        "learning_rate": 0.001,
        "gradient_norm": 2.0 + math.sin(step),
        "padding": 0.031,
        "pairs_per_s": 10.0 if step == 1 else 400.0,
        "tokens_per_s": 58_123.0,
    }


def plant(run_dir, steps, planted=None, summary=None):
    """A run folder as training leaves it; `planted` overrides scalars of steps."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "experiment.json").write_text(to_json(EXPERIMENT))
    with MetricsLog(run_dir, EXPERIMENT.train_steps, 0, writes=True) as log:
        for step in range(1, steps + 1):
            log.log(step, scalars_at(step) | (planted or {}).get(step, {}))
            if step % 100 == 0:
                log.log_evals(step, {"heldout/mrr": step / 1000, "baseline/mrr": 0.3})
    if summary:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page.source)


def charts(page):
    return re.findall(r"<figcaption><b>(.*?)</b>", page.source)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a whole run."""
    run_dir = plant(tmp_path_factory.mktemp("run"), 400, summary=SUMMARY)
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return Page(path)


def test_a_finished_run_has_every_section_and_its_numbers(page):
    assert headings(page) == [
        "Held-out search",
        "Training",
        "Example searches",
        "Derived numbers",
        "Configuration",
    ]
    assert page.text.startswith("planted · jaxcpt planted Finished at step 400.")
    assert charts(page) == [
        "MRR",
        "Loss",
        "In-batch accuracy",
        "Scale (1 / temperature)",
        "Learning rate",
        "Gradient norm",
        "Pairs per second",
        "Tokens per second",
        "Padding and waiting for data",
    ]
    for shown in (
        "0.400 heldout MRR",
        "0.25 loss",
        "60% in-batch accuracy",
        "400 pairs/s, median",
        "58,123 tokens/s, median",
        "3.1% padding, mean",
        "parameters 3.1 M",
        "find f 1. m.f 0.812 ✓ right def f(a): return a 2. m.f 0.812 def f(a)",
        "learning_rate 0.123",
        "packages json, email",
    ):
        assert shown in page.text


def test_the_table_marks_the_best_and_the_chart_has_its_levels(page):
    assert "MRR recall@1 this run 0.543 0.400 BM25 0.471 0.450 chance 0.007 -" in page.text
    assert re.findall(r'class="best">([\d.]+)<', page.source) == ["0.543", "0.450"]
    assert "MRR heldout 0.4 BM25 0.4711 chance 0.0075" in page.text


def test_without_a_summary_the_baseline_is_a_curve(tmp_path):
    page = Page(write_report(plant(tmp_path, 200)))
    assert headings(page) == ["Held-out search", "Training", "Configuration"]
    assert "Stopped or still running at step 200." in page.text
    assert "MRR heldout 0.2 baseline 0.3" in page.text


def test_a_torn_last_line_is_left_out(tmp_path):
    plant(tmp_path, 30)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert "still running at step 29." in Page(write_report(tmp_path)).text


def test_one_step_has_charts(tmp_path):
    page = Page(write_report(plant(tmp_path, 1)))
    assert page.tags.count("svg") == 8
    assert "1 of 400 steps" in page.text


def test_no_step_at_all(tmp_path):
    plant(tmp_path, 0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "evals.jsonl").unlink()
    page = Page(write_report(tmp_path))
    assert "No step has been logged yet." in page.text
    assert headings(page) == ["Configuration"]


def test_values_that_are_not_finite_are_counted_and_shown(tmp_path):
    bad = {"loss": math.nan, "gradient_norm": math.inf}
    page = Page(write_report(plant(tmp_path, 50, dict.fromkeys(range(41, 51), bad))))
    assert "loss nan loss: 10 not finite, first at step 41" in page.text
    assert "gradient norm inf gradient norm: 10 not finite, first at step 41" in page.text
    assert "nan loss 60% in-batch accuracy" in page.text


def test_nothing_finite_at_all(tmp_path):
    bad = dict.fromkeys(scalars_at(1), math.nan)
    page = Page(write_report(plant(tmp_path, 60, dict.fromkeys(range(1, 61), bad))))
    assert "loss: 60 not finite, first at step 1" in page.text


def test_a_scalar_that_no_chart_names_gets_its_own(tmp_path):
    page = Page(write_report(plant(tmp_path, 3, {2: {"hard_negatives": 7.0}})))
    assert charts(page)[-1] == "hard negatives"


def test_text_is_escaped_wherever_it_comes_from(tmp_path):
    planted = []

    def attack(place):
        planted.append(f"<script>{place}")
        return planted[-1]

    result = RESULT | {"text": attack("text"), "source": attack("source")}
    summary = {
        "table": [{"name": attack("row"), attack("column"): 0.5, "mrr": 0.5}],
        "examples": [{"query": attack("query"), "results": [result]}],
        "derived": {attack("derived"): attack("number")},
    }
    plant(tmp_path, 3, {2: {attack("scalar"): math.nan}}, summary)
    experiment = json.loads((tmp_path / "experiment.json").read_text()) | {
        "name": attack("name"),
        attack("field"): [attack("value")],
        attack("branch"): {"type": attack("type")},
    }
    (tmp_path / "experiment.json").write_text(json.dumps(experiment))
    scores = {f"heldout/{attack('score')}": 0.5, f"{attack('set')}/mrr": 0.5, "heldout/mrr": 0.5}
    lines = [json.dumps({"step": step, **scores}) for step in (1, 2)]
    (tmp_path / "evals.jsonl").write_text("\n".join(lines))
    page = Page(write_report(tmp_path))
    assert "script" not in page.tags
    assert [text for text in planted if text not in page.text] == []


def test_the_page_loads_and_runs_nothing(page):
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"href", "xlink:href", "src"}:
            assert value.startswith("#")
        if not name.startswith("xmlns"):
            assert "://" not in (value or "")
    assert set(re.findall(r"url\((.)", page.source)) == {"#"}
    assert "@import" not in page.source
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_ids_in_the_drawings_always_mean_the_same(page):
    bodies = {}
    for name, body in re.findall(r'<clipPath id="(\w+)">\s*(.*?)\s*</clipPath>', page.source):
        assert bodies.setdefault(name, body) == body
    assert bodies
    assert "figure_1" not in page.source


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    plant(tmp_path, 100, summary=SUMMARY)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_a_long_run_stays_a_small_page(tmp_path):
    rows = (json.dumps({"step": step, **scalars_at(step)}) for step in range(1, 20_001))
    plant(tmp_path, 0)
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert write_report(tmp_path).stat().st_size < 400_000


@pytest.mark.parametrize("name", ["experiment.json", "summary.json"])
def test_a_broken_file_is_refused(tmp_path, name):
    path = plant(tmp_path, 3) / name
    path.write_text("{oops")
    with pytest.raises(UserError) as refusal:
        write_report(tmp_path)
    assert str(refusal.value) == (
        f"{path}: not JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1); put back the file that jaxcpt.train wrote"
    )


LINE = {"name": "a/b", "score": 0.5, "words": None, "published": "", "caveat": ""}


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("experiment.json", "[]", "expected an object, found []"),
        ("experiment.json", '{"name": 7}', "name: expected a text, found 7"),
        ("experiment.json", '{"train_steps": "9"}', 'train_steps: expected a whole number'),
        ("experiment.json", '{"train_steps": true}', "train_steps: expected a whole number"),
        ("experiment.json", '{"x": 1e400}', "not JSON: the number 1e400 is out of range"),
        ("experiment.json", '{"x": "\\ud800"}', "not JSON: 'utf-8' codec can't encode character"),
        ("experiment.json", "[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        ("experiment.json", '{"x":' * 99 + "1" + "}" * 99, "more than 50 objects in one another"),
        ("experiment.json", f'{{"x": {"9" * 5000}}}', "not JSON: Exceeds the limit (4300 digits)"),
        ("summary.json", '{"table": {}}', "table: expected a list, found {}"),
        ("summary.json", '{"table": [7]}', "table.0: expected an object, found 7"),
        ("summary.json", '{"table": [{"mrr": 1}]}', "table.0: expected an object with 'name'"),
        ("summary.json", '{"table": [{"name": "a", "mrr": "1"}]}', "table.0.mrr: expected a num"),
        ("summary.json", f'{{"table": [{{"name": "a", "b": {"9" * 400}}}]}}', "table.0.b: expecte"),
        ("summary.json", '{"examples": [{"query": 1, "results": []}]}', "examples.0.query: expect"),
        ("summary.json", '{"derived": []}', "derived: expected an object, found []"),
        ("suites.json", "{}", "expected an object with 's"),
        ("suites.json", '{"step": 2.5, "suites": {}}', "step: expected a whole number, found 2.5"),
        ("suites.json", '{"step": 2, "suites": {"sts": {}}}', "suites.sts: expected a list"),
        ("suites.json", json.dumps({"step": 2, "suites": {"sts": [LINE | {"score": None}]}}),
         "suites.sts.0.score: expected a number, found null"),
    ],
)  # fmt: skip
def test_a_file_of_another_shape_is_refused(tmp_path, name, content, line):
    path = plant(tmp_path, 3) / name
    path.write_text(content)
    with pytest.raises(UserError) as refusal:
        write_report(tmp_path)
    assert str(refusal.value).startswith(f"{path}: {line}")


def test_numbers_that_no_axis_reaches_are_counted_and_not_drawn(tmp_path):
    """They are numbers, so they are no reason to refuse the page."""
    huge = {"loss": 1e308, "gradient_norm": -1e308, "scale": 5e-324, "padding": 1e308}
    summary = {"table": [{"name": "this run", "mrr": 1e308}, {"name": "BM25", "mrr": -1e308}]}
    plant(tmp_path, 60, dict.fromkeys(range(41, 61), huge), summary)
    with (tmp_path / "evals.jsonl").open("a") as file:
        file.write('{"step": 60, "heldout/mrr": 1e308}\n')
    suites = {"step": 60, "suites": {"sts": [LINE | {"score": 1e308, "words": -1e308}]}}
    (tmp_path / "suites.json").write_text(json.dumps(suites))
    page = Page(write_report(tmp_path))
    assert "loss 1e+308 loss: 20 above 1e+100, first at step 41" in page.text
    assert "1e+308 heldout MRR" in page.text
    assert "-1e+308" in page.text


def test_the_command_prints_where_the_page_is(tmp_path):
    command = [sys.executable, "-m", "jaxcpt.report", "--run-dir", plant(tmp_path, 1)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path / 'report.html'}\n"


def test_the_command_refuses_what_is_no_run_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", "--run-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"jaxcpt: {tmp_path}: not a run folder: it has no experiment.json; "
        "give the folder that jaxcpt.train wrote\n"
    )
