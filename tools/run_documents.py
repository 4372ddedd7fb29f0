"""Runs the commands of README.md and docs/*.md on small data, page by page.

    python tools/run_documents.py [--only search.md ...]

Each page gets a folder of its own with a copy of the clone, the small files of tests/documents and
what `TAKES` lists. There its `sh` blocks run from top to bottom, each as a script that ends at the
first failure. `REWRITES` makes the commands short. What cannot run is listed with its reason in
`NOT_RUN`; a command that is not listed there runs. README.md comes first, because other pages take
its runs.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "tests" / "documents"
CLONE = ("docs", "experiments", "jaxcpt", "tools")

FEW_STEPS = "--set train_steps=2 --set optimizer.warmup_steps=1"
FEW_PAIRS = f"{FEW_STEPS} --set batching.pairs_per_batch=4"
SMALL_PACKAGES = " ".join(
    f"""--set '{source}={{"type": "PythonPackages", "split": "{split}", "heldout_functions": 20,"""
    f""" "packages": ["argparse", "email", "json"]}}'"""
    for source, split in (("data.train.0", "train"), ("data.heldout", "heldout"))
)

REWRITES = {
    r"^pip install .* && ": "",
    r"(--experiment experiments/minilm_code\.py)": rf"\1 {FEW_PAIRS} {SMALL_PACKAGES}",
    r"(--experiment experiments/(?!minilm)(\w+)\.py)": r"\1 --smoke --run-dir runs/\2",
    r"((?:train|inspect) --experiment (mine|mixture)\.py)": rf"\1 {FEW_PAIRS}",
    r"--run-dir runs/cpt_text_s ": "--run-dir runs/quickstart ",
    r"--output data/text ": "--output data/text --heldout-share 0.3 ",
    r"--profile 3": "--profile 1",
    r"batching\.pairs_per_batch=128": "batching.pairs_per_batch=4",
    r"--vocabulary 32000": "--vocabulary 600",
    r"--input \.venv ": "--input tools ",
    r"--input /usr/share/doc ": "--input docs ",
    r"--code \. ": "--code experiments ",
    r"--text docs ": "--text $DATA/wikitext2 ",
}
"""What the pages write, as regular expressions, and what runs instead. Later values replace earlier
ones where a command gives an option twice, so a page may still choose its own --run-dir."""

NOT_RUN = {
    r"pip install": "the environment has what it installs",
    r"JAX_PLATFORMS=cpu pytest": ".ci/run runs the tests",
    r"python -m jaxcpt.train --experiment experiments/(cpt|lm_code)_": ".ci/run trains it, small",
    r"dask |jaxcpt mine-text --input /mnt/crawl": "needs a cluster; see tests/test_mining_dask.py",
    r".*--mteb": "needs MTEB's data from the network",
    r"jaxcpt plan": "takes minutes; .ci/run compiles the same plans with tools/check_plans.py",
    r"python tools/(bench|findings|score_tables)": "takes an hour or more on a quiet machine",
    r"python tools/gradient_table.py": "takes 17 minutes; .ci/run runs it with --quick",
    r"jaxcpt replay": "needs a step that is not finite; tests/test_bad_steps.py makes one",
}
"""Beginnings of commands that do not run here, as regular expressions, each with its reason."""

PAGES_NOT_RUN = {
    "start.md": "tests/test_start_page.py runs its commands",
    "tpu-pod.md": "tests/test_tpu_pod_page.py runs its commands; gcloud needs an account of Google",
}

TAKES = {
    "adapt.md": ("README.md", ["runs/quickstart"]),
    "evaluation.md": ("README.md", ["runs/quickstart", "runs/minilm_code"]),
    "export.md": ("README.md", ["runs/quickstart", "runs/minilm_code"]),
    "performance-log.md": ("data.md", ["mixture.py", "data"]),
    "report.md": ("README.md", ["runs/quickstart", "runs/minilm_code"]),
}
"""What a page takes for granted, and the page that makes it."""


def find_pages() -> dict[str, str]:
    """The text of README.md and of each page of docs, by the file's name."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {page.name: page.read_text() for page in pages}


def find_blocks(text: str) -> list[str]:
    """The `sh` blocks of a page; a command that goes on on the next line is one line."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r" *\\\n\s*", " ", block) for block in blocks]


def rewrite(command: str) -> str:
    for pattern, replacement in REWRITES.items():
        command = re.sub(pattern, replacement, command)
    return command


def find_script(block: str) -> str:
    """What runs of a block; nothing if none of its commands runs."""
    commands = [rewrite(line) for line in block.splitlines()]
    return "\n".join(c for c in commands if not any(re.match(start, c) for start in NOT_RUN))


def make_data(data: Path) -> None:
    """The folder that the pages call `$DATA`."""
    for name in ("retrieval/scifact", "code_search/cosqa"):
        shutil.copytree(SAMPLES / "search_set", data / name)
    files = {
        "sts13.tsv": "sts/sts13/headlines.tsv",
        "conala.jsonl": "code_pairs/conala.jsonl",
        "wikitext.txt": "wikitext2/valid.txt",
    }
    for sample, name in files.items():
        (data / name).parent.mkdir(parents=True)
        shutil.copy(SAMPLES / sample, data / name)
    shutil.copytree(ROOT / "docs", data / "prose", ignore=shutil.ignore_patterns("*.png"))


def make_folder(folder: Path, page: str, text: str, work: Path) -> None:
    """What is there before the first command of a page: the clone, the samples, other pages' runs.

    A page may also show a file, such as an experiment, as a `python` block after the file's name.
    """
    for name in CLONE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SAMPLES, folder, dirs_exist_ok=True)
    shutil.copytree(ROOT / "tools", folder / "repositories" / "tools")
    for name in ("scifact", "msmarco"):
        shutil.copytree(SAMPLES / "search_set", folder / "data" / name)
    shutil.copy(SAMPLES / "conala.jsonl", folder / "data")
    earlier, paths = TAKES.get(page, ("", []))
    for path in paths:
        source, target = work / earlier / path, folder / path
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    for name, program in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)^```", text, re.M | re.S):
        (folder / name).write_text(program.replace("32000", "600"))


def run_page(page: str, text: str, work: Path) -> str:
    """Runs the blocks of a page. Returns what went wrong; nothing if all went well."""
    folder, start = work / page, time.perf_counter()
    make_folder(folder, page, text, work)
    environment = {
        **os.environ,
        "DATA": str(work / "data"),
        "HOME": str(folder),
        "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for script in filter(None, map(find_script, find_blocks(text))):
        command = ["bash", "-euxo", "pipefail", "-c", script]
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            return f"{page}: exit code {done.returncode}\n{done.stdout.decode(errors='replace')}"
    print(f"{page}: {time.perf_counter() - start:.0f} s", flush=True)
    return ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run the commands of the documents, small.")
    parser.add_argument("--only", nargs="+", metavar="PAGE", help="and the pages they take from")
    only = parser.parse_args(argv).only
    pages = {n: text for n, text in find_pages().items() if n not in PAGES_NOT_RUN}
    if only:
        wanted = {*only, *(TAKES[page][0] for page in only if page in TAKES)}
        pages = {name: text for name, text in pages.items() if name in wanted}
    givers = {giver for giver, _ in TAKES.values()}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        work = Path(scratch)
        make_data(work / "data")
        faults: list[str] = []
        for wave in (givers & set(pages), set(pages) - givers):
            names = sorted(wave)
            faults += pool.map(lambda name: run_page(name, pages[name], work), names)
    faults = [fault for fault in faults if fault]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = f"{used.ru_utime + used.ru_stime:.0f} s of processors"
    print("\n".join(faults) or "every command ran", f"{time.perf_counter() - start:.0f} s, {cores}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
