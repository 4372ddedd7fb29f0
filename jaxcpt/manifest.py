"""The manifest of a saved step: the sha256 of each of its files, in a file beside its folder.

In: the folder of a step. Out: its manifest, written; or what is wrong with the step, in words. Only
a step that agrees with its manifest counts as saved. Files that a manifest does not name, such as
those that file managers and copies leave behind, are no damage. The module knows no arrays.
"""

import json
from pathlib import Path

from jaxcpt.files import hash_file, write_file

SUFFIX = ".sha256.json"
UNFINISHED = "its save did not finish"


def manifest_of(step_folder: Path) -> Path:
    return step_folder.parent / f"{step_folder.name}{SUFFIX}"


def write_manifest(step_folder: Path) -> None:
    """Names every file of the step, and the step itself, so that a renamed copy is found out."""
    sums = {
        path.relative_to(step_folder).as_posix(): hash_file(path)
        for path in sorted(step_folder.rglob("*"))
        if path.is_file()
    }
    content = {"step": int(step_folder.name), "files": sums}
    write_file(manifest_of(step_folder), json.dumps(content, indent=0))


def check_manifest(step_folder: Path) -> str | None:
    """What is wrong with a saved step. None if nothing is."""
    path = manifest_of(step_folder)
    if not path.is_file():
        return "its manifest is not a file" if path.exists() else UNFINISHED
    try:
        manifest = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return "its manifest does not parse"
    except OSError as error:
        return f"its manifest cannot be read: {error.strerror}"
    if not isinstance(manifest, dict):
        return "its manifest does not parse"
    files = manifest.get("files", manifest)  # an older manifest is the files alone
    if not isinstance(files, dict) or not files:
        return "its manifest names no files"
    if files is not manifest and manifest.get("step") != int(step_folder.name):
        return f"it is a copy of step {str(manifest.get('step'))[:20]}"
    for path in step_folder.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would never end
            return f"{path.relative_to(step_folder).as_posix()} is not a file"
    for name in sorted(files):
        file, shown = step_folder / name, name[:200].encode("ascii", "backslashreplace").decode()
        try:
            if not file.is_file() or hash_file(file) != files[name]:
                return f"{shown} is not as it was written"
        except OSError as error:
            return f"{shown} cannot be read: {error.strerror}"
    return None
