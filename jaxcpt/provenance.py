"""Records facts about a run's starts and its end, for the readers of its report.

In: the step from which a start continues, its devices and its data. Out: `starts.jsonl`, with one
line for each start, and the facts about the end. The module reads the clock, the command line and
the machine. It does not know how a run trains.
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

STARTS_FILE, SUMMARY_FILE = "starts.jsonl", "summary.json"


def record_start(run_dir: Path, step: int, devices: str, data: Sequence[Mapping[str, Any]]) -> None:
    """Adds a line to starts.jsonl. The lines of earlier starts stay.

    step: the last step that is done. data: the result of `fingerprints.describe_data`.
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
    """The date, and the peak memory of this process.

    `device_memory_bytes` is left out for devices that do not count their memory, such as CPUs.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    end: dict[str, Any] = {
        "date": read_clock(),
        "host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices()]
    return end | ({"device_memory_bytes": max(peaks)} if any(peaks) else {})


def find_end(run_dir: Path, last_step: int) -> dict[str, Any]:
    """`describe_end`, or the end that is recorded if this start found all steps done."""
    start = json.loads((run_dir / STARTS_FILE).read_text().splitlines()[-1])
    path = run_dir / SUMMARY_FILE
    recorded = json.loads(path.read_text()) if path.is_file() else {}
    found_done = start["step"] == last_step and "end" in recorded
    return recorded["end"] if found_done else describe_end()


def read_clock() -> str:
    """The date and time in ISO 8601 format, in UTC and whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find_commit(checkout: Path) -> str | None:
    """The commit of a git checkout, with `-dirty` after it if files have changed since.

    None if the folder is not a checkout, as after `pip install`, or if git is not installed.
    """
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
