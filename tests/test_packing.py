"""Packing: texts do not overlap, rows do not overflow, and every lost pair is counted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxcpt.packing import CellArrays, Place, RowFiller, pack_pairs, pack_rows


def check(lengths_pt, cells, pairs_per_cell, rows, row_tokens):
    """Checks the rules that every packing must keep. Returns the packing."""
    packing = pack_pairs(lengths_pt, cells, pairs_per_cell, rows, row_tokens)
    placed = [pair for members in packing.cells for pair in members]
    assert len(set(placed)) == len(placed)
    assert len(placed) + packing.overflow == len(lengths_pt)
    assert len(packing.cells) == len(packing.places) == cells
    for members, places in zip(packing.cells, packing.places, strict=True):
        assert len(members) <= pairs_per_cell
        used = np.zeros((rows, row_tokens), int)
        for pair, of_pair in zip(members, places, strict=True):
            for place, tokens in zip(of_pair, lengths_pt[pair], strict=True):
                assert 0 <= place.column <= place.column + tokens <= row_tokens
                used[place.row, place.column : place.column + tokens] += 1
        assert used.max(initial=0) <= 1
        assert used.sum() == lengths_pt[members].sum()
    return packing


@st.composite
def problems(draw):
    """Random batches: any number of cells, more slots than pairs, absent negatives."""
    pairs, texts = draw(st.integers(1, 30)), draw(st.integers(2, 4))
    row_tokens = draw(st.integers(4, 40))
    cells = draw(st.integers(1, pairs))
    pairs_per_cell = -(-pairs // cells) + draw(st.integers(0, 2))
    rows = draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**32))
    lengths_pt = np.random.default_rng(seed).integers(2, row_tokens + 1, (pairs, texts))
    lengths_pt[:, 2:] *= np.random.default_rng(seed).integers(0, 2, (pairs, texts - 2))
    return lengths_pt, cells, pairs_per_cell, rows, row_tokens


@given(problems())
def test_keeps_its_promises(problem):
    check(*problem)


@given(problems())
def test_places_every_pair_where_each_text_may_have_a_row(problem):
    lengths_pt, cells, pairs_per_cell, _, row_tokens = problem
    rows = pairs_per_cell * lengths_pt.shape[1]
    assert check(lengths_pt, cells, pairs_per_cell, rows, row_tokens).overflow == 0


def test_loses_only_what_has_no_room():
    # There are two cells of two rows of 10. A pair of 10 + 10 fills a cell, so the third is lost.
    lengths_pt = np.array([[10, 10], [10, 10], [2, 2]])
    packing = check(lengths_pt, 2, 2, 2, 10)
    assert packing.overflow == 1
    assert sorted(map(tuple, packing.cells)) == [(0,), (1,)]


def test_a_pair_that_does_not_fit_where_it_was_dealt_tries_the_other_cells():
    # 5 + 2 is first tried in the cell of 6 + 6, whose rows of 10 have no room for the 5.
    packing = check(np.array([[5, 2], [6, 6], [3, 9]]), 2, 2, 2, 10)
    assert packing.overflow == 0
    assert packing.cells == [[1], [2, 0]]


def test_is_the_same_every_time():
    lengths_pt = np.random.default_rng(0).integers(2, 60, (64, 2))
    first, second = (pack_pairs(lengths_pt, 4, 16, 12, 64) for _ in range(2))
    assert first == second


def test_fills_rows_and_balances_cells():
    # Natural lengths have few long texts and many short ones. 4 cells hold 256 pairs.
    draw = np.random.default_rng(0)
    x = np.clip(draw.lognormal(3, 0.6, 256), 4, 64).astype(int)
    y = np.clip(draw.lognormal(4.8, 0.9, 256), 8, 512).astype(int)
    lengths_pt = np.stack([x, y], axis=1)
    rows = -(-int(lengths_pt.sum()) // (4 * 512))
    packing = check(lengths_pt, 4, 64, rows, 512)
    assert packing.overflow == 0
    totals = [lengths_pt[members].sum() for members in packing.cells]
    assert max(totals) - min(totals) < 0.002 * sum(totals) / 4


def test_fills_rows_to_the_last_token_where_best_fit_needs_one_more():
    """Best fit puts 4 and 4 into one row of 10, and then it needs a third row for the last 3."""
    assert check(np.array([[4, 3, 3], [4, 3, 3]]), 1, 2, 2, 10).overflow == 0


def test_best_fit():
    rows = RowFiller(2, 10)
    assert rows.place(6) == Place(0, 0)
    assert rows.place(7) == Place(1, 0)
    assert rows.place(3) == Place(1, 7)  # fills the second row to its end
    assert rows.place(5) is None
    assert rows.place(4) == Place(0, 6)
    assert rows.place(1) is None
    assert rows.place(0) is not None


def test_arrays_hold_what_was_put():
    arrays = CellArrays((2,), rows=2, row_tokens=5, texts=3)
    arrays.put((1,), 0, np.array([7, 8, 9]), Place(0, 0))
    arrays.put((1,), 2, np.array([4, 5]), Place(0, 3))
    assert arrays.tokens[1].tolist() == [[7, 8, 9, 4, 5], [0] * 5]
    assert arrays.segments[1].tolist() == [[1, 1, 1, 3, 3], [0] * 5]
    assert arrays.positions[1].tolist() == [[0, 1, 2, 0, 1], [0] * 5]
    assert arrays.ends[1].tolist() == [2, 0, 4]
    assert not arrays.tokens[0].any()


@given(st.lists(st.integers(2, 96), max_size=80), st.sampled_from([1, 4, 8, 96]))
def test_pack_rows_keeps_each_text_once_and_within_its_row(lengths, tokens_per_text):
    rows = pack_rows(lengths, (32, 48, 64, 96), tokens_per_text)
    texts = [text for of_size in rows.values() for row in of_size for text in row]
    assert sorted(texts) == list(range(len(lengths)))
    for size, of_size in rows.items():
        for row in of_size:
            assert sum(lengths[text] for text in row) <= size
            assert len(row) <= max(1, size // tokens_per_text)
            assert row == sorted(row, key=lambda text: -lengths[text])


def test_pack_rows_fills_long_rows_with_short_texts():
    assert pack_rows([60, 60, 30, 4, 30, 3], (32, 64), 4) == {64: [[0, 3], [1, 5]], 32: [[2], [4]]}
