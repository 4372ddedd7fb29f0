"""Mining text: how documents are cut into pieces, and which pairs are left out."""

from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcpt.errors import UserError
from jaxcpt.mining.raw_document import RawDocument
from jaxcpt.mining.text import TextOptions, check_text_options, cut_pieces, mine_text

PLAIN = TextOptions(piece_chars=(20, 60), pairs_per_document=1000, languages=(), quality=False)
# Words, marks, quotes, every kind of white space, and letters of other scripts.
TEXTS = st.lists(
    st.sampled_from(
        ["one", "two.", "Three!", 'four."', "fünf?", "六。", "x" * 90, " ", "  ", "\n", "\n\n",
         "\t", "\r\n", "\u00a0", "\u2028", "\f", "…", "seven) ", "eight"]
    ),
    max_size=120,
).map(" ".join)  # fmt: skip


def mine(text, options):
    drops = Counter()
    return list(mine_text(RawDocument("d", text), drops, options)), drops


@settings(max_examples=300, deadline=None)
@given(
    text=TEXTS,
    gap=st.integers(0, 3),
    count=st.integers(1, 5),
    lengths=st.tuples(st.integers(1, 50), st.integers(0, 60)),
)
def test_pairs_are_slices_of_their_document(text, gap, count, lengths):
    shortest, longest = lengths[0], sum(lengths)
    options = replace(PLAIN, piece_chars=(shortest, longest), gap=gap, pairs_per_document=count)
    pairs, _ = mine(text, options)
    normal = " ".join(text.split())
    assert len(pairs) <= count
    for pair in pairs:
        for piece in pair:
            assert piece in normal
            assert shortest <= len(piece) <= longest
            assert piece == piece.strip()
        x, y = pair
        assert normal.find(y, normal.find(x) + len(x)) >= 0  # y comes after x.


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, gap=st.integers(0, 3))
def test_no_piece_is_used_twice_and_the_gap_is_exact(text, gap):
    normal, spans = cut_pieces(text, (20, 60))
    pieces = [normal[start:end] for start, end in spans]
    assert "".join(pieces).replace(" ", "") == normal.replace(" ", "")  # Nothing is lost.
    ends = [0, *(end for _, end in spans)]
    assert all(start >= end for (start, _), end in zip(spans, ends, strict=False))
    unique = {piece: place for place, piece in enumerate(pieces)}
    if len(unique) == len(pieces):
        options = replace(PLAIN, piece_chars=(1, 60), gap=gap, pairs_per_document=1000)
        pairs, _ = mine(text, options)
        normal, spans = cut_pieces(text, (1, 60))
        place = {normal[start:end]: index for index, (start, end) in enumerate(spans)}
        if len(place) == len(spans):
            used = [(place[x], place[y]) for x, y in pairs]
            assert all(y - x == gap + 1 for x, y in used)
            assert len({piece for pair in used for piece in pair}) == 2 * len(used)


SENTENCES = [f"Sentence {n} tells of {what}." for n, what in enumerate(["ships", "wool"] * 40)]


def test_sentences_and_paragraphs_stay_whole():
    lines = "A first paragraph\nwrapped by hand. It has two sentences.\n\nA second one.\n"
    normal, pieces = cut_pieces(lines, (1, 40))
    assert [normal[start:end] for start, end in pieces] == [
        "A first paragraph wrapped by hand.",
        "It has two sentences. A second one.",
    ]
    # Without blank lines, each line is a paragraph, and its end is the end of a sentence.
    normal, pieces = cut_pieces("A title\nA first paragraph without end\nA second", (1, 31))
    assert [normal[start:end] for start, end in pieces] == [
        "A title",
        "A first paragraph without end",
        "A second",
    ]


def test_a_copy_with_another_beginning_is_cut_at_the_same_places():
    text = " ".join(SENTENCES)
    pieces = []
    for beginning in ("", "Something else comes first. And more of it, much more of it. "):
        normal, spans = cut_pieces(beginning + text, (60, 400))
        pieces.append({normal[start:end] for start, end in spans})
    assert len(pieces[0] & pieces[1]) >= 0.8 * len(pieces[0])


def test_pairs_over_the_limit_are_left_out_evenly():
    text = "\n".join(f"Line {n} of the long document has words." for n in range(100))
    options = replace(PLAIN, piece_chars=(10, 45), gap=0, pairs_per_document=5)
    pairs, drops = mine(text, options)
    assert [int(x.split()[1]) for x, _ in pairs] == [0, 20, 40, 60, 80]
    assert drops["pair over --pairs-per-document"] == 45


GOOD = "The farmers sold their wool in the town before the winter came over the hills. "


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("12 345 678 90 11 22 33 44 55 66 77 88 99 000 111 222 333 444 555 66.", "of few letters"),
        ("w " * 40 + ".", "of odd word lengths"),
        ("Donaudampfschifffahrtsgesellschaftskapitaen " * 2 + ".", "of odd word lengths"),
        ("spam eggs " * 9 + ".", "that repeats itself"),
    ],
)
def test_the_quality_filter_names_its_reason(bad, reason):
    text = f"{GOOD}\n{bad}"
    options = TextOptions(piece_chars=(60, 88), languages=("en",))
    pairs, drops = mine(text, options)
    assert not pairs
    assert drops[f"pair with a piece {reason}"] == 1
    unfiltered, _ = mine(text, TextOptions(piece_chars=(1, 100), languages=(), quality=False))
    assert unfiltered == [(GOOD.strip(), " ".join(bad.split()))]


def test_a_pair_with_a_short_piece_is_dropped():
    pairs, drops = mine(
        f"{GOOD}\nShort.\n{GOOD}", TextOptions(piece_chars=(60, 80), gap=0, languages=())
    )
    assert not pairs
    assert drops["pair with a piece too short"] == 1


def test_documents_in_other_languages_are_dropped():
    german = "Die Bauern verkauften ihre Wolle in der Stadt, bevor der Winter kam. " * 6
    english = GOOD * 6
    options = {"piece_chars": (60, 100), "quality": False}
    for text, language in ((german, "de"), (english, "en")):
        for wanted in ((), ("de",), ("en",), ("de", "en")):
            pairs, drops = mine(text, TextOptions(languages=wanted, **options))
            kept = not wanted or language in wanted
            assert bool(pairs) == kept
            assert drops["document in another language"] == (not kept)


def test_a_document_without_neighbours_is_counted():
    for text in ("", " \n", "One sentence only."):
        assert mine(text, PLAIN)[1] == {"document with fewer than two pieces": 1}


def test_options_that_are_not_valid_are_refused():
    with pytest.raises(UserError, match=r"--piece-chars 9 3: expected 0 < MIN <= MAX"):
        check_text_options(TextOptions(piece_chars=(9, 3)))
    with pytest.raises(UserError, match=r"--gap -1: must be 0 or more"):
        check_text_options(TextOptions(gap=-1))
    with pytest.raises(UserError, match=r"--pairs-per-document 0: must be 1 or more"):
        check_text_options(TextOptions(pairs_per_document=0))
    with pytest.raises(
        UserError, match=r"--languages: unknown language 'english'; known: all, .*en"
    ):
        check_text_options(TextOptions(languages=("de", "english")))
