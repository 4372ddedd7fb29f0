"""A lock on a run folder: one process writes there at a time.

In: a run folder. Out: a lock that is held while a block runs, or a UserError that names who holds
it. Every holder writes a file of its own, `.lock-<time>-<token>.json`, and renews it every few
seconds. So the lock needs neither `fcntl` nor a common clock, and works on NFS and object stores.

A lock is stale, and is removed, where its process is gone (on the same machine), or where its file
is not renewed while a newcomer watches it (any other machine). A file is named after one holder,
so that removing a stale one cannot remove the lock of somebody who came in the meantime.
"""

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from jaxcpt.errors import LOST_PEER, UserError, leave
from jaxcpt.files import write_file

PREFIX, SUFFIX = ".lock-", ".json"
BEAT_SECONDS = 10.0
WATCH_SECONDS = 4.5 * BEAT_SECONDS
"""A holder on another machine that does not renew its file for so long is gone."""
UNREADABLE_SECONDS = 5.0
"""A lock file that cannot be read for so long is damaged, and not just being written."""
PATIENCE_SECONDS = 5.0
"""A holder that is about to leave is waited for so long."""


class FolderInUse(UserError):
    """Another process writes into the run folder."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What a lock file says of the process that wrote it."""

    host: str
    machine: str
    """The boot and the process namespace in which `pid` has its meaning. Empty: unknown."""
    pid: int
    process_start: str
    """When the process began, by the kernel's clock. It tells two uses of one id apart."""
    since: str
    held: bool = False
    """False while its process still looks for other holders."""
    beat: int = 0


def describe_self() -> Holder:
    """This process as a holder."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        machine = ""
    return Holder(
        host=socket.gethostname(),
        machine=machine,
        pid=os.getpid(),
        process_start=find_process_start(os.getpid()) or "",
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def find_process_start(pid: int) -> str | None:
    """When a process of this machine began. None where it is gone, or has ended as a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


class RunLock:
    """The lock of a run folder, as a context manager.

    Entering raises FolderInUse where another process holds the lock and is alive.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / f"{PREFIX}{time.time_ns():020}-{secrets.token_hex(4)}{SUFFIX}"
        self.holder = describe_self()
        self.writing, self.left = threading.Lock(), threading.Event()
        self.beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "RunLock":
        self._write()
        self.beating.start()
        try:
            self._wait_for_others()
            self._write(held=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()
        self.beating.join()
        _remove(self.path)

    def _write(self, **changes: Any) -> None:
        with self.writing:
            self.holder = replace(self.holder, beat=self.holder.beat + 1, **changes)
            write_file(self.path, json.dumps(asdict(self.holder)))

    def _wait_for_others(self) -> None:
        """Returns once no other holder is left. Raises FolderInUse where one is alive.

        Of several newcomers the one that came first, by the name of its file, gets the lock. The
        others leave as soon as they see it.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while others := self._list_others():
            for path in others:
                holder = _read(path)
                if _is_stale(path, holder, self.holder):
                    _remove(path)
                    if path.exists():
                        raise FolderInUse(f"{path}: no lock of jaxcpt; move it away")
                elif holder is None or not path.is_file():
                    continue  # it was written, or removed, a moment ago
                elif (holder.held or path < self.path) and time.monotonic() > deadline:
                    raise FolderInUse(_explain(path, holder))
            time.sleep(0.1)

    def _beat(self) -> None:
        """Renews the lock file until the lock is left."""
        while not self.left.wait(BEAT_SECONDS):
            with suppress(OSError, UserError):  # a full disk, or a storage that is away for a while
                self._write()
                for path in self._list_others() if self.holder.held else ():
                    if (other := _read(path)) is not None and other.held:
                        _leave_at_once(self.run_dir, other)

    def _list_others(self) -> list[Path]:
        return sorted(
            path
            for path in self.run_dir.iterdir()
            if path != self.path and path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)
        )


def _leave_at_once(run_dir: Path, other: Holder) -> NoReturn:
    """Ends this process, which another one took for dead, so that it does not write any more."""
    leave(
        LOST_PEER,
        f"{run_dir}: process {other.pid} on {other.host} has taken it over, because this process "
        "did not answer for a while; stopped",
    )


def _explain(path: Path, holder: Holder) -> str:
    return (
        f"{path.parent}: process {holder.pid} on {holder.host} has been writing there since "
        f"{holder.since}; wait for it or stop it (kill {holder.pid}); if it is surely gone, "
        f"delete {path}"
    )


def _is_stale(path: Path, holder: Holder | None, own: Holder) -> bool:
    """Whether the holder of a lock file is gone. Of another machine it takes a while to know."""
    if holder is None:
        return not _changes(path, UNREADABLE_SECONDS)
    if own.machine and holder.machine == own.machine:
        return find_process_start(holder.pid) != holder.process_start
    print(
        f"{path.parent}: locked by process {holder.pid} on {holder.host}; watching for "
        f"{WATCH_SECONDS:.0f} s whether it is alive",
        flush=True,
    )
    return not _changes(path, WATCH_SECONDS)


def _changes(path: Path, seconds: float) -> bool:
    """Whether a lock file is renewed, or removed by its holder, within so many seconds."""
    before, until = _read(path), time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(0.5, seconds / 10))
        if _read(path) != before or not path.exists():
            return True
    return False


def _remove(path: Path) -> None:
    """Removes a lock file, and what a kill left of a renewal."""
    for leftover in (path, path.with_name(f"{path.name}.partial")):
        with suppress(OSError):
            leftover.unlink()


def _read(path: Path) -> Holder | None:
    """None for a file that is gone, damaged, or being written."""
    try:
        return Holder(**json.loads(path.read_text())) if path.is_file() else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None
