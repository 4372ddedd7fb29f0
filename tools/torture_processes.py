"""Two proofs: processes of one run lose each other, and two runs use the same folder.

`torture_loss`: of two processes, one is killed, stopped by SIGSTOP, or cut off from the network.
The other one, and the one that was cut off, must end with the exit code of a lost peer. When the
run is started again, it must finish like the undisturbed run. Networks between namespaces need
root; otherwise the cut is left out, and the note says so.

`torture_folder`: a second run is started in the folder of a run that is alive, with the same
devices and with others. It must end with an error of one line, and the first run must not be
disturbed.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from torture_fork import Forked
from torture_runs import Outcome, Scene, compare, find_port, kill_all, said, wait_for_step

from jaxcpt.errors import LOST_PEER, STOPPED, USER_ERROR
from jaxcpt.rows import read_rows

STEPS_PER_CASE = 12
ENDLESS = 1_000_000
LATEST_END = {"kill": 15.0, "stop": 30.0, "cut": 30.0}
"""Seconds until a process must end. JAX notices a silent process only after 10 seconds."""
ADDRESSES = ("10.251.7.1", "10.251.7.2")


@contextlib.contextmanager
def two_networks(scratch: Path) -> Iterator[tuple[str, str] | None]:
    """The names of two connected network namespaces; None if they cannot be made."""
    names = (f"torture{os.getpid()}a", f"torture{os.getpid()}b")
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}"]
    for name, address in zip(names, ADDRESSES, strict=True):
        commands += [f"ip -n {name} address add {address}/24 dev cable"]
        commands += [f"ip -n {name} link set cable up", f"ip -n {name} link set lo up"]
        hosts = f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n"
        (scratch / f"hosts_{name}").write_text(hosts)
    try:
        made = all(
            subprocess.run(command.split(), capture_output=True).returncode == 0
            for command in commands
        )
        yield names if made else None
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start_apart(
    scene: Scene, run_dir: Path, networks: Sequence[str]
) -> list[subprocess.Popen[str]]:
    """Starts both processes, each in its own network, where its host name is its address."""
    port = find_port()
    processes = []
    for number, name in enumerate(networks):
        hosts = run_dir.parent / f"hosts_{name}"
        command = ["ip", "netns", "exec", name, "sh", "-c"]
        command += ['mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
        command += [sys.executable, "-m", "jaxcpt", "train", *scene.make_command(run_dir)]
        command += ["--coordinator", f"{ADDRESSES[0]}:{port}", "--num-processes", "2"]
        command += ["--set", "mesh.data=2", "--wait", "120", "--process-id", str(number)]
        processes.append(
            subprocess.Popen(
                command,
                env={**os.environ, **scene.environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def lose(kind: str, victim: Forked | subprocess.Popen[str], networks: Sequence[str]) -> None:
    if kind == "kill":
        victim.kill()
    elif kind == "stop":
        victim.send_signal(signal.SIGSTOP)
    else:
        subprocess.run(["ip", "-n", networks[0], "link", "set", "cable", "down"], check=True)


def run_case(
    scene: Scene, run_dir: Path, kind: str, networks: Sequence[str], draw: random.Random
) -> tuple[list[str], float]:
    """Runs a case. Returns its problems, and the seconds until the other process ended."""
    processes: list = (
        start_apart(scene, run_dir, networks) if kind == "cut" else scene.start_two(run_dir)
    )
    try:
        wait_for_step(run_dir, processes, draw)
        early = [process.poll() for process in processes]
        number = draw.randrange(2)
        victim, other = processes[number], processes[1 - number]
        lose(kind, victim, networks)
        begin = time.monotonic()
        while other.poll() is None and time.monotonic() < begin + 120:
            time.sleep(0.05)
        seconds = time.monotonic() - begin
        if kind != "kill":
            time.sleep(1)
            victim.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                victim.wait(60)
        codes = [other.poll(), LOST_PEER if kind == "kill" else victim.poll()]
    finally:
        outputs = kill_all(processes)
        if kind == "cut":
            subprocess.run(["ip", "-n", networks[0], "link", "set", "cable", "up"], check=True)
    place = f"{kind} of process {number}"
    problems = []
    if early != [None, None]:
        problems.append(f"a start ended with {early}: {outputs}")
    elif codes != [LOST_PEER, LOST_PEER]:
        problems.append(f"{place}: exit codes {codes}: {[said(errors) for _, errors in outputs]}")
    elif len(said(outputs[1 - number][1])) != 1:
        problems.append(f"{place}: not one line: {outputs[1 - number][1]}")
    if seconds > LATEST_END[kind]:
        problems.append(f"{place}: the other ended after {seconds:.1f} s")
    return problems, seconds


def torture_loss(seed: int, cases: int) -> Outcome:
    draw = random.Random(seed)
    failures: list[str] = []
    longest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, two_networks(Path(scratch)) as networks:
        kinds = ["stop", "cut", "kill"] if networks else ["stop", "kill"]
        scene = Scene(Path(scratch, "scene"), STEPS_PER_CASE * (cases + 1))
        undisturbed = scene.finish_two(Path(scratch, "undisturbed"))
        run_dir = Path(scratch, "disturbed")
        for number in range(cases):
            kind = kinds[number % len(kinds)]
            problems, seconds = run_case(scene, run_dir, kind, networks or (), draw)
            failures += problems
            longest[kind] = max(longest.get(kind, 0.0), seconds)
        failures += compare(undisturbed, scene.finish_two(run_dir))
    note = ", ".join(f"{kind}: at most {seconds:.1f} s" for kind, seconds in longest.items())
    return Outcome(
        cases=cases,
        failures=failures,
        note=note + ("" if networks else "; no network cut: needs root"),
    )


def torture_folder(seed: int, cases: int) -> Outcome:
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        scene = Scene(Path(scratch, "scene"), ENDLESS, eval_every=ENDLESS)
        run_dir = Path(scratch, "shared")
        first = scene.start(run_dir)
        wait_for_step(run_dir, [first], draw)
        for number in range(cases):
            devices = (1, 2, 8)[number % 3]
            second = scene.start(run_dir, "--set", f"mesh.data={devices}")
            output, errors = second.communicate()
            lines = said(errors)
            right = second.returncode == USER_ERROR and len(lines) == 1
            if not right or f"process {first.pid} on" not in lines[0]:
                code = f"exit code {second.returncode}"
                failures.append(f"{devices} devices: {code}: {output}{errors}")
            counts[f"with {devices} devices"] += 1
        first.send_signal(signal.SIGTERM)
        output, errors = first.communicate()
        if first.returncode != STOPPED:
            failures.append(f"the first run: exit code {first.returncode}: {output}{errors}")
        steps = [row["step"] for row in read_rows(run_dir / "metrics.jsonl")]
        if steps != list(range(1, len(steps) + 1)):
            failures.append("the first run's metrics.jsonl does not have each step once")
    note = ", ".join(f"{count} {name}" for name, count in counts.items())
    return Outcome(cases=cases, failures=failures, note=note)
