"""Loss, metrics and gradients equal float64 NumPy and other libraries, on any number of shards."""

import importlib.util
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLOSE

from jaxcpt import config, loss_streaming, loss_terms
from jaxcpt.loss import Labels, contrastive_loss
from jaxcpt.sharding import make_mesh

PAIRS, WIDTH = 24, 12
FORMS = ["dense", "streaming"]
SMALL_TILES = {"TILE_ROWS": 5, "TILE_COLUMNS": 4}  # several tiles, which do not divide the batch


@pytest.fixture
def small_tiles(monkeypatch):
    for name, size in SMALL_TILES.items():
        monkeypatch.setattr(loss_streaming, name, size)


class Batch:
    """Random pairs with embeddings z_btd and numbers for their texts; t is x, y, negatives.

    Some texts are absent. There are 40 different texts, and some occur in several pairs.
    """

    def __init__(self, negatives: int = 0, pairs: int = PAIRS, texts: int = 40) -> None:
        random = np.random.default_rng(negatives)
        self.z_btd = random.normal(size=(pairs, 2 + negatives, WIDTH))
        self.z_btd[:, 1] += self.z_btd[:, 0]  # y is similar to x, so that accuracy is not zero
        self.z_btd /= np.linalg.norm(self.z_btd, axis=-1, keepdims=True)
        self.z_btd = self.z_btd.astype(np.float32).astype(np.float64)  # the same input for both
        self.text_bt = random.integers(0, texts, (pairs, 2 + negatives))
        self.present_bt = random.random((pairs, 2 + negatives)) < 0.8
        self.present_bt[:, 1] = self.present_bt[:, 0]  # both texts of a pair are there, or neither
        self.present_bt &= self.present_bt[:, :1]

    def cut(self, a_bt, shards):
        """The x, and the candidates: for each shard, its y and then its negatives."""
        x_b = a_bt[:, 0]
        of_shards = np.split(a_bt[:, 1:], shards)
        return x_b, np.concatenate([np.concatenate(np.split(p, p.shape[1], 1)) for p in of_shards])[
            :, 0
        ]

    def find(self, form, devices, log_scale):
        """Loss, metrics, and the gradients with respect to z_btd and log_scale."""
        fsdp = 2 if devices > 2 else 1
        mesh = make_mesh(config.Mesh(devices // fsdp, fsdp), jax.devices()[:devices])
        zx_bd, zc_cd = self.cut(self.z_btd.astype(np.float32), devices)
        # Different texts share one half of their hash, but never both halves.
        hash_bt2 = np.stack([self.text_bt % 6, self.text_bt // 6], axis=-1).astype(np.uint32)
        hash_x_b2, hash_c_c2 = self.cut(hash_bt2, devices)
        present_b, present_c = self.cut(self.present_bt, devices)
        labels = Labels(present_b, hash_x_b2, present_c, hash_c_c2)
        find = partial(contrastive_loss, form=form)
        with jax.set_mesh(mesh):
            find = jax.jit(jax.value_and_grad(find, argnums=(0, 1, 2), has_aux=True))
            (value, metrics), gradient = find(zx_bd, zc_cd, jnp.float32(log_scale), labels)
        dzx_bd, dzc_cd, dlog_scale = map(np.asarray, gradient)
        number_bt = np.arange(self.text_bt.size).reshape(self.text_bt.shape)
        dz_btd = np.zeros_like(self.z_btd)
        for numbers, dz in zip(self.cut(number_bt, devices), (dzx_bd, dzc_cd), strict=True):
            dz_btd.reshape(-1, WIDTH)[numbers] = dz
        return float(value), {k: float(v) for k, v in metrics.items()}, dz_btd, float(dlog_scale)

    def expect(self, log_scale):
        """The same values in float64, computed from the definition."""
        here = self.present_bt[:, 0]
        zx, zy = self.z_btd[here, 0], self.z_btd[here, 1]
        text_x, text_y = self.text_bt[here, 0], self.text_bt[here, 1]
        extra = self.present_bt[:, 2:] & here[:, None]
        zc = np.concatenate([zy, self.z_btd[:, 2:][extra]])
        text_c = np.concatenate([text_y, self.text_bt[:, 2:][extra]])
        b, c = len(zx), len(zc)

        alike = (text_x[:, None] == text_c) | (text_y[:, None] == text_c)
        alike[:, :b] |= text_x[:, None] == text_x
        own = np.eye(b, c, dtype=bool)
        counts = own | ~alike
        logits = np.exp(log_scale) * zx @ zc.T
        right = np.diagonal(logits)
        shifted = np.where(counts, np.exp(logits - logits.max()), 0.0)
        rows, columns = shifted.sum(axis=1), shifted[:, :b].sum(axis=0)
        value = np.mean(np.log(rows) + np.log(columns) + 2 * (logits.max() - right)) / 2

        dlogits = shifted / rows[:, None] - 2 * own
        dlogits[:, :b] += shifted[:, :b] / columns
        dlogits /= 2 * b
        dz_btd = np.zeros_like(self.z_btd)
        dz_btd[here, 0] = np.exp(log_scale) * dlogits @ zc
        dzc = np.exp(log_scale) * dlogits.T @ zx
        dz_btd[here, 1] = dzc[:b]
        dz_btd[:, 2:][extra] = dzc[b:]

        wrong = counts & ~own
        rank_x = np.sum(wrong & (logits >= right[:, None]), axis=1)
        rank_y = np.sum((wrong & (logits >= np.pad(right, (0, c - b))))[:, :b], axis=0)
        distances = np.sum((zx[:, None] - zy) ** 2, axis=-1)
        metrics = {
            "accuracy_x_to_y": np.mean(rank_x == 0),
            "accuracy_y_to_x": np.mean(rank_y == 0),
            "mrr": np.mean(1 / (1 + rank_x)),
            "alignment": np.mean(np.diagonal(distances)),
            "uniformity": np.log(np.mean(np.exp(-2 * distances)[wrong[:, :b]])),
            "masked_duplicates": np.sum(alike & ~own),
            "pairs": b,
        }
        return value, metrics, dz_btd, np.sum(dlogits * logits)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("small_tiles")
def test_equals_numpy(form, negatives, devices):
    batch = Batch(negatives)
    assert np.sum(~batch.present_bt) > 0
    for log_scale in np.log(np.float32([1 / 0.07, 100.0])):
        value, metrics, dz_btd, dlog_scale = batch.find(form, devices, log_scale)
        # Compare at the scale of the logits: float32 rounds a logit of 100 by 1e-5.
        scale = float(jnp.exp(jnp.float32(log_scale)))
        wanted, wanted_metrics, wanted_btd, wanted_dlog_scale = batch.expect(np.log(scale))
        np.testing.assert_allclose(value, wanted, **CLOSE)
        np.testing.assert_allclose(dlog_scale, wanted_dlog_scale, **CLOSE)
        # Compare the whole gradient, not each element: float32 rounds a logit of 100 by 1e-5.
        error = np.linalg.norm(dz_btd - wanted_btd)
        assert error < 1e-5 * np.linalg.norm(wanted_btd)
        assert wanted_metrics["masked_duplicates"] > 10
        assert 0.2 < wanted_metrics["accuracy_x_to_y"] < 1
        assert metrics.keys() == wanted_metrics.keys()
        for name, number in wanted_metrics.items():
            np.testing.assert_allclose(metrics[name], number, err_msg=name, **CLOSE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("small_tiles")
def test_opposite_embeddings_at_the_largest_scale_stay_finite(form):
    batch = Batch(negatives=2)
    batch.z_btd[:] = batch.z_btd[0, 0]
    batch.z_btd[:, 1] *= -1  # every right answer is the worst, by 200
    batch.present_bt[5:] = False
    batch.text_bt[:] = np.arange(batch.text_bt.size).reshape(batch.text_bt.shape)
    value, metrics, dz_btd, dlog_scale = batch.find(form, 8, np.log(100.0))
    wanted, _, wanted_btd, wanted_dlog_scale = batch.expect(np.log(100.0))
    np.testing.assert_allclose([value, dlog_scale], [wanted, wanted_dlog_scale], **CLOSE)
    np.testing.assert_allclose(dz_btd, wanted_btd, **CLOSE | {"atol": 1e-5})  # values of 100
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.usefixtures("small_tiles")
def test_collapsed_embeddings_have_accuracy_zero(form, devices):
    """For a constant encoder, every candidate ties with the right one. A tie counts as wrong."""
    for seed in range(5):
        batch = Batch()
        batch.z_btd[:] = batch.z_btd[seed, 0]
        batch.present_bt[:] = True
        batch.text_bt[:] = np.arange(batch.text_bt.size).reshape(batch.text_bt.shape)
        value, metrics, dz_btd, _ = batch.find(form, devices, np.log(100.0))
        assert (metrics["accuracy_x_to_y"], metrics["accuracy_y_to_x"]) == (0.0, 0.0)
        np.testing.assert_allclose(metrics["mrr"], 1 / PAIRS, **CLOSE)
        np.testing.assert_allclose(value, np.log(PAIRS), **CLOSE)
        assert np.isfinite(dz_btd).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("small_tiles")
def test_a_batch_without_any_pair_gives_no_gradient(form):
    batch = Batch(negatives=2)
    batch.present_bt[:] = False
    value, metrics, dz_btd, dlog_scale = batch.find(form, 8, 2.0)
    assert (value, dlog_scale, metrics["accuracy_x_to_y"]) == (0.0, 0.0, 0.0)
    assert not dz_btd.any()


def test_duplicates_are_masked_as_documented():
    """Each row is a case of candidates that do or do not count for an x."""
    batch = Batch(negatives=1, pairs=6)
    batch.present_bt[:] = True
    batch.text_bt[:] = [
        [0, 10, 20],
        [0, 11, 21],  # the same x as pair 0: its y answers that too
        [2, 10, 22],  # the same y as pair 0
        [3, 13, 10],  # its negative is the y of pairs 0 and 2
        [13, 14, 24],  # its x is the y of pair 3
        [5, 15, 25],  # nothing in common with any
    ]
    count = 1 + 2 + 1 + 2 + 1  # pair 0: y 1, y 2, n 3; pair 1: y 0; pair 2: y 0, n 3; pair 4: y 3
    for form in FORMS:
        _, metrics, _, _ = batch.find(form, 2, 2.0)
        assert metrics["masked_duplicates"] == count == batch.expect(2.0)[1]["masked_duplicates"]


def test_large_numbers_of_candidates_do_not_overflow():
    """65,536 pairs have 2 ** 32 comparisons, which overflow int32."""
    queries = loss_terms.Queries(*[jnp.arange(4)] * 6)
    candidates = loss_terms.Candidates(*[jnp.arange(4)] * 6)
    none, every = jnp.zeros((4, 4), bool), jnp.ones((4, 4), bool)
    compared = loss_terms.Comparison(
        queries, candidates, jnp.float32(1), jnp.zeros((4, 4)), none, every, every
    )
    counts = loss_terms.count_pairs(compared)
    assert (counts.negatives, counts.duplicates) == (16, 16)
    assert {number.dtype for number in counts} == {np.dtype("float32")}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is absent: pip install 'jaxcpt[compare]'")


def unmasked(negatives=0):
    """A batch for other libraries: every text is present, and none occurs twice."""
    batch = Batch(negatives)
    batch.present_bt[:] = True
    batch.text_bt[:] = np.arange(batch.text_bt.size).reshape(batch.text_bt.shape)
    return batch


def assert_same(found, value, dz_btd):
    np.testing.assert_allclose(found[0], value, **CLOSE)
    assert np.linalg.norm(found[2] - dz_btd) < 1e-5 * np.linalg.norm(dz_btd)  # see above


def test_equals_open_clip(torch):
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip is absent: pip install --no-deps open_clip_torch")
    # Load only its loss, because the whole package imports torchvision.
    file = Path(spec.origin).parent / "loss.py"
    module = importlib.util.module_from_spec(
        of_file := importlib.util.spec_from_file_location("open_clip_loss", file)
    )
    of_file.loader.exec_module(module)

    batch = unmasked()
    z_btd = torch.tensor(batch.z_btd, requires_grad=True)
    log_scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    value = module.ClipLoss()(z_btd[:, 0], z_btd[:, 1], log_scale.exp())
    value.backward()
    for form in FORMS:
        found = batch.find(form, 8, 2.5)
        assert_same(found, value.item(), z_btd.grad.numpy())
        np.testing.assert_allclose(found[3], log_scale.grad.item(), **CLOSE)


@pytest.mark.parametrize("negatives", [0, 2])
def test_equals_sentence_transformers(torch, negatives):
    losses = pytest.importorskip(
        "sentence_transformers.losses", reason="sentence-transformers is absent"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the symmetric one is now a setting of the other
        theirs = losses.MultipleNegativesSymmetricRankingLoss(None, scale=12.0)
    batch = unmasked(negatives)
    z_btd = torch.tensor(batch.z_btd, requires_grad=True)
    value = theirs.compute_loss_from_embeddings(list(z_btd.unbind(1)), None)
    value.backward()
    for form in FORMS:
        found = batch.find(form, 8, np.log(12.0))
        # Their cosine divides by the length, so their gradient has no part along the vector.
        along = np.sum(found[2] * batch.z_btd, axis=-1, keepdims=True)
        across = (found[0], found[1], found[2] - along * batch.z_btd)
        assert_same(across, value.item(), z_btd.grad.numpy())
