"""Puts pairs into cells and their texts into rows, so that few tokens are padding.

In: lengths in tokens. Out: the place of each text. The module uses only NumPy and Python and knows
neither texts nor devices.
"""

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Place:
    """A text's row in its cell, and the column of its first token."""

    row: int
    column: int


class RowFiller:
    """Fills the rows of a cell by best fit: each text goes into the fullest row that has room."""

    def __init__(self, rows: int, row_tokens: int) -> None:
        self.row_tokens = row_tokens
        self.free = [(row_tokens, row) for row in range(rows)]  # sorted by free tokens

    def place(self, tokens: int) -> Place | None:
        """Reserves a place for a text; None if no row has room. A text of 0 tokens always fits."""
        at = bisect.bisect_left(self.free, (tokens, -1))
        if at == len(self.free):
            return None
        free, row = self.free.pop(at)
        bisect.insort(self.free, (free - tokens, row))
        return Place(row, self.row_tokens - free)


@dataclass(frozen=True)
class Packing:
    """The result of `pack_pairs`."""

    cells: list[list[int]]
    """The pairs of each cell, in order."""
    places: list[list[list[Place]]]
    """For each cell and each of its pairs, the places of the pair's texts."""
    overflow: int
    """The number of pairs that found no place."""


def pack_pairs(
    lengths_pt: np.ndarray, cells: int, pairs_per_cell: int, rows: int, row_tokens: int
) -> Packing:
    """Spreads pairs over cells by token count, then packs the texts of each cell.

    lengths_pt: tokens of each pair's texts (x, y, negatives; 0 for an absent negative). The longest
    pair is placed first, and each pair goes into the emptiest cell. If it does not fit there, the
    other cells are tried.
    """
    members: list[list[int]] = [[] for _ in range(cells)]
    heap = [(0, cell) for cell in range(cells)]
    totals = lengths_pt.sum(axis=1)
    for pair in np.argsort(-totals, kind="stable").tolist():
        tokens, cell = heapq.heappop(heap)
        members[cell].append(pair)
        if len(members[cell]) < pairs_per_cell:  # a full cell does not return to the heap
            heapq.heappush(heap, (tokens + int(totals[pair]), cell))

    left_over: list[int] = []
    places: list[list[list[Place]]] = []
    for cell in range(cells):
        while (found := _pack_cell(lengths_pt[members[cell]], rows, row_tokens)) is None:
            # Take out the shortest pair, which is the easiest to place in another cell.
            left_over.append(members[cell].pop())
        places.append(found)
    overflow = 0
    for pair in sorted(left_over, key=lambda p: -totals[p]):
        for cell in sorted(range(cells), key=lambda c: int(totals[members[c]].sum())):
            if len(members[cell]) == pairs_per_cell:
                continue
            found = _pack_cell(lengths_pt[[*members[cell], pair]], rows, row_tokens)
            if found is not None:
                members[cell].append(pair)
                places[cell] = found
                break
        else:
            overflow += 1
    return Packing(members, places, overflow)


def _pack_cell(lengths_pt: np.ndarray, rows: int, row_tokens: int) -> list[list[Place]] | None:
    """The places of each pair's texts in one cell; None if not all of them fit."""
    if lengths_pt.sum() > rows * row_tokens:
        return None
    lengths = lengths_pt.ravel().tolist()
    places = _fit_best(lengths, rows, row_tokens) or _fill_rows(lengths, rows, row_tokens)
    if places is None:
        return None
    texts = lengths_pt.shape[1]
    return [places[first : first + texts] for first in range(0, len(places), texts)]


def _fit_best(lengths: list[int], rows: int, row_tokens: int) -> list[Place] | None:
    """The places of texts by best fit, longest text first; None if not all of them fit."""
    cell = RowFiller(rows, row_tokens)
    places: list[Any] = [None] * len(lengths)
    for text in sorted(range(len(lengths)), key=lambda t: -lengths[t]):
        places[text] = cell.place(lengths[text])
        if places[text] is None:
            return None
    return places


def _fill_rows(lengths: list[int], rows: int, row_tokens: int) -> list[Place] | None:
    """The places of texts by minimum bin slack (Gupta and Ho 1999); None if not all of them fit.

    Each row takes the longest remaining text, and those texts that fill the rest of the row best.
    This can need one row less than best fit.
    """
    places = [Place(0, 0)] * len(lengths)
    left = sorted((t for t in range(len(lengths)) if lengths[t]), key=lambda t: lengths[t])
    for row in range(rows):
        column = 0
        for at in _choose_row([lengths[text] for text in left], row_tokens):
            text = left.pop(at)
            places[text] = Place(row, column)
            column += lengths[text]
    return None if left else places


def _choose_row(lengths: list[int], row_tokens: int) -> list[int]:
    """Chooses the texts that fill the row of the longest text best.

    lengths: ascending. Returns descending indices. Among equal choices, long texts are preferred,
    because short ones fit more easily into later rows.
    """
    if not lengths:
        return []
    longest = len(lengths) - 1
    room = row_tokens - lengths[longest]
    first = min(bisect.bisect_right(lengths, room), longest)
    full = 1 << room
    sums = [1]  # bit s of sums[i]: a subset of the first i texts has s tokens
    for at in range(first - 1, -1, -1):
        sums.append((sums[-1] | sums[-1] << lengths[at]) & (2 * full - 1))
        if sums[-1] >= full:
            break
    taken, total = [longest], sums[-1].bit_length() - 1
    for number in range(len(sums) - 1, 0, -1):
        if not sums[number - 1] >> total & 1:
            taken.append(first - number)
            total -= lengths[first - number]
    return sorted(taken, reverse=True)


def pack_rows(
    lengths: Sequence[int], sizes: Sequence[int], tokens_per_text: int
) -> dict[int, list[list[int]]]:
    """Packs texts into rows of several sizes. Returns, for each size in use, the texts of each row.

    Attention is computed over whole rows, so rows are as short as their texts allow. The longest
    text is placed first. Each text goes into the fullest row that has room for it. If there is
    none, a new row gets the smallest of the `sizes` (ascending) that holds the text. A row of n
    tokens takes at most n // `tokens_per_text` texts.
    """
    rows: dict[int, list[list[int]]] = {}
    free: list[tuple[int, int, int]] = []  # free tokens, size, number of the row; sorted
    for text in sorted(range(len(lengths)), key=lambda t: -lengths[t]):
        at = bisect.bisect_left(free, (lengths[text], -1, -1))
        if at < len(free):
            room, size, row = free.pop(at)
        else:
            size = next(size for size in sizes if size >= lengths[text])
            room, row = size, len(rows.setdefault(size, []))
            rows[size].append([])
        rows[size][row].append(text)
        if len(rows[size][row]) < size // tokens_per_text:
            bisect.insort(free, (room - lengths[text], size, row))
    return rows


class CellArrays:
    """The int32 arrays of cells while they are being filled. `model.Cells` explains each array."""

    def __init__(self, cells: tuple[int, ...], rows: int, row_tokens: int, texts: int) -> None:
        self.tokens, self.segments, self.positions = (
            np.zeros((*cells, rows, row_tokens), np.int32) for _ in range(3)
        )
        self.ends = np.zeros((*cells, texts), np.int32)

    def put(self, cell: tuple[int, ...], text: int, ids: np.ndarray, place: Place) -> None:
        where: Any = (*cell, place.row, slice(place.column, place.column + len(ids)))
        self.tokens[where] = ids
        self.segments[where] = text + 1
        self.positions[where] = np.arange(len(ids))
        row_tokens = self.tokens.shape[-1]
        self.ends[(*cell, text)] = place.row * row_tokens + place.column + len(ids) - 1
