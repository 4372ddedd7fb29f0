"""A page that compares planted runs, and the command line of `jaxcpt report`."""

import json
import re

import pytest
from planted_run import Page, charts, headings, plant
from test_report_about import START, change

from jaxcpt.errors import UserError, run_command
from jaxcpt.report import main, write_comparison
from jaxcpt.report.compare import name_runs


@pytest.fixture
def two(tmp_path):
    """Two runs with other learning rates, lengths and scores."""
    first, second = plant(tmp_path / "first", 400), plant(tmp_path / "second", 200)
    experiment = json.loads((second / "experiment.json").read_text())
    change(second, optimizer=experiment["optimizer"] | {"learning_rate": 0.5})
    (second / "starts.jsonl").write_text(json.dumps(START) + "\n")
    with (second / "evals.jsonl").open("a") as file:
        file.write('{"step": 200, "sts/a/spearman": 0.7}\n')
    return first, second


def test_a_comparison_has_settings_scores_and_curves_of_all_runs(two, tmp_path):
    path = write_comparison(two, tmp_path / "both.html")
    assert path == tmp_path / "both.html"
    page = Page(path)
    assert headings(page) == [
        "Runs",
        "Last scores",
        "Settings that differ",
        "Scores by step",
        "Training",
    ]
    for shown in (
        "first and second",
        "Runs first second experiment planted planted step 400 of 400 200 of 400 "
        "started - 2026-11-26 commit - 0123456789ab devices - data 2 on 2 cpu devices",
        "Settings that differ first second optimizer.learning_rate 0.123 0.5 Scores by step",
        "Last scores first second heldout MRR 0.400 0.200 baseline MRR 0.300 0.300",
        "sts a spearman - 0.700",
        "heldout MRR Mean of 1 / rank of the right text; 1 means that it always comes first. "
        "first 0.4 second 0.2",
        "first 0.25 second 0.5",
    ):
        assert shown in page.text
    assert re.findall(r'class="best">([\d.]+)<', page.source) == [
        "0.400",
        "0.300",
        "0.300",
        "0.700",
    ]
    assert charts(page)[:3] == ["heldout MRR", "baseline MRR", "Loss"]
    assert {"accuracy x to y", "accuracy y to x"} < set(charts(page))


def test_a_comparison_loads_and_runs_nothing(two, tmp_path):
    page = Page(write_comparison(two, tmp_path / "both.html"))
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_runs_without_scores_or_steps_are_compared(two, tmp_path):
    first, second = two
    for name in ("metrics.jsonl", "evals.jsonl"):
        (first / name).unlink()
        (second / name).unlink()
    page = Page(write_comparison(two, tmp_path / "both.html"))
    assert headings(page) == ["Runs", "Settings that differ"]
    assert "step 0 of 400 0 of 400" in page.text


def test_runs_with_the_same_settings_say_so(tmp_path):
    runs = [plant(tmp_path / name, 3) for name in "abc"]
    page = Page(write_comparison(runs, tmp_path / "all.html"))
    assert "3 runs compared" in page.text
    assert "The runs have the same settings." in page.text


def test_of_a_part_that_one_run_lacks_the_defaults_are_left_out(tmp_path):
    """Otherwise a baseline would fill the page with values that nobody chose."""
    runs = [plant(tmp_path / name, 3) for name in "ab"]
    change(runs[1], adapter={"type": "Adapter", "rank": 4, "alpha": 16.0, "targets": ["out"]})
    page = Page(write_comparison(runs, tmp_path / "all.html"))
    assert "Settings that differ a b adapter.rank - 4 adapter.targets - out Training" in page.text


def test_of_a_baseline_that_one_run_lacks_only_the_name_is_shown(tmp_path):
    runs = [plant(tmp_path / name, 3) for name in "ab"]
    baseline = {"type": "Baseline", "name": "bag", "train_steps": 4, "model": {"width": 32}}
    change(runs[1], baseline=baseline)
    page = Page(write_comparison(runs, tmp_path / "all.html"))
    assert "Settings that differ a b baseline.name - bag Training" in page.text


def test_of_an_imported_model_the_settings_of_training_are_left_out(two, tmp_path):
    """They are defaults there, and the model was not trained with them."""
    imported = plant(tmp_path / "<b>", 0)
    model = json.loads((imported / "experiment.json").read_text())["model"]
    (imported / "metrics.jsonl").unlink()
    change(imported, train_steps=0, seed=7, model=model | {"remat": "nothing", "layers": 3})
    note = "Not trained here, and therefore without settings of training: <b>."
    page = Page(write_comparison([imported, two[0]], tmp_path / "all.html"))
    differ = "Settings that differ <b> first train_steps 0 400 model.layers 3 2"
    assert f"{differ} {note}" in page.text
    page = Page(write_comparison([*two, imported], tmp_path / "all.html"))
    differ = "train_steps 400 400 0 optimizer.learning_rate 0.123 0.5 - model.layers 2 2 3"
    assert f"Settings that differ first second <b> {differ} {note}" in page.text


def test_scalars_that_are_0_in_all_runs_are_named_and_not_drawn(tmp_path):
    zero = {"masked_duplicates": 0.0, "masked_overflow": 0.0}
    runs = [plant(tmp_path / "a", 3, {3: zero}), plant(tmp_path / "b", 3, {3: zero})]
    page = Page(write_comparison(runs, tmp_path / "all.html"))
    line = "These were 0 at every step, so they have no chart: masked duplicates; masked overflow."
    assert line in page.text
    runs[1] = plant(tmp_path / "b", 3, {3: zero | {"masked_overflow": 2.0}})
    page = Page(write_comparison(runs, tmp_path / "all.html"))
    assert charts(page)[-1] == "masked overflow"
    assert "so they have no chart: masked duplicates." in page.text


def test_names_of_runs_are_as_long_as_they_must_be(tmp_path):
    assert name_runs([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert name_runs([tmp_path / "x/run", tmp_path / "y/run"]) == ["x/run", "y/run"]
    with pytest.raises(UserError) as refused:
        name_runs([tmp_path / "a", tmp_path / "b", tmp_path / "b" / ".." / "a"])
    assert str(refused.value) == f"{tmp_path / 'a'}: named twice; name each run once"


def test_text_of_the_runs_is_escaped(tmp_path):
    runs = [plant(tmp_path / "<script>1", 3, {2: {"<script>": 1.0}}), plant(tmp_path / "<b>", 3)]
    change(runs[0], name="<script>", **{"<script>": "<script>"})
    page = Page(write_comparison(runs, tmp_path / "all.html"))
    assert "script" not in page.tags
    assert page.text.count("<script>") >= 6


def run_main(*arguments):
    main([str(argument) for argument in arguments])


def test_one_run_is_named_in_either_way(two, tmp_path, capsys):
    first, _ = two
    run_main(first)
    run_main("--run-dir", first)
    run_main(first, "--output", tmp_path / "page.html")
    report = f"{first / 'report.html'}\n"
    assert capsys.readouterr().out == f"{report}{report}{tmp_path / 'page.html'}\n"
    links = re.findall(r'<a href="(.*?)"', (tmp_path / "page.html").read_text())
    assert links == ["first/experiment.json", "first/metrics.jsonl", "first/evals.jsonl"]


@pytest.mark.parametrize("option", [(), ("--run-dir",)])
def test_several_runs_go_into_one_page(two, tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    run_main(*option, *two)
    run_main(*option, *two, "--output", "other.html")
    assert capsys.readouterr().out == "comparison.html\nother.html\n"
    assert (tmp_path / "comparison.html").read_bytes() == (tmp_path / "other.html").read_bytes()
    assert not (two[0] / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "name the folder of a run: jaxcpt report RUN"),
        (["no"], "no: no such folder; beside it: first, second; give the folder that "),
        (["first", "no"], "no: no such folder; beside it: first, second; give the folder that "),
        (["first", "--output", "no/a.html"], "no/a.html: cannot be written: No such file or dire"),
    ],
)
def test_the_command_refuses(two, tmp_path, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(main, arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"jaxcpt: {line}")
