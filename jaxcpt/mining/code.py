"""A source file in, (documentation, function) pairs out, by tree-sitter; it reads no files.

x is the description in a function's docstring or doc comment: markers, tags and parameter lists
are cut off and white space is normalised. y is the function as it stands in the file, decorators
and annotations included, without its documentation and without the indentation it had there.
"""

import ast
import functools
import importlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import tree_sitter

from jaxcpt.config import Refusal
from jaxcpt.mining.documents import Document, Problem, suffixes
from jaxcpt.mining.words import split_words

MIN_DOC_WORDS = 3
MIN_CODE_LINES = 3
"""Lines that hold more than brackets or `end`, below decorators; a getter has two of them."""
MAX_CODE_CHARS = 20_000
LONG_LINE_CHARS = 5_000


@dataclass(frozen=True)
class Language:
    grammar: str
    """Module that gives the grammar."""
    suffixes: tuple[str, ...]
    functions: tuple[str, ...]
    """Node types of functions and methods."""
    comment: str = "comment"
    """Node type of comments; empty where documentation is a docstring in the body."""
    marker: str = "/**"
    """What a doc comment begins with."""
    entry: str = "language"
    """Function of the module that gives the grammar."""


BOTH = ("function_declaration", "method_declaration")
JS_FUNCTIONS = ("function_declaration", "generator_function_declaration", "method_definition")
JS_VALUES = ("function_expression", "generator_function", "arrow_function")
LANGUAGES = {
    "python": Language("tree_sitter_python", (".py",), ("function_definition",), comment=""),
    "java": Language("tree_sitter_java", (".java",), BOTH[1:], comment="block_comment"),
    "javascript": Language(
        "tree_sitter_javascript", (".js", ".mjs", ".cjs", ".jsx"), JS_FUNCTIONS + JS_VALUES
    ),
    "php": Language(
        "tree_sitter_php",
        (".php",),
        ("function_definition", "method_declaration"),
        entry="language_php",
    ),
    "go": Language("tree_sitter_go", (".go",), BOTH, marker="//"),
    "ruby": Language("tree_sitter_ruby", (".rb",), ("method", "singleton_method"), marker="#"),
}
WRAPPERS = {
    "decorated_definition",
    "variable_declarator",
    "lexical_declaration",
    "variable_declaration",
    "assignment_expression",
    "expression_statement",
    "export_statement",
    "pair",
    "field_definition",
}
"""What stands round a function and belongs to it, such as `export const name = ...`."""

TEST_PATH = re.compile(
    r"(^|/)(tests?|__tests__|specs?|testdata|fixtures)/"
    r"|(^|/)(test_[^/]*|conftest|[^/]*_(test|spec)|[^/]*\.(test|spec)|[^/]*Tests?)\.\w+$"
)
TEST_NAME = re.compile(r"test(_|[A-Z]|$)|Test[_A-Z]")
GENERATED = re.compile(
    r"(?i)@generated|\b(auto-?)?generated (by|from|file|code)|do not (edit|modify)"
)
LICENCE = re.compile(r"(?i)copyright|licen[cs]ed? (under|to)|all rights reserved|spdx-")
SECTION = re.compile(
    r"(?im)^\s*(@(?!desc)\w+|:\w+[^:\n]*:|>>>|\.\. |\\?[-=~]{3,}\s*$|```"
    r"|(args?|arguments|param(eter)?s?|returns?|raises|throws|yields?|examples?|notes?|attributes"
    r"|see also|references|warnings?|keyword arg(ument)?s|usage|todo)\s*:?\s*$)"
)
"""Where the description ends and parameter lists, examples and the like begin."""
DIRECTIVE = re.compile(r"go:\w|\+build|nolint|eslint|jshint|rubocop:|frozen_string_literal|-\*-")
"""Lines for tools, such as `//go:noinline`, are no documentation."""
HTML_TAG = re.compile(
    r"</?(a|b|blockquote|br|code|dd|div|dl|dt|em|h\d|i|img|li|ol|p|pre|span|strong|su[bp]|table"
    r"|t[dhrt]|ul)\b[^<>]*>"
)


def check_languages(languages: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names; raises Refusal for one that is not mined."""
    if unknown := [name for name in languages if name not in LANGUAGES]:
        known = ", ".join(LANGUAGES)
        raise Refusal(f"--languages: unknown language '{unknown[0]}'; known: {known}")
    return languages


def source_suffixes(languages: tuple[str, ...]) -> frozenset[str]:
    return frozenset(suffix for name in languages for suffix in LANGUAGES[name].suffixes)


@functools.cache
def _load(suffix: str) -> tuple[Language, tree_sitter.Parser, tree_sitter.Query]:
    language = next(entry for entry in LANGUAGES.values() if suffix in entry.suffixes)
    module = importlib.import_module(language.grammar)
    grammar = tree_sitter.Language(getattr(module, language.entry)())
    pattern = "".join(f"({kind}) @function" for kind in language.functions)
    pattern += f"({language.comment}) @comment" if language.comment else ""
    return language, tree_sitter.Parser(grammar), tree_sitter.Query(grammar, pattern)


def mine_code(document: Document, drops: Counter[str]) -> Iterator[tuple[str, str] | Problem]:
    """Yields (documentation, function) of the functions that are not within another one.

    Counts in `drops` what it leaves out. A file that does not parse is a Problem; its functions
    without an error in them are mined all the same.
    """
    text = document.text.replace("\r\n", "\n").replace("\r", "\n")
    if reason := _find_file_flaw(document.name, text):
        drops[reason] += 1
        return
    language, parser, query = _load(suffixes(document.name)[0])
    source = text.encode()
    tree = parser.parse(source)
    if tree.root_node.has_error:
        yield Problem("source does not parse", document.name, _first_error(tree.root_node))
    captures = tree_sitter.QueryCursor(query).captures(tree.root_node)
    comments = _comments_by_last_row(source, captures.get("comment", []))
    inner_end = 0
    for node in sorted(captures.get("function", []), key=lambda node: node.start_byte):
        outer = _outermost(node)
        line_start = source.rfind(b"\n", 0, outer.start_byte) + 1
        if node.start_byte < inner_end or source[line_start : outer.start_byte].strip():
            continue  # within a function, or in the middle of an expression
        inner_end = outer.end_byte
        if outer.has_error:
            continue
        if language.comment:
            doc = _comment_above(comments, outer.start_point.row, language.marker)
            code = source[line_start : outer.end_byte]
        else:
            doc, code = _cut_docstring(source, node, line_start, outer.end_byte)
        name = node.child_by_field_name("name")
        pair = (describe(doc), _dedent(code.decode()))
        if reason := _find_flaw(doc, *pair, name.text.decode() if name and name.text else ""):
            drops[reason] += 1
        else:
            yield pair


def _find_file_flaw(name: str, text: str) -> str | None:
    if TEST_PATH.search(name.partition("/")[2] or name):
        return "test file"
    if GENERATED.search(text[:2000]):
        return "generated file"
    if len(max(text.split("\n"), key=len)) > LONG_LINE_CHARS:
        return "minified file"
    return None


def _first_error(node: tree_sitter.Node) -> str:
    while child := next((c for c in node.children if c.has_error and not c.is_missing), None):
        node = child
    return f"line {node.start_point.row + 1}"


def _outermost(node: tree_sitter.Node) -> tree_sitter.Node:
    while node.parent and node.parent.type in WRAPPERS:
        node = node.parent
    return node


def _comments_by_last_row(source: bytes, nodes: list[tree_sitter.Node]) -> dict[int, str]:
    """Comments with a line of their own, by the row they end on."""
    comments = {}
    for node in nodes:
        before = source[source.rfind(b"\n", 0, node.start_byte) + 1 : node.start_byte]
        if not before.strip() and node.text is not None:
            lines = node.text.decode().rstrip("\n")
            comments[node.start_point.row + lines.count("\n")] = lines
    return comments


def _comment_above(comments: dict[int, str], row: int, marker: str) -> str:
    """The doc comment that ends right above `row`: a block, or a run of line comments."""
    last = comments.get(row - 1, "")
    if not last.startswith(("//", "#")):
        return last if marker != "/**" or last.startswith(marker) else ""
    lines = []
    while (line := comments.get(row - 1, "")).startswith(marker):
        lines.append(line)
        row -= 1
    return "\n".join(reversed(lines))


def _cut_docstring(
    source: bytes, function: tree_sitter.Node, start: int, end: int
) -> tuple[str, bytes]:
    """The docstring of a Python function, and source[start:end] without it."""
    body = function.child_by_field_name("body")
    statements = [n for n in body.named_children if n.type != "comment"] if body else []
    if not statements or statements[0].type != "expression_statement":
        return "", source[start:end]
    statement = statements[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes, as the compiler tells them
            doc = ast.literal_eval((statement.text or b"").decode())
    except (ValueError, SyntaxError):
        doc = None
    if not isinstance(doc, str):
        return "", source[start:end]
    doc = doc.encode(errors="replace").decode()  # an escape can stand for half a character
    first = source.rfind(b"\n", 0, statement.start_byte) + 1
    after = source.find(b"\n", statement.end_byte)
    last = len(source) if after < 0 else after + 1
    alone = not source[first : statement.start_byte].strip()
    rest = source[statement.end_byte : last].strip()
    if alone and (not rest or rest.startswith(b"#")):
        return doc, source[start:first] + source[min(last, end) : end]
    tail = source[statement.end_byte : end].lstrip(b" ;")
    return doc, source[start : statement.start_byte] + tail


def describe(doc: str) -> str:
    """The description in a docstring or comment, on one line."""
    doc = re.sub(r"^\s*(/\*\*?|=begin)|(\*/|=end)\s*$", "", doc)
    lines = [re.sub(r"^\s*(\*(?!\*)|//+|#+)? ?", "", line) for line in doc.split("\n")]
    doc = "\n".join(line for line in lines if not DIRECTIVE.match(line))
    doc = re.sub(r"\{@\w+\s+([^}]*)\}", r"\1", HTML_TAG.sub(" ", doc))
    section = SECTION.search(doc)
    return " ".join(re.sub(r"@desc\w*", "", doc[: section.start()] if section else doc).split())


def _dedent(code: str) -> str:
    indent = code[: len(code) - len(code.lstrip())]
    lines = [line.removeprefix(indent).rstrip() for line in code.split("\n")]
    return "\n".join(lines).strip("\n")


def _find_flaw(doc: str, x: str, y: str, name: str) -> str | None:
    if not doc.strip():
        return "function without documentation"
    if LICENCE.search(doc):
        return "function under a licence header"
    if TEST_NAME.match(name):
        return "test function"
    words = split_words(x)
    if sum(any(map(str.isalpha, word)) for word in words) < MIN_DOC_WORDS:
        return "function with short documentation"
    undecorated = re.sub(r"\A([ \t]*(@|#\[).*\n)+", "", y)
    lines = [line.strip(" \t{}()[];,") for line in undecorated.split("\n")]
    if sum(line not in ("", "end") for line in lines) < MIN_CODE_LINES:
        return "trivial function"
    if len(y) > MAX_CODE_CHARS:
        return "function too long"
    if f" {' '.join(words)} " in f" {' '.join(split_words(y))} ":
        return "function that repeats its documentation"
    return None
