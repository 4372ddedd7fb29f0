"""Inputs and a miner in, a finished dataset folder out: the one Beam pipeline of both tools.

    units -> documents -> pairs -> contaminated ones out -> fingerprints -> duplicates -> shards

It knows no language, no file format and no rule of what a pair is. Everything is written below
`OUTPUT.unfinished`, which takes the name OUTPUT when all of it is there.
"""

import contextlib
import fcntl
import json
import os
import pickle
import shutil
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TextIO
from urllib.parse import urlsplit

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from jaxcpt.errors import UserError
from jaxcpt.files import write_file
from jaxcpt.mining.decontaminate import Index
from jaxcpt.mining.dedupe import find_duplicates, fingerprint
from jaxcpt.mining.documents import Document, Problem, Reading, read_part
from jaxcpt.mining.grouping import GroupInRunner, GroupOnDisk
from jaxcpt.mining.inputs import Mining, Unit, list_units
from jaxcpt.mining.words import digest, split_words
from jaxcpt.mining.write import SPLITS, write_dataset, write_shard

SHARD_BYTES = 64 * 2**20
"""Input per shard; a worker holds one shard's pairs in memory."""
DEATHS = {
    "No space left on device": "the disk is full",
    " requested and ": "the disk is full",  # as NumPy tells of it
    "Channel closed prematurely": "a worker was killed, perhaps for memory; try fewer --workers",
}
FINGERPRINT_EXPANSION = 4
"""Bytes of fingerprints per byte of input, about."""

Miner = Callable[[Document, Counter[str]], Iterator[tuple[str, str] | Problem]]


def mine(
    mining: Mining,
    reading: Reading,
    miner: Miner,
    output: Path,
    runner_arguments: Sequence[str] = (),
    workers: int = 1,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the dataset and returns its card. Raises UserError for what the user can mend."""
    if output.exists():
        raise UserError(f"{output}: exists; remove it or give another --output")
    output = output.absolute()
    units, input_bytes, problems = list_units(mining.inputs, reading)
    try:
        with _claim(output.with_name(output.name + ".unfinished")) as folder:
            if mining.decontaminate:
                Index.build(mining.decontaminate, mining.ngram_words).save(folder / "index")
            shards = mining.shards or max(1, -(-input_bytes // SHARD_BYTES))
            beam_options = _make_beam_options(runner_arguments, workers)
            local = beam_options.view_as(StandardOptions).runner in (None, "DirectRunner")
            job = Job(mining, reading, miner, folder, shards, os.getpid() if local else None)
            places = _write_units(job, units)
            del units  # Beam would hold several copies, which for many small files is much
            _run(job, places, problems, input_bytes, beam_options)
            counts = _count(job, problems)
            card = write_dataset(
                job.dataset, mining.name, mining.version, counts, asdict(mining) | (options or {})
            )
            os.rename(job.dataset, output)
            return card
    except Exception as error:
        for sign, told in DEATHS.items():
            if sign in str(error):
                raise UserError(f"{output}: {told}; nothing was kept of this run") from error
        raise


@contextlib.contextmanager
def _claim(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, which one run has at a time and in the end removes.

    What a killed run left there goes. Its workers may still write, so no folder is used twice.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"{folder}: another run is writing there; wait for it to end") from error
    try:
        for left in folder.glob("run-*"):
            shutil.rmtree(left, ignore_errors=True)
        run = folder / f"run-{uuid.uuid4().hex}"
        for name in ("dataset", "units"):
            (run / name).mkdir(parents=True)
        yield run
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


@dataclass(frozen=True)
class Job:
    """What each worker needs to know."""

    mining: Mining
    reading: Reading
    miner: Miner
    folder: Path
    shards: int
    command: int | None
    """Process of the command, where the workers run beside it."""

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def units(self) -> Path:
        return self.folder / "units.pickle"

    def read_unit(self, place: int) -> Unit:
        with open(self.units, "rb") as file:
            file.seek(place)
            return pickle.load(file)

    def shard_key(self, pair_id: bytes) -> bytes:
        return (int.from_bytes(pair_id[:4]) % self.shards).to_bytes(4)


class MineUnit(beam.DoFn):
    """A unit's records for the shards, its fingerprints on another output; counts into a file."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def process(self, numbered: tuple[int, int]) -> Iterator[Any]:
        number, place = numbered
        if self.job.command:
            os.kill(self.job.command, 0)  # ends a worker whose command was killed
        counts: Counter[str] = Counter()
        for part in self.job.read_unit(place):
            for found in read_part(part, self.job.reading):
                if isinstance(found, Problem):
                    yield self._list(found, counts)
                    continue
                counts["documents read"] += 1
                counts["characters read"] += len(found.text)
                yield from self._mine(found, counts)
        write_file(self.job.folder / "units" / f"{number}.json", json.dumps(counts))

    def _list(self, problem: Problem, counts: Counter[str], what: str = "problem") -> Any:
        counts[f"{what}: {problem.reason}"] += 1
        value = ("list", problem.reason, problem.name, problem.detail)
        return self.job.shard_key(digest(problem.name)), value

    def _mine(self, document: Document, counts: Counter[str]) -> Iterator[Any]:
        mining = self.job.mining
        index = Index.load(self.job.folder / "index") if mining.decontaminate else None
        content = digest(document.text)
        split = choose_split(document, content, mining)
        drops: Counter[str] = Counter()
        for found in self.job.miner(document, drops):
            if isinstance(found, Problem):
                yield self._list(found, counts)
                continue
            x_words, y_words = map(split_words, found)
            if x_words == y_words:
                counts["left out: pair of equal sides"] += 1
                continue
            counts["pairs mined"] += 1
            if index and (hit := index.find(x_words) or index.find(y_words)):
                counts[f"contaminated: {hit[0]}"] += 1
                problem = Problem("contaminated", document.name, f"{hit[0]}: {hit[1]}")
                yield self._list(problem, counts, "dropped")
                continue
            pair_id = digest(content.hex(), *found)
            value = ("pair", pair_id, split, *found, document.name)
            yield self.job.shard_key(pair_id), value
            for key, *record in fingerprint(pair_id, x_words, y_words, mining.near_duplicate > 0):
                yield beam.pvalue.TaggedOutput("fingerprints", (key, tuple(record)))
        counts.update({f"left out: {reason}": n for reason, n in drops.items()})


def choose_split(document: Document, content: bytes, mining: Mining) -> str:
    """By the document's content, or by the module or repository its name tells."""
    group = document.group or content.hex()
    if mining.split_by != "document":
        url = urlsplit(document.name)
        folders = [url.netloc] if url.scheme and url.netloc else document.name.split("/")
        group = "/".join(folders[:2] if mining.split_by == "repository" else folders[:-1])
    share = int.from_bytes(digest(group)[:8]) / 2**64
    return SPLITS[1] if share < mining.heldout_share else SPLITS[0]


def _make_beam_options(runner_arguments: Sequence[str], workers: int) -> PipelineOptions:
    options = PipelineOptions(
        list(runner_arguments),
        direct_num_workers=workers,
        direct_running_mode="multi_processing" if workers > 1 else "in_memory",
        pipeline_type_check=False,  # a DoFn with two outputs has no one type
        allow_unsafe_triggers=True,  # or DirectRunner tries to download an engine; none is used
        default_sdk_harness_log_level="ERROR",
    )
    if runner := options.view_as(StandardOptions).runner:
        try:
            beam.runners.create_runner(runner)
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(f"--runner {runner}: {error}") from None
    if runner in (None, "DirectRunner"):  # others may know options that Beam itself does not
        every = options.get_all_options(retain_unknown_options=True)
        if unknown := sorted(every.keys() - options.get_all_options()):
            raise UserError(f"--{unknown[0]}: no option of Beam; this command's stand before --")
    return options


def _write_units(job: Job, units: Sequence[Unit]) -> list[int]:
    """Where each unit stands in the file that holds them all."""
    places: list[int] = []

    def write(file: IO[bytes]) -> None:
        for unit in units:
            places.append(file.tell())
            pickle.dump(unit, file)

    write_file(job.units, write)
    return places


def _run(
    job: Job,
    places: Sequence[int],
    problems: Sequence[Problem],
    input_bytes: int,
    options: PipelineOptions,
) -> None:
    def group(name: str, buckets: int, smallest: int = 1) -> beam.PTransform:
        if job.command is None:
            return GroupInRunner()
        return GroupOnDisk(job.folder / name, buckets, smallest)

    buckets = max(1, FINGERPRINT_EXPANSION * input_bytes // SHARD_BYTES)
    pipeline = beam.Pipeline(options=options)
    mined = (
        pipeline
        | "Units" >> beam.Create(list(enumerate(places)))
        | "SpreadUnits" >> beam.Reshuffle()
        | "Mine" >> beam.ParDo(MineUnit(job)).with_outputs("fingerprints", main="values")
    )
    duplicates = (
        (mined.fingerprints,)
        | "GroupFingerprints" >> group("fingerprints", buckets, smallest=2)
        | "FindDuplicates" >> beam.FlatMap(_name_duplicates, job)
    )
    others: list[tuple[bytes, tuple[str, ...]]] = [
        (job.shard_key(digest(p.name)), ("list", p.reason, p.name, p.detail)) for p in problems
    ]
    # Every shard is written, also one that no pair falls into.
    others += [(number.to_bytes(4), ()) for number in range(job.shards)]
    _ = (
        (mined.values, duplicates, pipeline | "Listed" >> beam.Create(others))
        | "GroupShards" >> group("shards", job.shards)
        | "WriteShard" >> beam.Map(_write_shard, job)
    )
    with _mute_stderr() as stderr, _show_progress(job, len(places), stderr):
        pipeline.run().wait_until_finish()


def _name_duplicates(group: tuple[bytes, Any], job: Job) -> Iterator[Any]:
    for pair_id, reason, kept in find_duplicates(group[1], job.mining.near_duplicate):
        yield job.shard_key(pair_id), ("drop", pair_id, reason, kept)


def _write_shard(group: tuple[bytes, Any], job: Job) -> None:
    shard = (int.from_bytes(group[0]), job.shards)
    write_shard(job.dataset, job.mining.name, shard, filter(None, group[1]))


@contextlib.contextmanager
def _mute_stderr() -> Iterator[TextIO]:
    """Mutes what Beam's processes write there, errors apart, which are raised; gives the old one.

    A file on a full disk in its place would make a worker hang while it tells of the full disk.
    """
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as stderr, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield stderr
        finally:
            os.dup2(stderr.fileno(), 2)


@contextlib.contextmanager
def _show_progress(job: Job, units: int, stderr: TextIO) -> Iterator[None]:
    """A line on stderr: rewritten every second on a terminal, else a new one every minute."""
    ended = threading.Event()
    start = time.monotonic()
    live = stderr.isatty()

    def show() -> None:
        while not ended.wait(1 if live else 60):
            mined = len(list((job.folder / "units").glob("*.json")))
            written = len(list(job.dataset.glob("report-*.json")))
            line = f"{time.monotonic() - start:.0f} s: mined {mined} of {units} parts, "
            line += f"wrote {written} of {job.shards} shards"
            print(line, end="\r" if live else "\n", file=stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _count(job: Job, problems: Sequence[Problem]) -> Counter[str]:
    """The units' counts; raises UserError when too much was bad or no pair was found."""
    counts = Counter(f"problem: {problem.reason}" for problem in problems)
    for path in (job.folder / "units").iterdir():
        counts.update(json.loads(path.read_text()))
    counts = Counter({what: count for what, count in counts.items() if count})
    reasons = {what: count for what, count in counts.items() if what.startswith("problem: ")}
    bad = sum(reasons.values())
    if bad > job.mining.max_bad_share * (bad + counts["documents read"]):
        told = ", ".join(f"{what.removeprefix('problem: ')} {n}" for what, n in reasons.items())
        raise UserError(
            f"{', '.join(job.mining.inputs)}: {bad} of {bad + counts['documents read']} files or "
            f"records are bad ({told}), above --max-bad-share {job.mining.max_bad_share}"
        )
    if not counts["pairs mined"]:
        told = ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))
        raise UserError(f"{', '.join(job.mining.inputs)}: no pairs found ({told})")
    return counts
