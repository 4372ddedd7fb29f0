"""Damages the files of a run other than checkpoints, files of vectors, and files of data sources.

A case copies correct files, damages one of them, and reads them. A run folder is read by an
Embedder, by a report, and by a training run that resumes at step 6. Vectors are read by a search,
and by the command that fills them. Data sources are read by a training run that resumes. A case
holds if there is an error of one line, or the same result as without damage. `metrics.jsonl` and
`evals.jsonl` are logs without checksums, so only the rows written after the damage must be right.
"""

import contextlib
import hashlib
import io
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torture_seeds as seeds
from torture_damage import damage_file
from torture_runs import Outcome, compare, describe_run, time_limit

from jaxcpt import bad_steps, config, run_lock
from jaxcpt.config import Batching, Checkpoints, Data, Evals, Experiment, Mesh, Model, Optimizer
from jaxcpt.embed import Embedder
from jaxcpt.errors import UserError
from jaxcpt.report import write_report
from jaxcpt.sources import ArrayRecordPairs, JsonlPairs, ParquetPairs, TokenizedPairs
from jaxcpt.train import train
from jaxcpt.vectors import Storage, TextWithId, VectorFolder, fill

STEPS, DAMAGED_AT = 12, 6
SECONDS = 120
LOGS = ("metrics", "evals")
TEXTS = ["red cat", "old bridge 3", "é", ""]
OWN_SUMS = ("checkpoints/", "tfevents", ".partial")
"""Files that are not damaged: other proofs damage them, or jaxcpt never reads them (events)."""


def make_experiment(folder: Path) -> Experiment:
    """A run that reads a data source of each kind of file."""
    train = (
        JsonlPairs(str(folder / "jsonl" / "pairs.jsonl")),
        ParquetPairs(str(folder / "parquet")),
        ArrayRecordPairs(str(folder / "array_record")),
        TokenizedPairs(str(folder / "tokens")),
    )
    return Experiment(
        name="damaged",
        train_steps=STEPS,
        data=Data(train=train, heldout=train[0]),
        tokenizer=config.Tokenizer(
            vocabulary=seeds.make_tokenizer().vocabulary,
            x_tokens=12,
            y_tokens=24,
            model_file=str(folder / "model" / seeds.make_tokenizer().file_name),
        ),
        batching=Batching(pairs_per_batch=8, row_tokens=32),
        model=Model(width=16, layers=1, heads=2, mlp_width=32, compute_dtype="float32"),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=1),
        checkpoints=Checkpoints(every_steps=3, keep=4),
        evals=Evals(every_steps=3),
        mesh=Mesh(data=1),
        log_every_steps=1,
    )


def write_sources(folder: Path) -> None:
    for name in ("jsonl", "parquet", "array_record", "tokens", "model"):
        (folder / name).mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in seeds.ROWS)
    (folder / "jsonl" / "pairs.jsonl").write_text(lines)
    seeds.write_parquet(folder / "parquet")
    seeds.write_array_record(folder / "array_record")
    seeds.make_tokenizer().save(folder / "model")
    seeds.write_tokens(folder / "tokens", seeds.make_tokenizer())


def forget_later_steps(run_dir: Path) -> None:
    """Makes the run look as if it had been killed after step 6, with its lock still there."""
    for step in range(DAMAGED_AT + 3, STEPS + 1, 3):
        shutil.rmtree(run_dir / "checkpoints" / str(step))
        (run_dir / "checkpoints" / f"{step}.sha256.json").unlink()
    bad_steps.record(run_dir, 2, {"loss": float("nan"), "gradient_norm": float("inf")}, range(8))
    gone = replace(run_lock.describe_self(), pid=2**22 + 1, held=True)
    lock = f"{run_lock.PREFIX}{7:020}-0a0b0c0d{run_lock.SUFFIX}"
    (run_dir / lock).write_text(json.dumps(asdict(gone)))


def read_quietly(read: Callable[[], Any]) -> Any:
    """Returns the result of `read`, or the text of its error. Raises AssertionError for an error
    that a user should not see."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            with time_limit(SECONDS):
                return read()
        except (UserError, OSError) as refusal:  # `run_command` shows both in one line
            return f"refused: {' '.join(str(refusal).split())}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"{type(error).__name__}: {str(error)[:300]}") from error


@dataclass
class Bench:
    """The correct files, and the results of reading them."""

    folder: Path
    experiment: Experiment
    whole: dict[str, Any]
    embedded: np.ndarray

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def train(self) -> list[str]:
        """Resumes the run. Returns what differs from the undisturbed run."""
        train(self.experiment, self.run_dir, self.run_dir)
        return compare_runs(self.whole, describe_run(self.run_dir))

    def read(self) -> list[str]:
        embedder = Embedder.load(self.run_dir)
        # A changed compute dtype in experiment.json is allowed, and it rounds differently.
        same = np.allclose(embedder.embed(TEXTS, "x"), self.embedded, atol=0.05)
        return [] if same else ["other embeddings"]

    def report(self) -> list[str]:
        write_report(self.run_dir)
        return []


def compare_runs(whole: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Returns what differs. More files are allowed, and other rows from before the damage."""
    kept = [dict(run) for run in (whole, found)]
    for run in kept:
        run.pop("files")
        for log in LOGS:
            run[log] = [row for row in run[log] if row["step"] > DAMAGED_AT]
    return compare(*kept)


def prepare(folder: Path) -> Bench:
    """Trains the run, and leaves it as if it had been killed after step 6."""
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    work = folder / "work"
    work.mkdir(parents=True)
    write_sources(work)
    experiment, run_dir = make_experiment(work), work / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        train(experiment, run_dir, run_dir)
    whole = describe_run(run_dir)
    forget_later_steps(run_dir)
    shutil.copytree(work, folder / "good")
    embedded = Embedder.load(run_dir).embed(TEXTS, "x")
    return Bench(work, experiment, whole, embedded)


def list_targets(folder: Path, parts: tuple[str, ...]) -> list[Path]:
    files = (path for part in parts for path in sorted((folder / part).rglob("*")))
    return [p for p in files if p.is_file() and not any(mark in str(p) for mark in OWN_SUMS)]


def run_case(bench: Bench, parts: tuple[str, ...], readers: list[str], rng: random.Random) -> str:
    """Damages a file and lets each reader read it. Returns the outcome; a failure begins with
    `WRONG`."""
    shutil.rmtree(bench.folder)
    shutil.copytree(bench.folder.parent / "good", bench.folder)
    path = rng.choice(list_targets(bench.folder, parts))
    told = damage_file(path, rng)
    outcomes = set()
    for reader in readers:
        try:
            outcome = read_quietly(getattr(bench, reader))
        except AssertionError as error:
            outcome = [str(error)]
        if isinstance(outcome, list) and outcome:
            name = path.relative_to(bench.folder)
            return f"WRONG: {name}: {told}: {reader}: {'; '.join(outcome)}"
        outcomes.add("refused" if outcome else "harmless")
    return "refused" if "refused" in outcomes else "harmless"


def embed_by_hash(texts: Any) -> np.ndarray:
    """A vector for each text, which depends only on the text."""
    sums = [np.frombuffer(hashlib.sha256(t.encode()).digest(), np.uint8) for t in texts]
    return np.asarray(sums, np.float32) / 16


def fill_vectors(folder: Path) -> VectorFolder:
    texts = (TextWithId(f"d{i}", f"text {i}") for i in range(100))
    return fill(folder, {"model": "a", "documents": 100}, texts, embed_by_hash, Storage(), 30)


def read_vectors(opened: VectorFolder) -> tuple[bytes, list[str]]:
    return b"".join(shard.tobytes() for shard in opened.shards()), list(opened.ids())


def torture_vectors(rng: random.Random, cases: int, folder: Path) -> Counter[str]:
    good, work = folder / "good", folder / "work"
    seen: Counter[str] = Counter()
    with contextlib.redirect_stdout(io.StringIO()):
        whole = read_vectors(fill_vectors(good))
    for _ in range(cases):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work)
        path = rng.choice(sorted(work.iterdir()))
        told = damage_file(path, rng)
        for read in (lambda: VectorFolder.open(work), lambda: fill_vectors(work)):
            try:
                found = read_quietly(lambda read=read: read_vectors(read()))  # type: ignore[misc]
            except AssertionError as error:
                found = str(error)
            if isinstance(found, str) and found.startswith("refused"):
                seen["refused"] += 1
            elif found == whole:
                seen["harmless"] += 1
            else:
                seen[f"WRONG: {path.name}: {told}: {str(found)[:200]}"] += 1
    return seen


def fuzz_vectors(seed: int, cases: int) -> list[str]:
    """Damages only vectors. Returns the failures."""
    with tempfile.TemporaryDirectory() as scratch:
        seen = torture_vectors(random.Random(seed), cases, Path(scratch))
    return sorted(outcome for outcome in seen if outcome.startswith("WRONG"))


def torture(seed: int, cases: int) -> Outcome:
    """Damages the run folder in 40 % of the cases, data sources in 30 %, and vectors in 30 %."""
    rng = random.Random(seed)
    run_lock.WATCH_SECONDS, run_lock.UNREADABLE_SECONDS = 3.0, 1.0  # for a damaged lock
    seen: Counter[str] = Counter()
    of_sources, of_vectors = round(0.3 * cases), round(0.3 * cases)
    with tempfile.TemporaryDirectory() as scratch:
        bench = prepare(Path(scratch, "run"))
        for _ in range(cases - of_sources - of_vectors):
            seen[run_case(bench, ("run",), ["read", "report", "train"], rng)] += 1
        for _ in range(of_sources):
            parts = ("jsonl", "parquet", "array_record", "tokens")
            seen[run_case(bench, parts, ["train"], rng)] += 1
        seen += torture_vectors(rng, of_vectors, Path(scratch, "vectors"))
    failures = sorted(outcome for outcome in seen if outcome.startswith("WRONG"))
    note = f"{seen['refused']} refused, {seen['harmless']} harmless"
    return Outcome(cases=cases, failures=failures, note=note)
