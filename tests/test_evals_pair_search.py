"""Search among pairs: planted answers, ties, BM25, and chance."""

import numpy as np
import pytest

from jaxcpt.errors import UserError
from jaxcpt.evals import pair_search, ranks, words
from jaxcpt.pair import Pair

PAIRS = [Pair(str(i), str(i)) for i in range(40)]


def embed_one_hot(texts, side):
    return np.eye(40, dtype=np.float32)[[int(text) for text in texts]]


def test_a_perfect_model_scores_exactly_1():
    assert pair_search.run(embed_one_hot, PAIRS) == {
        "mrr": 1.0,
        "recall_at_1": 1.0,
        "recall_at_10": 1.0,
    }


def test_planted_ranks_give_the_known_fractions():
    # The y of pair i has rank 3, because two others are nearer to its x.
    def embed(texts, side):
        vectors_nd = embed_one_hot(texts, side)
        if side == "x":
            return vectors_nd + 2 * np.roll(vectors_nd, 1, 1) + 2 * np.roll(vectors_nd, 2, 1)
        return vectors_nd

    scores = pair_search.run(embed, PAIRS)
    assert scores["mrr"] == pytest.approx(1 / 3, abs=1e-15)
    assert (scores["recall_at_1"], scores["recall_at_10"]) == (0.0, 1.0)


@pytest.mark.parametrize("width", [1, 7, 200])
def test_a_constant_model_comes_last_everywhere(width):
    vector_d = np.random.default_rng(0).normal(size=width).astype(np.float32)
    scores = pair_search.run(lambda texts, side: np.tile(vector_d, (len(texts), 1)), PAIRS)
    assert scores["mrr"] == pytest.approx(1 / 40)
    assert scores["recall_at_10"] == 0.0


def test_equals_float64_numpy():
    rng = np.random.default_rng(1)
    z = {side: rng.normal(size=(40, 16)).astype(np.float32) for side in "xy"}
    scores = pair_search.run(lambda texts, side: z[side][[int(text) for text in texts]], PAIRS)
    sims = z["x"].astype(np.float64) @ z["y"].astype(np.float64).T
    place = 1 + (sims > np.diag(sims)[:, None]).sum(axis=1)
    assert scores["mrr"] == pytest.approx(np.mean(1 / place), abs=1e-15)
    assert scores["recall_at_1"] == np.mean(place == 1)
    assert scores["recall_at_10"] == np.mean(place <= 10)


def test_a_shared_y_is_right_for_each_of_its_pairs():
    pairs = [Pair("0", "0"), Pair("1", "0"), Pair("2", "2")]

    def embed(texts, side):
        places = {"0": 0, "1": 0, "2": 2} if side == "x" else {"0": 0, "2": 2}
        return np.eye(3, dtype=np.float32)[[places[text] for text in texts]]

    assert pair_search.run(embed, pairs)["mrr"] == 1.0


def test_chance_is_what_random_vectors_score():
    rng = np.random.default_rng(2)
    runs = [
        pair_search.run(lambda texts, side: rng.normal(size=(len(texts), 4)), PAIRS)
        for _ in range(100)
    ]
    chance = pair_search.chance(40)
    for name, value in chance.items():
        assert np.mean([scores[name] for scores in runs]) == pytest.approx(value, abs=0.01)
    assert pair_search.chance(5)["recall_at_10"] == 1.0


def test_bm25_equals_its_formula():
    documents = [["parse", "date", "date"], ["parse", "file"], []]
    queries = [["date", "parse", "unknown"], ["unknown"], []]
    scores_qn = np.stack(list(words.score(queries, documents, k1=1.2, b=0.5)))
    length_n = np.array([3, 2, 0])
    norm_n = 1.2 * (0.5 + 0.5 * length_n / length_n.mean())
    want_n = np.zeros(3)
    for count_n in (np.array([2, 0, 0]), np.array([1, 1, 0])):  # counts of "date" and "parse"
        documents_with = np.sum(count_n > 0)
        idf = np.log(1 + (3 - documents_with + 0.5) / (documents_with + 0.5))  # Lucene's
        want_n += idf * count_n / (count_n + norm_n)
    np.testing.assert_allclose(scores_qn[0], want_n, rtol=1e-5)
    assert not scores_qn[1:].any()
    assert ranks.rank_scores(scores_qn[1:2], [[0]]) == [3]


def test_bm25_finds_functions_by_the_words_of_their_names():
    assert words.list_content_words("HTTPServer.parse_date2 of a parseDate") == (
        ["http", "server", "parse", "date2", "parse", "date"]
    )
    pairs = [
        Pair("Parse a date from text.", "def parseDate(text): ..."),
        Pair("Read the file's lines.", "def read_file_lines(path): ..."),
        Pair("Open an HTTP server.", "class HTTPServer: ..."),
    ]
    assert pair_search.bm25(pairs)["mrr"] == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_vectors_that_are_not_finite(value):
    def embed(texts, side):
        vectors_nd = embed_one_hot(texts, side)
        if side == "y":
            vectors_nd[3, 0] = value
        return vectors_nd

    with pytest.raises(
        UserError,
        match=r"^1 of 40 embeddings of side y are not finite, first that of '3'; the model",
    ):
        pair_search.run(embed, PAIRS)


def test_refuses_no_pairs_and_a_wrong_number_of_vectors():
    with pytest.raises(UserError, match=r"no held-out pairs to search; set data.heldout"):
        pair_search.run(embed_one_hot, [])
    with pytest.raises(ValueError, match=r"embed_fn gave shape \(2, 3\) for 40 texts"):
        pair_search.run(lambda texts, side: np.zeros((2, 3)), PAIRS)
