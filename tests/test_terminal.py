"""The output that a person sees: plain lines, a bar on a terminal, and tables."""

import os
import pty
import re
import subprocess
import sys

from jaxcpt import terminal
from jaxcpt.terminal import RunDisplay, print_table

SCALARS = {
    "loss": 2.5,
    "accuracy_x_to_y": 0.5,
    "accuracy_y_to_x": 0.75,
    "scale": 14.0,
    "padding": 0.031,
    "pairs_per_s": 412.4,
    "tokens_per_s": 58_123.0,
}


def test_plain_lines_every_so_often_and_at_the_last_step(capsys):
    with RunDisplay("run", 0, 100) as display:
        for step in (10, 20, 90, 100):
            display.show_step(step, SCALARS)
    numbers = "loss 2.5000  accuracy 62.5%  412 pairs/s  58,123 tokens/s  padding 3.1%"
    assert capsys.readouterr().out.splitlines() == [
        f"step  10/100  {numbers}  - left",
        f"step 100/100  {numbers}  0:00:00 left",
    ]


def test_time_left_is_the_pace_since_the_first_shown_step(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: now)
    with RunDisplay("run", 0, 40) as display:
        display.show_step(10, {"loss": 0.1})
        now = 130.0
        display.show_step(20, {"loss": 0.05})
    assert capsys.readouterr().out.splitlines()[1] == "step 20/40  loss 0.0500  0:01:00 left"


def test_evals_are_one_line(capsys):
    scores = {f"heldout/recall_at_{k}": 0.5 for k in range(9)}
    with RunDisplay("run", 0, 100) as display:
        display.show_evals(10, scores, "evals.jsonl")
        listed = "  ".join(f"{name} 0.5000" for name in scores)
        assert capsys.readouterr().out == f"evals at step 10  {listed}\n"
        more = {"sts/sts13/mean/spearman": 0.5, "sts/sts14/all/pearson": 0.5}
        display.show_evals(20, scores | more, "evals.jsonl")
    said = capsys.readouterr().out
    assert said == f"evals at step 20  {listed}  and 2 more in evals.jsonl\n"


ON_A_TERMINAL = f"""
from jaxcpt.terminal import RunDisplay
with RunDisplay("[b]run", 0, 40) as display:
    display.show_step(10, {SCALARS!r})
    print("printed while the bar stands")
    display.show_evals(10, {{"heldout/mrr": 0.5}}, "evals.jsonl")
    display.show_step(40, {SCALARS!r})
"""


def read_terminal(program):
    """The lines that a program draws on a terminal, without colours and cursor movements."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, stdout=theirs, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    raw = b""
    while True:
        try:
            raw += os.read(ours, 65536)
        except OSError:  # how Linux reports that the other end is closed
            break
    os.close(ours)
    assert result.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode())
    return [line.rstrip() for line in text.splitlines()]


def test_a_terminal_shows_a_bar():
    lines = read_terminal(ON_A_TERMINAL)
    assert any(re.fullmatch(r"\[b\]run  ━+[╸╺]?━*\s+10/40  - left", line) for line in lines)
    assert any(re.fullmatch(r"\[b\]run  ━+\s+40/40  0:00:00 left", line) for line in lines)
    numbers = "loss 2.5000  accuracy 62.5%  412 pairs/s  58,123 tokens/s  padding 3.1%"
    assert numbers in lines
    assert "printed while the bar stands" in lines
    assert "evals at step 10  heldout/mrr 0.5000" in lines


BAR_IN_A_BAR = """
import time
from pathlib import Path
from jaxcpt.evals import show_sets
from jaxcpt.terminal import show_progress
with show_sets("sts", [Path("sts12"), Path("sts13")]) as sets:
    for path in sets:
        print("reading", path)
        with show_progress("embedding x", 5, shown=True) as advance:
            advance(3)
            time.sleep(0.3)
with show_progress("embedding y", 9, shown=True) as advance:
    advance(4)
    time.sleep(0.3)
"""


def test_a_bar_inside_a_bar_stands_below_it():
    """The upper bar counts the sets of a suite, and the lower bar the texts of a set."""
    lines = read_terminal(BAR_IN_A_BAR)
    bar = r"━*[╸╺]?━*"
    for first in (rf"sts +{bar} 0/2.*", rf"sts +{bar} 1/2.*"):
        places = [i for i, line in enumerate(lines) if re.fullmatch(first, line)]
        assert any(re.fullmatch(rf"embedding x +{bar} 3/5.*", lines[i + 1]) for i in places)
    assert {"reading sts12", "reading sts13"} <= set(lines)
    assert any(re.fullmatch(rf"embedding y +{bar} 4/9.*", line) for line in lines)


def test_tables_take_text_as_it_is(capsys):
    print_table("[b] run", [("this :smile: run", 0.5234), ("BM25", 0.47)], ("", "MRR"))
    printed = capsys.readouterr().out
    assert "[b] run" in printed
    assert re.search(r"this :smile: run │ 0\.523 │", printed)
    assert re.search(r"BM25 +│ 0\.470 │", printed)
    print_table("plan", [("run folder", "x" * 90)])
    assert "x" * 90 in capsys.readouterr().out
