"""Evaluations: texts and a function that embeds them in, named scores out.

Each family is one file with `run(embed_fn, data, ...) -> dict[str, float]`; `suites` lists the
paper's. A family knows `embed_fn` and the files of its own task. It knows no model, no tokenizer
and no device. A corpus that is too large for memory goes through a `CorpusFn`, which may keep the
vectors on disk.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.pair import Side
from jaxcpt.vectors import TextWithId, cut_into_blocks

DOCUMENTS_PER_BLOCK = 16_384

EmbedFn = Callable[[Sequence[str], Side], np.ndarray]
"""Texts and their side -> float32 [n, d] of unit length, in the order of the texts."""

CorpusFn = Callable[[Path, Iterable[TextWithId]], Iterable[np.ndarray]]
"""A corpus's file and its documents -> their vectors [n, d] in order, shard by shard."""


def embed_blocks(embed_fn: EmbedFn) -> CorpusFn:
    """A `CorpusFn` that embeds one block at a time and keeps no vectors on disk."""

    def embed(_: Path, documents: Iterable[TextWithId]) -> Iterator[np.ndarray]:
        for block in cut_into_blocks(documents, DOCUMENTS_PER_BLOCK):
            yield embed_finite(embed_fn, [document.text for document in block], "y")

    return embed


def embed_finite(embed_fn: EmbedFn, texts: Sequence[str], side: Side) -> np.ndarray:
    """The vectors [n, d] of `embed_fn`. Raises UserError where one is not finite.

    No number is greater than NaN, so without this check a diverged model could rank first.
    """
    vectors_nd = np.asarray(embed_fn(texts, side))
    if vectors_nd.ndim != 2 or len(vectors_nd) != len(texts):
        raise ValueError(f"embed_fn gave shape {vectors_nd.shape} for {len(texts)} texts")
    bad = np.flatnonzero(~np.isfinite(vectors_nd).all(axis=1))
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(texts)} embeddings of side {side} are not finite, first that of "
            f"{texts[bad[0]][:40]!r}; the model has diverged: evaluate an earlier step"
        )
    return vectors_nd


def import_extra(module: str, extra: str = "evals") -> Any:
    """Imports a module of an optional library. Raises UserError naming the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this evaluation needs {module.partition('.')[0]}: pip install 'jaxcpt[{extra}]'"
        ) from error
