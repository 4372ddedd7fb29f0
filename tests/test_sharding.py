"""Meshes fit the devices, the rule table covers every axis, and uneven division is an error."""

import os

import jax
import numpy as np
import pytest
from conftest import EXACT, make_experiment
from jax.sharding import PartitionSpec

from jaxcpt import config
from jaxcpt.errors import UserError
from jaxcpt.model import check_model_fits
from jaxcpt.sharding import (
    DATA_AXES,
    RULES,
    constrain,
    count_data_shards,
    describe_mesh,
    fetch,
    make_mesh,
    named,
    partition_spec,
    size_mesh,
    use_cpu_cores,
)


@pytest.mark.parametrize(
    ("shape", "devices", "sizes"),
    [
        ((-1, 1, 1), 8, (8, 1, 1)),
        ((-1, 2, 2), 8, (2, 2, 2)),
        ((1, -1, 4), 8, (1, 2, 4)),
        ((2, 4, 1), 8, (2, 4, 1)),
        ((-1, 1, 1), 1, (1, 1, 1)),
    ],
)
def test_one_axis_takes_what_the_others_leave(shape, devices, sizes):
    assert tuple(size_mesh(config.Mesh(*shape), devices).values()) == sizes
    mesh = make_mesh(config.Mesh(*shape), jax.devices()[:devices])
    assert mesh.devices.shape == sizes
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert count_data_shards(mesh) == sizes[0] * sizes[1]


@pytest.mark.parametrize(("devices", "words"), [(1, "1 cpu device"), (8, "8 cpu devices")])
def test_a_mesh_in_words(devices, words):
    mesh = make_mesh(config.Mesh(), jax.devices()[:devices])
    assert describe_mesh(mesh) == f"data {devices} x fsdp 1 x tensor 1 on {words}"


@pytest.mark.parametrize("shape", [(3, 1, 1), (-1, 3, 1), (16, 1, 1), (-1, 16, 1), (0, 1, 8)])
def test_a_mesh_that_does_not_multiply_is_refused(shape):
    asked = " x ".join(
        f"{name} {size}" for name, size in zip(("data", "fsdp", "tensor"), shape, strict=True)
    )
    with pytest.raises(UserError) as refusal:
        make_mesh(config.Mesh(*shape))
    remedy = (
        "set the other axes so that their product divides that"
        if -1 in shape
        else "set mesh.data=-1 to take all remaining devices"
    )
    assert str(refusal.value) == f"mesh: {asked} does not multiply to the 8 devices here; {remedy}"


def test_two_open_axes_are_refused():
    with pytest.raises(UserError, match=r"^mesh: only one axis may be -1, found data and tensor$"):
        size_mesh(config.Mesh(-1, 1, -1), 8)


def test_every_rule_names_axes_of_the_mesh():
    mesh = make_mesh(config.Mesh())
    for letter, columns in RULES.items():
        assert len(letter) == 1
        for axes in columns:
            assert {*np.ravel(axes)} <= {None, *mesh.axis_names}
    with pytest.raises(KeyError):
        partition_spec("dq")


def test_parameters_are_cut_at_rest_and_whole_in_width_in_the_step():
    assert partition_spec("dhk", "storage") == PartitionSpec("fsdp", "tensor", None)
    assert partition_spec("dhk") == PartitionSpec(None, "tensor", None)
    assert partition_spec("bd") == PartitionSpec(DATA_AXES, None)


def test_constrain_lays_out_in_a_mesh_and_does_nothing_outside():
    array = np.arange(64.0).reshape(8, 8)
    np.testing.assert_allclose(jax.jit(lambda a: constrain(a, "vd"))(array), array, **EXACT)
    mesh = make_mesh(config.Mesh(2, 2, 2))
    with jax.set_mesh(mesh):
        stored = jax.jit(lambda a: constrain(a, "vd", "storage"))(array)
    assert stored.sharding.is_equivalent_to(
        jax.sharding.NamedSharding(mesh, PartitionSpec("tensor", "fsdp")), 2
    )
    assert {shard.data.shape for shard in stored.addressable_shards} == {(4, 4)}
    assert named(mesh).is_fully_replicated


def test_a_fetched_weight_is_whole_and_its_gradient_is_stored():
    weight = np.arange(64, dtype=np.float32).reshape(8, 8)
    with jax.set_mesh(make_mesh(config.Mesh(2, 2, 2))):
        value, pull = jax.vjp(jax.jit(lambda w: fetch(w, "vd", "bfloat16")), weight)
        (gradient,) = jax.jit(pull)(value)
    np.testing.assert_allclose(value.astype(np.float32), weight, **EXACT)
    np.testing.assert_allclose(gradient, weight, **EXACT)
    assert {shard.data.shape for shard in value.addressable_shards} == {(4, 8)}
    assert {shard.data.shape for shard in gradient.addressable_shards} == {(4, 4)}


@pytest.mark.parametrize(
    ("mesh", "model", "vocabulary", "text"),
    [
        ((1, 1, 8), {"heads": 4}, 400, "model.heads: 4 does not divide by the mesh axis tensor=8"),
        (
            (1, 4, 2),
            {"kv_heads": 1},
            400,
            "model.kv_heads: 1 does not divide by the mesh axis tensor=2",
        ),
        (
            (1, 1, 8),
            {"heads": 8, "mlp_width": 20},
            400,
            "model.mlp_width: 20 does not divide by the mesh axis tensor=8",
        ),
        ((4, 1, 2), {}, 399, "tokenizer.vocabulary: 399 does not divide by the mesh axis tensor=2"),
        (
            (1, 8, 1),
            {"width": 12},
            400,
            "model.width: 12 does not divide by the mesh axis fsdp=8",
        ),
    ],
)
def test_what_an_axis_does_not_divide_is_refused(mesh, model, vocabulary, text):
    changes = {f"model__{name}": value for name, value in model.items()}
    experiment = make_experiment(**changes, tokenizer__vocabulary=vocabulary)
    with pytest.raises(UserError) as refusal:
        check_model_fits(make_mesh(config.Mesh(*mesh)), experiment)
    assert str(refusal.value) == text


def test_what_divides_is_let_through():
    check_model_fits(make_mesh(config.Mesh(2, 2, 2)), make_experiment())


def test_cpu_collectives_may_wait_on_a_busy_machine(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    own = "--xla_cpu_collective_call_warn_stuck_timeout_seconds=7"
    monkeypatch.setenv("XLA_FLAGS", own)
    use_cpu_cores()
    use_cpu_cores()  # once is enough
    limit = "--xla_cpu_collective_call_terminate_timeout_seconds=3600"
    assert os.environ["XLA_FLAGS"] == f"{own} {limit}"
