"""Divides any number of texts among calls of a compiled function.

In: token ids of texts. Out: `Call`s of a few shapes, and the `Cells` of each call. A call packs
texts into rows of one size for each data shard. The module does not know what the function does.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxcpt.model import Cells, make_cells
from jaxcpt.operations import find_platform
from jaxcpt.packing import CellArrays, Place, pack_rows

TOKENS_PER_CALL = {"cpu": 2048, "gpu": 16_384, "tpu": 16_384}
"""Most tokens of one data shard in a call. On a GPU or a TPU, so many keep a device busy. On a CPU,
the values of so few stay in its cache."""
TOKENS_PER_TEXT = 8
"""A row of n tokens holds at most n // TOKENS_PER_TEXT texts."""
PADDING_PER_CALL = 1 / 4
"""The largest share of TOKENS_PER_CALL that a call computes for empty rows, if a call with fewer
rows can avoid it. That call may have to be compiled first, which takes some seconds too."""


class Call(NamedTuple):
    """One call of the compiled encoder: rows of one size for each data shard."""

    size: int
    rows: int
    members: list[list[int]]
    """For each data shard, the numbers of its texts."""
    places: list[list[Place]]
    """For each data shard, the place of each of its texts, in the order of `members`."""


def list_row_sizes(longest: int) -> list[int]:
    """Row sizes in tokens, up to one that holds the longest text: 32, 48, 64, 96, 128 and so on."""
    sizes = [32]
    while sizes[-1] < longest:
        last = sizes[-1]
        sizes.append(last * 3 // 2 if last & (last - 1) == 0 else last * 4 // 3)
    return sizes


def plan_calls(ids: Sequence[np.ndarray], sizes: Sequence[int], shards: int) -> Iterator[Call]:
    """Yields calls that together cover all texts.

    ids: the token ids of each text. sizes: ascending row sizes, from `list_row_sizes`. Full calls
    are made for each row size. The texts that remain are packed together into longer rows, so that
    few shapes are compiled.
    """
    lengths = [len(text) for text in ids]
    most_tokens = TOKENS_PER_CALL[find_platform()]
    left: list[int] = []
    for size, rows in pack_rows(lengths, sizes, TOKENS_PER_TEXT).items():
        at_once = shards * max(1, most_tokens // size)
        whole = len(rows) - len(rows) % at_once
        for start in range(0, whole, at_once):
            yield _divide(rows[start : start + at_once], size, at_once // shards, shards, ids)
        left += [text for row in rows[whole:] for text in row]
    if left:
        longest = max(lengths[text] for text in left)
        size = next(size for size in sizes if size >= longest)
        (packed,) = pack_rows([lengths[t] for t in left], [size], TOKENS_PER_TEXT).values()
        rows = [[left[index] for index in row] for row in packed]
        while rows:
            count = _choose_row_count(-(-len(rows) // shards), size, most_tokens)
            yield _divide(rows[: count * shards], size, count, shards, ids)
            rows = rows[count * shards :]


def _choose_row_count(needed: int, size: int, most_tokens: int) -> int:
    """The rows of one data shard in the next call.

    The number is a power of two, so that few shapes are compiled and a single query stays cheap. It
    is at least `needed`, or less if too many rows would be empty; then another call follows.
    """
    most = max(1, most_tokens // size)
    if needed >= most:
        return most
    count = 1 << (needed - 1).bit_length()
    padding = (count - needed) * size
    return min(count // 2 if padding > PADDING_PER_CALL * most_tokens else count, most)


def _divide(
    rows: Sequence[Sequence[int]], size: int, count: int, shards: int, ids: Sequence[np.ndarray]
) -> Call:
    """Makes one call of `count` rows for each data shard."""
    cells = [rows[shard::shards] for shard in range(shards)]
    members = [[text for row in cell for text in row] for cell in cells]
    return Call(size, count, members, [_place(cell, ids) for cell in cells])


def _place(cell: Sequence[Sequence[int]], ids: Sequence[np.ndarray]) -> list[Place]:
    """The place of each text in its cell, in the order of the rows."""
    places = []
    for number, row in enumerate(cell):
        column = 0
        for text in row:
            places.append(Place(number, column))
            column += len(ids[text])
    return places


def fill_cells(call: Call, ids: Sequence[np.ndarray]) -> Cells:
    """The cells of a call, one for each data shard. A text's slot is its index in `members`."""
    slots = call.rows * max(1, call.size // TOKENS_PER_TEXT)
    arrays = CellArrays((len(call.members),), call.rows, call.size, slots)
    for cell, (members, places) in enumerate(zip(call.members, call.places, strict=True)):
        for slot, (text, place) in enumerate(zip(members, places, strict=True)):
            arrays.put((cell,), slot, ids[text], place)
    return make_cells(arrays)
