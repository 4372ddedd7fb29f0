"""Makes the disk of a run fail at random moments: full, no inodes, files too large, read-only.

The run folder is on a small file system in memory. A case holds if the run ends with code 2 and one
line, if the newest earlier checkpoint can still be loaded, and if the run later finishes like the
undisturbed one when there is room again. Mounting needs root or a user namespace; otherwise the
proof is skipped.
"""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torture_fork import Forked
from torture_runs import Outcome, Scene, Skipped, compare, said, wait_for_step

from jaxcpt.embed import Embedder
from jaxcpt.errors import USER_ERROR

STEPS_PER_FAULT = 12
INODES = 4000


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A context with a file system of 16 MiB at the folder. Raises Skipped if mounting fails."""
    folder.mkdir()
    options = f"size=16m,nr_inodes={INODES}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "torture", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"cannot mount: {done.stderr.strip()}; start it as root or by unshare -rm")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(disk: Path, draw: random.Random) -> None:
    """Fills the disk. At most a few kilobytes stay free."""
    with (disk / "filler").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(4096)) == 4096:
                pass
        file.truncate(max(file.tell() - draw.choice((0, 4096, 40_960)), 0))


def take_inodes(disk: Path, draw: random.Random) -> None:
    """Uses up the inodes. At most a few new files are still possible."""
    (disk / "files").mkdir()
    left = draw.choice((0, 1, 5))
    with contextlib.suppress(OSError):
        for number in range(os.statvfs(disk).f_favail - left):
            (disk / "files" / str(number)).touch()


def make_room(disk: Path) -> None:
    (disk / "filler").unlink(missing_ok=True)
    for path in (disk / "files").glob("*"):
        path.unlink()
    with contextlib.suppress(FileNotFoundError):
        (disk / "files").rmdir()


def limit_file_size(process: Forked, draw: random.Random) -> None:
    limit = draw.choice((0, 100, 3000, 20_000))
    command = ["prlimit", "--pid", str(process.pid), f"--fsize={limit}"]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)  # it may have ended


def harm(kind: str, disk: Path, process: Forked, draw: random.Random) -> None:
    if kind == "full":
        fill_disk(disk, draw)
    elif kind == "no inodes":
        take_inodes(disk, draw)
    elif kind == "file size":
        limit_file_size(process, draw)


def remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)


def find_newest(run_dir: Path) -> int:
    names = [path.name for path in (run_dir / "checkpoints").glob("*.sha256.json")]
    return max((int(name.partition(".")[0]) for name in names), default=0)


def run_case(scene: Scene, disk: Path, kind: str, draw: random.Random) -> list[str]:
    """Runs one case. Returns a line for each problem."""
    run_dir = disk / "run"
    if kind == "read-only":  # a file system in use cannot become read-only
        remount(disk, "ro")
    process = scene.start(run_dir)
    newest = find_newest(run_dir)
    if kind != "read-only":
        wait_for_step(run_dir, [process], draw)
        newest = find_newest(run_dir)
        harm(kind, disk, process, draw)
    process.wait(300)
    hangs = process.poll() is None
    process.kill()
    output, errors = process.communicate()
    problems = []
    if hangs:
        problems.append("it did not end")
    elif process.returncode != USER_ERROR or len(said(errors)) != 1:
        problems.append(f"exit code {process.returncode}: {output[-300:]} {errors[-600:]}")
    with contextlib.redirect_stdout(sys.stderr):
        if newest and Embedder.load(run_dir).step < newest:
            problems.append(f"step {newest} is lost")
    if kind == "read-only":
        remount(disk, "rw")
    make_room(disk)
    return problems


def torture(seed: int, cases: int) -> Outcome:
    draw = random.Random(seed)
    kinds = ["full", "no inodes", "file size", "read-only"]
    counts: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as scratch, small_disk(Path(scratch, "disk")):
        scene = Scene(Path(scratch, "scene"), STEPS_PER_FAULT * (cases + 1))
        undisturbed = scene.finish(Path(scratch, "undisturbed"))
        disk = Path(scratch, "disk")
        for number in range(cases):
            kind = kinds[number % len(kinds)]
            counts[kind] += 1
            failures += [f"{kind}: {text}" for text in run_case(scene, disk, kind, draw)]
        failures += compare(undisturbed, scene.finish(disk / "run"))
    note = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return Outcome(cases=cases, failures=failures, note=note)
