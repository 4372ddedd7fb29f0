"""The true gradient of a batch: one device, float64, plain NumPy, one text at a time.

In: the encoder's parameters and settings, the temperature and the pairs. Out: loss and gradient.
The forward and backward passes are written by hand and apart from the package, so that a mistake
would have to be made twice to stay hidden. They cover GPT's encoder (LayerNorm before each branch,
causal, pooled at the closing delimiter) and BERT's (LayerNorm after each branch, both directions,
pooled by the mean or at the first token); both have learnt positions, GELU and biases. Nothing is
packed or cut here, and duplicates are found by text, not by hash.

A function of arrays returns its result and `pull`. `pull` takes the derivative of a scalar with
respect to that result, and returns its derivatives with respect to the arguments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erf

from jaxcpt.config import Model

Array = np.ndarray
Tree = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """One text of the batch: its token ids, and its words, by which duplicates are found."""

    ids: Array
    words: str


@dataclass(frozen=True)
class TextPair:
    x: Text
    y: Text
    negatives: tuple[Text, ...] = ()


@dataclass(frozen=True)
class Truth:
    """The loss of the whole batch and its gradient with respect to every parameter."""

    loss: float
    encoder: Tree
    log_scale: float


def find_truth(params: Tree, m: Model, log_scale: float, pairs: Sequence[TextPair]) -> Truth:
    """params: whole arrays of the encoder, of any float type. Candidates are all y, then all hard
    negatives.
    """
    w = map_tree(lambda leaf: np.asarray(leaf, np.float64), params)
    texts = [pair.x for pair in pairs] + [pair.y for pair in pairs]
    texts += [negative for pair in pairs for negative in pair.negatives]
    encoded = [encode_text(w, m, text.ids) for text in texts]
    z = np.stack([z for z, _ in encoded])
    unit, pull_unit = normalise(z)
    counts = find_counted(pairs)
    b = len(pairs)
    loss, dzx, dzc, dlog_scale = find_loss(unit[:b], unit[b:], log_scale, counts)
    dz = pull_unit(np.concatenate([dzx, dzc]))
    gradient = map_tree(np.zeros_like, w)
    for (_, pull), dz_of_text in zip(encoded, dz, strict=True):
        add_tree(gradient, pull(dz_of_text))
    return Truth(loss, gradient, dlog_scale)


def find_counted(pairs: Sequence[TextPair]) -> Array:
    """Which candidate is in the softmax of which pair: [b, c]. See `jaxcpt.loss`."""
    candidates: list[tuple[str, str | None]] = [(pair.y.words, pair.x.words) for pair in pairs]
    candidates += [(text.words, None) for pair in pairs for text in pair.negatives]
    return np.array(
        [
            [
                row == column or not (c in (pair.x.words, pair.y.words) or x == pair.x.words)
                for column, (c, x) in enumerate(candidates)
            ]
            for row, pair in enumerate(pairs)
        ]
    )


def find_loss(
    zx: Array, zc: Array, log_scale: float, counts: Array
) -> tuple[float, Array, Array, float]:
    """Mean of both directions' cross-entropy over pairs; its derivative by zx, zc, log_scale."""
    b = len(zx)
    logits = np.exp(log_scale) * zx @ zc.T
    counted = np.where(counts, logits, -np.inf)
    right = np.diagonal(logits)
    row_sum = log_sum_exp(counted, axis=1)
    column_sum = log_sum_exp(counted[:, :b], axis=0)
    loss = float(np.mean(row_sum + column_sum - 2 * right) / 2)
    dlogits = np.exp(counted - row_sum[:, None])
    dlogits[:, :b] += np.exp(counted[:, :b] - column_sum) - 2 * np.eye(b)
    dlogits /= 2 * b
    scale = np.exp(log_scale)
    return loss, scale * dlogits @ zc, scale * dlogits.T @ zx, float(np.sum(dlogits * logits))


def log_sum_exp(a: Array, axis: int) -> Array:
    top = a.max(axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(a - top).sum(axis=axis))


def normalise(z: Array) -> tuple[Array, Callable[[Array], Array]]:
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    unit = z / length

    def pull(dunit: Array) -> Array:
        return (dunit - unit * np.sum(dunit * unit, axis=-1, keepdims=True)) / length

    return unit, pull


def encode_text(w: Tree, m: Model, ids: Array) -> tuple[Array, Callable[[Array], Tree]]:
    """A text's pooled hidden state [d]."""
    hidden, pull_hidden = encode_tokens(w, m, ids)
    weights = weigh_tokens(m, len(ids))
    return weights @ hidden, lambda dz: pull_hidden(np.outer(weights, dz))


def encode_tokens(w: Tree, m: Model, ids: Array) -> tuple[Array, Callable[[Array], Tree]]:
    """The last hidden state of each token of a text [l, d]."""
    embedded = w["tokens"][ids] + w["positions"][: len(ids)]
    hidden, pull_embedding_norm = norm_if(m.embedding_norm, w, "embedding_norm", m, embedded)
    pulls = []
    for layer in range(m.layers):
        apply_block = apply_post_norm_block if m.norm_placement == "post" else apply_pre_norm_block
        hidden, pull_block = apply_block(map_tree(lambda a, i=layer: a[i], w["blocks"]), m, hidden)
        pulls.append(pull_block)
    hidden, pull_final_norm = norm_if(m.final_norm, w, "final_norm", m, hidden)

    def pull(dhidden: Array) -> Tree:
        dhidden, dfinal = pull_final_norm(dhidden)
        dblocks: list[Tree] = []
        for pull_block in reversed(pulls):
            dhidden, dblock = pull_block(dhidden)
            dblocks.insert(0, dblock)
        dembedded, dembedding = pull_embedding_norm(dhidden)
        gradient = {name: np.zeros_like(w[name]) for name in ("tokens", "positions")}
        np.add.at(gradient["tokens"], ids, dembedded)
        gradient["positions"][: len(ids)] = dembedded
        stacked = map_tree(lambda *leaves: np.stack(leaves), *dblocks)
        return gradient | {"blocks": stacked} | dembedding | dfinal

    return hidden, pull


def weigh_tokens(m: Model, length: int) -> Array:
    """The weight of each hidden state in the pooled one: [l]."""
    if m.pooling == "mean":
        return np.full(length, 1 / length)
    at = 0 if m.pooling == "first" else length - 1
    return np.eye(length)[at]


def norm_if(
    used: bool, w: Tree, name: str, m: Model, x: Array
) -> tuple[Array, Callable[[Array], tuple[Array, Tree]]]:
    """The named norm of x where the model has it, else x. The gradient carries the norm's name."""
    if not used:
        return x, lambda dy: (dy, {})
    y, pull_norm = layer_norm(w[name], m, x)

    def pull(dy: Array) -> tuple[Array, Tree]:
        dx, dw = pull_norm(dy)
        return dx, {name: dw}

    return y, pull


def apply_pre_norm_block(
    w: Tree, m: Model, x: Array
) -> tuple[Array, Callable[[Array], tuple[Array, Tree]]]:
    """x + attend(norm(x)), then the same with the MLP: [l, d] -> [l, d]."""
    normed, pull_attention_norm = layer_norm(w["attention_norm"], m, x)
    mixed, pull_attention = attend(w, m, normed)
    middle = x + mixed
    normed, pull_mlp_norm = layer_norm(w["mlp_norm"], m, middle)
    transformed, pull_mlp = transform(w, m, normed)

    def pull(dy: Array) -> tuple[Array, Tree]:
        dnormed, dmlp = pull_mlp(dy)
        dx, dmlp_norm = pull_mlp_norm(dnormed)
        dmiddle = dy + dx
        dnormed, dattention = pull_attention(dmiddle)
        dx, dattention_norm = pull_attention_norm(dnormed)
        norms = {"attention_norm": dattention_norm, "mlp_norm": dmlp_norm}
        return dmiddle + dx, dattention | dmlp | norms

    return middle + transformed, pull


def apply_post_norm_block(
    w: Tree, m: Model, x: Array
) -> tuple[Array, Callable[[Array], tuple[Array, Tree]]]:
    """norm(x + attend(x)), then the same with the MLP: [l, d] -> [l, d]."""
    mixed, pull_attention = attend(w, m, x)
    middle, pull_attention_norm = layer_norm(w["attention_norm"], m, x + mixed)
    transformed, pull_mlp = transform(w, m, middle)
    y, pull_mlp_norm = layer_norm(w["mlp_norm"], m, middle + transformed)

    def pull(dy: Array) -> tuple[Array, Tree]:
        dsum, dmlp_norm = pull_mlp_norm(dy)
        dmiddle, dmlp = pull_mlp(dsum)
        dsum, dattention_norm = pull_attention_norm(dmiddle + dsum)
        dx, dattention = pull_attention(dsum)
        norms = {"attention_norm": dattention_norm, "mlp_norm": dmlp_norm}
        return dx + dsum, dattention | dmlp | norms

    return y, pull


def layer_norm(w: Tree, m: Model, x: Array) -> tuple[Array, Callable[[Array], tuple[Array, Tree]]]:
    epsilon = 1e-5 if m.norm_epsilon is None else m.norm_epsilon
    centred = x - x.mean(axis=-1, keepdims=True)
    rate = 1 / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + epsilon)
    unit = centred * rate

    def pull(dy: Array) -> tuple[Array, Tree]:
        dunit = dy * w["scale"]
        along = np.mean(dunit * unit, axis=-1, keepdims=True)
        dx = rate * (dunit - dunit.mean(axis=-1, keepdims=True) - unit * along)
        return dx, {"scale": np.sum(dy * unit, axis=0), "bias": dy.sum(axis=0)}

    return unit * w["scale"] + w["bias"], pull


def attend(w: Tree, m: Model, x: Array) -> tuple[Array, Callable[[Array], tuple[Array, Tree]]]:
    """Attention with as many key heads as query heads: [l, d] -> [l, d]."""
    projected = {
        name: np.einsum("ld,dhk->lhk", x, w[name]) + w[f"{name}_bias"]
        for name in ("query", "key", "value")
    }
    q, k, v = projected["query"], projected["key"], projected["value"]
    rate = q.shape[-1] ** -0.5
    scores = rate * np.einsum("lhk,mhk->hlm", q, k)
    if m.causal:
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - log_sum_exp(scores, axis=-1)[..., None])
    mixed = np.einsum("hlm,mhk->lhk", weights, v)

    def pull(dy: Array) -> tuple[Array, Tree]:
        dmixed = np.einsum("ld,hkd->lhk", dy, w["out"])
        dweights = np.einsum("lhk,mhk->hlm", dmixed, v)
        dscores = weights * (dweights - np.sum(dweights * weights, axis=-1, keepdims=True))
        derivatives = {
            "query": rate * np.einsum("hlm,mhk->lhk", dscores, k),
            "key": rate * np.einsum("hlm,lhk->mhk", dscores, q),
            "value": np.einsum("hlm,lhk->mhk", weights, dmixed),
        }
        dw = {"out": np.einsum("lhk,ld->hkd", mixed, dy), "out_bias": dy.sum(axis=0)}
        dx = np.zeros_like(x)
        for name, derivative in derivatives.items():
            dw[name] = np.einsum("ld,lhk->dhk", x, derivative)
            dw[f"{name}_bias"] = derivative.sum(axis=0)
            dx += np.einsum("lhk,dhk->ld", derivative, w[name])
        return dx, dw

    return np.einsum("lhk,hkd->ld", mixed, w["out"]) + w["out_bias"], pull


def transform(w: Tree, m: Model, x: Array) -> tuple[Array, Callable[[Array], tuple[Array, Tree]]]:
    """The MLP: [l, d] -> [l, d]."""
    inner = x @ w["up"] + w["up_bias"]
    active, slope = (gelu_exact if m.mlp == "gelu_exact" else gelu_tanh)(inner)

    def pull(dy: Array) -> tuple[Array, Tree]:
        dinner = dy @ w["down"].T * slope
        return dinner @ w["up"].T, {
            "up": x.T @ dinner,
            "up_bias": dinner.sum(axis=0),
            "down": active.T @ dy,
            "down_bias": dy.sum(axis=0),
        }

    return active @ w["down"] + w["down_bias"], pull


def gelu_tanh(a: Array) -> tuple[Array, Array]:
    """GELU in GPT-2's tanh form, and its derivative."""
    c = np.sqrt(2 / np.pi)
    tanh = np.tanh(c * (a + 0.044715 * a**3))
    slope = 0.5 * (1 + tanh) + 0.5 * a * (1 - tanh**2) * c * (1 + 3 * 0.044715 * a**2)
    return 0.5 * a * (1 + tanh), slope


def gelu_exact(a: Array) -> tuple[Array, Array]:
    """GELU: a times the normal distribution function of a; and its derivative."""
    below = 0.5 * (1 + erf(a / np.sqrt(2)))
    return a * below, below + a * np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)


def map_tree(function: Callable, tree: Tree, *others: Tree) -> Tree:
    """`function` of the leaves of equal nested dicts."""
    return {
        name: map_tree(function, leaf, *(other[name] for other in others))
        if isinstance(leaf, dict)
        else function(leaf, *(other[name] for other in others))
        for name, leaf in tree.items()
    }


def add_tree(total: Tree, tree: Tree) -> None:
    """Adds the leaves of `tree` to those of `total`, in place."""
    for name, leaf in tree.items():
        if isinstance(leaf, dict):
            add_tree(total[name], leaf)
        else:
            total[name] += leaf
