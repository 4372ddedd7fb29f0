"""AdamW with warm-up and cosine decay, clipping, and a rate of its own for the tables.

In: `config.Optimizer`. Out: an optax transformation and its schedule. Sole home of optax.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxcpt import config


def make_schedule(settings: config.Optimizer, train_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine down to `final_share` of the peak."""
    return optax.warmup_cosine_decay_schedule(
        init_value=settings.learning_rate / (settings.warmup_steps + 1),
        peak_value=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_steps=max(train_steps, 1),  # an imported model has none
        end_value=settings.learning_rate * settings.final_share,
    )


def make_optimizer(
    settings: config.Optimizer, train_steps: int, axes: Any
) -> optax.GradientTransformationExtraArgs:
    """Decays the weight matrices of layers only: not norms, biases, tables or the temperature.

    axes: a tree like the parameters, with the letters of each as a tuple.
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
    """The updates that made this state. Its learning rate and Adam's decay follow this count."""
    return opt_state[-1].count


def is_table(letters: tuple[str, ...]) -> bool:
    """Whether the parameter is looked up by token or position."""
    return bool({"v", "l"} & set(letters))


def is_matrix(letters: tuple[str, ...]) -> bool:
    """Whether the parameter maps the residual stream (d) to another width, or back.

    Both halves of an adapter (a) count: their decay draws the model back to its frozen weights.
    """
    maps_stream = "d" in letters and len(set(letters) - {"i"}) > 1
    return "a" in letters or (maps_stream and not is_table(letters))


def mark(axes: Any, holds: Callable[[tuple[str, ...]], bool]) -> Any:
    """The tree of letters with `holds(letters)` for each parameter."""
    return jax.tree.map(holds, axes, is_leaf=lambda node: isinstance(node, tuple))


def measure_norm(tree: Any) -> jax.Array:
    """Global L2 norm of all leaves."""
    return optax.global_norm(tree)
