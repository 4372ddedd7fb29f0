"""Texts in, unit vectors out, on all devices: `Embedder`, and the command that fills a file.

It knows the encoder and its tokenizer, and nothing of training but where a run keeps them.

    python -m jaxcpt.embed --run-dir DIR --input FILE.jsonl --output FILE.npy --side x|y
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import jax
import numpy as np

from jaxcpt import config
from jaxcpt.checkpoint import Checkpoints, check_tokenizer
from jaxcpt.config import Experiment, Refusal, Side, run_command
from jaxcpt.experiments import read_experiment
from jaxcpt.metrics import track
from jaxcpt.model import Cells, Params, encode, make_cells, make_encoder, normalise
from jaxcpt.packing import CellArrays, Place, Rows
from jaxcpt.pairs import read_jsonl
from jaxcpt.sharding import count_data_shards, make_mesh, named, use_cpu_cores
from jaxcpt.tokenizer import Tokenizer
from jaxcpt.update import shard_state

TOKENS_PER_CALL = 16_384  # of one data shard: enough to keep a device busy
TEXTS_PER_ROW = 16
TEXTS_AT_ONCE = 16_384


class Embedder:
    """Embeds any number of texts with fixed parameters; the order of the texts is kept."""

    def __init__(
        self,
        experiment: Experiment,
        params: Params,
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
        step: int = 0,
    ) -> None:
        """`step`: of the parameters, for whoever keeps vectors made with them."""
        self.experiment, self.params, self.tokenizer = experiment, params, tokenizer
        self.step = step
        self.mesh, self.width = mesh, experiment.model.width
        encoder = make_encoder(experiment)

        def embed_cells(params: Params, cells: Cells) -> jax.Array:
            return normalise(encode(encoder, params, cells))

        self.embed_cells: Callable[[Params, Cells], jax.Array] = jax.jit(
            embed_cells, out_shardings=named(mesh)
        )

    @classmethod
    def load(cls, run_dir: str | Path, step: int | None = None) -> "Embedder":
        """The newest whole checkpoint of a run, or that of `step`, on all devices here."""
        run_dir = Path(run_dir)
        experiment = read_experiment(run_dir)
        tokenizer = Tokenizer.load(run_dir / "tokenizer")
        mesh = make_mesh(config.Mesh())
        with Checkpoints(run_dir / "checkpoints") as checkpoints:
            chosen = checkpoints.choose(step)
            check_tokenizer(tokenizer.fingerprint, checkpoints.read_meta(chosen), run_dir)
            shapes = shard_state(experiment, mesh).params
            params = checkpoints.restore_params(chosen, shapes)
        return cls(experiment, params["encoder"], tokenizer, mesh, chosen)

    def embed(self, texts: Iterable[str], side: Side, progress: bool = False) -> np.ndarray:
        """Unit vectors, float32 [n, d], in the order of the texts.

        Takes any iterable and holds no more than some thousand texts at a time.
        """
        parts = list(self.stream(texts, side, progress))
        return np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)

    def stream(
        self, texts: Iterable[str], side: Side, progress: bool = False
    ) -> Iterator[np.ndarray]:
        """The same vectors in parts of at most `TEXTS_AT_ONCE` texts."""
        if isinstance(texts, str):
            raise TypeError("expected an iterable of texts, found one text; put it in a list")
        if side not in ("x", "y"):
            raise ValueError(f"side must be 'x' or 'y', found {side!r}")
        source = iter(texts)
        while part := list(islice(source, TEXTS_AT_ONCE)):
            yield self._embed_part(part, side, progress)

    def _embed_part(self, texts: Sequence[str], side: Side, progress: bool) -> np.ndarray:
        ids = self.tokenizer.encode(texts, side)
        row_tokens = self.experiment.batching.row_tokens
        shards = count_data_shards(self.mesh)
        # A power of two, so that a lone query is cheap and few shapes are ever compiled.
        needed = max(sum(map(len, ids)) / row_tokens, len(ids) / TEXTS_PER_ROW) / shards
        rows = min(1 << int(needed).bit_length(), max(1, TOKENS_PER_CALL // row_tokens))
        cells = list(_pack(ids, rows, row_tokens))
        calls = [cells[first : first + shards] for first in range(0, len(cells), shards)]
        vectors_nd = np.empty((len(texts), self.width), np.float32)
        for call in track(calls, f"embedding {side}", progress):
            local = _fill(call, ids, shards, rows, row_tokens)
            on_devices = jax.device_put(local, named(self.mesh, "g"))
            with jax.set_mesh(self.mesh):
                z_gtd = jax.device_get(self.embed_cells(self.params, on_devices))
            for z_td, cell in zip(z_gtd, call, strict=False):
                vectors_nd[list(cell)] = z_td[: len(cell)]
        return vectors_nd


def _pack(ids: Sequence[np.ndarray], rows: int, row_tokens: int) -> Iterator[dict[int, Place]]:
    """Cells of texts and their places. Longest first, so that a cell's texts are of like length."""
    cell: dict[int, Place] = {}
    room = Rows(rows, row_tokens)
    for text in sorted(range(len(ids)), key=lambda t: -len(ids[t])):
        place = room.place(len(ids[text])) if len(cell) < rows * TEXTS_PER_ROW else None
        if place is None:
            yield cell
            cell, room = {}, Rows(rows, row_tokens)
            place = room.place(len(ids[text]))
            assert place is not None  # the tokenizer cuts texts to a row's length
        cell[text] = place
    yield cell


def _fill(
    call: Sequence[dict[int, Place]],
    ids: Sequence[np.ndarray],
    shards: int,
    rows: int,
    row_tokens: int,
) -> Cells:
    """The arrays of one call: a cell for each data shard, empty where there are too few."""
    arrays = CellArrays((shards,), rows, row_tokens, rows * TEXTS_PER_ROW)
    for number, cell in enumerate(call):
        for slot, (text, place) in enumerate(cell.items()):
            arrays.put((number,), slot, ids[text], place)
    return make_cells(arrays)


def read_texts(path: Path, side: Side) -> list[str]:
    """The texts of a JSONL file, under `text` or the name of their side."""
    texts = []
    for number, row in read_jsonl(path):
        text = row.get("text", row.get(side))
        if not isinstance(text, str):
            raise Refusal(f"{path}:{number}: no text under 'text' or '{side}'")
        texts.append(text)
    if not texts:
        raise Refusal(f"{path}: no texts in it; it needs one JSON object a line")
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description="Embed the texts of a JSONL file.")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--input", required=True, help="JSONL; the text under 'text', or the side")
    parser.add_argument("--output", required=True, help=".npy file, float32 [n, d], unit length")
    parser.add_argument("--side", required=True, help="x or y")
    parser.add_argument("--step", type=int, help="default: the newest whole checkpoint")
    arguments = parser.parse_args()
    if arguments.side not in ("x", "y"):
        raise Refusal(f"--side {arguments.side}: must be x (queries) or y (what is searched)")
    texts = read_texts(Path(arguments.input), arguments.side)
    use_cpu_cores()
    embedder = Embedder.load(arguments.run_dir, arguments.step)
    output = Path(arguments.output)
    partial = output.with_name(f"{output.name}.partial")
    try:
        with partial.open("wb") as file:  # before the work, which may take hours
            vectors_nd = embedder.embed(texts, arguments.side, progress=True)
            np.save(file, vectors_nd)
        partial.rename(output)
    except OSError as error:
        raise Refusal(f"{output}: cannot be written: {error.strerror or error}") from None
    print(f"{output}: {vectors_nd.shape[0]} vectors of {vectors_nd.shape[1]}")


if __name__ == "__main__":
    run_command(main)
