"""Pairs in, packed global batches out: a pure function of (seed, step).

There is no iterator state, so a resumed run continues with the very next batch on any number of
devices and hosts. Each process reads, tokenises and packs only the pairs of its own data shards.
It does not know the model.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxcpt.config import Batching, Experiment
from jaxcpt.errors import UserError
from jaxcpt.model import Array, Cells, make_cells
from jaxcpt.order import make_homogeneous_order, make_order, share_out
from jaxcpt.packing import CellArrays, Packing, pack_pairs
from jaxcpt.pair import Pair
from jaxcpt.pairs import Pairs, TokenizedReader
from jaxcpt.pairs.tokenized import Encoded, hash_text
from jaxcpt.sharding import count_data_shards, named
from jaxcpt.tokenizer import Tokenizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """n chunks of g cells of packed texts. A cell's texts t are its x, its y, its negatives.

    cells         Cells with a leading axis n
    present_ngt   whether the text is there; a pair that found no place is absent
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
    """The shape of batches; None where the rows are to be measured. Raises UserError."""
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
    """The most there can be, where rows are to be measured: all texts as long as the longest."""
    settings, tokenizer = experiment.batching, experiment.tokenizer
    sizes = size_batches(settings, data_shards)
    if sizes is not None:
        return sizes
    unpacked = size_batches(replace(settings, pack=False), data_shards)
    assert unpacked is not None
    texts_per_row = settings.row_tokens // tokenizer.longest
    return replace(unpacked, rows_per_cell=-(-unpacked.rows_per_cell // texts_per_row))


def shape_batch(sizes: Sizes, mesh: jax.sharding.Mesh) -> Batch:
    """A tree like a batch, of ShapeDtypeStructs that carry their shardings on a mesh."""
    cells = (sizes.chunks, sizes.data_shards)
    texts = (*cells, sizes.pairs_per_cell * sizes.texts_per_pair)

    def shape(dtype: Any, *lengths: int) -> Any:
        return jax.ShapeDtypeStruct(lengths, dtype, sharding=named(mesh, "ng"))

    tokens = (np.int32, *cells, sizes.rows_per_cell, sizes.row_tokens)
    rows = Cells(shape(*tokens), shape(*tokens), shape(*tokens), shape(np.int32, *texts))
    return Batch(rows, shape(np.bool_, *texts), shape(np.uint32, *texts, 2))


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, negatives: int) -> list[Encoded]:
    """Tokenises many pairs at once, each with so many hard negatives or absent ones."""
    columns = [[pair.x for pair in pairs], [pair.y for pair in pairs]]
    ids = [tokenizer.encode(columns[0], "x"), tokenizer.encode(columns[1], "y")]
    for number in range(negatives):
        texts = [p.negatives[number] if number < len(p.negatives) else "" for p in pairs]
        absent = [number >= len(pair.negatives) for pair in pairs]
        columns.append(texts)
        encoded = tokenizer.encode(texts, "y")
        ids.append([e[:0] if a else e for e, a in zip(encoded, absent, strict=True)])
    return [
        Encoded(list(of_pair), [hash_text(text) for text in texts])
        for of_pair, texts in zip(zip(*ids, strict=True), zip(*columns, strict=True), strict=True)
    ]


class Batches:
    """The batches of a run on a mesh: `batches.make(step)`, or `batches.stream(first, last)`."""

    def __init__(
        self,
        experiment: Experiment,
        sources: Sequence[Pairs | TokenizedReader],
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
    ) -> None:
        self.settings, self.seed = experiment.batching, experiment.seed
        self.sources, self.tokenizer, self.mesh = sources, tokenizer, mesh
        for source in sources:
            if isinstance(source, TokenizedReader):
                source.check(tokenizer.fingerprint, tokenizer.x_tokens, tokenizer.y_tokens)
        self.starts = np.cumsum([0, *map(len, sources)])
        self.encoded: list[Encoded] | None = None
        if self.settings.in_memory:
            self.encoded = self._load(range(self.starts[-1]))
        totals = [self._count_tokens(i) for i in range(len(sources))]
        weights = experiment.data.weights or [len(source) for source in sources]
        slots = self.settings.pairs_per_batch
        self.order = (
            make_homogeneous_order(self.seed, slots, weights, totals)
            if experiment.data.homogeneous
            else make_order(self.seed, slots, share_out(slots, weights), totals)
        )
        self.shards = _own_data_shards(mesh)

    def _count_tokens(self, source: int) -> np.ndarray | int:
        """Of each pair of a source held in memory; else how many pairs it has."""
        first, last = self.starts[source], self.starts[source + 1]
        if self.encoded is None:
            return int(last - first)
        return np.array([sum(map(len, pair.ids)) for pair in self.encoded[first:last]])

    @cached_property
    def sizes(self) -> Sizes:
        """Where the experiment leaves the rows to us: as few as hold eight whole batches, and
        eight of each source where they are homogeneous.

        The same on every process: each samples the same shares of the same steps.
        """
        settings, data_shards = self.settings, count_data_shards(self.mesh)
        fixed = size_batches(settings, data_shards)
        if fixed is not None:
            return fixed
        together = len(self.shards)
        sizes = size_batches(replace(settings, rows_per_cell=1), data_shards)
        assert sizes is not None
        for sample in self.order.samples():
            group = np.arange(together) + sample % (data_shards // together) * together
            lengths_pt = self._lengths(self._drop(self._draw(sample, group), sample, group))
            cell_tokens = settings.chunks * together * settings.row_tokens
            needed = -(-int(lengths_pt.sum()) // cell_tokens)
            sizes = replace(sizes, rows_per_cell=max(sizes.rows_per_cell, needed))
            while self._pack(lengths_pt, together, sizes).overflow:
                sizes = replace(sizes, rows_per_cell=sizes.rows_per_cell + 1)
        return sizes

    def make(self, step: int) -> Batch:
        """The batch of a step, on the mesh's devices."""
        sizes, shards = self.sizes, self.shards
        drawn = self._drop(self._draw(step, shards), step, shards)
        packing = self._pack(self._lengths(drawn), len(shards), sizes)
        local = _fill(drawn, packing, sizes, len(shards))

        def place(block: np.ndarray) -> jax.Array:
            shape = (block.shape[0], sizes.data_shards, *block.shape[2:])

            def part(index: Any) -> np.ndarray:
                wanted = range(*index[1].indices(sizes.data_shards))
                return block[:, np.searchsorted(shards, wanted)]

            return jax.make_array_from_callback(shape, named(self.mesh, "ng"), part)

        return jax.tree.map(place, local)

    def stream(self, first: int, last: int) -> Iterator[Future[Batch]]:
        """Batches of steps first to last - 1; the next two are made while one is used."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            coming = [pool.submit(self.make, step) for step in range(first, min(first + 2, last))]
            for step in range(first, last):
                if step + 2 < last:
                    coming.append(pool.submit(self.make, step + 2))
                yield coming.pop(0)

    def _slots(self, shards: np.ndarray) -> np.ndarray:
        """Slots of these data shards: every shard takes each g-th, so all see all lengths."""
        slots = np.arange(self.settings.pairs_per_batch)
        return slots[np.isin(slots % count_data_shards(self.mesh), shards)]

    def _draw(self, step: int, shards: np.ndarray) -> list[Encoded]:
        indices = self.order.pairs_at(step, self._slots(shards))
        if self.encoded is not None:
            return [self.encoded[index] for index in indices]
        return self._load(indices)

    def _load(self, indices: Sequence[int] | np.ndarray | range) -> list[Encoded]:
        """The pairs at these places among all pairs of all sources, as token ids."""
        indices = np.asarray(indices)
        which = np.searchsorted(self.starts, indices, side="right") - 1
        pairs: dict[int, Encoded] = {}
        for number, source in enumerate(self.sources):
            mine = np.flatnonzero(which == number)
            if len(mine):
                own = (indices[mine] - self.starts[number]).tolist()
                pairs |= zip(mine.tolist(), self._load_from(source, own), strict=True)
        return [pairs[at] for at in range(len(indices))]

    def _load_from(self, source: Pairs | TokenizedReader, indices: Sequence[int]) -> list[Encoded]:
        tokenizer, negatives = self.tokenizer, self.settings.negatives
        if isinstance(source, TokenizedReader):
            return source.read(indices, tokenizer.x_tokens, tokenizer.y_tokens, negatives)
        return encode_pairs(source.read(indices), tokenizer, negatives)

    def _drop(self, pairs: list[Encoded], step: int, shards: np.ndarray) -> list[Encoded]:
        """Token dropout: a fixed share of each text's inner tokens, so that lengths are known."""
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
    """The data shards that this process's devices hold, in order.

    Processes that hold the same ones (a tensor axis across hosts) make the same cells.
    """
    by_shard = mesh.devices.reshape(count_data_shards(mesh), -1)
    mine = [
        shard
        for shard, devices in enumerate(by_shard)
        if any(device.process_index == jax.process_index() for device in devices)
    ]
    return np.array(mine)


def _fill(pairs: list[Encoded], packing: Packing, sizes: Sizes, shards: int) -> Batch:
    """The arrays of this process's cells; cell number c is chunk c // shards, shard c % shards."""
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
