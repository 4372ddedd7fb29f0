"""Feeds damaged and hostile input to every reader of pairs, tokenizers and experiments.

Each fuzz is a function `(seed, count) -> failures`. A case holds if it ends with a result or with a
UserError of one line, within SECONDS. The same seed gives the same cases.
"""

import contextlib
import gzip
import json
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torture_seeds as seeds
from torture_damage import change_leaf, damage, make_value

from jaxcpt.beir import read_task
from jaxcpt.checks import validate
from jaxcpt.documents import read_documents
from jaxcpt.errors import UserError
from jaxcpt.experiments import apply_overrides, from_json, to_json
from jaxcpt.lines import read_quoted, read_tsv
from jaxcpt.pairs import PAIRS_AT_ONCE, Pairs, TokenizedReader, find_source, open_source
from jaxcpt.sources import ArrayRecordPairs, BeirPairs, ParquetPairs, Source, TokenizedPairs
from jaxcpt.tokenizer import Tokenizer, read_model

SECONDS = 10.0
"""Limit of a case in seconds of processor time, so that a busy machine does not fail a case."""

Case = Callable[[], Any]


def run_cases(name: str, cases: Iterator[tuple[str, Case]]) -> list[str]:
    """Runs the cases. Returns a line for each case that fails, with its input."""
    failures = []
    for given, case in cases:
        start = time.process_time()
        try:
            case()
        except UserError as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                failures.append(f"{name}: {given}: not one short line: {str(error)[:200]!r}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            place = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(f"{name}: {given}: {error!r:.200} at {place.filename}:{place.lineno}")
        if (took := time.process_time() - start) > SECONDS:
            failures.append(f"{name}: {given}: took {took:.0f} s")
    return failures


def read_every_pair(source: Source) -> None:
    pairs = open_source(source, Path("nowhere"), 0)
    assert isinstance(pairs, Pairs)
    pairs.has_negatives()
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        for pair in pairs.read(range(start, min(start + PAIRS_AT_ONCE, len(pairs)))):
            (pair.x + pair.y + pair.source + "".join(pair.negatives)).encode()


def fuzz_overrides(seed: int, count: int) -> list[str]:
    """Fuzzes `--set PATH=VALUE` with unusual paths and values."""
    rng = random.Random(seed)
    experiment = seeds.make_experiment()
    paths = [
        *seeds.list_fields(experiment),
        "data.train.²",
        "data.train.0",
        "data.train.-1",
        "",
        ".",
    ]
    paths += ["data.train.0.path", "data.train.99999999999999999999", "x" * 3000, "model.\ud800"]
    texts = ["10**400", "1" + "0" * 400, "9" * 5000, "nan", "1e400", "-1", "0", "None", "()", "{}"]
    texts += ["(" * 300, "[" * 5000, "{1: 2}", "{'type': []}", "b'a'", "1j", "'\\ud800'", "'a\\0b'"]
    texts += [
        "\udce9",
        "1_0",
        "True",
        "1 if",
        "-" * 5000 + "1",
        "{*()}",
        "...",
        "[[]]",
        "'query: '",
    ]

    def cases() -> Iterator[tuple[str, Case]]:
        for _ in range(count):
            value = rng.choice(texts) if rng.random() < 0.6 else repr(make_value(rng))
            override = f"{rng.choice(paths)}={value}"

            def case(override: str = override) -> None:
                changed = validate(apply_overrides(experiment, [override]))
                assert from_json(to_json(changed), "again") == changed
                seeds.count_parameters(changed)

            yield ascii(override)[:100], case

    return run_cases("overrides", cases())


def fuzz_experiments(seed: int, count: int) -> list[str]:
    """Fuzzes experiment.json with changed entries and changed bytes."""
    rng = random.Random(seed)
    whole = to_json(seeds.make_experiment())

    def cases() -> Iterator[tuple[str, Case]]:
        for _ in range(count):
            if rng.random() < 0.7:
                tree = json.loads(whole)
                told = ", ".join(change_leaf(tree, rng) for _ in range(rng.choice([1, 1, 3])))
                text = json.dumps(tree)
            else:
                told, content = damage(whole.encode(), rng)
                text = rng.choice([content.decode(errors="replace"), "[" * 100_000, "9" * 5000])

            def case(text: str = text) -> None:
                seeds.count_parameters(from_json(text, "experiment.json"))

            yield told, case

    return run_cases("experiment.json", cases())


def fuzz_jsonl(seed: int, count: int) -> list[str]:
    """Fuzzes JSONL files of pairs and of texts to embed."""

    def content(rng: random.Random) -> bytes:
        rows = []
        for number in range(rng.randrange(1, 6)):
            row = {"x": f"a {number}", "y": "b é", "negatives": ["c"], "source": 3, "_id": "d"}
            for _ in range(rng.choice([0, 1, 2])):
                change_leaf(row, rng)
            rows.append(json.dumps(row, ensure_ascii=rng.random() < 0.7).encode(errors="replace"))
        return b"\n".join(rows)

    def read(path: Path) -> None:
        for side in ("x", "y"):
            with contextlib.suppress(UserError):
                list(read_documents(path, side))  # type: ignore[arg-type]
        read_every_pair(find_source(str(path)))

    return _fuzz_files("jsonl", ("a.jsonl", "a.JSONL", "a.jsonl.gz"), content, read, seed, count)


def fuzz_tsv(seed: int, count: int) -> list[str]:
    """Fuzzes tab-separated files, with and without quotes."""

    def content(rng: random.Random) -> bytes:
        fields = ["label", "text", "1", '"', "a\tb", "", "\r", "\u2028", "9" * 400, "x" * 200_000]
        rows = ["\t".join(rng.choices(fields, k=rng.choice([1, 2, 2, 2, 3]))) for _ in range(4)]
        return "\n".join(["label\ttext", *rows]).encode()

    def read(path: Path) -> None:
        with contextlib.suppress(UserError):
            list(read_quoted(path))
        list(read_tsv(path, ("label", "text")))

    return _fuzz_files("tsv", ("a.tsv", "a.tsv.gz"), content, read, seed, count)


def _fuzz_files(
    name: str,
    files: Sequence[str],
    make: Callable[[random.Random], bytes],
    read: Callable[[Path], None],
    seed: int,
    count: int,
) -> list[str]:
    """Fuzzes generated files. In half of the cases the content is damaged, and some are gzipped."""
    rng = random.Random(seed)

    def cases(folder: Path) -> Iterator[tuple[str, Case]]:
        for number in range(count):
            told, content = "made", make(rng)
            if rng.random() < 0.5:
                told, content = damage(content, rng)
            path = folder / f"{number} {rng.choice(files)}"
            if path.suffix == ".gz":
                content = gzip.compress(content, 1)
                if rng.random() < 0.3:
                    more, content = damage(content, rng)
                    told += f"; gzip: {more}"
            path.write_bytes(content)
            yield f"case {number} {path.name}: {told}", partial(read, path)
            path.unlink()

    with tempfile.TemporaryDirectory() as folder:
        return run_cases(name, cases(Path(folder)))


def _fuzz_folder(
    name: str, write: Callable[[Path], Any], read: Callable[[Path], None], seed: int, count: int
) -> list[str]:
    """Fuzzes a folder: in each case one file is damaged, replaced or removed."""
    rng = random.Random(seed)

    def cases(folder: Path) -> Iterator[tuple[str, Case]]:
        write(folder)
        good = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for number in range(count):
            path = rng.choice(list(good))
            told, content = damage(good[path], rng)
            draw = rng.random()
            if draw < 0.05:
                told, content = "replaced", good[rng.choice(list(good))]
            elif path.suffix == ".json" and draw < 0.6:
                tree = json.loads(good[path])
                told = change_leaf(tree, rng)
                content = json.dumps(tree).encode()
            path.write_bytes(content)
            if draw > 0.95:
                told = "removed"
                path.unlink()
            yield f"case {number} {path.relative_to(folder)}: {told}", lambda: read(folder)
            path.write_bytes(good[path])

    with tempfile.TemporaryDirectory() as folder:
        return run_cases(name, cases(Path(folder)))


def fuzz_beir(seed: int, count: int) -> list[str]:
    """Fuzzes search tasks in BEIR layout, read as pairs and as tasks to score."""

    def read(folder: Path) -> None:
        with contextlib.suppress(UserError):
            read_task(folder, "train")
        read_every_pair(BeirPairs(str(folder), negatives="hard.tsv"))

    return _fuzz_folder("beir", seeds.write_beir, read, seed, count)


def fuzz_parquet(seed: int, count: int) -> list[str]:
    """Fuzzes Parquet files with page checksums."""

    def read(folder: Path) -> None:
        read_every_pair(ParquetPairs(str(folder)))

    return _fuzz_folder("parquet", seeds.write_parquet, read, seed, count)


def fuzz_array_record(seed: int, count: int) -> list[str]:
    """Fuzzes ArrayRecord files of JSON objects and tf.train.Examples, some with odd records."""

    def read(folder: Path) -> None:
        read_every_pair(ArrayRecordPairs(str(folder)))

    def cases(folder: Path) -> Iterator[tuple[str, Case]]:
        rng = random.Random(seed)
        for number in range(count // 2):
            told, record = seeds.make_record(rng)
            path = folder / f"{number}.array_record"
            seeds.write_records(path, [record])
            source = ArrayRecordPairs(str(path))
            yield f"case {number}: {told}", partial(read_every_pair, source)
            path.unlink()

    failures = _fuzz_folder(
        "array_record", seeds.write_array_record, read, seed, count - count // 2
    )
    with tempfile.TemporaryDirectory() as folder:
        return failures + run_cases("array_record", cases(Path(folder)))


def fuzz_token_ids(seed: int, count: int) -> list[str]:
    """Fuzzes folders of `jaxcpt tokenize-pairs`. A damaged folder must not give other ids."""
    tokenizer = seeds.make_tokenizer()

    def read_ids(folder: Path) -> list[list[int]]:
        reader = TokenizedReader(TokenizedPairs(str(folder)))
        reader.check(tokenizer, 1)
        pairs = reader.read_encoded(range(len(reader)), tokenizer, 1)
        return [ids.tolist() for pair in pairs for ids in pair.ids]

    with tempfile.TemporaryDirectory() as folder:
        seeds.write_tokens(Path(folder), tokenizer)
        whole = read_ids(Path(folder))

    def read(folder: Path) -> None:
        assert read_ids(folder) == whole, "other ids were read"

    def write(folder: Path) -> None:
        seeds.write_tokens(folder, tokenizer)

    return _fuzz_folder("token_ids", write, read, seed, count)


def fuzz_tokenizers(seed: int, count: int) -> list[str]:
    """Fuzzes tokenizer folders of runs, of both kinds, and tokenizer files that a user names."""
    texts = ["red cat 7", "", "é 日本 \U0001f600", "<s> [SEP] ▁", "a" * 3000]

    def read(folder: Path) -> None:
        tokenizer = Tokenizer.load(folder)
        tokenizer = replace(tokenizer, x_tokens=min(tokenizer.x_tokens, 64))
        for ids in tokenizer.encode(texts, "x"):
            assert len(ids) <= tokenizer.x_tokens
            assert ids.max() < tokenizer.vocabulary
            tokenizer.decode(ids)
        asdict(read_model(str(folder / tokenizer.file_name), 16, 16, delimiters="own"))

    half = count // 2
    failures = _fuzz_folder("tokenizer", seeds.write_sentencepiece, read, seed, half)
    return failures + _fuzz_folder("tokenizer", seeds.write_hugging_face, read, seed, count - half)


FUZZES: dict[str, Callable[[int, int], list[str]]] = {
    "overrides": fuzz_overrides,
    "experiments": fuzz_experiments,
    "jsonl": fuzz_jsonl,
    "tsv": fuzz_tsv,
    "beir": fuzz_beir,
    "parquet": fuzz_parquet,
    "array_record": fuzz_array_record,
    "token_ids": fuzz_token_ids,
    "tokenizers": fuzz_tokenizers,
}
