"""Atomic writes, and checksums of files."""

import hashlib
import os
import re
import subprocess
import sys

import pytest

from jaxcpt.errors import UserError
from jaxcpt.files import hash_file, write_file


def fill_half(file):
    file.write(b"half")
    raise RuntimeError("killed")


def test_writes_text_bytes_and_what_a_function_writes(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("é\n", "é\n".encode(), lambda file: file.write("é\n".encode())):
        path.write_bytes(b"an older and longer text")
        write_file(path, content)
        assert path.read_bytes() == "é\n".encode()
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    assert hash_file(path) == hashlib.sha256("é\n".encode()).hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    for old in ([], ["a.txt"]):
        with pytest.raises(RuntimeError, match="killed"):
            write_file(path, fill_half)
        assert [entry.name for entry in tmp_path.iterdir()] == old
        path.write_text("old")
    assert path.read_text() == "old"


def test_links_are_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_pipes_are_written_to():
    code = "from pathlib import Path; from jaxcpt.files import write_file\n"
    code += "write_file(Path('/dev/stdout'), 'shown')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "shown"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/dev/full", "/dev/full: cannot be written: No space left on device"),
        ("folder", "folder: cannot be written: Is a directory"),
        ("none/a.txt", "none/a.txt: cannot be written: No such file or directory"),
        ("file/a.txt", "file/a.txt: cannot be written: Not a directory"),
    ],
)
def test_refuses_where_it_cannot_write(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{re.escape(message)}$"):
        write_file(tmp_path / name, "text")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
