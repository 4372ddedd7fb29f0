"""Fingerprints of a run's data, tokenizer and model, which its checkpoints record.

In: the data, tokenizer and model of a run. Out: JSON values that every checkpoint stores. When a
checkpoint is read, they are computed again, and a UserError names what differs. The module does not
know the parameters.

The fingerprint of a source of pairs has the number of pairs and a sha256 of texts. The sha256
covers all texts of a source with at most MOST_PAIRS pairs. For a larger source it covers blocks of
pairs that are spread evenly, and the total size of the files is added. A change between these
blocks that keeps the size is therefore not noticed. Names and dates of files are not compared,
because a copy of the data is the same data.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxcpt.config import Experiment
from jaxcpt.errors import UserError
from jaxcpt.files import to_path
from jaxcpt.pair import Pair
from jaxcpt.pairs import EncodedPairs, PairList, Pairs, name_source
from jaxcpt.processes import is_first
from jaxcpt.sources import Data, Source
from jaxcpt.tokenizer import Tokenizer

MOST_PAIRS = 50_000
BLOCKS, PAIRS_PER_BLOCK = 64, 256
COMPUTED = ("compute_dtype", "remat", "cut_residual")
"""Fields of the model that change how embeddings are computed but not their values."""
LIMITS = ("vocabulary", "x_tokens", "y_tokens", "x_prefix", "y_prefix")
HELD_OUT = "held out of "
"""How the name of the held-out pairs begins. Checkpoints and starts.jsonl record it."""
NEGATIVES = 8
"""Most hard negatives of a pair that the fingerprint of token ids covers."""


def describe_model(experiment: Experiment, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fingerprint of what embeddings depend on besides parameters: tokenizer and model."""
    model = {k: v for k, v in asdict(experiment.model).items() if k not in COMPUTED}
    adapter = experiment.adapter and asdict(experiment.adapter)
    return {
        "tokenizer": tokenizer.fingerprint,
        "limits": {name: getattr(tokenizer, name) for name in LIMITS},
        "model": json.loads(json.dumps(model)),
        "adapter": json.loads(json.dumps(adapter)),
    }


def describe_data(
    data: Data, sources: Sequence[EncodedPairs], heldout: Sequence[Pair], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The fingerprints of the data: one for each training source, one for the held-out pairs."""
    opened = list(zip(data.train, sources, strict=True))
    entries = [_describe_source(source, pairs, tokenizer) for source, pairs in opened]
    if data.heldout is not None:
        held = _describe_source(data.heldout, PairList(heldout), tokenizer)
        entries.append(held | {"name": f"{HELD_OUT}{held['name']}"})
    return entries


def _describe_source(source: Source, pairs: EncodedPairs, tokenizer: Tokenizer) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name_source(source), "pairs": len(pairs)}
    digest = hashlib.sha256()
    for block in _choose_blocks(len(pairs)):
        if isinstance(pairs, Pairs):
            for pair in pairs.read(block):
                digest.update(json.dumps([pair.x, pair.y, *pair.negatives]).encode())
        else:  # token ids come with a hash of each text
            for encoded in pairs.read_encoded(block, tokenizer, NEGATIVES):
                kept = [h for h, ids in zip(encoded.hashes, encoded.ids, strict=True) if len(ids)]
                digest.update(repr(kept).encode())
    if len(pairs) > MOST_PAIRS:
        entry["bytes"] = _measure_files(to_path(name_source(source)))
    return entry | {"texts": digest.hexdigest()}


def _choose_blocks(count: int) -> Iterator[range]:
    """Yields ranges of the pairs to hash: all pairs, or blocks from the first pair to the last."""
    if count <= MOST_PAIRS:
        yield from (range(a, min(a + 1024, count)) for a in range(0, count, 1024))
        return
    for block in range(BLOCKS):
        first = (count - PAIRS_PER_BLOCK) * block // (BLOCKS - 1)
        yield range(first, first + PAIRS_PER_BLOCK)


def _measure_files(path: Path) -> int | None:
    """Total bytes of a file, or of the files in a folder; None if the path does not exist."""
    files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else None
    return None if files is None else sum(f.stat().st_size for f in files if f.is_file())


def check_model(meta: Mapping[str, Any], found: Mapping[str, Any], run_dir: Path) -> None:
    """Raises UserError if a checkpoint was trained with another tokenizer or model.

    meta: the checkpoint's facts. found: the result of `describe_model` for the run folder now.
    """
    if (wanted := meta.get("tokenizer")) != found["tokenizer"]:
        raise UserError(
            f"{run_dir / 'tokenizer'}: the checkpoint was trained with another vocabulary "
            f"(sha256 {str(wanted)[:12]}, found {found['tokenizer'][:12]}); put the old one back"
        )
    if "model" not in meta:
        if is_first():
            print(f"{run_dir}: an older version wrote its checkpoint; model and data not checked")
        return
    for part, file in (
        ("limits", "tokenizer/limits.json"),
        ("model", "experiment.json"),
        ("adapter", "experiment.json"),
    ):
        if changed := _compare(meta.get(part), found[part], part):
            raise UserError(
                f"{run_dir / file}: changed since the checkpoint was saved ({changed}); put it back"
            )


def check_data(meta: Mapping[str, Any], found: Sequence[Mapping[str, Any]], accepted: bool) -> None:
    """Raises UserError if a resumed run has other pairs than before, unless that is `accepted`.

    meta: the checkpoint's facts. found: the result of `describe_data` for the pairs now.
    """
    before = meta.get("data")
    if not isinstance(before, list) or before == list(found):
        return
    old = {str(i): entry for i, entry in enumerate(before)}
    new = {str(i): entry for i, entry in enumerate(found)}
    changed = []
    for key in {**old, **new}:
        entry = new.get(key) or old[key]
        if differs := _compare(old.get(key), new.get(key), str(entry.get("name"))):
            changed.append(differs)
    text = "; ".join(changed)
    if not accepted:
        raise UserError(
            f"data changed since the last checkpoint ({text}); put it back, or go on with "
            "--accept-changed-data"
        )
    if is_first():
        print(f"going on with changed data ({text})")


def _compare(before: Any, now: Any, name: str) -> str:
    """A text `name.field: before -> now` for all leaves that differ; empty if none differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [_compare(before.get(k), now.get(k), f"{name}.{k}") for k in {**before, **now}]
        return "; ".join(part for part in parts if part)
    return "" if before == now else f"{name}: {_show(before)} -> {_show(now)}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 20 else f"{text[:16]}..."
