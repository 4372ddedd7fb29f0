"""The processes of one run: how they meet, agree, and leave together. Sole home of jax.distributed.

In: a coordinator's address, or a TPU or Slurm environment that tells it. Out: processes that share
one JAX runtime. It knows nothing of what they compute.
"""

import contextlib
import glob
import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcpt.config import Experiment
from jaxcpt.errors import UserError
from jaxcpt.experiments import differences, from_json, to_json

HEARTBEAT_SECONDS = 10
LOST_PEER = 3  # the exit code of a process that has lost another
_SIGNS_OF_LOSS = re.compile(r"(?i)gloo|nccl|unavailable|deadline|heartbeat|connection|coordinat")
_LOST = "another process is gone; start all of them again to resume at the last checkpoint"


def join(coordinator: str | None, count: int | None, process: int | None, wait: int) -> None:
    """Joins the other processes, if there are any to join; before anything touches a device.

    With a coordinator's HOST:PORT, the number of processes and this one's are needed too; without,
    TPU VMs and Slurm tell. Raises UserError naming who did not come within `wait` seconds.
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


def _call_the_roll(coordinator: str, count: int, process: int, wait: int) -> None:
    """Waits until all processes are there, at the coordinator's port, before JAX listens to it.

    JAX would end a process that waits in vain by an abort, and never tell whom it waited for.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator {coordinator}: must be HOST:PORT")
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
        except OSError:
            pass
        if left <= 0:
            raise UserError(
                f"process {process}: waited {wait} s for process 0 at {coordinator} and the others"
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
            with contextlib.suppress(OSError):  # whoever it was will come again
                number = int.from_bytes(line.recv(4), "big")
                if 0 < number < count:  # and not a port scan
                    present[number] = line
    for line in present.values():
        with contextlib.suppress(OSError), line:
            line.sendall(b"+")


# JAX ends a process that loses the coordinator, or hears nothing of a peer for HEARTBEAT_SECONDS,
# by an abort with a stack trace of its own, before Python can say anything. What that writes is
# read by a small process of its own, which says the one line that matters instead.
_STDERR_FILTER = """
import re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lost = said = False
for line in sys.stdin:
    lost = lost or bool(re.match(r"[EF]\\d{4} .*(coordination_service|client\\.h)", line))
    said = said or line.startswith("jaxcpt:")
    if line.startswith("jaxcpt:") or not (lost or line.startswith("[Gloo]")):
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
    """Whether JAX can find the other processes by itself."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return True
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_goes_first(name: str) -> Iterator[None]:
    """The first process runs the block alone and then all others: what it writes, they find."""
    if jax.process_count() == 1:
        yield
        return
    if not is_first():
        multihost_utils.sync_global_devices(name)
    yield
    if is_first():
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether it is set on any process. All must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def check_agreement(experiment: Experiment) -> None:
    """Raises UserError, on all processes, naming the first that runs another experiment."""
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


def run_together(work: Callable[[], None]) -> None:
    """Runs `work`; when another process dies in the middle, leaves with one line at once.

    After any error the others will not come to a clean shutdown, which would wait for them, so
    this process is ended as it stands. What the
    last finished checkpoint holds is safe, and the next start goes on from it.
    """
    try:
        work()
    except (UserError, OSError) as refusal:
        if jax.process_count() == 1:
            raise
        print(f"jaxcpt: {refusal}", file=sys.stderr, flush=True)
        os._exit(2)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, jax.errors.JaxRuntimeError) and _SIGNS_OF_LOSS.search(reason):
            print(f"jaxcpt: {_LOST} ({reason})", file=sys.stderr, flush=True)
            os._exit(LOST_PEER)
        traceback.print_exc()
        os._exit(1)
