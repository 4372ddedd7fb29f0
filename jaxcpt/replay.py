"""The command `jaxcpt replay`: repeats a bad step and shows its first value that is not finite.

    python -m jaxcpt.replay --run-dir DIR

In: the folder of a run that stopped after `max_bad_steps`. It holds the state before the first bad
step. Out: the loss, the norm of each parameter and of its gradient, and the place of the first
value that is not finite: a parameter, the embedding of a text, the loss, or a gradient. The command
writes no file.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcpt.adapter import join_params
from jaxcpt.bad_steps import FOLDER
from jaxcpt.batches import Batch, Batches
from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.config import Experiment
from jaxcpt.embed import choose_mesh
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.experiments import find_shared_folder, read_experiment
from jaxcpt.files import to_path
from jaxcpt.fingerprints import check_model, describe_model
from jaxcpt.model import encode, make_encoder
from jaxcpt.optimizer import measure_norm
from jaxcpt.pairs import name_source, open_training
from jaxcpt.processes import add_arguments, is_first, join, run_together
from jaxcpt.sharding import named, use_devices
from jaxcpt.terminal import print_table
from jaxcpt.tokenizer import Tokenizer
from jaxcpt.update import TrainState, compute_gradient, shard_state

TEXTS_SHOWN = 5


def find_numbers(experiment: Experiment, state: TrainState, batch: Batch) -> dict[str, Any]:
    """The metrics of the batch, norms, and counts of values that are not finite; called under jit.

    In the result, bad_ngt says whether the embedding of a text is not finite.
    """
    encoder, params = make_encoder(experiment), state.params
    whole = join_params(state.base, params["encoder"])
    z_ngtd = jax.lax.map(partial(encode, encoder, whole), batch.cells)
    metrics, gradient = compute_gradient(experiment, params, batch, state.base)

    def measure(tree: Any) -> Any:
        return jax.tree.map(lambda a: (measure_norm(a), jnp.sum(~jnp.isfinite(a))), tree)

    return {
        "metrics": metrics,
        "bad_ngt": batch.present_ngt & ~jnp.isfinite(z_ngtd).all(axis=-1),
        "hash_ngt2": batch.hash_ngt2,
        "params": measure(params),
        "frozen": measure(state.base),
        "gradient": measure(gradient),
    }


def flatten(tree: Any) -> dict[str, tuple[float, int]]:
    """Norm and count by the path of a parameter group, such as blocks/query. tree: as `measure`."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda node: isinstance(node, tuple))
    return {
        "/".join(str(key.key) for key in path): (float(norm), int(count))
        for path, (norm, count) in leaves
    }


def find_first(numbers: dict[str, Any], experiment: Experiment, batches: Batches, step: int) -> str:
    """A line about the first value that is not finite, in the order in which they are computed."""
    for part, name in (("frozen", "frozen parameter"), ("params", "parameter")):
        for group, (_, count) in flatten(numbers[part]).items():
            if count:
                return f"in the {name} {group}: {count} of its values"
    if numbers["bad_ngt"].any():
        hashes = set(map(tuple, numbers["hash_ngt2"][numbers["bad_ngt"]].tolist()))
        texts = batches.find_texts(step, hashes)
        shown = [describe_text(experiment, batches, *text) for text in texts[:TEXTS_SHOWN]]
        more = f" and {len(texts) - TEXTS_SHOWN} more" if len(texts) > TEXTS_SHOWN else ""
        return f"in the embedding of {', '.join(shown)}{more}; all parameters are finite"
    if not math.isfinite(numbers["metrics"]["loss"]):
        return "in the loss; all parameters and embeddings are finite"
    for group, (norm, count) in reversed(flatten(numbers["gradient"]).items()):
        if not math.isfinite(norm):
            return f"in the gradient of {group} ({count} of its values); the loss is finite"
    return (
        "there is none. The step is finite on these devices, so the run may go on from its newest "
        "checkpoint; if it fails again at this step, suspect the devices that it runs on"
    )


def describe_text(experiment: Experiment, batches: Batches, pair: int, text: int) -> str:
    source = int(np.searchsorted(batches.starts, pair, side="right")) - 1
    side = ("x", "y")[text] if text < 2 else f"negative {text - 1}"
    where = name_source(experiment.data.train[source])
    return f"the {side} of pair {pair} (pair {pair - int(batches.starts[source])} of {where})"


def show(numbers: dict[str, Any], step: int) -> None:
    """Prints the loss and a line for each group of parameters."""
    params, gradient = flatten(numbers["params"]), flatten(numbers["gradient"])
    rows: list[list[str | float]] = [
        [group, f"{norm:.6g}", f"{gradient[group][0]:.6g}", gradient[group][1]]
        for group, (norm, _) in params.items()
    ]
    headings = ("parameters", "norm", "gradient norm", "not finite")
    print_table(f"step {step}: loss {float(numbers['metrics']['loss']):.6g}", rows, headings)


def replay(run_dir: Path) -> None:
    """Repeats the first bad step of a run. Raises UserError if the run has none."""
    experiment = read_experiment(run_dir)
    if not (run_dir / FOLDER).is_dir():
        raise UserError(
            f"{run_dir}: has no folder {FOLDER}; a run has one if it stopped after "
            "safety.max_bad_steps steps in a row that were not finite"
        )
    sources = open_training(experiment.data, find_shared_folder(run_dir), experiment.seed)
    tokenizer, mesh = Tokenizer.load(run_dir / "tokenizer"), choose_mesh(experiment)
    with jax.set_mesh(mesh), CheckpointStore(run_dir / FOLDER) as kept:
        before = kept.choose(None)
        check_model(kept.read_meta(before), describe_model(experiment, tokenizer), run_dir)
        state = kept.restore(before, shard_state(experiment, mesh))
        batches = Batches(experiment, sources, tokenizer, mesh)
        find = jax.jit(partial(find_numbers, experiment), out_shardings=named(mesh))
        numbers = jax.device_get(find(state, batches.make(before)))
    if is_first():
        show(numbers, before + 1)
        first = find_first(numbers, experiment, batches, before)
        print(f"the first value that is not finite: {first}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(
        prog="jaxcpt replay", description="Repeat the first bad step of a stopped run."
    )
    parser.add_argument("--run-dir", type=to_path, required=True, help="folder of the stopped run")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    use_devices(read_experiment(arguments.run_dir).mesh, arguments.num_processes or 1)
    join(arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.wait)
    run_together(lambda: replay(arguments.run_dir))


if __name__ == "__main__":
    run_command(main)
