"""A search task in BEIR layout in, training pairs with hard negatives out."""

from collections.abc import Iterator
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.pair import Pair
from jaxcpt.pairs.jsonl import read_jsonl
from jaxcpt.sources import BeirPairs

COLUMNS = ("query-id", "corpus-id", "score")


def read_beir(source: BeirPairs) -> list[Pair]:
    """A pair for each document that the qrels grade above 0, in their order.

    Only texts that a judgement names are held in memory. Raises UserError naming file and line.
    """
    folder = Path(source.directory)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; it holds corpus.jsonl, queries.jsonl and qrels/"
        )
    judged = list(_read_judgements(folder / "qrels" / f"{source.split}.tsv"))
    listed = list(_read_judgements(folder / source.negatives)) if source.negatives else []
    # The query's relevant documents are no negatives of it, whatever else lists them.
    relevant = {(query, document) for query, document, grade in judged if grade > 0}
    negatives: dict[str, dict[str, None]] = {}
    for query, document, _ in listed + [row for row in judged if row[2] <= 0]:
        if (query, document) not in relevant:
            negatives.setdefault(query, {})[document] = None
    named = {document for _, document in relevant}
    named |= {document for of_query in negatives.values() for document in of_query}
    documents = _read_texts(folder, "corpus.jsonl", named)
    queries = _read_texts(folder, "queries.jsonl", {query for query, _ in relevant})
    return [
        Pair(
            queries[query],
            documents[document],
            f"{folder.name}/{document}",
            tuple(documents[name] for name in negatives.get(query, {})),
        )
        for query, document in dict.fromkeys((q, d) for q, d, grade in judged if grade > 0)
    ]


def _read_judgements(path: Path) -> Iterator[tuple[str, str, float]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected lines of {', '.join(COLUMNS)}")
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip("\r\n").split("\t")
            if number == 1 and fields == list(COLUMNS):
                continue
            if number == 1 or len(fields) != len(COLUMNS):
                raise UserError(
                    f"{path}:{number}: expected {', '.join(COLUMNS)} between tabs, found {fields}"
                )
            try:
                yield fields[0], fields[1], float(fields[2])
            except ValueError:
                raise UserError(
                    f"{path}:{number}: score must be a number, found '{fields[2]}'"
                ) from None


def _read_texts(folder: Path, name: str, wanted: set[str]) -> dict[str, str]:
    """Title and text by id. Raises UserError where one that is wanted is missing."""
    path = folder / name
    if not path.is_file() and (folder / f"{name}.gz").is_file():
        path = folder / f"{name}.gz"
    texts = {}
    for number, row in read_jsonl(path):
        if not isinstance(row.get("text"), str) or not isinstance(row.get("_id"), str):
            raise UserError(f"{path}:{number}: expected texts under '_id' and 'text'")
        if row["_id"] in texts:
            raise UserError(
                f"{path}:{number}: the id '{row['_id']}' occurred before; ids are unique"
            )
        if row["_id"] in wanted:
            texts[row["_id"]] = f"{row.get('title') or ''} {row['text']}".strip()
    if missing := sorted(wanted - texts.keys()):
        raise UserError(f"{path}: lacks '{missing[0]}', which the judgements name")
    return texts
