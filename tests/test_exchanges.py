"""In the compiled programs, devices never exchange the activations of several cells."""

import math

import jax
import jax.numpy as jnp
import pytest
from conftest import make_experiment

from jaxcpt.batches import shape_batch, size_full_batches
from jaxcpt.config import Adapter, InitFrom, Mesh, WeightedMean
from jaxcpt.embed import make_embed_cells, split_layers
from jaxcpt.planning.hlo import EXCHANGES, Program, list_arrays, read_program
from jaxcpt.sharding import constrain, count_data_shards, make_mesh, named
from jaxcpt.update import init_state, make_train_step, shard_state

MESHES = [Mesh(2, 2, 2), Mesh(2, 4, 1), Mesh(4, 2, 1), Mesh(1, 4, 2), Mesh(1, 1, 8)]


def name(mesh):
    return f"{mesh.data}x{mesh.fsdp}x{mesh.tensor}"


SIZES = {
    "model__width": 64,
    "model__heads": 8,
    "model__positions": "learnt",
    "tokenizer__vocabulary": 512,
    "batching__pairs_per_batch": 48,
    "batching__row_tokens": 40,
    "batching__rows_per_cell": 24,
}
"""A cell's activations [24, 40, 64] are larger than any parameter and than all embeddings. A larger
exchange can only be one of the activations of several cells."""
CELL = 24 * 40 * 64


def list_excess(program: Program) -> list[str]:
    """The exchanges in which a device gets more bytes than the activations of its own cell."""
    return [
        instruction.text
        for computation in program.computations.values()
        for instruction in computation.values()
        if instruction.opcode.removesuffix("-start") in EXCHANGES
        if max(math.prod(array.shape) for array in list_arrays(instruction.shape)) > CELL
    ]


def compile_step(mesh, **changes):
    experiment = make_experiment(mesh=mesh, **(SIZES | changes))
    devices = make_mesh(mesh)
    batch = shape_batch(size_full_batches(experiment, count_data_shards(devices)), devices)
    with jax.set_mesh(devices):
        step = make_train_step(experiment, devices)
        return step.lower(shard_state(experiment, devices), batch).compile()


CHANGES = {
    "plain": {},
    "chunks": {"batching__chunks": 2},
    "cut residual": {"model__cut_residual": True},
    "adapters": {"adapter": Adapter(rank=4), "init_from": InitFrom("a run")},
    "mean": {
        "model__pooling": "mean",
        "model__weighted_mean": WeightedMean(token_weights=True, position_weights=True),
    },
    "bfloat16": {"model__compute_dtype": "bfloat16"},
    "streaming": {"loss__form": "streaming"},
}


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [(mesh, "plain") for mesh in MESHES] + [(Mesh(2, 2, 2), key) for key in list(CHANGES)[1:]],
    ids=lambda value: value if isinstance(value, str) else name(value),
)
def test_the_update_gathers_no_activations(mesh, changes):
    compiled = compile_step(mesh, **CHANGES[changes])
    assert list_excess(read_program(compiled.as_text())) == []


@pytest.mark.parametrize("mesh", MESHES, ids=name)
def test_embedding_gathers_no_activations(mesh):
    experiment = make_experiment(mesh=mesh, **SIZES)
    devices = make_mesh(mesh)
    batch = shape_batch(size_full_batches(experiment, count_data_shards(devices)), devices)
    cells = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype, sharding=named(devices, "g")),
        batch.cells,
    )
    with jax.set_mesh(devices):
        state = init_state(experiment, devices)
        params = split_layers(state.encoder)
        compiled = make_embed_cells(experiment, devices).lower(params, cells).compile()
    shards = [
        [a.sharding.shard_shape(a.shape) for a in jax.tree.leaves(tree)]
        for tree in (state.encoder["blocks"], params["block_0"])
    ]
    assert [shape[1:] for shape in shards[0]] == shards[1]
    assert list_excess(read_program(compiled.as_text())) == []


def test_a_gather_of_activations_is_found():
    def move(hidden_rld):
        return constrain(constrain(hidden_rld, "rld") * 2, "nld", "storage")

    with jax.set_mesh(make_mesh(Mesh(2, 2, 2))):
        compiled = jax.jit(move).lower(jnp.zeros((96, 40, 64))).compile()
    assert len(list_excess(read_program(compiled.as_text()))) == 1
