"""The words that deduplication and decontamination compare, in many scripts."""

import re
import unicodedata

import pytest

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

from hypothesis import given
from hypothesis import strategies as st

from jaxcpt.mining.words import fold_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's  a_b Größe, 12.5%", ["it", "s", "a_b", "grösse", "12", "5"]),
        ("दिन और दीन", ["दिन", "और", "दीन"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("شَمْس هَذَا", ["شَمْس", "هَذَا"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("港は・静か Python3。", ["港", "は", "静", "か", "python3"]),
        ("数4 港口", ["数", "4", "港", "口"]),
        ("น้ำ ฿", ["น\u0e49\u0e4d", "า"]),
        ("İzmir caf\u00e9 cafe\u0301", ["i\u0307zmir", "café", "café"]),
        ("❤\ufe0f 1\ufe0f", ["1"]),
    ],
)
def test_words_keep_their_marks_and_unspaced_scripts_give_letters(text, words):
    assert fold_words(text) == words


@pytest.mark.parametrize(
    "invisible", ["\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u200e", "\ufe0f"]
)
def test_invisible_characters_make_no_other_words(invisible):
    assert fold_words(f"har{invisible}bour and fe{invisible}rry") == ["harbour", "and", "ferry"]


@given(st.text(st.characters(max_codepoint=0x24F, exclude_characters="\u00ad")))
def test_words_in_latin_letters_are_runs_of_word_characters(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A letter such as a dotted capital I folds to one with a mark, which belongs to its word.
    if not any(map(unicodedata.combining, folded)):
        assert fold_words(text) == re.findall(r"\w+", folded)
