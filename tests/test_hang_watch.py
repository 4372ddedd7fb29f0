"""A step that hangs ends the process. A step that is slow or paused does not."""

import subprocess
import sys

from conftest import REPOSITORY

from jaxcpt.errors import LOST_PEER
from jaxcpt.hang_watch import find_limit


def run(work: str) -> subprocess.CompletedProcess:
    code = f"import time; from jaxcpt.hang_watch import HangWatch\n{work}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


def test_a_step_that_does_not_end_shows_its_stack():
    done = run(
        "def stuck_in_a_collective(): time.sleep(100)\n"
        "for step in HangWatch(0.5).steps(range(3)):\n"
        "    if step == 1: stuck_in_a_collective()\n"
    )
    assert done.returncode == LOST_PEER
    assert "in stuck_in_a_collective" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "jaxcpt: a step took longer than 0 s (safety.hang_seconds), so this process ends; "
    )


def test_the_first_step_and_pauses_may_take_any_time():
    done = run(
        "watch = HangWatch(0.5)\n"
        "for step in watch.steps(range(4)):\n"
        "    if step == 0: time.sleep(1.5)\n"
        "    if step == 2:\n"
        "        with watch.paused():\n"
        "            with watch.paused(): time.sleep(1.5)\n"
        "time.sleep(1.5)\n"
        "print('done')\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_the_limit_follows_the_median_step():
    assert find_limit([1.0]) == 600
    assert find_limit([3000.0, 40.0, 41.0]) == 20 * 41
