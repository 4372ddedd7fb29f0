"""Plans of whole steps: their figures, their errors, stored plans, and the command."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import bench_step
import check_plans
import jax
import jax.numpy as jnp
import pytest
from conftest import REPOSITORY, make_experiment

from jaxcpt import plan
from jaxcpt.config import Mesh
from jaxcpt.errors import UserError
from jaxcpt.experiments import apply_overrides, load_experiment
from jaxcpt.operations import find_platform
from jaxcpt.planning.layouts import guess_bytes, list_layouts
from jaxcpt.planning.step import Plan, TooLarge, _explain, make_plan
from jaxcpt.planning.topology import describe_devices, parse_topology
from jaxcpt.sharding import make_mesh
from jaxcpt.update import choose_compiler_options

try:
    import libtpu  # noqa: F401

    has_libtpu = True
except ImportError:
    has_libtpu = False
needs_libtpu = pytest.mark.skipif(not has_libtpu, reason="needs libtpu: pip install -e '.[tpu]'")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v9:2x2", "topology: 'v9:2x2' is not known; known are, for example: v5e:8x16, v5p:4x4x8"),
        ("v5p:4x4", "topology: 'v5p:4x4' is not a shape of v5p; write it as v5p:AxBxC"),
        ("h200:8x8", "topology: 'h200:8x8' is not a shape of h200; write it as h200:N"),
        ("v5p:4x4xfour", "topology: 'v5p:4x4xfour' is not a shape of v5p"),
        ("v5e:4x4*0", "topology: 'v5e:4x4*0' is not a shape of v5e"),
    ],
)
def test_unknown_topologies_are_refused(name, text):
    with pytest.raises(UserError, match="^" + re.escape(text)):
        parse_topology(name)


def test_topologies_are_counted():
    assert parse_topology("v5p:4x4x8").chips == 128
    assert parse_topology("v5p:4x4x4*2").chips == 128
    assert parse_topology("h200:8").chips == 8


@pytest.mark.skipif(has_libtpu, reason="libtpu is installed")
def test_without_libtpu_the_line_that_installs_it():
    with pytest.raises(UserError, match=r"needs libtpu, .*: pip install -e '\.\[tpu\]'"):
        describe_devices(parse_topology("v5p:2x2x1"))


@pytest.fixture(scope="module")
def planned():
    experiment = make_experiment(mesh__fsdp=2, mesh__tensor=2, batching__pairs_per_batch=16)
    return experiment, make_plan(experiment, parse_topology("cpu:8"))


def test_a_plan_says_what_the_step_does(planned, capsys):
    found = planned[1]
    assert found.mesh == {"data": 2, "fsdp": 2, "tensor": 2}
    kinds = {(e["kind"], e["axes"]) for e in found.exchanges}
    assert any(axes == "fsdp" for _, axes in kinds), kinds
    assert any("tensor" in axes for _, axes in kinds), kinds
    assert found.memory.optimizer == pytest.approx(2 * found.memory.parameters, rel=0.01)
    assert found.memory.peak > found.memory.parameters + found.memory.optimizer
    # Remat repeats everything except the last products. Plain attention computes both halves.
    assert 1.2 < found.hardware_flops / found.model_flops < 2.0
    assert found.score_arrays > 0  # plain attention makes them
    assert not found.is_prediction
    assert found.step_seconds == 0.0  # no figures are published for a CPU device
    plan.show(found)
    shown = capsys.readouterr().out
    for word in ("data 2 x fsdp 2 x tensor 2", "all-gather over fsdp", "optimizer state"):
        assert word in shown
    assert json.loads(json.dumps(found.to_json()))["pairs"] == 16


def test_two_passes_show_in_the_hardware_flops(planned):
    experiment, once = planned
    twice = make_plan(apply_overrides(experiment, ["batching.chunks=2"]), parse_topology("cpu:8"))
    assert twice.chunks == 2
    assert 1.1 < twice.hardware_flops / once.hardware_flops < 1.5
    assert twice.model_flops == pytest.approx(once.model_flops, rel=0.1)


def test_a_gpu_is_estimated_from_the_cpus_program(planned):
    experiment, _ = planned
    found = make_plan(experiment, parse_topology("h200:8"))
    assert found.step_seconds == found.compute_bound
    assert 0 < found.mfu < 1


def test_what_is_kept_is_compared(planned, tmp_path, capsys):
    found = planned[1]
    path = tmp_path / "tiny.json"
    assert check_plans.check(found, path) == [f"{path}: missing; make it with --write {tmp_path}"]
    found = replace(found, score_arrays=0)
    path.write_text(json.dumps(check_plans.summarise(found)))
    assert check_plans.check(found, path) == []
    assert "tiny: memory and exchanges as in" in capsys.readouterr().out
    more = replace(found, memory=replace(found.memory, peak=int(found.memory.peak * 1.06)))
    (line,) = check_plans.check(more, path)
    assert re.search(
        r"tiny.json: peak_bytes was [\d,]+, is [\d,]+ a chip; if that is intended", line
    )
    exchange = max(found.exchanges, key=lambda e: e["bytes"])
    changed = replace(found, exchanges=(exchange | {"bytes": 2 * exchange["bytes"]},))
    assert any(f"{exchange['kind']} over" in line for line in check_plans.check(changed, path))
    (line,) = check_plans.check(replace(found, score_arrays=1), path)
    assert "score_arrays was" in line


def test_too_little_memory_is_told_from_other_failures():
    text = "RESOURCE_EXHAUSTED: CompileTimeHbmOom: (217.77G) exceeds available HBM (95.74G)"
    too_large = _explain(RuntimeError(text))
    assert isinstance(too_large, TooLarge)
    assert too_large.missing == pytest.approx(122.03 * 2**30)
    other = _explain(RuntimeError("INTERNAL: something else\nand more"))
    assert isinstance(other, UserError)
    assert str(other) == "the compiler refuses this: INTERNAL: something else"


def test_layouts_that_may_fit_are_listed_fastest_first():
    experiment = load_experiment(str(REPOSITORY / "experiments" / "cpt_text_l.py"))
    topology = parse_topology("v5p:4x4x4")
    layouts = list_layouts(experiment, topology)
    assert len(layouts) > 10
    for layout in layouts:
        assert layout.data * layout.fsdp * layout.tensor == 64
        assert experiment.model.width % layout.fsdp == 0
        assert guess_bytes(experiment, 80 * 10**9, layout) < topology.chip.hbm_bytes
        apply_overrides(experiment, layout.changes())
    first = layouts[0]
    assert (first.tensor, first.chunks) == (1, 1)
    small = list_layouts(experiment, parse_topology("v5e:4x4"))
    assert all(layout.fsdp * layout.tensor > 8 for layout in small)


@needs_libtpu
@pytest.mark.parametrize(("name", "data"), [("v5p:2x2x2", -1), ("v5p:2x2x1*2", 2)])
def test_a_tpu_step_is_compiled_without_a_tpu(name, data):
    experiment = make_experiment(
        batching__row_tokens=384,
        batching__pairs_per_batch=64,
        model__width=256,
        model__heads=2,
        model__layers=6,  # scanned
        model__compute_dtype="bfloat16",
        mesh=Mesh(data, 4, 1),
    )
    found = make_plan(experiment, parse_topology(name))
    assert isinstance(found, Plan)
    assert found.is_prediction
    assert found.score_arrays == 0  # the splash kernel makes no [rows, heads, l, l]
    assert found.attention_seconds > 0
    assert found.step_seconds > found.compute_bound
    across = {e["axes"]: e["network_seconds"] for e in found.exchanges if e["network_seconds"]}
    if "*2" in name:
        assert across
        assert all("data" in axes for axes in across)
    else:
        assert not across


@needs_libtpu
def test_slices_that_the_data_axis_does_not_hold_are_refused():
    topology = parse_topology("v5p:2x2x1*2")
    with pytest.raises(UserError, match=r"mesh.data: 1 does not divide by the 2 slices here"):
        make_plan(make_experiment(mesh=Mesh(1, 8, 1)), topology)


SMALL = (
    *("model.width=32", "model.heads=4", "model.layers=2", "tokenizer.vocabulary=400"),
    *("batching.pairs_per_batch=16", "batching.row_tokens=32", "tokenizer.x_tokens=32"),
    *("tokenizer.y_tokens=32", "mesh.fsdp=2"),
)


@pytest.fixture
def command(monkeypatch, capsys):
    """A function that runs the command on topology cpu:8 here and returns its output."""

    def call(*arguments, files=("cpt_text_s",), small=SMALL, module=plan):
        paths = [str(REPOSITORY / "experiments" / f"{name}.py") for name in files]
        changes = [word for change in small for word in ("--set", change)]
        argv = ["--experiment", *paths, "--topology", "cpu:8", *changes, *arguments]
        module.main([*map(str, argv)])
        return capsys.readouterr().out

    return call


def test_two_experiments_with_the_same_step_are_compiled_once(command, tmp_path):
    two = ("cpt_text_s", "cpt_code_s")
    out = command("--json", tmp_path / "plans.json", files=two)
    assert "cpt_text_s, planned" in out
    assert "cpt_code_s, planned" in out
    text, code = json.loads((tmp_path / "plans.json").read_text())
    assert code["experiment"] == "cpt_code_s"
    assert text["memory"] == code["memory"]  # the same program, compiled once


def test_golden_plans_are_written_and_checked(command, tmp_path):
    two, golden = ("cpt_text_s", "cpt_code_s"), tmp_path / "golden"
    command("--write", golden, files=two, module=check_plans)
    out = command("--check", golden, files=two, module=check_plans)
    assert out.count("memory and exchanges as in") == 2
    with pytest.raises(
        UserError, match=r"cpt_text_s.json: .* was .*; if that is intended, --write"
    ):
        command("--check", golden, small=(*SMALL, "model.layers=3"), module=check_plans)


def test_layouts_are_compiled_and_ranked(command):
    out = command("--search", "--tries", "2")
    assert "cpt_text_s on cpu:8, fastest first" in out
    assert out.count("--set mesh.data=") >= 2
    with pytest.raises(UserError, match="--search: takes one experiment"):
        command("--search", files=("cpt_text_s", "cpt_code_s"))
    with pytest.raises(UserError, match=r"batching.rows_per_cell: leave it unset"):
        command("--search", small=(*SMALL, "batching.rows_per_cell=8"))
    with pytest.raises(UserError, match="--tries: must be 1 or more; jaxcpt plan --help"):
        command("--search", "--tries", "0")


def test_what_does_not_fit_is_told_with_what_does(planned):
    topology = parse_topology("h200:8")
    needed = planned[1].memory.peak - planned[1].memory.temporaries
    small = replace(topology, chip=replace(topology.chip, hbm_bytes=needed - 1024.0))
    with pytest.raises(TooLarge) as too_large:
        make_plan(planned[0], small)
    assert too_large.value.missing == 1024
    said = plan.find_fit(planned[0], small, too_large.value, 1)
    assert said.startswith("tiny on h200:8: does not fit, 0.0 GiB a chip are missing; this fits, ")
    none = replace(topology, chip=replace(topology.chip, hbm_bytes=100.0))
    said = plan.find_fit(planned[0], none, too_large.value, 1)
    assert said.endswith("no other layout that was tried fits; try more chips, or raise --tries")


def test_a_step_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    file = str(REPOSITORY / "experiments" / "cpt_text_s.py")
    changes = [word for change in SMALL for word in ("--set", change)]
    bench_step.main(["--experiment", file, *changes, "--steps", "2"])
    out = capsys.readouterr().out
    first = float(re.search(r"first and last *│ ([\d.]+),", out)[1])
    assert 1 < first < 6  # near log 16, because nothing is learnt yet
    assert "median of 2" in out


def test_only_tpus_are_given_options():
    assert choose_compiler_options(make_mesh(Mesh())) == {}


@needs_libtpu
def test_a_mesh_knows_what_it_is_made_of():
    topology = parse_topology("v5p:2x2x1")
    mesh = make_mesh(Mesh(1, 4, 1), describe_devices(topology))
    with jax.set_mesh(mesh):
        assert jax.eval_shape(lambda: jnp.zeros(len(find_platform()))).shape == (3,)
    assert choose_compiler_options(mesh)


def test_the_command_refuses_in_one_line():
    def run(*arguments):
        command = [sys.executable, "-m", "jaxcpt", "plan", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        return line

    file = "experiments/quickstart.py"
    assert "declares no topology; name one" in run("--experiment", file)
    assert "'v7' is not known" in run("--experiment", file, "--topology", "v7")
    line = run("--experiment", "experiments/cpt_text_m.py", "--topology", "cpu:8")
    assert "mesh: data -1 x fsdp 16 x tensor 1 does not multiply to the 8 devices here" in line
