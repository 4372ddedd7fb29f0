"""Mines (docstring, function) pairs from installed Python packages.

In: the import names of packages, or no names for the standard library and every package that jaxcpt
requires. Out: training and held-out pairs. Files are read and parsed, but not imported. The module
knows no tokenizer, so it does not change long texts or identifiers.
"""

import ast
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

# Folders of tests, of code that was copied from another package, and of scripts.
_SKIPPED_FOLDER = re.compile(
    r"tests?|.*_tests?|testdata|idle_test|_vendor|vendor(ed)?|_?externals?|extern|third_party"
    r"|__pycache__|site-packages|dist-packages|lib2to3"
)
_SKIPPED_FILE = re.compile(r"(test_.*|.*_tests?|conftest|.*_pb2(_grpc)?)\.py")
_GENERATED = re.compile(r"(?i)^#.*(generated (by|from|file)|do not edit)", re.MULTILINE)
_CLASS_CHARS = 2000  # most characters of a class in a pair; a small model reads less


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def mine_packages(
    packages: tuple[str, ...], heldout_functions: int, seed: int, neighbours: bool = False
) -> tuple[list[Pair], list[Pair]]:
    """Returns (train, heldout). `heldout` has exactly `heldout_functions` pairs.

    Whole modules are held out, in the order of a hash of seed and name. No docstring and no body of
    a held-out pair occurs in training, and none occurs twice in either list. neighbours: also add
    other pairs of the same files to `train` (see `_mine_neighbours`). Raises UserError if a package
    is not installed or if there are too few functions.
    """
    modules: dict[str, Path] = {}
    for module, path in _find_own_modules() if not packages else _find_named_modules(packages):
        modules.setdefault(module, path)
    heldout: list[Pair] = []
    train: list[Pair] = []
    others: list[Pair] = []
    seen: set[str] = set()
    heldout_keys: set[str] = set()
    for module in sorted(modules, key=lambda name: _hash(f"{seed}:{name}")):
        file = _parse_file(modules[module])
        if file is None:
            continue
        is_heldout = len(heldout) < heldout_functions
        for pair, keys in _mine_functions(module, *file):
            if seen.isdisjoint(keys):
                seen.update(keys)
                (heldout if is_heldout else train).append(pair)
        if is_heldout:
            heldout_keys = set(seen)
        elif neighbours:
            others += _mine_neighbours(module, *file, heldout_keys)
    if len(heldout) < heldout_functions or not train:
        raise UserError(
            f"data: found {len(heldout) + len(train)} documented functions in "
            f"{', '.join(packages) or 'the installed packages'}, too few to hold out "
            f"{heldout_functions}; name more packages or lower heldout_functions"
        )
    distinct = {_make_key(pair.x) + _make_key(pair.y): pair for pair in others}
    # The last held-out module may have more functions than needed. These are in neither list.
    return train + list(distinct.values()), heldout[:heldout_functions]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _find_named_modules(names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None:
            raise UserError(
                f"data: no package '{name}' is installed; `pip install` it or remove it"
            )
        if spec.submodule_search_locations:
            for folder in spec.submodule_search_locations:
                yield from _list_modules(Path(folder), name)
        elif spec.origin and spec.origin.endswith(".py"):
            yield name, Path(spec.origin)


def _find_own_modules() -> Iterator[tuple[str, Path]]:
    """Yields the modules of the standard library and of each distribution that jaxcpt requires.

    Requirements of these distributions are included.
    """
    yield from _list_modules(Path(sysconfig.get_path("stdlib")), "")
    try:
        importlib.metadata.distribution("jaxcpt")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "data: jaxcpt is not installed, so its requirements are unknown; `pip install -e .` "
            "in its folder, or name packages to mine"
        ) from None
    waiting, visited = ["jaxcpt"], set[str]()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in visited:
            continue
        visited.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # only another platform or version of Python requires it
        for requirement in distribution.requires or []:
            if "extra ==" not in requirement and (match := re.match(r"[\w.-]+", requirement)):
                waiting.append(match[0])
        for file in distribution.files or [] if name != "jaxcpt" else []:
            if file.suffix == ".py" and ".." not in file.parts and _is_wanted(file.parts):
                yield _make_module_name(file.parts), Path(str(distribution.locate_file(file)))


def _list_modules(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if _is_wanted(parts):
            yield _make_module_name((package, *parts) if package else parts), path


def _is_wanted(parts: tuple[str, ...]) -> bool:
    *folders, file = parts
    return not _SKIPPED_FILE.fullmatch(file) and not any(map(_SKIPPED_FOLDER.fullmatch, folders))


def _make_module_name(parts: tuple[str, ...]) -> str:
    return ".".join(parts).removesuffix(".py").removesuffix(".__init__")


def _parse_file(path: Path) -> tuple[list[str], ast.Module] | None:
    """Returns the lines and the syntax tree of a file; None if it is generated or does not parse.

    Templates, Python 2 and encodings other than UTF-8 do not parse.
    """
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
    """Yields each documented function with the keys of its docstring and of its body."""
    for name, function in _list_definitions(tree.body, ""):
        docstring = ast.get_docstring(function)
        if isinstance(function, ast.ClassDef) or not docstring or _is_trivial(function.body[1:]):
            continue
        x = _split_paragraphs(docstring)[0]
        y, body = _cut_docstring(function, lines)
        if len(x.split()) >= 3 and y:
            yield Pair(x, y, f"{module}:{name}"), (_make_key(x), _make_key(body))


def _mine_neighbours(
    module: str, lines: list[str], tree: ast.Module, heldout_keys: set[str]
) -> Iterator[Pair]:
    """Yields pairs of other texts in a file that belong together, for training only.

    There are four kinds: the first paragraph of a docstring and its later paragraphs; these later
    paragraphs and the function; the docstring of a class and the class; a comment and the code
    below it. Functions whose docstring or body is in `heldout_keys` are removed first.
    """
    lines = list(lines)
    definitions = list(_list_definitions(tree.body, ""))
    for _, node in definitions:
        if isinstance(node, _Function):
            docstring = ast.get_docstring(node)
            first, last = _find_span(node)
            below = node.body[0].end_lineno if docstring else node.body[0].lineno - 1
            keys = {_make_key("\n".join(lines[below:last]))}
            keys |= {_make_key(_split_paragraphs(docstring)[0])} if docstring else set()
            if keys & heldout_keys:
                lines[first - 1 : last] = [""] * (last - first + 1)
    for name, node in definitions:
        docstring = ast.get_docstring(node)
        if docstring and len(node.body) > 1 and lines[node.lineno - 1]:
            first_paragraph, *later = _split_paragraphs(docstring)
            rest = " ".join(later)
            y, _ = _cut_docstring(node, lines)
            if isinstance(node, ast.ClassDef):
                yield Pair(first_paragraph, y[:_CLASS_CHARS], f"{module}:{name}")
            elif len(rest.split()) >= 5 and y:
                yield Pair(rest, y, f"{module}:{name}")
                yield Pair(first_paragraph, rest, f"{module}:{name}")
    yield from _mine_comments(module, lines)


def _mine_comments(module: str, lines: list[str]) -> Iterator[Pair]:
    """Yields comments of at least four words with the two to eight lines of code below them."""
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


def _list_definitions(
    body: list[ast.stmt], prefix: str
) -> Iterator[tuple[str, _Function | ast.ClassDef]]:
    """Yields classes, functions and methods. Definitions inside a function are left out."""
    for node in body:
        if isinstance(node, _Function | ast.ClassDef):
            yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from _list_definitions(node.body, f"{prefix}{node.name}.")


def _is_trivial(body: list[ast.stmt]) -> bool:
    """Returns whether the body does nothing, as in an abstract method, an overload or a stub."""
    return all(isinstance(node, ast.Pass | ast.Expr | ast.Raise) for node in body)


def _split_paragraphs(docstring: str) -> list[str]:
    return [" ".join(part.split()) for part in docstring.split("\n\n")]


def _find_span(node: _Function | ast.ClassDef) -> tuple[int, int]:
    """Returns the numbers, from 1, of the first line (with decorators) and of the last line."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return first, node.end_lineno or first


def _cut_docstring(node: _Function | ast.ClassDef, lines: list[str]) -> tuple[str, str]:
    """Returns the source without its docstring, and its body alone.

    Both are empty if the docstring shares a line with code.
    """
    docstring, following = node.body[0], node.body[1]
    first, last = _find_span(node)
    below = docstring.end_lineno or 0
    if docstring.lineno == node.lineno or following.lineno == below:
        return "", ""
    head, body = lines[first - 1 : docstring.lineno - 1], lines[below:last]
    return textwrap.dedent("\n".join(head + body)).strip(), "\n".join(body)


def _make_key(text: str) -> str:
    """Returns a hash of the text that does not depend on case or white space."""
    return hashlib.sha256("".join(text.lower().split()).encode()).hexdigest()
