"""AdamW with warm-up, cosine decay, gradient clipping, and a separate learning rate for tables.

In: `config.Optimizer`. Out: an optax transformation and its schedule. Only this module imports
optax. It knows parameters only by the letters of their axes.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxcpt import config


def make_schedule(settings: config.Optimizer, train_steps: int) -> optax.Schedule:
    """The learning rate by step: linear warm-up, then cosine decay to `final_share` of the peak."""
    return optax.warmup_cosine_decay_schedule(
        init_value=settings.learning_rate / (settings.warmup_steps + 1),
        peak_value=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=max(train_steps, 1),  # an imported model has 0 steps
        end_value=settings.learning_rate * settings.final_share,
    )


def make_optimizer(
    settings: config.Optimizer, train_steps: int, axes: Any
) -> optax.GradientTransformationExtraArgs:
    """The optax transformation of a run.

    Weight decay applies only to the weight matrices of layers, not to norms, biases, tables or the
    temperature. axes: a tree like the parameters, with the letters of each as a tuple.
    """
    of_tables = settings.embedding_learning_rate
    rate = 1.0 if of_tables is None else of_tables / settings.learning_rate
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.eps),
        optax.add_decayed_weights(settings.weight_decay, mask=mark(axes, is_matrix)),
        optax.masked(optax.scale(rate), mark(axes, is_table)),
        optax.scale_by_learning_rate(make_schedule(settings, train_steps)),
    )


def count_updates(opt_state: Any) -> jax.Array:
    """The number of updates so far. The learning rate and Adam's bias correction depend on it."""
    return opt_state[-1].count


def is_table(letters: tuple[str, ...]) -> bool:
    """Whether the parameter with these axes is looked up by token or position."""
    return bool({"v", "l"} & set(letters))


def is_matrix(letters: tuple[str, ...]) -> bool:
    """Whether the parameter with these axes is a matrix from or to the residual stream (d).

    Both matrices of an adapter (a) count. Their decay pulls the model back to its frozen weights.
    """
    maps_stream = "d" in letters and len(set(letters) - {"i"}) > 1
    return "a" in letters or (maps_stream and not is_table(letters))


def mark(axes: Any, holds: Callable[[tuple[str, ...]], bool]) -> Any:
    """A tree like `axes`, with `holds(letters)` for each parameter."""
    return jax.tree.map(holds, axes, is_leaf=lambda node: isinstance(node, tuple))


def measure_norm(tree: Any) -> jax.Array:
    """Global L2 norm of all leaves."""
    return optax.global_norm(tree)
