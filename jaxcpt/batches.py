"""Makes the packed global batch of a step from pairs, as a pure function of (seed, step).

In: an experiment, sources of pairs, a tokenizer and a mesh. Out: a `Batch` on the devices. There is
no iterator state, so a resumed run continues with the next batch, on any number of devices and
hosts. Each process reads, tokenises and packs only the pairs of its own data shards. The module
knows neither the formats of pairs nor the layers of the model.
"""

import heapq
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxcpt.config import Batching, Experiment
from jaxcpt.errors import UserError
from jaxcpt.model import Cells, make_cells
from jaxcpt.operations import Array
from jaxcpt.order import make_homogeneous_order, make_order, share_out
from jaxcpt.packing import CellArrays, Packing, pack_pairs
from jaxcpt.pairs import EncodedPairs
from jaxcpt.pairs.interface import Encoded
from jaxcpt.sharding import count_data_shards, named
from jaxcpt.tokenizer import Tokenizer

ROW_MULTIPLES = {"tpu": 128, "gpu": 64, "cpu": 8}
"""The length of rows changes by multiples of this many tokens, which suit the attention kernels."""
LONGER_PART = 1 / 16
"""Rows become longer by at most this share: attention costs more in longer rows."""
SMALL_PART = 0.005
"""If a row is at most this share of its cell, its length stays: an empty row costs little."""
SAMPLES = 8
"""Fewest batches to measure the rows on. Homogeneous batches are sampled for each source."""
SAMPLED_PAIRS = 8192
"""If the pairs are in memory, enough batches are sampled to hold this many pairs."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """n chunks of g cells of packed texts.

    The texts (t) of a cell are in this order: every x, every y, every first negative, and so on.

    cells         the packed cells [n, g, ...]
    present_ngt   whether the text exists and has a place in its cell
    hash_ngt2     64-bit hash of the text, as two uint32
    """

    cells: Cells
    present_ngt: Array
    hash_ngt2: Array


@dataclass(frozen=True)
class Sizes:
    """The static shape of every batch of a run."""

    chunks: int
    data_shards: int
    pairs_per_cell: int
    texts_per_pair: int
    rows_per_cell: int
    row_tokens: int

    @property
    def tokens_per_batch(self) -> int:
        """Tokens computed in a step, padding included."""
        return self.chunks * self.data_shards * self.rows_per_cell * self.row_tokens


def size_batches(settings: Batching, data_shards: int) -> Sizes | None:
    """The shape of batches; None if the number of rows must be measured on the pairs."""
    pairs = settings.pairs_per_batch
    if pairs < data_shards:
        raise UserError(
            f"batching.pairs_per_batch: {pairs} pairs for {data_shards} data shards of the mesh; "
            "each needs at least one"
        )
    pairs_per_cell = -(-pairs // (settings.chunks * data_shards))
    texts_per_pair = 2 + settings.negatives
    rows = settings.rows_per_cell if settings.pack else pairs_per_cell * texts_per_pair
    if rows is None:
        return None
    return Sizes(
        settings.chunks, data_shards, pairs_per_cell, texts_per_pair, rows, settings.row_tokens
    )


def size_full_batches(experiment: Experiment, data_shards: int) -> Sizes:
    """The largest possible shape of batches, in which every text has the most tokens allowed."""
    settings, tokenizer = experiment.batching, experiment.tokenizer
    sizes = size_batches(settings, data_shards)
    if sizes is not None:
        return sizes
    unpacked = size_batches(replace(settings, pack=False), data_shards)
    assert unpacked is not None
    texts_per_row = settings.row_tokens // tokenizer.longest
    return replace(unpacked, rows_per_cell=-(-unpacked.rows_per_cell // texts_per_row))


def shape_batch(sizes: Sizes, mesh: jax.sharding.Mesh) -> Batch:
    """A batch of ShapeDtypeStructs with their shardings on the mesh, instead of arrays."""
    cells = (sizes.chunks, sizes.data_shards)
    texts = (*cells, sizes.pairs_per_cell * sizes.texts_per_pair)

    def shape(dtype: Any, *lengths: int) -> Any:
        return jax.ShapeDtypeStruct(lengths, dtype, sharding=named(mesh, "ng"))

    tokens = (np.int32, *cells, sizes.rows_per_cell, sizes.row_tokens)
    rows = Cells(shape(*tokens), shape(*tokens), shape(*tokens), shape(np.int32, *texts))
    return Batch(rows, shape(np.bool_, *texts), shape(np.uint32, *texts, 2))


class Batches:
    """The batches of a run on a mesh: `batches.make(step)`, or `batches.stream(first, last)`."""

    def __init__(
        self,
        experiment: Experiment,
        sources: Sequence[EncodedPairs],
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
    ) -> None:
        self.settings, self.seed = experiment.batching, experiment.seed
        self.sources, self.tokenizer, self.mesh = sources, tokenizer, mesh
        if experiment.objective == "generative" and not tokenizer.delimiters("x").opening:
            raise UserError(
                "tokenizer.delimiters: own has no opening token, after which objective=generative "
                "could predict a text's first token; use brackets"
            )
        for source in sources:
            source.check(tokenizer, self.settings.negatives)
        if self.settings.negatives and not any(source.has_negatives() for source in sources):
            raise UserError(
                f"batching.negatives: {self.settings.negatives}, but the pairs of data.train have "
                "no hard negatives; set it to 0, or name their column with negatives="
            )
        self.starts = np.cumsum([0, *map(len, sources)])
        self.encoded: list[Encoded] | None = None
        if self.settings.in_memory:
            self.encoded = self._load(range(self.starts[-1]))
        totals = [self._count_tokens(i) for i in range(len(sources))]
        weights = experiment.data.weights or [len(source) for source in sources]
        slots = self.settings.pairs_per_batch
        self.source_shares = [weight / sum(weights) for weight in weights]
        self.is_homogeneous = experiment.data.homogeneous
        self.order = (
            make_homogeneous_order(self.seed, slots, weights, totals)
            if self.is_homogeneous
            else make_order(self.seed, slots, share_out(slots, weights), totals)
        )
        self.shards = _own_data_shards(mesh)

    def _count_tokens(self, source: int) -> np.ndarray | int:
        """The tokens of each pair of a source; its number of pairs if they are not in memory."""
        first, last = self.starts[source], self.starts[source + 1]
        if self.encoded is None:
            return int(last - first)
        return np.array([sum(map(len, pair.ids)) for pair in self.encoded[first:last]])

    @cached_property
    def sizes_by_source(self) -> list[Sizes]:
        """The shapes of batches: one for each source if batches are homogeneous, otherwise one.

        If the experiment does not set the number of rows, it is the smallest that holds some
        sampled batches. All processes find the same shapes, because they sample the same data
        shards of the same steps.
        """
        in_memory = 0 if self.encoded is None else SAMPLED_PAIRS // self.settings.pairs_per_batch
        samples = self.order.samples(max(SAMPLES, in_memory))
        fixed = size_batches(self.settings, count_data_shards(self.mesh))
        if fixed is not None:
            return [fixed] * len(samples)
        return [self._measure(source, steps) for source, steps in enumerate(samples)]

    def _measure(self, source: int, steps: Sequence[int]) -> Sizes:
        """The smallest cells that hold the batches of these steps.

        It tries the shapes in order of size, from the fewest tokens that could hold the batches.
        """
        settings, together = self.settings, len(self.shards)
        data_shards = count_data_shards(self.mesh)
        one_row = size_batches(replace(settings, rows_per_cell=1), data_shards)
        assert one_row is not None
        sampled = []
        for step in steps:
            group = np.arange(together) + step % (data_shards // together) * together
            sampled.append(self._lengths(self._drop(self._draw(step, group), step, group)))
        sampled.sort(key=lambda lengths_pt: -int(lengths_pt.sum()))
        tokens = -(-int(sampled[0].sum()) // (settings.chunks * together))
        shapes = [
            (-(-tokens // row_tokens) * row_tokens, row_tokens)
            for row_tokens in self._list_row_tokens(source, tokens)
        ]
        heapq.heapify(shapes)
        while True:
            cell_tokens, row_tokens = heapq.heappop(shapes)
            rows = cell_tokens // row_tokens
            sizes = replace(one_row, rows_per_cell=rows, row_tokens=row_tokens)
            if not any(self._pack(lengths, together, sizes).overflow for lengths in sampled):
                return sizes
            heapq.heappush(shapes, (cell_tokens + row_tokens, row_tokens))

    def _list_row_tokens(self, source: int, cell_tokens: int) -> list[int]:
        """The lengths of rows to choose from, longest first.

        Another length can leave less padding at the end of a cell. Rows stay as set if a row is a
        small part of a cell, or if the pairs are not in memory. They always hold the longest text.
        """
        as_set = self.settings.row_tokens
        if self.encoded is None or as_set <= SMALL_PART * cell_tokens:
            return [as_set]
        multiple = ROW_MULTIPLES[self.mesh.devices.flat[0].platform]
        first, last = self.starts[source], self.starts[source + 1]
        pairs = self.encoded[first:last] if self.is_homogeneous else self.encoded
        shortest = max(len(text) for pair in pairs for text in pair.ids)
        more = int(as_set * LONGER_PART) // multiple * multiple
        return list(range(as_set + more, shortest - 1, -multiple))

    @property
    def sizes(self) -> Sizes:
        """The largest shape of a batch."""
        return max(self.sizes_by_source, key=lambda sizes: sizes.tokens_per_batch)

    @property
    def shapes(self) -> list[Batch]:
        """A batch of ShapeDtypeStructs for each shape, largest first (see `shape_batch`)."""
        different = set(self.sizes_by_source)
        largest_first = sorted(different, key=lambda sizes: -sizes.tokens_per_batch)
        return [shape_batch(sizes, self.mesh) for sizes in largest_first]

    def make(self, step: int) -> Batch:
        """The batch of a step, on the devices of the mesh."""
        shards = self.shards
        drawn, packing, sizes = self.pack(step)
        local = _fill(drawn, packing, sizes, len(shards))

        def place(block: np.ndarray) -> jax.Array:
            shape = (block.shape[0], sizes.data_shards, *block.shape[2:])

            def part(index: Any) -> np.ndarray:
                wanted = range(*index[1].indices(sizes.data_shards))
                return block[:, np.searchsorted(shards, wanted)]

            return jax.make_array_from_callback(shape, named(self.mesh, "ng"), part)

        return jax.tree.map(place, local)

    def pack(self, step: int) -> tuple[list[Encoded], Packing, Sizes]:
        """This process's pairs of a step's batch, the place of each text, and the batch's shape."""
        sizes, shards = self.sizes_by_source[self.order.source_at(step)], self.shards
        drawn = self._drop(self._draw(step, shards), step, shards)
        return drawn, self._pack(self._lengths(drawn), len(shards), sizes), sizes

    def pair_ids(self, step: int) -> np.ndarray:
        """The numbers of all pairs of a step's batch, counted from 0 through all sources."""
        return self.order.pairs_at(step, np.arange(self.settings.pairs_per_batch))

    def find_texts(self, step: int, hashes: set[tuple[int, int]]) -> list[tuple[int, int]]:
        """Finds the texts of a step's batch by hash -> [(number of the pair, number of the text)].

        hashes: 64-bit hashes as two uint32. In a pair, text 0 is x, text 1 is y, and the hard
        negatives follow.
        """
        drawn = self._draw(step, np.arange(count_data_shards(self.mesh)))
        return [
            (number, text)
            for number, pair in zip(self.pair_ids(step).tolist(), drawn, strict=True)
            for text, found in enumerate(pair.hashes)
            if found in hashes and len(pair.ids[text])
        ]

    def stream(self, first: int, last: int) -> Iterator[Future[Batch]]:
        """The batches of steps first to last - 1, in order. Two threads make them in advance."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            coming = [pool.submit(self.make, step) for step in range(first, min(first + 2, last))]
            for step in range(first, last):
                if step + 2 < last:
                    coming.append(pool.submit(self.make, step + 2))
                yield coming.pop(0)

    def _slots(self, shards: np.ndarray) -> np.ndarray:
        """The batch slots of these data shards. A shard takes every g-th slot, so it gets texts
        from all length buckets."""
        slots = np.arange(self.settings.pairs_per_batch)
        return slots[np.isin(slots % count_data_shards(self.mesh), shards)]

    def _draw(self, step: int, shards: np.ndarray) -> list[Encoded]:
        indices = self.order.pairs_at(step, self._slots(shards))
        if self.encoded is not None:
            return [self.encoded[index] for index in indices]
        return self._load(indices)

    def _load(self, indices: Sequence[int] | np.ndarray | range) -> list[Encoded]:
        """The pairs with these numbers among all pairs of all sources, as token ids."""
        indices = np.asarray(indices)
        which = np.searchsorted(self.starts, indices, side="right") - 1
        pairs: dict[int, Encoded] = {}
        for number, source in enumerate(self.sources):
            mine = np.flatnonzero(which == number)
            if len(mine):
                own = (indices[mine] - self.starts[number]).tolist()
                read = source.read_encoded(own, self.tokenizer, self.settings.negatives)
                pairs |= zip(mine.tolist(), read, strict=True)
        return [pairs[at] for at in range(len(indices))]

    def _drop(self, pairs: list[Encoded], step: int, shards: np.ndarray) -> list[Encoded]:
        """Token dropout: leaves out random inner tokens of every text, never its delimiters.

        The share is the same in every text, so the lengths do not depend on the random numbers.
        """
        share = self.settings.token_dropout
        if not share:
            return pairs
        dropped = []
        for slot, pair in zip(self._slots(shards), pairs, strict=True):
            random = np.random.Generator(
                np.random.Philox(key=self.seed, counter=[step, slot, 0, 0])
            )
            ids = []
            for number, text in enumerate(pair.ids):
                opening, closing = self.tokenizer.delimiters("y" if number else "x")
                inner = np.arange(len(opening), len(text) - len(closing))
                left_out = random.permutation(inner)[: int(share * len(inner))]
                ids.append(np.delete(text, left_out))
            dropped.append(Encoded(ids, pair.hashes))
        return dropped

    def _lengths(self, pairs: Sequence[Encoded]) -> np.ndarray:
        return np.array([[len(text) for text in pair.ids] for pair in pairs])

    def _pack(self, lengths_pt: np.ndarray, shards: int, sizes: Sizes) -> Packing:
        cells = sizes.chunks * shards
        if not self.settings.pack:  # each text takes a whole row
            lengths_pt = np.where(lengths_pt > 0, sizes.row_tokens, 0)
        return pack_pairs(
            lengths_pt, cells, sizes.pairs_per_cell, sizes.rows_per_cell, sizes.row_tokens
        )


def _own_data_shards(mesh: jax.sharding.Mesh) -> np.ndarray:
    """The numbers of the data shards on this process's devices, ascending.

    If the tensor axis spans hosts, several processes hold the same shards. They make the same
    cells.
    """
    by_shard = mesh.devices.reshape(count_data_shards(mesh), -1)
    mine = [
        shard
        for shard, devices in enumerate(by_shard)
        if any(device.process_index == jax.process_index() for device in devices)
    ]
    return np.array(mine)


def _fill(pairs: list[Encoded], packing: Packing, sizes: Sizes, shards: int) -> Batch:
    """The arrays of this process's cells. Cell c is in chunk c // shards and shard c % shards."""
    shape = (sizes.chunks, shards)
    texts = sizes.pairs_per_cell * sizes.texts_per_pair
    arrays = CellArrays(shape, sizes.rows_per_cell, sizes.row_tokens, texts)
    present = np.zeros((*shape, texts), bool)
    hashes = np.zeros((*shape, texts, 2), np.uint32)
    for number, members in enumerate(packing.cells):
        cell = divmod(number, shards)
        for slot, (index, places) in enumerate(zip(members, packing.places[number], strict=True)):
            pair = pairs[index]
            for side, (ids, place) in enumerate(zip(pair.ids, places, strict=True)):
                if len(ids):
                    text = side * sizes.pairs_per_cell + slot
                    arrays.put(cell, text, ids, place)
                    present[(*cell, text)] = True
                    hashes[(*cell, text)] = pair.hashes[side]
    return Batch(make_cells(arrays), present, hashes)
