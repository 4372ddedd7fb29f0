"""Random damage to bytes, to JSON trees and to files, from a seeded generator.

In: content and a generator. Out: changed content, and what was changed in words.
"""

import json
import os
import random
from pathlib import Path
from typing import Any


def damage(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damages bytes. Returns what was done in words, and the changed bytes."""
    changed, told = bytearray(content), []
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(changed) + 1)
        kind = rng.choice(["flip", "set", "cut", "drop", "insert", "double", "swap"])
        told.append(f"{kind} at {at}")
        if kind == "flip" and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "set" and at < len(changed):
            changed[at] = rng.choice([0, 0xFF, 0x7F, 0x0A, 0x22, 0x5B])
        elif kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at : at + rng.choice([1, 8, 500])]
        elif kind == "insert":
            changed[at:at] = rng.choice([b"\0" * 9, rng.randbytes(7), b"\n", b"\xef\xbb\xbf", b"["])
        elif kind == "double":
            changed += changed[at : at + 1000]
        elif kind == "swap":
            other = rng.randrange(len(changed) + 1)
            changed[at : at + 4], changed[other : other + 4] = (
                changed[other : other + 4],
                changed[at : at + 4],
            )
    return ", ".join(told), bytes(changed)


def make_value(rng: random.Random, depth: int = 0) -> Any:
    """A random JSON value, often an unusual one."""
    simple = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, -0.5, "", "a", "\0", "²"]
    simple += [float("nan"), float("inf"), "\ud800", "x" * 5000, "../..", "/", "query: ", "\u2585"]
    if depth < 3 and rng.random() < 0.3:
        values = [make_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        if rng.random() < 0.5:
            return values
        return {rng.choice(["x", "y", "type", "a", ""]): value for value in values}
    return rng.choice(simple)


def change_leaf(tree: Any, rng: random.Random) -> str:
    """Changes, drops or adds one entry of a JSON tree, in place. Returns in words which one."""
    nodes = [("", tree)]
    for path, node in nodes:
        children = node.items() if isinstance(node, dict) else enumerate(node)
        nodes += [(f"{path}.{k}", v) for k, v in children if isinstance(v, dict | list) and v]
    path, node = rng.choice(nodes)
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = rng.choice(keys) if keys else "new"
    action = rng.choice(["set", "set", "set", "drop", "add"])
    if action == "drop" and keys:
        del node[key]
    elif action == "add" and isinstance(node, dict):
        node[rng.choice(["type", "more", "", "x"])] = make_value(rng)
    elif isinstance(node, dict) or keys:
        node[key] = make_value(rng)
    return f"{action} {path}.{key}"


HOSTILE = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\n", b"\r\n", b'"', b"{", b"]", b"[" * 2_000,
    b"null", b"true", b"NaN", b"1e400", b"-1e308", b"1e308", b"9" * 400, b"9" * 5_000, b"-0",
    b"\\ud800", b"\xe2\x80\xa8", b"1_0", b"\xef\xbc\x91", b"nan", b"['']", b"x" * 200_000,
)  # fmt: skip
"""Texts that may confuse a parser, to replace a field of a tab-separated line."""


def change_line(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Changes an entry of one line, or of a file that is one JSON value.

    A line is JSON or has fields between tabs. Returns in words what was changed, and the changed
    bytes.
    """
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    for first, last in ((at, at + 1), (0, len(lines))):
        try:
            tree = json.loads(b"\n".join(lines[first:last]))
        except (ValueError, RecursionError):
            continue
        if isinstance(tree, dict | list) and tree:
            told = change_leaf(tree, rng)
            lines[first:last] = [json.dumps(tree).encode()]
            return f"line {first + 1}: {told}", b"\n".join(lines)
    fields = lines[at].split(b"\t")
    fields[rng.randrange(len(fields))] = rng.choice(HOSTILE)
    lines[at] = b"\t".join(fields)
    return f"line {at + 1}: a hostile field", b"\n".join(lines)


def damage_file(path: Path, rng: random.Random) -> str:
    """Damages a file once. It keeps its date if it is still a file, as when a disk fails."""
    content, date = path.read_bytes(), path.stat().st_mtime_ns
    kind = rng.choice(
        ["bytes", "bytes", "entry", "lost", "empty", "half", "random", "folder", "loop"]
    )
    if kind == "bytes":
        kind, content = damage(content, rng)
    elif kind == "entry":
        kind, content = change_line(content, rng)
    elif kind == "random":
        content = rng.randbytes(len(content))
    elif kind in ("empty", "half"):
        content = content[: len(content) // 2 if kind == "half" else 0]
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind != "lost":
        path.write_bytes(content)
        os.utime(path, ns=(date, date))
    return kind
