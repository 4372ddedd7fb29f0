"""Runs tasks of the MTEB library with MTEB's own evaluation loop.

In: `embed_fn`, names of tasks, and a folder for MTEB's result files. Out: the main score of each
task. MTEB loads the data from a hub or from its cache on this machine. It skips a task that already
has a result file for the same model. Queries are embedded as x and documents as y. All other texts
(for similarity, classification and clustering) are embedded as x, as in our own suites. Only this
module imports mteb. It knows no model.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.evals import EmbedFn, embed_finite, import_extra
from jaxcpt.pair import Side


class MtebModel:
    """Wraps `embed_fn` in an object with the methods that MTEB calls on a model."""

    def __init__(self, embed_fn: EmbedFn, meta: Any) -> None:
        self.embed_fn = embed_fn
        self.mteb_model_meta = meta

    def encode(
        self, inputs: Iterable[dict[str, Any]], *, prompt_type: Any = None, **_: Any
    ) -> np.ndarray:
        """Vectors [n, d] of batches of texts. `prompt_type`: MTEB's "query" or "document"."""
        texts = [text for batch in inputs for text in batch["text"]]
        side: Side = "y" if getattr(prompt_type, "value", prompt_type) == "document" else "x"
        return embed_finite(self.embed_fn, texts, side)

    def similarity(self, one_nd: Any, other_nd: Any) -> np.ndarray:
        """Inner products of every pair of vectors, which are cosines for unit vectors."""
        return np.asarray(one_nd) @ np.asarray(other_nd).T

    def similarity_pairwise(self, one_nd: Any, other_nd: Any) -> np.ndarray:
        """The inner product of each row of `one_nd` with the same row of `other_nd`."""
        return np.sum(np.asarray(one_nd) * np.asarray(other_nd), axis=-1)


def run(
    embed_fn: EmbedFn, tasks: Sequence[str], results: Path, name: str, revision: str
) -> dict[str, float]:
    """Main scores by task.

    results: the folder of MTEB's result files. name, revision: the model's name in these files.
    Raises UserError for a task that MTEB does not know, and for data that it cannot load.
    """
    mteb = import_extra("mteb", extra="mteb")
    meta = import_extra("mteb.models", extra="mteb").ModelMeta.create_empty(
        {"name": f"jaxcpt/{name}", "revision": revision}
    )
    model, cache = MtebModel(embed_fn, meta), mteb.ResultCache(results)
    chosen = [_find(mteb, task) for task in tasks]
    scores: dict[str, float] = {}
    for task in chosen:
        if cache.load_task_result(task.metadata.name, meta) is None:
            _load(task)
        result = mteb.evaluate(model, task, cache=cache, co2_tracker=False)
        scores[task.metadata.name] = _check(task, float(result.task_results[0].get_score()))
    return scores


def _find(mteb: Any, name: str) -> Any:
    try:
        return mteb.get_task(name)
    except KeyError as error:
        said = str(error.args[0]).removeprefix("KeyError: ")
        raise UserError(f"--mteb {name}: MTEB has no such task ({said})") from None


def _check(task: Any, score: float) -> float:
    """Raises UserError for a score that is not finite, such as the correlation of a constant."""
    if math.isfinite(score):
        return score
    raise UserError(
        f"--mteb {task.metadata.name}: MTEB's score is {score}; the embeddings or the answers of "
        "the task are all the same"
    )


def _load(task: Any) -> None:
    try:
        task.load_data()
    except OSError as error:  # includes DatasetNotFoundError of the datasets library
        raise UserError(
            f"--mteb {task.metadata.name}: its data, {task.metadata.dataset['path']}, could not be "
            f"loaded: {error}; MTEB needs a data hub, or HF_HUB_OFFLINE=1 and its cache"
        ) from None
