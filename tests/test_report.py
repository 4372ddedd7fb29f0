"""The pages of run folders that are complete, incomplete, empty or hostile."""

import json
import math
import re
import subprocess
import sys

import pytest
from planted_run import RESULT, SUMMARY, Page, charts, headings, plant, scalars_at

from jaxcpt.errors import UserError, run_command
from jaxcpt.report import main, write_report
from jaxcpt.report.charts import Chart, draw_chart


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a finished run."""
    run_dir = plant(tmp_path_factory.mktemp("run"), 400, summary=SUMMARY)
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return Page(path)


def test_a_finished_run_has_every_section_and_its_numbers(page):
    assert headings(page) == [
        "Held-out search",
        "Example searches",
        "What it is for",
        "How to use it",
        "Settings",
        "The pairs",
        "Training",
        "How it was made",
        "Derived numbers",
        "Files",
    ]
    assert page.text.startswith(
        "planted · jaxcpt planted This run trains a new model on pairs of installed packages. "
        "Finished at step 400."
    )
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
        "data.train.0.packages json, email",
    ):
        assert shown in page.text


def test_the_table_marks_the_best_and_the_chart_has_its_levels(page):
    assert "MRR recall@1 this run 0.543 0.400 BM25 0.471 0.450 chance 0.007 -" in page.text
    assert re.findall(r'class="best">([\d.]+)<', page.source) == ["0.543", "0.450"]
    assert (
        "MRR Mean of 1 / rank of the right text; 1 means that it always comes first. " in page.text
    )
    assert "heldout 0.4 BM25 0.4711 chance 0.0075" in page.text


def test_without_a_summary_the_baseline_is_a_curve(tmp_path):
    page = Page(write_report(plant(tmp_path, 200)))
    assert {"Held-out search", "Training", "Settings"} < set(headings(page))
    assert {"Example searches", "Derived numbers"}.isdisjoint(headings(page))
    assert "Stopped or still running at step 200." in page.text
    assert "heldout 0.2 baseline 0.3" in page.text


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
    assert "on pairs of installed packages. No step has been logged yet." in page.text
    assert headings(page) == ["What it is for", "How to use it", "Settings", "The pairs", "Files"]


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
        if name in {"xlink:href", "src"}:
            assert value.startswith("#")
        if not name.startswith("xmlns"):
            assert "://" not in (value or "")
    assert set(re.findall(r"url\((.)", page.source)) == {"#"}
    assert "@import" not in page.source
    links = [value for name, value in page.attributes if name == "href"]
    assert page.tags.count("a") == len(links)  # a link loads nothing before it is clicked
    assert links == ["experiment.json", "metrics.jsonl", "evals.jsonl", "summary.json"]
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
        ("experiment.json", '{"init_from": "a"}', 'init_from: expected an object or null, found'),
        ("imported.json", "{}", "expected an object with 'source'"),
        ("summary.json", '{"heldout": {"x": 1}}', "heldout: expected an object with 'y'"),
        ("experiment.json", '{"train_steps": true}', "train_steps: expected a whole number"),
        ("experiment.json", '{"x": 1e400}', "not JSON: the number 1e400 is out of range"),
        ("experiment.json", '{"x": "\\ud800"}', "not JSON: 'utf-8' codec can't encode character"),
        ("experiment.json", "[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        ("experiment.json", '{"x":' * 99 + "1" + "}" * 99, "more than 50 levels of nested objects"),
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
    """They are valid numbers, so the page is written."""
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


def test_the_command_refuses_what_is_no_run_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(main, ["--run-dir", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"jaxcpt: {tmp_path}: not a run folder: it has no experiment.json; "
        "give the folder that jaxcpt.train wrote\n"
    )


def hover_boxes(page, title):
    """The texts of the boxes over the chart with this title."""
    figure = page.source.partition(f"<b>{title}</b>")[2].partition("</figure>")[0]
    texts = re.findall(r'<i(?: class="r")? style="left[^"]*"><b>(.*?)</b></i>', figure)
    return [re.sub(r"<[^>]*>", " ", text).split() for text in texts]


def test_the_pointer_shows_the_values_of_each_step(tmp_path):
    boxes = hover_boxes(Page(write_report(plant(tmp_path, 3))), "In-batch accuracy")
    assert [" ".join(box) for box in boxes] == [
        f"step {step} 50% accuracy x to y 70% accuracy y to x" for step in (1, 2, 3)
    ]


def test_the_boxes_of_the_pointer_lie_side_by_side_over_the_plot(page):
    figure = page.source.partition("<b>Loss</b>")[2].partition("</figure>")[0]
    places = re.findall(r"left:([\d.]+)%;width:([\d.]+)%", figure)
    lefts, widths = ([float(text) for text in texts] for texts in zip(*places, strict=True))
    assert len(lefts) == 120
    for left, width, following in zip(lefts, widths, [*lefts[1:], 100.0], strict=True):
        assert left + width <= following + 0.02
    assert 5 < lefts[0] < 30
    assert 97 < lefts[-1] + widths[-1] <= 100


def test_the_line_of_the_pointer_lies_at_the_step(tmp_path):
    """The box of a step ends half way to the next step, so the step may not be in its middle."""
    plant(tmp_path, 0)
    lines = [json.dumps({"step": step, "heldout/mrr": 0.5}) for step in (0, 10, 100)]
    (tmp_path / "evals.jsonl").write_text("\n".join(lines) + "\n")
    source = write_report(tmp_path).read_text()
    assert re.findall(r"--at:(\d+)%", source) == ["29", "10", "96"]


def test_of_many_steps_the_pointer_shows_means(page):
    boxes = hover_boxes(page, "Loss")
    mean = sum(100 / step for step in (1, 2, 3, 4)) / 4
    assert boxes[0] == ["steps", "1", "to", "4,", "mean", f"{mean:.4g}"]


def test_the_eval_before_training_is_the_point_at_step_0(tmp_path):
    plant(tmp_path, 200)
    rows = (tmp_path / "evals.jsonl").read_text()
    (tmp_path / "evals.jsonl").write_text('{"step": 0, "heldout/mrr": 0.05}\n' + rows)
    boxes = hover_boxes(Page(write_report(tmp_path)), "MRR")
    assert boxes[0] == ["step", "0", "0.05", "heldout"]


def test_axes_have_names(page):
    for name in ("step", "nats", "share of texts", "pairs/s", "MRR"):
        assert re.search(f"<text[^>]*>{name}</text>", page.source), name


def test_a_slow_first_step_does_not_set_the_axis(page):
    """There are 10 pairs/s at step 1, and 400 afterwards."""
    figure = page.source.partition("<b>Pairs per second</b>")[2].partition("</figure>")[0]
    assert "pairs/s: 1 below the axis, first at step 1" in figure
    ticks = re.findall(r"<text[^>]*>([\d.]+)</text>", figure)
    assert {"380", "400", "420"} <= set(ticks)


def test_a_level_far_from_the_curve_is_named_and_does_not_set_the_axis(tmp_path):
    table = [{"name": "this run", "mrr": 0.6}, {"name": "near", "mrr": 0.55}]
    table.append({"name": "chance", "mrr": 0.001})
    plant(tmp_path, 0, summary={"table": table})
    lines = [json.dumps({"step": step, "heldout/mrr": 0.5 + step / 1000}) for step in (50, 100)]
    (tmp_path / "evals.jsonl").write_text("\n".join(lines) + "\n")
    page = Page(write_report(tmp_path))
    assert "heldout 0.6 near 0.55 chance 0.001 (off the axis)" in page.text


def test_a_curve_of_zeros_lies_on_the_axis():
    figure = draw_chart(Chart("MRR", ("mrr",)), {"mrr": ([1, 2], [0.0, 0.0])}, {})
    assert not any(text.startswith("-") for text in re.findall(r"<text[^>]*>([^<]*)<", figure))


def test_a_chart_of_zeros_is_named_and_not_drawn(tmp_path):
    zero = {"masked_duplicates": 0.0, "masked_overflow": 0.0, "<b>": 0.0}
    page = Page(write_report(plant(tmp_path, 3, dict.fromkeys((1, 2, 3), zero))))
    line = "These were 0 at every step, so they have no chart: Left out of the loss; <b>."
    assert line in page.text
    assert "Left out of the loss" not in charts(page)
    page = Page(write_report(plant(tmp_path, 3, {2: zero, 3: zero | {"masked_overflow": 1.0}})))
    assert charts(page)[-1] == "Left out of the loss"
    assert "masked duplicates 0 masked overflow 1" in page.text
    assert "These were 0 at every step, so they have no chart: <b>." in page.text


def test_the_number_of_held_out_searches_is_shown(tmp_path):
    summary = SUMMARY | {"heldout": {"x": 1000, "y": 990}}
    page = Page(write_report(plant(tmp_path, 3, summary=summary)))
    assert "Held-out search Each of 1,000 held-out x searches 990 y." in page.text


def test_the_lengths_of_vectors_have_labels_in_words(tmp_path):
    page = Page(write_report(plant(tmp_path, 3, {3: {"zx_norm": 60.0, "zy_norm": 270.0}})))
    assert "length of x before normalising 60 length of y before normalising 270" in page.text
    assert "zx norm" not in page.text


def test_the_text_of_an_example_wraps(page):
    """A browser breaks the long lines of prose, and keeps the line breaks of code."""
    assert "white-space: pre-wrap" in page.source
    assert "def f(a):\n    return a</pre>" in page.source


def test_the_numbers_on_an_axis_differ():
    figure = draw_chart(Chart("scale", ("scale",)), {"scale": ([1, 2], [20.0, 20.01])}, {})
    for tick in ("20", "20.0025", "20.005", "20.0075", "20.01"):
        assert f">{tick}<" in figure
