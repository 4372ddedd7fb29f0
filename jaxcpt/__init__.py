"""jaxcpt: contrastive pre-training of text and code embeddings on JAX meshes.

The system of "Text and Code Embeddings by Contrastive Pre-Training" (arXiv 2201.10005).
Data flows through the package in one direction, and a module imports only earlier modules:

    experiment -> pairs -> tokenizer -> batches -> encode -> loss over the global batch
               -> update -> checkpoint -> evals / embed / search -> report

Letters. Arrays carry them as a suffix (`zx_bd`), the model's parameters as logical axis names,
and the rule table in `sharding.py` as its keys:

    b pairs in the global batch      d width, which is also the embedding size
    p pairs in a cell                h query heads
    n chunks, one after another      j key and value heads
    g data shards, side by side      k head width
    r packed rows in a cell          f MLP width
    l tokens in a row                v vocabulary
    t texts (both sides of pairs)    i layers
    s tokens of a cell (r x l)       a rank of an adapter
    e width of the residual stream where that is cut

A cell is what one data shard encodes in one chunk, so a global batch has n x g cells. x and y
always mean the two sides of a pair. z is an embedding. exp(`log_scale`) is the learnt factor on
the similarities, the inverse of the temperature.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcpt.embed import Embedder

__all__ = ["Embedder"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that mining and config load no JAX."""
    if name == "Embedder":
        from jaxcpt.embed import Embedder

        return Embedder
    raise AttributeError(f"module 'jaxcpt' has no attribute '{name}'")
