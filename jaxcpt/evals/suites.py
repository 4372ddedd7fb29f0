"""The table of the paper's suites, and the functions that run them.

In: `embed_fn` and the data folder, which holds a folder for each suite. Out: scores by
`<suite>/<name>`. The module knows no model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxcpt.beir import CORPUS, QUERIES, list_folders
from jaxcpt.errors import UserError
from jaxcpt.evals import (
    CorpusFn,
    EmbedFn,
    classification,
    code_search,
    collect,
    finish,
    linear_probe,
    open_qa,
    require_library,
    retrieval,
    sts,
    sts_files,
)
from jaxcpt.lines import find_file


@dataclass(frozen=True, kw_only=True)
class Suite:
    name: str
    folder: str
    """Name of its folder in the data folder."""
    run: Callable[..., dict[str, float]]
    """`embed_fn` and the data folder -> scores by name. Takes `corpus_fn` if `has_corpora`."""
    run_words: Callable[[Path], dict[str, float]]
    """The data folder -> the scores of a baseline that only matches words, by the same names."""
    words_label: str
    """Name of that baseline."""
    libraries: tuple[str, ...] = ()
    """The libraries of the extra `evals` that it needs."""
    note: str = ""
    """A line below its table that explains the names of its scores."""
    has_corpora: bool = False
    """Whether it searches corpora that need not fit in memory, whose vectors may be kept."""


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="linear_probe",
            folder="linear_probe",
            run=classification.run,
            run_words=linear_probe.bag_of_words,
            words_label="bag of words",
            libraries=("sklearn", "threadpoolctl"),
            note=(
                "zero_shot: the label whose word, or prompt with the word, is nearest; neighbours: "
                "the label of most of the 256 nearest training texts; all others: the probe"
            ),
        ),
        Suite(
            name="sts",
            folder="sts",
            run=sts.run,
            run_words=sts.bag_of_words,
            words_label="bag of words",
            note=(
                "all: the pairs of all subsets of a set together, as MTEB and model cards publish; "
                "mean: the mean of the subsets' own scores; 'this form': the row to compare with "
                "published figures"
            ),
        ),
        Suite(
            name="retrieval",
            folder="retrieval",
            run=retrieval.run,
            run_words=retrieval.bm25,
            words_label="BM25",
            libraries=("pytrec_eval", "Stemmer"),
            has_corpora=True,
        ),
        Suite(
            name="code_search",
            folder="code_search",
            run=code_search.run,
            run_words=code_search.bm25,
            words_label="BM25",
            note=(
                "codesearchnet: each function among 1,000; codesearchnet_10k: among 10,000; all "
                "other sets: in the whole corpus"
            ),
        ),
        Suite(
            name="open_qa",
            folder="dpr",
            run=open_qa.run,
            run_words=open_qa.bm25,
            words_label="BM25",
            libraries=("regex", "Stemmer"),
            has_corpora=True,
        ),
    )
}
"""`config.SuiteName` lists the same names; a test compares them."""


def run_suites(
    embed_fn: EmbedFn, data: Path, names: Sequence[str], corpus_fn: CorpusFn | None = None
) -> dict[str, float]:
    """Scores by `<suite>/<name>`.

    corpus_fn: embeds the corpora of suites that have some; None: `embed_blocks`. Raises UserError
    for an unknown suite. If some sets cannot be read, raises DataRefused with the scores of the
    others.
    """
    if unknown := [name for name in names if name not in SUITES]:
        raise UserError(f"suite {unknown[0]}: there is no such suite; choose {', '.join(SUITES)}")
    scores: dict[str, float] = {}
    problems: list[str] = []
    for name in names:
        suite = SUITES[name]
        options = [corpus_fn] if suite.has_corpora else []
        scores |= _prefix(name, collect(problems, suite.run, embed_fn, data, *options))
    return finish(scores, problems)


def score_words(data: Path, names: Sequence[str]) -> dict[str, float]:
    """Scores of the baselines that only match words, by `<suite>/<name>`."""
    scores: dict[str, float] = {}
    problems: list[str] = []
    for name in names:
        scores |= _prefix(name, collect(problems, SUITES[name].run_words, data))
    return finish(scores, problems)


def list_suites(data: Path, chosen: str) -> list[str]:
    """The suite `chosen`, or for "all" the suites whose folder is in `data`. Raises UserError."""
    if chosen not in (*SUITES, "all"):
        raise UserError(f"--suite {chosen}: unknown; choose {', '.join(SUITES)} or all")
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; it holds a folder for each suite")
    if chosen != "all":
        return [chosen]
    present = [suite.name for suite in SUITES.values() if (data / suite.folder).is_dir()]
    if not present:
        folders = ", ".join(suite.folder for suite in SUITES.values())
        raise UserError(
            f"--data {data}: none of the folders {folders} is there; name the folder that holds "
            "one of them, and not a single set"
        )
    return present


def check_suites(data: Path, names: Sequence[str]) -> None:
    """Raises UserError if `data` has no folder of a suite, or if a needed library is missing."""
    list_suites(data, "all")
    require_libraries(names)


def require_libraries(names: Sequence[str]) -> None:
    """Raises UserError if a library that one of the suites needs is missing."""
    for name in names:
        for library in SUITES[name].libraries:
            require_library(library)


def describe_unknown(data: Path, chosen: str) -> list[str]:
    """Lines about folders that no suite reads, with what was expected there.

    They are looked for in the folder of the suite `chosen`, or for "all" in `data` and in the
    folders of all suites.
    """
    scored = SUITES[chosen].folder if chosen in SUITES else ""
    return [
        f"{path}: no suite reads it, so it is not scored; expected {_say_expected(data, path)}"
        for folder, known in _list_known(data).items()
        if not scored or folder.partition("/")[0] == scored
        for path in sorted((data / folder).glob("[!._]*/"))
        if path.name not in known and not (folder == "sts" and sts_files.find_set(path))
    ]


def _list_known(data: Path) -> dict[str, set[str]]:
    """For each folder, the names of the folders in it that suites read."""
    known = {
        "": {suite.folder for suite in SUITES.values()},
        "linear_probe": set(linear_probe.TASKS),
        "sts": set(sts_files.SETS),
    }
    for folder in ("retrieval", "code_search"):
        sets = {path.relative_to(data / folder) for path in list_folders(data / folder)}
        known[folder] = {path.parts[0] for path in sets}
        for path in sets:
            if len(path.parts) == 2:
                known.setdefault(f"{folder}/{path.parts[0]}", set()).add(path.parts[1])
    known["code_search"].add("codesearchnet")
    known["code_search/codesearchnet"] = set(code_search.LANGUAGES)
    return known


def _say_expected(data: Path, path: Path) -> str:
    """What was expected instead of a folder that no suite reads, in words."""
    folder = path.parent.relative_to(data).as_posix()
    if folder == ".":
        if set_name := sts_files.find_set(path):
            return f"{set_name} in the folder sts"
        if path.name in linear_probe.TASKS:
            return f"{path.name} in the folder linear_probe"
        if find_file(path / CORPUS):
            return f"a folder with a {CORPUS} in the folder retrieval or code_search"
        return f"one of {', '.join(suite.folder for suite in SUITES.values())}"
    if folder == "linear_probe":
        return f"one of {', '.join(linear_probe.TASKS)}"
    if folder == "sts":
        return f"one of {', '.join(sts_files.SETS)}"
    if folder == "code_search/codesearchnet":
        return f"one of {', '.join(code_search.LANGUAGES)}"
    return f"{CORPUS}, {QUERIES} and qrels/ in it or in its folders"


def _prefix(suite: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{suite}/{name}": value for name, value in scores.items()}
