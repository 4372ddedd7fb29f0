"""Kills a training run many times, and checks that the finished run equals an undisturbed one.

One run is not disturbed. Another run is ended by SIGKILL at random moments, in turn during a save,
during an eval and at any time, and is started again each time. The proof holds if metrics, evals
and parameters are exactly equal, and if no extra file is left. `torture_two` does the same with a
run of two processes. It kills one process at a time. The other process must end by itself with the
exit code of a lost peer.
"""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from torture_fork import Forked
from torture_runs import EVAL_EVERY, Outcome, Scene, compare, kill_all, wait_for_step

from jaxcpt.errors import LOST_PEER
from jaxcpt.rows import read_rows

STEPS_PER_KILL = 10
LATEST_END = 15.0
"""Seconds within which a process must notice that the other one is gone."""


def list_unproven(run_dir: Path) -> tuple[list[int], int]:
    """The steps on the disk that have no manifest, with temporary ones, and the newest step."""
    names = [path.name for path in (run_dir / "checkpoints").glob("[0-9]*")]
    steps = {int(name.partition(".")[0]) for name in names}
    proven = {int(name.partition(".")[0]) for name in names if name.endswith(".sha256.json")}
    return sorted(steps - proven), max(steps, default=0)


def is_saving(run_dir: Path) -> bool:
    unproven, newest = list_unproven(run_dir)
    return newest in unproven


def is_deleting(run_dir: Path) -> bool:
    """Whether an older step is being deleted, or was when the run was killed."""
    unproven, newest = list_unproven(run_dir)
    return any(step < newest for step in unproven)


def is_evaluating(run_dir: Path) -> bool:
    """Whether the newest step is due for an eval and has no scores yet."""
    steps = [int(row["step"]) for row in read_rows(run_dir / "metrics.jsonl")]
    scored = {int(row["step"]) for row in read_rows(run_dir / "evals.jsonl")}
    return bool(steps) and steps[-1] % EVAL_EVERY == 0 and steps[-1] not in scored


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "inside a save": is_saving,
    "anywhere": lambda _: True,
    "inside an eval": is_evaluating,
    "inside a deletion": is_deleting,
}
TURNS = ("inside a save", "inside an eval", "anywhere", "inside a save", "inside a deletion")


def wait_for_moment(
    run_dir: Path, processes: list[Forked], moment: str, draw: random.Random
) -> None:
    wait_for_step(run_dir, processes, draw)
    while all(process.poll() is None for process in processes) and not MOMENTS[moment](run_dir):
        time.sleep(0.001)


def kill_once(scene: Scene, run_dir: Path, moment: str, draw: random.Random) -> str:
    """Starts the run and kills it at this kind of moment. Returns in words when that was."""
    process = scene.start(run_dir)
    try:
        wait_for_moment(run_dir, [process], moment, draw)
        code = process.poll()
    finally:
        outputs = kill_all([process])
    assert not code, f"a start after a kill ended with code {code}: {outputs}"
    return "after its end" if code == 0 else moment


def kill_one_of_two(scene: Scene, run_dir: Path, moment: str, draw: random.Random) -> str:
    """Like `kill_once`, for one of two processes. Checks how and when the other one ends."""
    processes = scene.start_two(run_dir)
    try:
        wait_for_moment(run_dir, processes, moment, draw)
        codes = [process.poll() for process in processes]
        victim, other = draw.sample(processes, 2)
        victim.kill()
        begin = time.monotonic()
        other.wait(120)
        seconds = time.monotonic() - begin
    finally:
        outputs = kill_all(processes)
    assert not any(codes), f"a start after a kill ended with codes {codes}: {outputs}"
    if codes != [None, None]:
        return "after its end"
    place = f"{moment}, process {processes.index(victim)}"
    assert other.returncode == LOST_PEER, f"{place}: exit code {other.returncode}: {outputs}"
    assert seconds < LATEST_END, f"{place}: the other ended after {seconds:.1f} s"
    return moment


def _torture(
    seed: int,
    kills: int,
    kill: Callable[[Scene, Path, str, random.Random], str],
    finish: Callable[[Scene, Path], dict],
) -> Outcome:
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        scene = Scene(Path(scratch), STEPS_PER_KILL * (kills + 1))
        undisturbed = finish(scene, Path(scratch, "undisturbed"))
        run_dir = Path(scratch, "killed")
        try:
            for number in range(kills):
                counts[kill(scene, run_dir, TURNS[number % len(TURNS)], draw)] += 1
            failures = compare(undisturbed, finish(scene, run_dir))
        except AssertionError as error:
            failures = [str(error)]
    note = ", ".join(f"{count} {moment}" for moment, count in sorted(counts.items()))
    return Outcome(cases=kills, failures=failures, note=note)


def torture_one(seed: int, kills: int) -> Outcome:
    """Kills a run of one process."""
    return _torture(seed, kills, kill_once, Scene.finish)


def torture_two(seed: int, kills: int) -> Outcome:
    """Kills one process of a run of two processes."""
    return _torture(seed, kills, kill_one_of_two, Scene.finish_two)
