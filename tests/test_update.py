"""A training step is exact for any chunks and mesh, AdamW equals NumPy, and states are sharded."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLOSE, make_experiment

from jaxcpt import config, update
from jaxcpt.batches import Batch, Batches
from jaxcpt.model import make_cells
from jaxcpt.optimizer import make_optimizer, make_schedule
from jaxcpt.packing import CellArrays
from jaxcpt.sharding import make_mesh, named
from jaxcpt.update import (
    build_state,
    compute_gradient,
    global_loss,
    init_state,
    make_train_step,
    name_parameters,
    shard_state,
)

LLAMA = {
    "model__norm": "rmsnorm",
    "model__positions": "rotary",
    "model__mlp": "swiglu",
    "model__qk_norm": True,
    "model__biases": False,
    "model__kv_heads": 2,
    "model__pooling": "mean",
    "model__weighted_mean__token_weights": True,
}


def find_gradient(sources, tokenizer, shape, **changes):
    """The metrics and the gradient of the first batch at the initial parameters."""
    experiment = make_experiment(**changes)
    mesh = make_mesh(config.Mesh(*shape), jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        batch = Batches(experiment, sources, tokenizer, mesh).make(0)
        params = init_state(experiment, mesh).params
        found = jax.jit(partial(compute_gradient, experiment))(params, batch)
    return jax.device_get(found)


def assert_same_gradient(found, wanted):
    """Compares leaf by leaf, relative to its length. The gradient of a key's bias is only rounding
    error."""
    total = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(wanted)))

    def check(path, a, b):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-7 * total, path

    jax.tree.map_with_path(check, found, wanted)


@pytest.mark.parametrize(
    ("model", "shape", "chunks"),
    [
        ({"model__cut_residual": True}, (2, 2, 2), 2),
        ({}, (1, 1, 1), 4),
        ({}, (2, 2, 2), 2),
        (LLAMA, (1, 2, 2), 3),
        (LLAMA, (8, 1, 1), 2),
    ],
)
def test_chunked_on_any_mesh_equals_direct_on_one_device(model, shape, chunks, sources, tokenizer):
    """No mesh and no chunks divide the batch of 15. `tools/gradient_table.py` has more cases."""
    same = {"batching__negatives": 1, "loss__prefixes": (4,), **model}
    wanted_metrics, wanted = find_gradient(sources, tokenizer, (1, 1, 1), **same)
    metrics, found = find_gradient(sources, tokenizer, shape, batching__chunks=chunks, **same)
    assert_same_gradient(found["encoder"], wanted["encoder"])
    np.testing.assert_allclose(found["log_scale"], wanted["log_scale"], **CLOSE)
    # Every metric is one of the whole batch. Only the number of rows depends on the cells.
    assert metrics.pop("padding") < 1
    assert wanted_metrics.pop("padding") < 1
    assert metrics.keys() == wanted_metrics.keys()
    for name, wanted_number in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], wanted_number, err_msg=name, **CLOSE)
    assert metrics["pairs"] == 15


def test_pairs_without_a_place_are_counted_and_left_out(sources, tokenizer):
    metrics, _ = find_gradient(sources, tokenizer, (1, 1, 1), batching__rows_per_cell=6)
    assert metrics["pairs"] + metrics["masked_overflow"] == 15
    assert metrics["masked_overflow"] > 0
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("model", [{}, LLAMA], ids=["gpt", "llama"])
def test_a_state_born_sharded_equals_the_whole_one(model):
    experiment = make_experiment(**model)
    mesh = make_mesh(config.Mesh(2, 2, 2))
    sharded = init_state(experiment, mesh)
    whole = jax.jit(partial(build_state, experiment))()
    chex.assert_trees_all_equal(jax.device_get(sharded), jax.device_get(whole))
    # The shardings are those of `shard_state`, and Adam's moments are sharded like parameters.
    plans = jax.tree.leaves(shard_state(experiment, mesh))
    for array, plan in zip(jax.tree.leaves(sharded), plans, strict=True):
        assert array.sharding.is_equivalent_to(plan.sharding, array.ndim)
    query = sharded.params["encoder"]["blocks"]["query"]
    assert {shard.data.shape for shard in query.addressable_shards} == {(2, 8, 2, 4)}
    moments = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(sharded.opt_state)
        if path[-1] == jax.tree_util.DictKey("query")
    ]
    assert len(moments) == 2
    assert all(moment.sharding == query.sharding for moment in moments)


def test_a_step_applies_the_optimizer_and_clamps_the_temperature(sources, tokenizer):
    experiment = make_experiment(batching__chunks=2)
    mesh = make_mesh(config.Mesh(2, 2, 2))
    with jax.set_mesh(mesh):
        batch = Batches(experiment, sources, tokenizer, mesh).make(0)
        state = init_state(experiment, mesh)
        before = jax.device_get(state)
        metrics, gradient = jax.jit(partial(compute_gradient, experiment))(state.params, batch)
        step = make_train_step(experiment, mesh)
        state, step_metrics = step(state, batch)
        after = jax.device_get(state)
        beyond = jnp.float32(np.log(150.0))
        state = replace(state, params=state.params | {"log_scale": beyond})
        clamped, clamped_metrics = step(state, batch)

    gradient = jax.device_get(gradient)
    optimizer = make_optimizer(
        experiment.optimizer, experiment.train_steps, name_parameters(experiment)
    )
    updates, _ = optimizer.update(gradient, before.opt_state, before.params)
    wanted = jax.tree.map(np.add, before.params, updates)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(after.params), jax.tree.leaves(wanted), strict=True
    ):
        if path[-1].key != "key_bias":  # no gradient: Adam scales up its rounding
            # Adam divides a gradient by its own size, even if the gradient is only rounding error.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5, err_msg=str(path))
    assert after.step == 1
    np.testing.assert_allclose(step_metrics["loss"], metrics["loss"], **CLOSE)
    length = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(step_metrics["gradient_norm"], length, **CLOSE)
    np.testing.assert_allclose(step_metrics["scale"], 1 / 0.07, **CLOSE)
    np.testing.assert_allclose(step_metrics["learning_rate"], 1e-3 / 2, **CLOSE)
    np.testing.assert_allclose(clamped.params["log_scale"], np.log(100.0), **CLOSE)
    np.testing.assert_allclose(clamped_metrics["scale"], 150.0, **CLOSE)
    assert all(np.isfinite(number) for number in clamped_metrics.values())


def rate_at(step, peak, warmup, steps, final_share):
    start = peak / (warmup + 1)
    if step < warmup:
        return start + (peak - start) * step / warmup
    along = min((step - warmup) / (steps - warmup), 1.0)
    return peak * (final_share + (1 - final_share) * (1 + np.cos(np.pi * along)) / 2)


def test_the_learning_rate_warms_up_and_decays():
    settings = config.Optimizer(learning_rate=2e-3, warmup_steps=4, final_share=0.25)
    schedule = make_schedule(settings, 20)
    for step in range(24):
        np.testing.assert_allclose(schedule(step), rate_at(step, 2e-3, 4, 20, 0.25), **CLOSE)
    np.testing.assert_allclose(schedule(20), 0.25 * 2e-3, **CLOSE)


@pytest.mark.parametrize("embedding_rate", [None, 5e-2])
def test_the_optimizer_is_adamw_of_numpy(embedding_rate):
    """Matrices decay, tables have their own rate, and the whole gradient is clipped."""
    experiment = make_experiment(**LLAMA | {"model__biases": True, "model__norm": "layernorm"})
    settings = config.Optimizer(
        learning_rate=1e-2,
        embedding_learning_rate=embedding_rate,
        warmup_steps=2,
        weight_decay=0.3,
        b2=0.9,
    )
    params = jax.device_get(jax.jit(partial(build_state, experiment))().params)
    optimizer = make_optimizer(settings, 6, name_parameters(experiment))
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    matrices = {"query", "key", "value", "out", "up", "gate", "down"}
    tables = {"tokens", "positions", "token_weights"}
    names = jax.tree.map_with_path(lambda path, _: path[-1].key, params)
    assert matrices < set(jax.tree.leaves(names))

    random = np.random.default_rng(0)
    wanted = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    first = second = jax.tree.map(np.zeros_like, wanted)
    for step in range(4):
        size = 10.0 ** (1 - step)  # the last gradients are too short to be clipped
        gradient = jax.tree.map(
            lambda p, size=size: (size * 0.1 * random.normal(size=p.shape)).astype(np.float32),
            params,
        )
        updates, state = update(gradient, state, params)
        params = jax.tree.map(np.add, params, updates)

        length = np.sqrt(sum(np.sum(g.astype(float) ** 2) for g in jax.tree.leaves(gradient)))
        clip = min(1.0, settings.clip_norm / length)
        first = jax.tree.map(lambda m, g, c=clip: 0.9 * m + 0.1 * c * g, first, gradient)
        second = jax.tree.map(lambda v, g, c=clip: 0.9 * v + 0.1 * (c * g) ** 2, second, gradient)
        rate, correction = rate_at(step, 1e-2, 2, 6, 0.1), 1 - 0.9 ** (step + 1)

        def move(p, m, v, name, rate=rate, correction=correction):
            change = m / correction / (np.sqrt(v / correction) + settings.eps)
            change = change + (0.3 * p if name in matrices else 0.0)
            share = (embedding_rate or 1e-2) / 1e-2 if name in tables else 1.0
            return p - rate * share * change

        wanted = jax.tree.map(move, wanted, first, second, names)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, wanted
        )  # atol: the sum of steps of 1e-2 in float32


def test_prefixes_share_the_loss_equally():
    """The loss is the mean over widths. For each width, embeddings are cut and normalised."""
    experiment = make_experiment(loss__prefixes=(4, 8), batching__pairs_per_batch=8)
    random = np.random.default_rng(0)
    z_ngtd = random.normal(size=(1, 2, 8, 16)).astype(np.float32)
    hash_ngt2 = np.arange(32, dtype=np.uint32).reshape(1, 2, 8, 2)
    arrays = CellArrays((1, 2), rows=1, row_tokens=2, texts=8)
    batch = Batch(make_cells(arrays), np.ones((1, 2, 8), bool), hash_ngt2)
    mesh = make_mesh(config.Mesh(2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        find = jax.value_and_grad(partial(global_loss, experiment), has_aux=True)
        placed = jax.device_put(z_ngtd, named(mesh, "ng"))
        (value, metrics), dz_ngtd = jax.jit(find)(placed, jnp.float32(2.0), batch)

    def cross_entropy(z_ngtd):
        zx, zy = np.split(z_ngtd[0], 2, axis=1)
        zx, zy = (
            z.reshape(8, -1) / np.linalg.norm(z.reshape(8, -1), axis=1)[:, None] for z in (zx, zy)
        )
        logits = np.exp(2.0) * zx @ zy.T
        sums = np.log(np.exp(logits).sum(1)) + np.log(np.exp(logits).sum(0))
        return np.mean(sums - 2 * np.diagonal(logits)) / 2

    z_ngtd = z_ngtd.astype(np.float64)

    def mean(z_ngtd):
        return np.mean([cross_entropy(z_ngtd[..., :width]) for width in (4, 8, 16)])

    np.testing.assert_allclose(value, mean(z_ngtd), **CLOSE)
    np.testing.assert_allclose(metrics["pairs"], 8)
    for index in [(0, 0, 0, 1), (0, 1, 3, 7), (0, 1, 6, 12)]:  # x and y, in each of the widths
        step = np.zeros_like(z_ngtd)
        step[index] = 1e-5
        slope = (mean(z_ngtd + step) - mean(z_ngtd - step)) / 2e-5
        np.testing.assert_allclose(dz_ngtd[index], slope, rtol=1e-4)  # a difference quotient


def test_the_step_is_traced_once(sources, tokenizer, monkeypatch):
    """A second trace would compile the step again in the middle of a run."""
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(update.compute_gradient, n=1)
    monkeypatch.setattr(update, "compute_gradient", counted)
    experiment = make_experiment()
    mesh = make_mesh(config.Mesh(2, 2, 2))
    with jax.set_mesh(mesh):
        batches = Batches(experiment, sources, tokenizer, mesh)
        state, train_step = init_state(experiment, mesh), make_train_step(experiment, mesh)
        for step in range(3):
            state, _ = train_step(state, batches.make(step))
        with pytest.raises(AssertionError, match="traced > 1 times"):
            make_train_step(experiment, mesh)(state, batches.make(3))
