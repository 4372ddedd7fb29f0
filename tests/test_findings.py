"""The page of findings shows what its numbers say."""

import findings_page
import pytest


@pytest.mark.parametrize("name", findings_page.TABLES)
def test_the_page_has_the_tables_that_its_numbers_make(name, monkeypatch):
    monkeypatch.setattr(findings_page, "draw", lambda *_, **__: None)
    page = findings_page.PAGE.read_text()
    assert findings_page.put_table(page, name) == page
