"""Starts a new run from another run's parameters and tokenizer, on any mesh.

In: an experiment with `init_from`, and its run folder. Out: the experiment with its model and
tokenizer filled in, and sharded parameters. The *start* is the model that `init_from` names. A run
folder is read directly. A Hugging Face folder is first imported into the new run's folder. Once the
run has its own checkpoint, it does not need the start any more. The module does not know how a run
trains.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxcpt import config
from jaxcpt.adapter import merge_adapters
from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.config import Experiment, InitFrom, Model
from jaxcpt.errors import UserError
from jaxcpt.experiments import EXPERIMENT_FILE, read_experiment
from jaxcpt.files import remove_tree, to_path
from jaxcpt.fingerprints import COMPUTED, check_model, describe_model
from jaxcpt.model import Params
from jaxcpt.pairs import EncodedPairs, sample_texts
from jaxcpt.tokenizer import Tokenizer, has_tokenizer, read_model, read_tokenizer, train_tokenizer
from jaxcpt.update import shard_state

Part = TypeVar("Part", Model, config.Tokenizer)

FREE_TOKENIZER_FIELDS = ("x_tokens", "y_tokens")


def resolve_start(experiment: Experiment, run_dir: Path) -> Experiment:
    """The experiment with the model and the tokenizer of its start filled in. Raises UserError.

    If the run has begun, they are taken from its own folder, so a resume does not need the start.
    """
    start = experiment.init_from
    if start is None:
        return experiment
    if (run_dir / EXPERIMENT_FILE).is_file():
        own = read_experiment(run_dir)
        recorded = None if own.init_from is None else own.init_from.fingerprint
        return _fill(experiment, own, start.fingerprint or recorded)
    folder = find_start(start, run_dir)
    with CheckpointStore(folder / "checkpoints") as checkpoints:
        _, fingerprint = checkpoints.read(checkpoints.fingerprint, _find_step(checkpoints, start))
    if start.fingerprint not in (None, fingerprint):
        raise UserError(
            f"init_from.fingerprint: expected {start.fingerprint[:12]}, but {start.run} has "
            f"{fingerprint[:12]}"
        )
    return _fill(experiment, read_experiment(folder), fingerprint)


def foresee_start(experiment: Experiment) -> Experiment:
    """Like `resolve_start`, but without a run folder. It imports and writes nothing.

    If the start has not been trained yet, the experiment must state its own model.
    """
    start = experiment.init_from
    if start is None:
        return experiment
    is_package = start.run.startswith("package:")
    if experiment.model.width and not is_package and not to_path(start.run).is_dir():
        return experiment
    if (to_path(start.run) / EXPERIMENT_FILE).is_file():
        return _fill(experiment, read_experiment(to_path(start.run)), start.fingerprint)
    _check_source(start)
    from jaxcpt.interop import foresee_import  # only where a model is imported

    return _fill(experiment, foresee_import(start.run), start.fingerprint)


def find_start(start: InitFrom, run_dir: Path) -> Path:
    """The run folder to start from; a Hugging Face folder is imported into `run_dir` first."""
    if (to_path(start.run) / EXPERIMENT_FILE).is_file():
        return to_path(start.run)
    _check_source(start)
    imported = run_dir / "start"
    if not imported.is_dir():
        from jaxcpt.interop import import_model  # only where a model is imported

        import_model(start.run, imported)
    return imported


def _check_source(start: InitFrom) -> None:
    if not start.run.startswith("package:") and not to_path(start.run).is_dir():
        remedy = "name a run folder, a Hugging Face folder or package:NAME/PATH"
        if start.prepare:
            remedy = f"make it with: {start.prepare}"
        raise UserError(f"init_from.run: {start.run}: no such folder; {remedy}")


def obtain_tokenizer(
    experiment: Experiment, shared_dir: Path, sources: Sequence[EncodedPairs]
) -> Tokenizer:
    """The tokenizer of the run folder, or else of the start, or else the file `model_file`. If none
    of these exists, trains one on the training pairs."""
    own = shared_dir / "tokenizer"
    if has_tokenizer(own):
        return Tokenizer.load(own).check_limits(experiment.tokenizer, own)
    if experiment.init_from is not None:
        folder = find_start(experiment.init_from, shared_dir) / "tokenizer"
        return read_model(str(folder), experiment.tokenizer.x_tokens, experiment.tokenizer.y_tokens)
    if experiment.tokenizer.model_file is not None:
        return read_tokenizer(experiment.tokenizer)
    return train_tokenizer(sample_texts(sources), experiment.tokenizer)


def restore_start(experiment: Experiment, run_dir: Path, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Restores the start's encoder parameters, sharded on the mesh.

    If the start has adapters, they are merged into its weights.
    """
    assert experiment.init_from is not None
    start = experiment.init_from
    folder = find_start(start, run_dir)
    theirs = read_experiment(folder)
    found = describe_model(theirs, Tokenizer.load(folder / "tokenizer"))
    shapes = shard_state(replace(experiment, adapter=theirs.adapter), mesh)
    with CheckpointStore(folder / "checkpoints") as checkpoints:

        def restore(step: int) -> Params:
            check_model(checkpoints.read_meta(step), found, folder)
            if start.fingerprint not in (None, checkpoints.fingerprint(step)):
                raise UserError(
                    f"init_from.run: {start.run} has saved another checkpoint since this run was "
                    "started; start again with another --run-dir"
                )
            return checkpoints.restore_encoder(step, shapes)

        _, params = checkpoints.read(restore, _find_step(checkpoints, start))
    adapter = theirs.adapter
    if adapter is None:
        return params
    merged = shard_state(replace(experiment, adapter=None), mesh).params["encoder"]
    layouts = jax.tree.map(lambda leaf: leaf.sharding, merged)
    return jax.jit(partial(merge_adapters, settings=adapter), out_shardings=layouts)(params)


def _find_step(checkpoints: CheckpointStore, start: InitFrom) -> int | None:
    """The step with the recorded fingerprint; None if there is none.

    A start that is still being trained may have saved newer steps since.
    """
    for step in checkpoints.steps() if start.step is None else ():
        with suppress(OSError):  # a step may be in the middle of a save or deletion
            if checkpoints.fingerprint(step) == start.fingerprint:
                return step
    return start.step


def forget_start(run_dir: Path) -> None:
    """Deletes the imported start of a run that has a checkpoint of its own."""
    remove_tree(run_dir / "start")


def _fill(experiment: Experiment, start: Experiment, fingerprint: str | None) -> Experiment:
    """Fills fields that have their defaults from the start. Raises UserError if others differ."""
    assert experiment.init_from is not None
    given, limits = start.model, replace(start.tokenizer, model_file=None)
    if given.positions == "learnt" and given.position_rows is None:
        given = replace(given, position_rows=limits.longest)
    where = f"init_from {experiment.init_from.run}"
    free = (*COMPUTED, "pooling") if start.objective == "generative" else COMPUTED
    return replace(
        experiment,
        model=_agree("model", experiment.model, given, free, where),
        tokenizer=_agree("tokenizer", experiment.tokenizer, limits, FREE_TOKENIZER_FIELDS, where),
        init_from=replace(experiment.init_from, fingerprint=fingerprint),
    )


def _agree(name: str, stated: Part, given: Part, free: tuple[str, ...], where: str) -> Part:
    """One part of the experiment, filled in from the start.

    stated: the part in the experiment. given: the part of the start. free: fields that may differ,
    which keep their stated values. How the model is computed is never taken from the start. Raises
    UserError for another difference.
    """
    changes = {}
    for field in fields(stated):
        value, taken = getattr(stated, field.name), getattr(given, field.name)
        if field.name not in COMPUTED and value in (_find_default(field), taken):
            continue
        if field.name not in free:
            raise UserError(
                f"{name}.{field.name}: {value!r}, but {where} has {taken!r}; leave the field out"
            )
        changes[field.name] = value
    return replace(given, **changes)


def _find_default(field: Field) -> Any:
    """The default value of a field."""
    return field.default if field.default_factory is MISSING else field.default_factory()
