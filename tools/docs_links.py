"""Puts the experiment files that the docs link to into the site, as mkdocs builds it.

On disk a page links to `../experiments/NAME.py`. The site has only what lies in `docs/`, so the
files are added to it, and the links point there.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted((ROOT / "experiments").glob("*.py")):
        files.append(File.generated(config, f"experiments/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return re.sub(r"\]\(\.\./experiments/", "](experiments/", markdown)
