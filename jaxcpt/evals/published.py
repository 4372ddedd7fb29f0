"""Published scores, and the reasons why some of our scores cannot be compared with them.

In: the data folder. Out: published scores by the name of our score, and reasons by the prefix of
that name. The module computes no score. Each figure was checked against its publication.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from jaxcpt.beir import FORUMS, find_whole, list_folders
from jaxcpt.errors import UserError
from jaxcpt.evals import sts_files

CPT, GTE = "arXiv 2201.10005 (the paper)", "arXiv 2308.03281 (GTE), BEIR table"
BY_SOURCE: dict[str, dict[str, dict[str, float]]] = {
    f"{CPT}, section 3.1": {
        "linear_probe/average": {"cpt-text XL": 0.922},
        "linear_probe/sst2_zero_shot_prompt": {"exceeded by cpt-text": 0.854},
    },
    f"{CPT}, section 3.2": {
        "retrieval/BEIR average/ndcg_at_10": {
            "cpt-text L, unsupervised": 0.442,
            "cpt-text XL, tuned on MS MARCO": 0.528,
            "Contriever, unsupervised": 0.409,
            "BM25": 0.476,
        },
    },
    f"{CPT}, section 3.3": {
        "code_search/codesearchnet/average/mrr": {"cpt-code M": 0.935, "cpt-code S": 0.934},
        "code_search/codesearchnet/go/mrr": {"cpt-code M": 0.975, "cpt-code S": 0.977},
        "code_search/codesearchnet/ruby/mrr": {"cpt-code M": 0.855, "cpt-code S": 0.863},
        "code_search/codesearchnet/python/mrr": {"cpt-code M": 0.999, "cpt-code S": 0.998},
        "code_search/codesearchnet/java/mrr": {"cpt-code M": 0.944, "cpt-code S": 0.940},
        "code_search/codesearchnet/javascript/mrr": {"cpt-code M": 0.865, "cpt-code S": 0.860},
        "code_search/codesearchnet/php/mrr": {"cpt-code M": 0.972, "cpt-code S": 0.967},
    },
    f"{CPT}, table 9": {
        "retrieval/nq_dev/mrr_at_10": {
            "cpt-text S, batch 12,288": 0.847,
            "cpt-text S, batch 1,536": 0.714,
        },
    },
    "arXiv 2104.08663 (BEIR), table 2": {"retrieval/scifact/ndcg_at_10": {"BM25": 0.665}},
    GTE: {
        f"retrieval/{name}/ndcg_at_10": {"cpt-text S": score}
        for name, score in {
            "msmarco": 0.199,
            "trec-covid": 0.529,
            "nfcorpus": 0.320,
            "hotpotqa": 0.515,
            "fiqa": 0.341,
            "arguana": 0.387,
            "webis-touche2020": 0.210,
            "quora": 0.681,
            "dbpedia-entity": 0.272,
            "fever": 0.571,
            "climate-fever": 0.158,
            "scifact": 0.654,
        }.items()
    },
}
"""Scores from 0 to 1 by publication, then by `<suite>/<name of our score>`, then by system. nq_dev
is the development set of Natural Questions. The paper does not say which candidates it used."""

FIGURES: dict[str, dict[str, float]] = {
    name: {
        system: value
        for figures in BY_SOURCE.values()
        for system, value in figures.get(name, {}).items()
    }
    for named in BY_SOURCE.values()
    for name in named
}
"""The same scores by `<suite>/<name of our score>`, then by system."""

STS12_SUBSETS = {"MSRpar", "MSRvid", "OnWN", "SMTeuroparl", "SMTnews"}
SICK_R_PAIRS = 9_927
"""Number of pairs in the parts train, trial and test together."""
STS12_PAIRS = 3_108
FORUMS_COUNT = 12


def list_caveats(data: Path) -> dict[str, str]:
    """Reasons why scores cannot be compared with published ones, by prefix of `<suite>/<name>`."""
    caveats = {
        "code_search/codesearchnet/": (
            "code here is code_tokens, without documentation; the paper does not say what it used"
        ),
    }
    for folder in sts_files.list_folders(Path(data) / "sts"):
        with suppress(UserError):  # a set that cannot be read has no scores
            caveats |= _list_sts_caveats(*sts_files.read_set(folder))
    folder = Path(data) / "retrieval"
    names = [path.relative_to(folder).as_posix() for path in list_folders(folder)]
    if 0 < (count := [find_whole(name) for name in names].count(FORUMS)) < FORUMS_COUNT:
        for score in ("ndcg_at_10", "mrr_at_10", "recall_at_100", "map"):
            caveats[f"retrieval/{FORUMS}/{score}"] = f"the mean of {count} of {FORUMS_COUNT} forums"
    for name, reason in {
        "code_search/concode_java": "made from CONCODE's dev split; not a published search task",
        "retrieval/nq_utd": "only the human-written documents of Cocktail's NQ-UTD",
    }.items():
        if (Path(data) / name).is_dir():
            caveats[f"{name}/"] = reason
    return caveats


def _list_sts_caveats(name: str, parts: Mapping[str, sts_files.Subset]) -> dict[str, str]:
    count = sum(len(gold_n) for gold_n, _, _ in parts.values())
    if name == sts_files.STS_B:
        others = sorted(parts.keys() - {"test"})
        return {f"sts/{name}/{part}/": "published figures are of the part test" for part in others}
    if name == sts_files.SICK_R and count != SICK_R_PAIRS:
        return {f"sts/{name}/all/": f"of {count:,} pairs; MTEB takes all {SICK_R_PAIRS:,}"}
    if name == "sts12" and (missing := sorted(STS12_SUBSETS - parts.keys())):
        if len(missing) < len(STS12_SUBSETS):
            reason = f"without {', '.join(missing)}, which published figures include"
        elif count != STS12_PAIRS:
            reason = f"of {count:,} pairs; MTEB takes all {STS12_PAIRS:,}"
        else:
            return {}
        return {f"sts/{name}/{score}/": reason for score in (sts_files.MEAN, sts_files.ALL)}
    return {}


def is_published_form(name: str) -> bool:
    """Whether a score of the suite sts is the one that MTEB and model cards publish for its set.

    That is the Spearman correlation of all pairs of a set together, or of the test part of STS-B.
    """
    part = "test" if name.startswith(f"sts/{sts_files.STS_B}/") else sts_files.ALL
    return name.startswith("sts/") and name.endswith(f"/{part}/spearman")
