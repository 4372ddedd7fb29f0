"""Connects the processes of one run, lets them agree, and ends them together.

In: a coordinator's address, or a TPU or Slurm environment that gives it. Out: processes that share
one JAX runtime. Only this module imports jax.distributed. It does not know what the processes
compute.
"""

import argparse
import contextlib
import ctypes
import glob
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcpt.config import Experiment
from jaxcpt.errors import INTERRUPTED, LOST_PEER, STOPPED, USER_ERROR, Stopped, UserError, leave
from jaxcpt.experiments import differences, from_json, to_json
from jaxcpt.run_folder import own_folder

HEARTBEAT_SECONDS = 10
_SIGNS_OF_LOSS = re.compile(r"(?i)gloo|nccl|unavailable|deadline|heartbeat|connection|coordinat")
_SURE_SIGNS_OF_LOSS = re.compile(r"(?i)gloo|nccl|coordination service|heartbeat|barrier")
_LOST = "another process is gone; start all of them again to resume at the last checkpoint"

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_tell_others = _Handler(lambda _: None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a command that several processes run together. `join` uses the values."""
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int, help="from 0; not needed on TPU VMs and in Slurm")
    parser.add_argument("--wait", type=int, default=300, help="seconds to wait for other processes")


def join(coordinator: str | None, count: int | None, process: int | None, wait: int) -> None:
    """Connects to the other processes, if there are any. Call it before any use of a device.

    coordinator: HOST:PORT of process 0. It needs `count` and `process` too. None: TPU VMs and Slurm
    provide all three. Raises UserError that names the processes missing after `wait` seconds.
    """
    if coordinator is None and not (count is None and process is None):
        raise UserError("--num-processes and --process-id go with --coordinator HOST:PORT")
    if coordinator is None and not _in_a_cluster():
        return
    if coordinator is not None and (count is None or process is None):
        raise UserError("--coordinator needs --num-processes and --process-id")
    if count is not None and process is not None and not 0 <= process < count:
        raise UserError(f"--process-id {process}: must be from 0 to {count - 1}")
    if coordinator is not None and count is not None and process is not None:
        _call_the_roll(coordinator, count, process, wait)
    _filter_stderr(f"jaxcpt: {_LOST}")
    jax.distributed.initialize(
        coordinator,
        count,
        process,
        initialization_timeout=wait,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    _take_signals_from_jax()


def _take_signals_from_jax() -> None:
    """Replaces the signal handlers that JAX installs, which are written in C.

    JAX's handler of SIGTERM notifies all processes, but it would ignore a second signal. It is
    therefore called only for the first one. JAX ends a process that lost the coordinator by an
    abort, which becomes the exit code of a lost process.
    """
    global _tell_others
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    _tell_others = _Handler(set_handler(signal.SIGTERM, None))
    set_handler(signal.SIGABRT, ctypes.cast(_leave_at_abort, ctypes.c_void_p))


@_Handler
def _leave_at_abort(_: int) -> None:
    os._exit(LOST_PEER)


def tell_others_to_stop() -> None:
    """Makes `agree_to_stop` return True on all processes soon. A signal handler may call it."""
    _tell_others(signal.SIGTERM)


def agree_to_stop(step: int, noted: bool) -> bool:
    """Whether to stop after this step. All processes must call it at each step.

    All processes get the same answer. JAX's preemption service chooses the step after the last one
    that any process has reached. The processes do not wait for each other or for a device.
    """
    if jax.process_count() == 1:
        return noted
    return multihost_utils.reached_preemption_sync_point(step)


def _call_the_roll(coordinator: str, count: int, process: int, wait: int) -> None:
    """Waits at the coordinator's port until all processes are there, before JAX uses the port.

    Otherwise JAX would abort a process that waited too long, without naming the missing processes.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator {coordinator}: must be HOST:PORT")
    failure = "connected, but not all processes are there"
    deadline = time.monotonic() + wait
    if process == 0:
        _await_others(int(port), count, wait, deadline)
        return
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection((host, int(port)), timeout=max(left, 0.1)) as line:
                line.sendall(process.to_bytes(4, "big"))
                if line.recv(1) == b"+":
                    return
        except OSError as error:
            failure = str(error)
        if left <= 0:
            raise UserError(
                f"process {process}: waited {wait} s for process 0 at {coordinator} and the "
                f"others: {failure}"
            )
        time.sleep(0.2)


def _await_others(port: int, count: int, wait: int, deadline: float) -> None:
    present: dict[int, socket.socket] = {}
    with socket.create_server(("", port), backlog=count) as server:
        while len(present) < count - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                line, _ = server.accept()
            except TimeoutError:
                missing = [str(p) for p in range(1, count) if p not in present]
                raise UserError(
                    f"process 0: waited {wait} s for {count} processes; did not come: "
                    f"{', '.join(missing)}"
                ) from None
            line.settimeout(1.0)
            with contextlib.suppress(OSError):  # it will connect again
                number = int.from_bytes(line.recv(4), "big")
                if 0 < number < count:  # it may be a port scan
                    present[number] = line
    for line in present.values():
        with contextlib.suppress(OSError), line:
            line.sendall(b"+")


# JAX aborts a process that loses the coordinator, or that receives nothing from another process for
# HEARTBEAT_SECONDS. The abort prints a stack trace, and Python cannot prevent it. Therefore a small
# second process reads the stderr of this one and prints one line instead of the trace. An error of
# the coordination service continues on lines without a prefix, so everything after it is dropped.
_STDERR_FILTER = """
import re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
lost = said = False
for line in sys.stdin:
    lost = lost or bool(re.match(r"[EF]\\d{4} .*(coordination_service|client\\.h)", line))
    stop = re.match(r"[IWE]\\d{4} .*preemption_|Additional GRPC error|:[A-Z_]+:Error", line)
    said = said or line.startswith("jaxcpt:")
    if line.startswith("jaxcpt:") or not (lost or stop or line.startswith("[Gloo]")):
        print(line, end="", file=sys.stderr, flush=True)
if lost and not said:
    print(sys.argv[1], file=sys.stderr)
"""


def _filter_stderr(farewell: str) -> None:
    command = [sys.executable, "-c", _STDERR_FILTER, farewell]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()


def _in_a_cluster() -> bool:
    """Whether JAX can find the other processes without a coordinator's address."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return True
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_goes_first(name: str) -> Iterator[None]:
    """A context that the first process runs before all others, so that they find what it wrote."""
    if jax.process_count() == 1:
        yield
        return
    if not is_first():
        multihost_utils.sync_global_devices(name)
    yield
    if is_first():
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether `flag` is true on any process. All processes must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


@contextlib.contextmanager
def own_together(run_dir: Path) -> Iterator[None]:
    """A context in which the first process owns the run folder for all processes.

    If it cannot own the folder, all processes raise UserError.
    """
    refusal = None
    with contextlib.ExitStack() as stack:
        if is_first():
            try:
                stack.enter_context(own_folder(run_dir))
            except UserError as error:
                refusal = error
        if any_process(refusal is not None):
            raise refusal or UserError(f"{run_dir}: process 0 cannot write there; see its message")
        yield


def check_agreement(experiment: Experiment) -> None:
    """Raises UserError on all processes if one of them runs another experiment, and names it."""
    if jax.process_count() == 1:
        return
    own = np.frombuffer(to_json(experiment).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(own)))
    padded = np.pad(own, (0, int(lengths.max()) - len(own)))
    texts = [
        bytes(row[:length]).decode()
        for row, length in zip(multihost_utils.process_allgather(padded), lengths, strict=True)
    ]
    for process, text in enumerate(texts):
        if text != texts[0]:
            found = differences(from_json(texts[0], "process 0"), from_json(text, "another"))
            raise UserError(
                f"process {process} runs another experiment than process 0: {'; '.join(found)}"
            )


def is_loss(error: Exception) -> bool:
    """Whether the error means that another process is gone.

    JAX raises several types of error for this. For other types than JaxRuntimeError, the text must
    contain words that do not occur in errors of a disk or a store.
    """
    if jax.process_count() == 1:
        return False
    if isinstance(error, jax.errors.JaxRuntimeError):
        return bool(_SIGNS_OF_LOSS.search(str(error)))
    return bool(_SURE_SIGNS_OF_LOSS.search(str(error)))


def run_together(work: Callable[[], None]) -> None:
    """Runs `work`. If another process dies meanwhile, ends this process at once with one line.

    A clean shutdown of JAX waits for all processes. After an error the others would not reach it,
    so this process ends without one. The next start resumes from the last finished checkpoint.
    """
    try:
        work()
    except (UserError, OSError, Stopped) as end:
        if jax.process_count() == 1:
            raise
        if isinstance(end, OSError) and is_loss(end):  # orbax waited for the process
            leave(LOST_PEER, f"{_LOST} ({' '.join(str(end).split())[:200]})")
        leave(STOPPED if isinstance(end, Stopped) else USER_ERROR, " ".join(str(end).split()))
    except KeyboardInterrupt:
        if jax.process_count() == 1:
            raise
        leave(INTERRUPTED, "interrupted")
    except Exception as error:
        if jax.process_count() == 1:
            raise
        reason = " ".join(str(error).split())[:200]
        if is_loss(error):
            leave(LOST_PEER, f"{_LOST} ({reason})")
        traceback.print_exc()
        os._exit(1)
