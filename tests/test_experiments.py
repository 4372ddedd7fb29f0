"""Every file in experiments/ loads and is valid, and the shardings of its state have not changed.

tests/golden/<name>.json holds shape, type and sharding of every parameter. The mesh is the smallest
that the experiment allows, with two devices along each axis that it uses. After an intended change:

    python tests/test_experiments.py --write
"""

import functools
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import conftest
import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxcpt.batches import size_full_batches
from jaxcpt.budget import count_budget, describe
from jaxcpt.checks import validate
from jaxcpt.config import derive_baseline
from jaxcpt.experiments import from_json, load_experiment, to_json
from jaxcpt.model import check_model_fits
from jaxcpt.sharding import count_data_shards, size_mesh
from jaxcpt.smoke import shrink
from jaxcpt.start import foresee_start, resolve_start
from jaxcpt.update import shard_state

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted((conftest.REPOSITORY / "experiments").glob("*.py"))

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def fake_mesh(shape):
    """An abstract mesh. An axis of -1 gets 2 devices."""
    axes = {"data": shape.data, "fsdp": shape.fsdp, "tensor": shape.tensor}
    sizes = {name: 2 if size == -1 else size for name, size in axes.items()}
    return AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )


def describe_state(experiment):
    """The 'type[shape] sharding' of every leaf, by its path."""
    state = shard_state(experiment, fake_mesh(experiment.mesh))

    def name(path):
        return ".".join(
            str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", "")))) for k in path
        )

    def spell(leaf):
        shape = ", ".join(map(str, leaf.shape))
        axes = [a if a is None else str(a) for a in leaf.sharding.spec]
        return f"{leaf.dtype}[{shape}] ({', '.join(map(str, axes))})"

    return {name(path): spell(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


@functools.cache
def load(path):
    """The experiment, with the fields that it takes from its start filled in."""
    experiment = load_experiment(str(path))
    if experiment.init_from is None:
        return experiment
    if not experiment.init_from.run.startswith("package:"):
        return foresee_start(experiment)  # the start may be a run that does not exist yet
    package = experiment.init_from.run.removeprefix("package:").partition("/")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is absent; {path.name} says how to install it")
    with tempfile.TemporaryDirectory() as folder:
        return resolve_start(experiment, Path(folder))


def describe_experiment(path):
    experiment = load(path)
    baseline = derive_baseline(experiment)
    state = {"run": describe_state(experiment)}
    return state | ({"baseline": describe_state(baseline)} if baseline is not None else {})


def write_golden(path):
    text = json.dumps(describe_experiment(path), indent=1)
    (GOLDEN / f"{path.stem}.json").write_text(text + "\n")


def test_there_are_the_experiments_of_the_paper():
    names = {path.stem for path in FILES}
    text = {f"cpt_text_{size}" for size in ("s", "m", "l", "xl")}
    assert text | {"cpt_code_s", "cpt_code_m", "quickstart"} <= names
    assert {path.stem for path in GOLDEN.glob("*.json")} == names


@each_file
def test_loads_is_valid_and_survives_json(path):
    experiment = validate(load(path))
    assert experiment.name == path.stem
    assert from_json(to_json(experiment), "here") == experiment
    validate(shrink(experiment))


@each_file
def test_says_how_to_run_it(path):
    note = path.read_text().split('"""')[1]
    assert f"python -m jaxcpt.train --experiment experiments/{path.name}" in note
    for source in load_experiment(str(path)).data.train:
        if getattr(source, "directory", ""):
            assert source.prepare.startswith("jaxcpt mine-")


@each_file
def test_its_state_is_cut_as_it_always_was(path):
    golden = json.loads((GOLDEN / f"{path.stem}.json").read_text())
    assert describe_experiment(path) == golden, "python tests/test_experiments.py --write"


@each_file
def test_its_sizes_fit_its_mesh(path):
    experiment = load(path)
    mesh = fake_mesh(experiment.mesh)
    check_model_fits(mesh, experiment)
    assert size_mesh(experiment.mesh, mesh.size) == dict(mesh.shape)
    sizes = size_full_batches(experiment, count_data_shards(mesh))
    budget = count_budget(experiment, sizes)
    assert budget.parameters > 0
    assert describe(experiment, sizes, budget)["parameters"]


# Table 1 of the paper, with its precision: name, parameters, width, batch.
PAPER = {
    "cpt_text_s": (300e6, 1024, 12_288),
    "cpt_text_m": (1.2e9, 2048, 6_912),
    "cpt_text_l": (6e9, 4096, 5_896),
    "cpt_text_xl": (175e9, 12_288, 4_976),
    "cpt_code_s": (300e6, 1024, None),
    "cpt_code_m": (1.2e9, 2048, None),
}


@pytest.mark.parametrize("name", PAPER)
def test_sizes_are_the_papers(name):
    parameters, width, pairs = PAPER[name]
    experiment = load_experiment(str(conftest.REPOSITORY / "experiments" / f"{name}.py"))
    state = shard_state(experiment, fake_mesh(experiment.mesh))
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert count == pytest.approx(parameters, rel=0.2)
    assert experiment.model.width == width
    assert pairs in (None, experiment.batching.pairs_per_batch)


@each_file
def test_each_axis_in_use_cuts_something(path):
    """A wrong letter in the model would leave an array whole on every device."""
    experiment = load(path)
    lines = " ".join(describe_state(experiment).values())
    for axis in ("fsdp", "tensor"):
        if getattr(experiment.mesh, axis) != 1:
            assert axis in lines


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    GOLDEN.mkdir(exist_ok=True)
    for stale in GOLDEN.glob("*.json"):
        stale.unlink()
    for file in FILES:
        write_golden(file)
