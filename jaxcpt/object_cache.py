"""A local cache of objects in a store, for libraries that can only read local files.

In: the path of an object or of a folder of objects. Out: the path of a local copy. A copy is made
once and used by all processes of the machine. When the cache would exceed its limit, copies that no
process uses are deleted, the least recently used first. The module does not know what the files
hold.

    JAXCPT_CACHE        folder of the copies; default: ~/.cache/jaxcpt
    JAXCPT_CACHE_GB     its limit in GB; default: 200
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from jaxcpt.errors import UserError
from jaxcpt.files import is_object

if TYPE_CHECKING:
    from jaxcpt.objects import ObjectPath

DOWNLOADS_AT_ONCE = 8
LOCK, FILL_LOCK, FILES = "lock", "fill_lock", "files"

_held: dict[Path, IO[bytes]] = {}
"""The open lock files of the copies in use. The system unlocks them when the process ends."""


class Wanted(NamedTuple):
    """An object, with its size and date, and the path of its local copy."""

    source: "ObjectPath"
    target: Path
    size: int
    date: float

    @property
    def is_there(self) -> bool:
        if not self.target.is_file():
            return False
        found = self.target.stat()
        return found.st_size == self.size and abs(found.st_mtime - self.date) < 1


def fetch(path: Path) -> Path:
    """Returns a local path with the content of `path`, which is an object or a folder of objects.

    A local path is returned unchanged. Raises UserError if there is no such object, or if the
    copies do not fit into the cache or on the disk.
    """
    if not is_object(path):
        return path
    if not path.exists():
        raise UserError(f"{path}: no such object, nor a folder of objects")
    cache = Path(os.environ.get("JAXCPT_CACHE") or Path.home() / ".cache" / "jaxcpt")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    entry = cache / f"{re.sub('[^a-zA-Z0-9.]+', '_', str(path))[-100:]}-{digest}"
    place = entry / FILES / path.name
    wanted = [
        Wanted(file, place / file.relative_to(path), found.st_size, found.st_mtime)
        for file, found in path.list_files().items()
    ]
    _hold(entry)
    try:
        with open(entry / FILL_LOCK, "a+b") as fill_lock:
            fcntl.flock(fill_lock, fcntl.LOCK_EX)  # waits while another process fills the entry
            if missing := [file for file in wanted if not file.is_there]:
                _make_room(cache, sum(file.size for file in missing), path)
            with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
                list(pool.map(_download, missing))
    except OSError as error:
        raise UserError(f"{entry}: the copy of {path} cannot be written: {error}") from None
    return place


def _hold(entry: Path) -> None:
    """Keeps other processes from deleting an entry of the cache until this process ends.

    Any number of processes hold an entry at the same time.
    """
    try:
        entry.mkdir(parents=True, exist_ok=True)
        if entry not in _held:
            _held[entry] = open(entry / LOCK, "a+b")  # noqa: SIM115 - held until the end
        fcntl.flock(_held[entry], fcntl.LOCK_SH)
        os.utime(entry / LOCK)
    except OSError as error:
        raise UserError(f"{entry}: cannot be written: {error.strerror}; set JAXCPT_CACHE") from None


def _download(file: Wanted) -> None:
    file.target.parent.mkdir(parents=True, exist_ok=True)
    partial = file.target.with_name(f"{file.target.name}.partial")
    file.source.download(partial)
    # The copy gets the object's date, so that a data source looks the same on every machine.
    os.utime(partial, (file.date, file.date))
    partial.replace(file.target)


def _make_room(cache: Path, needed: int, path: Path) -> None:
    """Deletes unused copies until `needed` bytes fit. Raises UserError if they cannot fit."""
    limit = float(os.environ.get("JAXCPT_CACHE_GB") or 200) * 1e9
    locks = [entry / LOCK for entry in cache.iterdir() if (entry / LOCK).is_file()]
    entries = [lock.parent for lock in sorted(locks, key=lambda lock: lock.stat().st_mtime)]
    held = {entry: _measure(entry) for entry in entries}

    def room() -> float:
        return min(limit - sum(held.values()), shutil.disk_usage(cache).free)

    for entry in entries:
        if needed <= room():
            return
        with open(entry / LOCK, "a+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            shutil.rmtree(entry / FILES, ignore_errors=True)
            held[entry] = 0
    if needed > room():
        raise UserError(
            f"{path}: {needed / 1e9:.1f} GB do not fit into {cache}, which has room for "
            f"{max(room(), 0) / 1e9:.1f}; set JAXCPT_CACHE to a larger disk, or raise "
            "JAXCPT_CACHE_GB (now "
            f"{limit / 1e9:g})"
        )


def _measure(entry: Path) -> int:
    """The bytes of an entry, in which another process may be replacing files."""
    size = 0
    for folder, _, names in os.walk(entry):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(os.path.join(folder, name)).st_size
    return size
