"""Published scores, and the reasons why some of our scores cannot be compared with them.

In: the data folder. Out: published scores by the name of our score, and reasons by the prefix of
that name. It computes nothing. Each figure was checked against its source.
"""

from pathlib import Path

from jaxcpt.evals import sts

FIGURES: dict[str, dict[str, float]] = {
    "linear_probe/average": {"cpt-text XL": 0.922},
    "retrieval/BEIR average/ndcg_at_10": {
        "cpt-text L, unsupervised": 0.442,
        "cpt-text XL, tuned on MS MARCO": 0.528,
        "Contriever, unsupervised": 0.409,
        "BM25": 0.476,
    },
    "retrieval/scifact/ndcg_at_10": {"BM25": 0.665},
    "code_search/codesearchnet/average/mrr": {"cpt-code M": 0.935, "cpt-code S": 0.934},
    "code_search/codesearchnet/go/mrr": {"cpt-code M": 0.975, "cpt-code S": 0.977},
    "code_search/codesearchnet/ruby/mrr": {"cpt-code M": 0.855, "cpt-code S": 0.863},
    "code_search/codesearchnet/python/mrr": {"cpt-code M": 0.999, "cpt-code S": 0.998},
    "code_search/codesearchnet/java/mrr": {"cpt-code M": 0.944, "cpt-code S": 0.940},
    "code_search/codesearchnet/javascript/mrr": {"cpt-code M": 0.865, "cpt-code S": 0.860},
    "code_search/codesearchnet/php/mrr": {"cpt-code M": 0.972},
}
"""Scores from 0 to 1 by `<suite>/<name of our score>`, then by system. BM25 on SciFact is from the
BEIR paper; all other figures are from the cpt paper."""

STS12_SUBSETS = {"MSRpar", "MSRvid", "OnWN", "SMTeuroparl", "SMTnews"}


def list_caveats(data: Path) -> dict[str, str]:
    """By prefix of `<suite>/<name>`: why such scores cannot be compared with published ones."""
    caveats = {
        "code_search/codesearchnet/": (
            "code here is code_tokens, without documentation; the paper does not say what it took"
        ),
    }
    folder = Path(data) / "sts" / "sts12"
    if folder.is_dir():
        names = {path.name.partition(".")[0] for path in sts.list_subsets(folder)}
        if missing := sorted(STS12_SUBSETS - names):
            reason = f"without {', '.join(missing)}, which published figures include"
            caveats |= {"sts/sts12/mean/": reason, "sts/sts12/all/": reason}
    for name, reason in {
        "code_search/concode_java": "made from CONCODE's dev split; no published search task",
        "retrieval/nq_utd": "of Cocktail's NQ-UTD the human-written documents alone",
    }.items():
        if (Path(data) / name).is_dir():
            caveats[f"{name}/"] = reason
    return caveats
