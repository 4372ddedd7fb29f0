"""What matching words alone scores: the baselines that stand beside the model's scores.

In: texts. Out: BM25 for every query and document, or the best of them, and the cosines of pairs of
texts as bags of words. Sole home of bm25s. It knows no right answers.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxcpt.evals import import_extra

# parseDate -> parse Date, HTTPServer -> HTTP Server; underscores fall to WORD.
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
WORD = re.compile(r"[^\W_]+")
MOST_DOCUMENTS = 2_000_000
"""Beyond so many, BM25's index would need tens of gigabytes."""


def list_words(text: str) -> list[str]:
    """Lower-cased words, all of them."""
    return WORD.findall(text.lower())


def split_words(text: str) -> list[str]:
    """Lower-cased words without stopwords; camelCase and snake_case are cut into theirs."""
    # Not at the top of the file: importing bm25s runs a JAX operation, after which a command can
    # neither choose its devices nor join other processes.
    from bm25s.stopwords import STOPWORDS_EN

    words = WORD.findall(CAMEL_CASE.sub(" ", text).lower())
    return [word for word in words if word not in STOPWORDS_EN]


def score(
    queries: Iterable[Sequence[str]],
    documents: Iterable[Sequence[str]],
    k1: float = 1.5,
    b: float = 0.75,
) -> Iterator[np.ndarray]:
    """BM25 scores [n] of all documents for each query in turn, all given as words."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG

    corpus = [list(words) for words in documents]
    index = bm25s.BM25(k1=k1, b=b)
    index.index(corpus, show_progress=False)
    for words in queries:
        known = [word for word in words if word in index.vocab_dict]
        # bm25s takes no query without a known word: that matches nothing.
        yield index.get_scores(known) if known else np.zeros(len(corpus), np.float32)


def can_search(path: Path, documents: int) -> bool:
    """Whether BM25 can index so many; says so where it cannot."""
    if documents > MOST_DOCUMENTS:
        print(f"{path}: BM25 is left out, {documents:,} documents")
    return documents <= MOST_DOCUMENTS


def search(
    queries: Sequence[str], documents: Iterable[str], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [q, k] and row numbers [q, k] of the k best documents, or of all of them, best first.

    BM25 as the BEIR table has it: Porter's stemmer, k1 0.9 and b 0.4.
    """
    stem = import_extra("Stemmer").Stemmer("porter").stemWords
    asked, told = ([stem(split_words(text)) for text in texts] for texts in (queries, documents))
    best = [
        (scores_n[order := np.argsort(-scores_n, kind="stable")[:k]], order)
        for scores_n in score(asked, told, k1=0.9, b=0.4)
    ]
    scores_qk, rows_qk = (np.stack(side) for side in zip(*best, strict=True))
    return scores_qk, rows_qk


def compare_bags(texts_a: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
    """Cosines [n] of pairs of texts: counts of words, each weighed by the log of its rarity."""
    bags = [Counter(split_words(text)) for text in (*texts_a, *texts_b)]
    texts_with = Counter(word for bag in bags for word in bag)
    rarity = {word: 1 + np.log(len(bags) / count) for word, count in texts_with.items()}
    weighed = [{word: count * rarity[word] for word, count in bag.items()} for bag in bags]
    lengths = [sum(weight**2 for weight in bag.values()) ** 0.5 for bag in weighed]
    pairs = zip(weighed, weighed[len(texts_a) :], lengths, lengths[len(texts_a) :], strict=False)
    return np.array(
        [
            sum(weight * b.get(word, 0.0) for word, weight in a.items()) / max(la * lb, 1e-12)
            for a, b, la, lb in pairs
        ]
    )
