"""A lock on a run folder, so that only one process writes there at a time.

In: a run folder. Out: a lock that is held while a block runs, or a UserError that names its holder.
Every holder writes its own file, `.lock-<time>-<token>.json`, and renews it every few seconds. So
the lock needs neither `fcntl` nor a common clock, and it works on NFS and in object stores.

A stale lock is removed. On the same machine, a lock is stale if its process is gone. On another
machine, it is stale if its file is not renewed while a newcomer watches it. Each file belongs to
one holder, so removing a stale file cannot remove the lock of another process that came meanwhile.
The module does not know what the process writes.
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
"""A holder on another machine counts as gone if it does not renew its file for this long."""
UNREADABLE_SECONDS = 5.0
"""A lock file counts as damaged if it cannot be read for this long. It may be in writing before."""
PATIENCE_SECONDS = 5.0
"""How long to wait for a holder that is about to leave."""


class FolderInUse(UserError):
    """Another process writes into the run folder."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that wrote a lock file, as the file describes it."""

    host: str
    machine: str
    """Identifies the boot and the process namespace in which `pid` is valid. Empty: unknown."""
    pid: int
    process_start: str
    """When the process began, by the kernel's clock. It shows whether an id was used again."""
    since: str
    held: bool = False
    """False while the process still looks for other holders."""
    beat: int = 0


def describe_self() -> Holder:
    """The description of this process."""
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
    """When a process of this machine began; None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


class RunLock:
    """The lock of a run folder, as a context manager.

    Entering raises FolderInUse if another process holds the lock and is alive.
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
        """Waits until there is no other holder. Raises FolderInUse if one is alive.

        Among several newcomers, the first by the name of its file gets the lock. The others raise
        as soon as they see that file.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while others := self._list_others():
            for path in others:
                holder = _read(path)
                if _is_stale(path, holder, self.holder):
                    _remove(path)
                    if path.exists():
                        raise FolderInUse(f"{path}: not a lock of jaxcpt; move it away")
                elif holder is None or not path.is_file():
                    continue  # it is being written or was just removed
                elif (holder.held or path < self.path) and time.monotonic() > deadline:
                    raise FolderInUse(_explain(path, holder))
            time.sleep(0.1)

    def _beat(self) -> None:
        """Renews the lock file until the lock is released."""
        while not self.left.wait(BEAT_SECONDS):
            with suppress(OSError, UserError):  # a full disk or unreachable storage
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
    """Ends this process, so that it writes no more, because another one considered it dead."""
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
    """Whether the holder of a lock file is gone. For another machine this takes WATCH_SECONDS."""
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
    """Whether a lock file is renewed, or removed by its holder, within this many seconds."""
    before, until = _read(path), time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(0.5, seconds / 10))
        if _read(path) != before or not path.exists():
            return True
    return False


def _remove(path: Path) -> None:
    """Removes a lock file, and the temporary file of a renewal that a kill interrupted."""
    for leftover in (path, path.with_name(f"{path.name}.partial")):
        with suppress(OSError):
            leftover.unlink()


def _read(path: Path) -> Holder | None:
    """The holder in a lock file; None if the file is gone, damaged, or being written."""
    try:
        return Holder(**json.loads(path.read_text())) if path.is_file() else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None
