"""What the documents say exists: the files they link to, and the commands with their options."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY
from run_documents import NOT_RUN, PAGES_NOT_RUN, REWRITES, find_blocks, find_pages, rewrite

from jaxcpt import cli
from jaxcpt.errors import UserError

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
IDS = [str(page.relative_to(REPOSITORY)) for page in PAGES]
PLACEHOLDERS = {
    "N": "1",
    "I/N": "1/2",
    "K": "1",
    "DATA,FSDP,TENSOR": "1,1,1",
    "HOST:PORT": "a:1",
    "STEPS": "3",
}


def find_anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"https?:|mailto:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in find_anchors(target), link


def find_commands(text):
    """The `jaxcpt` commands in blocks of code and in `code`, as one line each."""
    text = re.sub(r" *\\\n\s*", " ", text)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = [line.strip() for block in fenced for line in block.splitlines()]
    for line in blocks + re.findall(r"`(jaxcpt [^`]* --[^`]*)`", text):
        for part in re.split(r" && | &$| \| (?=head|jq)|; |  +#", line):
            if found := re.match(r"(?:until )?((?:python -m )?jaxcpt[ .]\S.*)", part):
                yield found[1]


def read_arguments(command):
    """The verb and its options, with the first of several choices and values for placeholders."""
    command = re.sub(r"^(python -m )?jaxcpt[ .]", "", command)
    command = re.sub(r"\\?\|", "|", command).replace("...", "")
    command = re.sub(r"[\[\]]", " ", command)
    command = re.sub(r" ?\| ?[^ ]+( [A-Z][^ ]*)?", "", command)
    verb, *rest = shlex.split(command)
    return [verb.replace("_", "-"), *(PLACEHOLDERS.get(word, word) for word in rest)]


COMMANDS = [
    (name, command)
    for name, page in zip(IDS, PAGES, strict=True)
    for command in find_commands(page.read_text())
    if "VERB" not in command
]


class Parsed(Exception):
    pass


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_has_a_verb_and_options_that_exist(page, command, monkeypatch):
    """A command may be shown without the options that it requires."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(self, *arguments):
        try:
            _, unknown = parse(self, *arguments)
        except UserError as error:
            if "the following arguments are required" not in str(error):
                raise
        else:
            assert not unknown
        raise Parsed

    arguments = read_arguments(command)
    if arguments[0] in cli.MINING_VERBS:
        pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    with pytest.raises(Parsed):
        cli.main(arguments)


def test_commands_are_found_and_read():
    page = "```sh\njaxcpt embed --side x|y \\\n    [--part I/N]  # why\n```\n"
    found = list(find_commands(page))
    assert found == ["jaxcpt embed --side x|y [--part I/N]"]
    assert read_arguments(found[0]) == ["embed", "--side", "x", "--part", "1/2"]
    assert len(COMMANDS) > 80


def test_every_command_stands_where_run_documents_finds_it():
    """In a `sh` block, which `.ci/run` runs. An indented block is code as well."""
    for name, text in find_pages().items():
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        others = "".join(block for language, block in blocks if language != "sh")
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        others += "".join(re.findall(r"^ {4,}.*\n", prose, re.MULTILINE))
        assert not re.findall(r"^ *(?:python|pip|jaxcpt) .*$", others, re.MULTILINE), name


def test_whatever_run_documents_lists_is_in_the_pages():
    pages = find_pages()
    assert set(PAGES_NOT_RUN) <= set(pages)
    lines = [
        line
        for name, text in pages.items()
        if name not in PAGES_NOT_RUN
        for block in find_blocks(text)
        for line in block.splitlines()
    ]
    for pattern in REWRITES:
        assert any(re.search(pattern, line) for line in lines), pattern
    for pattern in NOT_RUN:
        assert any(re.match(pattern, rewrite(line)) for line in lines), pattern


def test_the_page_of_commands_has_every_verb():
    page = (REPOSITORY / "docs" / "commands.md").read_text()
    listed = re.findall(r"^\| `jaxcpt (\S+)", page, re.MULTILINE)
    assert sorted(listed) == sorted(cli.VERBS)


def test_the_site_has_every_page():
    listed = set(re.findall(r"(\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {Path(name).name for name in IDS if name.startswith("docs/")}
