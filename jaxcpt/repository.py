"""Reads the functions of a folder of source code, for `jaxcpt search --code`.

In: a folder. Out: all functions of the six languages, with or without documentation. A function
inside another function is part of the outer one. These files are left out and counted: hidden,
minified and generated files, files in hidden folders and `node_modules`, and files that cannot be
read. The module knows no model.
"""

from collections import Counter
from pathlib import Path

from jaxcpt.errors import UserError
from jaxcpt.mining.code import LANGUAGES, find_file_flaw, list_source_suffixes, parse_source
from jaxcpt.mining.raw_document import split_suffixes
from jaxcpt.text_folder import list_files
from jaxcpt.vectors import TextWithId

NOT_SEARCHED = {"node_modules", "__pycache__"}


def read_functions(folder: Path) -> tuple[list[TextWithId], Counter[str]]:
    """Returns the functions, and the number of left-out files by reason.

    The id of a function is `path:line`, with the path relative to the folder. Raises UserError if
    the folder has no function.
    """
    if not folder.is_dir():
        raise UserError(f"--code {folder}: no such folder")
    functions: list[TextWithId] = []
    left_out: Counter[str] = Counter()
    suffixes = list_source_suffixes(tuple(LANGUAGES))
    for path in list_files(folder, NOT_SEARCHED):
        if split_suffixes(path.name)[0] not in suffixes:
            continue
        name = path.relative_to(folder).as_posix()
        try:
            text = path.read_text(encoding="utf-8")
            name.encode()
        except (OSError, UnicodeError):
            left_out["unreadable file"] += 1
            continue
        if flaw := find_file_flaw(text):
            left_out[flaw] += 1
            continue
        _, _, found = parse_source(name, text)
        functions += [TextWithId(f"{name}:{f.line}", f.whole) for f in found]
    if not functions:
        raise UserError(f"--code {folder}: no function of {', '.join(LANGUAGES)} in it")
    return functions, left_out
