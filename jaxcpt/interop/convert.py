"""Converts the tensors of a Hugging Face folder to our parameters, one tensor at a time.

In: the tensors of a folder and the rules of its family. Out: one memory-mapped file for each
parameter, in float32, with all layers in one array. The memory holds little more than one tensor.
The module does not know config.json.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.interop.families import Family, Rule
from jaxcpt.interop.safetensors import Tensor


class Slot(NamedTuple):
    """Where a tensor of the family's table belongs: its rule, its layer, and its expected shape."""

    rule: Rule
    layer: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a model's axes."""

    letters: Mapping[str, int]
    """The size of each axis by its letter."""
    position_offset: int = 0
    """Rows of the folder's position table before that of the first token."""
    token_types: int = 0
    """Rows of the folder's token type table. 0: there is none."""


def list_slots(family: Family, sizes: Sizes) -> dict[str, Slot]:
    """Every tensor that a folder of this family and these sizes must hold, by its short name.

    The short name is that of `shorten_name`.
    """
    slots = {}
    letters = {**sizes.letters, "c": 3}
    for name, rule in family.rules.items():
        shape = tuple(math.prod(letters[x] for x in word) for word in rule.letters.split())
        if rule.parameters == ("positions",):
            shape = (shape[0] + sizes.position_offset, shape[1])
        if "{i}" in name:
            for layer in range(letters["i"]):
                slots[name.replace("{i}", str(layer))] = Slot(rule, layer, shape)
        else:
            slots[name] = Slot(rule, None, shape)
    if family.token_types:
        shape = (sizes.token_types, letters["d"])
        slots[family.token_types] = Slot(Rule((), "t d"), None, shape)
    return slots


def match_tensors(
    tensors: Mapping[str, Tensor], family: Family, slots: Mapping[str, Slot], where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by their short names, and the names of ignored tensors.

    Raises UserError for a tensor that is missing, has another shape, or belongs to no slot.
    """
    found: dict[str, Tensor] = {}
    ignored = []
    for name, tensor in tensors.items():
        short = shorten_name(name, family)
        if short in found:
            raise UserError(f"{where}: {name} and {found[short].name} are the same parameter")
        if short in slots:
            found[short] = tensor
        elif any(fnmatchcase(short, pattern) for pattern in family.ignored):
            ignored.append(name)
        else:
            raise UserError(
                f"{where}: {name} of shape {tensor.shape} has no place in a model of this "
                "config.json"
            )
    for short, slot in slots.items():
        if short not in found:
            raise UserError(f"{where}: lacks {short}, which should have the shape {slot.shape}")
        if found[short].shape != slot.shape:
            raise UserError(
                f"{where}: {found[short].name} has the shape {found[short].shape}; "
                f"config.json says {slot.shape}"
            )
    return found, ignored


def shorten_name(name: str, family: Family) -> str:
    """A tensor's name without the family's prefix, and with the current names in LayerNorm."""
    short = name.removeprefix(family.prefix)
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if short.endswith(f"LayerNorm{old}"):
            short = short.removesuffix(old) + new
    return short


def write_parameters(
    found: Mapping[str, Tensor],
    family: Family,
    sizes: Sizes,
    axes: Mapping[str, tuple[str, ...]],
    folder: Path,
) -> dict[str, np.ndarray]:
    """Writes each parameter in `axes` to a file in `folder`. Returns read-only memory maps."""
    slots = list_slots(family, sizes)
    written: dict[str, np.ndarray] = {}
    for number, (parameter, letters) in enumerate(axes.items()):
        file, shape = folder / f"{number}.float32", tuple(sizes.letters[x] for x in letters)
        out = np.memmap(file, np.float32, "w+", shape=shape)
        for short, slot in slots.items():
            if parameter in slot.rule.parameters:
                inner = "".join(letters).removeprefix("i")
                values = rearrange(found[short].read(), slot.rule, parameter, inner, sizes)
                out[... if slot.layer is None else slot.layer] = values
        if parameter == "positions" and family.token_types:
            out += found[family.token_types].read()[0].astype(np.float32)
        out.flush()
        del out  # its pages leave the memory of this process
        written[parameter] = np.memmap(file, np.float32, "r", shape=shape)
    return written


def rearrange(
    values: np.ndarray, rule: Rule, parameter: str, letters: str, sizes: Sizes
) -> np.ndarray:
    """A view of one parameter in a tensor, with its axes in the order of `letters`."""
    if parameter == "positions":
        values = values[sizes.position_offset :]
    theirs = rule.letters.replace(" ", "")
    values = values.reshape([3 if x == "c" else sizes.letters[x] for x in theirs])
    if "c" in theirs:
        values = np.moveaxis(values, theirs.index("c"), 0)[rule.parameters.index(parameter)]
        theirs = theirs.replace("c", "")
        if "j" in letters:  # in one tensor, query, key and value have equally many heads
            theirs = theirs.replace("h", "j")
    return values.transpose([theirs.index(x) for x in letters])
