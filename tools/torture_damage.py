"""Random damage, each a function of a seeded generator: to bytes, and to JSON trees."""

import random
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
