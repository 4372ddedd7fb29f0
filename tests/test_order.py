"""The order of pairs: every pair once per epoch, length buckets, a function of (seed, step)."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcpt.errors import UserError
from jaxcpt.order import (
    ROUND_STEPS,
    make_homogeneous_order,
    make_order,
    permute,
    share_out,
)


def all_of(size, key):
    count = np.arange(size, dtype=np.uint64)
    return permute(count, np.full(size, size, np.uint64), np.full(size, key, np.uint64))


def epoch(order, batch, steps):
    slots = np.arange(batch)
    return np.stack([order.pairs_at(step, slots) for step in steps])


@given(st.integers(1, 600), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, key):
    assert sorted(all_of(size, key).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [2**k + d for k in range(1, 17, 3) for d in (-1, 0, 1)])
def test_permute_is_a_permutation_about_powers_of_two(size):
    assert len(np.unique(all_of(size, 0))) == size


def test_permute_of_many():
    # There are too many to list. Check that those at both ends are distinct and in range.
    size = 10**12
    index = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)]).astype(np.uint64)
    found = permute(index, np.full(len(index), size, np.uint64), np.full(len(index), 3, np.uint64))
    assert len(np.unique(found)) == len(index)
    assert found.max() < size
    assert 0.45 < np.mean(found) / size < 0.55


def test_permute_looks_drawn_at_random():
    found = all_of(1 << 12, 5).astype(float)
    assert not np.array_equal(all_of(1 << 12, 6), found)
    neighbours = np.corrcoef(found[:-1], found[1:])[0, 1]
    assert abs(neighbours) < 0.05  # three standard deviations
    assert abs(np.corrcoef(found, np.arange(len(found)))[0, 1]) < 0.05


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**24 - 1))
def test_every_pair_once_per_epoch_from_disk(batch, steps, seed):
    order = make_order(seed, batch, [batch], [batch * steps])
    for start in (0, 7 * steps):
        seen = epoch(order, batch, range(start, start + steps))
        assert sorted(seen.ravel().tolist()) == list(range(batch * steps))


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**24 - 1))
def test_every_pair_once_per_epoch_from_memory(batch, steps, seed):
    lengths = np.random.default_rng(seed).integers(4, 90, batch * steps)
    order = make_order(seed, batch, [batch], [lengths])
    for start in (0, 7 * steps):
        seen = epoch(order, batch, range(start, start + steps))
        assert sorted(seen.ravel().tolist()) == list(range(batch * steps))


@pytest.mark.parametrize("in_memory", [False, True])
def test_nearly_once_where_the_batch_does_not_divide(in_memory):
    count, batch, epochs = 103, 10, 40
    total = np.random.default_rng(0).integers(4, 90, count) if in_memory else count
    order = make_order(0, batch, [batch], [total])
    times = np.bincount(epoch(order, batch, range(epochs * count // batch)).ravel())
    assert len(times) == count
    assert times.min() >= 0.9 * epochs
    assert times.max() <= 1.1 * epochs


def test_no_pair_twice_in_a_batch_from_memory():
    order = make_order(3, 10, [10], [np.arange(103)])
    assert all(len(set(pairs)) == 10 for pairs in epoch(order, 10, range(200)).tolist())


def test_each_slot_has_its_stratum_of_length():
    draw = np.random.default_rng(1)
    lengths = draw.lognormal(4, 1, 960).astype(int).clip(max=200)
    drawn = lengths[epoch(make_order(0, 32, [32], [lengths]), 32, range(60))]
    borders = np.sort(lengths).reshape(32, 30)
    assert (drawn >= borders[:, 0]).all()
    assert (drawn <= borders[:, -1]).all()
    # So batches have nearly equal token counts. Without buckets they would not.
    at_random = draw.choice(lengths, (60, 32)).sum(axis=1)
    assert np.std(drawn.sum(axis=1)) < 0.25 * np.std(at_random)


def test_sources_keep_their_shares():
    for totals in ([500, 100], [np.arange(500), np.arange(100)]):
        order = make_order(0, 12, [9, 3], totals)
        for pairs in epoch(order, 12, range(30)):
            assert (pairs[:9] < 500).all()
            assert ((pairs[9:] >= 500) & (pairs[9:] < 600)).all()


def test_is_a_function_of_seed_and_step():
    order = make_order(1, 8, [8], [100])
    again = make_order(1, 8, [8], [100])
    other = make_order(2, 8, [8], [100])
    late = epoch(order, 8, [1000])
    epoch(again, 8, range(3))
    assert np.array_equal(epoch(again, 8, [1000]), late)
    assert not np.array_equal(epoch(other, 8, range(5)), epoch(order, 8, range(5)))
    # Each part of the slots has the same pairs as in the whole batch.
    assert np.array_equal(order.pairs_at(1000, np.array([5, 2])), late[0, [5, 2]])


def test_epochs_differ():
    order = make_order(0, 10, [10], [200])
    first, second = (epoch(order, 10, range(start, start + 20)) for start in (0, 20))
    assert not np.array_equal(first, second)


@given(
    st.integers(0, 500),
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6),
)
def test_share_out(slots, weights):
    shares = share_out(slots, weights)
    exact = np.array(weights) / sum(weights) * slots
    assert sum(shares) == slots
    assert np.all(np.abs(np.array(shares) - exact) < 1 + 1e-9)


def test_share_out_of_equal_weights():
    assert share_out(10, [1, 1, 1]) == [4, 3, 3]
    assert share_out(12, [3, 1]) == [9, 3]


@pytest.mark.parametrize("total", [7, np.arange(7)], ids=["disk", "memory"])
def test_refuses_a_source_smaller_than_its_share(total):
    with pytest.raises(UserError) as caught:
        make_order(0, 10, [8, 2], [total, 100])
    assert str(caught.value) == (
        "batching.pairs_per_batch: 8 pairs of a batch come from a source that has 7; lower it"
    )


WEIGHTS = [5.0, 3.0, 2.0]


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_homogeneous_batch_is_of_one_source(in_memory):
    counts = [500, 40, 100]
    totals = [np.arange(n) % 50 for n in counts] if in_memory else counts
    order = make_homogeneous_order(7, 20, WEIGHTS, totals)
    borders = np.cumsum([0, *counts])
    times = np.zeros(640, int)
    for step in range(ROUND_STEPS):
        pairs = order.pairs_at(step, np.arange(20))
        source, _ = order.turn(step)
        assert (borders[source] <= pairs).all()
        assert (pairs < borders[source + 1]).all()
        times[pairs] += 1
    # Every pair of a source occurs equally often: 500 batches of 20 over 500 pairs.
    assert [set(times[a:b]) for a, b in itertools.pairwise(borders)] == [
        {20},
        {150},
        {40},
    ]


def test_sources_have_their_share_of_every_stretch_of_homogeneous_batches():
    order = make_homogeneous_order(3, 4, WEIGHTS, [100, 100, 100])
    turns = np.array([order.turn(step)[0] for step in range(2 * ROUND_STEPS)])
    for start, steps in ((0, ROUND_STEPS), (ROUND_STEPS, ROUND_STEPS), (0, 50), (1390, 200)):
        found = np.bincount(turns[start : start + steps], minlength=3)
        exact = np.array(WEIGHTS) / 10 * steps
        assert np.abs(found - exact).max() <= 3, (start, found)
    assert not np.array_equal(turns[:ROUND_STEPS], turns[ROUND_STEPS:])
    # The sources do not alternate regularly: the next one does not follow from the last one.
    assert len({tuple(turns[at : at + 6]) for at in range(0, 1200, 6)}) > 50


def test_homogeneous_batches_are_a_function_of_seed_and_step():
    def draw(seed, step):
        order = make_homogeneous_order(seed, 6, WEIGHTS, [100, 100, 100])
        return order.pairs_at(step, np.arange(6)).tolist()

    for step in (0, 999, 1000, 12_345):
        assert draw(1, step) == draw(1, step)
    assert [draw(1, step) for step in range(9)] != [draw(2, step) for step in range(9)]
    order = make_homogeneous_order(1, 6, WEIGHTS, [100, 100, 100])
    some = order.pairs_at(12_345, np.array([4, 1])).tolist()
    assert some == [draw(1, 12_345)[4], draw(1, 12_345)[1]]
    # Sources of equal size are shuffled differently.
    firsts = [next(s for s in range(99) if order.turn(s) == (n, 0)) for n in range(3)]
    drawn = [(order.pairs_at(s, np.arange(6)) % 100).tolist() for s in firsts]
    assert drawn[0] != drawn[1] != drawn[2]


def test_samples_of_homogeneous_batches_hold_every_source():
    order = make_homogeneous_order(0, 4, [500.0, 500.0, 1.0], [50, 50, 50])
    sampled = [[order.source_at(step) for step in steps] for steps in order.samples(8)]
    assert sampled == [[0] * 8, [1] * 8, [2]]


def test_refuses_a_source_that_would_get_no_homogeneous_batch():
    with pytest.raises(UserError) as caught:
        make_homogeneous_order(0, 4, [1.0, 1e-5], [50, 50])
    assert str(caught.value) == (
        "data.weights: source 1 would get none of 1000 homogeneous batches; raise its weight, or "
        "leave it out"
    )
