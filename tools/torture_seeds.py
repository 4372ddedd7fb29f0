"""The correct inputs that `torture_inputs` damages: an experiment, and files of every format."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import tokenizers
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2
from tokenizers import models, pre_tokenizers, processors
from torture_damage import change_leaf, damage

from jaxcpt import config
from jaxcpt.config import Batching, Data, Experiment, JsonlPairs, Model, Optimizer
from jaxcpt.model import initialise, make_encoder
from jaxcpt.pair import Pair
from jaxcpt.pairs import PairList
from jaxcpt.pairs.tokenized import write_about
from jaxcpt.tokenize_pairs import write_tokens as write_token_records
from jaxcpt.tokenizer import Tokenizer, read_model, train_tokenizer

ROWS = [
    {
        "x": f"red cat {number * 7}",
        "y": f"old bridge {number} é",
        "negatives": [f"other {number}"],
        "source": f"place {number}",
    }
    for number in range(40)
]


def make_experiment() -> Experiment:
    return Experiment(
        name="fuzzed",
        train_steps=6,
        data=Data(train=(JsonlPairs("pairs.jsonl"),), heldout=JsonlPairs("heldout.jsonl")),
        tokenizer=config.Tokenizer(vocabulary=400, x_tokens=12, y_tokens=24),
        batching=Batching(pairs_per_batch=15, row_tokens=32),
        model=Model(width=16, layers=2, heads=4),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=1),
    )


def list_fields(node: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted path of every field, also of fields that hold further fields."""
    for field in fields(node):
        name = f"{path}{field.name}"
        yield name
        if is_dataclass(getattr(node, field.name)):
            yield from list_fields(getattr(node, field.name), f"{name}.")


def count_parameters(experiment: Experiment) -> int:
    """The number of parameters, without allocating them; 0 for sizes that no machine can hold."""
    m = experiment.model
    largest = max(m.width, m.heads, m.mlp_width or 1, m.layers, experiment.tokenizer.vocabulary)
    if max(largest, experiment.tokenizer.longest) > 1 << 20 or m.layers > 100:
        return 0
    encoder = make_encoder(experiment)
    shapes = jax.eval_shape(lambda: initialise(encoder, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def write_beir(folder: Path) -> None:
    (folder / "qrels").mkdir()
    rows: list[dict[str, Any]] = [
        {"_id": f"d{n}", "title": "T", "text": f"text {n}"} for n in range(6)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": f"q{n}", "text": f"query {n} é"} for n in range(3)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(header + "q1\td1\t1\nq1\td2\t0\nq2\td3\t2\n")
    (folder / "hard.tsv").write_text(header + "q2\td5\t9.5\nq1\td4\t0\n")


def write_parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(ROWS)
    path = folder / "0.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=7, write_page_checksum=True)
    pyarrow.parquet.write_table(table.drop(["negatives"]), folder / "1.parquet")


def write_records(path: Path, records: Sequence[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_array_record(folder: Path) -> None:
    write_records(folder / "0.array_record", [json.dumps(row).encode() for row in ROWS])
    write_records(folder / "1.array_record", [make_example(row) for row in ROWS])


def make_example(row: dict[str, Any]) -> bytes:
    example = tf_example_pb2.Example()
    for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        example.features.feature[name].bytes_list.value.extend(v.encode() for v in values)
    return example.SerializeToString()


def make_record(rng: random.Random) -> tuple[str, bytes]:
    """Returns in words what is unusual, and a record that is valid but holds an unusual pair."""
    row = json.loads(json.dumps(rng.choice(ROWS)))
    if rng.random() < 0.4:
        return damage(make_example(row), rng)
    if rng.random() < 0.3:
        return damage(json.dumps(row).encode(), rng)
    return change_leaf(row, rng), json.dumps(row).encode()


@cache
def make_tokenizer() -> Tokenizer:
    texts = [text for row in ROWS for text in (str(row["x"]), str(row["y"]))]
    return train_tokenizer(texts, make_experiment().tokenizer)


def write_tokens(folder: Path, tokenizer: Tokenizer) -> None:
    pairs = [
        Pair(str(r["x"]), str(r["y"]), negatives=tuple(map(str, r["negatives"]))) for r in ROWS
    ]
    about = write_token_records([PairList(pairs)], tokenizer, folder, 1, 25, ("", ""))
    write_about(folder, about)


def write_sentencepiece(folder: Path) -> None:
    make_tokenizer().save(folder)


def write_hugging_face(folder: Path) -> None:
    """A word-level tokenizer.json with its own template."""
    words = ["[UNK]", "[CLS]", "[SEP]", *sorted({w for r in ROWS for w in str(r["x"]).split()})]
    ids = {word: number for number, word in enumerate(words)}
    model = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    model.add_special_tokens(["[CLS]", "[SEP]"])
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    path = folder / "tokenizer.json"
    path.write_text(model.to_str())
    read_model(str(path), 12, 24, delimiters="own").save(folder)
