"""Reads and writes safetensors files.

In: a folder with model.safetensors, or with an index and several files. Out: `Tensor` by name,
whose values are read one tensor at a time. The whole header is checked before any value is read, so
that no offset points outside the file or into another tensor. The module does not know models.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from jaxcpt.errors import UserError
from jaxcpt.files import write_file

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Most bytes of a header, as in the safetensors library."""
MOST_AXES = 16

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""Types that can be read. A file may hold others: BERT's position numbers are I64."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, whose values have not been read."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""

    def read(self) -> np.ndarray:
        """Its values, mapped into memory. Raises UserError for a type that is not in DTYPES."""
        if self.dtype not in DTYPES:
            raise UserError(
                f"{self.file}: {self.name} is of type {self.dtype}; "
                f"only {', '.join(DTYPES)} can be read"
            )
        if 0 in self.shape:
            return np.zeros(self.shape, DTYPES[self.dtype])
        return np.memmap(self.file, DTYPES[self.dtype], "r", self.start, self.shape)


def open_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder, by name. Raises UserError if it has no weights."""
    if (folder / WEIGHTS_FILE).is_file():
        return read_header(folder / WEIGHTS_FILE)
    if (folder / INDEX_FILE).is_file():
        return _read_shards(folder / INDEX_FILE)
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickles:
        raise UserError(
            f"{folder}: {pickles[0]} is a pickle, which can run code when it is read; convert it: "
            "python -c \"from transformers import AutoModel; "
            f"AutoModel.from_pretrained('{folder}').save_pretrained('NEW_FOLDER')\""
        )  # fmt: skip
    raise UserError(f"{folder}: no weights; it needs {WEIGHTS_FILE} or {INDEX_FILE}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files in an index. Each must be in the file that the index names."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f"{index}: weight_map: expected a file's name for each tensor")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(found.values())):
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            raise UserError(f"{index}: {name!r} is not a file in its folder")
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: names the file {name}, which is missing")
        for tensor in read_header(index.parent / name).values():
            if found.get(tensor.name) != name:
                raise UserError(f"{tensor.file}: holds {tensor.name}; {index.name} names another")
            tensors[tensor.name] = tensor
    if missing := sorted(set(found) - set(tensors)):
        raise UserError(f"{index.parent / found[missing[0]]}: lacks {missing[0]}")
    return tensors


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, by name. Raises UserError if its header is not correct."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise UserError(
                f"{file}: not safetensors, or cut: its header should have {length:,} bytes, "
                f"the file has {size:,}"
            )
        entries = _parse(opened.read(length), str(file))
    _check_text(entries.pop("__metadata__", {}), str(file))
    tensors = [_read_entry(file, 8 + length, name, entry) for name, entry in entries.items()]
    end = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, _count_bytes(tensor))):
        if tensor.start != end:
            raise UserError(
                f"{file}: {tensor.name} starts at byte {tensor.start:,}; "
                f"the tensor before it ends at {end:,}"
            )
        end += _count_bytes(tensor)
    if end != size:
        raise UserError(f"{file}: its tensors end at byte {end:,}; the file has {size:,}")
    return {tensor.name: tensor for tensor in tensors}


def _read_entry(file: Path, start: int, name: str, entry: Any) -> Tensor:
    where = f"{file}: {name[:200]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{where}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise UserError(f"{where}: dtype {str(dtype)[:40]!r}; there are {', '.join(ITEM_BYTES)}")
    for key, numbers in (("shape", shape), ("data_offsets", offsets)):
        fits = isinstance(numbers, list) and len(numbers) <= MOST_AXES
        if not fits or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
            raise UserError(f"{where}: {key}: expected at most {MOST_AXES} whole numbers from 0")
    if len(offsets) != 2:
        raise UserError(f"{where}: data_offsets: expected two numbers, found {len(offsets)}")
    tensor = Tensor(name, file, dtype, tuple(shape), start + offsets[0])
    if _count_bytes(tensor) != offsets[1] - offsets[0]:
        raise UserError(
            f"{where}: {dtype} of shape {tuple(shape)} has {_count_bytes(tensor):,} bytes, "
            f"but its offsets span {offsets[1] - offsets[0]:,}"
        )
    return tensor


def _count_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]


def _check_text(metadata: Any, where: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UserError(f"{where}: __metadata__: expected texts by name")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError that names the file."""
    return _parse(path.read_bytes(), str(path))


def _parse(content: bytes, where: str) -> dict[str, Any]:
    def refuse_twins(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            raise ValueError("a name occurs twice")
        return found

    try:
        value = json.loads(content.decode(), object_pairs_hook=refuse_twins)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: Any) -> None:
    """Writes all tensors to one file in `dtype`. They are converted one at a time."""
    names = {np.dtype(kind): name for name, kind in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.size * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": names[np.dtype(dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8

    def write(file: IO[bytes]) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor, dtype).tobytes())

    write_file(path, write)
