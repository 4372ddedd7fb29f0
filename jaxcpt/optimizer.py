"""AdamW with warm-up and cosine decay, clipping, and a rate of its own for the tables.

In: `config.Optimizer`. Out: an optax transformation and its schedule. Sole home of optax.
"""

from typing import Any

import jax
import optax

from jaxcpt import config

TABLES = ("tokens", "positions", "token_weights", "position_weights")


def make_schedule(settings: config.Optimizer, train_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine down to `final_share` of the peak."""
    return optax.warmup_cosine_decay_schedule(
        init_value=settings.learning_rate / (settings.warmup_steps + 1),
        peak_value=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=train_steps,
        end_value=settings.learning_rate * settings.final_share,
    )


def make_optimizer(
    settings: config.Optimizer, train_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Decays matrices only: not norms, biases, tables or the temperature."""
    of_tables = settings.embedding_learning_rate
    rate = 1.0 if of_tables is None else of_tables / settings.learning_rate
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.eps),
        optax.add_decayed_weights(settings.weight_decay, mask=find_matrices),
        optax.masked(optax.scale(rate), find_tables),
        optax.scale_by_learning_rate(make_schedule(settings, train_steps)),
    )


def find_tables(params: Any) -> Any:
    """True for the parameters that are looked up by token or position."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in TABLES, params)


def find_matrices(params: Any) -> Any:
    """True for the layers' weight matrices. Biases and norms are known by their names."""

    def is_matrix(path: Any, _: Any) -> bool:
        name = path[-1].key
        return not (name in (*TABLES, "scale", "bias", "log_scale") or name.endswith("_bias"))

    return jax.tree.map_with_path(is_matrix, params)


def measure_norm(tree: Any) -> jax.Array:
    """Global L2 norm of all leaves."""
    return optax.global_norm(tree)
