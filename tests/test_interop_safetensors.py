"""The safetensors reader: files that it reads, files that it refuses, and 1,000 damaged files."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hf_folder import bert_shapes, make_arrays, pack_safetensors

from jaxcpt.errors import UserError
from jaxcpt.interop.convert import Sizes, list_slots, match_tensors
from jaxcpt.interop.families import FAMILIES
from jaxcpt.interop.safetensors import open_weights, read_header

BERT = FAMILIES["bert"]
SIZES = Sizes(
    letters={"d": 8, "h": 2, "j": 2, "k": 4, "f": 12, "i": 2, "l": 16, "v": 90}, token_types=2
)


def split_file(content):
    """The header of a file as a Python value, and the data."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_file(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write(folder, content, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_reads_what_was_written(tmp_path, dtype):
    arrays = make_arrays({"a": (3, 5), "b": (), "c": (0, 4), "d": (7,)}, dtype)
    tensors = open_weights(write(tmp_path, pack_safetensors(arrays)))
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        assert tensors[name].read().dtype == dtype
        np.testing.assert_array_equal(tensors[name].read(), array)


def test_equals_the_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="needs the interop extra")
    arrays = make_arrays()
    library.save_file(arrays, tmp_path / "model.safetensors", {"format": "pt"})
    tensors = open_weights(tmp_path)
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].read(), array)


def test_shards(tmp_path):
    arrays = make_arrays()
    names = sorted(arrays)
    files = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, held in files.items():
        write(tmp_path, pack_safetensors({name: arrays[name] for name in held}), file)
    weights = {name: file for file, held in files.items() for name in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    tensors = open_weights(tmp_path)
    for name in names:
        np.testing.assert_array_equal(tensors[name].read(), arrays[name])

    def refused(change, line):
        index.write_text(json.dumps({"weight_map": weights | change}))
        with pytest.raises(UserError) as error:
            open_weights(tmp_path)
        assert str(error.value) == line

    refused({"x": "../b.safetensors"}, f"{index}: '../b.safetensors' is not a file in its folder")
    refused({"x": "/etc/passwd"}, f"{index}: '/etc/passwd' is not a file in its folder")
    refused({"x": ".."}, f"{index}: '..' is not a file in its folder")
    refused({"x": "c.safetensors"}, f"{index}: names the file c.safetensors, which is missing")
    refused({"x": "a.safetensors"}, f"{tmp_path}/a.safetensors: lacks x")
    refused({names[0]: "b.safetensors"}, f"{tmp_path}/a.safetensors: holds {names[0]}; "
            "model.safetensors.index.json names another")  # fmt: skip
    index.write_text('{"weight_map": [1]}')
    with pytest.raises(UserError, match=r"weight_map: expected a file's name for each tensor"):
        open_weights(tmp_path)


def test_a_pickle_is_refused_with_how_to_convert(tmp_path):
    with pytest.raises(UserError) as error:
        open_weights(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no weights; it needs model.safetensors or model.safetensors.index.json"
    )
    write(tmp_path, b"", "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        open_weights(tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path}: pytorch_model.bin is a pickle, which can run code when it is read; convert "
        'it: python -c "from transformers import AutoModel; AutoModel.from_pretrained('
    )


def lie(**changes):
    """A file of two tensors, in which the header of the second one is wrong."""
    header, data = split_file(pack_safetensors(make_arrays({"a": (2, 2), "b": (2, 3)})))
    header["b"] |= changes
    return join_file(header, data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not safetensors, or cut: its header should have 0 bytes, the file has 0"),
        (
            struct.pack("<Q", 1 << 62),
            "not safetensors, or cut: its header should have 4,611,686,018",
        ),
        (join_file(b"[]", b""), "expected a JSON object, found list"),
        (join_file(b"{", b""), "not JSON: "),
        (join_file(b"\xff", b""), "not JSON: "),
        (join_file(b'{"a": 1, "a": 2}', b""), "not JSON: a name occurs twice"),
        (join_file(b'{"a":' * 100_000, b""), "not JSON: "),
        (join_file({"__metadata__": {"a": 1}}, b""), "__metadata__: expected texts by name"),
        (join_file({"a": {"dtype": "F32"}}, b""), "'a': expected dtype, shape and data_offsets"),
        (lie(dtype="F33"), "'b': dtype 'F33'; there are BOOL, "),
        (lie(shape=[2, -3]), "'b': shape: expected at most 16 whole numbers from 0"),
        (lie(shape=[2, 3.0]), "'b': shape: expected at most 16 whole numbers from 0"),
        (lie(shape=[2, 4]), "'b': F32 of shape (2, 4) has 32 bytes, but its offsets span 24"),
        (lie(data_offsets=[16]), "'b': data_offsets: expected two numbers, found 1"),
        (lie(data_offsets=[12, 36]), "b starts at byte "),
        (lie(data_offsets=[20, 44]), "b starts at byte "),
        (lie(data_offsets=[16, 40]) + b"x", "its tensors end at byte "),
        (lie(data_offsets=[16, 40])[:-1], "its tensors end at byte "),
    ],
)
def test_lying_headers(tmp_path, content, said):
    file = write(tmp_path, content) / "model.safetensors"
    with pytest.raises(UserError) as error:
        read_header(file)
    assert str(error.value).startswith(f"{file}: {said}")


def test_other_types_are_listed_and_not_read(tmp_path):
    arrays = {"numbers": np.arange(3), **make_arrays({"a": (2,)})}
    tensors = open_weights(write(tmp_path, pack_safetensors(arrays)))
    np.testing.assert_array_equal(tensors["a"].read(), arrays["a"])
    with pytest.raises(UserError, match=r"numbers is of type I64; only F32, F16, BF16 can be read"):
        tensors["numbers"].read()


def mutate(content, draw):
    """A damaged copy of a file, and whether its data is unchanged."""
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    content, kind = bytearray(content), draw.integers(10)
    at = int(draw.integers(8, header_end))
    if kind == 0:
        content[at] = draw.integers(256)
    elif kind == 1:
        content[at] ^= 1 << draw.integers(8)
    elif kind == 2:
        del content[at : at + int(draw.integers(1, 9))]
    elif kind == 3:
        content[at:at] = bytes(draw.integers(256, size=draw.integers(1, 9), dtype=np.uint8))
    elif kind == 4:
        del content[int(draw.integers(len(content))) :]
    elif kind == 5:
        content[int(draw.integers(8))] = draw.integers(256)
    elif kind == 6:  # a digit
        digits = [i for i in range(8, header_end) if chr(content[i]).isdigit()]
        content[draw.choice(digits)] = ord(str(draw.integers(10)))
    elif kind == 7:  # a value of the header, kept in order
        header, data = split_file(bytes(content))
        name = draw.choice([name for name in header if name != "__metadata__"])
        key = draw.choice(["dtype", "shape", "data_offsets"])
        odd = [[], {}, None, 1e400, "BF16", "F16", [1 << 70], [0, 0], [-1, 3], [True], "é\ud800", 7]
        other = header[draw.choice([n for n in header if n != "__metadata__"])][key]
        header[name][key] = [*odd, other][draw.integers(len(odd) + 1)]
        content = join_file(header, data)
    elif kind == 8:  # the same values in another order, and other metadata
        header, data = split_file(bytes(content))
        names = draw.permutation(list(header))
        header["__metadata__"] = {"seed": str(at)}
        content = join_file(json.dumps({n: header[n] for n in names}, indent=1).encode(), data)
    else:
        content[int(draw.integers(header_end, len(content)))] ^= 1 << draw.integers(8)
        return bytes(content), False
    return bytes(content), True


def test_a_thousand_damaged_files(tmp_path):
    """Each is refused in one line or gives the same tensors, unless a value itself was changed."""
    arrays = make_arrays()
    whole = pack_safetensors(arrays)
    refused = same = changed = 0
    for seed in range(1000):
        content, is_header = mutate(whole, np.random.default_rng(seed))
        folder = write(tmp_path, content)
        try:
            tensors = open_weights(folder)
            found, _ = match_tensors(tensors, BERT, list_slots(BERT, SIZES), str(folder))
            values = {name: np.array(tensor.read()) for name, tensor in found.items()}
        except UserError as error:
            refused += str(error).startswith(str(folder))
            continue
        differing = [name for name in values if values[name].tobytes() != arrays[name].tobytes()]
        # Tensors of heads are not read, so their names and values may change.
        assert set(values) == {name for name in bert_shapes() if not name.startswith("pooler")}
        assert len(differing) <= (0 if is_header else 1), seed
        same, changed = same + (not differing), changed + bool(differing)
    assert refused + same + changed == 1000
    assert refused > 700
    assert same > 70
    assert changed > 70
