"""Reads search tasks in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/<split>.tsv.

In: a task's folder, whose files may be gzipped. Out: its judgements, queries and documents, one row
at a time, so that a corpus need not fit in memory. The module knows neither training pairs nor
metrics.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.lines import parse_int, read_jsonl, read_tsv, require_file

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
QRELS = ("query-id", "corpus-id", "score")
FIELDS = {"_id": str, "text": str}
FORUMS = "cqadupstack"
HIGHEST_GRADE = 1_000
"""trec_eval allocates one counter for each grade up to the highest, so it must not be huge."""


@dataclass(frozen=True, kw_only=True)
class Task:
    folder: Path
    document_ids: list[str]
    queries: dict[str, str]
    """The texts of the split's queries, by id."""
    qrels: dict[str, dict[str, int]]
    """Grades of the judged documents, by query id and document id. A grade of 0 is irrelevant."""
    absent: int
    """Number of judgements of documents that are not in the corpus. No search can find these."""


def list_folders(parent: Path) -> list[Path]:
    """The folders in `parent` that hold a corpus, or that hold folders with a corpus; sorted."""
    folders = {path.parent for path in parent.glob(f"*/{CORPUS}*") if _is_corpus(path)}
    nested = {path.parent for path in parent.glob(f"*/*/{CORPUS}*") if _is_corpus(path)}
    return sorted(folders | {path for path in nested if path.parent not in folders})


def _is_corpus(path: Path) -> bool:
    return path.name in (CORPUS, f"{CORPUS}.gz")


def add_means(
    by_set: Mapping[str, dict[str, float]], names: Iterable[str]
) -> dict[str, dict[str, float]]:
    """Adds the mean score of each set that consists of several corpora.

    A set gets a mean only if all of its parts have scores. names: the parts and sets in the data
    folder. A part is named `<set>/<part>`, such as cqadupstack/android, or as MTEB distributes
    these forums: cqadupstack-android.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        if whole := find_whole(name):
            parts.setdefault(whole, []).append(name)
    means = {
        whole: {
            key: sum(by_set[part][key] for part in of_set) / len(of_set)
            for key in by_set[of_set[0]]
        }
        for whole, of_set in parts.items()
        if by_set.keys() >= set(of_set)
    }
    return {**by_set, **means}


def find_whole(name: str) -> str:
    """The set that a corpus belongs to; empty if the corpus is a set of its own."""
    if name.startswith(f"{FORUMS}-"):
        return FORUMS
    return name.rpartition("/")[0]


def name_scores(by_set: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Puts nested scores into one dict with keys such as `scifact/ndcg@10`."""
    return {
        f"{name}/{key}": value for name, of_set in by_set.items() for key, value in of_set.items()
    }


def read_task(folder: Path, split: str) -> Task:
    """Reads everything but the documents' texts. Raises UserError for repeated or unknown ids.

    A judged document that is not in the corpus is counted in `absent` and stays among the
    judgements, as in pytrec_eval and BEIR: it counts as never found.
    """
    document_ids = [name for name, _ in read_unique(folder, CORPUS)]
    queries = dict(read_unique(folder, QUERIES))
    for file, rows in ((CORPUS, document_ids), (QUERIES, queries)):
        if not rows:
            raise UserError(f"{folder / file}: empty; it needs at least one line")
    path = folder / "qrels" / f"{split}.tsv"
    known = set(document_ids)
    qrels: dict[str, dict[str, int]] = {}
    absent = found = 0
    for number, query, document, score in read_judgements(path):
        if query not in queries:
            raise UserError(f"{path}:{number}: query {query!r} is not in queries.jsonl")
        if document in qrels.get(query, {}):
            raise UserError(f"{path}:{number}: query {query!r} judges {document!r} twice; keep one")
        grade = parse_int(score, path, number, "score")
        if abs(grade) > HIGHEST_GRADE:
            raise UserError(f"{path}:{number}: score {score[:60]} is out of range")
        qrels.setdefault(query, {})[document] = grade
        absent += document not in known
        found += grade > 0 and document in known
    if not qrels:
        raise UserError(f"{path}: the split is empty; it needs at least one judged document")
    if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
        raise UserError(f"{path}: no document is relevant; a score above 0 marks one that is")
    if not found:
        raise UserError(f"{path}: no relevant document is in {CORPUS}; is it of another corpus?")
    asked = {query: queries[query] for query in qrels}
    return Task(folder=folder, document_ids=document_ids, queries=asked, qrels=qrels, absent=absent)


def describe_judgements(task: Task) -> list[str]:
    """Lines about judgements that no search can meet: absent documents, and queries without a
    relevant document. They count as in pytrec_eval and BEIR."""
    lines = []
    if task.absent:
        lines.append(
            f"{task.folder}: judged documents that are not in {CORPUS}: {task.absent}; they count "
            "as never found"
        )
    if empty := sum(max(grades.values()) <= 0 for grades in task.qrels.values()):
        lines.append(f"{task.folder}: queries without a relevant document: {empty}; they score 0")
    return lines


def read_judgements(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yields (line number, query id, document id, score) from a file qrels/<split>.tsv."""
    for number, (query, document, score) in read_tsv(path, QRELS):
        yield number, query, document, score


def read_documents(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields (id, title and text) of each document, in the corpus's order. Ids may repeat."""
    for _, name, text in _read_rows(folder, CORPUS):
        yield name, text


def read_unique(
    folder: Path, file: str, wanted: Container[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of the rows of `file`, which is CORPUS or QUERIES.

    wanted: the ids to yield; None means all. The yielded ids stay in memory. Raises UserError if
    one of them repeats.
    """
    seen: set[str] = set()
    for number, name, text in _read_rows(folder, file):
        if name in seen:
            where = f"{_find(folder / file)}:{number}"
            raise UserError(f"{where}: the id {name!r} occurred before; ids must be unique")
        if wanted is None or name in wanted:
            seen.add(name)
            yield name, text


def join_title(title: str | None, text: str) -> str:
    """The text that the model reads: the title, if there is one, a space and the text."""
    return f"{title or ''} {text}".strip()


def _find(path: Path) -> Path:
    return require_file(path, f"one JSON object a line with {', '.join(FIELDS)}")


def _read_rows(folder: Path, file: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, id, text). A document's title is part of its text."""
    path = _find(folder / file)
    for number, row in read_jsonl(path, FIELDS):
        if not isinstance(title := row.get("title"), str | None):
            raise UserError(f"{path}:{number}: 'title' must be text, found {type(title).__name__}")
        text = join_title(title, row["text"]) if file == CORPUS else row["text"]
        yield number, row["_id"], text
