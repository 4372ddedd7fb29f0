"""The processes of one run: how they meet, agree, and leave together. Sole home of jax.distributed.

In: a coordinator's address, or a TPU or Slurm environment that tells it. Out: processes that share
one JAX runtime. It knows nothing of what they compute.
"""

import glob
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcpt.config import Experiment, Refusal, differences, from_json, to_json

HEARTBEAT_SECONDS = 10
LOST_PEER = 3  # the exit code of a process that has lost another


def join(coordinator: str | None, count: int | None, process: int | None, wait: int) -> None:
    """Joins the other processes, if there are any to join; before anything touches a device.

    With a coordinator's HOST:PORT, the number of processes and this one's are needed too; without,
    TPU VMs and Slurm tell. Raises Refusal naming who did not come within `wait` seconds.
    """
    if coordinator is None and not (count is None and process is None):
        raise Refusal("--num-processes and --process-id go with --coordinator HOST:PORT")
    if coordinator is None and not _in_a_cluster():
        return
    if coordinator is not None and (count is None or process is None):
        raise Refusal("--coordinator needs --num-processes and --process-id")
    if count is not None and process is not None and not 0 <= process < count:
        raise Refusal(f"--process-id {process}: must be from 0 to {count - 1}")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            process,
            initialization_timeout=wait,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Refusal(
            f"process {process} of {count}: not all came to {coordinator} within {wait} s: {reason}"
        ) from None


def _in_a_cluster() -> bool:
    """Whether JAX can find the other processes by itself."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return True
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


@contextmanager
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
    """Raises Refusal, on all processes, naming the first that runs another experiment."""
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
            raise Refusal(
                f"process {process} runs another experiment than process 0: {'; '.join(found)}"
            )


def run_together(work: Callable[[], None]) -> None:
    """Runs `work`; when another process dies in the middle, leaves with one line at once.

    A clean shutdown would wait for the dead one, so this process is ended as it stands. What the
    last finished checkpoint holds is safe, and the next start goes on from it.
    """
    try:
        work()
    except Refusal as refusal:
        if jax.process_count() == 1:
            raise
        print(f"jaxcpt: {refusal}", file=sys.stderr, flush=True)
        os._exit(2)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = json.dumps(" ".join(str(error).split())[:200])
        print(
            f"jaxcpt: process {jax.process_index()} of {jax.process_count()}: another process is "
            f"gone; start all again to resume: {reason}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST_PEER)
