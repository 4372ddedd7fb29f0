"""The pages of findings and of scores show what their numbers say."""

import findings_page
import pytest
import score_tables
from bench_tables import read_tables


@pytest.mark.parametrize("name", findings_page.TABLES)
def test_the_page_has_the_tables_that_its_numbers_make(name, monkeypatch):
    monkeypatch.setattr(findings_page, "draw", lambda *_, **__: None)
    page = findings_page.PAGE.read_text()
    assert findings_page.put_table(page, name) == page


@pytest.mark.parametrize("table", read_tables(score_tables.TABLES), ids=lambda table: table.name)
def test_pages_have_the_tables_of_scores_that_the_command_wrote(table):
    page = score_tables.PAGES[table.name].read_text()
    assert score_tables.put_table(page, table) == page


def test_every_table_of_scores_was_written():
    assert [table.name for table in read_tables(score_tables.TABLES)] == [*score_tables.PAGES]
