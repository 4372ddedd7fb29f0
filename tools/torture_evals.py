"""Damages evaluation data and the files that a report reads, and checks what the readers do.

Each case writes small correct files, changes one of them at random, and reads it. A case holds if
the reader gives finite scores or a page, or raises a UserError. It fails for any other error, for a
score that is not finite, and for more than ten seconds of processor time.
"""

import contextlib
import gzip
import io
import json
import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torture_damage import change_line, damage

from jaxcpt.errors import UserError
from jaxcpt.evals import code_search, linear_probe, open_qa, retrieval, sts
from jaxcpt.report import write_comparison, write_report

LONGEST_SECONDS = 10


def embed(texts: Sequence[str], side: str) -> np.ndarray:
    """A unit vector for each text, the same for equal texts."""
    seeds = [sum(text.encode(errors="replace")) for text in texts]
    vectors_nd = np.array([[math.cos(s), math.sin(s), 0.1] for s in seeds], np.float32)
    return vectors_nd.reshape(-1, 3) / np.float32(math.hypot(1, 0.1))


def plant(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode()
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def write_lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


TEXTS = [f"word{i} of some {i % 3}" for i in range(12)]
CORPUS = write_lines(*({"_id": f"d{i}", "title": "T", "text": t} for i, t in enumerate(TEXTS)))
QUERIES = write_lines(*({"_id": f"q{i}", "text": t} for i, t in enumerate(TEXTS[:4])))
QRELS = write_lines("query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t{i % 2 + 1}" for i in range(4)))
TASK = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
FUNCTIONS = [{"docstring_tokens": [f"do{i}"], "code_tokens": [f"f{i}", "("]} for i in range(40)]
LABELLED = write_lines("label\ttext", *(f"{i % 2}\t{text}" for i, text in enumerate(TEXTS)))
PAIRED = write_lines("label\ttext_a\ttext_b", *(f"{i % 2}\t{t}\tword" for i, t in enumerate(TEXTS)))
SIMILAR = write_lines(
    "score\ttext_a\ttext_b", *(f"{i}\t{t}\tword3 of" for i, t in enumerate(TEXTS))
)
LINE = {"name": "a/b", "score": 0.5, "words": None, "published": "x 1", "caveat": "", "before": 1}
RESULT = {"score": 0.5, "text": "t", "source": "s", "right": True}
SUMMARY = {
    "table": [{"name": "this run", "mrr": 0.5}, {"name": "BM25", "mrr": 0.25}],
    "examples": [{"query": "q", "results": [RESULT]}],
    "derived": {"parameters": "3 M", "nested": {"a": [1, {"b": 2}]}},
    "end": {"date": "2026-11-26T05:00:00+00:00", "host_memory_bytes": 10**9},
}
EXPERIMENT = {
    "type": "Experiment",
    "name": "n",
    "train_steps": 9,
    "data": {"train": [{"type": "JsonlPairs", "path": "p"}]},
    "batching": {"pairs_per_batch": 8},
    "model": {"type": "Model", "width": 64, "causal": True},
    "tokenizer": {"x_tokens": 32, "y_tokens": 64},
}
START = {
    "step": 0,
    "date": "2026-11-26T04:00:00+00:00",
    "command": "jaxcpt train",
    "commit": None,
    "versions": {"jax": "0.10.2"},
    "host": "vm",
    "processes": 1,
    "devices": "cpu",
    "data": [{"name": "p", "pairs": 9}],
}
NUMBERS = {"loss": 0.5, "gradient_norm": 1.0, "pairs_per_s": 9.0, "tokens_per_s": 99.0}

Case = tuple[dict[str, str], Callable[[Path], list[dict[str, float]]]]
CASES: dict[str, Case] = {
    "retrieval": (
        {f"retrieval/{name}/{file}": text for name in "ab" for file, text in TASK.items()},
        lambda data: [retrieval.run(embed, data), retrieval.bm25(data)],
    ),
    "code search": (
        {f"code_search/a/{file}": text for file, text in TASK.items()}
        | {"code_search/codesearchnet/go/final/jsonl/test/0.jsonl.gz": write_lines(*FUNCTIONS)},
        lambda data: [code_search.run(embed, data), code_search.bm25(data)],
    ),
    "similarity": (
        {"sts/sts13/a.tsv": SIMILAR, "sts/sts13/b.tsv.gz": SIMILAR},
        lambda data: [sts.run(embed, data), sts.bag_of_words(data)],
    ),
    "probes": (
        {"linear_probe/mr/all.tsv": LABELLED}
        | {f"linear_probe/mrpc/{name}.tsv": PAIRED for name in ("train", "test")},
        lambda data: [
            linear_probe.run(embed, data, folds=2),
            linear_probe.bag_of_words(data, None, 2),
        ],
    ),
    "open questions": (
        {
            f"dpr/{open_qa.PASSAGES}": write_lines(
                "id\ttext\ttitle", *(f"{i}\t{t}\tT{i}" for i, t in enumerate(TEXTS, 1))
            ),
            f"dpr/{open_qa.QUESTIONS.format('nq')}": write_lines(
                "where?\t['word3']", "who?\t['a']"
            ),
        },
        lambda data: [open_qa.run(embed, data), open_qa.bm25(data)],
    ),
    "report": (
        {
            "experiment.json": json.dumps(EXPERIMENT),
            "summary.json": json.dumps(SUMMARY),
            "starts.jsonl": write_lines(START),
            "suites.json": json.dumps({"step": 9, "suites": {"sts": [LINE], "retrieval": [LINE]}}),
            "metrics.jsonl": write_lines(*({"step": i} | NUMBERS for i in range(1, 10))),
            "evals.jsonl": write_lines(*({"step": i, "heldout/mrr": 0.5} for i in (3, 6, 9))),
        },
        lambda run_dir: [
            {"bytes": float(write_report(run_dir).stat().st_size)},
            {"bytes": float(write_comparison([run_dir], run_dir / "both.html").stat().st_size)},
        ],
    ),
}


def run_case(name: str, seed: int) -> str | None:
    """Runs one case. Returns None if it holds, otherwise what happened."""
    files, read = CASES[name]
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        plant(data, files)
        path = data / chance.choice(list(files))
        content = path.read_bytes()
        harm = chance.choice((damage, change_line))
        if path.suffix == ".gz" and chance.random() < 0.8:
            _, changed = harm(gzip.decompress(content), chance)
            path.write_bytes(gzip.compress(changed, mtime=0))
        else:
            path.write_bytes(harm(content, chance)[1])
        start = time.process_time()
        try:
            for scores in read(data):
                if bad := [key for key, value in scores.items() if not math.isfinite(value)]:
                    return f"{bad[0]} is {scores[bad[0]]}"
        except UserError:
            pass
        except Exception as error:  # a user would see this traceback
            return f"{type(error).__name__}: {str(error)[:200]}"
        if (seconds := time.process_time() - start) > LONGEST_SECONDS:
            return f"took {seconds:.0f} s"
    return None


def torture(seed: int, count: int) -> list[str]:
    """Runs `count` cases of each kind in turn. Returns a line for each failure."""
    protocol = code_search.CODESEARCHNET
    code_search.CODESEARCHNET = {10: "codesearchnet", 40: "codesearchnet_10k"}
    failures = []
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for number in range(count):
                name = list(CASES)[number % len(CASES)]
                if (seen := run_case(name, seed + number)) is not None:
                    failures.append(f"{name}, seed {seed + number}: {seen}")
    finally:
        code_search.CODESEARCHNET = protocol
    return failures
