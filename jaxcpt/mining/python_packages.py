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

from jaxcpt.config import Refusal
from jaxcpt.mining import Pair

# Parts of a path that mark tests, code copied from another package, and what is no library.
_SKIPPED_FOLDER = re.compile(
    r"tests?|.*_tests?|testdata|idle_test|_vendor|vendor(ed)?|_?externals?|extern|third_party"
    r"|__pycache__|site-packages|dist-packages|lib2to3"
)
_SKIPPED_FILE = re.compile(r"(test_.*|.*_tests?|conftest|.*_pb2(_grpc)?)\.py")
_GENERATED = re.compile(r"(?i)^#.*(generated (by|from|file)|do not edit)", re.MULTILINE)


@functools.cache
def mine_packages(
    packages: tuple[str, ...], heldout_functions: int, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """(train, heldout), the latter of exactly `heldout_functions` pairs from whole modules.

    Modules are held out in the order of a hash of seed and name. No docstring and no body of a
    held-out pair occurs in training, and none occurs twice in either. Raises Refusal where a
    package is not installed, or where there are too few functions.
    """
    modules: dict[str, Path] = {}
    for module, path in _own_modules() if not packages else _named_modules(packages):
        modules.setdefault(module, path)
    heldout: list[Pair] = []
    train: list[Pair] = []
    seen: set[str] = set()
    for module in sorted(modules, key=lambda name: _hash(f"{seed}:{name}")):
        into = heldout if len(heldout) < heldout_functions else train
        for pair, keys in _mine_file(module, modules[module]):
            if seen.isdisjoint(keys):
                seen.update(keys)
                into.append(pair)
    if len(heldout) < heldout_functions or not train:
        raise Refusal(
            f"data: {len(heldout) + len(train)} documented functions in "
            f"{', '.join(packages) or 'the installed packages'}, too few to hold out "
            f"{heldout_functions}; name more packages or lower heldout_functions"
        )
    # The last module may hold more than are missing: what is over is in neither.
    return train, heldout[:heldout_functions]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _named_modules(names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None:
            raise Refusal(f"data: no package '{name}' is installed; `pip install` it or drop it")
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
        raise Refusal(
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


def _mine_file(module: str, path: Path) -> Iterator[tuple[Pair, tuple[str, str]]]:
    """Each documented function with two keys: its docstring and its body without spacing."""
    try:
        text = path.read_text(encoding="utf-8")
        if '"""' not in text or _GENERATED.search(text[:1000]):
            return
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # templates, Python 2, other encodings: not ours to judge
    lines = text.split("\n")
    for name, function in _functions(tree.body, ""):
        docstring = ast.get_docstring(function)
        if docstring and not _is_trivial(function.body[1:]):
            x = _first_paragraph(docstring)
            y, body = _cut_docstring(function, lines)
            if len(x.split()) >= 3 and y:
                yield Pair(x, y, f"{module}:{name}"), (_key(x), _key(body))


def _functions(
    body: list[ast.stmt], prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods; those inside of functions are part of the outer one's text."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node


def _is_trivial(body: list[ast.stmt]) -> bool:
    """Whether nothing is done: an abstract method, an overload, a stub."""
    return all(isinstance(node, ast.Pass | ast.Expr | ast.Raise) for node in body)


def _first_paragraph(docstring: str) -> str:
    return " ".join(docstring.split("\n\n")[0].split())


def _cut_docstring(
    function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]
) -> tuple[str, str]:
    """The function's source without its docstring, and its body alone; empty if on one line."""
    docstring, following = function.body[0], function.body[1]
    first = min([function.lineno, *(node.lineno for node in function.decorator_list)])
    last_of_docstring, last = docstring.end_lineno, function.end_lineno
    assert last_of_docstring is not None
    assert last is not None
    if docstring.lineno == function.lineno or following.lineno == last_of_docstring:
        return "", ""
    head, body = lines[first - 1 : docstring.lineno - 1], lines[last_of_docstring:last]
    return textwrap.dedent("\n".join(head + body)).strip(), "\n".join(body)


def _key(text: str) -> str:
    return hashlib.sha256("".join(text.lower().split()).encode()).hexdigest()
