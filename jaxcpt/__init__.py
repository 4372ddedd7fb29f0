"""jaxcpt: contrastive pre-training of text and code embeddings on JAX meshes.

The system of "Text and Code Embeddings by Contrastive Pre-Training" (arXiv 2201.10005).
One way leads through the package, and a module imports only modules that stand before it:

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

A cell is what one data shard encodes in one chunk, so a global batch has n x g cells. The two
sides of a pair are x and y, and nothing else is; z is an embedding, `log_scale` the learnt
temperature.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcpt.embed import Embedder

__all__ = ["Embedder"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports on demand: mining and configuration do without JAX."""
    if name == "Embedder":
        from jaxcpt.embed import Embedder

        return Embedder
    raise AttributeError(f"module 'jaxcpt' has no attribute '{name}'")
