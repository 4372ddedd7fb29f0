"""Runs the proofs that faults and hostile input lose no data and change no number.

    python tools/torture.py [--minutes N] [--seed S] [--only NAME]...

Each proof in PROOFS runs in a separate process and prints a line with its result. A proof that
fails also prints its failures, and the exit code is 1. --minutes scales the number of cases to the
time; without it, each proof has the number of cases that docs/reliability.md reports. A proof is
skipped if the machine does not allow it, for example to mount a file system. Its line then says
why.
"""

import argparse
import contextlib
import io
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torture_checkpoints
import torture_devices
import torture_disk
import torture_files
import torture_inputs
import torture_kills
import torture_processes
import torture_readers
import torture_soak
import torture_store
from torture_runs import Outcome, Skipped

FULL_MINUTES = 180
"""Minutes of all proofs with all their cases, on two busy cores."""
FAILURES_SHOWN = 20
MEMORY_BYTES = 1 << 30


class Proof(NamedTuple):
    """run: a function of a seed and a number of cases. cases: the number of cases in full."""

    run: Callable[[int, int], Outcome]
    cases: int
    least: int = 1


def fuzz(torture: Callable[[int, int], list[str]], seed: int, cases: int) -> Outcome:
    """Runs a fuzz of damaged input. It also fails if the memory of the process grows too much."""
    failures = torture(seed, cases)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak > MEMORY_BYTES:
        failures.append(f"the process grew to {peak / 2**20:.0f} MiB")
    return Outcome(cases=cases, failures=failures, note=f"{peak / 2**20:.0f} MiB at most")


def fuzz_evals(seed: int, cases: int) -> list[str]:
    try:
        import torture_evals
    except ImportError as error:
        raise Skipped(f"needs {error.name}: pip install 'jaxcpt[evals]'") from None
    return torture_evals.torture(seed, cases)


PROOFS: dict[str, Proof] = {
    "kills": Proof(torture_kills.torture_one, 50, 2),
    "kills_of_two": Proof(torture_kills.torture_two, 50),
    "checkpoints": Proof(torture_checkpoints.torture, 300),
    "files": Proof(torture_files.torture, 200, 5),
    "disk": Proof(torture_disk.torture, 20, 4),
    "devices": Proof(torture_devices.torture, 3),
    "lost_process": Proof(torture_processes.torture_loss, 12, 3),
    "one_folder": Proof(torture_processes.torture_folder, 12, 3),
    "readers": Proof(torture_readers.torture, 200, 5),
    "store": Proof(torture_store.torture, 5),
    **{name: Proof(partial(fuzz, run), 5000) for name, run in torture_inputs.FUZZES.items()},
    "vectors": Proof(partial(fuzz, torture_files.fuzz_vectors), 5000),
    "evals": Proof(partial(fuzz, fuzz_evals), 5000),
    "soak": Proof(torture_soak.torture, 1800, 20),
}


def prove(name: str, seed: int, cases: int) -> bool:
    """Runs one proof and prints its line. Returns whether it holds."""
    begin = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            outcome = PROOFS[name].run(seed, cases)
    except Skipped as reason:
        print(f"{name}: SKIPPED: {reason}", flush=True)
        return True
    except Exception:
        outcome = Outcome(cases=cases, failures=[traceback.format_exc()])
    result = f"{len(outcome.failures)} FAILURES" if outcome.failures else "holds"
    note = f" ({outcome.note})" if outcome.note else ""
    seconds = time.monotonic() - begin
    print(f"{name}: {outcome.cases} cases{note}, {result}, {seconds:.0f} s", flush=True)
    for failure in outcome.failures[:FAILURES_SHOWN]:
        print(f"  {failure}", flush=True)
    return not outcome.failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=FULL_MINUTES)
    parser.add_argument("--seed", type=int, default=0)
    names = f"run this proof; may be repeated: {', '.join(PROOFS)}"
    parser.add_argument("--only", action="append", choices=PROOFS, metavar="NAME", help=names)
    arguments = parser.parse_args()
    scale = min(arguments.minutes / FULL_MINUTES, 1.0)
    chosen = arguments.only or list(PROOFS)
    if len(chosen) == 1:
        proof = PROOFS[chosen[0]]
        cases = max(proof.least, round(proof.cases * scale))
        sys.exit(not prove(chosen[0], arguments.seed, cases))
    failed = []
    for name in chosen:
        command = [sys.executable, __file__, "--only", name, "--seed", str(arguments.seed)]
        if subprocess.run([*command, "--minutes", str(arguments.minutes)]).returncode:
            failed.append(name)
    print(f"{len(chosen)} proofs, {len(failed)} failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
