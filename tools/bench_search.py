"""Exact search against FAISS flat, side by side, and the memory of both as the corpus grows.

    pip install faiss-cpu && python tools/bench_search.py

Speed: both hold the corpus in memory and take turns; medians. Memory: each engine in a process of
its own reads the corpus from files of 10,000 rows, one after another; what the process needs above
a search of 1,000 rows is shown.
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

import faiss
import numpy as np
from bench_tables import MIB, Table, Value, add_json_option, report
from bench_turns import read_peak

from jaxcpt.sharding import use_cpu_cores
from jaxcpt.top_k import top_k
from jaxcpt.vectors import quantize

ROWS_PER_FILE = 10_000
SPEED_COLUMNS = [
    "queries",
    "FAISS, s",
    "jaxcpt, s",
    "int8, s",
    "jaxcpt / FAISS",
    "int8 / FAISS",
    "same first row",
    "same rows",
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    use_cpu_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(2 * arguments.rows // ROWS_PER_FILE):
            np.save(folder / f"{number:05}.npy", draw(number, ROWS_PER_FILE, arguments.width))
        report(
            [compare_speed(folder, arguments), compare_memory(folder, arguments)], arguments.json
        )


def draw(seed: int, rows: int, width: int) -> np.ndarray:
    vectors_nd = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    return vectors_nd / np.linalg.norm(vectors_nd, axis=1, keepdims=True)


def read_shards(folder: Path, rows: int) -> Iterator[np.ndarray]:
    for start in range(0, rows, ROWS_PER_FILE):
        yield np.load(folder / f"{start // ROWS_PER_FILE:05}.npy")[: rows - start]


def compare_speed(folder: Path, arguments: argparse.Namespace) -> Table:
    corpus_nd = np.concatenate(list(read_shards(folder, arguments.rows)))
    index = faiss.IndexFlatIP(arguments.width)
    index.add(corpus_nd)
    np.save(folder / "whole.npy", corpus_nd)
    np.save(folder / "int8.npy", quantize(corpus_nd))
    del corpus_nd
    # A mapped .npy is aligned as XLA wants its buffers, so that tiles are not copied on a CPU.
    float_nd, int8_nd = (np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("whole", "int8"))
    rows: list[list[Value]] = []
    for queries in arguments.queries:
        queries_qd = draw(1_000_000, queries, arguments.width)
        engines: dict[str, Callable[[], Any]] = {
            "faiss": partial(index.search, queries_qd, arguments.k),
            "jaxcpt": partial(top_k, queries_qd, float_nd, arguments.k),
            "int8": partial(top_k, queries_qd, int8_nd, arguments.k),
        }
        found = {name: search()[1] for name, search in engines.items()}  # compiles, too
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(arguments.repeats):
            for name, search in engines.items():
                start = time.perf_counter()
                search()
                seconds[name].append(time.perf_counter() - start)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        same_qk = found["faiss"] == found["jaxcpt"]
        times = [median[name] for name in ("faiss", "jaxcpt", "int8")]
        ratios = [time / times[0] for time in times[1:]]
        rows.append([queries, *times, *ratios, float(same_qk[:, 0].mean()), float(same_qk.mean())])
    note = (
        f"{arguments.rows:,} x {arguments.width} float32, the best {arguments.k}; medians of "
        f"{arguments.repeats} turns."
    )
    plot = ["jaxcpt / FAISS", "int8 / FAISS"]
    return Table(name="search", columns=SPEED_COLUMNS, rows=rows, note=note, plot=plot)


def compare_memory(folder: Path, arguments: argparse.Namespace) -> Table:
    found: list[list[Value]] = []
    for rows in (arguments.rows // 4, arguments.rows // 2, arguments.rows, 2 * arguments.rows):
        peaks = []
        for engine in (search_faiss, search_jaxcpt):
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:  # a new process: peaks cannot be reset
                peaks.append(pool.apply(measure_peak, (engine, folder, rows, arguments.width)))
        corpus = rows * arguments.width * 4 / MIB
        found.append([rows, round(corpus), *map(round, peaks)])
    columns = ["rows", "corpus, MiB", "FAISS, MiB", "jaxcpt, MiB"]
    return Table(name="search_memory", columns=columns, rows=found, plot=columns[2:])


def measure_peak(
    engine: Callable[[np.ndarray, Path, int], None], folder: Path, rows: int, width: int
) -> float:
    use_cpu_cores()
    queries_qd = draw(1_000_000, 100, width)
    engine(queries_qd, folder, 1_000)
    before = read_peak()
    engine(queries_qd, folder, rows)
    return read_peak() - before


def search_faiss(queries_qd: np.ndarray, folder: Path, rows: int) -> None:
    index = faiss.IndexFlatIP(queries_qd.shape[1])
    for shard_nd in read_shards(folder, rows):
        index.add(shard_nd)
    index.search(queries_qd, 100)


def search_jaxcpt(queries_qd: np.ndarray, folder: Path, rows: int) -> None:
    top_k(queries_qd, read_shards(folder, rows), 100)


if __name__ == "__main__":
    main()
