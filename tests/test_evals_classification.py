"""Classification without training: equals scikit-learn's neighbours, planted labels, errors."""

import re

import numpy as np
import pytest
from test_evals_linear_probe import draw, embed_numbers, write_rows

from jaxcpt.evals import DataRefused, classification, linear_probe

pytest.importorskip("sklearn", reason="needs the evals extra")
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier


def embed_words(texts, side):
    """Vectors by angle: texts with `negative` at 0 degrees, with `positive` at 90, numbers at
    their value."""
    angles_n = np.array(
        [0 if "negative" in t else 90 if "positive" in t else float(t) for t in texts]
    )
    angles_n = np.radians(angles_n)
    return np.stack([np.cos(angles_n), np.sin(angles_n)], axis=1).astype(np.float32)


def write_sst2(data, train, test):
    for name, (labels, texts) in {"train": train, "dev": test, "test": test}.items():
        write_rows(data / "linear_probe" / "sst2" / f"{name}.tsv", labels, texts)


def read(data, task, folds=10):
    return linear_probe.read_splits(data / "linear_probe" / task, folds)[1]


def test_zero_shot_takes_the_nearest_label_text(tmp_path):
    test = ([0, 0, 1, 1, 1], ["10", "80", "70", "88", "45"])  # 45 is as near to both
    write_sst2(tmp_path, ([0, 1], ["0", "90"]), test)
    scores = classification.zero_shot(embed_words, "sst2", read(tmp_path, "sst2"))
    assert scores == {"sst2_zero_shot_words": 3 / 5, "sst2_zero_shot_prompt": 3 / 5}


def test_the_prompt_is_the_papers(tmp_path):
    embedded = []

    def embed(texts, side):
        assert side == "x"
        embedded.extend(texts)
        return embed_words(texts, side)

    write_sst2(tmp_path, ([0, 1], ["0", "90"]), ([0, 1], ["1", "89"]))
    classification.zero_shot(embed, "sst2", read(tmp_path, "sst2"))
    assert embedded[-2:] == [
        "this is an example of a negative movie review.",
        "this is an example of a positive movie review.",
    ]


def test_neighbours_equal_scikit_learn(tmp_path):
    # With 257 texts and several labels, ties are rare. scikit-learn then takes the lower label.
    train_nd, train_texts, train_labels = draw(1, 700, classes=4)
    test_nd, test_texts, test_labels = draw(2, 300, classes=4)
    write_rows(tmp_path / "linear_probe" / "trec" / "train.tsv", train_labels, train_texts)
    write_rows(tmp_path / "linear_probe" / "trec" / "test.tsv", test_labels, test_texts)
    model = KNeighborsClassifier(256, metric="cosine").fit(train_nd, train_labels)
    scores = classification.neighbours(embed_numbers, "trec", read(tmp_path, "trec"))
    assert scores["trec_neighbours"] == pytest.approx(model.score(test_nd, test_labels), abs=0.02)
    assert scores["trec_neighbours"] > 0.4

    vectors_nd, texts, labels = draw(3, 600)
    write_rows(tmp_path / "linear_probe" / "cr" / "all.tsv", labels, texts)
    folds = StratifiedKFold(10, shuffle=True, random_state=linear_probe.SEED)
    model = KNeighborsClassifier(256, metric="cosine")
    want = cross_val_score(model, vectors_nd, labels, cv=folds).mean()
    scores = classification.neighbours(embed_numbers, "cr", read(tmp_path, "cr"))
    assert scores["cr_neighbours"] == pytest.approx(want, abs=0.02)


def test_a_constant_model_votes_for_the_commoner_label_and_knows_no_label_text(tmp_path):
    labels = ([1] * 200 + [0] * 100, [f"{i}" for i in range(300)])
    write_sst2(tmp_path, labels, ([0, 1, 1, 1], ["1", "2", "3", "4"]))
    splits = read(tmp_path, "sst2")

    def embed(texts, side):
        return np.tile(np.float32([0.6, 0.8]), (len(texts), 1))

    assert classification.neighbours(embed, "sst2", splits) == {"sst2_neighbours": 0.75}
    assert set(classification.zero_shot(embed, "sst2", splits).values()) == {0.0}


def test_all_stand_beside_the_probe_and_each_text_is_embedded_once(tmp_path):
    angles = np.random.default_rng(0).permutation(300) * 0.3
    labels = (angles > 45).astype(int)
    texts = [f"{angle:.1f}" for angle in angles]
    write_rows(tmp_path / "linear_probe" / "mr" / "all.tsv", labels, texts)
    embedded = []

    def embed(texts, side):
        embedded.extend(texts)
        return embed_words(texts, side)

    scores = classification.run(embed, tmp_path, folds=10)
    names = ["mr", "mr_zero_shot_words", "mr_zero_shot_prompt", "mr_neighbours"]
    assert list(scores) == names
    assert scores["mr"] > 0.95
    assert scores["mr_zero_shot_words"] == scores["mr_zero_shot_prompt"] == np.mean(angles != 45)
    assert len(embedded) == 300 + 2 + 2


def test_refusals_keep_the_other_scores(tmp_path):
    path = tmp_path / "linear_probe" / "mr" / "all.tsv"
    write_rows(path, [1] * 150 + [2] * 150, [f"{i / 10 + i // 150 * 60}" for i in range(300)])
    text = "linear_probe/mr: label 2 has no word, so zero-shot has no text for it; the words "
    with pytest.raises(DataRefused, match=re.escape(text)) as refused:
        classification.run_untrained(embed_words, path.parent)
    assert refused.value.scores == {"mr_neighbours": 1.0}
    write_rows(path, [0, 1] * 142, ["10", "80"] * 142)
    text = "linear_probe/mr: 255 training texts; the vote takes 256 neighbours"
    with pytest.raises(DataRefused, match=text) as refused:
        classification.run(embed_words, tmp_path)
    assert refused.value.scores == {
        "mr": 1.0,
        "mr_zero_shot_words": 1.0,
        "mr_zero_shot_prompt": 1.0,
    }
