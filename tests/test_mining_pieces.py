"""Compressed input: everything before a break is kept, and the break is reported once."""

import gzip
import io
import json
import random
import tarfile
import zlib

import pytest

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

import zstandard

from jaxcpt.mining.documents import Part, Reading, read_part
from jaxcpt.mining.raw_document import RawDocument

ROWS = [json.dumps({"text": f"question {n} of {n * n} many"}).encode() + b"\n" for n in range(400)]
TEXTS = [json.loads(row)["text"] for row in ROWS]


def zstd(content):
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def read(path, content):
    """Returns the texts and the (reason, name) of each problem."""
    path.write_bytes(content)
    found = list(read_part(Part(str(path), path.name), Reading()))
    texts = [item.text for item in found if isinstance(item, RawDocument)]
    return texts, [(item.reason, item.name) for item in found if not isinstance(item, RawDocument)]


ONE = gzip.compress(b"".join(ROWS))
MANY = b"".join(map(gzip.compress, ROWS))
MANY_ZSTD = b"".join(map(zstd, ROWS))


@pytest.mark.parametrize(
    ("name", "content", "count", "is_broken"),
    [
        ("padded.jsonl.gz", ONE + bytes(512), 400, False),
        ("padded_far.jsonl.gz", ONE + bytes(2**17 + 1), 400, False),
        ("padded_between.jsonl.gz", ONE + bytes(512) + ONE, 800, False),
        ("no_sum.jsonl.gz", ONE[:-4], 400, True),
        ("junk.jsonl.gz", ONE + b"junk", 400, True),
        ("junk_after_padding.jsonl.gz", ONE + bytes(9) + b"junk", 400, True),
        ("many.jsonl.gz", MANY, 400, False),
        ("many_junk.jsonl.gz", MANY + b"junk", 400, True),
        ("wrong_sum.jsonl.gz", ONE[:-8] + bytes(4) + ONE[-4:], 400, True),
        ("only_padding.jsonl.gz", bytes(512), 0, True),
        ("empty.jsonl.gz", b"", 0, False),
        ("padded.jsonl.zst", MANY_ZSTD + bytes(512), 400, False),
        ("no_sum.jsonl.zst", MANY_ZSTD[:-4], 400, True),
        ("cut.jsonl.zst", MANY_ZSTD[:-5], 399, True),
        ("junk.jsonl.zst", MANY_ZSTD + b"junk", 400, True),
        ("skippable.jsonl.zst", b"\x50\x2a\x4d\x18\3\0\0\0abc" + MANY_ZSTD, 400, False),
        ("only_padding.jsonl.zst", bytes(512), 0, True),
    ],
)
def test_everything_before_a_break_is_kept(tmp_path, name, content, count, is_broken):
    kind = "gzip" if name.endswith("gz") else "zstd"
    expected = ([*TEXTS, *TEXTS][:count], [(f"broken {kind}", name)] if is_broken else [])
    assert read(tmp_path / name, content) == expected


def test_a_cut_anywhere_keeps_what_a_decompressor_gives(tmp_path):
    rng = random.Random(0)
    plain = b"".join(
        json.dumps({"text": f"{n} {rng.random()}"}).encode() + b"\n" for n in range(900)
    )
    packed, squeezed = gzip.compress(plain), zstd(plain)
    for name, content in (("a.jsonl.gz", packed), ("a.jsonl.zst", squeezed)):
        for at in rng.sample(range(1, len(content)), 12):
            inflate = zlib.decompressobj(31) if name.endswith("gz") else None
            inflate = inflate or zstandard.ZstdDecompressor().decompressobj()
            whole = inflate.decompress(content[:at]).split(b"\n")[:-1]
            texts, problems = read(tmp_path / name, content[:at])
            assert texts[: len(whole)] == [json.loads(line)["text"] for line in whole]
            assert len(texts) - len(whole) <= 1  # A line may be whole but for its end.
            assert len(problems) == 1


def test_a_changed_bit_keeps_all_that_was_inflated_before_it(tmp_path):
    rng = random.Random(1)
    for _ in range(30):
        content = bytearray(ONE)
        at = rng.randrange(12, len(content))
        content[at] ^= 1 << rng.randrange(8)
        inflate = zlib.decompressobj(31)
        lines = inflate.decompress(bytes(content[:at])).split(b"\n")[:-1]
        texts, problems = read(tmp_path / "a.jsonl.gz", bytes(content))
        assert texts[: len(lines)] == TEXTS[: len(lines)]
        assert ("broken gzip", "a.jsonl.gz") in problems


def test_a_broken_text_keeps_its_whole_characters(tmp_path):
    packed = gzip.compress(b"abc" + "ä".encode() * 9, 0)  # It is stored, not squeezed.
    texts, problems = read(tmp_path / "a.txt.gz", packed[: packed.index(b"abc") + 3 + 7])
    assert (texts, problems) == (["abcäää"], [("broken gzip", "a.txt.gz")])


def test_a_broken_archive_keeps_its_members_and_is_told_once(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.jsonl")
            member.size = sum(map(len, ROWS))
            archive.addfile(member, io.BytesIO(b"".join(ROWS)))
    plain = packed.getvalue()
    rows = len(b"".join(ROWS[:100])) + 5  # The break is inside the 101st line of the last member.
    cut = zlib.compressobj(wbits=31)
    content = cut.compress(plain[: plain.rindex(ROWS[0]) + rows]) + cut.flush(zlib.Z_SYNC_FLUSH)
    for name, tail in (("a.tar.gz", content), ("a.tgz", content)):
        texts, problems = read(tmp_path / name, tail)
        assert texts == TEXTS * 2 + TEXTS[:100]
        assert problems == [("broken gzip", name)]
    assert read(tmp_path / "whole.tar.gz", gzip.compress(plain) + bytes(10240)) == (TEXTS * 3, [])


def test_a_small_file_that_inflates_to_gigabytes_is_read_in_little_memory(tmp_path):
    import tracemalloc

    bomb = zlib.compressobj(9, wbits=31)
    squeezed = b"".join(bomb.compress(bytes(2**20)) for _ in range(300)) + bomb.flush()
    blocks = b"\x28\xb5\x2f\xfd\x00\x58" + b"\x02\x00\x10\x20" * 2000 + b"\x03\x00\x10\x20"
    tracemalloc.start()
    assert read(tmp_path / "a.jsonl.gz", squeezed)[1] == [
        ("line or record too long", "a.jsonl.gz@0")
    ]
    assert read(tmp_path / "a.jsonl.zst", blocks)[1] == [
        ("line or record too long", "a.jsonl.zst@0")
    ]
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
