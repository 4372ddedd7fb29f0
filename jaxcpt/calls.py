"""Any number of texts in, calls of a compiled function out: which text goes into which call.

In: token ids of texts. Out: `Call`s of a few shapes, and the `Cells` of each. A call packs texts
into rows of one size for each data shard. It does not know what is computed of them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxcpt.model import Cells, make_cells
from jaxcpt.packing import CellArrays, Place, pack_rows

TOKENS_PER_CALL = 16_384
"""Of each data shard. They keep a device busy."""
TOKENS_PER_TEXT = 8
"""A row of n tokens holds at most n // TOKENS_PER_TEXT texts."""


class Call(NamedTuple):
    """One call of the compiled encoder: rows of one size for each data shard."""

    size: int
    rows: int
    members: list[list[int]]
    """The numbers of the texts of each data shard."""
    places: list[list[Place]]


def list_row_sizes(longest: int) -> list[int]:
    """Row sizes that cover the longest text: powers of two from 32, and halfway sizes."""
    sizes = [32]
    while sizes[-1] < longest:
        last = sizes[-1]
        sizes.append(last * 3 // 2 if last & (last - 1) == 0 else last * 4 // 3)
    return sizes


def plan_calls(ids: Sequence[np.ndarray], sizes: Sequence[int], shards: int) -> Iterator[Call]:
    """Calls that cover all texts. sizes: of rows, ascending, from `list_row_sizes`.

    Leftover texts of each size, too few for a whole call, are packed together into longer rows. So
    few shapes are compiled.
    """
    lengths = [len(text) for text in ids]
    left: list[int] = []
    for size, rows in pack_rows(lengths, sizes, TOKENS_PER_TEXT).items():
        at_once = shards * max(1, TOKENS_PER_CALL // size)
        whole = len(rows) - len(rows) % at_once
        for start in range(0, whole, at_once):
            yield _divide(rows[start : start + at_once], size, shards, ids)
        left += [text for row in rows[whole:] for text in row]
    if left:
        longest = max(lengths[text] for text in left)
        size = next(size for size in sizes if size >= longest)
        (packed,) = pack_rows([lengths[t] for t in left], [size], TOKENS_PER_TEXT).values()
        rows = [[left[index] for index in row] for row in packed]
        at_once = shards * max(1, TOKENS_PER_CALL // size)
        for start in range(0, len(rows), at_once):
            yield _divide(rows[start : start + at_once], size, shards, ids)


def _divide(
    rows: Sequence[Sequence[int]], size: int, shards: int, ids: Sequence[np.ndarray]
) -> Call:
    """One call. Its number of rows is a power of two: one query is cheap, and shapes stay few."""
    count = 1 << (-(-len(rows) // shards) - 1).bit_length()
    count = min(count, max(1, TOKENS_PER_CALL // size))
    cells = [rows[shard::shards] for shard in range(shards)]
    members = [[text for row in cell for text in row] for cell in cells]
    return Call(size, count, members, [_place(cell, ids) for cell in cells])


def _place(cell: Sequence[Sequence[int]], ids: Sequence[np.ndarray]) -> list[Place]:
    """The place of each text of a cell's rows, in their order."""
    places = []
    for number, row in enumerate(cell):
        column = 0
        for text in row:
            places.append(Place(number, column))
            column += len(ids[text])
    return places


def fill_cells(call: Call, ids: Sequence[np.ndarray]) -> Cells:
    """The cells of a call, one for each data shard; a text's slot is its place in `members`."""
    slots = call.rows * max(1, call.size // TOKENS_PER_TEXT)
    arrays = CellArrays((len(call.members),), call.rows, call.size, slots)
    for cell, (members, places) in enumerate(zip(call.members, call.places, strict=True)):
        for slot, (text, place) in enumerate(zip(members, places, strict=True)):
            arrays.put((cell,), slot, ids[text], place)
    return make_cells(arrays)
