"""Reads the members of tar and zip archives.

In: an open tar file, or the path of a zip file. Out: its wanted members, each as an iterator over
pieces of bytes. If a member is damaged, its iterator raises an error, and the next members follow.
This module does not know what the members hold.
"""

import copy
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from jaxcpt.mining.raw_document import Problem, repair_name

STEP_BYTES = 2**16
ENCRYPTED = 0x41
"""The bits in a zip member's flags for the two ways of encryption."""
ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}


@dataclass(frozen=True)
class Member:
    name: str
    """The path of the archive and, after it, the path in the archive."""
    pieces: Iterator[bytes]


def list_tar(
    name: str, stream: BinaryIO, is_wanted: Callable[[str], bool]
) -> Iterator[Member | Problem]:
    """Yields the wanted files. The caller must read each one before it takes the next one.

    Folders are left out. Links are left out too, because the member that they name is read anyway.
    """
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            where = _name_member(name, member.name, is_wanted)
            if not where or member.isdir() or member.issym() or member.islnk():
                continue
            if isinstance(where, Problem):
                yield where
            elif member.isreg():
                yield Member(where, _read_tar_member(archive, member))
            else:
                yield Problem("not a regular file", where, f"tar member of type {member.type!r}")


def list_zip(name: str, path: str, is_wanted: Callable[[str], bool]) -> Iterator[Member | Problem]:
    """Yields the wanted files. Folders and links are left out."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            where = _name_member(name, member.filename, is_wanted)
            if not where or member.is_dir() or stat.S_ISLNK(member.external_attr >> 16):
                continue
            if isinstance(where, Problem):
                yield where
            elif member.flag_bits & ENCRYPTED:
                yield Problem("encrypted archive member", where)
            elif member.compress_type not in ZIP_METHODS:
                method = f"method {member.compress_type}"
                yield Problem("archive member of unsupported compression", where, method)
            else:
                yield Member(where, _unpack(archive, member))


def _read_tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    if member.issparse():
        yield from _read_steps(archive.extractfile(member))
        return
    # `extractfile` would lose what it read before the damaged place.
    file: Any = archive.fileobj
    file.seek(member.offset_data)
    left = member.size
    while left > 0:
        piece = file.read(min(left, STEP_BYTES))
        if not piece:
            raise EOFError("the archive ends early")
        left -= len(piece)
        yield piece


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    unchecked = copy.copy(member)
    del unchecked.CRC  # otherwise a wrong checksum would lose the last text that was read
    crc = 0
    with archive.open(unchecked) as file:
        for piece in _read_steps(file):
            crc = zlib.crc32(piece, crc)
            yield piece
    if crc != member.CRC:
        raise zipfile.BadZipFile("the checksum of the text is wrong")


def _read_steps(file: Any) -> Iterator[bytes]:
    # `read` would lose what it read before an error. `read1` reads only once.
    return iter(partial(file.read1, STEP_BYTES), b"")


def _name_member(archive: str, name: str, is_wanted: Callable[[str], bool]) -> str | Problem | None:
    """Returns the name of a member's documents, or None if the member is not wanted."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return Problem("archive member climbs out of its folder", archive, repair_name(name))
    return repair_name(f"{archive}/{path}") if is_wanted(path.name) else None
