"""Batches are a function of (seed, step), are the same on any number of processes, and hold each
text once."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import PAIRS, make_experiment

from jaxcpt.batches import Batches, size_batches
from jaxcpt.config import Batching, Mesh
from jaxcpt.errors import UserError
from jaxcpt.pair import Pair
from jaxcpt.pairs import PairList
from jaxcpt.pairs.interface import hash_text
from jaxcpt.sharding import make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(Mesh())


def make_batches(sources, tokenizer, mesh, **changes):
    return Batches(make_experiment(**changes), sources, tokenizer, mesh)


def arrays_of(batch):
    return [np.asarray(array) for array in jax.tree.leaves(batch)]


def read_texts(batch, tokenizer):
    """Yields (side, decoded text, hash) of every text of a batch, read from its arrays."""
    cells = jax.tree.map(np.asarray, batch.cells)
    present = np.asarray(batch.present_ngt)
    found = []
    for n, g, t in np.argwhere(present).tolist():
        tokens, segments, positions = (
            array[n, g].ravel()
            for array in (cells.tokens_grl, cells.segments_grl, cells.positions_grl)
        )
        (where,) = np.nonzero(segments == t + 1)
        ids = tokens[where]
        assert positions[where].tolist() == list(range(len(ids)))
        assert len(np.unique(where // cells.tokens_grl.shape[-1])) == 1  # all tokens are in one row
        assert np.diff(where).tolist() == [1] * (len(ids) - 1)  # and are neighbours
        assert cells.ends_gt[n, g, t] == where[-1]
        (side,) = (s for s in "xy" if tokenizer.delimiters(s) == ((ids[0],), (ids[-1],)))
        assert not set(ids[1:-1]) & {
            i for s in "xy" for both in tokenizer.delimiters(s) for i in both
        }
        high_and_low = tuple(np.asarray(batch.hash_ngt2)[n, g, t].tolist())
        found.append((side, tokenizer.decode(ids[1:-1]), high_and_low))
    used = sum(len(t) > 0 for t in found)
    assert used == present.sum()
    return found


LONG = {"tokenizer__y_tokens": 200, "tokenizer__x_tokens": 200, "batching__row_tokens": 200}


def test_holds_each_text_once_between_its_delimiters(sources, tokenizer, mesh):
    whole = replace(tokenizer, x_tokens=200, y_tokens=200)
    batches = make_batches(sources, whole, mesh, batching__chunks=2, **LONG)
    batch = batches.make(0)
    texts = read_texts(batch, whole)
    by_hash = {hash_text(text): text for pair in PAIRS for text in (pair.x, pair.y)}
    assert len(texts) == 30
    for side, text, hashed in texts:
        assert by_hash[hashed] == text
        assert text in {getattr(pair, side) for pair in PAIRS}
    segments = np.asarray(batch.cells.segments_grl)
    assert not np.asarray(batch.cells.tokens_grl)[segments == 0].any()
    assert not np.asarray(batch.cells.ends_gt)[~np.asarray(batch.present_ngt)].any()


def test_x_and_y_of_a_pair_share_a_cell_and_a_slot(sources, tokenizer, mesh):
    batch = make_batches(sources, tokenizer, mesh, batching__chunks=2, batching__negatives=2).make(
        4
    )
    partners = {hash_text(pair.x): pair for pair in PAIRS}
    present, hashes = np.asarray(batch.present_ngt), np.asarray(batch.hash_ngt2)
    slots = present.shape[2] // 4
    seen = 0
    for n, g, slot in np.argwhere(present[:, :, :slots]).tolist():
        pair = partners[tuple(hashes[n, g, slot].tolist())]
        texts = [pair.x, pair.y, *pair.negatives[:2]]
        for side in range(4):
            at = (n, g, side * slots + slot)
            assert present[at] == (side < len(texts))
            assert tuple(hashes[at].tolist()) == (hash_text(texts[side]) if present[at] else (0, 0))
        seen += 1
    assert seen == 15


def test_an_empty_negative_is_a_text_and_an_absent_one_is_not(tokenizer, mesh):
    pairs = [Pair(f"x{i}", f"y{i}", "", ("",) * (i % 2)) for i in range(32)]
    batch = make_batches(
        [PairList(pairs)], tokenizer, mesh, batching__negatives=1, batching__pairs_per_batch=32
    ).make(0)
    present = np.asarray(batch.present_ngt).reshape(8, 3, -1)
    assert present.sum(axis=(0, 2)).tolist() == [32, 32, 16]


def test_is_a_function_of_seed_and_step(sources, tokenizer, mesh):
    first = make_batches(sources, tokenizer, mesh, batching__token_dropout=0.2)
    again = make_batches(sources, tokenizer, mesh, batching__token_dropout=0.2)
    for step in (5, 0, 5):
        for one, other in zip(
            arrays_of(first.make(step)), arrays_of(again.make(step)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    other_seed = make_batches(sources, tokenizer, mesh, batching__token_dropout=0.2, seed=1)
    for step, batches in ((6, first), (5, other_seed)):
        assert not np.array_equal(
            np.asarray(batches.make(step).hash_ngt2), np.asarray(first.make(5).hash_ngt2)
        )


def test_stream_is_make_after_make(sources, tokenizer, mesh):
    batches = make_batches(sources, tokenizer, mesh)
    for first, last in ((0, 5), (3, 5), (4, 5), (5, 5)):
        streamed = [coming.result() for coming in batches.stream(first, last)]
        assert len(streamed) == last - first
        for step, batch in zip(range(first, last), streamed, strict=True):
            for one, other in zip(arrays_of(batch), arrays_of(batches.make(step)), strict=True):
                np.testing.assert_array_equal(one, other)


def hashes_of(batch):
    present, hashes = np.asarray(batch.present_ngt), np.asarray(batch.hash_ngt2)
    return sorted(map(tuple, hashes[present].tolist()))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_holds_the_same_pairs_on_any_mesh(sources, tokenizer, mesh, devices):
    other = make_mesh(Mesh(), jax.devices()[:devices])
    for step in (0, 3):
        ours = make_batches(sources, tokenizer, mesh).make(step)
        theirs = make_batches(sources, tokenizer, other).make(step)
        assert hashes_of(ours) == hashes_of(theirs)
        assert (np.asarray(ours.cells.tokens_grl) > 0).sum() == (
            np.asarray(theirs.cells.tokens_grl) > 0
        ).sum()


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
def test_what_each_process_takes_is_together_the_batch(
    sources, tokenizer, mesh, processes, in_memory
):
    def process(number):
        batches = make_batches(sources, tokenizer, mesh, batching__in_memory=in_memory)
        batches.shards = np.arange(8).reshape(processes, -1)[number]
        return batches

    whole = process(0)
    whole.shards = np.arange(8)
    everybody = [process(number) for number in range(processes)]
    # All processes must find the same static shape without communication.
    assert len({batches.sizes for batches in everybody}) == 1
    for step in (0, 1, 9):
        parts = [b._draw(step, b.shards) for b in everybody]
        taken = [pair.hashes for part in parts for pair in part]
        assert sorted(taken) == sorted(p.hashes for p in whole._draw(step, whole.shards))
        assert len(taken) == 15
        for batches, part in zip(everybody, parts, strict=True):
            packing = batches._pack(batches._lengths(part), len(batches.shards), batches.sizes)
            assert packing.overflow == 0


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
def test_every_pair_once_per_epoch(sources, tokenizer, mesh, in_memory):
    batches = make_batches(sources, tokenizer, mesh, batching__in_memory=in_memory)
    epoch = [h for step in range(6) for h in hashes_of(batches.make(step))]
    assert sorted(epoch) == sorted(hash_text(text) for p in PAIRS for text in (p.x, p.y))


class Counting(PairList):
    read_pairs = 0

    def read(self, indices):
        self.read_pairs += len(indices)
        return super().read(indices)


@pytest.mark.parametrize("homogeneous", [True, False])
def test_each_process_reads_only_its_part_from_disk(tokenizer, mesh, homogeneous):
    batches, _ = two_sources(tokenizer, mesh, homogeneous, batching__in_memory=False)
    batches.sources = [Counting(source.pairs) for source in batches.sources]
    for part in np.arange(8).reshape(4, -1):
        before = sum(source.read_pairs for source in batches.sources)
        drawn = batches._draw(3, part)
        read = sum(source.read_pairs for source in batches.sources) - before
        assert read == len(drawn) <= 4  # a quarter of 15


def test_reads_no_more_than_a_batch_from_disk(tokenizer, mesh):
    source = Counting(PAIRS)
    batches = make_batches([source], tokenizer, mesh, batching__in_memory=False)
    assert source.read_pairs == 0
    batches.make(0)
    sampled = source.read_pairs  # for the sizes
    batches.make(1)
    assert source.read_pairs - sampled == 15


def test_weights_of_sources(tokenizer, mesh):
    sources = [PairList(PAIRS[:60]), PairList(PAIRS[60:])]
    experiment = make_experiment()
    source = experiment.data.train[0]
    data = replace(experiment.data, train=(source, source), weights=(1.0, 2.0))
    for in_memory in (True, False):
        batches = Batches(
            replace(
                experiment,
                data=data,
                batching=replace(experiment.batching, in_memory=in_memory),
            ),
            sources,
            tokenizer,
            mesh,
        )
        second = {hash_text(pair.x) for pair in PAIRS[60:]}
        for step in range(4):
            assert sum(h in second for h in hashes_of(batches.make(step))) == 10


def two_sources(tokenizer, mesh, homogeneous=True, **changes):
    """Two sources with 60 short and 30 long pairs, which hashes distinguish, weighted 2 to 1."""
    experiment = make_experiment(**changes)
    source = experiment.data.train[0]
    data = replace(
        experiment.data, train=(source, source), weights=(2.0, 1.0), homogeneous=homogeneous
    )
    long = [Pair(pair.x, f"{pair.y} {pair.y}", "long") for pair in PAIRS[60:]]
    sources = [PairList(PAIRS[:60]), PairList(long)]
    batches = Batches(replace(experiment, data=data), sources, tokenizer, mesh)
    return batches, [{hash_text(p.y) for p in pairs.pairs} for pairs in sources]


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
@pytest.mark.parametrize("devices", [1, 8])
def test_homogeneous_batches_are_the_same_on_any_mesh(tokenizer, mesh, devices, in_memory):
    changes = {"batching__in_memory": in_memory}
    ours, of_source = two_sources(tokenizer, mesh, **changes)
    other = make_mesh(Mesh(), jax.devices()[:devices])
    theirs, _ = two_sources(tokenizer, other, **changes)
    taken = []
    for step in range(12):
        hashes = hashes_of(ours.make(step))
        assert hashes == hashes_of(theirs.make(step))
        here = [bool(set(hashes) & ys) for ys in of_source]
        assert sum(here) == 1
        assert len(hashes) == 30  # the rows are long enough for the longer source too
        taken.append(here.index(True))
    assert 3 <= sum(taken) <= 5
    # A later start gets the same batches.
    again, _ = two_sources(tokenizer, mesh, **changes)
    for step, coming in zip((9, 10), again.stream(9, 11), strict=True):
        for one, other in zip(arrays_of(coming.result()), arrays_of(ours.make(step)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
def test_processes_share_a_homogeneous_batch(tokenizer, mesh, processes, in_memory):
    def process(shards):
        batches, _ = two_sources(tokenizer, mesh, batching__in_memory=in_memory)
        batches.shards = shards
        return batches

    whole = process(np.arange(8))
    everybody = [process(part) for part in np.arange(8).reshape(processes, -1)]
    assert len({batches.sizes for batches in everybody}) == 1
    for step in (0, 5, 1003):
        parts = [pair.hashes for b in everybody for pair in b._draw(step, b.shards)]
        assert sorted(parts) == sorted(p.hashes for p in whole._draw(step, whole.shards))


@pytest.mark.parametrize("devices", [1, 2])
def test_each_source_of_homogeneous_batches_has_a_shape_of_its_own(tokenizer, devices):
    mesh = make_mesh(Mesh(), jax.devices()[:devices])
    changes = {"batching__pairs_per_batch": 30, "batching__row_tokens": 64}
    batches, _ = two_sources(tokenizer, mesh, **changes)
    short, long = batches.sizes_by_source
    assert short.tokens_per_batch < long.tokens_per_batch
    assert batches.sizes == long
    assert [b.cells.tokens_grl.shape for b in batches.shapes] == [
        (1, devices, sizes.rows_per_cell, sizes.row_tokens) for sizes in (long, short)
    ]
    for step in range(12):
        batch = batches.make(step)
        sizes = batches.sizes_by_source[batches.order.source_at(step)]
        segments = np.asarray(batch.cells.segments_grl)
        assert segments.shape == (1, devices, sizes.rows_per_cell, sizes.row_tokens)
        assert np.mean(segments == 0) < 0.06
        assert np.asarray(batch.present_ngt).sum() == 60


def test_the_length_of_rows_suits_the_longest_text_and_the_kernels(sources, tokenizer):
    one = make_mesh(Mesh(), jax.devices()[:1])
    sizes = make_batches(sources, tokenizer, one, batching__row_tokens=256).sizes
    longest = max(len(ids) for p in PAIRS for ids in tokenizer.encode([p.x, p.y], "y"))
    assert longest <= sizes.row_tokens < 256
    assert sizes.row_tokens % 8 == 0
    fixed = {"batching__row_tokens": 256, "batching__rows_per_cell": 3}
    assert make_batches(sources, tokenizer, one, **fixed).sizes.row_tokens == 256
    unread = {"batching__row_tokens": 256, "batching__in_memory": False}
    assert make_batches(sources, tokenizer, one, **unread).sizes.row_tokens == 256


def test_rows_become_a_little_longer_where_that_saves_a_row(tokenizer):
    pairs = [Pair("a", "word " * 300) for _ in range(8)]  # y fills a row of 200 tokens
    one = make_mesh(Mesh(), jax.devices()[:1])
    changes = LONG | {"batching__pairs_per_batch": 4}
    wide = replace(tokenizer, x_tokens=200, y_tokens=200)
    sizes = make_batches([PairList(pairs)], wide, one, **changes).sizes
    assert (sizes.rows_per_cell, sizes.row_tokens) == (4, 208)


def test_pairs_without_room_are_absent_and_counted(sources, tokenizer):
    one = make_mesh(Mesh(), jax.devices()[:1])
    batches = make_batches(sources, tokenizer, one, batching__rows_per_cell=4)
    batch = batches.make(0)
    present = np.asarray(batch.present_ngt)[0, 0]
    drawn = batches._draw(0, batches.shards)
    packing = batches._pack(batches._lengths(drawn), 1, batches.sizes)
    assert 0 < packing.overflow < 15
    assert present[:15].sum() == present[15:].sum() == 15 - packing.overflow
    assert (present[:15] == present[15:]).all()  # a pair is never half there


def test_a_batch_that_does_not_divide_leaves_slots_absent(sources, tokenizer, mesh):
    batches = make_batches(sources, tokenizer, mesh, batching__chunks=3)
    assert batches.sizes.pairs_per_cell == 1  # 15 pairs in 24 cells
    batch = batches.make(2)
    assert np.asarray(batch.present_ngt).sum() == 30
    assert batch.present_ngt.shape == (3, 8, 2)


def test_one_text_a_row(sources, tokenizer, mesh):
    batches = make_batches(sources, tokenizer, mesh, batching__pack=False)
    assert batches.sizes.rows_per_cell == 2 * batches.sizes.pairs_per_cell
    segments = np.asarray(batches.make(0).cells.segments_grl)
    assert batches.make(0).cells.tokens_grl.shape == (1, 8, 4, 32)
    assert read_texts(batches.make(0), tokenizer)
    for row in segments.reshape(-1, 32):
        assert len(set(row.tolist()) - {0}) <= 1


def test_token_dropout(sources, tokenizer, mesh):
    whole = make_batches(sources, tokenizer, mesh)
    dropped = make_batches(sources, tokenizer, mesh, batching__token_dropout=0.5)
    before = whole._draw(7, whole.shards)
    after = dropped._drop(before, 7, whole.shards)
    later = dropped._drop(before, 8, whole.shards)
    some_differ = False
    for old, new, next_step in zip(before, after, later, strict=True):
        assert new.hashes == old.hashes  # it is still the same text
        for text, rest, rest_later in zip(old.ids, new.ids, next_step.ids, strict=True):
            inner = len(text) - 2
            assert len(rest) == len(rest_later) == len(text) - int(0.5 * inner)
            assert (rest[0], rest[-1]) == (text[0], text[-1])
            remaining = iter(text.tolist())
            assert all(token in remaining for token in rest.tolist())  # in the same order
            some_differ |= not np.array_equal(rest, rest_later)
    assert some_differ


def test_hardly_any_padding_on_natural_lengths(tokenizer):
    # 1,024 pairs with lengths like the docstrings and functions of the quickstart: a long tail.
    draw = np.random.default_rng(0)

    def text(tokens):
        return " ".join(f"w{n}" for n in draw.integers(0, 150, tokens))

    # A word is about two tokens of this tiny vocabulary.
    lengths = zip(draw.lognormal(1.8, 0.6, 3000), draw.lognormal(3.2, 0.9, 3000), strict=True)
    pairs = [Pair(text(int(x) + 1), text(int(min(y, 300)) + 1)) for x, y in lengths]
    wide = replace(tokenizer, x_tokens=64, y_tokens=128)
    changes = {
        "tokenizer__x_tokens": 64,
        "tokenizer__y_tokens": 128,
        "batching__row_tokens": 128,
        "batching__pairs_per_batch": 1024,
    }
    for devices in (1, 2):
        two = make_mesh(Mesh(), jax.devices()[:devices])
        for in_memory in (True, False):
            batches = make_batches(
                [PairList(pairs)], wide, two, batching__in_memory=in_memory, **changes
            )
            for step in (0, 11):
                batch = batches.make(step)
                assert np.asarray(batch.present_ngt).sum() >= 0.999 * 2048
                padding = np.mean(np.asarray(batch.cells.segments_grl) == 0)
                # Without length buckets, totals vary.
                assert padding <= (0.03 if in_memory else 0.06)


def test_hash_is_of_the_text():
    assert hash_text("a") == hash_text("a") != hash_text("b")
    hashes = {hash_text(str(number)) for number in range(20_000)}
    assert len(hashes) == 20_000
    assert all(0 <= part < 2**32 for pair in hashes for part in pair)
    assert len({low for low, _ in hashes}) > 19_990  # both halves vary
    assert len({high for _, high in hashes}) > 19_990


def test_refuses_fewer_pairs_than_data_shards():
    with pytest.raises(UserError) as caught:
        size_batches(Batching(pairs_per_batch=7), 8)
    assert str(caught.value) == (
        "batching.pairs_per_batch: 7 pairs for 8 data shards of the mesh; each needs at least one"
    )
