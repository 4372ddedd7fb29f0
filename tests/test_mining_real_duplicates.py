"""Measures how many near duplicates of real pairs are found, by their true Jaccard similarity.

`pytest -s` prints the figures that docs/mining.md shows.
"""

import gzip
import itertools
import json
import random
from collections import Counter, defaultdict
from functools import partial

import pytest
from conftest import DATA, needs_data

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

import tensorflow_datasets as tfds

from jaxcpt.mining.dedupe import SHINGLE_WORDS
from jaxcpt.mining.documents import Reading
from jaxcpt.mining.inputs import Mining
from jaxcpt.mining.pipeline import mine
from jaxcpt.mining.raw_document import RawDocument
from jaxcpt.mining.text import TextOptions, mine_text
from jaxcpt.mining.words import fold_words

TEXT = partial(mine_text, options=TextOptions(pairs_per_document=1000, languages=()))
MOST_CHANGED = 0.05
"""The largest share of changed words in a copy. It gives a Jaccard similarity of about 0.7."""
RARE = 30
"""A shingle is rare if at most this many pairs contain it."""


def read_prose():
    for path in sorted((DATA / "prose").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)


def edit(rng, text, words):
    """Returns a copy in which some words are replaced, removed, or follow an added word."""
    share = rng.uniform(0, MOST_CHANGED)
    lines = []
    for line in text.split("\n"):
        changed = []
        for word in line.split():
            if rng.random() >= share:
                changed.append(word)
            else:
                changed += rng.choice([[rng.choice(words)], [], [rng.choice(words), word]])
        lines.append(" ".join(changed))
    return "\n".join(lines)


def similarities(pairs):
    """Returns {(i, j): Jaccard similarity} with i < j for all pairs that share rare shingles."""
    shingles, holders = [], defaultdict(list)
    for number, (x, y) in enumerate(pairs):
        words = fold_words(x) + fold_words(y)
        shingles.append({tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - 2)})
        for shingle in shingles[-1]:
            holders[shingle].append(number)
    rare = (numbers for numbers in holders.values() if len(numbers) <= RARE)
    shared = Counter(
        (a, b) for numbers in rare for at, b in enumerate(numbers) for a in numbers[:at]
    )
    return {
        (a, b): len(shingles[a] & shingles[b]) / len(shingles[a] | shingles[b])
        for (a, b), count in shared.items()
        if count >= 5
    }


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def mine_with(inputs, output, near_duplicate):
    """Mines the inputs. Returns the set of all pairs."""
    mining = Mining(inputs=inputs, name="mined", near_duplicate=near_duplicate)
    mine(mining, Reading(), TEXT, output, workers=2)
    splits = tfds.builder_from_directory(output).as_data_source().values()
    return {(row["x"].decode(), row["y"].decode()) for rows in splits for row in rows}


@needs_data
def test_recall_and_precision_on_real_pairs(tmp_path):
    rng = random.Random(0)
    originals = list(read_prose())
    words = " ".join(originals).split()
    copies = [edit(rng, text, words) for text in originals]
    inputs = (write(tmp_path / "a.jsonl", originals), write(tmp_path / "b.jsonl", copies))
    found = (pair for text in originals + copies for pair in TEXT(RawDocument("", text), Counter()))
    mined = sorted(set(found))
    kept, unique = (mine_with(inputs, tmp_path / f"near{near}", near) for near in (0.8, 0.0))
    assert kept < unique <= set(mined)
    alike = similarities(mined)
    print(f"\n{len(unique)} pairs without exact duplicates, {len(kept)} kept")
    shares = {}
    for low, high in itertools.pairwise((0.5, 0.6, 0.7, 0.8, 0.9, 1)):
        # A pair that is dropped as an exact duplicate says nothing about near duplicates.
        both = [ab for ab, jaccard in alike.items() if low <= jaccard < high]
        both = [(mined[a], mined[b]) for a, b in both if {mined[a], mined[b]} <= unique]
        gone = sum(not kept.issuperset(ab) for ab in both)
        shares[low] = gone / len(both)
        print(f"Jaccard {low} to {high}: {gone} of {len(both)} found")
    assert shares[0.8] >= 0.95
    assert shares[0.9] >= 0.99
    assert shares[0.5] == 0
    nearest = Counter()
    for (a, b), jaccard in alike.items():
        for pair in (mined[a], mined[b]):
            nearest[pair] = max(nearest[pair], jaccard)
    dropped = unique - kept
    for least in (0.8, 0.75, 0.7, 0.65):
        right = sum(nearest[pair] >= least for pair in dropped)
        print(f"{right} of {len(dropped)} dropped have another with Jaccard {least} or more")
    assert sum(nearest[pair] >= 0.7 for pair in dropped) > 0.95 * len(dropped)
    distinct = {pair for pair in unique if nearest[pair] < 0.6}
    assert len(distinct) > 3000
    assert distinct <= kept
