"""A hook of mkdocs that adds the experiment files to the site.

On disk, a page links to `../experiments/NAME.py`. The site only has the files in `docs/`, so the
hook adds the experiment files to the site and changes the links.
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
