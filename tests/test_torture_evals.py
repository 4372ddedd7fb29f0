"""A short form of tools/torture_evals.py: damaged data and run files never end in a traceback."""

import pytest

pytest.importorskip("sklearn", reason="needs the evals extra")
pytest.importorskip("pytrec_eval", reason="needs the evals extra")
pytest.importorskip("Stemmer", reason="needs the evals extra")
import torture_evals


def test_damaged_data_and_run_files_are_scored_or_refused():
    assert torture_evals.torture(seed=0, count=60) == []


def test_a_traceback_is_a_failure(monkeypatch):
    files, _ = torture_evals.CASES["report"]
    monkeypatch.setattr(torture_evals, "CASES", {"report": (files, lambda data: 1 / 0)})
    assert torture_evals.torture(3, 1) == ["report, seed 3: ZeroDivisionError: division by zero"]
