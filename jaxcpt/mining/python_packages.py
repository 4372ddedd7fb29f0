"""Installed Python packages in, (docstring, function) pairs out.

In: import names, or nothing for the standard library and all that jaxcpt's installation brought.
Out: training and held-out pairs. Files are read and parsed, never imported. It knows no tokenizer:
lengths and identifiers are left as they are.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.pair import Pair

# Parts of a path that mark tests, code copied from another package, and what is no library.
_SKIPPED_FOLDER = re.compile(
    r"tests?|.*_tests?|testdata|idle_test|_vendor|vendor(ed)?|_?externals?|extern|third_party"
    r"|__pycache__|site-packages|dist-packages|lib2to3"
)
_SKIPPED_FILE = re.compile(r"(test_.*|.*_tests?|conftest|.*_pb2(_grpc)?)\.py")
_GENERATED = re.compile(r"(?i)^#.*(generated (by|from|file)|do not edit)", re.MULTILINE)
_CLASS_LETTERS = 2000  # of a class as a neighbour: more than a small model reads


_Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def mine_packages(
    packages: tuple[str, ...], heldout_functions: int, seed: int, neighbours: bool = False
) -> tuple[list[Pair], list[Pair]]:
    """(train, heldout), the latter of exactly `heldout_functions` pairs from whole modules.

    Modules are held out in the order of a hash of seed and name. No docstring and no body of a
    held-out pair occurs in training, and none occurs twice in either. With `neighbours`, training
    has other pairs of the same files behind its functions (`_mine_neighbours`). Raises UserError
    where a package is not installed, or where there are too few functions.
    """
    modules: dict[str, Path] = {}
    for module, path in _own_modules() if not packages else _named_modules(packages):
        modules.setdefault(module, path)
    heldout: list[Pair] = []
    train: list[Pair] = []
    others: list[Pair] = []
    seen: set[str] = set()
    held: set[str] = set()
    for module in sorted(modules, key=lambda name: _hash(f"{seed}:{name}")):
        file = _parse_file(modules[module])
        if file is None:
            continue
        holds = len(heldout) < heldout_functions
        for pair, keys in _mine_functions(module, *file):
            if seen.isdisjoint(keys):
                seen.update(keys)
                (heldout if holds else train).append(pair)
        if holds:
            held = set(seen)
        elif neighbours:
            others += _mine_neighbours(module, *file, held)
    if len(heldout) < heldout_functions or not train:
        raise UserError(
            f"data: {len(heldout) + len(train)} documented functions in "
            f"{', '.join(packages) or 'the installed packages'}, too few to hold out "
            f"{heldout_functions}; name more packages or lower heldout_functions"
        )
    distinct = {_key(pair.x) + _key(pair.y): pair for pair in others}
    # The last module may hold more than are missing: what is over is in neither.
    return train + list(distinct.values()), heldout[:heldout_functions]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _named_modules(names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None:
            raise UserError(f"data: no package '{name}' is installed; `pip install` it or drop it")
        if spec.submodule_search_locations:
            for folder in spec.submodule_search_locations:
                yield from _modules_below(Path(folder), name)
        elif spec.origin and spec.origin.endswith(".py"):
            yield name, Path(spec.origin)


def _own_modules() -> Iterator[tuple[str, Path]]:
    """The standard library, and each distribution that `jaxcpt` needs, directly or not."""
    yield from _modules_below(Path(sysconfig.get_path("stdlib")), "")
    try:
        importlib.metadata.distribution("jaxcpt")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "data: jaxcpt is not installed, so its requirements are unknown; `pip install -e .` "
            "in its folder, or name packages to mine"
        ) from None
    waiting, found = ["jaxcpt"], set[str]()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a requirement of another platform or Python
        for requirement in distribution.requires or []:
            if "extra ==" not in requirement and (match := re.match(r"[\w.-]+", requirement)):
                waiting.append(match[0])
        for file in distribution.files or [] if name != "jaxcpt" else []:
            if file.suffix == ".py" and ".." not in file.parts and _is_wanted(file.parts):
                yield _module_name(file.parts), Path(str(distribution.locate_file(file)))


def _modules_below(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if _is_wanted(parts):
            yield _module_name((package, *parts) if package else parts), path


def _is_wanted(parts: tuple[str, ...]) -> bool:
    *folders, file = parts
    return not _SKIPPED_FILE.fullmatch(file) and not any(map(_SKIPPED_FOLDER.fullmatch, folders))


def _module_name(parts: tuple[str, ...]) -> str:
    return ".".join(parts).removesuffix(".py").removesuffix(".__init__")


def _parse_file(path: Path) -> tuple[list[str], ast.Module] | None:
    """Lines and tree; None for templates, Python 2, other encodings and generated files."""
    try:
        text = path.read_text(encoding="utf-8")
        if '"""' not in text or _GENERATED.search(text[:1000]):
            return None
        return text.split("\n"), ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _mine_functions(
    module: str, lines: list[str], tree: ast.Module
) -> Iterator[tuple[Pair, tuple[str, str]]]:
    """Each documented function with two keys: its docstring and its body without spacing."""
    for name, function in _definitions(tree.body, ""):
        docstring = ast.get_docstring(function)
        if isinstance(function, ast.ClassDef) or not docstring or _is_trivial(function.body[1:]):
            continue
        x = _paragraphs(docstring)[0]
        y, body = _cut_docstring(function, lines)
        if len(x.split()) >= 3 and y:
            yield Pair(x, y, f"{module}:{name}"), (_key(x), _key(body))


def _mine_neighbours(
    module: str, lines: list[str], tree: ast.Module, held: set[str]
) -> Iterator[Pair]:
    """More texts of the file that belong together, for training only.

    A docstring's later paragraphs with its function and with its first; a class's docstring with
    the class; a comment with the code below it. Functions whose docstring or body is in `held`
    (keys) are blanked out first.
    """
    lines = list(lines)
    definitions = list(_definitions(tree.body, ""))
    for _, node in definitions:
        if isinstance(node, _Function):
            docstring = ast.get_docstring(node)
            first, last = _span(node)
            below = node.body[0].end_lineno if docstring else node.body[0].lineno - 1
            keys = {_key("\n".join(lines[below:last]))}
            keys |= {_key(_paragraphs(docstring)[0])} if docstring else set()
            if keys & held:
                lines[first - 1 : last] = [""] * (last - first + 1)
    for name, node in definitions:
        docstring = ast.get_docstring(node)
        if docstring and len(node.body) > 1 and lines[node.lineno - 1]:
            first_paragraph, *later = _paragraphs(docstring)
            rest = " ".join(later)
            y, _ = _cut_docstring(node, lines)
            if isinstance(node, ast.ClassDef):
                yield Pair(first_paragraph, y[:_CLASS_LETTERS], f"{module}:{name}")
            elif len(rest.split()) >= 5 and y:
                yield Pair(rest, y, f"{module}:{name}")
                yield Pair(first_paragraph, rest, f"{module}:{name}")
    yield from _mine_comments(module, lines)


def _mine_comments(module: str, lines: list[str]) -> Iterator[Pair]:
    """Comments of four words or more with the two to eight lines of code right below."""
    at = 0
    while at < len(lines):
        words: list[str] = []
        start = at + 1
        while at < len(lines) and lines[at].lstrip().startswith("# "):
            words += lines[at].strip(" #").split()
            at += 1
        code: list[str] = []
        while words and at < len(lines) and len(code) < 8 and _is_code(lines[at]):
            code.append(lines[at])
            at += 1
        if len(words) >= 4 and len(code) >= 2:
            yield Pair(" ".join(words), textwrap.dedent("\n".join(code)), f"{module}:{start}")
        at += not words


def _is_code(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _definitions(
    body: list[ast.stmt], prefix: str
) -> Iterator[tuple[str, _Function | ast.ClassDef]]:
    """Classes, functions and methods; what is inside of a function is part of its text."""
    for node in body:
        if isinstance(node, _Function | ast.ClassDef):
            yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}{node.name}.")


def _is_trivial(body: list[ast.stmt]) -> bool:
    """Whether nothing is done: an abstract method, an overload, a stub."""
    return all(isinstance(node, ast.Pass | ast.Expr | ast.Raise) for node in body)


def _paragraphs(docstring: str) -> list[str]:
    return [" ".join(part.split()) for part in docstring.split("\n\n")]


def _span(node: _Function | ast.ClassDef) -> tuple[int, int]:
    """First line, decorators included, and last line, counted from 1."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return first, node.end_lineno or first


def _cut_docstring(node: _Function | ast.ClassDef, lines: list[str]) -> tuple[str, str]:
    """The source without its docstring, and its body alone; empty if on one line."""
    docstring, following = node.body[0], node.body[1]
    first, last = _span(node)
    below = docstring.end_lineno or 0
    if docstring.lineno == node.lineno or following.lineno == below:
        return "", ""
    head, body = lines[first - 1 : docstring.lineno - 1], lines[below:last]
    return textwrap.dedent("\n".join(head + body)).strip(), "\n".join(body)


def _key(text: str) -> str:
    return hashlib.sha256("".join(text.lower().split()).encode()).hexdigest()
