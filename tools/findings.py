"""Trains and scores the models of docs/findings.md, and keeps their numbers in docs/findings/.

    python tools/findings.py --work WORK --data DATA [--only NAME ...] [--workers 2]
    python tools/findings_page.py

In: the folder DATA with the sets `code_search/cosqa`, `retrieval/scifact` and `sts/sts15`. Out: one
JSON file for each finding; findings_page.py makes the tables and figures from these files alone. A
trial that is done in WORK is not run again, and one that was interrupted goes on. Each worker uses
one core, so a run takes at most 15 minutes where nothing else uses the machine.
"""

import argparse
import json
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from findings_starts import (
    EQUAL_DELIMITERS,
    REPOSITORY,
    make_delimiters,
    make_generative,
    make_negatives,
    make_pretrained,
    make_sets,
    run_verb,
    share_pairs,
)

from jaxcpt.errors import run_command
from jaxcpt.provenance import find_commit

NUMBERS = REPOSITORY / "docs" / "findings"
SEEDS = (0, 1, 2)
SMALL_PAIRS = 12_288
"""Pairs that a run of small_code sees, unless the finding is about that number."""
SMALL_BATCH, MINILM_BATCH, MINILM_STEPS = 128, 64, 50
LIMITS = ("tokenizer.x_tokens=32", "tokenizer.y_tokens=64", "batching.row_tokens=64")
CHUNK = 256
"""Larger batches are encoded in parts of so many pairs, by the two passes of update.py."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run: an experiment with settings of its own, and the suites that score its last step."""

    name: str
    """Of its folder."""
    experiment: str
    settings: tuple[str, ...]
    choice: dict[str, Any]
    """What the finding compares; the key of its numbers."""
    seed: int
    suites: tuple[str, ...] = ()
    data: str | None = None
    """The setting of its pairs. None: the pairs of lm_small."""


def tune_small(
    name: str,
    choice: dict[str, Any],
    seed: int,
    batch: int = SMALL_BATCH,
    steps: int = SMALL_PAIRS // SMALL_BATCH,
    start: Path | None = None,
    more: Sequence[str] = (),
    suites: tuple[str, ...] = (),
) -> Trial:
    """A run of small_code. start: the run that it starts from; None: random parameters."""
    settings = [
        *LIMITS,
        "optimizer.learning_rate=3e-3",
        f"optimizer.warmup_steps={max(steps // 10, 1)}",
        f"batching.pairs_per_batch={batch}",
        f"batching.chunks={max(batch // CHUNK, 1)}",
        f"train_steps={steps}",
        "evals.every_steps=100000",
        f"seed={seed}",
        *([f"init_from={json.dumps({'run': str(start)})}"] if start else []),
        *more,
    ]
    return Trial(
        name=f"{name}_{seed}",
        experiment="small_code",
        settings=tuple(settings),
        choice=choice,
        seed=seed,
        suites=suites,
    )


def tune_minilm(
    name: str, choice: dict[str, Any], start: Path, suites: tuple[str, ...] = (), seed: int = 0
) -> Trial:
    """A run of minilm_code that starts from a run or a model's folder."""
    settings = (
        *LIMITS,
        f"batching.pairs_per_batch={MINILM_BATCH}",
        f"train_steps={MINILM_STEPS}",
        "optimizer.warmup_steps=5",
        "evals.every_steps=100000",
        f"seed={seed}",
        f"init_from={json.dumps({'run': str(start)})}",
    )
    return Trial(
        name=f"{name}_{seed}",
        experiment="minilm_code",
        settings=settings,
        choice=choice,
        seed=seed,
        suites=suites,
    )


def vary_start(work: Path) -> Iterator[Trial]:
    """Finding 1: random parameters, a generative run of ours, a pretrained model."""
    suites = ("code_search", "retrieval")
    few = MINILM_BATCH * MINILM_STEPS
    for seed in SEEDS:
        for pairs in (few, SMALL_PAIRS):
            for start in (None, work / "lm_small"):
                label = "generative" if start else "random"
                choice = {"start": label, "model": "small_code", "pairs": pairs}
                name, steps = f"start_{label}_{pairs}", pairs // SMALL_BATCH
                yield tune_small(name, choice, seed, steps=steps, start=start, suites=suites)
    for label, start in (("random", work / "minilm_random"), ("MiniLM", work / "minilm_6")):
        choice = {"start": label, "model": "MiniLM's shape", "pairs": few}
        yield tune_minilm(f"minilm_{label}", choice, start, suites)


def vary_batch(work: Path) -> Iterator[Trial]:
    """Finding 2: batch size, at equal pairs and at equal steps."""
    for seed in SEEDS:
        for batch in (32, 128, 512, 1024):
            for equal, steps in (("pairs", SMALL_PAIRS // batch), ("steps", 32)):
                choice = {"equal": equal, "batch": batch, "steps": steps}
                name = f"batch_{batch}_{steps}"
                yield tune_small(name, choice, seed, batch, steps, work / "lm_small")


def vary_pooling(work: Path) -> Iterator[Trial]:
    """Finding 3: delimiters of each side, and pooling."""
    for seed in SEEDS:
        for delimiters in ("different", "equal"):
            for pooling in ("eos", "mean"):
                choice = {"delimiters": delimiters, "pooling": pooling}
                name, start = f"pool_{delimiters}_{pooling}", work / f"lm_{delimiters}"
                more = [f"model.pooling={pooling}"]
                if delimiters == "different":
                    more.append("tokenizer.split_identifiers=False")
                else:
                    more.append(f"tokenizer={json.dumps(EQUAL_DELIMITERS | {'y_tokens': 64})}")
                yield tune_small(name, choice, seed, start=start, more=more)


def train_longer(work: Path) -> Iterator[Trial]:
    """Finding 4: search and similarity as training goes on."""
    more = (
        "evals.every_steps=50",
        'evals.suites=["sts"]',
        f"evals.data={json.dumps(str(work / 'similarity'))}",
    )
    for seed in SEEDS:
        yield tune_small("longer", {}, seed, steps=300, start=work / "lm_small", more=more)


def vary_layers(work: Path) -> Iterator[Trial]:
    """Finding 5: the first layers of one pretrained model. Close ones have three seeds."""
    for layers, seeds in ((1, SEEDS), (2, SEEDS), (4, SEEDS[:1])):
        for seed in seeds:
            start, choice = work / f"minilm_{layers}", {"layers": layers}
            yield tune_minilm(f"layers_{layers}", choice, start, seed=seed)
    yield tune_minilm(
        "minilm_MiniLM", {"layers": 6}, work / "minilm_6", ("code_search", "retrieval")
    )


def vary_negatives(work: Path) -> Iterator[Trial]:
    """Finding 6: MiniLM, tuned on SciFact's training split with and without hard negatives."""
    task = str(work / "suites" / "retrieval" / "scifact")
    heldout = {"type": "BeirPairs", "directory": task, "split": "test"}
    pairs = {"type": "JsonlPairs", "path": str(work / "negatives.jsonl")}
    settings = (
        f"init_from={json.dumps({'run': str(work / 'minilm_6')})}",
        f"tokenizer={json.dumps({'x_tokens': 64, 'y_tokens': 128})}",
        f"model={json.dumps({'compute_dtype': 'float32', 'remat': 'nothing'})}",
        f"mesh={json.dumps({'data': -1})}",
        "loss.scale_start=20.0",
        "optimizer.learning_rate=2e-5",
        "optimizer.warmup_steps=5",
        "batching.pairs_per_batch=32",
        "batching.row_tokens=128",
        "train_steps=56",
        "evals.every_steps=100000",
    )
    # One run alone is scored before its first step, because that score is the same in all.
    scored = ('evals.suites=["retrieval"]', f"evals.data={json.dumps(str(work / 'suites'))}")
    for seed in SEEDS:
        for negatives in (0, 1):
            first = (seed, negatives) == (0, 0)
            yield Trial(
                name=f"negatives_{negatives}_{seed}",
                experiment="cpt_text_s_msmarco",
                settings=(
                    *settings,
                    f"batching.negatives={negatives}",
                    f"seed={seed}",
                    *(scored if first else ()),
                ),
                choice={"hard negatives of a pair": negatives},
                seed=seed,
                suites=() if first else ("retrieval",),
                data=f"data={json.dumps({'train': [pairs], 'heldout': heldout})}",
            )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a finding trains, and what must be there before: functions of WORK and DATA."""

    trials: Callable[[Path], Iterator[Trial]]
    starts: tuple[Callable[[Path, Path], None], ...]


FINDINGS = {
    "start": Finding(trials=vary_start, starts=(make_generative, make_pretrained)),
    "batch": Finding(trials=vary_batch, starts=(make_generative,)),
    "pooling": Finding(trials=vary_pooling, starts=(make_generative, make_delimiters)),
    "layers": Finding(trials=vary_layers, starts=(make_generative, make_pretrained)),
    "longer": Finding(trials=train_longer, starts=(make_generative,)),
    "negatives": Finding(trials=vary_negatives, starts=(make_pretrained, make_negatives)),
}


def run_trial(trial: Trial, work: Path) -> dict[str, Any]:
    """Trains and scores a trial, or reads what it gave. Returns its row of numbers."""
    folder = work / "trials" / trial.name
    result = folder.with_suffix(".json")
    if not result.is_file():
        begin = time.perf_counter()
        changes = (trial.data or share_pairs(work), *trial.settings)
        options = [part for change in changes for part in ("--set", change)]
        file = f"experiments/{trial.experiment}.py"
        run_verb("train", "--experiment", file, "--run-dir", str(folder), *options)
        steps = [json.loads(line) for line in (folder / "evals.jsonl").open()]
        scores = dict(steps[-1])
        for suite in trial.suites:
            file = str(folder / f"{suite}.json")
            options = ["--data", str(work / "suites"), "--suite", suite, "--json", file]
            run_verb("evaluate", "--run-dir", str(folder), *options)
            scores |= json.loads(Path(file).read_text())["scores"]
        row = {
            "choice": trial.choice,
            "seed": trial.seed,
            "minutes": round((time.perf_counter() - begin) / 60, 1),
            "scores": scores,
            "by_step": steps,
        }
        result.write_text(json.dumps(row))
    return json.loads(result.read_text()) | {"choice": trial.choice, "seed": trial.seed}


def run_finding(name: str, work: Path, workers: int) -> None:
    """Runs all trials of a finding and writes its numbers."""
    trials = list(FINDINGS[name].trials(work))
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0))[:workers]:
        cores.put(core)

    def run(trial: Trial) -> dict[str, Any]:
        core = cores.get()
        try:
            os.sched_setaffinity(0, {core})  # of this thread and the processes that it starts
            row = run_trial(trial, work)
        finally:
            cores.put(core)
        print(f"{trial.name}: heldout MRR {row['scores']['heldout/mrr']:.3f}", flush=True)
        return row

    (work / "trials").mkdir(exist_ok=True)
    different = {trial.name: trial for trial in trials}
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, different.values()))
    content = {
        "finding": name,
        "commit": find_commit(REPOSITORY),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python tools/findings.py --work WORK --data DATA --only {name}",
        "rows": [run_trial(trial, work) for trial in trials],
    }
    NUMBERS.mkdir(exist_ok=True)
    (NUMBERS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train and score the models of docs/findings.md.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", type=Path, required=True, help="folder of the suites' sets")
    parser.add_argument("--only", nargs="+", choices=FINDINGS, default=list(FINDINGS))
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a core for each")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    make_sets(work, arguments.data)
    for name in arguments.only:
        for make_start in FINDINGS[name].starts:
            make_start(work, arguments.data)
        run_finding(name, work, arguments.workers)


if __name__ == "__main__":
    run_command(main)
