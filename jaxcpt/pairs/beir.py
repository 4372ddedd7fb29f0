"""Makes training pairs with hard negatives from a search task in BEIR layout.

In: `sources.BeirPairs`. Out: pairs. The module knows no tokenizer and no batches.
"""

from pathlib import Path

from jaxcpt.beir import CORPUS, QUERIES, read_judgements, read_unique
from jaxcpt.errors import UserError
from jaxcpt.lines import find_file, parse_float
from jaxcpt.pair import Pair
from jaxcpt.sources import BeirPairs


def read_beir(source: BeirPairs) -> list[Pair]:
    """A pair for each document that the qrels grade above 0, in the order of the qrels.

    The hard negatives are those in the file `source.negatives`, followed by documents graded 0.
    Only texts that a judgement names are held in memory. Raises UserError with file and line.
    """
    folder = Path(source.directory)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; expected one with corpus.jsonl, queries.jsonl and qrels/"
        )
    judged = _read_grades(folder / "qrels" / f"{source.split}.tsv")
    listed = _read_grades(folder / source.negatives) if source.negatives else []
    # The list of negatives may name a document that the qrels grade above 0. Leave that out.
    relevant = {(query, document) for query, document, grade in judged if grade > 0}
    negatives: dict[str, dict[str, None]] = {}
    for query, document, _ in listed + [row for row in judged if row[2] <= 0]:
        if (query, document) not in relevant:
            negatives.setdefault(query, {})[document] = None
    named = {document for _, document in relevant}
    named |= {document for of_query in negatives.values() for document in of_query}
    documents = _read_texts(folder, CORPUS, named)
    queries = _read_texts(folder, QUERIES, {query for query, _ in relevant})
    return [
        Pair(
            queries[query],
            documents[document],
            f"{folder.name}/{document}",
            tuple(documents[name] for name in negatives.get(query, {})),
        )
        for query, document in dict.fromkeys((q, d) for q, d, grade in judged if grade > 0)
    ]


def _read_grades(path: Path) -> list[tuple[str, str, float]]:
    """The (query id, document id, grade) of each judgement."""
    return [
        (query, document, parse_float(score, path, number, "score"))
        for number, query, document, score in read_judgements(path)
    ]


def _read_texts(folder: Path, file: str, wanted: set[str]) -> dict[str, str]:
    """The wanted texts by id. Raises UserError if one of them is missing."""
    texts = dict(read_unique(folder, file, wanted))
    if missing := sorted(wanted - texts.keys()):
        path = find_file(folder / file)
        raise UserError(f"{path}: lacks '{missing[0]}', which the judgements name")
    return texts
