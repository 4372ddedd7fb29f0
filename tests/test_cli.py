"""The command `jaxcpt`: its help, what it imports, and from which folders it starts."""

import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from jaxcpt import __version__, cli
from jaxcpt.errors import NOT_READ, USER_ERROR, UserError, run_command


def test_the_help_names_every_verb(capsys):
    cli.main(["--help"])
    shown = capsys.readouterr().out
    for verb, purpose in cli.VERBS.items():
        assert f"  {verb} " in shown
        assert purpose in shown


def test_the_version_is_printed(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"jaxcpt {__version__}\n"


def test_an_unknown_verb_is_refused():
    verbs = ", ".join(cli.VERBS)
    for verb, near in (("serach", "nearest: search; "), ("xyz", "")):
        with pytest.raises(UserError) as refusal:
            cli.main([verb])
        assert str(refusal.value) == f"{verb}: no such verb; {near}there are {verbs}"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_shows_its_own_usage(verb, capsys):
    if verb in cli.MINING_VERBS:
        pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: jaxcpt {verb} ")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_wrong_option_is_told_in_one_line(verb):
    if verb in cli.MINING_VERBS:
        pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")
    with pytest.raises(UserError, match=f"; jaxcpt {verb} --help lists the options$") as refusal:
        cli.main([verb, "--run-dir"])
    assert "\n" not in str(refusal.value)


def test_a_wrong_choice_is_told_in_one_line():
    with pytest.raises(UserError, match=r"^argument --pooling: invalid choice: 'max' \("):
        cli.main(["import", "--input", "a", "--output", "b", "--pooling", "max"])


def test_a_missing_extra_is_told_in_one_line():
    code = (
        "import sys; sys.modules['apache_beam'] = sys.modules['resiliparse'] = None\n"
        "from jaxcpt import cli; cli.run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "mine-text", "--help"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"jaxcpt: mine-text: needs [\w.]+: pip install 'jaxcpt\[mining\]'\n", done.stderr
    )


def test_the_help_loads_neither_jax_nor_numpy():
    code = "import sys, jaxcpt.cli; print({'jax', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout == "set()\n"


def test_a_search_imports_neither_plots_nor_the_tpu_kernel():
    code = (
        "import sys, jaxcpt.search\n"
        "print([n for n in sys.modules if n == 'matplotlib' or 'splash_attention_kernel' in n])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", ["jaxcpt", "jaxcpt.search"])
def test_commands_start_in_the_folder_that_contains_the_clone(module, tmp_path):
    """Python must find the package, and not import the clone's folder `jaxcpt` as a package."""
    (tmp_path / "jaxcpt").symlink_to(REPOSITORY, target_is_directory=True)
    # An editable install adds the repository's root to the path, as PYTHONPATH does here.
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: jaxcpt")


def test_ctrl_c_during_imports_is_one_line():
    code = (
        "import importlib, os, signal; from jaxcpt import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "importlib.import_module = lambda _: os.kill(os.getpid(), signal.SIGINT)\n"
        "cli.run()"
    )
    command = [sys.executable, "-c", code, "train", "--experiment", "x.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (130, "jaxcpt: interrupted\n")


HELP = "import sys; from jaxcpt import cli; sys.argv = ['jaxcpt', 'search', '--help']; cli.run()"
PRINT = "from jaxcpt.errors import run_command; run_command(lambda _: print('a line\\n' * {lines}))"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", [PRINT.format(lines=1), PRINT.format(lines=100_000), HELP])
def test_output_that_nobody_reads_ends_without_a_word(program, unbuffered):
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    # argparse takes no notice of an error while it prints the help.
    assert process.wait() == (0 if program == HELP and unbuffered else NOT_READ)


def test_a_pipe_that_breaks_elsewhere_is_an_error(capsys):
    def lose_a_server(_):
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(SystemExit) as left:
        run_command(lose_a_server, [])
    assert left.value.code == USER_ERROR
    assert capsys.readouterr().err == "jaxcpt: [Errno 32] Broken pipe\n"
