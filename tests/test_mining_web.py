"""Pages are decoded as in browsers, and a page that cannot be read is counted."""

import gzip
import sys
import zlib

import pytest

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

import zstandard

from jaxcpt.mining.documents import Part, Reading, read_part
from jaxcpt.mining.raw_document import LeftOut, Problem, RawDocument
from jaxcpt.mining.web import extract_html, find_codec

TEXT = "The harbour ferry carried oranges."
PAGE = f"<html><body><p>{TEXT}</p></body></html>".encode()


def record(body, *headers, status="HTTP/1.1 200 OK"):
    http = "\r\n".join([status, *headers]).encode() + b"\r\n\r\n" + body
    return (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/\r\n"
        b"Content-Type: application/http; msgtype=response\r\n"
        b"Content-Length: %d\r\n\r\n" % len(http)
    ) + http + b"\r\n\r\n"  # fmt: skip


def read(tmp_path, *records):
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    return list(read_part(Part(str(tmp_path / "a.warc"), "a.warc"), Reading()))


@pytest.mark.parametrize(
    ("label", "codec"),
    [
        ("ISO-8859-1", "cp1252"), ("latin1", "cp1252"), ("latin-1", "cp1252"),
        ("us-ascii", "cp1252"), ("iso-8859-9", "cp1254"), ("Shift_JIS", "cp932"),
        ("x-sjis", "cp932"), ("gb2312", "gb18030"), ("ks_c_5601-1987", "cp949"),
        ("tis-620", "cp874"), ("Big5", "big5hkscs"), (" UTF8 ", "utf-8"), ("koi8-r", "koi8-r"),
        ("no-such", None), ("hex", None), ("punycode", None), ("a\0b", None),
    ],
)  # fmt: skip
def test_labels_mean_what_browsers_take_them_for(label, codec):
    assert find_codec(label) == codec


@pytest.mark.parametrize(
    ("content_type", "content", "expected"),
    [
        ("text/html; charset=ISO-8859-1", b"They said \x93go\x94, it\x92s 5 \x80.",
         "They said \u201cgo\u201d, it\u2019s 5 €."),
        ("text/html; Charset='Shift_JIS'", "①港は静か".encode("cp932"), "①港は静か"),
        ("text/html; charset=gb2312", "镕基 in the town".encode("gb18030"), "镕基 in the town"),
        ("text/html; charset=utf-8", "caf\u00e9 au lait".encode("latin-1"), "café au lait"),
        ("text/html; charset=nonsense", "caf\u00e9 au lait".encode(), "café au lait"),
        ("text/html", "caf\u00e9 au lait".encode("utf-16"), "café au lait"),
        ("text/html; charset=latin1", "\ufeffcaf\u00e9 au lait".encode(), "café au lait"),
        ("", b"<meta charset=iso-2022-jp>" + "港は静か".encode("iso2022_jp"), "港は静か"),
        ("", b"<meta charset=utf-16>" + "港は静か".encode(), "港は静か"),
        ("", b'<meta http-equiv=x content="text/html; charset=windows-1251">'
         + "Город спит".encode("cp1251"), "Город спит"),
    ],
)  # fmt: skip
def test_pages_are_decoded_as_browsers_do(content_type, content, expected):
    assert expected in extract_html(content, content_type)


@pytest.mark.parametrize(
    "content_type",
    ["text/html", "TEXT/HTML; Charset=UTF-8", "application/xhtml+xml", "Text/Html;charset=utf-8"],
)
def test_the_case_of_a_header_does_not_matter(tmp_path, content_type):
    found = read(tmp_path, record(PAGE, f"CONTENT-TYPE: {content_type}"))
    assert found == [RawDocument("http://a.example/", TEXT)]


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "301 Moved", "403"])
def test_pages_of_other_statuses_are_counted_and_not_read(tmp_path, status):
    error = record(PAGE, "Content-Type: text/html", status=f"HTTP/1.1 {status}")
    fine = record(PAGE, "Content-Type: text/html", status="HTTP/2 200")
    image = record(b"\0\1", "Content-Type: image/png")
    assert read(tmp_path, error, image, fine) == [
        LeftOut(f"web page of status {status[:3]}"),
        LeftOut("web record that is not an HTML page"),
        RawDocument("http://a.example/", TEXT),
    ]


ENCODED = {
    "gzip": gzip.compress(PAGE),
    "X-GZip": gzip.compress(PAGE),
    "deflate": zlib.compress(PAGE),
    "Deflate": zlib.compress(PAGE)[2:-4],
    "zstd": zstandard.compress(PAGE),
    "gzip, zstd": zstandard.compress(gzip.compress(PAGE)),
    "identity": PAGE,
    "gzip ": PAGE,  # The crawler has decoded it.
    "br": PAGE,
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_content_encodings_are_undone(tmp_path, encoding):
    headers = ("Content-Type: text/html", f"Content-Encoding: {encoding}")
    assert read(tmp_path, record(ENCODED[encoding], *headers)) == [
        RawDocument("http://a.example/", TEXT)
    ]
    chunks = b"".join(b"%x\r\n%c\r\n" % (1, byte) for byte in ENCODED[encoding]) + b"0\r\n\r\n"
    chunked = record(chunks, *headers, "Transfer-Encoding: Chunked")
    assert read(tmp_path, chunked) == [RawDocument("http://a.example/", TEXT)]


def test_brotli_is_undone_or_told(tmp_path, monkeypatch):
    brotli = pytest.importorskip("brotli")
    page = record(brotli.compress(PAGE), "Content-Type: text/html", "Content-Encoding: br")
    assert read(tmp_path, page) == [RawDocument("http://a.example/", TEXT)]
    monkeypatch.setitem(sys.modules, "brotli", None)
    assert read(tmp_path, page, page) == [
        Problem("broken web page", "http://a.example/",
                "ValueError: content encoding br needs: pip install brotli")
    ] * 2  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "body", "detail"),
    [
        ("compress", b"\x1f\x9d\x90", "unknown content encoding compress"),
        ("gzip", b"\x14\x08%x X", "incorrect header check"),
        ("zstd", b"\x14\x08%x X", "not a zstd frame"),
        ("deflate", b"\x14\x08%x X", "the page ends early"),
    ],
)
def test_a_page_that_cannot_be_decoded_is_told(tmp_path, encoding, body, detail):
    headers = ("Content-Type: text/html", f"Content-Encoding: {encoding}")
    (problem,) = read(tmp_path, record(body, *headers))
    assert (problem.reason, problem.name) == ("broken web page", "http://a.example/")
    assert detail in problem.detail


def test_a_page_that_breaks_off_keeps_its_beginning(tmp_path):
    page = PAGE + b"<p>" + b" ".join(b"word%d" % n for n in range(5000)) + b"</p>"
    cut = gzip.compress(page)[:-2000]
    headers = ("Content-Type: text/html", "Content-Encoding: gzip")
    problem, document = read(tmp_path, record(cut, *headers))
    assert problem.reason == "broken web page"
    assert TEXT in document.text
    assert "word100 " in document.text


def test_a_record_without_address_or_length_ends_the_file(tmp_path):
    fine = record(PAGE, "Content-Type: text/html")
    for field in (b"WARC-Target-URI: http://a.example/\r\n", b"Content-Length: "):
        bad = fine.replace(field, b"X-Other: " * (field[-2:] == b": "))
        found = read(tmp_path, fine, bad)
        assert found[0] == RawDocument("http://a.example/", TEXT)
        assert [item.reason for item in found[1:]] == ["broken warc"]
