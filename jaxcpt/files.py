"""Writes files and folders atomically, and computes checksums of files.

In: a path and its content. Out: the file. `write_file` writes under a temporary name, flushes to
the disk, and renames. After a kill or on a full disk there is the old file or the new file, never a
part of one. A path is local or names an object in a store (`gs://`, `s3://`); `to_path` makes both
kinds. The module does not know what the files hold.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, TypeGuard, cast

from jaxcpt.errors import UserError

if TYPE_CHECKING:
    from jaxcpt.objects import ObjectPath

Content = str | bytes | Callable[[IO[bytes]], Any]


def to_path(text: str | PurePath) -> Path:
    """A local path, or the path of an object in a store. Both have the methods of `Path`."""
    name = os.fspath(text)
    scheme, separator, _ = name.partition("://")
    if not separator:
        return Path(name)
    if scheme not in ("gs", "s3"):
        raise UserError(f"{name}: expected a local path, gs://BUCKET/NAME or s3://BUCKET/NAME")
    from jaxcpt.objects import ObjectPath  # local paths do not need its libraries

    return cast(Path, ObjectPath(name))


def is_object(path: PurePath) -> "TypeGuard[ObjectPath]":
    """Whether the path is that of an object in a store."""
    return not isinstance(path, Path)


def write_file(path: Path, content: Content) -> None:
    """Writes a file atomically. content: text, bytes, or a function that writes to an open file.

    A link, a pipe or a device, such as /dev/stdout, is written to directly and not replaced. Raises
    UserError that names the file if the disk is full or the folder cannot be written.
    """
    try:
        if is_object(path):
            _put(path, content)
        elif path.is_symlink() or (path.exists() and not path.is_file()):
            with path.open("wb") as file:
                _write(file, content)
        else:
            _replace(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _put(path: "ObjectPath", content: Content) -> None:
    if not callable(content):
        path.put(content.encode() if isinstance(content, str) else content)
        return
    with tempfile.NamedTemporaryFile(prefix="jaxcpt_") as file:
        content(cast(IO[bytes], file))
        file.flush()
        path.upload(Path(file.name))


def _replace(path: Path, content: Content) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _write(file, content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # also for Ctrl-C and errors that `content` raises
        with suppress(OSError):
            partial.unlink()
        raise


def _write(file: IO[bytes], content: Content) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A context that yields a local folder to fill. The folder becomes `output` at the block's end.

    If the block raises, there is no output. In a store, the files are uploaded one by one, in the
    order of their names.
    """
    if is_object(output):
        with tempfile.TemporaryDirectory(prefix="jaxcpt_") as scratch:
            folder = Path(scratch)
            yield folder
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                (output / file.relative_to(folder).as_posix()).upload(file)
        return
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # a killed command may have left it
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_absolute(folder: Path) -> Path:
    """The absolute path of a checkpoint folder. Raises UserError if Orbax cannot write there."""
    if not is_object(folder):
        return folder.resolve()
    from jaxcpt.objects import prepare_tensorstore

    prepare_tensorstore(folder)
    return folder


def remove_tree(folder: Path) -> None:
    """Deletes a folder and everything in it. A missing folder is no error."""
    if is_object(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def hash_file(path: Path) -> str:
    """sha256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
