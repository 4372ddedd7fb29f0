"""Every field of an experiment is read somewhere, judged for each class by mypy's type inference."""

import dataclasses
import inspect
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from jaxcpt import config, sources

pytest.importorskip("mypy", reason="needs pip install 'jaxcpt[dev]'")

# `derive_baseline` copies all fields of Baseline into the Experiment that it makes.
READ_BY_NAME = {"Baseline"}
CLASSES = {
    name: part
    for module in (config, sources)
    for name, part in inspect.getmembers(module, dataclasses.is_dataclass)
}


def find_reads(folder):
    """The pairs (class, field) that the code in `folder` reads.

    It renames fields where they are declared. Then mypy reports each place that reads a field by
    its old name, with the class of the object. Fields that hold another part of the experiment are
    renamed in a run of their own, because mypy does not know the type of a field that is missing.
    """
    parts = "|".join([*CLASSES, "Source"])
    leaf, branch = rf"(?!.*\b(?:{parts})\b)", rf"(?=.*\b(?:{parts})\b)"
    return find_reads_of(folder, leaf) | find_reads_of(folder, branch)


def find_reads_of(folder, annotation):
    """The same for the fields whose annotation matches a regular expression."""
    before = {folder / "jaxcpt" / name: "" for name in ("config.py", "sources.py")}
    for path in before:
        before[path] = path.read_text()
        renamed = re.sub(rf"(?m)^    (\w+): {annotation}", r"    renamed_\1: ", before[path])
        path.write_text(renamed)
    options = ["--follow-imports=skip", "--soft-error-limit=-1", "--no-pretty", "--no-color-output"]
    files = [name for name in ("jaxcpt", "tools") if (folder / name).is_dir()]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", REPOSITORY / "pyproject.toml"]
        + ["--cache-dir", folder / "cache", *options, *files],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for path, text in before.items():
        path.write_text(text)
    reads = re.findall(r'"(?:\w+\.)*(\w+)"(?: of "[^"]*")? has no attribute "(\w+)"', done.stdout)
    return set(reads)


def find_unread(reads):
    for name, part in CLASSES.items():
        for field in dataclasses.fields(part):
            heirs = {heir for heir, other in CLASSES.items() if issubclass(other, part)}
            declared = field.name in vars(part).get("__annotations__", {})
            if declared and name not in READ_BY_NAME and not any(
                (heir, field.name) in reads for heir in heirs
            ):
                yield f"{name}.{field.name}"


@pytest.fixture
def clone(tmp_path):
    for name in ("jaxcpt", "tools"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    return tmp_path


def test_every_field_is_read(clone):
    """A field that nothing reads promises something that no code does."""
    assert list(find_unread(find_reads(clone))) == []


def test_an_unread_field_is_found(clone):
    """Other classes have fields of this name too, so a search for the name alone is not enough."""
    for path in [*clone.rglob("*.py")]:
        path.write_text(path.read_text().replace("checkpoints.every_steps", "evals.every_steps"))
    assert list(find_unread(find_reads(clone))) == ["Checkpoints.every_steps"]
