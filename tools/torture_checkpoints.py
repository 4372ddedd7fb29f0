"""Damages the newest checkpoint in many ways, and checks that an exact state is restored.

Each case copies a folder with the steps 3 and 6, damages step 6, and restores as a reader and as a
trainer does. A case holds if it gives the exact state of step 6 or of step 3, or a UserError.
"""

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from torture_runs import Outcome, time_limit

from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.errors import UserError
from jaxcpt.manifest import manifest_of, write_manifest
from jaxcpt.update import TrainState

OLDER, NEWEST = 3, 6
SECONDS = 30
"""A case that takes more seconds counts as hanging."""


def make_state(step: int) -> TrainState:
    draw = np.random.default_rng(step)
    params = {"encoder": {"table": draw.normal(size=(64, 8)), "scale": draw.normal(size=(8,))}}
    params = jax.tree.map(lambda a: jax.numpy.asarray(a, np.float32), params)
    opt_state = {"mu": jax.tree.map(lambda a: a * 2, params)}
    step_done, bad_steps = jax.numpy.int32(step), jax.numpy.int32(0)
    return TrainState(step_done, params, opt_state, bad_steps=bad_steps)


def list_files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def choose_file(step: Path, rng: random.Random) -> Path:
    return rng.choice([path for path in list_files(step) if path.stat().st_size])


def flip_bits(path: Path, rng: random.Random, count: int = 1) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(count):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def replace_file(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def edit_manifest(step: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = manifest_of(step)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def copy_older(step: Path) -> None:
    """Copies step 3, with its manifest, to the number 6."""
    older = step.parent / str(OLDER)
    shutil.rmtree(step)
    shutil.copytree(older, step)
    shutil.copy(manifest_of(older), manifest_of(step))


def empty_step(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()
    manifest_of(step).write_text("{}")


def drop_folder(step: Path, rng: random.Random) -> None:
    shutil.rmtree(rng.choice([path for path in step.iterdir() if path.is_dir()]))


def write_over(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size))


def swap_files(step: Path, rng: random.Random) -> None:
    one, other = rng.sample(list_files(step), 2)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


Harm = Callable[[Path, random.Random], Any]
HARMS: dict[str, Harm] = {
    "a flipped bit": lambda s, r: flip_bits(choose_file(s, r), r),
    "many flipped bits": lambda s, r: flip_bits(choose_file(s, r), r, 50),
    "a file cut short": lambda s, r: os.truncate(f := choose_file(s, r), f.stat().st_size // 2),
    "a file made longer": lambda s, r: os.truncate(f := choose_file(s, r), f.stat().st_size + 9),
    "an empty file": lambda s, r: choose_file(s, r).write_bytes(b""),
    "a missing file": lambda s, r: choose_file(s, r).unlink(),
    "a folder for a file": lambda s, r: replace_file(choose_file(s, r), Path.mkdir),
    "a link loop for a file": lambda s, r: replace_file(choose_file(s, r), make_loop),
    "a pipe for a file": lambda s, r: replace_file(choose_file(s, r), os.mkfifo),
    "random bytes": lambda s, r: write_over(choose_file(s, r), r),
    "two files swapped": swap_files,
    "a missing folder": drop_folder,
    "an empty step": lambda s, r: empty_step(s),
    "a copy of another step": lambda s, r: copy_older(s),
    "no manifest": lambda s, r: manifest_of(s).unlink(),
    "half a manifest": lambda s, r: os.truncate(manifest_of(s), 40),
    "a deep manifest": lambda s, r: manifest_of(s).write_text("[" * 100_000),
    "a manifest of numbers": lambda s, r: manifest_of(s).write_text("[[1, 2], [3, 4]]"),
    "a manifest in UTF-16": lambda s, r: manifest_of(s).write_bytes('{"a": 1}'.encode("utf-16")),
    "a manifest without files": lambda s, r: edit_manifest(s, lambda m: {"step": 6, "files": {}}),
    "a manifest of odd names": lambda s, r: edit_manifest(
        s, lambda m: m["files"].update({r.choice(["\0", "../../x", "a" * 999, "\ud800"]): "x"})
    ),
    "a pipe for the manifest": lambda s, r: replace_file(manifest_of(s), os.mkfifo),
    "a folder for the manifest": lambda s, r: replace_file(manifest_of(s), Path.mkdir),
    "a link loop for the manifest": lambda s, r: replace_file(manifest_of(s), make_loop),
    "stray files": lambda s, r: (s / r.choice((".DS_Store", "params/Thumbs.db"))).touch(),
}
TOGETHER = [name for name in HARMS if "manifest" not in name and "step" not in name]
"""Kinds of damage after which a manifest can be written that agrees with the damaged files."""


def restore(folder: Path, keep: int | None) -> tuple[int, TrainState] | None:
    state = make_state(NEWEST)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
    with CheckpointStore(folder, keep) as store:

        def load(step: int) -> TrainState:
            store.read_meta(step)
            return store.restore(step, shapes)

        return store.find(load)


def judge(folder: Path, keep: int | None, forged: bool) -> str:
    """The outcome of a restore in words; a failure begins with `WRONG`.

    forged: the manifest was written after the damage.
    """
    try:
        with time_limit(SECONDS):
            found = restore(folder, keep)
    except UserError as refusal:
        return "refused" if "\n" not in str(refusal) else f"WRONG: {refusal}"
    except BaseException as error:
        return f"WRONG: {type(error).__name__}: {str(error)[:200]}"
    if found is None:
        return "WRONG: a new start"
    step, state = found
    same = jax.tree.map(np.array_equal, state, make_state(step))
    if all(jax.tree.leaves(same)):
        return f"step {step} exact"
    return "forged numbers" if forged else f"WRONG: other numbers of step {step}"


def torture(seed: int, cases: int) -> Outcome:
    """Runs `cases` cases. A reader and a trainer restore in each of them."""
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch, "saved", "checkpoints")
        with CheckpointStore(saved, keep=2) as store:
            for step in (OLDER, NEWEST):
                store.save(make_state(step), {"tokenizer": "a" * 64})
        for case in range(cases):
            name, forged = rng.choice(list(HARMS)), False
            folder = Path(shutil.copytree(saved, Path(scratch, str(case), "checkpoints")))
            HARMS[name](folder / str(NEWEST), rng)
            if name in TOGETHER and rng.random() < 0.5:
                write_manifest(folder / str(NEWEST))
                name, forged = f"{name}, and its manifest with it", True
            for keep in (None, 2):
                outcome = judge(folder, keep, forged)
                seen[outcome] += 1
                if outcome.startswith("WRONG"):
                    failures.append(f"case {case}, {name}: {outcome}")
            shutil.rmtree(folder.parent)
    note = ", ".join(f"{count} {outcome}" for outcome, count in sorted(seen.items()))
    return Outcome(cases=cases, failures=failures, note=f"as reader and trainer: {note}")
