"""Shows what a run would train on, before it trains.

    jaxcpt inspect --experiment experiments/quickstart.py

In: an experiment. Out: tables on the terminal. They show how many pairs each source has and how
often they are drawn, how many pairs occur twice, how long the texts are, what the limits cut, how
much of a batch is padding, and some pairs as the model sees them. The command builds no model and
keeps no file.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxcpt.batches import Batches
from jaxcpt.checks import validate
from jaxcpt.config import Experiment
from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.experiments import apply_overrides, load_experiment
from jaxcpt.pair import Side
from jaxcpt.pairs import label_sources, open_training
from jaxcpt.pairs.interface import PAIRS_AT_ONCE, Encoded, EncodedPairs
from jaxcpt.pairs.tokenized import TokenizedReader
from jaxcpt.quantities import say_count
from jaxcpt.sharding import make_mesh, use_devices
from jaxcpt.start import obtain_tokenizer, resolve_start
from jaxcpt.terminal import cut_text, print_table, show_progress
from jaxcpt.tokenizer import Tokenizer

LENGTHS = (32, 64, 128, 256, 512, 1024)
"""Upper ends of the length classes in the table, in tokens."""
UNLIMITED = 1 << 30
"""A number of tokens that no text reaches, used to read texts without cutting them."""
CHARACTERS_SHOWN = 300
"""Most characters to show of each text of an example."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="jaxcpt inspect", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--experiment", required=True, metavar="FILE", help="a Python file, see experiments/")
    add("--set", action="append", default=[], metavar="PATH=VALUE", dest="changes")
    add("--pairs", type=int, default=20_000, help="most pairs of each source; default: 20000")
    add("--batches", type=int, default=50, help="batches to pack; default: 50")
    add("--examples", type=int, default=10, help="pairs to show; default: 10")
    arguments = parser.parse_args(argv)
    for name, least in (("pairs", 1), ("batches", 1), ("examples", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name}: {getattr(arguments, name)}; must be {least} or more")
    experiment = apply_overrides(load_experiment(arguments.experiment), arguments.changes)
    use_devices(experiment.mesh, 1)
    with tempfile.TemporaryDirectory() as folder:
        batches = make_batches(experiment, Path(folder))
        labels = label_sources(experiment.data.train)
        show_pairs(batches, labels, arguments.pairs)
        show_padding(batches, labels, arguments.batches)
        show_examples(batches, labels, arguments.examples)


def make_batches(experiment: Experiment, run_dir: Path) -> Batches:
    """The batches of a run of this experiment. run_dir: where its tokenizer is made."""
    experiment = validate(resolve_start(experiment, run_dir))
    sources = open_training(experiment.data, run_dir, experiment.seed)
    tokenizer = obtain_tokenizer(experiment, run_dir, sources)
    return Batches(experiment, sources, tokenizer, make_mesh(experiment.mesh))


def show_pairs(batches: Batches, labels: Sequence[str], most_pairs: int) -> None:
    """Prints tables of the sources: their pairs, copies among them, and the lengths of texts."""
    counted, lengths, told = [], [], []
    seen: list[set[object]] = [set(), set(), set()]
    shares = batches.source_shares
    for label, share, source in zip(labels, shares, batches.sources, strict=True):
        looked_at = read_whole(label, source, batches, most_pairs)
        copies = count_copies(looked_at, seen)
        counted.append((label, f"{len(source):,}", f"{share:.1%}", f"{len(looked_at):,}", *copies))
        for side in ("x", "y"):
            row, line = describe_lengths(label, side, looked_at, batches.tokenizer)
            lengths.append(row)
            told += line
        if isinstance(source, TokenizedReader):
            told.append(
                f"{label}: holds token ids; what was cut when they were written is unknown."
            )
    columns = ("source", "pairs", "share of the batches", "looked at", "copied pairs")
    print_table("Pairs", counted, (*columns, "x seen before", "y seen before"))
    bounds = [f"≤ {length:,}" for length in LENGTHS]
    headings = ("source", "side", "longest", *bounds, f"> {LENGTHS[-1]:,}", "limit", "cut")
    print_table("Tokens of a text, before any is cut: share of the texts", lengths, headings)
    print("\n".join(told))


def read_whole(
    label: str, source: EncodedPairs, batches: Batches, most_pairs: int
) -> list[Encoded]:
    """Reads at most `most_pairs` pairs, spread evenly over a source. Their texts are not cut."""
    tokenizer = replace(batches.tokenizer, x_tokens=UNLIMITED, y_tokens=UNLIMITED)
    places = np.linspace(0, len(source) - 1, min(len(source), most_pairs)).astype(int).tolist()
    read: list[Encoded] = []
    with show_progress(label, len(places), True) as advance:
        for first in range(0, len(places), PAIRS_AT_ONCE):
            part = places[first : first + PAIRS_AT_ONCE]
            read += source.read_encoded(part, tokenizer, batches.settings.negatives)
            advance(len(part))
    return read


def count_copies(pairs: Sequence[Encoded], seen: list[set[object]]) -> list[str]:
    """Counts the pairs, x and y that occurred before, in `seen` or earlier in `pairs`.

    Adds the hashes of `pairs` to `seen`.
    """
    before = [len(have) for have in seen]
    for pair in pairs:
        x, y = pair.hashes[:2]
        for have, key in zip(seen, ((x, y), x, y), strict=True):
            have.add(key)
    return [
        f"{len(pairs) - (len(have) - first):,}" for have, first in zip(seen, before, strict=True)
    ]


def describe_lengths(
    label: str, side: Side, pairs: Sequence[Encoded], tokenizer: Tokenizer
) -> tuple[list[str], list[str]]:
    """A row of the table of lengths, and a sentence each if texts are blank or cut.

    y includes the negatives.
    """
    texts = [text for p in pairs for text in (p.ids[:1] if side == "x" else p.ids[1:])]
    lengths = np.array([len(text) for text in texts if len(text)])
    limit = tokenizer.x_tokens if side == "x" else tokenizer.y_tokens
    classes = np.searchsorted(LENGTHS, lengths)
    shares = np.bincount(classes, minlength=len(LENGTHS) + 1) / len(lengths)
    cut = np.mean(lengths > limit)
    row = [label, side, f"{lengths.max():,}", *(f"{share:.0%}" for share in shares)]
    told = []
    blank = len(tokenizer.encode([""], side)[0])
    if count := int(np.sum(lengths <= blank)):
        told.append(f"{label}: {say_count(count, 'blank text')} of {side}; remove such pairs.")
    line = (
        f"{label}: {cut:.1%} of the {side} texts are longer than tokenizer.{side}_tokens="
        f"{limit}; {np.maximum(lengths - limit, 0).sum() / lengths.sum():.1%} of the tokens of all "
        f"{side} texts are cut."
    )
    return [*row, f"{limit:,}", f"{cut:.1%}"], told + [line] * bool(cut)


def show_padding(batches: Batches, labels: Sequence[str], count: int) -> None:
    """Prints a table of the first batches: their rows, padding, and pairs without a place."""
    names = labels if batches.is_homogeneous else ["all sources"]
    padding: list[list[float]] = [[] for _ in names]
    lost = [0] * len(names)
    with show_progress("batches", count, True) as advance:
        for step in range(count):
            source = batches.order.source_at(step)
            drawn, packing, sizes = batches.pack(step)
            placed = [pair for cell in packing.cells for pair in cell]
            tokens = sum(len(text) for pair in placed for text in drawn[pair].ids)
            padding[source].append(1 - tokens / sizes.tokens_per_batch)
            lost[source] += packing.overflow
            advance(1)
    rows = [
        (
            name,
            len(values),
            f"{say_count(sizes.rows_per_cell, 'row')} of {sizes.row_tokens:,}",
            f"{np.mean(values):.1%}" if values else "-",
            f"{without:,} of {len(values) * batches.settings.pairs_per_batch:,}",
        )
        for name, values, sizes, without in zip(
            names, padding, batches.sizes_by_source, lost, strict=True
        )
    ]
    headings = ("batches of", "packed", "each cell", "padding", "pairs without a place")
    print_table(f"The first {count} batches", rows, headings)


def show_examples(batches: Batches, labels: Sequence[str], count: int) -> None:
    """Prints pairs of the first batch, from short to long, with the rows of their texts."""
    drawn, packing, _ = batches.pack(0)
    numbers = batches.pair_ids(0)
    placed = [
        (pair, cell, places)
        for cell, pairs in enumerate(packing.cells)
        for pair, places in zip(pairs, packing.places[cell], strict=True)
    ]
    placed.sort(key=lambda found: sum(map(len, drawn[found[0]].ids)))
    chosen = np.linspace(0, len(placed) - 1, min(count, len(placed))).astype(int)
    if batches.settings.token_dropout:
        print(f"token_dropout={batches.settings.token_dropout} leaves this share of tokens out.")
    if count:
        print("Examples. A cell is what one device encodes at a time; several texts share a row.")
    for pair, cell, places in (placed[at] for at in chosen):
        source = int(np.searchsorted(batches.starts, numbers[pair], side="right")) - 1
        print(f"\n{labels[source]}, pair {numbers[pair] - batches.starts[source]:,}")
        for number, (ids, place) in enumerate(zip(drawn[pair].ids, places, strict=True)):
            if len(ids):
                name = ("x", "y")[number] if number < 2 else f"negative {number - 1}"
                print(
                    f"  {name}, {say_count(len(ids), 'token')}, in row {place.row} of cell {cell}"
                )
                print(_indent(batches.tokenizer.decode(ids)))


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in cut_text(text, CHARACTERS_SHOWN).splitlines())


if __name__ == "__main__":
    run_command(main)
