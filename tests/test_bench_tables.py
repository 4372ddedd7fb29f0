"""Tables of benchmarks stand between the markers of a page, and nowhere else."""

import re

import bench
import bench_tables
import plots
import pytest
from bench_tables import Table
from conftest import REPOSITORY

from jaxcpt.errors import UserError

TABLE = Table(
    name="speed",
    columns=["engine", "pairs/s", "tokens", "ratio"],
    rows=[["ours", 12.345, 1234567, None], ["theirs", 0.0123, 9, 1234.5]],
    note="Two rounds.",
)
PAGE = "Before.\n\n<!-- table:speed -->\nold\n<!-- end:speed -->\n\nAfter.\n"


def test_a_table_replaces_what_stands_between_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for _ in range(2):  # the second time over the first
        bench.update_page(page, [TABLE], "By a command.")
        assert page.read_text() == (
            "Before.\n\n<!-- table:speed -->\nBy a command.\n\n"
            "| engine | pairs/s | tokens | ratio |\n"
            "| --- | ---: | ---: | ---: |\n"
            "| ours | 12.3 | 1,234,567 |  |\n"
            "| theirs | 0.012 | 9 | 1,234 |\n"
            "\nTwo rounds.\n<!-- end:speed -->\n\nAfter.\n"
        )


def test_a_page_without_markers_is_refused():
    with pytest.raises(UserError, match="needs one line <!-- table:other -->"):
        bench_tables.rewrite(PAGE, "other", "new")


def test_tables_come_back_from_their_file(tmp_path):
    bench_tables.write_tables([TABLE], tmp_path / "tables.json")
    assert bench_tables.read_tables(tmp_path / "tables.json") == [TABLE]


def test_a_figure_shows_the_numbers_of_its_columns(tmp_path):
    rows = [["ours", 11.0, "fast"], ["theirs", 2.5, None], ["broken", None, None]]
    table = Table(name="speed", columns=["", "pairs/s", "note"], rows=rows, plot=["pairs/s"])
    plots.draw_table(table, tmp_path / "figures" / "speed.svg")
    figure = (tmp_path / "figures" / "speed.svg").read_text()
    assert "ours" in figure
    assert "theirs" in figure
    assert "broken" not in figure  # it has no number


def test_a_figure_of_an_unknown_column_is_refused():
    with pytest.raises(ValueError, match="speed: no column"):
        Table(name="speed", columns=["a"], rows=[], plot=["b"])


def test_a_row_has_a_value_for_each_column():
    with pytest.raises(ValueError, match="speed: 2 columns"):
        Table(name="speed", columns=["a", "b"], rows=[[1]])


def test_the_page_has_one_place_for_each_table_of_the_tools():
    sources = [path.read_text() for path in (REPOSITORY / "tools").glob("bench_*.py")]
    made = {name for source in sources for name in re.findall(r'Table\(\s*name="(\w+)"', source)}
    made |= {f"train_{name}" for name in ("gpt2", "minilm", "past_memory")}
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert sorted(re.findall(r"<!-- table:(\w+) -->", page)) == sorted(made)
