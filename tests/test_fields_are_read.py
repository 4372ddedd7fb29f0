"""Every field of an experiment is read somewhere. mypy finds out which class a read belongs to."""

import ast
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

    It renames fields where they are declared. mypy then reports each place that reads a field by
    its old name, with the class of the object. mypy does not know the type of a missing field.
    Therefore fields that hold a part of the experiment are renamed in separate runs, one for each
    class.
    """
    parts = {*CLASSES, "Source"}

    def holds_part(node):
        return any(isinstance(n, ast.Name) and n.id in parts for n in ast.walk(node.annotation))

    reads = find_reads_of(folder, lambda name, node: not holds_part(node))
    for name in ("Experiment", "Baseline", "Model", "Data"):
        reads |= find_reads_of(folder, lambda own, node, n=name: own == n and holds_part(node))
    return reads


def find_reads_of(folder, selects):
    """The reads of chosen fields. selects: class, declaration -> whether the field is chosen."""
    before = {}
    for path in (folder / "jaxcpt" / name for name in ("config.py", "sources.py")):
        before[path] = path.read_text()
        lines = before[path].splitlines(keepends=True)
        for own in ast.parse(before[path]).body:
            for node in own.body if isinstance(own, ast.ClassDef) else []:
                if isinstance(node, ast.AnnAssign) and selects(own.name, node):
                    lines[node.lineno - 1] = "    renamed_" + lines[node.lineno - 1].lstrip()
        path.write_text("".join(lines))
    command = [sys.executable, "-m", "mypy", "--config-file", REPOSITORY / "pyproject.toml"]
    command += ["--cache-dir", folder / "cache", "--follow-imports=skip", "--soft-error-limit=-1"]
    command += ["--no-pretty", "--no-color-output", "jaxcpt", "tools"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    for path, text in before.items():
        path.write_text(text)
    found = re.findall(r'"(?:\w+\.)*(\w+)"(?: of "[^"]*")? has no attribute "(\w+)"', done.stdout)
    return set(found)


def find_unread(reads):
    for name, part in CLASSES.items():
        for field in dataclasses.fields(part):
            heirs = {heir for heir, other in CLASSES.items() if issubclass(other, part)}
            declared = field.name in vars(part).get("__annotations__", {})
            if (
                declared
                and name not in READ_BY_NAME
                and not any((heir, field.name) in reads for heir in heirs)
            ):
                yield f"{name}.{field.name}"


@pytest.fixture
def clone(tmp_path):
    for name in ("jaxcpt", "tools"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    return tmp_path


def test_every_field_is_read(clone):
    """A field that nothing reads would have no effect."""
    assert list(find_unread(find_reads(clone))) == []


def test_an_unread_field_is_found(clone):
    """Other classes also have fields of this name, so a search for the name is not enough."""
    for path in [*clone.rglob("*.py")]:
        path.write_text(path.read_text().replace("checkpoints.every_steps", "evals.every_steps"))
    assert list(find_unread(find_reads(clone))) == ["Checkpoints.every_steps"]
