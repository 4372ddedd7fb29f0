"""Embeds texts on all devices: the class `Embedder`, and the command that fills a folder.

In: a run folder and texts. Out: unit vectors. The module knows the encoder, its tokenizer and where
a run folder keeps them. It knows neither the loss nor the optimizer.

    python -m jaxcpt.embed --run-dir DIR --input FILE.jsonl --output FOLDER --side x|y
"""

import argparse
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcpt import config
from jaxcpt.calls import Call, fill_cells, list_row_sizes, plan_calls
from jaxcpt.checkpoint import CheckpointStore
from jaxcpt.config import Experiment
from jaxcpt.documents import read_documents
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.experiments import read_experiment
from jaxcpt.files import hash_file, is_object, to_path
from jaxcpt.fingerprints import check_model, describe_model
from jaxcpt.model import (
    UNROLLED,
    Cells,
    Params,
    check_model_fits,
    encode,
    make_encoder,
)
from jaxcpt.normalise import normalise
from jaxcpt.pair import Side
from jaxcpt.prefixes import (
    add_prefix_options,
    choose_prefix,
    describe_differences,
    read_prefix_options,
)
from jaxcpt.sharding import count_data_shards, make_mesh, named, use_cpu_cores
from jaxcpt.terminal import show_progress
from jaxcpt.tokenizer import Tokenizer
from jaxcpt.update import shard_state
from jaxcpt.vectors import Part, Storage, VectorFolder, fill_part

TEXTS_AT_ONCE = 16_384
CHARACTERS_AT_ONCE = 1 << 24
"""At most this many characters, whose token ids take at most 1 GB as Python objects."""


class Embedder:
    """Embeds any number of texts with fixed parameters. Vectors come in the order of the texts."""

    def __init__(
        self,
        experiment: Experiment,
        params: Params,
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
        step: int = 0,
        fingerprint: str = "",
        prefixes: Mapping[Side, str] | None = None,
    ) -> None:
        """params: the encoder's parameters, sharded on `mesh` as `update.shard_state` does it.
        step, fingerprint: the checkpoint of the parameters, which a folder of vectors records.
        prefixes: for some sides, the prefix to use instead of the run's own (`jaxcpt.prefixes`).
        """
        self.experiment, self.params, self.tokenizer = experiment, params, tokenizer
        self.step, self.fingerprint = step, fingerprint
        self.given = dict(prefixes or {})
        self.prefixes: dict[Side, str] = {
            "x": choose_prefix(experiment, "x", tokenizer.x_prefix, self.given),
            "y": choose_prefix(experiment, "y", tokenizer.y_prefix, self.given),
        }
        self.mesh, self.width = mesh, experiment.model.width
        self._by_layer: Params = None
        self.row_sizes = list_row_sizes(experiment.tokenizer.longest)
        self.embed_cells = make_embed_cells(experiment, mesh)

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        step: int | None = None,
        mesh: config.Mesh | None = None,
        prefixes: Mapping[Side, str] | None = None,
        embeds: bool = True,
    ) -> "Embedder":
        """Loads the newest whole checkpoint of a run, or that of `step`.

        mesh: how the devices share the parameters. None: the mesh of training if it fits the
        number of devices, otherwise a copy on each device.
        prefixes: for some sides, the prefix to use instead of the run's own.
        embeds: False if only the parameters are needed. A generative run raises UserError unless
        this is False, because its hidden states are not embeddings.
        """
        run_dir = to_path(run_dir)
        experiment = read_experiment(run_dir)
        if embeds and experiment.objective == "generative":
            raise UserError(
                f"{run_dir}: a generative run, which has no embeddings yet; tune it first: "
                f"train a contrastive experiment with init_from=InitFrom('{run_dir}')"
            )
        folder = run_dir / "tokenizer"
        tokenizer = Tokenizer.load(folder).check_limits(experiment.tokenizer, folder)
        devices = choose_mesh(experiment) if mesh is None else make_mesh(mesh)
        check_model_fits(devices, experiment)
        shapes, found = shard_state(experiment, devices), describe_model(experiment, tokenizer)
        with CheckpointStore(run_dir / "checkpoints") as checkpoints:

            def restore(step: int) -> tuple[Params, str]:
                check_model(checkpoints.read_meta(step), found, run_dir)
                return checkpoints.restore_encoder(step, shapes), checkpoints.fingerprint(step)

            chosen, (params, fingerprint) = checkpoints.read(restore, step)
        return cls(experiment, params, tokenizer, devices, chosen, fingerprint, prefixes)

    def with_params(self, params: Params, step: int) -> "Embedder":
        """A copy with the parameters of another step, on the same mesh. Nothing is recompiled."""
        other = copy.copy(self)
        other.params, other.step, other._by_layer = params, step, None
        return other

    @property
    def of_sources(self) -> "Embedder":
        """A copy that adds no prefix, for texts that already have the prefix of their source."""
        other = copy.copy(self)
        own: dict[Side, str] = {"x": self.tokenizer.x_prefix, "y": self.tokenizer.y_prefix}
        other.prefixes = own | self.given
        return other

    def embed(self, texts: Iterable[str], side: Side, progress: bool = False) -> np.ndarray:
        """Embeds texts -> unit vectors, float32 [number of texts, d], in the order of the texts.

        texts: any iterable. At most some thousand of them are in memory at a time. The prefix of
        `side` is put before each text. Raises UserError if a vector is not finite.
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
        total = len(texts) if isinstance(texts, Sized) else None
        with show_progress(f"embedding {side}", total, progress) as advance:
            for part in cut_into_parts(texts):
                yield self._embed_part(part, side, advance)

    def _embed_part(
        self, texts: Sequence[str], side: Side, advance: Callable[[int], None]
    ) -> np.ndarray:
        tokenizer = replace(
            self.tokenizer, x_prefix=self.prefixes["x"], y_prefix=self.prefixes["y"]
        )
        ids = tokenizer.encode(texts, side)
        vectors_nd = np.empty((len(texts), self.width), np.float32)
        before: tuple[Call, jax.Array] | None = None
        for call in (*plan_calls(ids, self.row_sizes, count_data_shards(self.mesh)), None):
            launched = None if call is None else (call, self._launch(call, ids))
            if before is not None:  # fetch them while the devices compute the next call
                for members, z_td in zip(before[0].members, jax.device_get(before[1]), strict=True):
                    vectors_nd[members] = z_td[: len(members)]
                advance(sum(map(len, before[0].members)))
            before = launched
        bad = np.flatnonzero(~np.isfinite(vectors_nd).all(axis=1))
        if len(bad):
            raise UserError(
                f"the embedding of {texts[bad[0]][:40]!r} is not finite, nor are {len(bad) - 1} "
                f"others; the model has diverged: take an earlier step than {self.step}"
            )
        return vectors_nd

    def _launch(self, call: Call, ids: Sequence[np.ndarray]) -> jax.Array:
        """Starts a call on the devices and returns its vectors [g, t, d] before they are ready."""
        on_devices = jax.device_put(fill_cells(call, ids), named(self.mesh, "g"))
        with jax.set_mesh(self.mesh):  # a function is compiled once for each mesh that is set
            params = self.params
            if by_layer(self.experiment, self.mesh):
                if self._by_layer is None:
                    self._by_layer = split_layers(params)
                params = self._by_layer
            return self.embed_cells(params, on_devices)


@functools.lru_cache(maxsize=8)
def make_embed_cells(
    experiment: Experiment, mesh: jax.sharding.Mesh
) -> Callable[[Params, Cells], jax.Array]:
    """The compiled function: parameters, cells -> unit vectors [g, t, d], a copy on every device.

    It is cached, so a run that is loaded twice is compiled once.
    """
    encoder = make_encoder(experiment).clone(by_layer=by_layer(experiment, mesh))

    def embed_cells(params: Params, cells: Cells) -> jax.Array:
        return normalise(encode(encoder, params, cells))

    return jax.jit(embed_cells, out_shardings=named(mesh))


def by_layer(experiment: Experiment, mesh: jax.sharding.Mesh) -> bool:
    """Whether the function takes the parameters of each layer by themselves (`split_layers`)."""
    return mesh.devices.flat[0].platform == "cpu" and 0 < experiment.model.layers <= UNROLLED["cpu"]


def split_layers(params: Params) -> Params:
    """Parameters with a tree for each layer: block_0, block_1 and so on, instead of one stack.

    A matrix product on a CPU cannot read one layer of a stack in place, so each call would copy
    the weights of all layers. Here they are copied once. The tables are not copied.
    """
    blocks = _split(params["blocks"])
    split = {f"block_{i}": block for i, block in enumerate(blocks)}
    return {name: tree for name, tree in params.items() if name != "blocks"} | split


@jax.jit
def _split(stack: Params) -> list[Params]:
    layers = len(jax.tree.leaves(stack)[0])
    return [jax.tree.map(lambda a, i=i: a[i], stack) for i in range(layers)]


def choose_mesh(experiment: Experiment) -> jax.sharding.Mesh:
    """The mesh of training if it fits the devices here; otherwise each device has a copy of the
    parameters."""
    with suppress(UserError):
        return make_mesh(experiment.mesh)
    return make_mesh(config.Mesh())


def cut_into_parts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Parts that fit in memory together with their token ids."""
    part: list[str] = []
    characters = 0
    for text in texts:
        part.append(text)
        characters += len(text)
        if len(part) == TEXTS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield part
            part, characters = [], 0
    if part:
        yield part


def describe(embedder: Embedder, side: Side, path: Path) -> dict[str, Any]:
    """Facts about the vectors of a file's texts, which `vectors.fill` records and compares.

    It reads the whole file, so that a bad line is refused before hours of work.
    """
    count = sum(1 for _ in read_documents(path, side))
    return describe_file(embedder, side, path) | {"documents": count}


def describe_file(embedder: Embedder, side: Side, path: Path) -> dict[str, Any]:
    """The facts of `describe` without the number of texts. It does not parse the file."""
    prefix = embedder.prefixes[side]
    return {
        "step": embedder.step,
        "checkpoint": embedder.fingerprint,
        "side": side,
        **({"prefix": prefix} if prefix else {}),
        "input": hash_file(path),
        "path": str(path.resolve()),
    }


def parse_mesh(text: str | None) -> config.Mesh | None:
    """Reads `DATA,FSDP,TENSOR`, the number of devices along each axis. Raises UserError."""
    if text is None:
        return None
    try:
        data, fsdp, tensor = map(int, text.split(","))
    except ValueError:
        raise UserError(f"--mesh {text}: must be DATA,FSDP,TENSOR, such as 1,8,4") from None
    return config.Mesh(data, fsdp, tensor)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that embeds with a run."""
    parser.add_argument("--run-dir", required=True, type=to_path)
    add_embedding_options(parser)


def add_embedding_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how a command embeds, without --run-dir."""
    parser.add_argument("--step", type=int, help="default: the newest whole checkpoint")
    parser.add_argument(
        "--mesh",
        metavar="DATA,FSDP,TENSOR",
        help="devices along each axis; default: as in training, if that fits the devices here",
    )
    add_prefix_options(parser)
    parser.add_argument("--width", type=int, help="keep the first coordinates (Matryoshka)")
    parser.add_argument("--int8", action="store_true", help="store vectors as int8")


def load_embedder(
    arguments: argparse.Namespace, run_dir: Path | None = None, embeds: bool = True
) -> Embedder:
    """Loads a run with the options of a command. Prints a line if its sources' prefixes differ.

    run_dir: None means the option --run-dir. embeds: as in `Embedder.load`.
    """
    given = read_prefix_options(arguments)
    mesh = parse_mesh(arguments.mesh)
    embedder = Embedder.load(run_dir or arguments.run_dir, arguments.step, mesh, given, embeds)
    for line in describe_differences(embedder.experiment, given):
        print(line)
    return embedder


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="jaxcpt embed", description="Embed the texts of a JSONL file.")
    add_arguments(parser)
    parser.add_argument(
        "--input", required=True, type=to_path, help="JSONL; the text under 'text', or the side"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=to_path,
        help="folder of vectors; an unfinished one goes on",
    )
    parser.add_argument("--side", required=True, help="x or y")
    part_help = "write only part I of N; other machines write the other parts"
    parser.add_argument("--part", default="1/1", metavar="I/N", help=part_help)
    arguments = parser.parse_args(argv)
    part = Part.parse(arguments.part)
    if arguments.side not in ("x", "y"):
        raise UserError(f"--side {arguments.side}: must be x (queries) or y (what is searched)")
    use_cpu_cores()
    embedder = load_embedder(arguments)
    side, path, output = arguments.side, arguments.input, arguments.output
    storage = Storage(arguments.width, arguments.int8).check(embedder.width)
    about = describe(embedder, side, path)
    missing = fill_part(
        output,
        about,
        read_documents(path, side),
        lambda texts: embedder.embed(texts, side, progress=True),
        storage,
        part,
    )
    if missing:
        done = f"part {part.number}/{part.of} is done"
        print(f"{output}: {done}; {missing} shards of other parts are missing")
    else:
        if not is_object(output):  # in a bucket, the check would download every shard
            VectorFolder.open(output)
        print(f"{output}: {about['documents']:,} vectors of {storage.width or embedder.width}")


if __name__ == "__main__":
    run_command(main)
