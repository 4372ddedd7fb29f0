"""`jaxcpt nli-pairs` makes pairs in both directions, with contradictions as hard negatives."""

import json

import pytest

from jaxcpt import nli_pairs
from jaxcpt.pair import Pair
from jaxcpt.pairs.jsonl import read_pairs

DOG, RUNS = "A dog runs on the beach.", "An animal is outdoors."
ROWS = [
    (DOG, RUNS, "entailment"),
    (DOG, "The dog is asleep.", "contradiction"),
    (DOG, "The dog fetches a stick.", "neutral"),
    (DOG, "A pet moves.", "entailment"),
    (DOG, "A pet is happy.", "-"),
    (DOG, RUNS, "entailment"),
    ("Two men play chess.", "People play a game.", "entailment"),
    ("A bus waits.", "The bus drives.", "contradiction"),
    ("A bus waits.", " ", "entailment"),
]
ASLEEP = ("The dog is asleep.", "There is no dog.")
EXPECTED = [
    Pair(DOG, RUNS, negatives=ASLEEP),
    Pair(RUNS, DOG, negatives=ASLEEP),
    Pair(DOG, "A pet moves.", negatives=ASLEEP),
    Pair("A pet moves.", DOG, negatives=ASLEEP),
    Pair("Two men play chess.", "People play a game."),
    Pair("People play a game.", "Two men play chess."),
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_entailment_and_contradiction_of_both_forms_in_two_files(tmp_path, capsys):
    snli = [{"sentence1": a, "sentence2": b, "gold_label": c, "pairID": "1"} for a, b, c in ROWS]
    number = {"premise": DOG, "hypothesis": ASLEEP[1], "label": 2}
    unknown = {"premise": DOG, "hypothesis": "It rains.", "label": -1}
    files = (
        write_rows(tmp_path / "snli.jsonl", snli),
        write_rows(tmp_path / "other.jsonl", [number, unknown]),
    )
    output = tmp_path / "nli.jsonl"
    nli_pairs.main(["--input", *map(str, files), "--output", str(output)])
    assert list(read_pairs(output)) == EXPECTED
    assert [line.split("  ") for line in map(str.strip, capsys.readouterr().out.splitlines())] == [
        ["11", "lines"],
        ["3", "entailment"],
        ["3", "contradiction"],
        ["1", "neutral"],
        ["2", "no agreement"],
        ["1", "repeated lines"],
        ["1", "lines with a blank sentence"],
        ["2", "pairs without a hard negative"],
        ["1", "contradictions of a premise without an entailment"],
        [f"{output}: 6 pairs"],
    ]


GOOD = {"premise": "a b", "hypothesis": "b", "label": 0}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"premise": "a", "hypothesis": "b"}, "no field 'label'; there are: 'premise', 'hypoth"),
        ({"text": "a"}, "no field 'sentence1'; there are: 'text'"),
        (GOOD | {"label": 3}, "'label' must be entailment, neutral, contradiction or -, or a nu"),
        (
            GOOD | {"label": True},
            "'label' must be entailment, neutral, contradiction or -, or a nu",
        ),
        (GOOD | {"label": "entails"}, "'label' must be entailment, neutral, contradiction or -, "),
        (GOOD | {"label": None}, "'label' must be entailment, neutral, contradiction or -, or a "),
        (GOOD | {"label": [0]}, "'label' must be entailment, neutral, contradiction or -, or a "),
        (GOOD | {"hypothesis": None}, "'hypothesis' must be a text, found None"),
        (GOOD | {"premise": ["a"]}, "'premise' must be a text, found ['a']"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path, refuse, row, line):
    path = write_rows(tmp_path / "nli.jsonl", [GOOD, row])
    said = refuse(nli_pairs, "--input", path, "--output", tmp_path / "out.jsonl")
    assert said.startswith(f"{path}:2: {line}")
    assert not (tmp_path / "out.jsonl").exists()


def test_outputs_and_files_that_cannot_be_used(tmp_path, refuse):
    path = write_rows(tmp_path / "nli.jsonl", [GOOD | {"label": "contradiction"}])
    assert refuse(nli_pairs, "--input", path, "--output", tmp_path / "out.jsonl") == (
        f"{path}: no line is an entailment; nothing was written"
    )
    said = refuse(nli_pairs, "--input", path, "--output", path)
    assert said == f"{path}: exists; remove it or give another --output"
    said = refuse(nli_pairs, "--input", path, "--output", tmp_path / "out.tsv")
    assert said == f"--output {tmp_path / 'out.tsv'}: expected a name that ends in .jsonl"
    gone = tmp_path / "gone.jsonl"
    assert refuse(nli_pairs, "--input", gone, "--output", tmp_path / "o.jsonl").startswith(
        f"{gone}: no such file"
    )
