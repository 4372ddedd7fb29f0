"""A command starts again once with huge pages, with the same arguments, and says nothing of it."""

import os
import subprocess
import sys

import pytest

from jaxcpt import errors

PROGRAM = """
import os, sys
from jaxcpt.errors import run_command
run_command(lambda _: print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:]))
"""
GIVES_ON_REQUEST = errors.HUGE_PAGES.exists() and "[madvise]" in errors.HUGE_PAGES.read_text()


def run_program(*words, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, *words], env=clean | environment, stdout=subprocess.PIPE, text=True
    )
    said, _ = process.communicate()
    number, *rest = said.split(maxsplit=1)
    assert process.returncode == 0
    assert int(number) == process.pid
    return rest[0].strip()


def test_the_command_has_its_arguments_and_the_setting(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    setting = "glibc.malloc.hugetlb=1" if GIVES_ON_REQUEST else "None"
    for words in (["-c", PROGRAM], [str(tmp_path / "program.py")]):
        assert run_program(*words, "--name", "a b") == f"{setting} --name a b"


def test_other_settings_of_the_user_are_kept():
    other = "glibc.malloc.arena_max=2"
    both = f"{other}:glibc.malloc.hugetlb=1" if GIVES_ON_REQUEST else other
    assert run_program("-c", PROGRAM, GLIBC_TUNABLES=other) == both


def test_the_users_own_setting_is_left_alone():
    off = "glibc.malloc.hugetlb=0"
    assert run_program("-c", PROGRAM, GLIBC_TUNABLES=off) == off


@pytest.mark.parametrize(
    ("mode", "starts_again"),
    [("always [madvise] never", True), ("[always] madvise never", False), (None, False)],
)
def test_only_huge_pages_on_request_need_the_setting(mode, starts_again, tmp_path, monkeypatch):
    if mode is not None:
        (tmp_path / "enabled").write_text(mode)
    started = []
    monkeypatch.setattr(errors, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(os, "execv", lambda path, words: started.append((path, words)))
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    errors.use_huge_pages()
    assert started == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])] * starts_again
