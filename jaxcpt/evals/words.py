"""Baselines that only match words, for comparison with a model.

In: texts. Out: BM25 scores of every query and document, or the best documents of each query; and
cosines of pairs of texts as bags of words. Only this module imports bm25s. It does not know which
answers are right.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxcpt.evals import import_extra

# parseDate -> parse Date, HTTPServer -> HTTP Server. WORD splits at underscores.
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
WORD = re.compile(r"[^\W_]+")
MOST_DOCUMENTS = 2_000_000
"""Most documents of a BM25 index. An index of more would need tens of gigabytes of memory."""


def list_words(text: str) -> list[str]:
    """All words, lower-cased."""
    return WORD.findall(text.lower())


def list_content_words(text: str) -> list[str]:
    """Lower-cased words without stopwords. camelCase and snake_case are split into their words."""
    # Imported here, because importing bm25s runs a JAX operation. After that, a command can neither
    # choose its devices nor join other processes.
    from bm25s.stopwords import STOPWORDS_EN

    words = WORD.findall(CAMEL_CASE.sub(" ", text).lower())
    return [word for word in words if word not in STOPWORDS_EN]


def score(
    queries: Iterable[Sequence[str]],
    documents: Iterable[Sequence[str]],
    k1: float = 1.5,
    b: float = 0.75,
) -> Iterator[np.ndarray]:
    """Yields the BM25 scores [n] of all documents for each query. Texts are lists of words."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s sets its logger to DEBUG

    corpus = [list(words) for words in documents]
    if not any(corpus):  # bm25s raises for a corpus without words, in which nothing matches
        yield from (np.zeros(len(corpus), np.float32) for _ in queries)
        return
    index = bm25s.BM25(k1=k1, b=b)
    index.index(corpus, show_progress=False)
    for words in queries:
        known = [word for word in words if word in index.vocab_dict]
        # bm25s raises for a query without a known word. Such a query matches nothing.
        yield index.get_scores(known) if known else np.zeros(len(corpus), np.float32)


def can_search(path: Path, documents: int) -> bool:
    """Whether BM25 can index this many documents. If not, prints that BM25 is left out."""
    if documents > MOST_DOCUMENTS:
        print(f"{path}: BM25 is left out, {documents:,} documents")
    return documents <= MOST_DOCUMENTS


def search(
    queries: Sequence[str], documents: Iterable[str], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [q, k] and row numbers [q, k] of the k best documents of each query, best first.

    With fewer than k documents it returns all of them. BM25 has the settings of the BEIR paper:
    Porter's stemmer, k1 0.9 and b 0.4.
    """
    stem = import_extra("Stemmer").Stemmer("porter").stemWords
    query_words, document_words = (
        [stem(list_content_words(text)) for text in texts] for texts in (queries, documents)
    )
    best = [
        (scores_n[order := np.argsort(-scores_n, kind="stable")[:k]], order)
        for scores_n in score(query_words, document_words, k1=0.9, b=0.4)
    ]
    scores_qk, rows_qk = (np.stack(side) for side in zip(*best, strict=True))
    return scores_qk, rows_qk


def compare_bags(texts_a: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
    """Cosines [n] of pairs of texts as word counts. Each count is weighted by its inverse document
    frequency."""
    bags = [Counter(list_content_words(text)) for text in (*texts_a, *texts_b)]
    texts_with = Counter(word for bag in bags for word in bag)
    rarity = {word: 1 + np.log(len(bags) / count) for word, count in texts_with.items()}
    weighted = [{word: count * rarity[word] for word, count in bag.items()} for bag in bags]
    lengths = [sum(weight**2 for weight in bag.values()) ** 0.5 for bag in weighted]
    pairs = zip(weighted, weighted[len(texts_a) :], lengths, lengths[len(texts_a) :], strict=False)
    return np.array(
        [
            sum(weight * b.get(word, 0.0) for word, weight in a.items()) / max(la * lb, 1e-12)
            for a, b, la, lb in pairs
        ]
    )
