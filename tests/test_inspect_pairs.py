"""`jaxcpt inspect` counts what it says: lengths, cut texts, copies, padding and lost pairs."""

import re
from dataclasses import replace

import pytest
from conftest import PAIRS, make_experiment

from jaxcpt.batches import Batches
from jaxcpt.config import Mesh
from jaxcpt.errors import UserError
from jaxcpt.experiments import to_json
from jaxcpt.inspect_pairs import count_copies, describe_lengths, main, show_pairs
from jaxcpt.pair import Pair
from jaxcpt.pairs import TokenizedReader, write_pairs
from jaxcpt.pairs.interface import Encoded, encode_pairs
from jaxcpt.pairs.tokenized import write_about
from jaxcpt.sharding import make_mesh
from jaxcpt.sources import JsonlPairs, TokenizedPairs
from jaxcpt.tokenize_pairs import write_tokens

pytestmark = pytest.mark.usefixtures("as_many_cores_as_devices")


@pytest.fixture
def experiment_file(tmp_path):
    """An experiment with two sources: 40 short pairs; and 10 of these with 30 longer pairs."""
    long_pairs = [Pair(f"{pair.x} again", " ".join([pair.y] * 20)) for pair in PAIRS[40:70]]
    sources = {"short": PAIRS[:40], "long": [*PAIRS[:10], *long_pairs]}
    for name, pairs in sources.items():
        write_pairs(tmp_path / f"{name}.jsonl", pairs)
    experiment = make_experiment(
        tmp_path / "short.jsonl",
        data__train=tuple(JsonlPairs(str(tmp_path / f"{name}.jsonl")) for name in sources),
        data__weights=(3, 1),
        batching__token_dropout=0.25,
    )
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxcpt.experiments import from_json\n"
        f"def experiment(): return from_json({to_json(experiment)!r}, 'here')\n"
    )
    return file


SIDES = [("short", "x"), ("short", "y"), ("long", "x"), ("long", "y")]


def read_rows(printed, title):
    """The cells of the table with this title, row by row."""
    table = printed[printed.index(title) :].split("└")[0]
    rows = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_shows_pairs_lengths_padding_and_examples(experiment_file, capsys, tmp_path):
    files = sorted(tmp_path.iterdir())
    main(["--experiment", str(experiment_file), "--batches", "4", "--examples", "3"])
    out = capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == files
    assert read_rows(out, "Pairs") == [
        ["short.jsonl", "40", "75.0%", "40", "0", "0", "0"],
        ["long.jsonl", "40", "25.0%", "40", "10", "10", "10"],
    ]
    sides = [row[:2] + row[-2:-1] for row in read_rows(out, "Tokens of a text")]
    assert sides == [[f"{n}.jsonl", s, "12" if s == "x" else "24"] for n, s in SIDES]
    assert "long.jsonl: 92.5% of the y texts are longer than tokenizer.y_tokens=24; " in out
    ((name, packed, _, padding, lost),) = read_rows(out, "The first 4 batches")
    assert (name, packed, lost) == ("all sources", "4", "0 of 60")
    assert 0 < float(padding.rstrip("%")) < 50
    assert "token_dropout=0.25 leaves this share of tokens out." in out
    assert len(re.findall(r"^(?:short|long).jsonl, pair \d+$", out, re.MULTILINE)) == 3
    assert len(re.findall(r"^  [xy], \d+ tokens, in row \d+ of cell [0-7]$", out, re.M)) == 6


def test_lengths_are_of_whole_texts(tokenizer):
    """With two delimiters each, the limits of 12 and 24 tokens cut the second and third text."""
    texts = ["w1", PAIRS[0].y, " ".join(p.y for p in PAIRS[:9])]
    whole = [len(tokenizer.processor.encode([text])[0]) + 2 for text in texts]
    unlimited = replace(tokenizer, x_tokens=999, y_tokens=999)
    pairs = encode_pairs([Pair("x", text) for text in texts], unlimited, 0)
    row, told = describe_lengths("mine", "y", pairs, tokenizer)
    classes = [sum(low < n <= high for n in whole) for low, high in ((0, 32), (32, 64), (64, 128))]
    assert row[:6] == ["mine", "y", f"{max(whole)}", *(f"{n / 3:.0%}" for n in classes)]
    cut = [max(n - 24, 0) for n in whole]
    assert row[-2:] == ["24", f"{sum(c > 0 for c in cut) / 3:.1%}"]
    assert told == [
        f"mine: {row[-1]} of the y texts are longer than tokenizer.y_tokens=24; "
        f"{sum(cut) / sum(whole):.1%} of the tokens of all y texts are cut."
    ]
    assert describe_lengths("mine", "x", pairs, tokenizer)[1] == []


def test_tells_of_token_ids_that_may_be_cut(sources, tokenizer, tmp_path, capsys):
    about = write_tokens(sources, tokenizer, tmp_path, 0, 1_000_000, ("", ""))
    write_about(tmp_path, about)
    reader = TokenizedReader(TokenizedPairs(str(tmp_path)))
    batches = Batches(make_experiment(), [reader], tokenizer, make_mesh(Mesh()))
    show_pairs(batches, ["ids"], 100)
    assert "ids: holds token ids; what was cut when they were written is unknown." in (
        capsys.readouterr().out
    )


def test_counts_copies_across_sources():
    pairs = [Encoded([], [(1, 0), (2, 0)]), Encoded([], [(1, 0), (3, 0)])]
    seen = [set(), set(), set()]
    assert count_copies(pairs, seen) == ["0", "1", "0"]
    assert count_copies(pairs[:1], seen) == ["1", "1", "1"]


@pytest.mark.parametrize("option", ["--pairs 0", "--batches 0", "--examples -1"])
def test_refuses_numbers_that_show_nothing(experiment_file, option):
    name, value = option.split()
    with pytest.raises(UserError, match=f"{name}: {value}; must be [01] or more"):
        main(["--experiment", str(experiment_file), name, value])


def test_blank_texts_are_counted(experiment_file, capsys, tmp_path):
    write_pairs(
        tmp_path / "short.jsonl", [*PAIRS[:37], Pair("", "a"), Pair("", "b"), Pair("a", "")]
    )
    main(["--experiment", str(experiment_file), "--batches", "1", "--examples", "0"])
    out = capsys.readouterr().out
    assert "short.jsonl: 2 blank texts of x; remove such pairs.\n" in out
    assert "short.jsonl: 1 blank text of y; remove such pairs.\n" in out
    assert out.count("blank text") == 2
    assert "Examples." not in out
