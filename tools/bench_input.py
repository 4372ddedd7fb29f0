"""Measures the input pipeline: tokens per second of a core, from texts and from token ids on disk.

    python tools/bench_input.py --pairs PATH... [--tokenizer FILE.model] [--pairs-per-batch 2048]

Whole batches, read from disk, tokenised, packed and put on the device, by what a step of training
does; padding does not count. A core second is a second of processor time of any thread, so a
machine makes as many times the tokens as it has cores to spare. Without --tokenizer, a vocabulary
of 8,192 is trained on the pairs first.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from bench_tables import Table, Value, add_json_option, report

from jaxcpt import config
from jaxcpt.batches import Batches
from jaxcpt.config import Batching, Data, Experiment, Model, Optimizer
from jaxcpt.errors import UserError, run_command
from jaxcpt.pairs import EncodedPairs, JoinedPairs, TokenizedReader, sample_texts
from jaxcpt.pairs.command import add_source_options, name_sources, open_sources
from jaxcpt.pairs.tokenized import write_about
from jaxcpt.sharding import make_mesh
from jaxcpt.sources import TokenizedPairs
from jaxcpt.terminal import show_progress
from jaxcpt.tokenize_pairs import write_tokens
from jaxcpt.tokenizer import Tokenizer, read_model, train_tokenizer


def make_batches(
    pairs: EncodedPairs, tokenizer: Tokenizer, row_tokens: int, pairs_per_batch: int
) -> Batches:
    experiment = Experiment(
        name="bench",
        train_steps=1,
        data=Data(()),
        tokenizer=config.Tokenizer(vocabulary=tokenizer.vocabulary),
        batching=Batching(pairs_per_batch=pairs_per_batch, row_tokens=row_tokens, in_memory=False),
        model=Model(width=8, layers=1, heads=1),
        optimizer=Optimizer(learning_rate=1e-3),
    )
    return Batches(experiment, [pairs], tokenizer, make_mesh(config.Mesh()))


def measure(name: str, work: Callable[[int], int], steps: int) -> list[Value]:
    """The row of `work`, which does a step and counts its tokens."""
    work(0)  # opens files, measures the rows, compiles
    seconds, core_seconds, tokens = time.perf_counter(), time.process_time(), 0
    with show_progress(name, steps, True) as advance:
        for step in range(1, steps + 1):
            tokens += work(step)
            advance(1)
    core_seconds = time.process_time() - core_seconds
    seconds = time.perf_counter() - seconds
    return [name, round(tokens / core_seconds), round(tokens / seconds)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source_options(parser)
    add = parser.add_argument
    add("--tokenizer", metavar="FILE", help="SentencePiece model")
    add("--row-tokens", type=int, default=512, help="of a row, and most of a text")
    add("--pairs-per-batch", type=int, default=2048)
    add("--steps", type=int, default=20)
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    sources, experiment = name_sources(arguments)
    longest = arguments.row_tokens
    pairs = JoinedPairs(open_sources(sources, experiment.seed if experiment else 0))
    settings = config.Tokenizer(vocabulary=8192, x_tokens=longest, y_tokens=longest)
    tokenizer = (
        read_model(arguments.tokenizer, longest, longest)
        if arguments.tokenizer
        else train_tokenizer(sample_texts([pairs]), settings)
    )
    if len(pairs) < arguments.pairs_per_batch:
        raise UserError(f"--pairs-per-batch: only {len(pairs)} pairs are there")

    def whole(batches: Batches) -> Callable[[int], int]:
        return lambda step: int(np.asarray(batches.make(step).cells.segments_grl > 0).sum())

    def drawn(batches: Batches) -> Callable[[int], int]:
        return lambda step: sum(
            len(text) for pair in batches._draw(step, batches.shards) for text in pair.ids
        )

    def characters(step: int) -> int:
        order = make_batches(pairs, tokenizer, longest, arguments.pairs_per_batch).order
        read = pairs.read(order.pairs_at(step, np.arange(arguments.pairs_per_batch)).tolist())
        return sum(len(pair.x) + len(pair.y) for pair in read)

    works: dict[str, Callable[[int], int]] = {"characters, read": characters}
    with tempfile.TemporaryDirectory() as folder:
        about = write_tokens([pairs], tokenizer, Path(folder), 0, 1_000_000, ("", ""))
        write_about(Path(folder), about)
        texts, ids = (
            make_batches(source, tokenizer, longest, arguments.pairs_per_batch)
            for source in (pairs, TokenizedReader(TokenizedPairs(folder)))
        )
        works["tokens of texts, read and tokenised"] = drawn(texts)
        works["tokens of texts, packed and on the device"] = whole(texts)
        works["token ids, read"] = drawn(ids)
        works["token ids, packed and on the device"] = whole(ids)
        rows = [measure(name, work, arguments.steps) for name, work in works.items()]
    note = (
        f"{len(pairs):,} pairs, {arguments.steps} batches of {arguments.pairs_per_batch:,}, "
        f"{tokenizer.vocabulary:,} tokens in the vocabulary."
    )
    columns = ["", "in a core second", "in a second"]
    table = Table(name="input", columns=columns, rows=rows, note=note, plot=columns[1:2])
    report([table], arguments.json)


if __name__ == "__main__":
    run_command(main)
