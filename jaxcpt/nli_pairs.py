"""Turns labelled sentence pairs (SNLI, MNLI) into pairs with contradictions as hard negatives.

    jaxcpt nli-pairs --input FILE.jsonl... --output FILE.jsonl

A line holds a premise, a hypothesis, and a label: whether the premise entails the hypothesis,
contradicts it, or does neither. Two forms are read:

- `sentence1`, `sentence2` and `gold_label`, as SNLI and MNLI are distributed;
- `premise`, `hypothesis` and `label`, as Hugging Face distributes them.

A label is `entailment`, `neutral` or `contradiction`, or the number 0, 1 or 2 in this order. `-` or
-1 means that the annotators did not agree.

Each entailment becomes two pairs: (premise, hypothesis) and (hypothesis, premise). The hard
negatives of both pairs are the hypotheses of all files that contradict the premise (paper,
sections 2.2 and 3.1.1). No other pairs are written. Every line is counted.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcpt.errors import CommandParser, UserError, run_command
from jaxcpt.files import to_path
from jaxcpt.lines import read_jsonl
from jaxcpt.pair import Pair
from jaxcpt.pairs import write_pairs

LABELS = ("entailment", "neutral", "contradiction")
NO_AGREEMENT = "no agreement"
FORMS = (("sentence1", "sentence2", "gold_label"), ("premise", "hypothesis", "label"))
"""For each form, the fields of premise, hypothesis and label."""


class Judged(NamedTuple):
    """A line of a file: two sentences, and a label, which is one of LABELS or NO_AGREEMENT."""

    premise: str
    hypothesis: str
    label: str


def read_judged(path: Path) -> Iterator[Judged]:
    """Yields the lines of a file. Raises UserError that names the line and the field."""
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        premise, hypothesis, label = next((f for f in FORMS if f[0] in row), FORMS[0])
        for field in (premise, hypothesis, label):
            if field not in row:
                have = ", ".join(map(repr, list(row)[:9]))
                raise UserError(f"{where}: no field '{field}'; there are: {have}")
        texts = row[premise], row[hypothesis]
        for field, text in zip((premise, hypothesis), texts, strict=True):
            if not isinstance(text, str):
                raise UserError(f"{where}: '{field}' must be a text, found {text!r:.60}")
        yield Judged(*texts, _read_label(row[label], f"{where}: '{label}'"))


def _read_label(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(LABELS):
        return LABELS[value]
    if isinstance(value, str) and value in LABELS:
        return value
    if value in ("-", -1):
        return NO_AGREEMENT
    raise UserError(
        f"{where} must be {', '.join(LABELS)} or -, or a number from -1 to 2, found {value!r:.60}"
    )


def make_pairs(lines: Iterable[Judged], counts: Counter[str]) -> Iterator[Pair]:
    """Yields two pairs for each distinct entailment, in the order of the premises.

    Adds the number of lines of each kind to `counts`. All sentences are held in memory, which takes
    about 1.5 kB for each premise.
    """
    by_premise: dict[str, dict[str, dict[str, None]]] = {}
    for line in lines:
        counts["lines"] += 1
        if line.label in ("neutral", NO_AGREEMENT):
            counts[line.label] += 1
            continue
        if not (line.premise.strip() and line.hypothesis.strip()):
            counts["lines with a blank sentence"] += 1
            continue
        of_premise = by_premise.setdefault(line.premise, {label: {} for label in LABELS})
        seen = of_premise[line.label]
        counts["repeated lines" if line.hypothesis in seen else line.label] += 1
        seen[line.hypothesis] = None
    for premise, of_premise in by_premise.items():
        negatives = tuple(of_premise["contradiction"])
        entailed = of_premise["entailment"]
        if not entailed:
            counts["contradictions of a premise without an entailment"] += len(negatives)
        for hypothesis in entailed:
            counts["pairs without a hard negative"] += 2 * (not negatives)
            yield Pair(premise, hypothesis, negatives=negatives)
            yield Pair(hypothesis, premise, negatives=negatives)


def _make_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="jaxcpt nli-pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    files = "JSONL files, also gzipped"
    add("--input", required=True, nargs="+", type=to_path, metavar="FILE", help=files)
    add("--output", required=True, type=to_path, metavar="FILE", help="new JSONL file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _make_parser().parse_args(argv)
    output: Path = arguments.output
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output}: expected a name that ends in .jsonl")
    if output.exists():
        raise UserError(f"{output}: exists; remove it or give another --output")
    counts: Counter[str] = Counter()
    lines = (line for path in arguments.input for line in read_judged(path))
    pairs = list(make_pairs(lines, counts))
    if not pairs:
        raise UserError(f"{arguments.input[0]}: no line is an entailment; nothing was written")
    write_pairs(output, pairs)
    for what, count in counts.items():
        if count:
            print(f"{count:>12,}  {what}")
    print(f"{output}: {len(pairs):,} pairs")


if __name__ == "__main__":
    run_command(main)
