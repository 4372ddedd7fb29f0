"""docs/configuration.md shows every field of an experiment with its meaning."""

import write_configuration


def test_every_field_has_a_text():
    assert write_configuration.list_fields_without_text() == []


def test_the_page_is_up_to_date():
    """After a change of config.py or sources.py, run `python tools/write_configuration.py`."""
    assert write_configuration.PAGE.read_text() == write_configuration.describe_all()
