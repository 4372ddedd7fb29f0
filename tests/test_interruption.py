"""The first signal is noted, and a second one ends the process; exit codes of commands."""

import json
import signal
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from jaxcpt.errors import STOPPED, Stopped, run_command
from jaxcpt.interruption import Interruption

FORKS = """
import json, os, signal, time
from jaxcpt.interruption import SIGNALS, Interruption

def end_by(*numbers):
    child = os.fork()
    if child == 0:
        with Interruption() as interruption:
            for number in numbers:
                os.kill(os.getpid(), number)
                assert interruption.noted or number == signal.SIGHUP
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

found = [[end_by(first, second) for second in SIGNALS] for first in SIGNALS]
signal.signal(signal.SIGHUP, signal.SIG_IGN)
print(json.dumps([found, end_by(signal.SIGHUP, signal.SIGHUP), end_by(signal.SIGTERM)]))
"""


def test_two_signals_of_any_kind_end_the_process(hangups):
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    codes, ignored, single = json.loads(done.stdout)
    assert codes == 3 * [[143, 130, 129]]
    assert (ignored, single) == (0, 0)  # nohup ignores SIGHUP
    lines = done.stderr.splitlines()
    stopping = "stopping after this step; a second signal ends the run without saving"
    assert lines[:2] == [
        f"jaxcpt: SIGTERM: {stopping}",
        "jaxcpt: ended by SIGTERM, the second signal; the newest checkpoint stays",
    ]
    assert len(lines) == 2 * 9 + 1


WAITS = """
import hashlib
from jaxcpt.interruption import Interruption

with Interruption():
    print("waiting", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes, in which no Python code runs
"""


def test_signals_are_answered_while_the_main_thread_waits():
    command = [sys.executable, "-c", WAITS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, **pipes) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("jaxcpt: SIGINT: stopping after this step")
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("jaxcpt: ended by SIGINT, the second signal")
        assert process.wait() == 130


def test_a_signal_is_noted_also_if_a_library_takes_the_pipe():
    with Interruption() as interruption:
        signal.set_wakeup_fd(-1)
        signal.raise_signal(signal.SIGTERM)
        assert interruption.noted


def test_a_stopped_run_has_its_own_exit_code(capsys):
    def stop(_):
        raise Stopped("stopped at step 4, which is saved; start again to go on")

    with pytest.raises(SystemExit) as left:
        run_command(stop, [])
    assert left.value.code == STOPPED == 75
    said = "jaxcpt: stopped at step 4, which is saved; start again to go on\n"
    assert capsys.readouterr().err == said
