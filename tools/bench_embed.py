"""`Embedder` against sentence-transformers' `encode`, side by side on the same real texts.

    pip install 'jaxcpt[compare]' && python tools/bench_embed.py --data DIR

Both embed with a GPT-2 of the same shape with random weights (last token, unit length), in
float32, with vocabularies of the same size trained on the same texts, and cut texts at 512 tokens.
They take turns; shown are medians, after a run of each that compiles and warms up. `encode` sorts
by length and pads each batch to its longest text; `--batch` is the batch size that it gets. DIR
has the evaluation data's layout: code_search/cosqa and retrieval/scifact.

Memory: each engine in a process of its own embeds more and more web queries, numbered so that no
two are the same, with a model of one layer; what the process needs above 1,000 of them is shown.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_models import VOCABULARY, write_gpt2
from bench_tables import MIB, Table, Value, add_json_option, report
from bench_turns import read_peak
from sentence_transformers import SentenceTransformer

from jaxcpt import config
from jaxcpt.config import Batching, Data, Experiment, JsonlPairs, Model, Optimizer
from jaxcpt.documents import read_documents
from jaxcpt.embed import Embedder
from jaxcpt.sharding import make_mesh, use_cpu_cores
from jaxcpt.tokenizer import train_tokenizer
from jaxcpt.update import init_state

LONGEST = 512
KINDS = {
    "web queries": "code_search/cosqa/queries.jsonl",
    "Python functions": "code_search/cosqa/corpus.jsonl.gz",
    "abstracts": "retrieval/scifact/corpus.jsonl.gz",
}
SPEED_COLUMNS = [
    "texts",
    "tokens a text, theirs and ours",
    "encode, texts/s",
    "Embedder, texts/s",
    "ratio",
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=1000, help="of each kind, evenly spread")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--corpora", type=int, nargs="*", default=[10_000, 20_000, 40_000], help="for memory"
    )
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    tables = [compare_memory(arguments)] if arguments.corpora else []
    if arguments.texts:
        tables.append(compare_speed(arguments))
    report(tables, arguments.json)


def compare_speed(arguments: argparse.Namespace) -> Table:
    use_cpu_cores()
    kinds = {name: read(arguments.data / path, arguments.texts) for name, path in KINDS.items()}
    everything = [text for texts in kinds.values() for text in texts]
    embedder = make_embedder(everything, arguments)
    library = make_library(everything, arguments)
    rows: list[list[Value]] = []
    for name, texts in kinds.items():
        theirs = library.tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
        ours = embedder.tokenizer.encode(texts, "y")
        lengths = [np.mean([len(ids) for ids in side]) for side in (theirs, ours)]
        speeds = compare(
            len(texts),
            arguments.repeats,
            partial(library.encode, texts, batch_size=arguments.batch),
            partial(embedder.embed, texts, "y"),
        )
        spoken = f"{lengths[0]:.0f} and {lengths[1]:.0f}"
        rows.append([name, spoken, *speeds, speeds[1] / speeds[0]])
    note = (
        f"{arguments.width} x {arguments.layers}, float32; medians of {arguments.repeats} turns, "
        f"{arguments.texts} texts of each kind."
    )
    plot = ["encode, texts/s", "Embedder, texts/s"]
    return Table(name="embed", columns=SPEED_COLUMNS, rows=rows, note=note, plot=plot)


def read(path: Path, count: int) -> list[str]:
    texts = [document.text for document in read_documents(path, "y")]
    return texts[:: max(len(texts) // count, 1)][:count]


def compare(texts: int, repeats: int, *engines: Callable[[], Any]) -> list[float]:
    """Texts/s of each, median over turns."""
    seconds: list[list[float]] = [[] for _ in engines]
    for turn in range(repeats + 1):
        for times, engine in zip(seconds, engines, strict=True):
            start = time.perf_counter()
            engine()
            if turn:  # the first compiles
                times.append(time.perf_counter() - start)
    return [texts / statistics.median(times) for times in seconds]


def compare_memory(arguments: argparse.Namespace) -> Table:
    rows: list[list[Value]] = []
    for count in arguments.corpora:
        peaks = []
        for engine in (embed_with_library, embed_with_jaxcpt):
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:  # a new process: peaks cannot be reset
                peaks.append(pool.apply(measure_peak, (engine, count, arguments)))
        vectors = count * arguments.width * 4 / MIB
        rows.append([count, round(vectors), *map(round, peaks)])
    columns = ["texts", "their vectors, MiB", "encode, MiB", "Embedder, MiB"]
    return Table(name="embed_memory", columns=columns, rows=rows, plot=columns[2:])


def measure_peak(
    engine: Callable[[Sequence[str], argparse.Namespace], Callable[[Iterator[str]], None]],
    count: int,
    arguments: argparse.Namespace,
) -> float:
    use_cpu_cores()
    arguments.layers = 1
    queries = read(arguments.data / KINDS["web queries"], 1000)
    embed = engine(queries, arguments)
    embed(iter(queries))
    before = read_peak()
    embed(f"{queries[i % len(queries)]} {i}" for i in range(count))
    return read_peak() - before


def embed_with_library(
    texts: Sequence[str], arguments: argparse.Namespace
) -> Callable[[Iterator[str]], None]:
    library = make_library(texts, arguments)

    def embed(texts: Iterator[str]) -> None:
        library.encode(list(texts), batch_size=arguments.batch)  # it takes no iterator

    return embed


def embed_with_jaxcpt(
    texts: Sequence[str], arguments: argparse.Namespace
) -> Callable[[Iterator[str]], None]:
    embedder = make_embedder(texts, arguments)

    def embed(texts: Iterator[str]) -> None:
        for _ in embedder.stream(texts, "y"):
            pass  # jaxcpt.embed writes each part to the disk

    return embed


def make_embedder(texts: Sequence[str], arguments: argparse.Namespace) -> Embedder:
    tokens = config.Tokenizer(vocabulary=VOCABULARY, x_tokens=LONGEST, y_tokens=LONGEST)
    experiment = Experiment(
        name="benchmark",
        train_steps=1,
        data=Data((JsonlPairs("none"),)),
        tokenizer=tokens,
        batching=Batching(pairs_per_batch=1, row_tokens=LONGEST),
        model=Model(
            width=arguments.width,
            layers=arguments.layers,
            heads=arguments.heads,
            compute_dtype="float32",
        ),
        optimizer=Optimizer(learning_rate=1e-3),
    )
    mesh = make_mesh(config.Mesh())
    params = init_state(experiment, mesh).params["encoder"]
    return Embedder(experiment, params, train_tokenizer(texts, tokens), mesh)


def make_library(texts: Sequence[str], arguments: argparse.Namespace) -> SentenceTransformer:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        write_gpt2(
            folder,
            texts,
            width=arguments.width,
            layers=arguments.layers,
            heads=arguments.heads,
            longest=LONGEST,
        )
        return SentenceTransformer(str(folder), device="cpu")


if __name__ == "__main__":
    main()
