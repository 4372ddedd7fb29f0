"""One training step, exact for any number of chunks: `train_step(state, batch)`.

In: `TrainState` and a `Batch`, both sharded. Out: the next state and global metrics. The module
knows neither where batches come from nor what is saved. In a run with adapters, only the adapters
and the temperature have a gradient and an optimizer state.

A contrastive loss cannot be accumulated: the mean of microbatch losses lacks most negatives.
Therefore, with several chunks, the step encodes each chunk twice, as GradCache does (arXiv
2101.06983). The first pass encodes every chunk and keeps only the embeddings. The loss of the whole
batch then gives a gradient for each embedding. The second pass encodes each chunk again and
propagates that gradient back to the parameters.

The generative loss is a mean over all predicted tokens of the global batch. Its gradient is a sum
over chunks, so one pass is enough.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxcpt.adapter import FROZEN_DTYPE, join_params, split_params
from jaxcpt.batches import Batch
from jaxcpt.config import Experiment
from jaxcpt.loss import Labels, Scalars, contrastive_loss
from jaxcpt.model import (
    Array,
    Cells,
    Params,
    encode,
    encode_tokens,
    initialise,
    make_encoder,
    name_axes,
)
from jaxcpt.next_token import find_targets, sum_nats
from jaxcpt.normalise import normalise
from jaxcpt.optimizer import count_updates, make_optimizer, make_schedule, measure_norm
from jaxcpt.sharding import constrain, named, partition_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a run must save to resume.

    step       number of steps that are done
    params     {encoder, log_scale}: the trained parameters. A generative run has a log_scale too,
               which does not change, so that all checkpoints have the same form.
    opt_state  the optimizer state of params
    base       the encoder's frozen parameters, in bfloat16, if params has only adapters; otherwise
               empty
    bad_steps  how many steps in a row, up to this one, changed nothing (see `train_step`)
    """

    step: jax.Array
    params: Params
    opt_state: Any
    base: Params = field(default_factory=dict)
    bad_steps: jax.Array | int = 0

    @property
    def encoder(self) -> Params:
        """All parameters of the encoder, in the form that `model.encode` takes."""
        return join_params(self.base, self.params["encoder"])


def name_parameters(experiment: Experiment) -> Any:
    """The letters of all trained parameters, as a tree like `TrainState.params`."""
    axes = name_axes(make_encoder(experiment))
    if experiment.adapter is not None:
        _, axes = split_params(axes, axes)
    return {"encoder": axes, "log_scale": ()}


def _make_optimizer(experiment: Experiment) -> Any:
    axes = name_parameters(experiment)
    return make_optimizer(experiment.optimizer, experiment.train_steps, axes)


def build_state(experiment: Experiment, encoder_params: Params | None = None) -> TrainState:
    """The state at step 0. Call it only under `jax.eval_shape` or in `init_state`.

    encoder_params: parameters to start from, without adapters. None: random parameters.
    """
    base: Params = {}
    encoder = make_encoder(experiment)
    drawn = initialise(encoder, jax.random.key(experiment.seed))
    if experiment.adapter is None:
        trained = drawn if encoder_params is None else encoder_params
    else:
        base, trained = split_params(drawn, name_axes(encoder))
        base = base if encoder_params is None else encoder_params
        base = jax.tree.map(lambda leaf: leaf.astype(FROZEN_DTYPE), base)
    log_scale = jnp.log(jnp.float32(experiment.loss.scale_start))
    params = {"encoder": trained, "log_scale": log_scale}
    opt_state = _make_optimizer(experiment).init(params)
    return TrainState(jnp.int32(0), params, opt_state, base, jnp.int32(0))


@lru_cache(maxsize=8)
def shape_state(experiment: Experiment) -> TrainState:
    """The shapes of the state at step 0. The result is cached for each experiment."""
    return jax.eval_shape(partial(build_state, experiment))


def shard_state(experiment: Experiment, mesh: jax.sharding.Mesh) -> TrainState:
    """A tree like the state, of ShapeDtypeStructs with their shardings.

    Adam's moments are sharded like their parameters, which are found by the end of their paths.
    """
    axes = name_axes(make_encoder(experiment)) | {"log_scale": ()}
    letters = {
        tuple(key.key for key in path): names
        for path, names in jax.tree.leaves_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))
    }

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        keys = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        keys = keys[1:] if keys[:1] == ("encoder",) else keys
        spec = partition_spec(letters[keys], "storage") if keys else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map_with_path(place, shape_state(experiment))


def init_state(
    experiment: Experiment, mesh: jax.sharding.Mesh, encoder_params: Params | None = None
) -> TrainState:
    """The state at step 0. Each array is created in shards and is never whole on one device.

    encoder_params: parameters to start from, sharded as in `shard_state`. None: random parameters.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shard_state(experiment, mesh))
    build = jax.jit(partial(build_state, experiment), out_shardings=shardings)
    return build() if encoder_params is None else build(encoder_params)


def make_train_step(
    experiment: Experiment, mesh: jax.sharding.Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Scalars]]:
    """The jitted step. It donates the state that it gets. Call it under `jax.set_mesh(mesh)`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shard_state(experiment, mesh))
    return jax.jit(
        partial(train_step, experiment),
        donate_argnums=0,
        out_shardings=(shardings, named(mesh)),
        compiler_options=choose_compiler_options(mesh),
    )


def compile_train_step(
    experiment: Experiment, mesh: jax.sharding.Mesh, shapes: Iterable[Batch]
) -> Callable[[TrainState, Batch], tuple[TrainState, Scalars]]:
    """The same step, compiled now for these shapes of batches. It accepts no other shapes."""
    step: Any = make_train_step(experiment, mesh)
    state = shard_state(experiment, mesh)
    by_shape = {
        batch.cells.tokens_grl.shape: step.lower(state, batch).compile() for batch in shapes
    }
    return lambda state, batch: by_shape[batch.cells.tokens_grl.shape](state, batch)


def choose_compiler_options(mesh: jax.sharding.Mesh) -> dict[str, bool | int]:
    """Options of XLA that make a TPU gather a layer's parameters while it computes another layer.

    docs/plans.md says how much time they save. Other platforms get no options.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return {}
    return {
        "xla_enable_async_all_gather": True,
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        # Do not split a product into parts that are sent round the ring of `tensor` one by one.
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
    }


def train_step(
    experiment: Experiment, state: TrainState, batch: Batch
) -> tuple[TrainState, Scalars]:
    """One update. The metrics are those of the batch before the update.

    A step is bad if its loss or its gradient is not finite. A bad step changes neither the
    parameters nor the optimizer state. After `max_bad_steps` bad steps in a row, no later step
    changes anything, because the caller reads `bad_steps` some steps later and then stops the run.
    """
    metrics, gradient = compute_gradient(experiment, state.params, batch, state.base)
    norm = measure_norm(gradient)
    applied = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    applied &= state.bad_steps < experiment.safety.max_bad_steps
    bad_steps = jnp.where(applied, 0, state.bad_steps + 1)
    schedule = make_schedule(experiment.optimizer, experiment.train_steps)
    if experiment.objective == "contrastive":
        metrics["scale"] = jnp.exp(state.params["log_scale"])
    metrics |= {
        "gradient_norm": norm,
        "learning_rate": schedule(count_updates(state.opt_state)),
        "bad_steps": bad_steps,
    }
    # Both branches work in place. `jnp.where` would need a second copy of most of the state.
    params, opt_state = jax.lax.cond(
        applied,
        partial(_apply, experiment),
        lambda _, params, opt_state: (params, opt_state),
        gradient,
        state.params,
        state.opt_state,
    )
    return TrainState(state.step + 1, params, opt_state, state.base, bad_steps), metrics


def _apply(
    experiment: Experiment, gradient: Params, params: Params, opt_state: Any
) -> tuple[Params, Any]:
    """The parameters and the optimizer state after an update."""
    updates, opt_state = _make_optimizer(experiment).update(gradient, opt_state, params)
    params = jax.tree.map(jnp.add, params, updates)
    # Clamp here. In the loss, clamping would make the gradient of the temperature zero.
    params["log_scale"] = jnp.minimum(params["log_scale"], jnp.log(experiment.loss.scale_max))
    return params, opt_state


def compute_gradient(
    experiment: Experiment, params: Params, batch: Batch, base: Params | None = None
) -> tuple[Scalars, Params]:
    """Global metrics (with the loss) and the exact gradient of everything in `params`.

    base: the frozen parameters of a run with adapters, which get no gradient.
    """
    if experiment.objective == "generative":
        return _compute_generative_gradient(experiment, params, batch, base)
    encoder = make_encoder(experiment)

    def encode_chunk(encoder_params: Params, cells: Cells) -> jax.Array:
        return encode(encoder, join_params(base, encoder_params), cells)

    find_loss = jax.value_and_grad(partial(global_loss, experiment), argnums=(0, 1), has_aux=True)
    if experiment.batching.chunks == 1:
        only_chunk = jax.tree.map(lambda a: a[0], batch.cells)
        z_gtd, pull = jax.vjp(lambda p: encode_chunk(p, only_chunk), params["encoder"])
        (loss, metrics), (dz_ngtd, dlog_scale) = find_loss(z_gtd[None], params["log_scale"], batch)
        (encoder_gradient,) = pull(dz_ngtd[0])
    else:
        z_ngtd = jax.lax.map(partial(encode_chunk, params["encoder"]), batch.cells)
        (loss, metrics), (dz_ngtd, dlog_scale) = find_loss(z_ngtd, params["log_scale"], batch)
        encoder_gradient = _pull_chunks(experiment, encode_chunk, params, batch.cells, dz_ngtd)
    return metrics | {"loss": loss}, {"encoder": encoder_gradient, "log_scale": dlog_scale}


def _pull_chunks(
    experiment: Experiment,
    encode_chunk: Callable,
    params: Params,
    cells: Cells,
    dz_ngtd: jax.Array,
) -> Params:
    """Second pass: the sum over chunks of each chunk's gradient."""

    def pull_chunk(chunk: tuple[Cells, jax.Array]) -> tuple[Params, None]:
        cells, dz_gtd = chunk
        _, pull = jax.vjp(lambda p: encode_chunk(p, cells), params["encoder"])
        return pull(dz_gtd)[0], None

    return _add_chunks(experiment, pull_chunk, params, (cells, dz_ngtd))[0]


def _add_chunks(
    experiment: Experiment, find: Callable[[Any], tuple[Params, Any]], params: Params, chunks: Any
) -> tuple[Params, Any]:
    """Calls `find` on each chunk. Returns the sum of the gradients, in the storage sharding, and
    the other result of each chunk."""
    axes = name_parameters(experiment)["encoder"]

    def store(gradient: Params) -> Params:
        return jax.tree.map(lambda g, letters: constrain(g, letters, "storage"), gradient, axes)

    def add_chunk(total: Params, chunk: Any) -> tuple[Params, Any]:
        gradient, others = find(chunk)
        return store(jax.tree.map(jnp.add, total, gradient)), others

    zeros = store(jax.tree.map(jnp.zeros_like, params["encoder"]))
    return jax.lax.scan(add_chunk, zeros, chunks)


def _compute_generative_gradient(
    experiment: Experiment, params: Params, batch: Batch, base: Params | None
) -> tuple[Scalars, Params]:
    """Metrics and gradient of the generative objective, like `compute_gradient`.

    The gradient of the temperature is zero.
    """
    encoder = make_encoder(experiment)
    targets_ngs = find_targets(batch.cells)
    predicted = jnp.sum(targets_ngs >= 0).astype(jnp.float32)

    def find_share(encoder_params: Params, cells: Cells, targets_gs: jax.Array) -> jax.Array:
        """The chunk's part of the batch's loss."""
        whole = join_params(base, encoder_params)
        hidden_gsd = encode_tokens(encoder, whole, cells)
        return sum_nats(hidden_gsd, whole["tokens"], targets_gs) / predicted

    def find(chunk: tuple[Cells, jax.Array]) -> tuple[Params, jax.Array]:
        share, gradient = jax.value_and_grad(find_share)(params["encoder"], *chunk)
        return gradient, share

    chunks = batch.cells, targets_ngs
    if experiment.batching.chunks == 1:
        gradient, loss = find(jax.tree.map(lambda a: a[0], chunks))
    else:
        gradient, shares_n = _add_chunks(experiment, find, params, chunks)
        loss = jnp.sum(shares_n)
    count = batch.present_ngt.shape[2] // (2 + experiment.batching.negatives)
    pairs = jnp.sum(batch.present_ngt[:, :, :count]).astype(jnp.float32)
    metrics = {"loss": loss, "pairs": pairs, "predicted": predicted}
    metrics |= _count_places(experiment, batch, pairs)
    return metrics, {"encoder": gradient, "log_scale": jnp.zeros_like(params["log_scale"])}


def _count_places(experiment: Experiment, batch: Batch, pairs: jax.Array) -> Scalars:
    """Metrics of how well the batch fills its rows. pairs: the number of pairs with a place."""
    padding = batch.cells.segments_grl == 0
    return {
        "masked_overflow": experiment.batching.pairs_per_batch - pairs,
        "tokens": jnp.sum(~padding).astype(jnp.float32),
        "padding": jnp.mean(padding),
    }


def global_loss(
    experiment: Experiment, z_ngtd: jax.Array, log_scale: jax.Array, batch: Batch
) -> tuple[jax.Array, Scalars]:
    """The loss of the whole batch. z_ngtd: the pooled hidden states of all its texts.

    The texts of a cell are first its x, then its y, then its hard negatives, each in the order of
    the pairs. The loss does not depend on the order of pairs, so each data shard keeps the pairs
    that it has encoded.
    """
    count = batch.present_ngt.shape[2] // (2 + experiment.batching.negatives)

    def by_shard(a: Array) -> jax.Array:
        """[n, g, any, ...] -> [g, n * any, ...]. No data moves between data shards."""
        joined = jnp.swapaxes(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])
        return constrain(joined, "g" + "n" * (joined.ndim - 1))

    def split(a: Array) -> tuple[jax.Array, jax.Array]:
        """The x of all pairs, and all candidates: for each data shard, its y and its negatives."""
        x, y, negatives = (
            by_shard(part) for part in jnp.split(jnp.asarray(a), [count, 2 * count], axis=2)
        )
        candidates = jnp.concatenate([y, negatives], axis=1)
        return x.reshape(-1, *x.shape[2:]), candidates.reshape(-1, *x.shape[2:])

    zx_bd, zc_cd = split(z_ngtd)
    present_b, present_c = split(batch.present_ngt)
    hash_x_b2, hash_c_c2 = split(batch.hash_ngt2)
    labels = Labels(present_b, hash_x_b2, present_c, hash_c_c2)
    losses = []
    for width in (*experiment.loss.prefixes, experiment.model.width):
        zx, zc = normalise(zx_bd[:, :width]), normalise(zc_cd[:, :width])
        loss, metrics = contrastive_loss(zx, zc, log_scale, labels, experiment.loss.form)
        losses.append(loss)

    def mean_norm(z_bd: jax.Array) -> jax.Array:
        return jnp.sum(jnp.linalg.norm(z_bd, axis=-1) * present_b) / metrics["pairs"]

    zy_bd = split(z_ngtd[:, :, : 2 * count])[1]
    metrics |= {"zx_norm": mean_norm(zx_bd), "zy_norm": mean_norm(zy_bd)}
    return jnp.mean(jnp.stack(losses)), metrics | _count_places(experiment, batch, metrics["pairs"])
