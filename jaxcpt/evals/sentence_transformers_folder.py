"""Loads a sentence-transformers folder as an `embed_fn`, so that our suites can score it.

In: a folder on this machine; nothing is downloaded. Out: unit vectors, as that library computes
them. x is embedded as a query and y as a document. The library chooses the prompts and the longest
text. Only this module imports sentence-transformers. It knows no run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.evals import EmbedFn, import_extra, require_library
from jaxcpt.pair import Side
from jaxcpt.terminal import show_progress

LIBRARY = "sentence_transformers"
MODULES = "modules.json"
TEXTS_AT_ONCE = 1_024
"""Texts that the library gets at once. It sorts them by length, so that little is padding."""


def check_folder(folder: Path) -> Path:
    """Returns the folder. Raises UserError if it holds no model, or if the library is missing."""
    require_library(LIBRARY, extra="compare")
    if not folder.is_dir():
        raise UserError(f"--library {folder}: no such folder; nothing is downloaded")
    if not (folder / MODULES).is_file():
        raise UserError(f"--library {folder}: no {MODULES}; expected a sentence-transformers model")
    return folder


def load(folder: Path) -> Any:
    """Loads the library's model. Raises UserError if the library cannot load it."""
    library = import_extra(LIBRARY, extra="compare")
    import_extra("transformers.utils.logging", extra="compare").disable_progress_bar()
    try:
        return library.SentenceTransformer(str(folder), local_files_only=True)
    except Exception as error:  # its type depends on what is damaged
        raise UserError(
            f"--library {folder}: sentence-transformers cannot load it: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error


def make_embed(model: Any) -> EmbedFn:
    """A function that embeds texts and shows a progress bar. It raises UserError if it fails."""

    def embed(texts: Sequence[str], side: Side) -> np.ndarray:
        encode = model.encode_query if side == "x" else model.encode_document
        parts = []
        with show_progress(f"embedding {side}", len(texts), shown=True) as advance:
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                part = list(texts[start : start + TEXTS_AT_ONCE])
                try:
                    vectors_nd = encode(part, normalize_embeddings=True, show_progress_bar=False)
                except Exception as error:  # such as for an empty text, or full memory
                    raise UserError(
                        f"--library: sentence-transformers cannot embed texts such as "
                        f"{part[0][:40]!r}: {type(error).__name__}: {str(error)[:200]}"
                    ) from error
                parts.append(np.asarray(vectors_nd, np.float32))
                advance(len(part))
        return np.concatenate(parts)

    return embed


def get_width(model: Any) -> int:
    """The length of the model's vectors."""
    return int(model.encode("a", show_progress_bar=False).shape[-1])


def describe(model: Any) -> str:
    """Text that says which prompts the library uses, and how much of a text the model reads."""
    version = import_extra(LIBRARY, extra="compare").__version__
    reads = f"sentence-transformers {version}, at most {model.max_seq_length} tokens of a text"
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt}
    return reads + "".join(f", {name} prompt {prompt!r}" for name, prompt in prompts.items())
