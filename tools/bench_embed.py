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
import torch
import transformers
from bench_search import MIB, read_peak
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import ByteLevelBPETokenizer

from jaxcpt import config
from jaxcpt.config import Batching, Data, Experiment, JsonlPairs, Model, Optimizer
from jaxcpt.documents import read_documents
from jaxcpt.embed import Embedder
from jaxcpt.sharding import make_mesh, use_cpu_cores
from jaxcpt.tokenizer import train_tokenizer
from jaxcpt.update import init_state

LONGEST = 512
VOCABULARY = 8192
KINDS = {
    "web queries": "code_search/cosqa/queries.jsonl",
    "Python functions": "code_search/cosqa/corpus.jsonl.gz",
    "abstracts": "retrieval/scifact/corpus.jsonl.gz",
}


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
    arguments = parser.parse_args(argv)
    if arguments.corpora:
        compare_memory(arguments)
    if arguments.texts:
        compare_speed(arguments)


def compare_speed(arguments: argparse.Namespace) -> None:
    use_cpu_cores()
    kinds = {name: read(arguments.data / path, arguments.texts) for name, path in KINDS.items()}
    everything = [text for texts in kinds.values() for text in texts]
    embedder = make_embedder(everything, arguments)
    with tempfile.TemporaryDirectory() as folder:
        library = make_library(everything, arguments, Path(folder))
    print(
        f"{arguments.width} x {arguments.layers}, float32; texts/s, medians of {arguments.repeats}"
    )
    print(f"{'':18} {'tokens a text':>16}  encode  Embedder  ratio")
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
        print(
            f"{name:18} {lengths[0]:7.0f} and {lengths[1]:4.0f}  {speeds[0]:6.1f}  {speeds[1]:8.1f}"
            f"  {speeds[1] / speeds[0]:5.2f}"
        )


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


def compare_memory(arguments: argparse.Namespace) -> None:
    print("peak memory above that of 1,000 texts, MiB\n   texts  vectors   encode  Embedder")
    for count in arguments.corpora:
        peaks = []
        for engine in (embed_with_library, embed_with_jaxcpt):
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:  # a new process: peaks cannot be reset
                peaks.append(pool.apply(measure_peak, (engine, count, arguments)))
        vectors = count * arguments.width * 4 / MIB
        print(f"{count:8,} {vectors:8.0f} {peaks[0]:8.0f} {peaks[1]:9.0f}", flush=True)


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
    with tempfile.TemporaryDirectory() as folder:
        library = make_library(texts, arguments, Path(folder))

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


def make_library(
    texts: Sequence[str], arguments: argparse.Namespace, folder: Path
) -> SentenceTransformer:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, VOCABULARY, special_tokens=["<pad>", "<end>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="right"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LONGEST,
        n_embd=arguments.width,
        n_layer=arguments.layers,
        n_head=arguments.heads,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    transformers.GPT2Model(shape).save_pretrained(folder)
    model = Transformer(str(folder), max_seq_length=LONGEST)
    pooling = Pooling(arguments.width, pooling_mode="lasttoken")
    return SentenceTransformer(modules=[model, pooling, Normalize()], device="cpu")


if __name__ == "__main__":
    main()
