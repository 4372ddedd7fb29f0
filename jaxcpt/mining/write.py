"""Writes mined pairs as a dataset.

In: the mined pairs of one shard. Out: its ArrayRecord files. Then in: all shards. Out: a dataset,
which is a tensorflow-datasets folder with the features x, y and source, and with a data card. A
shard here is one file of each split. The dataset records no time, no host and no number of workers,
so the same input gives the same bytes. This module does not know how pairs were mined.
"""

import importlib.metadata
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from jaxcpt.files import hash_file, write_file

SPLITS = ("train", "heldout")
SAMPLES = 10
LISTED = "dropped"
PACKAGES = (
    "jaxcpt",
    "apache-beam",
    "array_record",
    "py3langid",
    "pyarrow",
    "rensa",
    "resiliparse",
    "tensorflow-datasets",
    "tree-sitter",
    "tree-sitter-go",
    "tree-sitter-java",
    "tree-sitter-javascript",
    "tree-sitter-php",
    "tree-sitter-python",
    "tree-sitter-ruby",
    "warcio",
)


def serialize(x: str, y: str, source: str) -> bytes:
    """Returns a tf.train.Example with its features in a fixed order. The order of tfds varies."""
    feature = {
        name: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[text.encode()]))
        for name, text in (("x", x), ("y", y), ("source", source))
    }
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def write_shard(folder: Path, name: str, shard: tuple[int, int], values: Iterable[tuple]) -> None:
    """Writes one shard of each split, a list of the items that were dropped, and a report.

    shard: (number, count). values: ("pair", id, split, x, y, source),
    ("drop", id, reason, id of the pair that is kept) and ("list", reason, name, detail), in any
    order. The pairs are written in the order of their ids.
    """
    number, count = shard
    suffix = f"{number:05d}-of-{count:05d}"
    pairs, drops, listed = _apply_drops(values)
    lines = [
        json.dumps({"reason": reason, "name": where, "detail": detail}, ensure_ascii=False)
        for reason, where, detail in listed
    ]
    (folder / LISTED).mkdir(exist_ok=True)
    list_file = f"{LISTED}/{LISTED}-{suffix}.jsonl"
    write_file(folder / list_file, "".join(line + "\n" for line in lines))
    report: dict[str, Any] = {"drops": drops, "rows": {}, "bytes": {}, "sha256": {}}
    report["sha256"][list_file] = hash_file(folder / list_file)
    for split in SPLITS:
        rows = [pair for at, *pair in pairs.values() if at == split]
        file = f"{name}-{split}.array_record-{suffix}"
        # With group_size 1, each record can be read without its neighbours.
        writer = ArrayRecordWriter(os.fspath(folder / file), "group_size:1")
        size = 0
        for row in rows:
            example = serialize(*row)
            size += len(example)
            writer.write(example)
        writer.close()
        report["rows"][split], report["bytes"][split] = len(rows), size
        report["sha256"][file] = hash_file(folder / file)
    report["samples"] = [
        {"id": pair_id.hex(), "split": split, "x": x, "y": y, "source": source}
        for pair_id, (split, x, y, source) in list(pairs.items())[:SAMPLES]
    ]
    report["lengths"] = {
        side: Counter(len(pair[place]).bit_length() for pair in pairs.values())
        for place, side in ((1, "x"), (2, "y"))
    }
    write_file(folder / f"report-{suffix}.json", json.dumps(report, sort_keys=True))


def _apply_drops(
    values: Iterable[tuple],
) -> tuple[dict[bytes, tuple], Counter[str], list[tuple[str, str, str]]]:
    """Returns the remaining pairs by id, the number of drops by reason, and the list entries."""
    by_kind: dict[str, list[tuple]] = {"pair": [], "drop": [], "list": []}
    for kind, *value in values:
        by_kind[kind].append(tuple(value))
    reasons = {}
    for pair_id, reason, kept_id in sorted(by_kind["drop"], reverse=True):
        reasons[pair_id] = (reason, kept_id.hex())
    pairs: dict[bytes, tuple] = {}
    drops: Counter[str] = Counter()
    listed = sorted(by_kind["list"])
    for pair_id, *pair in sorted(by_kind["pair"]):
        reason, kept_id = reasons.get(pair_id, ("", ""))
        if pair_id in pairs:
            reason, kept_id = "exact duplicate", pair_id.hex()
        if reason:
            drops[reason] += 1
            listed.append((reason, pair[-1], f"repeats pair {kept_id}"))
        else:
            pairs[pair_id] = tuple(pair)
    return pairs, drops, listed


def write_dataset(
    folder: Path, name: str, version: str, counts: Counter[str], options: dict[str, Any]
) -> dict[str, Any]:
    """Turns the shards in `folder` into a dataset. Writes its data card, and returns it."""
    paths = sorted(folder.glob("report-*.json"))
    reports = [json.loads(path.read_text()) for path in paths]
    sums = {file: sha for report in reports for file, sha in report["sha256"].items()}
    rows = {split: [report["rows"][split] for report in reports] for split in SPLITS}
    for split in [split for split, shards in rows.items() if not any(shards)]:
        del rows[split]  # tfds would call the size of an empty split unknown
        for file in [file for file in sums if file.startswith(f"{name}-{split}.")]:
            del sums[file]
            (folder / file).unlink()
    card = {
        "name": name,
        "version": version,
        "options": options,
        "counts": dict(sorted(counts.items())),
        "dropped": dict(_sum(report["drops"] for report in reports)),
        "pairs": {split: sum(shards) for split, shards in rows.items()},
        "length_histograms": {
            side: _format_ranges(_sum(report["lengths"][side] for report in reports))
            for side in ("x", "y")
        },
        "versions": dict(_list_versions()),
        "sha256": sums,
        "samples": sorted(
            (sample for report in reports for sample in report["samples"]),
            key=lambda sample: sample["id"],
        )[:SAMPLES],
    }
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=name,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(
            {feature: tfds.features.Text() for feature in ("x", "y", "source")}
        ),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=shards,
                num_bytes=sum(report["bytes"][split] for report in reports),
                filename_template=template.replace(split=split),
            )
            for split, shards in rows.items()
        ],
        version=version,
        description="Pairs mined by jaxcpt; see data_card.md.",
        check_data=False,  # the check would need TensorFlow
    )
    write_file(folder / "data_card.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_file(folder / "data_card.md", "\n".join(_format_markdown(card)) + "\n")
    for path in paths:
        path.unlink()
    return card


def _sum(parts: Iterable[dict[str, int]]) -> list[tuple[str, int]]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return sorted(total.items())


def _format_ranges(histogram: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Turns bit lengths into ranges such as '128-255', shortest first."""
    bits = sorted((int(bit), count) for bit, count in histogram)
    return {f"{1 << bit >> 1}-{(1 << bit) - 1}": count for bit, count in bits}


def _list_versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed as a package"


def _format_markdown(card: dict[str, Any]) -> Iterator[str]:
    def table(title: str, head: str, rows: dict[str, Any]) -> Iterator[str]:
        yield from ("", f"## {title}", "", f"| {head} | |", "| --- | ---: |")
        for key, value in rows.items():
            yield f"| {key} | {value:,} |" if isinstance(value, int) else f"| {key} | {value} |"

    yield f"# {card['name']} {card['version']}"
    yield from table("Pairs", "split", card["pairs"])
    yield from table("Read and left out", "what", card["counts"])
    yield from table("Duplicates", "kind", card["dropped"])
    yield f"\nThe folder `{LISTED}/` lists the names of items that were left out."
    for side, histogram in card["length_histograms"].items():
        yield from table(f"Characters of {side}", "characters", histogram)
    yield from table("Options", "option", {k: f"`{v}`" for k, v in card["options"].items()})
    yield from table("Versions", "package", card["versions"])
    yield from table("sha256", "file", card["sha256"])
    yield "\n## Random samples"
    for sample in card["samples"]:
        yield f"\n{sample['split']}, from `{sample['source']}`\n"
        for text in (sample["x"], sample["y"]):
            yield from ("".join(f"    {line}\n" for line in text.splitlines()),)
