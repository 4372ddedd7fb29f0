"""LoRA: gradients are exact on any mesh, the base does not change, and checkpoints lack it."""

import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLOSE, PAIRS, make_experiment
from test_start import start_from
from test_train import forget, read_state
from test_update import LLAMA, assert_same_gradient
from tiny_run import tiny_run

import jaxcpt
from jaxcpt.adapter import merge_adapters
from jaxcpt.batches import Batches, shape_batch, size_full_batches
from jaxcpt.budget import count_budget, describe
from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.checks import validate
from jaxcpt.config import Adapter, InitFrom, Mesh, Model
from jaxcpt.errors import UserError
from jaxcpt.experiments import read_experiment
from jaxcpt.metrics import read_rows
from jaxcpt.planning.cost import count_flops
from jaxcpt.sharding import make_mesh
from jaxcpt.smoke import shrink
from jaxcpt.start import restore_start
from jaxcpt.train import train
from jaxcpt.update import compute_gradient, init_state, shard_state

ALL = ("query", "key", "value", "out", "up", "gate", "down")
ADAPTED = {"adapter": Adapter(3, alpha=5.0, targets=ALL), "init_from": InitFrom("any")}


def draw_state(experiment, mesh):
    """A state with random adapters. At the start, B would be zero."""
    state = init_state(experiment, mesh)
    random = np.random.default_rng(0)

    def draw(leaf):
        values = random.normal(0.0, 0.3, leaf.shape).astype(np.float32)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: values[index])

    drawn = jax.tree.map(draw, state.params["encoder"])
    return replace(state, params=state.params | {"encoder": drawn})


def find_gradient(sources, tokenizer, shape, **changes):
    experiment = make_experiment(**ADAPTED, **changes)
    mesh = make_mesh(Mesh(*shape), jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        batch = Batches(experiment, sources, tokenizer, mesh).make(0)
        state = draw_state(experiment, mesh)
        find = jax.jit(partial(compute_gradient, experiment))
        _, gradient = find(state.params, batch, state.base)
    return jax.device_get(gradient)


def project_gradient(sources, tokenizer, **changes):
    """The gradients dA = alpha / rank * dW B^T and dB = alpha / rank * A^T dW.

    dW is the gradient of a plain encoder that has the merged weights.
    """
    experiment = make_experiment(**ADAPTED, **changes)
    plain = replace(experiment, adapter=None)
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        batch = Batches(plain, sources, tokenizer, mesh).make(0)
        state = draw_state(experiment, mesh)
        merged = merge_adapters(state.encoder, experiment.adapter)
        params = {"encoder": merged, "log_scale": state.params["log_scale"]}
        _, gradient = jax.jit(partial(compute_gradient, plain))(params, batch)
    gradient, trained = jax.device_get((gradient, state.params["encoder"]["blocks"]))
    wanted = {}
    for name in {key.removesuffix("_a").removesuffix("_b") for key in trained}:
        a, b = trained[f"{name}_a"], trained[f"{name}_b"]
        flat_a, flat_b = a.reshape(len(a), -1, 3), b.reshape(len(b), 3, -1)
        dw = gradient["encoder"]["blocks"][name].reshape(len(a), flat_a.shape[1], -1)
        wanted[f"{name}_a"] = (5 / 3 * np.einsum("ixy,iay->ixa", dw, flat_b)).reshape(a.shape)
        wanted[f"{name}_b"] = (5 / 3 * np.einsum("ixa,ixy->iay", flat_a, dw)).reshape(b.shape)
    return {"encoder": {"blocks": wanted}, "log_scale": gradient["log_scale"]}


@pytest.mark.parametrize(
    ("model", "shape", "chunks"),
    [
        (LLAMA, (1, 1, 1), 1),
        (LLAMA, (2, 2, 2), 3),
        ({"model__cut_residual": True}, (1, 4, 2), 2),
    ],
)
def test_the_gradient_is_that_of_the_merged_weights(model, shape, chunks, sources, tokenizer):
    wanted = project_gradient(sources, tokenizer, **model)
    found = find_gradient(sources, tokenizer, shape, batching__chunks=chunks, **model)
    assert_same_gradient(found, wanted)
    assert len(found["encoder"]["blocks"]) == 2 * (7 if model is LLAMA else 6)


def test_no_gradient_of_a_frozen_weight_is_computed():
    """A step has two products with each frozen weight, and three with each trained weight."""
    changes = {"model__width": 64, "model__remat": "nothing", "model__biases": False}
    flops = {}
    for adapter in (None, Adapter(1, targets=ALL)):
        experiment = make_experiment(adapter=adapter, init_from=InitFrom("any"), **changes)
        mesh = make_mesh(Mesh(), jax.devices()[:1])
        state = shard_state(experiment, mesh)
        batch = shape_batch(size_full_batches(experiment, 1), mesh)
        find = partial(compute_gradient, experiment)
        with jax.set_mesh(mesh):
            traced = jax.jit(find).trace(state.params, batch, state.base)
        flops[adapter] = count_flops(traced.jaxpr.jaxpr, 1)
    without, with_adapter = flops.values()
    assert with_adapter < 0.8 * without


def adapt(run, **changes):
    """An experiment that trains adapters on `run`, with a rate at which B does not stay near 0."""
    experiment = start_from(run, optimizer__learning_rate=1e-2, **changes)
    return replace(experiment, adapter=Adapter(2, alpha=2.0, targets=ALL), name="adapted")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A finished run with adapters, whose start has been deleted."""
    folder = tmp_path_factory.mktemp("adapter")
    start, run_dir = shutil.copytree(tiny_run(), folder / "start"), folder / "adapted"
    train(adapt(start), run_dir, run_dir)
    shutil.rmtree(start)
    return run_dir


@pytest.fixture
def copied(adapted, tmp_path):
    return shutil.copytree(adapted, tmp_path / "run")


def test_the_base_stays_as_it_was_and_the_adapters_learn(adapted):
    start, state = read_state(tiny_run()), read_state(adapted)
    whole = start.params["encoder"]
    jax.tree.map(
        lambda kept, source: np.testing.assert_array_equal(kept, source.astype(jnp.bfloat16)),
        state.base,
        whole,
    )
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(state.params["encoder"]))
    losses = [row["loss"] for row in read_rows(adapted / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_a_checkpoint_holds_adapters_only(adapted):
    state = read_state(adapted)
    names = json.dumps(
        json.loads((adapted / "checkpoints" / "6" / "params" / "_METADATA").read_text())
    )
    assert "query_a" in names
    assert "tokens" not in names
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    frozen = sum(leaf.nbytes for leaf in jax.tree.leaves(state.base))
    experiment = read_experiment(adapted)
    sizes = size_full_batches(experiment, 4)
    budget = count_budget(experiment, sizes)
    counters = state.step.nbytes + state.bad_steps.nbytes
    assert (budget.base_bytes, budget.state_bytes) == (frozen, frozen + trained + counters)
    with CheckpointStore(adapted / "checkpoints") as checkpoints:
        names = {"tokenizer", "limits", "model", "adapter", "data", "previous", "base"}
        assert checkpoints.read_meta(6).keys() == names
    with CheckpointStore(adapted / "base") as kept:
        assert kept.steps() == [0]


def test_merged_parameters_embed_alike(adapted):
    texts = [pair.y for pair in PAIRS[:20]]
    embedder = jaxcpt.Embedder.load(adapted)
    experiment = embedder.experiment
    merged = merge_adapters(embedder.params, experiment.adapter)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(np.float32)}
    plain = jaxcpt.Embedder(
        replace(experiment, adapter=None), merged, embedder.tokenizer, embedder.mesh
    )
    vectors = embedder.embed(texts, "y")
    # Unit vectors; the two compute their sums in another order.
    np.testing.assert_allclose(plain.embed(texts, "y"), vectors, rtol=1e-5, atol=1e-6)
    before = jaxcpt.Embedder.load(tiny_run()).embed(texts, "y")
    assert np.abs(before - vectors).max() > 0.01


def test_a_resume_is_exact_and_needs_no_start(copied, adapted):
    whole = read_state(adapted)
    forget(copied, 6)
    train(read_experiment(copied), copied, copied)
    jax.tree.map(np.testing.assert_array_equal, read_state(copied), whole)


def test_other_devices_go_on_alike(copied, adapted):
    forget(copied, 6)
    path = copied / "experiment.json"
    tree = json.loads(path.read_text())
    tree["mesh"] |= {"data": 8, "fsdp": 1, "tensor": 1}
    path.write_text(json.dumps(tree))
    train(read_experiment(copied), copied, copied)
    found, wanted = read_state(copied), read_state(adapted)
    jax.tree.map(np.testing.assert_array_equal, found.base, wanted.base)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
        # Adam divides a gradient by its own size, even if the gradient is only rounding error.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_a_run_can_start_from_adapters(adapted):
    mesh = make_mesh(Mesh(-1, 2, 2))
    experiment = replace(read_experiment(adapted), adapter=None, init_from=InitFrom(str(adapted)))
    found = restore_start(experiment, adapted.parent / "next", mesh)
    embedder = jaxcpt.Embedder.load(adapted)
    wanted = merge_adapters(embedder.params, embedder.experiment.adapter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, wanted)
    layouts = shard_state(experiment, mesh).params["encoder"]
    assert jax.tree.map(lambda a, plan: a.sharding == plan.sharding, found, layouts)


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda base: shutil.rmtree(base), r"base: no checkpoint of step 0; there are: none"),
        (
            lambda base: (base / "0.sha256.json").write_text("{}"),
            r"base: checkpoint of step 0 is damaged: ",
        ),
        (
            lambda base: (base / "0.sha256.json").write_text(
                (base / "0.sha256.json").read_text() + "\n"
            ),
            r"base: step 6 was trained with other frozen parameters \(sha256 [0-9a-f]{12}, "
            r"found [0-9a-f]{12}\); put the run's own folder back",
        ),
    ],
)
def test_another_base_is_refused(copied, harm, text):
    harm(copied / "base")
    with pytest.raises(UserError, match=text):
        jaxcpt.Embedder.load(copied)


@pytest.mark.parametrize(
    ("adapter", "changes", "text"),
    [
        (Adapter(0), {}, "adapter.rank: must be above 0, found 0"),
        (Adapter(2, alpha=-1.0), {}, "adapter.alpha: must be above 0, found -1.0"),
        (
            Adapter(2, targets=("query", "q_proj")),
            {},
            "adapter.targets: no weight is named q_proj; there are query, key, value, out, up, "
            "gate, down",
        ),
        (
            Adapter(2, targets=("gate",)),
            {},
            r"adapter.targets: \(gate\) match no weight of the model; it has query, key, value, "
            "out, up, down",
        ),
        (
            Adapter(2, targets=()),
            {},
            r"adapter.targets: \(\) match no weight of the model; it has query, key",
        ),
        (
            Adapter(2),
            {"model__layers": 0, "model__pooling": "mean"},
            r"adapter.targets: \(query, value\) match no weight of the model; it has no layers",
        ),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(adapter, changes, text):
    experiment = make_experiment(init_from=InitFrom("any"), **changes)
    with pytest.raises(UserError, match=text):
        validate(replace(experiment, adapter=adapter))


def test_an_adapter_without_a_start_is_refused():
    with pytest.raises(UserError, match="adapter: needs init_from, whose parameters it adapts"):
        validate(replace(make_experiment(), adapter=Adapter(2)))


def test_a_smoke_run_has_no_adapter():
    assert validate(shrink(make_experiment(**ADAPTED))).adapter is None


@pytest.mark.parametrize(
    ("targets", "at_least", "at_most"),
    [(Adapter(16).targets, 0.004, 0.01), (ALL, 0.02, 0.03)],
    ids=["query and value", "all weights"],
)
def test_the_optimizer_state_of_seven_billion_parameters_is_small(targets, at_least, at_most):
    """Checks the table that is shown before a run, for Llama 7B at rank 16."""
    model = Model(
        width=4096,
        layers=32,
        heads=32,
        mlp_width=11_008,
        norm="rmsnorm",
        positions="rotary",
        mlp="swiglu",
        biases=False,
    )
    experiment = replace(
        make_experiment(tokenizer__vocabulary=32_000),
        model=model,
        init_from=InitFrom("any"),
        adapter=Adapter(16, targets=targets),
    )
    sizes = size_full_batches(validate(experiment), 8)
    budget = count_budget(experiment, sizes)
    assert budget.parameters == pytest.approx(6.6e9, rel=0.02)
    assert at_least < budget.optimizer_bytes / budget.base_bytes < at_most
    shown = describe(experiment, sizes, budget)
    assert "% of the frozen base's 13.2 GB" in shown["optimizer state"]
    full = count_budget(replace(experiment, adapter=None), sizes)
    assert budget.model_flops_per_step < 0.75 * full.model_flops_per_step
