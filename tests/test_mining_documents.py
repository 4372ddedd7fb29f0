"""Every format gives its documents, and every kind of damage becomes a named problem."""

import gzip
import io
import json
import os
import tarfile
import tracemalloc
import zipfile

import pytest

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

import pyarrow
import pyarrow.parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcpt.errors import UserError
from jaxcpt.mining.bounded_lines import CHUNK_BYTES, RECORD_BYTES
from jaxcpt.mining.documents import Part, Reading, read_part
from jaxcpt.mining.inputs import PART_BYTES, UNIT_BYTES, list_units
from jaxcpt.mining.raw_document import Problem, RawDocument

READING = Reading()
TEXTS = ["First document.\nIt has two lines.", "Zweites, mit Umlaut: ü.", "Third one."]
JSONL = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()


def read(path, reading=READING):
    """Returns (documents, problems) of a file or folder, with the problems of listing it."""
    units, _, problems = list_units([str(path)], reading)
    found = [item for unit in units for part in unit for item in read_part(part, reading)]
    documents = [item for item in found if isinstance(item, RawDocument)]
    return documents, problems + [item for item in found if isinstance(item, Problem)]


def texts_of(path, reading=READING):
    documents, problems = read(path, reading)
    assert not problems
    return [document.text for document in documents]


def reasons_of(path, reading=READING):
    return [(problem.reason, problem.name) for problem in read(path, reading)[1]]


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.jsonl", b"\xef\xbb\xbf" + JSONL),
        ("a.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + JSONL, mtime=0) + bytes(512)),
        ("a.ndjson", b"\n" + JSONL.replace(b"\n", b"\r\n")),
        ("a.jsonl.gz", gzip.compress(JSONL, mtime=0)),
        ("a.jsonl.gz", gzip.compress(JSONL[:40], mtime=0) + gzip.compress(JSONL[40:], mtime=0)),
        ("a.jsonl.zst", zstd(JSONL)),
        ("a.jsonl.zst", zstd(JSONL[:40]) + zstd(JSONL[40:])),
    ],
)
def test_jsonl_is_read_with_and_without_compression(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert texts_of(tmp_path / name) == TEXTS


def test_a_plain_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + TEXTS[0].encode())
    (tmp_path / "b").write_bytes(TEXTS[1].encode())
    (tmp_path / "c.md.gz").write_bytes(gzip.compress(TEXTS[2].encode()))
    (tmp_path / "empty.txt").write_bytes(b" \n")
    documents, problems = read(tmp_path)
    assert [(document.name, document.text, document.group) for document in documents] == [
        (f"{tmp_path.name}/a.txt", TEXTS[0], ""),
        (f"{tmp_path.name}/b", TEXTS[1], ""),
        (f"{tmp_path.name}/c.md.gz", TEXTS[2], ""),
    ]
    assert not problems


def test_document_start_cuts_a_plain_file(tmp_path):
    wiki = "\n = One = \n\nText one.\n = = Part = = \nMore.\n = Two = \nText two.\n"
    (tmp_path / "wiki.txt").write_text(wiki)
    reading = Reading(document_start=r"^ = [^=].*[^=] = $")
    cut = wiki.index(" = Two")
    documents, _ = read(tmp_path / "wiki.txt", reading)
    assert [document.text for document in documents] == [wiki[1:cut], wiki[cut:]]
    assert [document.name for document in documents] == ["wiki.txt@1", f"wiki.txt@{cut}"]
    assert [document.group for document in documents] == ["", ""]


def test_a_long_plain_file_gives_several_documents_of_one_group(tmp_path):
    line = "A line of some length, again and again.\n"
    path = tmp_path / "long.txt"
    path.write_text(line * (5 * CHUNK_BYTES // 2 // len(line)))
    documents, _ = read(path)
    assert "".join(document.text for document in documents) == path.read_text()
    assert {document.group for document in documents} == {"long.txt@0"}
    assert len({document.name for document in documents}) == len(documents) == 3


def test_html_gives_its_text(tmp_path):
    html = "<html><body><nav>Menu</nav><p>Caf\u00e9 one.</p><p>Two.</p><script>x</script></body>"
    (tmp_path / "a.html").write_text(html)
    assert texts_of(tmp_path) == ["Caf\u00e9 one.\n\nTwo."]


def test_parts_of_a_parquet_file_are_row_groups(tmp_path):
    table = pyarrow.table({"text": [*TEXTS, None, " "], "other": range(5)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    path = str(tmp_path / "a.parquet")
    parts = [list(read_part(Part(path, "a", index, 3), Reading())) for index in range(3)]
    assert [[item.name for item in part] for part in parts] == [
        ["a@0", "a@1"],
        ["a@2", "a@3"],
        ["a@4"],
    ]
    assert texts_of_items(parts) == TEXTS
    assert reasons_of(tmp_path / "a.parquet")[0] == (NO_TEXT, "a.parquet@3")
    missing = reasons_of(tmp_path / "a.parquet", Reading(text_field="content"))
    assert missing == [("record without text under 'content'", "a.parquet")]


def texts_of_items(parts):
    return [item.text for part in parts for item in part if isinstance(item, RawDocument)]


def warc_record(kind, uri, body, headers=""):
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"


HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=latin-1\r\n\r\n"
WARC = warc_record("warcinfo", "", b"software: test") + warc_record(
    "response",
    "http://a.org/x",
    HTTP + b"<p>Caf\xe9 au lait.</p>",
    "Content-Type: application/http\r\n",
)
WET = warc_record("conversion", "http://b.org/", "Plain ü text.".encode())
PICTURE = warc_record(
    "response", "http://a.org/i.png", b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\0\1"
)


@pytest.mark.parametrize("packed", [False, True])
def test_warc_and_wet_are_read_and_named_by_their_address(tmp_path, packed):
    squeeze = gzip.compress if packed else bytes
    ending = ".gz" if packed else ""
    (tmp_path / f"a.warc{ending}").write_bytes(squeeze(WARC) + squeeze(PICTURE))
    (tmp_path / f"b.warc.wet{ending}").write_bytes(squeeze(WET))
    documents, problems = read(tmp_path)
    assert [(document.name, document.text) for document in documents] == [
        ("http://a.org/x", "Café au lait."),
        ("http://b.org/", "Plain ü text."),
    ]
    assert not problems


def test_tfds_is_read_by_folder_and_by_name(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    from jaxcpt.mining.write import write_dataset, write_shard

    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    values = [("pair", bytes([n] * 16), "train", text, "y", "s") for n, text in enumerate(TEXTS)]
    write_shard(folder, "tiny", (0, 1), values)
    write_dataset(folder, "tiny", "1.0.0", {}, {})
    reading = Reading(text_field="x")
    for name in (f"tfds:{folder}", f"tfds:{folder}#train", "tfds:tiny"):
        with monkeypatch.context() as patch:
            patch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
            units, _, _ = list_units([name], reading)
        found = [item for unit in units for part in unit for item in read_part(part, reading)]
        assert [item.text for item in found] == TEXTS
        assert found[0].name == name.removeprefix("tfds:").partition("#")[0] + "@0"
    # A folder above the dataset is refused with a hint, and damaged files are refused in one line.
    with pytest.raises(UserError, match=rf"tiny: has no dataset_info.json; .*tfds:{folder}"):
        list_units([f"tfds:{tmp_path / 'tiny'}"], reading)
    for file in ("dataset_info.json", "features.json"):
        whole = (folder / file).read_bytes()
        for damage in (b"{", b"[]", b"\xff", b"[" * 10**5, b'{"name": 7, "features": 7}', b""):
            (folder / file).write_bytes(damage)
            with pytest.raises(UserError, match=rf"^tfds:{folder}: damaged dataset: ") as told:
                list_units([f"tfds:{folder}"], reading)
            assert "\n" not in str(told.value)
        (folder / file).write_bytes(whole)
    # Refused: an unknown name, a set that is not prepared, an unknown split, another file format.
    told = "found no prepared ArrayRecord dataset with a split '(train|tset)'; prepare it with"
    about = folder / "dataset_info.json"
    for name in ("no_such_set", "imdb_reviews", f"{folder}#tset", str(folder)):
        if name == str(folder):
            about.write_text(about.read_text().replace("array_record", "tfrecord"))
        with pytest.raises(UserError, match=told):
            list_units([f"tfds:{name}"], reading)


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


MEMBERS = [
    ("in/a.txt", TEXTS[0].encode()),
    ("../b.txt", b"climbs"),
    ("/etc/c.txt", b"is absolute"),
    ("in/d.jsonl.gz", gzip.compress(JSONL, mtime=0)),
    ("in/e.jsonl.gz", gzip.compress(JSONL, mtime=0)[:30]),
    ("in/f.parquet", b"PAR1"),
]
CLIMBS = "archive member climbs out of its folder"


def test_archives_give_their_members(tmp_path):
    make_tar(tmp_path / "a.tar.gz", MEMBERS)
    make_tar(tmp_path / "b.tgz", MEMBERS)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name, content in MEMBERS:
            archive.writestr(name, content)
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    for name in ("a.tar.gz", "b.tgz", "c.zip"):
        documents, problems = read(tmp_path / name)
        assert [document.text for document in documents] == [TEXTS[0], *TEXTS]
        assert documents[0].name == f"{name}/in/a.txt"
        assert [(problem.reason, problem.name, problem.detail) for problem in problems[:2]] == [
            (CLIMBS, name, "../b.txt"),
            (CLIMBS, name, "/etc/c.txt"),
        ]
        assert [(problem.reason, problem.name) for problem in problems[2:]] == [
            ("broken gzip", f"{name}/in/e.jsonl.gz"),
            (".parquet inside an archive", f"{name}/in/f.parquet"),
        ]


FUNCTION = 'def f{n}(a):\n    """Adds a number to the value {n}."""\n    return a + {n}\n'


def make_zip(path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for n in range(4):
            archive.writestr(f"p/m{n}.py", FUNCTION.format(n=n) * 9)
    content = bytearray(path.read_bytes())
    local = content.find(b"PK\3\4", 10)
    central = content.find(b"PK\1\2", content.find(b"PK\1\2") + 4)
    return content, local, central


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        ((6, 8), 1, "encrypted archive member"),
        ((6, 8), 0x41, "encrypted archive member"),
        ((8, 10), 9, "archive member of unsupported compression"),  # deflate64
        ((8, 10), 93, "archive member of unsupported compression"),
        ((14, 16), 7, "broken py"),  # the sum
        ((0, 900), 0, "broken py"),  # the local header's own mark
        ((60, 900), 0xFF, "broken py"),  # the text
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_member_that_cannot_be_read_ends_alone(tmp_path, offset, value, reason, method):
    content, local, central = make_zip(tmp_path / "a.zip", method)
    for at in (local + offset[0], central + offset[1]):
        if offset[1] < 46 or at == local + offset[0]:
            content[at] = value
    (tmp_path / "a.zip").write_bytes(content)
    documents, problems = read(tmp_path / "a.zip", Reading(source_suffixes=frozenset([".py"])))
    assert [document.name[-5:] for document in documents] == ["m0.py", "m2.py", "m3.py"]
    assert [(problem.reason, problem.name) for problem in problems] == [(reason, "a.zip/p/m1.py")]


def test_lines_of_a_zip_member_with_a_wrong_sum_are_kept(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", JSONL)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"PK\1\2") + 16] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    documents, problems = read(tmp_path / "a.zip")
    assert [document.text for document in documents] == TEXTS
    assert [(problem.reason, problem.name) for problem in problems] == [
        ("broken jsonl", "a.zip/a.jsonl")
    ]


def test_tar_members_of_every_type_are_read_left_out_or_told(tmp_path):
    types = {
        "file": tarfile.REGTYPE, "old": tarfile.AREGTYPE, "row": tarfile.CONTTYPE,
        "hard": tarfile.LNKTYPE, "soft": tarfile.SYMTYPE, "folder": tarfile.DIRTYPE,
        "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE, "odd": b"Z", "part": b"M",
    }  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in types.items():
            member = tarfile.TarInfo(f"{name}.txt")
            member.type, member.linkname = kind, "file.txt"
            has_text = name in ("file", "old", "row", "odd", "part")
            member.size = 4 if has_text else 0
            archive.addfile(member, io.BytesIO(b"text") if has_text else None)
    documents, problems = read(tmp_path / "a.tar")
    assert [document.name for document in documents] == [
        f"a.tar/{name}.txt" for name in ("file", "old", "row")
    ]
    assert [(problem.reason, problem.name) for problem in problems] == [
        ("not a regular file", f"a.tar/{name}.txt") for name in ("device", "pipe", "odd", "part")
    ]


NO_TEXT = "record without text under 'text'"
GOOD = JSONL.splitlines(keepends=True)[0]


@pytest.mark.parametrize(
    ("name", "content", "reason", "where"),
    [
        ("a.txt", b"a\0b", "binary file", "a.txt"),
        ("a.txt", b"good\nbad \xff\n", "bad UTF-8", "a.txt@9"),
        ("a.jsonl", GOOD + b'{"text": "\xff"}\n' + GOOD, "bad UTF-8", f"a.jsonl@{len(GOOD)}"),
        ("a.jsonl", GOOD + b'{"text": \n' + GOOD, "JSON does not parse", f"a.jsonl@{len(GOOD)}"),
        (
            "a.jsonl",
            GOOD + b"[" * 10**5 + b"\n" + GOOD,
            "JSON does not parse",
            f"a.jsonl@{len(GOOD)}",
        ),
        ("a.jsonl", GOOD + b'{"txt": "a"}\n' + GOOD, NO_TEXT, f"a.jsonl@{len(GOOD)}"),
        (
            "a.jsonl",
            GOOD + b'{"text": " "}\n' + GOOD,
            NO_TEXT,
            f"a.jsonl@{len(GOOD)}",
        ),
        ("a.jsonl", GOOD + b'{"text": 3}\n' + GOOD, NO_TEXT, f"a.jsonl@{len(GOOD)}"),
        ("a.jsonl", GOOD + b'{"text": "\\ud800"}\n' + GOOD, "bad UTF-8", f"a.jsonl@{len(GOOD)}"),
        ("a.jsonl", GOOD + b'"text"\n' + GOOD, NO_TEXT, f"a.jsonl@{len(GOOD)}"),
        ("a.jsonl.gz", gzip.compress(GOOD * 2, mtime=0)[:-9], "broken gzip", "a.jsonl.gz"),
        ("a.jsonl.gz", gzip.compress(GOOD * 2, mtime=0) + b"garbage", "broken gzip", "a.jsonl.gz"),
        ("a.jsonl.gz", b"no gzip", "broken gzip", "a.jsonl.gz"),
        ("a.jsonl.zst", zstd(GOOD * 2)[:-4], "broken zstd", "a.jsonl.zst"),
        ("a.parquet", b"PAR1 no parquet", "broken parquet", "a.parquet"),
        ("a.tar", b"no tar" * 200, "broken tar", "a.tar"),
        ("a.zip", b"no zip", "broken zip", "a.zip"),
        ("a.warc", b"no warc\n" * 9, "broken warc", "a.warc"),
        (
            "a.warc",
            WARC + warc_record("conversion", "http://c.org", b"cut off")[:-9],
            "broken warc",
            "a.warc",
        ),
        (
            "a.wet",
            warc_record("conversion", "http://c.org", b"bad \xff"),
            "bad UTF-8",
            "http://c.org@4",
        ),
    ],
)
def test_damage_becomes_a_problem_and_reading_goes_on(tmp_path, name, content, reason, where):
    (tmp_path / name).write_bytes(content)
    documents, problems = read(tmp_path / name)
    assert [(problem.reason, problem.name) for problem in problems] == [(reason, where)]
    if content.startswith(GOOD):
        assert [document.text for document in documents] == [TEXTS[0]] * 2


def test_a_missing_file_is_unreadable():
    problem = next(read_part(Part("/nowhere/a.txt", "a.txt"), Reading()))
    assert (problem.reason, problem.name) == ("unreadable file", "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.html", "a.py"])
def test_a_line_of_100_megabytes_is_refused_in_bounded_memory(tmp_path, name):
    with open(tmp_path / name, "wb") as file:
        for _ in range(100):
            file.write(b"x" * 10**6)
        file.write(b"\n" + GOOD)
    reading = Reading(source_suffixes=frozenset([".py"] if name == "a.py" else []))
    tracemalloc.start()
    documents, problems = read(tmp_path / name, reading)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {problem.reason for problem in problems} == {"line or record too long"}
    assert len(documents) == (name in ("a.txt", "a.jsonl"))
    assert peak < 4 * RECORD_BYTES


def test_symbolic_links_out_of_the_input_are_listed_and_not_followed(tmp_path):
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    for folder in (outside, inside):
        folder.mkdir()
        (folder / "a.txt").write_text(folder.name)
    (inside / "file.txt").symlink_to(outside / "a.txt")
    (inside / "folder").symlink_to(outside)
    (inside / "up").symlink_to("..")
    (inside / "same.txt").symlink_to("a.txt")
    (inside / ".hidden").write_text("hidden")
    (inside / ".link").symlink_to(outside / "a.txt")
    (inside / ".links").symlink_to(outside)
    os.mkfifo(inside / "pipe")
    assert [document.text for document in read(inside)[0]] == ["inside"]
    assert sorted(reasons_of(inside)) == [
        ("not a regular file", "inside/pipe"),
        ("symbolic link out of the input", "inside/file.txt"),
        ("symbolic link out of the input", "inside/folder"),
        ("symbolic link out of the input", "inside/up"),
    ]
    (tmp_path / "named").symlink_to(inside)
    assert len(read(tmp_path / "named")[0]) == 1  # The user may name a link as an input.
    (inside / "a.py").write_text("a = 1")
    (inside / "b.py").symlink_to(outside / "a.txt")
    told = {p.name for p in read(inside, Reading(source_suffixes=frozenset([".py"])))[1]}
    assert told == {"inside/b.py", "inside/folder", "inside/up"}  # a.txt is no wanted type.


def test_an_empty_file_may_come_first(tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").write_text("One.")
    assert [document.text for document in read(tmp_path)[0]] == ["One."]


def test_a_file_name_that_is_not_utf_8_is_repaired(tmp_path):
    (tmp_path / os.fsdecode(b"b\xff.txt")).write_text("One.")
    assert [item.name for item in read(tmp_path)[0]] == [f"{tmp_path.name}/b\ufffd.txt"]


def test_only_source_files_are_read_if_suffixes_are_given(tmp_path):
    for name in ("a.py", "b.txt", "c.rb", "d.jsonl"):
        (tmp_path / name).write_text("x = 1\n")
    make_tar(tmp_path / "e.tar.gz", [("f.py", b"y = 2\n"), ("g.txt", b"text")])
    documents, problems = read(tmp_path, Reading(source_suffixes=frozenset([".py"])))
    names = [document.name.removeprefix(f"{tmp_path.name}/") for document in documents]
    assert names == ["a.py", "e.tar.gz/f.py"]
    assert not problems


def test_inputs_without_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file or folder; --input takes paths"):
        list_units([str(tmp_path / "nowhere")], Reading())
    with pytest.raises(
        UserError, match=r"no input files; name files of a type that this command reads"
    ):
        list_units([str(tmp_path)], Reading())
    with pytest.raises(UserError, match=r"--input: no input files; name files"):
        list_units([], Reading())


def test_large_files_are_cut_into_parts_and_small_ones_grouped(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD * (2 * PART_BYTES // len(GOOD) + 5))
    for number in range(4):
        (tmp_path / f"b{number}.txt").write_bytes(b"x\n" * (UNIT_BYTES // 5))
    units, size, _ = list_units([str(tmp_path)], Reading())
    assert [len(unit) for unit in units] == [1, 1, 1, 2, 2]
    assert size == pytest.approx(sum(path.stat().st_size for path in tmp_path.iterdir()), abs=9)
    assert len(texts_of(tmp_path / "a.jsonl")) == 2 * PART_BYTES // len(GOOD) + 5


LINES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40), max_size=30)


@settings(max_examples=60)
@given(lines=LINES, count=st.integers(1, 12), last_ends=st.booleans())
def test_the_parts_of_a_file_give_all_its_lines_once(tmp_path_factory, lines, count, last_ends):
    path = tmp_path_factory.mktemp("parts") / "a.jsonl"
    content = "\n".join(json.dumps({"text": f"t{line}"}) for line in lines) + "\n" * last_ends
    path.write_text(content)
    parts = [
        read_part(Part(str(path), "a.jsonl", index, count), Reading()) for index in range(count)
    ]
    assert texts_of_items(parts) == [f"t{line}" for line in lines]
