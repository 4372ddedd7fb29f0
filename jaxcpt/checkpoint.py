"""Saves the training state, verifies what was saved, and restores the newest whole step.

In: a `TrainState` and facts about it (meta). Out: the same state, on any mesh. Frozen parameters
are saved once, beside the checkpoints; each checkpoint records their fingerprint.

Only this module imports orbax. Orbax does not notice a flipped bit in an array, does not fall back
to an older step, and reports a failed write only at the next save. Therefore every step gets a
manifest of sha256 sums as soon as its save has finished. A step is whole if its files agree with
its manifest. Only whole steps count as saved.
"""

import functools
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxcpt.adapter import join_params
from jaxcpt.errors import UserError
from jaxcpt.files import hash_file, make_absolute, remove_tree
from jaxcpt.manifest import SUFFIX, UNFINISHED, check_manifest, manifest_of, write_manifest
from jaxcpt.model import Params
from jaxcpt.processes import any_process, is_loss
from jaxcpt.update import TrainState

# For an error that it also raises, orbax logs hundreds of lines. `CheckpointStore` prints one line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


@functools.cache
def _hush_orbax() -> None:
    """Hides the tracebacks of Orbax's writers after a failure, which is reported in one line."""
    show = sys.unraisablehook
    known = ("Event loop is closed", "Encountered error while reading array index")

    def show_others(raised: Any) -> None:
        if not str(raised.exc_value).startswith(known):
            show(raised)

    sys.unraisablehook = show_others
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # hides writes to a closed event loop
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


T = TypeVar("T")
MOST_TRIES = 100
"""A reader gives up after this many steps if the run deletes them before they are read."""
LARGEST_STEP = 2**31 - 1
ORBAX_MARK = "_CHECKPOINT_METADATA"  # a file in the folder of each step


class DamagedCheckpoint(UserError):
    """A saved step that cannot be read."""


class CheckpointStore:
    """The checkpoints folder of a run, as a context manager whose exit waits for the last save."""

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        """keep: how many steps to keep. None: only read, which is safe while a run writes."""
        self.folder, self.base_folder, self.keep = folder, folder.parent / "base", keep
        self.checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self.prover = ThreadPoolExecutor(max_workers=1)
        self.proof: Future[None] | None = None
        self.newest_whole: int | None = None
        _hush_orbax()
        if keep is not None and jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():  # remove what a killed save left
                if re.fullmatch(r"\d+\.orbax-checkpoint-tmp.*", path.name):
                    remove_tree(path)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.finish()
        finally:
            self.prover.shutdown()
            with suppress(Exception):  # it may raise again the error that `finish` raised
                self.checkpointer.close()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts to save the state under its step. The arrays are copied, so training may go on.

        `save_base` must have saved the frozen parameters. Raises UserError if the last save failed.
        """
        self.finish()
        meta = meta | {"previous": self.newest_whole}
        if bad_steps := int(jax.device_get(state.bad_steps)):
            meta = meta | {"bad_steps": bad_steps}
        if state.base:
            meta = meta | {"base": hash_file(manifest_of(self.base_folder / "0"))}
        self._begin_save(
            int(jax.device_get(state.step)),
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            meta=ocp.args.JsonSave(meta),
        )

    def save_base(self, base: Params) -> None:
        """Saves the frozen parameters, if the run has any, and waits until they are verified."""
        if not base:
            return
        with CheckpointStore(self.base_folder, keep=1) as kept:
            kept._begin_save(0, params=ocp.args.StandardSave(base))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("base")  # all read its manifest

    def _begin_save(self, step: int, **items: Any) -> None:
        """Starts a save. It replaces a damaged step of the same number."""
        folder = self._folder_of(step)
        if jax.process_index() == 0 and folder.exists():
            if not self._is_ours(step):
                raise UserError(f"{folder}: not written by this run; move it away and start again")
            manifest_of(folder).unlink(missing_ok=True)
        self._naming_failure(
            step,
            lambda: self.checkpointer.save(
                make_absolute(folder), args=ocp.args.Composite(**items), force=True
            ),
        )
        # Verify now and not at the next save, because the run may be killed in between.
        self.proof = self.prover.submit(self._prove, step)

    def finish(self) -> None:
        """Waits until the current save has its manifest. Raises UserError if the save failed."""
        if self.proof is not None:
            proof, self.proof = self.proof, None
            proof.result()

    def _prove(self, step: int) -> None:
        folder = self._folder_of(step)
        self._naming_failure(step, self.checkpointer.wait_until_finished)
        if not folder.is_dir():
            raise UserError(f"{self.folder}: step {step} did not reach the disk; is it full?")
        if jax.process_index() == 0:
            self._naming_failure(step, lambda: write_manifest(folder))
            self._delete_old(step)
        self.newest_whole = step

    def _naming_failure(self, step: int, write: Callable[[], None]) -> None:
        try:
            write()
        except jax.errors.JaxRuntimeError:  # another process is gone
            raise
        except Exception as error:  # orbax raises whatever its storage raised
            if is_loss(error):
                raise
            raise UserError(
                f"{self.folder}: step {step} could not be saved: {_shorten(error)}"
            ) from error

    def _delete_old(self, step: int) -> None:
        """Deletes all but the newest `keep` steps up to `step`. Newer steps are damaged and stay,
        until training reaches and replaces them."""
        assert self.keep is not None
        for old in [old for old in self.steps() if old <= step and self._is_ours(old)][
            : -self.keep
        ]:
            # The manifest goes first, so that a reader does not take half a step for a whole one.
            manifest_of(self._folder_of(old)).unlink(missing_ok=True)
            _remove_step(self._folder_of(old))

    def _is_ours(self, step: int) -> bool:
        """Whether a run wrote this step: it has orbax's mark or a manifest, or it is empty."""
        folder = self._folder_of(step)
        marked = (folder / ORBAX_MARK).is_file() or manifest_of(folder).is_file()
        return marked or not any(folder.iterdir())

    def steps(self) -> list[int]:
        """The steps that have a folder, oldest first. `find` and `read` check which are whole."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        numbers = [int(name) for name in names if re.fullmatch("0|[1-9][0-9]{,9}", name)]
        return sorted(n for n in numbers if n <= LARGEST_STEP and self._folder_of(n).is_dir())

    def find(self, load: Callable[[int], T]) -> tuple[int, T] | None:
        """The newest whole step that `load` can read, and the result of `load`.

        All processes get the same step. None if no save was ever completed. Raises UserError if
        steps were saved but none of them is whole.
        """
        unreadable: dict[int, str] = {}
        for _ in range(MOST_TRIES):
            step = self._find_whole(unreadable)
            if step is None:
                return None
            failure = ""
            try:
                loaded = load(step)
            except (DamagedCheckpoint, OSError) as error:
                failure = str(error)
            gone = not manifest_of(self._folder_of(step)).is_file()  # the run has deleted it
            if not any_process(bool(failure) or gone):
                self.newest_whole = step
                return step, loaded
            if not any_process(gone):
                unreadable[step] = failure or "another process cannot read it"
        raise UserError(f"{self.folder}: steps are deleted faster than they are read; raise `keep`")

    def _find_whole(self, unreadable: Mapping[int, str]) -> int | None:
        """The newest whole step. The first process looks for it and sends it to all."""
        whole, refusal = -1, None
        if jax.process_index() == 0:
            try:
                whole = self._look(unreadable)
            except UserError as error:
                refusal = error
        if any_process(refusal is not None):
            raise refusal or UserError(f"{self.folder}: no whole checkpoint; see process 0")
        if jax.process_count() > 1:
            whole = int(multihost_utils.broadcast_one_to_all(np.int32(whole)))
        return None if whole < 0 else whole

    def _look(self, unreadable: Mapping[int, str]) -> int:
        """The newest whole step, or -1 if no save was ever completed. unreadable: steps that could
        not be loaded, with the reason."""
        before: dict[int, str] | None = None
        while True:
            whole, problems = -1, {}
            for step in reversed(self.steps()):
                problem = unreadable.get(step) or check_manifest(self._folder_of(step))
                if problem is None:
                    whole = step
                    break
                if problem != UNFINISHED and not manifest_of(self._folder_of(step)).exists():
                    continue  # the run deleted it during the check
                problems[step] = problem
            if whole >= 0 or problems == before:
                break
            before = problems  # look again: a running training may have just finished a save
            time.sleep(0.2)
        if whole < 0 and problems and not self._is_first_save(problems):
            raise UserError(self._explain(problems))
        stays = "" if self.keep is None else "; it stays until its number is saved again"
        for step, problem in problems.items():
            print(f"checkpoint of step {step} is damaged, trying an older one: {problem}{stays}")
        return whole

    def _is_first_save(self, problems: Mapping[int, str]) -> bool:
        """Whether the folder holds only the run's first save, which was interrupted."""
        (step, problem), *others = problems.items()
        if others or problem != UNFINISHED or not self._is_ours(step):
            return False
        try:
            return self.read_meta(step).get("previous", step) is None
        except DamagedCheckpoint:
            return False

    def _explain(self, problems: Mapping[int, str]) -> str:
        damages = "; ".join(f"step {step}: {problem}" for step, problem in problems.items())
        return (
            f"{self.folder}: no whole checkpoint ({damages}); put a copy of a step and its "
            f"{SUFFIX} back, or move the folder away to start over"
        )

    def read(self, load: Callable[[int], T], step: int | None = None) -> tuple[int, T]:
        """Like `find`, or reads exactly `step`. Raises UserError if there is no whole step."""
        if step is None:
            if (found := self.find(load)) is None:
                raise UserError(f"{self.folder}: no whole checkpoint; train the run first")
            return found
        if step not in self.steps():
            have = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.folder}: no checkpoint of step {step}; there are: {have}")
        if problem := check_manifest(self._folder_of(step)):
            raise UserError(f"{self.folder}: checkpoint of step {step} is damaged: {problem}")
        try:
            return step, load(step)
        except (DamagedCheckpoint, OSError) as error:
            if manifest_of(self._folder_of(step)).is_file():
                raise
            deleted = f"{self.folder}: the run has deleted step {step} while it was read"
            raise UserError(f"{deleted}; choose a newer one") from error

    def choose(self, step: int | None = None) -> int:
        """Returns `step` if it is whole. None: the newest whole step. Raises UserError."""
        return self.read(lambda _: None, step)[0]

    def restore(self, step: int, shapes: TrainState) -> TrainState:
        """The state of a step. shapes: ShapeDtypeStructs with the shardings of the result."""
        restored = self._restore(
            step,
            params=ocp.args.StandardRestore(shapes.params),
            opt_state=ocp.args.StandardRestore(shapes.opt_state),
        )
        numbers = (step, self.read_meta(step).get("bad_steps", 0))
        at, bad_steps = (
            jax.make_array_from_callback(
                (), shapes.step.sharding, np.array(number, np.int32).__getitem__
            )
            for number in numbers
        )
        base = self.restore_base(step, shapes.base)
        return TrainState(at, restored["params"], restored["opt_state"], base, bad_steps)

    def restore_base(self, step: int, shapes: Params) -> Params:
        """The frozen parameters of a step. Raises UserError if their fingerprint is another."""
        if not shapes:
            return {}
        with CheckpointStore(self.base_folder) as kept:
            kept.choose(0)
            found, wanted = kept.fingerprint(0), str(self.read_meta(step).get("base"))
            if found != wanted:
                raise UserError(
                    f"{self.base_folder}: step {step} was trained with other frozen parameters "
                    f"(sha256 {wanted[:12]}, found {found[:12]}); put the run's own folder back"
                )
            return kept.restore_params(0, shapes)

    def restore_encoder(self, step: int, shapes: TrainState) -> Params:
        """All parameters of the encoder, trained and frozen, for embedding and evaluation."""
        trained = self.restore_params(step, shapes.params)["encoder"]
        return join_params(self.restore_base(step, shapes.base), trained)

    def restore_params(self, step: int, shapes: Any) -> Any:
        """The trained parameters of a step, without the optimizer state."""
        return self._restore(step, params=ocp.args.StandardRestore(shapes))["params"]

    def read_meta(self, step: int) -> dict[str, Any]:
        meta = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
        if not isinstance(meta, dict):
            raise DamagedCheckpoint("its meta is not a JSON object")
        return meta

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self.checkpointer.restore(
                make_absolute(self._folder_of(step)), args=ocp.args.Composite(**items)
            )
        except jax.errors.JaxRuntimeError:  # another process is gone, or the memory is full
            raise
        except Exception as error:  # orbax raises many kinds of errors
            if is_loss(error):
                raise
            raise DamagedCheckpoint(f"it cannot be read: {_shorten(error)}") from error

    def fingerprint(self, step: int) -> str:
        """sha256 of a step's manifest, which covers every file of the step."""
        return hash_file(manifest_of(self._folder_of(step)))

    def _folder_of(self, step: int) -> Path:
        return self.folder / str(step)


def _remove_step(folder: Path) -> None:
    """Deletes a step. Orbax's mark goes last, so that the next start recognises the folder and
    deletes the rest if the run is killed here."""
    for path in folder.iterdir():
        if path.name != ORBAX_MARK:
            remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
    remove_tree(folder)


def save_params(folder: Path, params: Any, meta: dict[str, Any]) -> None:
    """Saves parameters without optimizer state as step 0 of a new folder, one array at a time.

    params: NumPy arrays. An array that is mapped from a file is not copied, so the memory holds
    little more than the largest array. Raises UserError if the parameters cannot be written.
    """
    host = jax.local_devices(backend="cpu")[0]
    arrays = jax.tree.map(lambda a: jax.device_put(a, host, may_alias=True), params)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    # The pieces are small, because each piece is compressed in additional memory.
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=1 << 24), arrays)
    one_by_one = ocp.StandardCheckpointHandler(save_concurrent_gb=1.01 * largest / 1e9)
    handler = ocp.CompositeCheckpointHandler(params=one_by_one, meta=ocp.JsonCheckpointHandler())
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(arrays, save_args=pieces), meta=ocp.args.JsonSave(meta)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(make_absolute(folder / "0"), args=items)
    except Exception as error:  # orbax raises whatever its storage raised
        raise UserError(
            f"{folder}: the parameters could not be saved: {_shorten(error)}"
        ) from error
    write_manifest(folder / "0")


def _shorten(error: Exception) -> str:
    """The error in one line. tensorstore's messages fill pages and end with the cause, so the
    middle is left out."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r" \[[a-z_ ]+='.*", "", text)
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-190:]}"
