"""Finds hard negatives for pairs: texts that a trained run ranks high for x, but that are not y.

    jaxcpt mine-negatives --run-dir DIR --output FILE.jsonl
    jaxcpt mine-negatives --run-dir DIR --pairs PATH... --output FILE.jsonl

The candidates are the y of all pairs. For each x, the command searches all candidates exactly and
keeps the best ones that are not likely positives. A candidate is a likely positive if its score is
more than `--relative-margin` times the score of the pair's own y, or less than `--absolute-margin`
below it. The reason is that most unlabelled texts that rank highest are in fact right answers
(NV-Retriever, arXiv 2407.15831). A candidate with the same words as x, as y, or as another y of the
same x is also left out. Negatives that a pair already has come first.

While the command runs, it keeps vectors in OUTPUT.unfinished. If it is killed, run it again, and it
continues with these vectors. It needs about 60 bytes of memory for each pair.
"""

import argparse
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxcpt.embed import Embedder
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.experiments import find_shared_folder, read_experiment
from jaxcpt.files import remove_tree, to_path
from jaxcpt.mining.words import digest, fold_words
from jaxcpt.pair import Pair
from jaxcpt.pairs import PAIRS_AT_ONCE, JoinedPairs, Pairs, open_source, read_all, write_pairs
from jaxcpt.pairs.command import add_source_options, name_sources
from jaxcpt.sharding import use_cpu_cores
from jaxcpt.sources import Prefixes, Source
from jaxcpt.terminal import show_progress
from jaxcpt.top_k import top_k
from jaxcpt.vectors import TEXTS_PER_SHARD, Storage, TextWithId, cut_into_blocks, fill

Shards = list[np.ndarray]
KNOWN_POSITIVE = "passed over: known to be right"
WITHIN_MARGIN = "passed over: within the margin"
OWN = "left out: the pair's own negatives over --negatives"


@dataclass(frozen=True)
class Margins:
    """How far below the positive a negative must score."""

    relative: float
    """The highest score of a negative, as a share of the positive's score."""
    absolute: float
    """The least difference between the positive's score and a negative's score."""

    def limit(self, positive: np.ndarray) -> np.ndarray:
        """Returns the highest score that a negative may have, for each positive's score.

        The limit is below the positive's score even if that score is less than 0.
        """
        relative = positive - (1 - self.relative) * np.abs(positive)
        return np.minimum(relative, positive - self.absolute)


class Known:
    """Which texts of n pairs are equal, found by hashes of their words."""

    def __init__(self, pairs: Pairs) -> None:
        """Reads all pairs once. Raises UserError if there are none."""
        if not len(pairs):
            raise UserError("found no pairs to read; name a source with at least one pair")
        texts = (text for pair in read_all(pairs) for text in (pair.x, pair.y))
        digests = (int.from_bytes(digest(*fold_words(text))[:8]) for text in texts)
        digest_n2 = np.fromiter(digests, np.uint64, 2 * len(pairs)).reshape(-1, 2)
        self.x_n = digest_n2[:, 0].copy()
        self.y_m, self.first_m, self.candidate_n = np.unique(
            digest_n2[:, 1], return_index=True, return_inverse=True
        )
        """y_m, first_m: for each of the m distinct y, its hash and the first pair that has it.
        candidate_n: the index of each pair's y among the distinct ones."""
        self.by_x = np.argsort(self.x_n, kind="stable")

    def find_positives(self, pair: int) -> set[int]:
        """Returns the candidates that are the y of this x in any pair, or have the words of x."""
        x = self.x_n[pair]
        same_x = slice(
            np.searchsorted(self.x_n, x, "left", sorter=self.by_x),
            np.searchsorted(self.x_n, x, "right", sorter=self.by_x),
        )
        positives = set(self.candidate_n[self.by_x[same_x]].tolist())
        same_words = int(np.searchsorted(self.y_m, x))
        if same_words < len(self.y_m) and self.y_m[same_words] == x:
            positives.add(same_words)
        return positives


def choose_negatives(
    scores_k: Sequence[float],
    candidate_k: Sequence[int],
    limit: float,
    positives: set[int],
    count: int,
) -> tuple[list[int], Counter[str]]:
    """Returns the first `count` negatives of the k best candidates, best first.

    Also returns how many candidates were passed over, by reason.
    """
    chosen: list[int] = []
    passed_over: Counter[str] = Counter()
    for score, candidate in zip(scores_k, candidate_k, strict=True):
        if len(chosen) == count:
            break
        if candidate in positives:
            passed_over[KNOWN_POSITIVE] += 1
        elif score > limit:
            passed_over[WITHIN_MARGIN] += 1
        else:
            chosen.append(candidate)
    return chosen, passed_over


def embed_candidates(
    embedder: Embedder, pairs: Pairs, known: Known, prefixes: list[str], folder: Path
) -> Shards:
    """Returns the vectors of the distinct y, in order, as memory maps [TEXTS_PER_SHARD, d].

    Reuses the vectors that a killed command left in `folder`. Raises UserError if they belong to
    other texts or to another checkpoint.
    """
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


def add_negatives(
    embedder: Embedder,
    prefixed: Pairs,
    bare: Pairs,
    known: Known,
    shards: Shards,
    options: argparse.Namespace,
) -> Iterator[tuple[Pair, Counter[str]]]:
    """Yields each pair with its negatives, and the number of texts that are none, by reason.

    prefixed, bare: the same pairs with and without the prefixes of their sources. The model embeds
    the prefixed texts. The negatives are written without a prefix.
    """
    margins = Margins(options.relative_margin, options.absolute_margin)
    for start in range(0, len(prefixed), PAIRS_AT_ONCE):
        block = range(start, min(start + PAIRS_AT_ONCE, len(prefixed)))
        zx_qd = embedder.embed([pair.x for pair in prefixed.read(block)], "x")
        places = [divmod(own, TEXTS_PER_SHARD) for own in known.candidate_n[block].tolist()]
        own_qd = np.stack([shards[shard][row] for shard, row in places])
        limits_q = margins.limit(np.einsum("qd,qd->q", zx_qd, own_qd)).tolist()
        scores_qk, candidate_qk = top_k(zx_qd, iter(shards), options.depth)
        choices = [
            choose_negatives(
                scores_k, candidate_k, limit, known.find_positives(pair), options.negatives
            )
            for pair, scores_k, candidate_k, limit in zip(
                block, scores_qk.tolist(), candidate_qk.tolist(), limits_q, strict=True
            )
        ]
        needed = sorted({candidate for chosen, _ in choices for candidate in chosen})
        first_pairs = bare.read(known.first_m[needed].tolist())
        texts = {candidate: pair.y for candidate, pair in zip(needed, first_pairs, strict=True)}
        for pair, (chosen, passed_over) in zip(bare.read(block), choices, strict=True):
            passed_over[OWN] += max(len(set(pair.negatives)) - options.negatives, 0)
            negatives = dict.fromkeys((*pair.negatives, *(texts[at] for at in chosen)))
            yield replace(pair, negatives=tuple(negatives)[: options.negatives]), passed_over


def open_pairs(arguments: argparse.Namespace) -> tuple[Pairs, Pairs, list[str]]:
    """Returns the pairs with prefixes, the same pairs without prefixes, and the prefixes of y.

    The pairs are those that the options name, or else the run's own training pairs.
    """
    run = read_experiment(arguments.run_dir)
    with tempfile.TemporaryDirectory() as folder:  # where pairs of installed packages are mined to
        if arguments.pairs or arguments.experiment:
            sources, experiment = name_sources(arguments)
            place, seed = Path(folder), experiment.seed if experiment else 0
        else:
            sources, seed = list(run.data.train), run.seed
            place = find_shared_folder(arguments.run_dir)

        def open_all(sources: Sequence[Source]) -> Pairs:
            return JoinedPairs([open_source(source, place, seed) for source in sources])

        y_prefixes = [getattr(source, "y_prefix", "") for source in sources]
        bare = [
            replace(source, x_prefix="", y_prefix="") if isinstance(source, Prefixes) else source
            for source in sources
        ]
        return open_all(sources), open_all(bare), y_prefixes


def _make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="jaxcpt mine-negatives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    run_dir = "folder of a trained run; its own pairs are the default"
    add("--run-dir", required=True, type=to_path, metavar="DIR", help=run_dir)
    step = "step of the checkpoint; default: newest whole checkpoint"
    add("--step", type=int, metavar="N", help=step)
    add_source_options(parser)
    add("--output", required=True, type=to_path, metavar="FILE", help="new JSONL file to write")
    most = "most negatives of a pair; default: %(default)s"
    add("--negatives", type=int, default=8, metavar="N", help=most)
    depth = "number of best candidates to check for each pair; default: %(default)s"
    add("--depth", type=int, default=100, metavar="N", help=depth)
    relative = "highest score of a negative, as a share of the score of the pair's own y; 1: no "
    relative += "such limit; default: %(default)s"
    add("--relative-margin", type=float, default=0.95, metavar="SHARE", help=relative)
    absolute = "least difference between the two scores; default: %(default)s"
    add("--absolute-margin", type=float, default=0.0, metavar="SCORE", help=absolute)
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for an option that is not valid."""
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


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _make_parser().parse_args(argv)
    _check(arguments)
    output: Path = arguments.output
    use_cpu_cores()
    prefixed, bare, prefixes = open_pairs(arguments)
    embedder = Embedder.load(arguments.run_dir, arguments.step).of_sources
    unfinished = output.with_name(f"{output.name}.unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    known = Known(bare)
    shards = embed_candidates(embedder, prefixed, known, prefixes, unfinished)
    totals: Counter[str] = Counter()
    too_few = f"pairs with fewer than {arguments.negatives} negatives"

    def count(advance: Callable[[int], None]) -> Iterator[Pair]:
        mined = add_negatives(embedder, prefixed, bare, known, shards, arguments)
        for pair, passed_over in mined:
            totals.update(passed_over)
            totals["negatives"] += len(pair.negatives)
            totals[too_few] += len(pair.negatives) < arguments.negatives
            advance(1)
            yield pair

    with show_progress("searching", len(bare), True) as advance:
        write_pairs(output, count(advance))
    remove_tree(unfinished)
    for what in ("negatives", too_few, KNOWN_POSITIVE, WITHIN_MARGIN, OWN):
        print(f"{totals[what]:>12,}  {what}")
    print(f"{output}: {len(bare):,} pairs, {totals['negatives'] / len(bare):.2f} negatives each")


if __name__ == "__main__":
    run_command(main)
