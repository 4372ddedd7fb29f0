"""The driver of the proofs: its output, its exit code, and skipped proofs."""

import sys

import pytest
import torture
from torture_runs import Outcome, Skipped


def skip(seed, cases):
    raise Skipped("cannot mount")


@pytest.fixture
def proofs(monkeypatch):
    made = {
        "good": torture.Proof(
            lambda seed, cases: Outcome(cases=cases, failures=[]), 2 * torture.FULL_MINUTES
        ),
        "bad": torture.Proof(lambda seed, cases: Outcome(cases=cases, failures=["x"]), 1),
        "broken": torture.Proof(lambda seed, cases: 1 // 0, 1),
        "skipped": torture.Proof(skip, 1),
    }
    monkeypatch.setattr(torture, "PROOFS", made)


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("good", 0, "good: 2 cases, holds"),
        ("bad", 1, "bad: 1 cases, 1 FAILURES"),
        ("broken", 1, "ZeroDivisionError"),
        ("skipped", 0, "skipped: SKIPPED: cannot mount"),
    ],
)
def test_a_proof_ends_in_a_line_and_an_exit_code(proofs, monkeypatch, capsys, name, code, line):
    monkeypatch.setattr(sys, "argv", ["torture.py", "--minutes", "1", "--only", name])
    with pytest.raises(SystemExit) as end:
        torture.main()
    assert end.value.code == code
    assert line in capsys.readouterr().out
