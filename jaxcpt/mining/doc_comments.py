"""Finds the documentation of a function among the comments of a source file.

In: the comments, the place where a function begins, and the marker of doc comments. Out: the
documentation of the function, and the description in it. This module knows no programming language.
"""

import html
import re
import textwrap
from dataclasses import dataclass

import tree_sitter

SECTION = re.compile(
    r"(?im)^\s*(@(?!desc)\w+|:(?!([\w.+-]+:)+`)\w+[^:\n]*:|>>>|\.\. |\\?[-=~]{3,}\s*$|```"
    r"|(args?|arguments|param(eter)?s?|returns?|raises|throws|yields?|examples?|notes?|attributes"
    r"|see also|references|warnings?|keyword arg(ument)?s|usage|todo)\s*:?\s*$)"
)
"""Matches the first line after the description, such as a parameter list or an example. A line
that begins with a Sphinx role, such as :class:`Person`, is a line of the description."""
DIRECTIVE = re.compile(
    r"(//+|#+|/\*+)?\s*(go:\w|\+build|nolint|eslint|jshint|jscs:|tslint|prettier-|biome-|istanbul "
    r"|@ts-|@phpstan|@psalm|phpstan|psalm|phpcs:|@codingStandards|noinspection|NOSONAR|NOPMD"
    r"|rubocop:|steep:|typed:|:nocov:|frozen_string_literal|-\*-)"
)
"""Matches comment lines that are instructions for tools, such as `//go:noinline`."""
HTML_COMMENT_OR_TAG = re.compile(
    r"(?s)<!--.*?-->"
    r"|</?(a|b|blockquote|br|code|dd|div|dl|dt|em|h\d|i|img|li|ol|p|pre|span|strong|su[bp]|table"
    r"|t[dhrt]|ul)\b[^<>]*>"
)
LIST_ITEM = re.compile(r"\s*([-*+\u2022]|\w{1,3}[.)]|\[[^\]]+\]|\S+::)(\s|$)")
"""Matches the first line of a list item. Its other lines may be indented."""


@dataclass(frozen=True)
class Comment:
    text: str
    row: int
    """The row of its first line."""
    end: int
    """The byte of the file at which it ends."""
    indent: bytes
    """The white space to its left."""


@dataclass(frozen=True)
class Comments:
    """The comments that have no code to their left, by the row on which they end."""

    alone: dict[int, Comment]
    """Comments without code to their right."""
    beside: dict[int, Comment]
    """Comments with code to their right."""

    def find_beside(self, row: int, line_start: int, start: int) -> Comment | None:
        """Returns the comment that stands on a function's own line, before the function."""
        comment = self.beside.get(row)
        return comment if comment and line_start < comment.end <= start else None

    def find_doc(self, beside: Comment | None, row: int, marker: str) -> str:
        """Returns the doc comment to the left of a function or above its row, or an empty string.

        A doc comment is one block comment or several consecutive line comments. There may be
        comments for tools between a block comment and the function.
        """
        if beside and beside.text.startswith(marker if marker == "/**" else "/*"):
            return beside.text
        row = (beside.row if beside else row) - 1
        if marker == "/**":
            while row in self.alone and DIRECTIVE.match(self.alone[row].text):
                row = self.alone[row].row - 1
        last = self.alone[row].text if row in self.alone else ""
        if not last.startswith(("//", "#")):
            return last if marker != "/**" or last.startswith(marker) else ""
        lines = []
        while row in self.alone and (line := self.alone[row].text).startswith(marker):
            lines.append(line)
            row -= 1
        return "\n".join(reversed(lines))


def index_comments(source: bytes, nodes: list[tree_sitter.Node]) -> Comments:
    comments = Comments({}, {})
    for node in nodes:
        before = source[source.rfind(b"\n", 0, node.start_byte) + 1 : node.start_byte]
        if not before.strip() and node.text is not None:
            text = node.text.decode().rstrip("\n")
            end, row = node.start_byte + len(text.encode()), node.start_point.row
            line_end = source.find(b"\n", end)
            after = source[end:line_end] if line_end >= 0 else source[end:]
            kind = comments.beside if after.strip() else comments.alone
            kind[row + text.count("\n")] = Comment(text, row, end, before)
    return comments


def extract_description(doc: str, is_docstring: bool = False) -> str:
    """Returns the description in a docstring or comment as one line."""
    lines = doc.split("\n") if is_docstring else _strip_markers(doc)
    text = HTML_COMMENT_OR_TAG.sub(" ", "\n".join(lines))
    text = re.sub(r"\{@\w+\s*([^}]*)\}", r"\1", text)
    section = SECTION.search(text)
    text = re.sub(r"@desc\w*", "", text[: section.start()] if section else text)
    if doc.startswith("/*") and not is_docstring:
        text = html.unescape(text)
    return " ".join(text.split())


def _strip_markers(comment: str) -> list[str]:
    """Returns the lines of a comment without its markers, directives and indented examples."""
    text = re.sub(r"^\s*(/\*\*?|=begin)|(\*/|=end)\s*$", "", comment)
    lines = [re.sub(r"^\s*(\*(?!\*)|//+|#+)? ?", "", line) for line in text.split("\n")]
    lines = [line for line in lines if not DIRECTIVE.match(line)]
    if comment.startswith("/*"):
        examples = (at for at, line in enumerate(lines) if line.lstrip().startswith("<pre"))
        return lines[: next(examples, None)]
    lines = textwrap.dedent("\n".join(lines)).split("\n")
    is_list = False
    for at, line in enumerate(lines):
        if LIST_ITEM.match(line):
            is_list = True
        elif line.strip() and not line[0].isspace():
            is_list = False
        elif line.strip() and not is_list and re.search(r"(^|:)\s*$", lines[at - 1]):
            return lines[:at]  # Go and Ruby show indented lines as code.
    return lines
