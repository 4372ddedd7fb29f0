"""A folder of source code in, its functions out: what `jaxcpt search --code` searches.

All functions of the six languages are read, documented or not. A function that stands inside
another one is part of that one. Hidden files and folders, `node_modules`, minified and generated
files are left out, and so are files that cannot be read; all are counted. The module knows no
model.
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
    """The functions with `path:line` as their ids, and how many files were left out and why.

    Paths count from the folder. Raises UserError where it holds no function.
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
