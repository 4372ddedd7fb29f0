"""The table of the paper's suites, and what runs them.

In: `embed_fn` and the data folder, which holds a folder for each suite. Out: scores by
`<suite>/<name>`. It knows no model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.evals import (
    CorpusFn,
    EmbedFn,
    code_search,
    linear_probe,
    open_qa,
    retrieval,
    sts,
)


@dataclass(frozen=True, kw_only=True)
class Suite:
    name: str
    folder: str
    """Its folder in the data folder."""
    run: Callable[..., dict[str, float]]
    """`embed_fn` and the data folder -> scores by name. Takes `corpus_fn` if `has_corpora`."""
    run_words: Callable[[Path], dict[str, float]]
    """The data folder -> the scores of matching words alone, by the same names."""
    words_label: str
    """What matches the words."""
    has_corpora: bool = False
    """It searches corpora that need not fit in memory. Their vectors may be kept on disk."""


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="linear_probe",
            folder="linear_probe",
            run=linear_probe.run,
            run_words=linear_probe.bag_of_words,
            words_label="bag of words",
        ),
        Suite(
            name="sts",
            folder="sts",
            run=sts.run,
            run_words=sts.bag_of_words,
            words_label="bag of words",
        ),
        Suite(
            name="retrieval",
            folder="retrieval",
            run=retrieval.run,
            run_words=retrieval.bm25,
            words_label="BM25",
            has_corpora=True,
        ),
        Suite(
            name="code_search",
            folder="code_search",
            run=code_search.run,
            run_words=code_search.bm25,
            words_label="BM25",
        ),
        Suite(
            name="open_qa",
            folder="dpr",
            run=open_qa.run,
            run_words=open_qa.bm25,
            words_label="BM25",
            has_corpora=True,
        ),
    )
}
"""`config.SuiteName` lists the same names; a test compares them."""


def run_suites(
    embed_fn: EmbedFn, data: Path, names: Sequence[str], corpus_fn: CorpusFn | None = None
) -> dict[str, float]:
    """Scores by `<suite>/<name>`. Raises UserError for an unknown suite.

    corpus_fn: embeds the corpora of suites that have some. None: see `embed_blocks`.
    """
    if unknown := [name for name in names if name not in SUITES]:
        raise UserError(f"suite {unknown[0]}: there is no such suite; choose {', '.join(SUITES)}")
    scores: dict[str, float] = {}
    for name in names:
        suite = SUITES[name]
        options = {"corpus_fn": corpus_fn} if suite.has_corpora else {}
        scores |= _prefix(name, suite.run(embed_fn, data, **options))
    return scores


def score_words(data: Path, names: Sequence[str]) -> dict[str, float]:
    """What matching words alone scores, by `<suite>/<name>`."""
    scores: dict[str, float] = {}
    for name in names:
        scores |= _prefix(name, SUITES[name].run_words(data))
    return scores


def list_suites(data: Path, chosen: str) -> list[str]:
    """`chosen` alone, or for "all" the suites whose folder is in `data`. Raises UserError."""
    if chosen not in (*SUITES, "all"):
        raise UserError(f"--suite {chosen}: there are {', '.join(SUITES)}, and all")
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; it holds a folder for each suite")
    if chosen != "all":
        return [chosen]
    present = [suite.name for suite in SUITES.values() if (data / suite.folder).is_dir()]
    if not present:
        folders = ", ".join(suite.folder for suite in SUITES.values())
        raise UserError(f"--data {data}: none of the folders {folders} is there")
    return present


def _prefix(suite: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{suite}/{name}": value for name, value in scores.items()}
