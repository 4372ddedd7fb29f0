"""Saves the state, proves what it saved, restores the newest whole step onto any mesh.

In: a `TrainState` and facts about it (meta). Out: the same on any number of devices. Frozen
parameters are saved once, beside the checkpoints, which name their fingerprint.

Sole home of orbax, which neither notices a flipped bit in an array nor falls back to an older step,
and which reports a failed write only at the next save. So every step gets a manifest of sha256
sums, written as soon as the save has finished, and only a step that agrees with its manifest counts
as saved.
"""

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxcpt.adapter import join_params
from jaxcpt.errors import UserError
from jaxcpt.files import hash_file, write_file
from jaxcpt.model import Params
from jaxcpt.update import TrainState

# It logs hundreds of lines about what it also raises, which `CheckpointStore` tells in one.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class CheckpointStore:
    """The checkpoints folder of a run. A context manager: leaving it finishes the last save."""

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        """keep: how many steps to keep. None: only reads, and so leaves alone what a training
        run may be writing at this moment."""
        self.folder, self.base_folder = folder, folder.parent / "base"
        self.manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=keep is not None,
                cleanup_tmp_directories=keep is not None,
                enable_async_checkpointing=True,
            ),
        )
        self.prover = ThreadPoolExecutor(max_workers=1)
        self.proof: Future[None] | None = None

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.finish()
        finally:
            self.prover.shutdown()
            with suppress(Exception):  # it raises again what `finish` has told
                self.manager.close()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Begins a save of the state's step; arrays are copied, so training may go on at once.

        Its frozen parameters must have been saved by `save_base`. Raises UserError where the save
        before it did not reach the disk.
        """
        if bad_steps := int(jax.device_get(state.bad_steps)):
            meta = meta | {"bad_steps": bad_steps}
        if state.base:
            meta = meta | {"base": hash_file(_manifest_of(self.base_folder / "0"))}
        self._begin_save(
            int(jax.device_get(state.step)),
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            meta=ocp.args.JsonSave(meta),
        )

    def save_base(self, base: Params) -> None:
        """Saves the frozen parameters of a run that has some; returns when they are proven."""
        if not base:
            return
        with CheckpointStore(self.base_folder, keep=1) as kept:
            kept._begin_save(0, params=ocp.args.StandardSave(base))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("base")  # all read the first one's manifest

    def _begin_save(self, step: int, **items: Any) -> None:
        self.finish()
        self.discard_after(step - 1)  # none of them is whole, or training would be beyond them
        self.manager.save(step, args=ocp.args.Composite(**items))
        # At once and not at the next save: a run killed in between must find this step whole.
        self.proof = self.prover.submit(self._prove, step)

    def finish(self) -> None:
        """Waits until the save under way has its manifest."""
        if self.proof is not None:
            proof, self.proof = self.proof, None
            proof.result()

    def _prove(self, step: int) -> None:
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
            written = self._folder_of(step).is_dir()
            if written and jax.process_index() == 0:
                write_manifest(self._folder_of(step))
        except Exception as error:  # orbax raises whatever its storage raised
            raise UserError(f"{self.folder}: step {step} could not be saved: {error}") from error
        if not written:
            raise UserError(f"{self.folder}: step {step} did not reach the disk; is it full?")

    def steps(self) -> list[int]:
        """Steps that claim to be saved, oldest first; `find_whole` says which are."""
        return sorted(self.manager.all_steps())

    def find_whole(self) -> int | None:
        """The newest step that agrees with its manifest, the same on every process."""
        whole = -1
        if jax.process_index() == 0:
            for step in reversed(self.steps()):
                if problem := check_manifest(self._folder_of(step)):
                    print(f"checkpoint of step {step} is damaged, trying an older one: {problem}")
                else:
                    whole = step
                    break
        if jax.process_count() > 1:
            whole = int(multihost_utils.broadcast_one_to_all(np.int32(whole)))
        return None if whole < 0 else whole

    def choose(self, step: int | None) -> int:
        """`step` if it is saved and whole, or the newest that is. Raises UserError."""
        if step is None:
            if (whole := self.find_whole()) is None:
                raise UserError(f"{self.folder}: no whole checkpoint; train the run first")
            return whole
        if step not in self.steps():
            have = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self.folder}: no checkpoint of step {step}; there are: {have}")
        if problem := check_manifest(self._folder_of(step)):
            raise UserError(f"{self.folder}: checkpoint of step {step} is damaged: {problem}")
        return step

    def restore(self, step: int, shapes: TrainState) -> TrainState:
        """The state of a step, laid out as the shardings in `shapes` (ShapeDtypeStructs) say."""
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(shapes.params),
                opt_state=ocp.args.StandardRestore(shapes.opt_state),
            ),
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
        """The frozen parameters that a step belongs to. Raises UserError where others are there."""
        if not shapes:
            return {}
        with CheckpointStore(self.base_folder) as kept:
            kept.choose(0)
            found, wanted = kept.fingerprint(0), self.read_meta(step)["base"]
            if found != wanted:
                raise UserError(
                    f"{self.base_folder}: other frozen parameters than step {step} was trained "
                    f"with (sha256 {found[:12]}, expected {wanted[:12]}); put its own folder back"
                )
            return kept.restore_params(0, shapes)

    def restore_encoder(self, step: int, shapes: TrainState) -> Params:
        """The encoder's whole parameters, for embedding and evaluation."""
        trained = self.restore_params(step, shapes.params)["encoder"]
        return join_params(self.restore_base(step, shapes.base), trained)

    def restore_params(self, step: int, shapes: Any) -> Any:
        """What was trained, without the optimizer's state."""
        args = ocp.args.Composite(params=ocp.args.StandardRestore(shapes))
        return self.manager.restore(step, args=args)["params"]

    def read_meta(self, step: int) -> dict[str, Any]:
        return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
            "meta"
        ]

    def fingerprint(self, step: int) -> str:
        """sha256 over all that a whole step holds: the same sum, the same parameters."""
        return hash_file(_manifest_of(self._folder_of(step)))

    def discard_after(self, step: int) -> None:
        """Deletes damaged newer steps, so that training can save them again."""
        for newer in self.steps():
            if newer > step:
                self.manager.delete(newer)
                _manifest_of(self._folder_of(newer)).unlink(missing_ok=True)

    def _folder_of(self, step: int) -> Path:
        return self.folder / str(step)


def save_params(folder: Path, params: Any, meta: dict[str, Any]) -> None:
    """Saves parameters alone as step 0 of a new folder, one array after another.

    params: NumPy arrays. Those mapped from files are used where they lie, so that hardly more than
    the largest is ever in memory. Raises UserError where the disk is full.
    """
    host = jax.local_devices(backend="cpu")[0]
    arrays = jax.tree.map(lambda a: jax.device_put(a, host, may_alias=True), params)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    # Pieces this small: each is compressed in memory of its own.
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=1 << 24), arrays)
    one_by_one = ocp.StandardCheckpointHandler(save_concurrent_gb=1.01 * largest / 1e9)
    handlers = {"params": one_by_one, "meta": ocp.JsonCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    try:
        with ocp.CheckpointManager(
            folder.resolve(), options=options, item_handlers=handlers
        ) as manager:
            manager.save(
                0,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(arrays, save_args=pieces),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
    except Exception as error:  # orbax raises whatever its storage raised
        raise UserError(f"{folder}: the parameters could not be saved: {error}") from error
    write_manifest(folder / "0")


def check_tokenizer(fingerprint: str, meta: dict[str, Any], run_dir: Path) -> None:
    """Raises UserError where a checkpoint's embeddings belong to another tokenizer's ids."""
    if meta["tokenizer"] != fingerprint:
        raise UserError(
            f"{run_dir / 'tokenizer'}: another vocabulary than the checkpoint was trained with "
            f"(sha256 {fingerprint[:12]}, expected {meta['tokenizer'][:12]}); put its own one back"
        )


def _manifest_of(step_folder: Path) -> Path:
    return step_folder.parent / f"{step_folder.name}.sha256.json"


def hash_files(step_folder: Path) -> dict[str, str]:
    """sha256 of every file of a saved step, by its path in the step's folder."""
    sums = {}
    for path in sorted(step_folder.rglob("*")):
        if path.is_file():
            sums[path.relative_to(step_folder).as_posix()] = hash_file(path)
    return sums


def write_manifest(step_folder: Path) -> None:
    write_file(_manifest_of(step_folder), json.dumps(hash_files(step_folder), indent=0))
    for other in step_folder.parent.glob("*.sha256.json"):  # of steps that were not kept
        if not (step_folder.parent / other.name.split(".")[0]).is_dir():
            other.unlink()


def check_manifest(step_folder: Path) -> str | None:
    """What is wrong with a saved step; None if nothing is."""
    try:
        promised = dict(json.loads(_manifest_of(step_folder).read_text()))
    except FileNotFoundError:
        return "its save did not finish"
    except (ValueError, TypeError):
        return "its manifest does not parse"
    found = hash_files(step_folder)
    for name in sorted({*promised, *found}):
        if promised.get(name) != found.get(name):
            return f"{name} is not as it was written"
    return None
