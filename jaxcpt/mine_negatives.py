"""Finds hard negatives for pairs with a trained run: texts that it ranks high for x and that are
not y.

    jaxcpt mine-negatives --run-dir DIR --output FILE.jsonl
    jaxcpt mine-negatives --run-dir DIR --pairs PATH... --output FILE.jsonl

Candidates are the y of all pairs: each x searches all of them, exactly, and keeps the best that are
left when likely positives are out. A text that scores above `--relative-margin` times the score of
the pair's own y, or closer to it than `--absolute-margin`, is taken for one (NV-Retriever,
2407.15831: most of what ranks highest without being labelled is right, too). So is a text with the
words of x, of y, or of another y of the same x. Negatives that a pair has already stand first.

Vectors lie in OUTPUT.unfinished while it works, and a killed run goes on with those it has. Memory
holds some 60 bytes for each pair.
"""

import argparse
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError, run_command
from jaxcpt.experiments import read_experiment
from jaxcpt.metrics import show_progress
from jaxcpt.mining.words import digest, split_words
from jaxcpt.pair import Pair
from jaxcpt.pairs import PAIRS_AT_ONCE, JoinedPairs, Pairs, open_source, read_all, write_pairs
from jaxcpt.pairs.command import add_source_options, name_sources
from jaxcpt.sharding import use_cpu_cores
from jaxcpt.sources import Prefixes, Source
from jaxcpt.top_k import top_k
from jaxcpt.vectors import TEXTS_PER_SHARD, Storage, TextWithId, cut_into_blocks, fill

Shards = list[np.ndarray]
REASONS = ("passed over: known to be right", "passed over: within the margin")


@dataclass(frozen=True)
class Margins:
    relative: float
    """Highest score of a negative, as a share of the positive's."""
    absolute: float
    """By how much it must score less than the positive."""

    def limit(self, positive: np.ndarray) -> np.ndarray:
        """Highest scores of negatives. A negative score's share lies below it, as any other's."""
        relative = positive - (1 - self.relative) * np.abs(positive)
        return np.minimum(relative, positive - self.absolute)


class Known:
    """What equals what among n pairs, by digests of the words of their texts."""

    def __init__(self, pairs: Pairs) -> None:
        """Reads all pairs once. Raises UserError where there are none."""
        if not len(pairs):
            raise UserError("no pairs in what was named; it needs at least one")
        texts = (text for pair in read_all(pairs) for text in (pair.x, pair.y))
        digests = (int.from_bytes(digest(*split_words(text))[:8]) for text in texts)
        digest_n2 = np.fromiter(digests, np.uint64, 2 * len(pairs)).reshape(-1, 2)
        self.x_n = digest_n2[:, 0].copy()
        self.y_m, self.first_m, self.candidate_n = np.unique(
            digest_n2[:, 1], return_index=True, return_inverse=True
        )
        """Of the m distinct y: digest, first pair that has it. Of each pair: which of them."""
        self.by_x = np.argsort(self.x_n, kind="stable")

    def right(self, pair: int) -> set[int]:
        """Candidates that are y to this x in some pair, or have the very words of x."""
        x = self.x_n[pair]
        same_x = slice(
            np.searchsorted(self.x_n, x, "left", sorter=self.by_x),
            np.searchsorted(self.x_n, x, "right", sorter=self.by_x),
        )
        found = set(self.candidate_n[self.by_x[same_x]].tolist())
        at = int(np.searchsorted(self.y_m, x))
        return found | {at} if at < len(self.y_m) and self.y_m[at] == x else found


def choose(
    scores_k: Sequence[float], found_k: Sequence[int], limit: float, right: set[int], count: int
) -> tuple[list[int], Counter[str]]:
    """The first `count` candidates that may be negatives; why others were passed over."""
    chosen: list[int] = []
    passed: Counter[str] = Counter()
    for score, candidate in zip(scores_k, found_k, strict=True):
        if len(chosen) == count:
            break
        if candidate in right:
            passed[REASONS[0]] += 1
        elif score > limit:
            passed[REASONS[1]] += 1
        else:
            chosen.append(candidate)
    return chosen, passed


def embed_candidates(
    embedder: Embedder, pairs: Pairs, known: Known, prefixes: list[str], folder: Path
) -> Shards:
    """Vectors of the distinct y as memory maps [TEXTS_PER_SHARD, d], one after another. Those that
    a killed run made are taken as they are; raises UserError where they are of something else."""
    numbered = cut_into_blocks(enumerate(known.first_m.tolist()), PAIRS_AT_ONCE)
    documents = (
        TextWithId(str(candidate), pair.y)
        for block in numbered
        for (candidate, _), pair in zip(block, pairs.read([n for _, n in block]), strict=True)
    )
    texts = hashlib.sha256(known.x_n.tobytes() + known.y_m.tobytes()).hexdigest()
    about = {"step": embedder.step, "checkpoint": embedder.fingerprint, "side": "y"}
    about |= {"input": texts, "prefixes": prefixes}

    def embed(texts: Sequence[str]) -> np.ndarray:
        return embedder.embed(texts, "y", progress=True)

    return list(fill(folder, about, documents, embed, Storage()).shards())


def mine(
    embedder: Embedder,
    told: Pairs,
    plain: Pairs,
    known: Known,
    shards: Shards,
    options: argparse.Namespace,
) -> Iterator[tuple[Pair, Counter[str]]]:
    """The pairs in their order, with negatives, and what was passed over for each. `told` are the
    pairs with the prefixes that the model knows them by."""
    margins = Margins(options.relative_margin, options.absolute_margin)
    for start in range(0, len(told), PAIRS_AT_ONCE):
        block = range(start, min(start + PAIRS_AT_ONCE, len(told)))
        zx_qd = embedder.embed([pair.x for pair in told.read(block)], "x")
        places = [divmod(own, TEXTS_PER_SHARD) for own in known.candidate_n[block].tolist()]
        own_qd = np.stack([shards[shard][row] for shard, row in places])
        limits_q = margins.limit(np.einsum("qd,qd->q", zx_qd, own_qd)).tolist()
        scores_qk, found_qk = top_k(zx_qd, iter(shards), options.depth)
        chosen = [
            choose(scores_k, found_k, limit, known.right(pair), options.negatives)
            for pair, scores_k, found_k, limit in zip(
                block, scores_qk.tolist(), found_qk.tolist(), limits_q, strict=True
            )
        ]
        wanted = sorted({candidate for found, _ in chosen for candidate in found})
        read = plain.read(known.first_m[wanted].tolist())
        texts = {candidate: pair.y for candidate, pair in zip(wanted, read, strict=True)}
        for pair, (found, passed) in zip(plain.read(block), chosen, strict=True):
            negatives = dict.fromkeys((*pair.negatives, *(texts[at] for at in found)))
            yield replace(pair, negatives=tuple(negatives)[: options.negatives]), passed


def open_pairs(arguments: argparse.Namespace) -> tuple[Pairs, Pairs, list[str]]:
    """The pairs named, or else the run's own, with prefixes and without; the prefixes of y."""
    run = read_experiment(arguments.run_dir)
    sources = list(run.data.train)
    if arguments.pairs or arguments.experiment:
        sources, _ = name_sources(arguments)

    def open_all(sources: Sequence[Source]) -> Pairs:
        return JoinedPairs([open_source(s, arguments.run_dir, run.seed) for s in sources])

    bare = [replace(s, x_prefix="", y_prefix="") if isinstance(s, Prefixes) else s for s in sources]
    return open_all(sources), open_all(bare), [getattr(s, "y_prefix", "") for s in sources]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="jaxcpt mine-negatives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run-dir", required=True, type=Path, help="a trained run; its pairs are the default")
    add("--step", type=int, help="default: the newest whole checkpoint")
    add_source_options(parser)
    add("--output", required=True, type=Path, metavar="FILE", help="JSONL; must not exist")
    add("--negatives", type=int, default=8, help="of each pair, at most")
    add("--depth", type=int, default=100, help="how many of the best are looked at")
    add("--relative-margin", type=float, default=0.95, help="1: off")
    add("--absolute-margin", type=float, default=0.0)
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    rules = [
        (not output.exists(), f"{output}: exists; remove it or give another --output"),
        (output.suffix == ".jsonl", f"--output {output}: expected a name that ends in .jsonl"),
        (arguments.negatives > 0, f"--negatives {arguments.negatives}: must be at least 1"),
        (
            arguments.depth >= arguments.negatives,
            f"--depth {arguments.depth}: must be at least --negatives {arguments.negatives}",
        ),
        (
            0 <= arguments.relative_margin <= 1,
            f"--relative-margin {arguments.relative_margin}: must be in [0, 1]",
        ),
        (
            arguments.absolute_margin >= 0,
            f"--absolute-margin {arguments.absolute_margin}: must be 0 or more",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise UserError(message)
    use_cpu_cores()
    told, plain, prefixes = open_pairs(arguments)
    embedder = Embedder.load(arguments.run_dir, arguments.step)
    unfinished = output.with_name(f"{output.name}.unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    known = Known(plain)
    shards = embed_candidates(embedder, told, known, prefixes, unfinished)
    passed: Counter[str] = Counter()

    def count(advance: Callable[[int], None]) -> Iterator[Pair]:
        for pair, of_pair in mine(embedder, told, plain, known, shards, arguments):
            passed.update(of_pair)
            passed["negatives"] += len(pair.negatives)
            passed["pairs with fewer than asked for"] += len(pair.negatives) < arguments.negatives
            advance(1)
            yield pair

    with show_progress("searching", len(plain), True) as advance:
        write_pairs(output, count(advance))
    shutil.rmtree(unfinished)
    for what in ("negatives", "pairs with fewer than asked for", *sorted(REASONS)):
        print(f"{passed[what]:>12,}  {what}")
    print(f"{output}: {len(plain):,} pairs, {passed['negatives'] / len(plain):.2f} negatives each")


if __name__ == "__main__":
    run_command(main)
