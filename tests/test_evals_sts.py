"""Similarity equals SciPy for each subset, their mean and all pairs; file layouts; errors."""

import gzip
import json
import re

import numpy as np
import pytest
from conftest import DATA, needs_data
from scipy import stats

from jaxcpt.errors import UserError
from jaxcpt.evals import DataRefused, published, sts, table, words


def embed_angle(texts, side):
    angles_n = np.array([float(text) for text in texts])
    return np.stack([np.cos(angles_n), np.sin(angles_n)], axis=1).astype(np.float32)


def write_subset(folder, name, scores, angles):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{score}\t0\t{angle}" for score, angle in zip(scores, angles, strict=True)]
    (folder / f"{name}.tsv").write_text("\n".join(["score\ttext_a\ttext_b", *rows]))


def test_equals_scipy(tmp_path):
    rng = np.random.default_rng(0)
    gold = {name: rng.integers(0, 11, 30) / 2 for name in ("one", "two")}
    angles = {name: rng.uniform(0, np.pi, 30).round(6) for name in gold}
    for name in gold:
        write_subset(tmp_path / "sts" / "sts13", name, gold[name], angles[name])
    scores = sts.run(embed_angle, tmp_path)
    cosines = {name: np.cos(angles[name]) for name in gold}
    for kind, correlate in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
        want = {name: correlate(cosines[name], gold[name]).statistic for name in gold}
        want["mean"] = np.mean(list(want.values()))
        together = [np.concatenate(list(side.values())) for side in (cosines, gold)]
        want["all"] = correlate(*together).statistic
        for name, value in want.items():
            assert scores[f"sts13/{name}/{kind}"] == pytest.approx(value, rel=1e-6)
    assert len(scores) == 8


def test_planted_order_is_1_and_its_reverse_minus_1(tmp_path):
    write_subset(tmp_path / "sts" / "sts14", "up", [5, 3, 1], [0.1, 0.2, 0.3])
    write_subset(tmp_path / "sts" / "sts14", "down", [1, 3, 5], [0.1, 0.2, 0.3])
    scores = sts.run(embed_angle, tmp_path)
    assert scores["sts14/up/spearman"] == pytest.approx(1, abs=1e-12)
    assert scores["sts14/down/spearman"] == pytest.approx(-1, abs=1e-12)
    assert scores["sts14/mean/spearman"] == pytest.approx(0, abs=1e-12)


def test_a_constant_model_scores_0(tmp_path):
    write_subset(tmp_path / "sts" / "sick-r", "test", range(50), range(50))
    vector_d = np.random.default_rng(0).normal(size=77).astype(np.float32)
    scores = sts.run(lambda texts, side: np.tile(vector_d, (len(texts), 1)), tmp_path)
    assert set(scores.values()) == {0.0}


def test_bags_of_words_equal_scikit_learn():
    text_of_sklearn = pytest.importorskip("sklearn.feature_extraction.text", reason="evals extra")
    texts_a = ["red green green blue", "red", "nothing alike", ""]
    texts_b = ["green blue blue", "red", "quite another", "red"]
    tfidf = text_of_sklearn.TfidfVectorizer(smooth_idf=False, norm="l2")
    rows = tfidf.fit_transform(texts_a + texts_b).toarray()
    found = words.compare_bags(texts_a, texts_b)
    np.testing.assert_allclose(found, np.sum(rows[:4] * rows[4:], axis=1), atol=1e-12)


@needs_data
def test_bags_of_words_on_real_data():
    scores = sts.bag_of_words(DATA)
    assert 0.6 < scores["sts15/mean/spearman"] < 0.75


def test_marks_sts12_only_while_a_subset_is_missing(tmp_path):
    folder = tmp_path / "sts" / "sts12"
    for name in ("MSRpar", "OnWN", "SMTeuroparl", "SMTnews"):
        write_subset(folder, name, [1, 2], [0.1, 0.2])
    caveats = published.list_caveats(tmp_path)
    assert caveats["sts/sts12/mean/"] == "without MSRvid, which published figures include"
    write_subset(folder, "MSRvid", [1, 2], [0.1, 0.2])
    assert not [name for name in published.list_caveats(tmp_path) if name.startswith("sts/")]


def test_dots_belong_to_the_names_of_subsets(tmp_path):
    """Names of the files of a task, such as STS.input.images.tsv, are equal up to the first dot."""
    write_subset(tmp_path / "sts" / "sts14", "STS.input.a", [5, 3, 1], [0.3, 0.2, 0.1])
    write_subset(tmp_path / "sts" / "sts14", "STS.input.b", [1, 3, 5], [0.3, 0.2, 0.1])
    scores = sts.run(embed_angle, tmp_path)
    assert scores["sts14/STS.input.a/spearman"] == pytest.approx(-1, abs=1e-12)
    assert scores["sts14/STS.input.b/spearman"] == pytest.approx(1, abs=1e-12)
    assert scores["sts14/mean/spearman"] == pytest.approx(0, abs=1e-12)


def test_a_set_that_does_not_fit_leaves_the_scores_of_the_others(tmp_path):
    write_subset(tmp_path / "sts" / "sts13", "up", [5, 3, 1], [0.1, 0.2, 0.3])
    write_subset(tmp_path / "sts" / "sts14", "torn", [5, "x"], [0.1, 0.2])
    write_subset(tmp_path / "sts" / "sts15", "up", [5, 3, 1], [0.1, 0.2, 0.3])
    for run in (lambda: sts.run(embed_angle, tmp_path), lambda: sts.bag_of_words(tmp_path)):
        with pytest.raises(DataRefused, match=r"torn.tsv:3: score must be a number") as refused:
            run()
        sets = {name.partition("/")[0] for name in refused.value.scores}
        assert sets == {"sts13", "sts15"}


def test_sick_r_is_marked_while_it_has_other_pairs_than_mteb(tmp_path):
    write_subset(tmp_path / "sts" / "sick-r", "test", range(27), range(27))
    caveats = published.list_caveats(tmp_path)
    assert caveats["sts/sick-r/all/"] == "of 27 pairs; MTEB takes all 9,927"
    write_subset(tmp_path / "sts" / "sick-r", "train", range(9_900), range(9_900))
    assert published.list_caveats(tmp_path).keys() == {"code_search/codesearchnet/"}


def write_lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


SICK_HEADER = ("pair_ID", "sentence_A", "sentence_B", "relatedness_score", "entailment_judgment")
SCORED = [("0", "0.1", "5"), ("0", "0.2", "3"), ("0", "0.3", "1")]
"""Two texts and a score that agrees with their angles."""


def test_sick_r_as_it_is_distributed(tmp_path):
    """SICK-R is read from the three files of SentEval, and from SICK.txt with all pairs."""
    rows = [("1", a, b, score, "NEUTRAL") for a, b, score in SCORED]
    for file in ("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt"):
        write_lines(tmp_path / "sts" / "SICK" / file, SICK_HEADER, *rows)
    scores = sts.run(embed_angle, tmp_path)
    parts = {name.split("/")[1] for name in scores}
    assert parts == {"train", "trial", "test", "mean", "all"}
    assert {name.split("/")[0] for name in scores} == {"sick-r"}
    assert scores["sick-r/all/spearman"] == pytest.approx(1, abs=1e-12)
    caveats = published.list_caveats(tmp_path)
    assert caveats["sts/sick-r/all/"] == "of 9 pairs; MTEB takes all 9,927"
    whole = tmp_path / "sts" / "SICK" / "SICK.txt"
    header = ("pair_ID", "sentence_A", "sentence_B", "entailment_label", "relatedness_score")
    write_lines(whole, header, *[("1", a, b, "N", score) for a, b, score in SCORED])
    with refuse(f"{whole}: holds all parts; keep only it, or only the parts"):
        sts.run(embed_angle, tmp_path)
    whole.rename(tmp_path / "SICK.txt")
    (tmp_path / "sts" / "SICK").rename(tmp_path / "old")
    (tmp_path / "sts" / "sickr").mkdir()
    (tmp_path / "SICK.txt").rename(tmp_path / "sts" / "sickr" / "SICK.txt")
    assert sts.run(embed_angle, tmp_path)["sick-r/whole/spearman"] == pytest.approx(1, abs=1e-12)


def test_sts_b_as_it_is_distributed(tmp_path):
    """STS-B is read from its authors' files without a header, and from the files of GLUE, whose
    test part has no scores."""
    rows = [("main-news", "file", "2014", "1", score, a, b, "a licence") for a, b, score in SCORED]
    own = tmp_path / "own"
    for part in ("train", "dev", "test"):
        write_lines(own / "sts" / "stsbenchmark" / f"sts-{part}.csv", *rows)
    scores = sts.run(embed_angle, own)
    assert {name for name in scores if name.endswith("spearman")} == {
        f"sts-b/{part}/spearman" for part in ("train", "dev", "test")
    }
    assert scores["sts-b/test/spearman"] == pytest.approx(1, abs=1e-12)
    named = {f"sts/{name}": value for name, value in scores.items()}
    lines = {line.name: line for line in table.tabulate(named, {}, own)["sts"]}
    assert lines["sts-b/test/spearman"].published == table.PUBLISHED_FORM
    assert lines["sts-b/test/spearman"].caveat == ""
    assert lines["sts-b/dev/spearman"].caveat == "published figures are of the part test"
    assert lines["sts-b/dev/spearman"].published == ""


def test_glue_keeps_the_scores_of_its_test_part(tmp_path, capsys):
    header = ("index", "genre", "sentence1", "sentence2", "score")
    folder = tmp_path / "sts" / "STS-B"
    write_lines(folder / "dev.tsv", header, *[("1", "news", *row) for row in SCORED])
    write_lines(folder / "test.tsv", header[:-1], *[("1", "news", *row[:2]) for row in SCORED])
    scores = sts.run(embed_angle, tmp_path)
    assert scores.keys() == {"sts-b/dev/spearman", "sts-b/dev/pearson"}
    said = "has no column 'score', like the test part of GLUE; not scored"
    assert capsys.readouterr().out == f"{folder / 'test.tsv'}: {said}\n"
    (folder / "dev.tsv").unlink()
    with refuse(f"{folder}: no part of sts-b has scores; add one that has"):
        sts.run(embed_angle, tmp_path)


def test_sets_as_mteb_distributes_them(tmp_path):
    """A set of MTEB is one file of all pairs, which is both a part and the whole."""
    for name in ("sts12-sts", "sickr-sts", "stsbenchmark-sts"):
        folder = tmp_path / "sts" / name
        folder.mkdir(parents=True)
        rows = [{"score": float(s), "sentence1": a, "sentence2": b} for a, b, s in SCORED]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "test.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    scores = sts.run(embed_angle, tmp_path)
    for name in ("sts12/all", "sick-r/all", "sts-b/test"):
        assert scores[f"{name}/spearman"] == pytest.approx(1, abs=1e-12)
        assert published.is_published_form(f"sts/{name}/spearman")
        assert not published.is_published_form(f"sts/{name}/pearson")
    assert published.list_caveats(tmp_path)["sts/sts12/all/"] == "of 3 pairs; MTEB takes all 3,108"


def test_layouts_that_contradict_each_other_are_refused(tmp_path):
    rows = [("main-news", "file", "2014", "1", score, a, b) for a, b, score in SCORED]
    folder = tmp_path / "sts" / "sts-b"
    write_lines(folder / "sts-test.csv", *rows)
    write_subset(folder, "test", [1, 2], [0.1, 0.2])
    with refuse(f"{folder / 'sts-test.csv'}: test.tsv is the part test too; keep one"):
        sts.run(embed_angle, tmp_path)
    (folder / "test.tsv").unlink()
    write_lines(folder / "sts-dev.csv", *rows, ("main-news", "file", "2014"))
    with refuse(f"{folder / 'sts-dev.csv'}:4: expected 7 fields or more between tabs, found 3"):
        sts.run(embed_angle, tmp_path)
    (folder / "sts-dev.csv").unlink()
    other = tmp_path / "sts" / "stsbenchmark"
    other.mkdir()
    with refuse(f"{other}: sts-b is the set sts-b too; keep one of the two"):
        sts.run(embed_angle, tmp_path)
    other.rename(tmp_path / "sts" / "SICK")
    with refuse(
        f"{tmp_path / 'sts' / 'SICK'}: no .tsv files; expected one per subset, with score text_a "
        "text_b, or SICK.txt, or SICK_train.txt, or SICK_trial.txt, or SICK_test_annotated.txt"
    ):
        sts.run(embed_angle, tmp_path)


def refuse(text):
    return pytest.raises(UserError, match=re.escape(text))


def test_refusals(tmp_path):
    with refuse(f"{tmp_path / 'sts'}: none of the folders sts12, sts13, sts14, sts15, sts16, sick"):
        sts.run(embed_angle, tmp_path)
    folder = tmp_path / "sts" / "sts15"
    folder.mkdir(parents=True)
    with refuse(f"{folder}: no .tsv files; expected one per subset, with score text_a text_b"):
        sts.run(embed_angle, tmp_path)
    write_subset(folder, "belief", ["1", ""], [1, 2])
    with refuse(f"{folder / 'belief.tsv'}:3: score must be a number, found ''"):
        sts.run(embed_angle, tmp_path)
    write_subset(folder, "belief", [], [])
    with refuse(f"{folder / 'belief.tsv'}: 0 pairs, 0 scores; needs at least 2"):
        sts.run(embed_angle, tmp_path)
    write_subset(folder, "belief", [1, "1e308"], [1, 2])
    with refuse(f"{folder / 'belief.tsv'}:3: score 1e308 is out of range"):
        sts.run(embed_angle, tmp_path)
    write_subset(folder, "belief", [1, 2], [1, 2])
    (folder / "belief.tsv.gz").write_bytes(gzip.compress((folder / "belief.tsv").read_bytes()))
    with refuse(f"{folder / 'belief.tsv.gz'}: belief.tsv is there as well; keep one of the two"):
        sts.run(embed_angle, tmp_path)
    (folder / "belief.tsv.gz").rename(folder / "all.tsv.gz")
    with refuse(f"{folder / 'all.tsv.gz'}: 'all' names a score of the whole set; rename the file"):
        sts.run(embed_angle, tmp_path)
    (folder / "all.tsv.gz").unlink()
    write_subset(folder, "belief", [1, 2], [1, "nan"])
    with refuse("1 of 2 embeddings of side x are not finite"):
        sts.run(embed_angle, tmp_path)
