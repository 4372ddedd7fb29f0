"""The manifest of a saved step: the sha256 of each of its files, in a file beside its folder.

In: the folder of a step. Out: a new manifest; or, for an existing one, a text that says what is
wrong with the step. Only a step whose files agree with its manifest counts as saved. Files that the
manifest does not name, such as those of file managers, are ignored. The module knows no arrays.
"""

import json
from pathlib import Path

from jaxcpt.files import hash_file, write_file

SUFFIX = ".sha256.json"
UNFINISHED = "its save did not finish"


def manifest_of(step_folder: Path) -> Path:
    return step_folder.parent / f"{step_folder.name}{SUFFIX}"


def write_manifest(step_folder: Path) -> None:
    """Writes the manifest. It names the step too, so that a renamed copy of a folder is noticed."""
    sums = {
        path.relative_to(step_folder).as_posix(): hash_file(path)
        for path in sorted(step_folder.rglob("*"))
        if path.is_file()
    }
    content = {"step": int(step_folder.name), "files": sums}
    write_file(manifest_of(step_folder), json.dumps(content, indent=0))


def check_manifest(step_folder: Path) -> str | None:
    """A text that says what is wrong with a saved step; None if the step is whole."""
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
    files = manifest.get("files", manifest)  # older manifests have only the files
    if not isinstance(files, dict) or not files:
        return "its manifest names no files"
    if files is not manifest and manifest.get("step") != int(step_folder.name):
        return f"it is a copy of step {str(manifest.get('step'))[:20]}"
    for path in step_folder.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe would not end
            return f"{path.relative_to(step_folder).as_posix()} is not a file"
    for name in sorted(files):
        file, shown = step_folder / name, name[:200].encode("ascii", "backslashreplace").decode()
        try:
            if not file.is_file() or hash_file(file) != files[name]:
                return f"{shown} is not as it was written"
        except OSError as error:
            return f"{shown} cannot be read: {error.strerror}"
    return None
