"""Deduplication: duplicates are found, distinct pairs are kept, and order changes nothing."""

import random
from collections import defaultdict

import pytest

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcpt.mining.dedupe import SHINGLE_WORDS, find_duplicates, fingerprint
from jaxcpt.mining.words import digest, fold_words


def shingles(words):
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(count)}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def find(texts, threshold=0.8):
    """Returns {text: (reason, text that is kept)}. Each text is the x of a pair."""
    groups, names = defaultdict(list), {}
    for text in texts:
        pair_id = digest(text)
        names[pair_id] = text
        for key, *record in fingerprint(pair_id, fold_words(text), [text], threshold > 0):
            groups[key].append(tuple(record))
    found = [item for group in groups.values() for item in find_duplicates(group, threshold)]
    return {names[pair_id]: (reason, names[kept]) for pair_id, reason, kept in sorted(found)[::-1]}


def plant(rng, similarity, length):
    """Returns a text and a copy in which words are replaced down to this similarity."""
    words = [f"w{rng.randrange(5000)}" for _ in range(length)]
    copy = list(words)
    for place in rng.sample(range(length), length):
        changed = [*copy[:place], f"n{place}", *copy[place + 1 :]]
        if jaccard(words, changed) < similarity:
            break
        copy = changed
    return words, copy


@pytest.mark.parametrize("length", [60, 150, 400])
def test_near_duplicates_are_found_and_distinct_texts_are_kept(length):
    rng = random.Random(0)
    planted = [plant(rng, 0.8, length) for _ in range(200)]
    assert all(0.8 <= jaccard(*pair) < 0.88 for pair in planted)
    found = find([" ".join(words) for pair in planted for words in pair])
    hits = sum(" ".join(pair[0]) in found or " ".join(pair[1]) in found for pair in planted)
    assert hits / len(planted) >= 0.95
    assert all({reason} == {"near duplicate"} for reason, _ in found.values())
    distinct = [plant(rng, 0.5, length) for _ in range(200)]
    texts = [" ".join(words) for pair in distinct for words in pair]
    assert len(find(texts)) <= 2
    assert find(texts, threshold=0) == {}


def test_one_text_of_each_group_of_near_duplicates_is_kept():
    rng = random.Random(1)
    texts = []
    for _ in range(30):
        words, _ = plant(rng, 0.99, 200)
        for copy in range(5):
            texts.append(" ".join([*words[: 190 + copy], f"c{copy}"]))
    found = find(texts)
    kept = [text for text in texts if text not in found]
    assert len(kept) == 30
    assert all(found[text][1] != text for text in found)


def test_exact_duplicates_are_found_on_either_side():
    """Case, punctuation, white space and the form of letters make no difference."""
    pairs = {b"1" * 16: ("One text.", "Another"), b"2" * 16: ("other", "ONE  text")}
    pairs |= {b"3" * 16: ("one text more", "ﬁne"), b"4" * 16: ("fine!", "quite else")}
    groups = defaultdict(list)
    for pair_id, sides in pairs.items():
        for key, *record in fingerprint(pair_id, *map(fold_words, sides), near=False):
            groups[key].append(tuple(record))
    found = [item for group in groups.values() for item in find_duplicates(group, 0.8)]
    assert sorted(found) == [
        (b"2" * 16, "exact duplicate", b"1" * 16),
        (b"4" * 16, "exact duplicate", b"3" * 16),
    ]


@settings(max_examples=50)
@given(seed=st.integers(0, 10), order=st.randoms(use_true_random=False))
def test_order_changes_no_duplicate(seed, order):
    rng = random.Random(seed)
    texts = [" ".join(words) for _ in range(10) for words in plant(rng, 0.8, 80)] * 2
    expected = find(texts)
    order.shuffle(texts)
    assert find(texts) == expected


def test_thousands_of_different_sketches_in_one_band_are_no_duplicates():
    rng = random.Random(2)
    sketches = [rng.randbytes(126) for _ in range(3000)]
    group = [(digest(str(n)), sketch) for n, sketch in enumerate(sketches)]
    assert list(find_duplicates(group + group, 0.8)) == []
