"""Random damage, each a function of a seeded generator: to bytes, to JSON trees, and to files."""

import json
import os
import random
from pathlib import Path
from typing import Any


def damage(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What was done to the bytes, and the changed bytes."""
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
    """Any JSON value, often an odd one."""
    simple = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, -0.5, "", "a", "\0", "²"]
    simple += [float("nan"), float("inf"), "\ud800", "x" * 5000, "../..", "/", "query: ", "\u2585"]
    if depth < 3 and rng.random() < 0.3:
        values = [make_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        if rng.random() < 0.5:
            return values
        return {rng.choice(["x", "y", "type", "a", ""]): value for value in values}
    return rng.choice(simple)


def change_leaf(tree: Any, rng: random.Random) -> str:
    """Changes, drops or adds one entry of a JSON tree, in place. Says which."""
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


def damage_file(path: Path, rng: random.Random) -> str:
    """Does one harm to a file. Its size and date may stay as they were, as with failing memory."""
    content = path.read_bytes()
    date = path.stat().st_mtime_ns
    kinds = ["bytes", "bytes", "flip", "entry", "lost", "empty", "half", "random"]
    kind = rng.choice([*kinds, "folder", "pipe", "link loop"])
    told = kind
    if kind == "bytes":
        told, changed = damage(content, rng)
        path.write_bytes(changed)
    elif kind == "flip" and content:
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
    elif kind == "entry":
        told = change_line(path, rng)
    elif kind in ("empty", "half"):
        os.truncate(path, len(content) // 2 if kind == "half" else 0)
    elif kind == "random":
        path.write_bytes(rng.randbytes(len(content)))
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link loop":
            path.symlink_to(path.name)
    if path.is_file():
        os.utime(path, ns=(date, date))
    return told


def change_line(path: Path, rng: random.Random) -> str:
    """Changes an entry of one line of JSON, or of a file that is one JSON value."""
    lines = path.read_bytes().splitlines()
    at = rng.randrange(len(lines)) if lines else 0
    for first, last in ((at, at + 1), (0, len(lines))):
        try:
            tree = json.loads(b"\n".join(lines[first:last]))
        except (ValueError, RecursionError):
            continue
        if isinstance(tree, dict | list) and tree:
            told = change_leaf(tree, rng)
            lines[first:last] = [json.dumps(tree).encode()]
            path.write_bytes(b"\n".join(lines) + b"\n")
            return f"line {first + 1}: {told}"
    told, content = damage(path.read_bytes(), rng)
    path.write_bytes(content)
    return told
