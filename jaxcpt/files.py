"""Files that appear whole or not at all, and sums that tell whether they are still the same.

Every file of the package is written by `write_file`: under a temporary name, flushed to the disk,
and renamed. A kill or a full disk leaves the old file or the new one, never a part of one.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from jaxcpt.errors import UserError

Content = str | bytes | Callable[[IO[bytes]], Any]


def write_file(path: Path, content: Content) -> None:
    """Writes the whole file at once. `content` is text, bytes, or a function that writes them.

    A link, a pipe or a device, such as /dev/stdout, is written to and not replaced. Raises
    UserError naming the file where the disk is full or the folder cannot be written.
    """
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            with path.open("wb") as file:
                _write(file, content)
        else:
            _replace(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _replace(path: Path, content: Content) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _write(file, content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # also of `content`, or Ctrl-C
        with suppress(OSError):
            partial.unlink()
        raise


def _write(file: IO[bytes], content: Content) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def hash_file(path: Path) -> str:
    """sha256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
