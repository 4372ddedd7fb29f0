"""Saves are verified. Damage of any kind is found and reported, and an older step is used."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torture
from conftest import REPOSITORY
from jax.sharding import NamedSharding, PartitionSpec

from jaxcpt import checkpoint as checkpoint_module
from jaxcpt.checkpoint import CheckpointStore, save_params
from jaxcpt.config import Mesh
from jaxcpt.errors import UserError
from jaxcpt.manifest import check_manifest, write_manifest
from jaxcpt.sharding import make_mesh
from jaxcpt.update import TrainState

META = {"tokenizer": "a" * 64, "experiment": "tiny"}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(Mesh(data=2, fsdp=2, tensor=2))


def make_state(mesh, step, seed=0, rows=64):
    """A state with leaves of unusual sizes, sharded over the mesh."""
    draw = np.random.default_rng([seed, step])
    params = {
        "encoder": {"table": draw.normal(size=(rows, 8)).astype(np.float32)},
        "log_scale": np.float32(draw.normal()),
    }
    opt_state = ((), {"count": np.int32(step), "mu": jax.tree.map(lambda a: a * 2, params)})
    state = TrainState(np.int32(step), params, opt_state)

    def place(leaf):
        spec = PartitionSpec("tensor", "fsdp") if np.ndim(leaf) == 2 else PartitionSpec()
        return jax.device_put(jnp.asarray(leaf), NamedSharding(mesh, spec))

    return jax.tree.map(place, state)


def shapes_of(state):
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )


def assert_equal(one, other):
    chex.assert_trees_all_equal(one, other)


@pytest.fixture(scope="module")
def saved(mesh, tmp_path_factory):
    """A folder with the steps 3 and 6."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with CheckpointStore(folder, keep=2) as checkpoints:
        for step in (3, 6):
            checkpoints.save(make_state(mesh, step), META)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def find_newest(folder):
    with CheckpointStore(folder) as checkpoints:
        return checkpoints.choose()


def test_restores_bit_for_bit_onto_any_mesh(mesh, saved):
    state = make_state(mesh, 6)
    other = make_state(make_mesh(Mesh(data=1, tensor=2), jax.devices()[:2]), 6)
    with CheckpointStore(saved) as checkpoints:
        assert checkpoints.steps() == [3, 6]
        assert checkpoints.choose(None) == 6
        assert checkpoints.choose(3) == 3
        assert checkpoints.read_meta(6) == META | {"previous": 3}
        for wanted in (state, other):
            found = checkpoints.restore(6, shapes_of(wanted))
            assert_equal(found, state)
            assert int(found.step) == 6
            layouts = [[leaf.sharding for leaf in jax.tree.leaves(t)] for t in (found, wanted)]
            assert layouts[0] == layouts[1]
            assert_equal(checkpoints.restore_params(6, shapes_of(wanted).params), state.params)


def test_keeps_as_many_as_asked_and_no_manifest_of_others(mesh, folder):
    with CheckpointStore(folder, keep=2) as checkpoints:
        checkpoints.save(make_state(mesh, 9), META)
    assert sorted(path.name for path in folder.iterdir()) == [
        "6",
        "6.sha256.json",
        "9",
        "9.sha256.json",
    ]


def test_a_save_is_proven_before_the_next_one(mesh, tmp_path):
    # A run that is killed after a save and before the next one must not lose it.
    with CheckpointStore(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(make_state(mesh, 3), META)
        until = time.monotonic() + 30
        while not (tmp_path / "checkpoints" / "3.sha256.json").is_file():
            assert time.monotonic() < until
            time.sleep(0.02)
        assert check_manifest(tmp_path / "checkpoints" / "3") is None


def test_training_may_overwrite_what_is_being_saved(mesh, tmp_path):
    state = make_state(mesh, 3, rows=4096)
    before = jax.device_get(state)
    advance = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    with CheckpointStore(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(state, META)
        later = advance(state)
        checkpoints.finish()
        assert_equal(checkpoints.restore(3, shapes_of(later)), before)


def array_files(folder, step):
    """The files of a step that hold array data."""
    files = [p for p in (folder / str(step)).rglob("d/*") if p.is_file()]
    return sorted(files, key=lambda p: -p.stat().st_size)


def flip_bit(path, at=None):
    content = bytearray(path.read_bytes())
    at = len(content) // 2 if at is None else at
    content[at] ^= 1 << 3
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "a flipped bit": lambda folder: flip_bit(array_files(folder, 6)[0]),
    "a file cut short": lambda folder: truncate(array_files(folder, 6)[0]),
    "an empty file": lambda folder: array_files(folder, 6)[0].write_bytes(b""),
    "a missing file": lambda folder: array_files(folder, 6)[0].unlink(),
    "damaged meta": lambda folder: flip_bit(folder / "6" / "meta" / "metadata"),
    "no params": lambda folder: shutil.rmtree(folder / "6" / "params"),
    "no manifest": lambda folder: (folder / "6.sha256.json").unlink(),
    "half a manifest": lambda folder: truncate(folder / "6.sha256.json"),
    "an empty manifest": lambda folder: (folder / "6.sha256.json").write_text(""),
    "another manifest": lambda folder: (folder / "6.sha256.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_falls_back_to_the_older_step_and_says_so(folder, capsys, mesh, damage):
    DAMAGES[damage](folder)
    assert find_newest(folder) == 3
    said = capsys.readouterr().out
    assert said.startswith("checkpoint of step 6 is damaged, trying an older one: ")
    assert said.count("\n") == 1
    with CheckpointStore(folder) as checkpoints:
        assert_equal(checkpoints.restore(3, shapes_of(make_state(mesh, 3))), make_state(mesh, 3))
        with pytest.raises(UserError, match="checkpoints: checkpoint of step 6 is damaged: "):
            checkpoints.choose(6)


def test_finds_any_flipped_bit(folder):
    rng = random.Random(0)
    for _ in range(40):
        path = rng.choice(
            [p for p in (folder / "6").rglob("*") if p.is_file() and p.stat().st_size]
        )
        before = path.read_bytes()
        flip_bit(path, rng.randrange(len(before)))
        name = path.relative_to(folder / "6").as_posix()
        assert check_manifest(folder / "6") == f"{name} is not as it was written"
        path.write_bytes(before)
    assert check_manifest(folder / "6") is None


def test_files_that_nobody_promised_are_no_damage(folder):
    """File managers, NFS and copy tools add files to folders."""
    (folder / ".DS_Store").touch()
    (folder / "notes").mkdir()
    (folder / "7").touch()
    for name in (".DS_Store", "Thumbs.db", ".nfs000000000012", "params/._d", "params/d/more"):
        (folder / "6" / name).touch()
    (folder / "6" / "@eaDir").mkdir()
    assert find_newest(folder) == 6


def test_all_damaged_is_refused_and_nothing_is_deleted(folder, mesh):
    flip_bit(array_files(folder, 3)[0])
    (folder / "6.sha256.json").write_text("[")
    name = array_files(folder, 3)[0].relative_to(folder / "3").as_posix()
    before = sorted(folder.rglob("*"))
    for keep in (None, 2):
        with pytest.raises(UserError) as refused, CheckpointStore(folder, keep) as checkpoints:
            checkpoints.find(lambda _: None)
        assert str(refused.value) == (
            f"{folder}: no whole checkpoint (step 6: its manifest does not parse; step 3: {name} "
            "is not as it was written); put a copy of a step and its .sha256.json back, or move "
            "the folder away to start over"
        )
    assert sorted(folder.rglob("*")) == before


def test_a_first_save_that_a_kill_interrupted_is_a_new_start(mesh, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    with CheckpointStore(folder, keep=2) as checkpoints:
        assert checkpoints.find(lambda _: None) is None
        checkpoints.save(make_state(mesh, 3), META)
    (folder / "3.sha256.json").unlink()
    with CheckpointStore(folder, keep=2) as checkpoints:
        assert checkpoints.find(lambda _: None) is None
        assert "checkpoint of step 3 is damaged" in capsys.readouterr().out
        checkpoints.save(make_state(mesh, 3), META)
        checkpoints.save(make_state(mesh, 6), META)
    shutil.rmtree(folder / "3")
    (folder / "3.sha256.json").unlink()
    (folder / "6.sha256.json").unlink()  # of a later save: the older one is lost, which is reported
    with (
        CheckpointStore(folder, keep=2) as checkpoints,
        pytest.raises(UserError, match=r"no whole checkpoint \(step 6: its save did not finish\)"),
    ):
        checkpoints.find(lambda _: None)


def test_a_damaged_newer_step_stays_until_its_number_is_saved_again(folder, mesh, capsys):
    flip_bit(array_files(folder, 6)[0])
    with CheckpointStore(folder, keep=2) as checkpoints:
        assert checkpoints.choose() == 3
        assert "; it stays until its number is saved again\n" in capsys.readouterr().out
        checkpoints.save(make_state(mesh, 5), META)
        checkpoints.finish()
        assert checkpoints.steps() == [3, 5, 6]
        assert checkpoints.choose() == 5
        state = make_state(mesh, 6, seed=1)
        checkpoints.save(state, META)
    assert find_newest(folder) == 6
    with CheckpointStore(folder) as checkpoints:
        assert checkpoints.steps() == [5, 6]
        assert_equal(checkpoints.restore(6, shapes_of(state)), state)


def test_a_folder_of_somebody_else_is_neither_deleted_nor_replaced(mesh, tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 6):
        (folder / str(step)).mkdir(parents=True)
        (folder / str(step) / "mine").touch()
    with (
        pytest.raises(UserError, match="6: not written by this run; move it away and start again"),
        CheckpointStore(folder, keep=1) as checkpoints,
    ):
        checkpoints.save(make_state(mesh, 3), META)
        checkpoints.save(make_state(mesh, 4), META)
        checkpoints.save(make_state(mesh, 6), META)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "4", "4.sha256.json", "6"]
    assert (folder / "6" / "mine").is_file()


def test_refuses_a_step_that_is_not_there(folder):
    with CheckpointStore(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.choose(4)
    assert str(caught.value) == f"{folder}: no checkpoint of step 4; there are: 3, 6"


def test_reading_creates_and_deletes_nothing(folder, tmp_path):
    # A search in the folder of a running training must not touch its half-written step.
    half_written = folder / "9.orbax-checkpoint-tmp"
    half_written.mkdir()
    assert find_newest(folder) == 6
    assert half_written.is_dir()
    missing = tmp_path / "missing" / "checkpoints"
    with (
        CheckpointStore(missing) as checkpoints,
        pytest.raises(UserError, match="no whole checkpoint"),
    ):
        checkpoints.choose(None)
    assert not missing.exists()


def test_writing_clears_what_a_killed_save_left(folder, mesh):
    half_written = folder / "9.orbax-checkpoint-tmp"
    half_written.mkdir()
    with CheckpointStore(folder, keep=2) as checkpoints:
        assert checkpoints.choose() == 6
        checkpoints.save(make_state(mesh, 7), META)
    assert not half_written.exists()


def test_says_when_a_save_does_not_reach_the_disk(mesh, tmp_path):
    # Files are limited to 64 KiB, so that a write fails in the middle, as on a full disk.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    small, large = make_state(mesh, 3), make_state(mesh, 6, rows=1 << 17)
    folder = tmp_path / "checkpoints"
    try:
        with (
            pytest.raises(UserError, match=r"checkpoints: step 6 could not be saved: .*too large"),
            CheckpointStore(folder, keep=2) as checkpoints,
        ):
            checkpoints.save(small, META)
            checkpoints.finish()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
            checkpoints.save(large, META)  # the error comes at the next save, or at the exit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert find_newest(folder) == 3


def test_the_manifest_lists_every_file(saved):
    manifest = json.loads((saved / "6.sha256.json").read_text())
    listed = manifest["files"]
    assert manifest["step"] == 6
    there = {p.relative_to(saved / "6").as_posix() for p in (saved / "6").rglob("*") if p.is_file()}
    assert set(listed) == there
    assert all(len(digest) == 64 for digest in listed.values())


def test_parameters_alone_are_saved_from_mapped_files(mesh, tmp_path):
    params = jax.device_get(make_state(mesh, 0).params)
    mapped = np.memmap(tmp_path / "table", np.float32, "w+", shape=(64, 8))
    mapped[...] = params["encoder"]["table"]
    folder = tmp_path / "checkpoints"
    save_params(folder, {"encoder": {"table": mapped}, "log_scale": params["log_scale"]}, META)
    with CheckpointStore(folder) as checkpoints:
        assert checkpoints.choose(None) == 0
        assert checkpoints.read_meta(0) == META
        shapes = shapes_of(make_state(mesh, 0)).params
        assert_equal(checkpoints.restore_params(0, shapes), params)
    with pytest.raises(UserError, match="the parameters could not be saved"):
        save_params(tmp_path / "table", params, META)


def test_fifteen_damages_fall_back_exactly_or_are_refused(tmp_path):
    """A short form of tools/torture_checkpoints.py, which has the kinds of damage."""
    minutes = 15 / 300 * torture.FULL_MINUTES
    command = [sys.executable, "tools/torture.py", "--only", "checkpoints", "--seed", "3"]
    done = subprocess.run(
        [*command, "--minutes", str(minutes)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("checkpoints: 15 cases (as reader and trainer: "), done.stdout
    assert ", holds, " in done.stdout
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize("keep", [None, 2])
def test_data_that_cannot_be_read_falls_back_although_its_sums_agree(folder, mesh, capsys, keep):
    """The manifest was written after the damage, as if a copy tool had made it."""
    for path in (folder / "6" / "meta").rglob("*"):
        path.write_text("{")
    write_manifest(folder / "6")
    with CheckpointStore(folder, keep) as checkpoints:
        shapes = shapes_of(make_state(mesh, 3))

        def load(step):
            checkpoints.read_meta(step)
            return checkpoints.restore(step, shapes)

        step, state = checkpoints.find(load)
    assert step == 3
    assert_equal(state, make_state(mesh, 3))
    said = capsys.readouterr().out
    assert said.startswith("checkpoint of step 6 is damaged, trying an older one: it cannot be ")
    assert said.count("\n") == 1


def test_a_reader_lists_again_where_a_step_is_deleted_meanwhile(folder, mesh):
    state = make_state(mesh, 6)
    calls = []
    with CheckpointStore(folder, keep=1) as writing, CheckpointStore(folder) as reading:

        def load(step):
            calls.append(step)
            if len(calls) == 1:  # a running training goes on
                writing.save(make_state(mesh, 9), META)
                writing.finish()
            return reading.restore(step, shapes_of(state))

        step, found = reading.find(load)
    assert (calls, step) == ([6, 9], 9)
    assert_equal(found, make_state(mesh, 9))


def test_a_step_that_is_deleted_while_it_is_read_is_named(folder, mesh):
    with CheckpointStore(folder, keep=1) as writing, CheckpointStore(folder) as reading:

        def load(step):
            writing.save(make_state(mesh, 9), META)
            writing.finish()
            return reading.restore(step, shapes_of(make_state(mesh, 6)))

        with pytest.raises(UserError, match="deleted step 6 while it was read; choose a newer one"):
            reading.read(load, 6)


def test_a_copy_under_another_number_is_found_out(folder, capsys):
    shutil.copytree(folder / "3", folder / "9")
    shutil.copy(folder / "3.sha256.json", folder / "9.sha256.json")
    assert find_newest(folder) == 6
    assert capsys.readouterr().out == (
        "checkpoint of step 9 is damaged, trying an older one: it is a copy of step 3\n"
    )


def test_a_pipe_that_no_manifest_names_does_not_hang_a_restore(folder):
    path = array_files(folder, 6)[0]
    path.unlink()
    os.mkfifo(path)
    write_manifest(folder / "6")
    name = path.relative_to(folder / "6").as_posix()
    assert check_manifest(folder / "6") == f"{name} is not a file"
    assert find_newest(folder) == 3


def test_what_a_kill_left_of_a_deletion_is_deleted(mesh, tmp_path, monkeypatch):
    """A kill may interrupt the deletion of an old step at any point."""
    folder = tmp_path / "checkpoints"
    removed = []

    def remove_only(path):  # as if killed after this call
        removed.append(path.name)
        shutil.rmtree(path)
        raise KeyboardInterrupt

    with CheckpointStore(folder, keep=1) as store:
        for step in (1, 2):
            monkeypatch.setattr(checkpoint_module, "remove_tree", remove_only)
            store.save(make_state(mesh, step), {})
            with suppress(KeyboardInterrupt):
                store.finish()
    assert removed in (["params"], ["opt_state"], ["meta"])
    assert (folder / "1").is_dir()
    monkeypatch.undo()
    (folder / "0").mkdir()  # as if killed before the last call
    with CheckpointStore(folder, keep=1) as store:
        store.save(make_state(mesh, 3), {})
    assert sorted(path.name for path in folder.iterdir()) == ["3", "3.sha256.json"]


def test_pieces_that_are_dropped_after_a_failure_are_hidden_and_nothing_else(monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: shown.append(str(raised.exc_value)))
    checkpoint_module._hush_orbax.cache_clear()
    CheckpointStore(tmp_path)
    for text in ("Encountered error while reading array index: (0,)", "Event loop is closed", "x"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    assert shown == ["x"]
