"""Evaluations of a function that embeds texts.

In: `embed_fn` and a folder of data. Out: scores by name. Each family of evaluations is one file
with `run(embed_fn, data, ...) -> dict[str, float]`; `suites` lists those of the paper. A family
knows `embed_fn` and the files of its own task. It knows no model, no tokenizer and no device. A
corpus that is too large for memory is embedded by a `CorpusFn`, which may keep vectors on disk.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.pair import Side
from jaxcpt.processes import is_first
from jaxcpt.terminal import show_progress
from jaxcpt.vectors import TextWithId, cut_into_blocks

DOCUMENTS_PER_BLOCK = 16_384

Read = TypeVar("Read")

EmbedFn = Callable[[Sequence[str], Side], np.ndarray]
"""Texts, side -> vectors of unit length, float32 [n, d], in the order of the texts."""

CorpusFn = Callable[[Path, Iterable[TextWithId]], Iterable[np.ndarray]]
"""File of a corpus, its documents -> their vectors [n, d], in order, in several parts."""


def embed_blocks(embed_fn: EmbedFn) -> CorpusFn:
    """A `CorpusFn` that embeds one block at a time and keeps no vectors on disk."""

    def embed(_: Path, documents: Iterable[TextWithId]) -> Iterator[np.ndarray]:
        for block in cut_into_blocks(documents, DOCUMENTS_PER_BLOCK):
            yield embed_finite(embed_fn, [document.text for document in block], "y")

    return embed


def embed_finite(embed_fn: EmbedFn, texts: Sequence[str], side: Side) -> np.ndarray:
    """The vectors [n, d] of `embed_fn`. Raises UserError if one of them is not finite.

    Comparisons with NaN are false, so without this check a diverged model could get the best rank.
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


class DataRefused(UserError):
    """Raised if some sets of a suite cannot be read. `scores` are those of the other sets."""

    def __init__(self, text: str, scores: Mapping[str, float] | None = None) -> None:
        super().__init__(text)
        self.scores = dict(scores or {})


def read_each(
    read: Callable[[Path], Read], sets: Iterable[Path], problems: list[str]
) -> Iterator[Read]:
    """Yields `read(set)` for each set. If it raises UserError, adds the text to `problems`."""
    for path in sets:
        try:
            value = read(path)
        except (UserError, OSError) as problem:
            problems.append(str(problem))
        else:
            yield value


@contextmanager
def show_sets(title: str, sets: Sequence[Path]) -> Iterator[Iterator[Path]]:
    """A context that yields an iterator over the sets and shows a progress bar."""
    with show_progress(title, len(sets), shown=is_first() and len(sets) > 1) as advance:

        def count() -> Iterator[Path]:
            for path in sets:
                yield path
                advance(1)

        yield count()


def finish(scores: dict[str, float], problems: Sequence[str]) -> dict[str, float]:
    """Returns the scores of a suite. If there are problems, raises DataRefused with the scores."""
    if problems:
        raise DataRefused("; ".join(dict.fromkeys(problems)), scores)
    return scores


def collect(
    problems: list[str], run: Callable[..., dict[str, float]], *of: Any
) -> dict[str, float]:
    """The scores of `run(*of)`. If some sets could not be read, adds the reason to `problems` and
    returns the scores of the others."""
    try:
        return run(*of)
    except DataRefused as refused:
        problems.append(str(refused))
        return refused.scores


def name_files(paths: Iterable[Path], ending: str, taken: Sequence[str] = ()) -> dict[str, Path]:
    """The files by their name without `ending` and .gz. Raises UserError if a name occurs twice.

    taken: names that a file must not have, because they are names of other scores.
    """
    named: dict[str, Path] = {}
    for path in sorted(paths):
        name = name_of(path, ending)
        if name in named:
            raise UserError(f"{path}: {named[name].name} is there as well; keep one of the two")
        if name in taken:
            raise UserError(f"{path}: {name!r} names a score of the whole set; rename the file")
        named[name] = path
    return named


def name_of(path: Path, ending: str) -> str:
    """The name of a file without `ending` and .gz. Other dots belong to the name."""
    return path.name.removesuffix(".gz").removesuffix(ending)


@functools.cache
def note(text: str) -> None:
    """Prints a line about the data, once per process: evals run several times during training."""
    if is_first():
        print(text, flush=True)


def import_extra(module: str, extra: str = "evals") -> Any:
    """Imports a module of an optional library. Raises UserError that names the extra to install."""
    require_library(module.partition(".")[0], extra)
    return importlib.import_module(module)


def require_library(name: str, extra: str = "evals") -> None:
    """Raises UserError that names the extra to install if the library is missing."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"this evaluation needs {name}: pip install 'jaxcpt[{extra}]'")
