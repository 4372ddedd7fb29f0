"""Token ids on disk give the same batches as their texts, and the commands that write them work."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import sentencepiece
from conftest import PAIRS, REPOSITORY, make_experiment
from hypothesis import given
from hypothesis import strategies as st

from jaxcpt import tokenize_pairs, train_tokenizer
from jaxcpt.batches import Batches
from jaxcpt.config import JsonlPairs, Mesh, TokenizedPairs
from jaxcpt.errors import UserError, run_command
from jaxcpt.pairs import TokenizedReader, find_source, open_training, write_pairs
from jaxcpt.pairs.interface import Encoded, hash_text
from jaxcpt.pairs.tokenized import choose_dtype, decode_record, encode_record
from jaxcpt.sharding import make_mesh
from jaxcpt.start import obtain_tokenizer
from jaxcpt.tokenizer import DELIMITERS, Tokenizer, read_model


def run_tool(tool, monkeypatch, capsys, *arguments):
    """Runs a command. Returns its exit code and its last line of output, or its error."""
    code = 0
    try:
        run_command(tool.main, list(map(str, arguments)))
    except SystemExit as left:
        code = left.code
    printed = capsys.readouterr()
    if not code:
        return 0, printed.out.strip().splitlines()[-1]
    assert printed.err.startswith("jaxcpt: ")
    assert printed.err.count("\n") == 1
    return code, printed.err.removeprefix("jaxcpt: ").strip()


@pytest.fixture
def files(tmp_path, tokenizer):
    """A file of pairs, the model file of the tests' tokenizer, and a path for the output."""
    write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "a.model").write_bytes(tokenizer.model)
    return tmp_path / "pairs.jsonl", tmp_path / "a.model", tmp_path / "tokens"


@pytest.fixture
def tokens(files, monkeypatch, capsys):
    pairs, model, output = files
    arguments = ("--pairs", pairs, "--tokenizer", model, "--output", output)
    arguments += ("--shard-pairs", 40, "--x-tokens", 20, "--y-tokens", 60)
    code, said = run_tool(tokenize_pairs, monkeypatch, capsys, *arguments)
    assert code == 0
    assert said.startswith(f"{output}: 90 pairs, ")
    return output


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
@pytest.mark.parametrize("limits", [(12, 24), (20, 32)])
def test_batches_of_token_ids_equal_those_of_the_texts(
    files, tokens, tokenizer, tmp_path, limits, in_memory
):
    cut = replace(tokenizer, x_tokens=limits[0], y_tokens=limits[1])
    made = []
    for source in (JsonlPairs(str(files[0])), TokenizedPairs(str(tokens))):
        experiment = make_experiment(
            data__train=(source,), batching__in_memory=in_memory, batching__negatives=2
        )
        sources = open_training(experiment.data, tmp_path, 0)
        batches = Batches(experiment, sources, cut, make_mesh(Mesh()))
        made.append([batches.make(step) for step in (0, 7)])
    for ours, theirs in zip(jax.tree.leaves(made[0]), jax.tree.leaves(made[1]), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_token_ids_and_texts_can_be_mixed(files, tokens, tokenizer, tmp_path):
    both = (JsonlPairs(str(files[0]), x_prefix="other "), TokenizedPairs(str(tokens)))
    experiment = make_experiment(data__train=both, batching__in_memory=False)
    sources = open_training(experiment.data, tmp_path, 0)
    batch = Batches(experiment, sources, tokenizer, make_mesh(Mesh())).make(0)
    assert np.asarray(batch.present_ngt).sum() == 30


def test_the_same_pairs_give_the_same_bytes(files, tokens, tmp_path, monkeypatch, capsys):
    again = tmp_path / "again"
    arguments = ("--pairs", files[0], "--tokenizer", files[1], "--output", again)
    arguments += ("--shard-pairs", 40, "--x-tokens", 20, "--y-tokens", 60)
    run_tool(tokenize_pairs, monkeypatch, capsys, *arguments)
    first, second = ({p.name: p.read_bytes() for p in f.iterdir()} for f in (tokens, again))
    assert first == second
    records = {f"tokens-0000{n}.array_record" for n in range(3)}
    assert set(first) == records | {"tokens.json", "tokenizer.model"}
    assert find_source(str(tokens)) == TokenizedPairs(str(tokens))


ids = st.lists(st.integers(0, 65_535), min_size=2, max_size=9).map(lambda i: np.array(i, np.int32))


@given(
    st.lists(st.tuples(ids, st.text()), min_size=2, max_size=5), st.sampled_from([65_536, 70_000])
)
def test_records_are_read_back_unchanged(texts, vocabulary):
    pair = Encoded(
        [i for i, _ in texts], [hash_text(text.replace("\ud800", "")) for _, text in texts]
    )
    absent = Encoded([*pair.ids, pair.ids[0][:0]], [*pair.hashes, (0, 0)])
    dtype = choose_dtype(vocabulary)
    assert dtype == ("<u2" if vocabulary == 65_536 else "<u4")
    record = encode_record(absent, 7, "made by", dtype)
    back = decode_record(record, 7, "made by", dtype)
    assert decode_record(record, 8, "made by", dtype) is None
    assert decode_record(record, 7, "made of", dtype) is None
    assert decode_record(record[:-1] + bytes([record[-1] ^ 1]), 7, "made by", dtype) is None
    other_dtype = np.dtype("<u4" if dtype == "<u2" else "<u2")
    assert decode_record(record, 7, "made by", other_dtype) is None
    assert back.hashes == pair.hashes
    for one, other in zip(back.ids, pair.ids, strict=True):
        np.testing.assert_array_equal(one, other)


def refuse(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def test_token_ids_of_another_tokenizer_or_length_are_refused(tokens, tokenizer):
    reader = TokenizedReader(TokenizedPairs(str(tokens)))
    reader.check(tokenizer, 8)
    assert refuse(reader.check, replace(tokenizer, model=b"another"), 0) == (
        f"{tokens}: made with another tokenizer; set tokenizer.model_file to "
        f"{tokens}/tokenizer.model, or tokenize the pairs again"
    )
    long = TokenizedPairs(str(tokens), x_prefix="p" * 9999)
    assert len(refuse(TokenizedReader(long).check, tokenizer, 0)) < 500 + len(str(tokens))
    assert refuse(reader.check, replace(tokenizer, y_tokens=61), 0) == (
        f"tokenizer.y_tokens: 61, but {tokens} holds at most 60 of each text; lower it, or "
        "tokenize the pairs again"
    )
    run = make_experiment(data__train=(TokenizedPairs(str(tokens)),))
    assert refuse(obtain_tokenizer, run, tokens, [reader]) == (
        f"{tokens}: holds no texts; set tokenizer.model_file to the model in that folder"
    )


def test_a_damaged_folder_is_refused(tokens):
    source = TokenizedPairs(str(tokens))
    about = json.loads((tokens / "tokens.json").read_text())
    for change, message in (
        ({"pairs": 91}, "holds 90 pairs, but tokens.json says 91; make the folder"),
        ({"pages": 1}, "tokens.json: damaged: "),
        ({"files": ["none.array_record"]}, "none.array_record: not ArrayRecord, or damaged: "),
    ):
        (tokens / "tokens.json").write_text(json.dumps(about | change))
        assert message in refuse(TokenizedReader, source)
    (tokens / "tokens.json").write_text("{")
    assert "tokens.json: damaged: " in refuse(TokenizedReader, source)
    (tokens / "tokens.json").unlink()
    assert refuse(TokenizedReader, source) == (
        f"{tokens}: no tokens.json in it; make the folder with jaxcpt tokenize-pairs"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--output", "tokens"), "tokens: exists; remove it or give another --output"),
        (("--tokenizer", "none.model"), "none.model: no such file"),
        (("--tokenizer", "pairs.jsonl"), "pairs.jsonl: not a SentencePiece model; name one or"),
        (("--x-tokens", "2"), "--x-tokens 2: must be at least 3"),
        (("--y-tokens", "0"), "--y-tokens 0: must be at least 3"),
        (("--negatives", "-1"), "--negatives -1: must be at least 0"),
        (("--shard-pairs", "0"), "--shard-pairs 0: must be at least 1"),
        (("--pairs", "none"), "none: no such file or folder"),
        (("--experiment", "a.py"), "give the pairs by either --experiment FILE or --pairs PATH..."),
        (("--x", "question"), "pairs.jsonl:1: no text under 'question'; keys: x, y, source, neg"),
        (
            ("--pairs", "empty.jsonl"),
            "found no pairs to read; name a source with at least one pair",
        ),
    ],
)
def test_tokenize_pairs_refuses_in_one_line_and_leaves_nothing(
    files, tokens, change, message, monkeypatch, capsys
):
    monkeypatch.chdir(tokens.parent)
    (tokens.parent / "empty.jsonl").touch()
    options = {"--pairs": "pairs.jsonl", "--tokenizer": "a.model", "--output": "new"}
    arguments = [part for option in (options | dict([change])).items() for part in option]
    before = sorted(tokens.parent.iterdir())
    code, said = run_tool(tokenize_pairs, monkeypatch, capsys, *arguments)
    assert code == 2
    assert said.startswith(message)
    assert sorted(tokens.parent.iterdir()) == before


def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing(files):
    """A limit on the size of files has the same effect as a full disk."""
    code = """
import resource, signal
from jaxcpt import tokenize_pairs
from jaxcpt.errors import run_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
run_command(tokenize_pairs.main)
"""
    pairs, model, output = files
    write_pairs(pairs, PAIRS * 50)
    command = [sys.executable, "-c", code, "--pairs", pairs, "--tokenizer", model]
    command += ["--output", output]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stderr.startswith(f"jaxcpt: {output}: cannot be written: write() failed: ")
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in output.parent.iterdir()) == ["a.model", "pairs.jsonl"]


MIXTURE = """
from dataclasses import replace
from jaxcpt.config import *
from jaxcpt.config import Tokenizer
def experiment():
    one, two = JsonlPairs("pairs.jsonl"), JsonlPairs("pairs.jsonl", x_prefix="q: ")
    return Experiment(
        name="mixture", train_steps=1, data=Data((one, two)),
        tokenizer=Tokenizer(vocabulary=500, kind="unigram", model_file="a.model"),
        batching=Batching(pairs_per_batch=8), model=Model(width=8, layers=1, heads=1),
        optimizer=Optimizer(learning_rate=1e-3),
    )
"""


def test_each_source_of_an_experiment_is_tokenized_alone(files, monkeypatch, capsys):
    folder = files[0].parent
    monkeypatch.chdir(folder)
    (folder / "mixture.py").write_text(MIXTURE)
    arguments = ("--experiment", "mixture.py", "--output", "tokens")
    code, said = run_tool(tokenize_pairs, monkeypatch, capsys, *arguments)
    assert code == 2
    assert said == "--source: missing; the experiment has the sources 0 to 1; give one"
    code, said = run_tool(tokenize_pairs, monkeypatch, capsys, *arguments, "--source", 2)
    assert code == 2
    assert said == "--source 2: not found; the experiment has the sources 0 to 1"
    code, said = run_tool(tokenize_pairs, monkeypatch, capsys, *arguments, "--source", 1)
    assert code == 0
    limits = Tokenizer(b"", 0, 512, 512)
    (pair,) = TokenizedReader(TokenizedPairs("tokens")).read_encoded([0], limits, 0)
    assert pair.hashes[0] == hash_text(f"q: {PAIRS[0].x}")


def pieces_of(path):
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [model.id_to_piece(number) for number in range(model.get_piece_size())]


CODE = "def name_one(first):\n    for item in first:\n        if item == 1234:\n            pass\n"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_train_tokenizer_learns_from_pairs(tmp_path, kind, monkeypatch, capsys):
    file = tmp_path / "code.jsonl"
    lines = [json.dumps({"text": f"number {n}{n} of é", "code": CODE * 2}) for n in range(40)]
    file.write_text("\n".join(lines))
    output = tmp_path / "new" / "a.model"
    arguments = ("--pairs", file, "--x", "text", "--y", "code", "--vocabulary", 340)
    arguments += ("--kind", kind)
    _, said = run_tool(train_tokenizer, monkeypatch, capsys, *arguments, "--output", output)
    pieces = pieces_of(output)
    assert said == (
        f'{output}: use it with Tokenizer(vocabulary={len(pieces)}, model_file="{output}")'
    )
    tokenizer = read_model(str(output), 512, 512)
    # Every text, of any characters, is decoded to itself.
    for text in (CODE, "  \t\n\n  日本 \U0001f600  x ", "".join(map(chr, range(1, 128)))):
        (ids,) = tokenizer.encode([text], "y")
        assert tokenizer.decode(ids[1:-1]) == text
    assert {piece for both in DELIMITERS.values() for piece in both} <= set(pieces)
    several = [piece for piece in pieces if len(piece) > 1 and not piece.startswith("<0x")]
    assert not any(re.search(r"\d", piece) for piece in several)
    assert "\u2581" * 4 in pieces  # indentation
    # The same pairs give the same bytes. Digits stay together if the option says so.
    again = tmp_path / "again.model"
    run_tool(train_tokenizer, monkeypatch, capsys, *arguments, "--output", again)
    assert again.read_bytes() == output.read_bytes()
    whole = tmp_path / "whole.model"
    arguments += ("--no-split-digits", "--output", whole)
    run_tool(train_tokenizer, monkeypatch, capsys, *arguments)
    assert any(re.search(r"\d\d", piece) for piece in pieces_of(whole))


def test_an_experiments_values_are_used_for_missing_options(files, monkeypatch, capsys):
    monkeypatch.chdir(files[0].parent)
    (files[0].parent / "mixture.py").write_text(MIXTURE)
    options = ("--experiment", "mixture.py", "--output")
    code, said = run_tool(train_tokenizer, monkeypatch, capsys, *options, "u.model")
    assert code == 0
    assert "Tokenizer(vocabulary=" in said
    run_tool(train_tokenizer, monkeypatch, capsys, *options, "b.model", "--kind", "bpe")
    assert pieces_of("u.model") != pieces_of("b.model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--output", "a.model"), "a.model: exists; remove it or give another --output"),
        (
            ("--vocabulary", None),
            "--vocabulary: missing; give the number of pieces, such as 32000 for",
        ),
        (("--vocabulary", "90"), "tokenizer.vocabulary: 90 is too small for bytes, delimiters and"),
        (("--max-pairs", "0"), "--max-pairs 0: must be at least 1"),
        (("--pairs", None), "give the pairs by either --experiment FILE or --pairs PATH..."),
    ],
)
def test_train_tokenizer_refuses_in_one_line(files, change, message, monkeypatch, capsys):
    monkeypatch.chdir(files[0].parent)
    options = {"--pairs": "pairs.jsonl", "--vocabulary": "400", "--output": "new.model"}
    options |= dict([change])
    arguments = [part for option in options.items() if option[1] for part in option]
    code, said = run_tool(train_tokenizer, monkeypatch, capsys, *arguments)
    assert code == 2
    assert said.startswith(message)
    assert not (files[0].parent / "new.model").exists()
