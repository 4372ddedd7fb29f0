"""What a run writes down about its starts and its end, for the people who read its report.

In: the step that a start goes on from, its devices and its data. Out: `starts.jsonl`, one object a
line for each start, and the numbers of the end. It reads the clock, the command line and the
machine, and knows nothing of training.
"""

import json
import os
import platform
import resource
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from jaxcpt import __version__
from jaxcpt.files import write_file

STARTS_FILE = "starts.jsonl"


def record_start(run_dir: Path, step: int, devices: str, data: Sequence[Mapping[str, Any]]) -> None:
    """Adds a line to starts.jsonl. Lines of earlier starts stay.

    step: the step that is done. data: from `fingerprints.describe_data`.
    """
    command = [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
    start = {
        "step": step,
        "date": read_clock(),
        "command": shlex.join(command).encode(errors="replace").decode(),
        "commit": find_commit(Path(__file__).resolve().parent.parent),
        "versions": {
            "jaxcpt": __version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "host": f"{socket.gethostname()}, {os.cpu_count()} cores",
        "processes": jax.process_count(),
        "devices": devices,
        "data": [{"name": entry["name"], "pairs": entry["pairs"]} for entry in data],
    }
    path = run_dir / STARTS_FILE
    before = path.read_bytes() if path.is_file() else b""
    write_file(path, before + json.dumps(start).encode() + b"\n")


def describe_end() -> dict[str, Any]:
    """The date, and the most memory that this process has used so far.

    Devices that do not count their memory, such as CPUs, have no `device_memory_bytes`.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    end: dict[str, Any] = {
        "date": read_clock(),
        "host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices()]
    return end | ({"device_memory_bytes": max(peaks)} if any(peaks) else {})


def read_clock() -> str:
    """The date and time, as ISO 8601 writes them, in UTC and whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find_commit(checkout: Path) -> str | None:
    """The commit of a git checkout, with `-dirty` where its files have changed since.

    None: the folder is no checkout, as after `pip install`, or git is not there.
    """
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
