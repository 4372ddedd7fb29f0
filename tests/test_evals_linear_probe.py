"""Linear probes equal scikit-learn with SentEval's protocol; planted labels; errors."""

import re
import sys

import numpy as np
import pytest

from jaxcpt.errors import UserError
from jaxcpt.evals import DataRefused, linear_probe

pytest.importorskip("sklearn", reason="needs the evals extra")
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict

STRENGTHS = [0.25, 1, 4, 16, 64, 256]


def embed_numbers(texts, side):
    """The vector that a text spells."""
    return np.array([[float(number) for number in text.split()] for text in texts], np.float32)


def write_rows(path, labels, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = ["label", "text"] if len(texts) == 1 else ["label", "text_a", "text_b"]
    lines = [header, *zip(map(str, labels), *texts, strict=True)]
    path.write_text("\n".join("\t".join(line) for line in lines))


def draw(seed, rows, classes=2, width=5):
    """Noisy unit vectors that depend on their label, their texts, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    vectors_nd = rng.normal(size=(rows, width)).astype(np.float32)
    vectors_nd[np.arange(rows), labels] += 1
    vectors_nd /= np.linalg.norm(vectors_nd, axis=1, keepdims=True)
    return vectors_nd, [" ".join(map(repr, row)) for row in vectors_nd.tolist()], labels


def fold(folds):
    return StratifiedKFold(folds, shuffle=True, random_state=1111)


def search(folds):
    model = LogisticRegression(max_iter=1000)
    return GridSearchCV(model, {"C": STRENGTHS}, cv=fold(folds))


def test_cross_validated_task_equals_nested_grid_search(tmp_path):
    vectors_nd, texts, labels = draw(0, 90)
    write_rows(tmp_path / "linear_probe" / "cr" / "all.tsv", labels, texts)
    scores = linear_probe.run(embed_numbers, tmp_path, tasks=["cr"], folds=3)
    predicted = cross_val_predict(search(3), vectors_nd, labels, cv=fold(3))
    want = np.mean([np.mean((predicted == labels)[t]) for _, t in fold(3).split(texts, labels)])
    assert scores == {"cr": pytest.approx(want, abs=1e-12)}
    assert 0.5 < want < 1


def test_trec_equals_grid_search_with_more_classes(tmp_path):
    train_nd, train_texts, train_labels = draw(1, 120, classes=4)
    test_nd, test_texts, test_labels = draw(2, 60, classes=4)
    write_rows(tmp_path / "linear_probe" / "trec" / "train.tsv", train_labels, train_texts)
    write_rows(tmp_path / "linear_probe" / "trec" / "test.tsv", test_labels, test_texts)
    scores = linear_probe.run(embed_numbers, tmp_path, tasks=["trec"], folds=4)
    want = search(4).fit(train_nd, train_labels).score(test_nd, test_labels)
    assert scores == {"trec": want}


def test_sst2_chooses_on_dev_and_fits_on_train_alone(tmp_path):
    parts = {name: draw(seed, 80) for seed, name in enumerate(("train", "dev", "test"))}
    for name, (_, texts, labels) in parts.items():
        write_rows(tmp_path / "linear_probe" / "sst2" / f"{name}.tsv", labels, texts)
    scores = linear_probe.run(embed_numbers, tmp_path, tasks=["sst2"])
    (train, _, train_y), (dev, _, dev_y), (test, _, test_y) = parts.values()
    models = [LogisticRegression(C=c, max_iter=1000).fit(train, train_y) for c in STRENGTHS]
    best = models[np.argmax([model.score(dev, dev_y) for model in models])]
    assert scores == {"sst2": best.score(test, test_y)}


def test_mrpc_takes_difference_and_product_and_reports_f1(tmp_path):
    parts = {}
    for seed, name in enumerate(("train", "test")):
        (u_nd, texts_a, labels), (v_nd, texts_b, _) = draw(seed, 80), draw(seed + 9, 80)
        parts[name] = np.hstack([np.abs(u_nd - v_nd), u_nd * v_nd]), labels
        path = tmp_path / "linear_probe" / "mrpc" / f"{name}.tsv"
        write_rows(path, labels, texts_a, texts_b)
    scores = linear_probe.run(embed_numbers, tmp_path, tasks=["mrpc"], folds=3)
    predicted = search(3).fit(*parts["train"]).predict(parts["test"][0])
    labels = parts["test"][1]
    assert scores == {
        "mrpc": np.mean(predicted == labels),
        "mrpc_f1": f1_score(labels, predicted),
    }


def draw_texts(seed, rows):
    """Texts of random words that depend on their label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    chosen = [rng.integers(0, 12, 6) + 4 * label for label in labels]
    return [" ".join(f"Not{number}" for number in row) for row in chosen], labels


def test_bags_of_words_equal_scikit_learn(tmp_path):
    (texts, labels), (test_texts, test_labels) = draw_texts(0, 90), draw_texts(1, 50)
    texts[7] = ""
    write_rows(tmp_path / "linear_probe" / "trec" / "train.tsv", labels, texts)
    write_rows(tmp_path / "linear_probe" / "trec" / "test.tsv", test_labels, test_texts)
    scores = linear_probe.bag_of_words(tmp_path, tasks=["trec"], folds=3)
    bags = TfidfVectorizer()
    model = search(3).fit(bags.fit_transform(texts), labels)
    assert scores == {"trec": model.score(bags.transform(test_texts), test_labels)}
    assert scores["trec"] > 0.6

    for name, (one, labels) in {"train": draw_texts(2, 80), "test": draw_texts(3, 60)}.items():
        other = [text if label else "Not1" for text, label in zip(one, labels, strict=True)]
        write_rows(tmp_path / "linear_probe" / "mrpc" / f"{name}.tsv", labels, one, other)
    scores = linear_probe.bag_of_words(tmp_path, tasks=["mrpc"], folds=3)
    assert scores == {"mrpc": 1.0, "mrpc_f1": 1.0}  # equal texts are those of label 1


def test_all_seven_have_an_average_and_planted_labels_score_1(tmp_path):
    labels = [0, 1] * 10
    texts = ["1 0" if label else "0 1" for label in labels]
    for task in linear_probe.TASKS:
        both = [texts, ["1 1"] * 20] if task == "mrpc" else [texts]
        for name in ("all", "train", "dev", "test"):
            write_rows(tmp_path / "linear_probe" / task / f"{name}.tsv", labels, *both)
    scores = linear_probe.run(embed_numbers, tmp_path, folds=2)
    assert scores == dict.fromkeys([*linear_probe.TASKS, "mrpc_f1", "average"], 1.0)


def test_a_constant_model_scores_the_share_of_the_commoner_label(tmp_path):
    write_rows(tmp_path / "linear_probe" / "mr" / "all.tsv", [0, 1, 1, 1] * 10, ["1 0"] * 40)
    assert linear_probe.run(embed_numbers, tmp_path, tasks=["mr"], folds=5) == {"mr": 0.75}


@pytest.mark.filterwarnings("error")
def test_a_label_that_few_rows_have(tmp_path):
    """From FEWEST rows of a label on, every part of nested folds has two labels."""
    path = tmp_path / "linear_probe" / "mr" / "all.tsv"
    for rare in (1, 2, 3):
        write_rows(path, [0] * 25 + [1] * rare, ["1 0"] * 25 + ["0 1"] * rare)
        with refuse(f"{path}: all labels but one have at most {rare} rows; cross-validation needs"):
            linear_probe.run(embed_numbers, tmp_path, tasks=["mr"])
    write_rows(path, [0] * 25 + [1] * 4, ["1 0"] * 25 + ["0 1"] * 4)
    assert linear_probe.run(embed_numbers, tmp_path, tasks=["mr"]) == {"mr": 1.0}


@pytest.mark.parametrize("labels", [(0, 2), (1, 2), (-1, 1)])
def test_f1_of_mrpc_needs_its_own_labels(tmp_path, labels):
    for name in ("train", "test"):
        path = tmp_path / "linear_probe" / "mrpc" / f"{name}.tsv"
        write_rows(path, list(labels) * 10, ["1 0", "0 1"] * 10, ["1 1"] * 20)
    train = path.parent / "train.tsv"
    with refuse(f"{train}: its labels are {sorted(labels)}; expected 1 for a paraphrase and 0"):
        linear_probe.run(embed_numbers, tmp_path, tasks=["mrpc"], folds=2)


def test_a_label_that_no_training_row_has_is_refused(tmp_path):
    folder = tmp_path / "linear_probe" / "sst2"
    for name, labels in {"train": [0, 1], "dev": [0, 1], "test": [0, 2]}.items():
        write_rows(folder / f"{name}.tsv", labels, ["1 0", "0 1"])
    with refuse(f"{folder / 'test.tsv'}: no row of train.tsv has the label 2"):
        linear_probe.run(embed_numbers, tmp_path, tasks=["sst2"])


def test_a_task_that_does_not_fit_leaves_the_scores_of_the_others(tmp_path):
    for task in ("mr", "cr", "subj"):
        labels = ["0", "good"] * 10 if task == "cr" else [0, 1] * 10
        write_rows(tmp_path / "linear_probe" / task / "all.tsv", labels, ["1 0", "0 1"] * 10)
    with pytest.raises(DataRefused, match="label must be an integer, found 'good'") as refused:
        linear_probe.run(embed_numbers, tmp_path, folds=2)
    assert refused.value.scores == {"mr": 1.0, "subj": 1.0}


def test_bags_of_texts_without_a_word(tmp_path):
    write_rows(tmp_path / "linear_probe" / "mr" / "all.tsv", [0, 1, 1, 1] * 5, ["…"] * 20)
    assert linear_probe.bag_of_words(tmp_path, tasks=["mr"], folds=2) == {"mr": 0.75}


def refuse(text):
    return pytest.raises(UserError, match=re.escape(text))


def test_refusals(tmp_path, monkeypatch):
    path = tmp_path / "linear_probe" / "mr" / "all.tsv"
    with refuse(f"{path}: no such file, nor all.tsv.gz; expected tab-separated lines below the"):
        linear_probe.run(embed_numbers, tmp_path, tasks=["mr"])
    write_rows(path, ["0", "good"], ["1 0", "0 1"])
    with refuse(f"{path}:3: label must be an integer, found 'good'"):
        linear_probe.run(embed_numbers, tmp_path, tasks=["mr"])
    write_rows(path, [], [])
    with refuse(f"{path}: 0 rows with 0 labels; a probe needs 2"):
        linear_probe.run(embed_numbers, tmp_path, tasks=["mr"])
    write_rows(path, [0, 10**9], ["1 0", "0 1"])
    with refuse(f"{path}:3: label 1000000000 is out of range"):
        linear_probe.run(embed_numbers, tmp_path, tasks=["mr"])
    with refuse(f"{tmp_path / 'none' / 'linear_probe'}: none of the folders mr, cr, subj, mpqa, "):
        linear_probe.run(embed_numbers, tmp_path / "none")
    write_rows(path, [0, 1] * 19, ["1 0", "0 1"] * 19)
    with refuse(f"{path}: no label has more than 19 rows; nested 10-fold cross-validation"):
        linear_probe.run(embed_numbers, tmp_path, tasks=["mr"])
    write_rows(path, [0, 1], ["1 0", "nan 1"])
    with refuse("1 of 2 embeddings of side x are not finite, first that of 'nan 1'"):
        linear_probe.run(embed_numbers, tmp_path, tasks=["mr"], folds=0)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with refuse("this evaluation needs threadpoolctl: pip install 'jaxcpt[evals]'"):
        linear_probe.run(embed_numbers, tmp_path, tasks=["mr"])
