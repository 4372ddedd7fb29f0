"""The Beam pipeline that all mining commands run.

    units -> documents -> pairs -> decontamination -> fingerprints -> duplicates -> shards

In: inputs and a miner. Out: a finished dataset folder. Everything is written below
`OUTPUT.unfinished`, and the finished dataset in it is renamed to OUTPUT. The module knows no
language and no file format, and it does not know how a miner makes pairs.
"""

import contextlib
import fcntl
import json
import os
import pickle
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from jaxcpt.errors import UserError
from jaxcpt.files import write_file
from jaxcpt.mining.decontaminate import Index
from jaxcpt.mining.dedupe import find_duplicates, fingerprint
from jaxcpt.mining.documents import Reading, read_part
from jaxcpt.mining.grouping import GroupInRunner, GroupOnDisk
from jaxcpt.mining.inputs import Mining, Unit, list_units
from jaxcpt.mining.progress import mute_stderr, show_progress
from jaxcpt.mining.raw_document import LeftOut, Problem, RawDocument
from jaxcpt.mining.words import digest, fold_words
from jaxcpt.mining.write import SPLITS, write_dataset, write_shard

SHARD_BYTES = 64 * 2**20
"""Input bytes for one shard. A worker holds the pairs of one shard in memory."""
FAILURES = {
    "No space left on device": "the disk is full; free some space",
    " requested and ": "the disk is full; free some space",  # NumPy's error for it
    "Channel closed prematurely": "a worker was killed, perhaps for memory; use fewer --workers",
}
"""A part of an error's text, and what it means. Beam hides the type of an error in a worker."""
FINGERPRINT_EXPANSION = 4
"""The approximate ratio of fingerprint bytes to input bytes."""

VALUE, FINGERPRINT = range(2)
"""The kinds of records that MineUnit yields."""

Miner = Callable[[RawDocument, Counter[str]], Iterator[tuple[str, str] | Problem]]


def mine(
    mining: Mining,
    reading: Reading,
    miner: Miner,
    output: Path,
    *,
    runner_arguments: Sequence[str] = (),
    workers: int = 1,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the dataset to `output` and returns its data card.

    runner_arguments: options for Beam. options: the command's own options, for the data card.
    Raises UserError for a mistake of the user, a full disk or a killed worker.
    """
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
            job = Job(
                mining=mining,
                reading=reading,
                miner=miner,
                folder=folder,
                shards=shards,
                command=os.getpid() if local else None,
            )
            offsets = _write_units(job, units)
            del units  # a list of many small files takes much memory
            _run_pipeline(job, offsets, problems, input_bytes, beam_options)
            counts = _sum_counts(job, problems)
            card = write_dataset(
                job.dataset, mining.name, mining.version, counts, asdict(mining) | (options or {})
            )
            os.rename(job.dataset, output)
            return card
    except Exception as error:
        for sign, meaning in FAILURES.items():
            if sign in str(error):
                raise UserError(f"{output}: {meaning}; this run has left no output") from error
        raise


@contextlib.contextmanager
def _claim(folder: Path) -> Iterator[Path]:
    """A context that yields a new folder inside `folder`, and removes `folder` at the end.

    A lock allows one run at a time. The files of a killed run are removed first. Its workers may
    still be writing, so each run uses a folder with a new name. Raises UserError if the folder
    cannot be written or another run holds the lock.
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
        for killed_run in folder.glob("run-*"):
            shutil.rmtree(killed_run, ignore_errors=True)
        run = folder / f"run-{uuid.uuid4().hex}"
        for name in ("dataset", "units"):
            (run / name).mkdir(parents=True)
        yield run
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker needs to know. Beam sends it to each worker."""

    mining: Mining
    reading: Reading
    miner: Miner
    folder: Path
    shards: int
    command: int | None
    """The process id of the command. None if the workers may run on other machines."""

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def units(self) -> Path:
        return self.folder / "units.pickle"

    def read_unit(self, offset: int) -> Unit:
        with open(self.units, "rb") as file:
            file.seek(offset)
            return pickle.load(file)

    def choose_shard(self, item_id: bytes) -> bytes:
        """Returns the key of the shard in which the item with this id is written or listed."""
        return (int.from_bytes(item_id[:4]) % self.shards).to_bytes(4)

    def list_problem(self, problem: Problem) -> tuple[bytes, tuple[str, ...]]:
        """Returns the key of a shard, and the entry for that shard's list of dropped items."""
        entry = ("list", problem.reason, problem.name, problem.detail)
        return self.choose_shard(digest(problem.name)), entry


class MineUnit(beam.DoFn):
    """Turns a unit into (VALUE, record for a shard) and (FINGERPRINT, record for deduplication).

    Both kinds share one output, because DaskRunner mixes the outputs of a DoFn that has several.
    The counts of the unit are written to a file.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def process(self, numbered: tuple[int, int]) -> Iterator[Any]:
        number, offset = numbered
        if self.job.command:
            os.kill(self.job.command, 0)  # raises an error if the command was killed
        counts: Counter[str] = Counter()
        for part in self.job.read_unit(offset):
            for item in read_part(part, self.job.reading):
                if isinstance(item, Problem):
                    counts[f"problem: {item.reason}"] += 1
                    yield VALUE, self.job.list_problem(item)
                    continue
                if isinstance(item, LeftOut):
                    counts[f"left out: {item.reason}"] += 1
                    continue
                counts["documents read"] += 1
                counts["characters read"] += len(item.text)
                yield from self._mine(item, counts)
        write_file(self.job.folder / "units" / f"{number}.json", json.dumps(counts))

    def _mine(self, document: RawDocument, counts: Counter[str]) -> Iterator[Any]:
        mining = self.job.mining
        index = Index.load(self.job.folder / "index") if mining.decontaminate else None
        content = digest(document.text)
        split = choose_split(document, content, mining)
        drops: Counter[str] = Counter()
        for item in self.job.miner(document, drops):
            if isinstance(item, Problem):
                counts[f"problem: {item.reason}"] += 1
                yield VALUE, self.job.list_problem(item)
                continue
            x_words, y_words = map(fold_words, item)
            if x_words == y_words:
                counts["left out: pair of equal sides"] += 1
                continue
            counts["pairs mined"] += 1
            if index and (hit := index.find(x_words) or index.find(y_words)):
                counts["dropped: contaminated"] += 1
                counts[f"contaminated: {hit[0]}"] += 1
                contamination = Problem("contaminated", document.name, f"{hit[0]}: {hit[1]}")
                yield VALUE, self.job.list_problem(contamination)
                continue
            pair_id = digest(content.hex(), *item)
            value = ("pair", pair_id, split, *item, document.name)
            yield VALUE, (self.job.choose_shard(pair_id), value)
            for key, *record in fingerprint(pair_id, x_words, y_words, mining.near_duplicate > 0):
                yield FINGERPRINT, (key, tuple(record))
        counts.update({f"left out: {reason}": n for reason, n in drops.items()})


def choose_split(document: RawDocument, content: bytes, mining: Mining) -> str:
    """Returns the split of a document, by a hash of its group.

    mining.split_by says what the group is: the document's content (or the long text that it is a
    part of), or the module or repository in the document's name.
    """
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
        pipeline_type_check=False,  # records of two kinds have no single type
        # Without this, DirectRunner tries to download an engine. The pipeline uses no triggers.
        allow_unsafe_triggers=True,
        default_sdk_harness_log_level="ERROR",
    )
    if runner := options.view_as(StandardOptions).runner:
        try:
            beam.runners.create_runner(runner)
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(f"--runner {runner}: {error}") from None
    if runner in (None, "DirectRunner"):  # another runner may have its own options
        every = options.get_all_options(retain_unknown_options=True)
        if unknown := sorted(every.keys() - options.get_all_options()):
            raise UserError(
                f"--{unknown[0]}: not an option of Beam; give this command's own options before --"
            )
    return options


def _write_units(job: Job, units: Sequence[Unit]) -> list[int]:
    """Writes all units to one file. Returns the offset of each."""
    offsets: list[int] = []

    def write(file: IO[bytes]) -> None:
        for unit in units:
            offsets.append(file.tell())
            pickle.dump(unit, file)

    write_file(job.units, write)
    return offsets


def _run_pipeline(
    job: Job,
    offsets: Sequence[int],
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
        | "Units" >> beam.Create(list(enumerate(offsets)))
        | "SpreadUnits" >> beam.Reshuffle()
        | "Mine" >> beam.ParDo(MineUnit(job))
    )
    values = mined | "Values" >> beam.FlatMap(_take, VALUE)
    fingerprints = mined | "Fingerprints" >> beam.FlatMap(_take, FINGERPRINT)
    duplicates = (
        (fingerprints,)
        | "GroupFingerprints" >> group("fingerprints", buckets, smallest=2)
        | "FindDuplicates" >> beam.FlatMap(_name_duplicates, job)
    )
    others: list[tuple[bytes, tuple[str, ...]]] = [job.list_problem(p) for p in problems]
    # Add an empty record for each shard, so that a shard without pairs is written too.
    others += [(number.to_bytes(4), ()) for number in range(job.shards)]
    _ = (
        (values, duplicates, pipeline | "Listed" >> beam.Create(others))
        | "GroupShards" >> group("shards", job.shards)
        | "WriteShard" >> beam.Map(_write_shard, job)
    )
    with mute_stderr() as stderr, show_progress(job.folder, len(offsets), job.shards, stderr):
        pipeline.run().wait_until_finish()


def _take(item: tuple[int, Any], kind: int) -> Iterator[Any]:
    """Yields the record of an item of MineUnit if it is of this kind."""
    if item[0] == kind:
        yield item[1]


def _name_duplicates(group: tuple[bytes, Any], job: Job) -> Iterator[Any]:
    for pair_id, reason, kept_id in find_duplicates(group[1], job.mining.near_duplicate):
        yield job.choose_shard(pair_id), ("drop", pair_id, reason, kept_id)


def _write_shard(group: tuple[bytes, Any], job: Job) -> None:
    shard = (int.from_bytes(group[0]), job.shards)
    write_shard(job.dataset, job.mining.name, shard, filter(None, group[1]))


def _sum_counts(job: Job, problems: Sequence[Problem]) -> Counter[str]:
    """Returns the sum of all units' counts.

    Raises UserError if too many files or records were bad, or if there are no pairs.
    """
    counts = Counter(f"problem: {problem.reason}" for problem in problems)
    for path in (job.folder / "units").iterdir():
        counts.update(json.loads(path.read_text()))
    counts = Counter({what: count for what, count in counts.items() if count})
    reasons = {what: count for what, count in counts.items() if what.startswith("problem: ")}
    bad = sum(reasons.values())
    if bad > job.mining.max_bad_share * (bad + counts["documents read"]):
        listed = ", ".join(f"{what.removeprefix('problem: ')} {n}" for what, n in reasons.items())
        raise UserError(
            f"{', '.join(job.mining.inputs)}: {bad} of {bad + counts['documents read']} files or "
            f"records are bad ({listed}), above --max-bad-share {job.mining.max_bad_share}"
        )
    if counts["pairs mined"] == counts["dropped: contaminated"]:
        found = "no pairs are left" if counts["pairs mined"] else "no pairs found"
        listed = ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))
        raise UserError(f"{', '.join(job.mining.inputs)}: {found} ({listed})")
    return counts
