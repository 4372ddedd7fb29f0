"""Exact search equals NumPy's stable argsort, whatever the sizes, ties, shards and devices."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcpt.errors import UserError
from jaxcpt.top_k import top_k
from jaxcpt.vectors import quantize, truncate


def reference(queries_qd, corpus_nd, k):
    scores_qn = queries_qd.astype(np.float64) @ corpus_nd.astype(np.float64).T
    rows_qk = np.argsort(-scores_qn, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_qn, rows_qk, axis=1), rows_qk


def draw_unit(seed, rows, width):
    vectors_nd = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors_nd / np.linalg.norm(vectors_nd, axis=1, keepdims=True)


@pytest.fixture(params=[1, 8], ids=["1 device", "8 devices"])
def devices(request):
    assert len(jax.devices()) >= 8
    return jax.devices()[: request.param]


@pytest.mark.parametrize(
    ("queries", "documents", "k", "tile_rows", "query_rows"),
    [
        (5, 103, 10, 16, 4),
        (1, 1, 1, 8, 8),
        (7, 64, 64, 8, 3),
        (3, 20, 50, 7, 8),
        (9, 257, 3, 300, 9),
    ],
)
def test_equals_stable_argsort_on_ties(queries, documents, k, tile_rows, query_rows, devices):
    # With coordinates of -1, 0 and 1, every product is exact in float32, and most scores tie.
    rng = np.random.default_rng(documents)
    queries_qd = rng.integers(-1, 2, (queries, 4)).astype(np.float32)
    corpus_nd = rng.integers(-1, 2, (documents, 4)).astype(np.float32)
    scores_qk, rows_qk = top_k(
        queries_qd, corpus_nd, k, tile_rows=tile_rows, query_rows=query_rows, devices=devices
    )
    want_scores_qk, want_rows_qk = reference(queries_qd, corpus_nd, k)
    np.testing.assert_array_equal(rows_qk, want_rows_qk)
    np.testing.assert_array_equal(scores_qk, want_scores_qk)
    assert rows_qk.shape == (queries, min(k, documents))


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 30), max_size=4),
    k=st.sampled_from([3, 12]),
    seed=st.integers(0, 99),
)
def test_shards_equal_one_array(cuts, k, seed):
    rng = np.random.default_rng(seed)
    queries_qd = rng.integers(-1, 2, (3, 4)).astype(np.float32)
    corpus_nd = rng.integers(-1, 2, (30, 4)).astype(np.float32)
    shards = np.split(corpus_nd, sorted(cuts))  # some of them empty
    scores_qk, rows_qk = top_k(queries_qd, iter(shards), k, tile_rows=4)
    np.testing.assert_array_equal(rows_qk, reference(queries_qd, corpus_nd, k)[1])
    np.testing.assert_array_equal(scores_qk, top_k(queries_qd, corpus_nd, k)[0])


def test_constant_vectors_tie_and_keep_their_order(devices):
    one_d = draw_unit(0, 1, 200)
    scores_qk, rows_qk = top_k(one_d, np.repeat(one_d, 100, axis=0), 20, devices=devices)
    np.testing.assert_array_equal(rows_qk[0], np.arange(20))
    assert np.unique(scores_qk).size == 1


def test_real_numbers_a_memory_map_and_a_transfer_guard(tmp_path, devices):
    queries_qd, corpus_nd = draw_unit(1, 6, 96), draw_unit(2, 1000, 96)
    np.save(tmp_path / "corpus.npy", corpus_nd)
    mapped_nd = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    with jax.transfer_guard("disallow"):
        scores_qk, rows_qk = top_k(queries_qd, mapped_nd, 25, tile_rows=64, devices=devices)
    want_scores_qk, want_rows_qk = reference(queries_qd, corpus_nd, 25)
    np.testing.assert_array_equal(rows_qk, want_rows_qk)
    np.testing.assert_allclose(scores_qk, want_scores_qk, rtol=1e-5, atol=1e-6)


def test_shards_may_share_one_buffer():
    queries_qd, corpus_nd = draw_unit(3, 4, 16), draw_unit(4, 240, 16)

    def shards():
        buffer_nd = np.empty((40, 16), np.float32)
        for start in range(0, 240, 40):
            buffer_nd[:] = corpus_nd[start : start + 40]
            yield buffer_nd

    _, rows_qk = top_k(queries_qd, shards(), 5, tile_rows=8)
    np.testing.assert_array_equal(rows_qk, reference(queries_qd, corpus_nd, 5)[1])


def test_width_searches_the_cut_vectors():
    queries_qd, corpus_nd = draw_unit(5, 4, 64), draw_unit(6, 200, 64)
    scores_qk, rows_qk = top_k(queries_qd, corpus_nd, 5, width=16)
    want = reference(truncate(queries_qd, 16), truncate(corpus_nd, 16), 5)
    np.testing.assert_array_equal(rows_qk, want[1])
    np.testing.assert_allclose(scores_qk, want[0], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(truncate(corpus_nd, 16), axis=1), 1, rtol=1e-6)


def test_int8_searches_the_rounded_directions():
    queries_qd, corpus_nd = draw_unit(7, 20, 64), draw_unit(8, 500, 64)
    rounded_nd = quantize(corpus_nd)
    assert rounded_nd.dtype == np.int8
    assert np.abs(rounded_nd).max(axis=1).tolist() == [127] * 500
    scores_qk, rows_qk = top_k(queries_qd, rounded_nd, 10)
    directions_nd = rounded_nd / np.linalg.norm(rounded_nd, axis=1, keepdims=True)
    want_scores_qk, want_rows_qk = reference(queries_qd, directions_nd, 10)
    np.testing.assert_allclose(scores_qk, want_scores_qk, rtol=1e-5)
    assert (rows_qk == want_rows_qk).mean() > 0.99  # documents with nearly equal scores may swap
    exact = [set(rows) for rows in reference(queries_qd, corpus_nd, 10)[1].tolist()]
    kept = [len(set(rows) & exact[i]) for i, rows in enumerate(rows_qk.tolist())]
    assert np.mean(kept) > 9  # of 10


def test_no_queries_give_no_rows():
    scores_qk, rows_qk = top_k(np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32), 2)
    assert scores_qk.shape == rows_qk.shape == (0, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_vectors_that_are_not_finite(value):
    queries_qd, corpus_nd = draw_unit(9, 3, 8), draw_unit(10, 50, 8)
    bad_nd = corpus_nd.copy()
    bad_nd[[37, 44], 2] = value
    with pytest.raises(UserError, match=r"^document 37: its vector is not finite"):
        top_k(queries_qd, bad_nd, 2, tile_rows=4)
    bad_qd = queries_qd.copy()
    bad_qd[1, 0] = value
    with pytest.raises(UserError, match=r"^query 1: its vector is not finite"):
        top_k(bad_qd, corpus_nd, 2)


def test_refuses_an_empty_corpus_and_other_widths():
    queries_qd = draw_unit(11, 2, 8)
    for corpus in (np.zeros((0, 8), np.float32), iter([])):
        with pytest.raises(UserError, match="the corpus to search is empty"):
            top_k(queries_qd, corpus, 2)
    shards = iter([draw_unit(12, 5, 8), draw_unit(13, 5, 9)])
    with pytest.raises(UserError, match=r"from row 5 on have shape \(5, 9\), queries have 8 coord"):
        top_k(queries_qd, shards, 2)
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k(queries_qd, draw_unit(12, 5, 8), 0)
