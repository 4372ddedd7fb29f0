"""A search task in BEIR layout: corpus.jsonl, queries.jsonl and qrels/<split>.tsv, or those .gz.

In: the folder and the split. Out: the split's queries, which documents answer them, and the
documents' texts one after another, so that a corpus need not fit in memory. It knows no metric.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.evals import files

QRELS = ("query-id", "corpus-id", "score")


@dataclass(frozen=True)
class Task:
    folder: Path
    document_ids: list[str]
    queries: dict[str, str]
    """Text by id, of the split's queries alone."""
    qrels: dict[str, dict[str, int]]
    """Grade of each judged document by query id, then document id; 0 is irrelevant."""


def list_folders(parent: Path) -> list[Path]:
    """The folders below `parent` that hold a corpus."""
    return sorted(p.parent for p in parent.glob("*/corpus.jsonl*"))


def read_task(folder: Path, split: str) -> Task:
    """Everything but the documents' texts. Raises UserError for ids that repeat or are unknown."""
    document_ids = [name for name, _ in _read_unique(folder / "corpus.jsonl")]
    queries = dict(_read_unique(folder / "queries.jsonl"))
    path = folder / "qrels" / f"{split}.tsv"
    known = set(document_ids)
    qrels: dict[str, dict[str, int]] = {}
    for number, (query, document, grade) in files.read_tsv(path, QRELS):
        if query not in queries:
            raise UserError(f"{path}:{number}: query {query!r} is not in queries.jsonl")
        if document not in known:
            raise UserError(f"{path}:{number}: document {document!r} is not in corpus.jsonl")
        if document in qrels.get(query, {}):
            raise UserError(f"{path}:{number}: query {query!r} judges {document!r} twice; keep one")
        value = files.parse_int(grade, path, number, "score")
        qrels.setdefault(query, {})[document] = value
    if not qrels:
        raise UserError(f"{path}: the split is empty; it needs at least one judged document")
    if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
        raise UserError(f"{path}: no document is relevant; a score above 0 marks one that is")
    return Task(folder, document_ids, {query: queries[query] for query in qrels}, qrels)


def read_documents(folder: Path) -> Iterator[str]:
    """Title and text of each document, in the order of `Task.document_ids`."""
    for _, row in files.read_jsonl(folder / "corpus.jsonl", {"_id": str, "text": str}):
        yield f"{row.get('title') or ''} {row['text']}".strip()


def _read_unique(path: Path) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    path = files.find(path) or path
    for number, row in files.read_jsonl(path, {"_id": str, "text": str}):
        if row["_id"] in seen:
            raise UserError(
                f"{path}:{number}: the id {row['_id']!r} occurred before; ids are unique"
            )
        seen.add(row["_id"])
        yield row["_id"], row["text"]
    if not seen:
        raise UserError(f"{path}: empty; it needs at least one line")
