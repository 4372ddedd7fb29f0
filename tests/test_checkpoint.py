"""What is saved is proven; damage of any kind is found, told, and stepped over."""

import json
import random
import resource
import shutil
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxcpt.checkpoint import CheckpointStore, check_manifest, check_tokenizer, save_params
from jaxcpt.config import Mesh
from jaxcpt.errors import UserError
from jaxcpt.sharding import make_mesh
from jaxcpt.update import TrainState

META = {"tokenizer": "a" * 64, "experiment": "tiny"}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(Mesh(data=2, fsdp=2, tensor=2))


def make_state(mesh, step, seed=0, rows=64):
    """A state with odd leaves, cut over the mesh."""
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
        return checkpoints.find_whole()


def test_restores_bit_for_bit_onto_any_mesh(mesh, saved):
    state = make_state(mesh, 6)
    other = make_state(make_mesh(Mesh(data=1, tensor=2), jax.devices()[:2]), 6)
    with CheckpointStore(saved) as checkpoints:
        assert checkpoints.steps() == [3, 6]
        assert checkpoints.choose(None) == 6
        assert checkpoints.choose(3) == 3
        assert checkpoints.read_meta(6) == META
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
    # A run killed long after a save, and before the next, must not lose it.
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
    "an added file": lambda folder: (folder / "6" / "params" / "d" / "more").touch(),
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


def test_all_damaged(folder, mesh):
    for step in (3, 6):
        flip_bit(array_files(folder, step)[0])
    assert find_newest(folder) is None
    with (
        CheckpointStore(folder) as checkpoints,
        pytest.raises(UserError, match="checkpoints: no whole checkpoint; train the run first"),
    ):
        checkpoints.choose(None)
    # Training from the start meets its own damaged steps again, and must replace them.
    with CheckpointStore(folder, keep=2) as checkpoints:
        for step in (3, 6):
            checkpoints.save(make_state(mesh, step, seed=1), META)
    with CheckpointStore(folder) as checkpoints:
        assert checkpoints.steps() == [3, 6]
        assert checkpoints.choose(None) == 6
        state = make_state(mesh, 6, seed=1)
        assert_equal(checkpoints.restore(6, shapes_of(state)), state)


def test_going_on_from_the_older_step_replaces_the_damaged_one(folder, mesh):
    flip_bit(array_files(folder, 6)[0])
    with CheckpointStore(folder, keep=2) as checkpoints:
        assert checkpoints.find_whole() == 3
        checkpoints.save(make_state(mesh, 5), META)
    assert find_newest(folder) == 5
    assert not (folder / "6").exists()
    assert not (folder / "6.sha256.json").exists()


def test_refuses_a_step_that_is_not_there(folder):
    with CheckpointStore(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.choose(4)
    assert str(caught.value) == f"{folder}: no checkpoint of step 4; there are: 3, 6"


def test_reading_creates_and_deletes_nothing(folder, tmp_path):
    # A search in the folder of a run in progress must leave its half-written step alone.
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
        assert checkpoints.find_whole() == 6
        checkpoints.save(make_state(mesh, 7), META)
    assert not half_written.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's own
def test_says_when_a_save_does_not_reach_the_disk(mesh, tmp_path):
    # No file above 64 KiB: a write fails in the middle, as on a full disk.
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
            checkpoints.save(large, META)  # told at the next save, or on leaving
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert find_newest(folder) == 3


def test_refuses_a_tokenizer_of_another_vocabulary(tmp_path):
    check_tokenizer("a" * 64, META, tmp_path)
    with pytest.raises(UserError) as caught:
        check_tokenizer("b" * 64, META, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer: another vocabulary than the checkpoint was trained with "
        "(sha256 bbbbbbbbbbbb, expected aaaaaaaaaaaa); put its own one back"
    )


def test_the_manifest_lists_every_file(saved):
    listed = json.loads((saved / "6.sha256.json").read_text())
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
