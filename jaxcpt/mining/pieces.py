"""Decompresses a stream up to the first damaged place.

In: a compressed stream. Out: a stream of its text, which ends where the input is damaged (the
*break*). A reader of such a stream gets everything before the break, and then calls `find_break` to
learn whether there was one. This module does not know what the text means.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

import zstandard

from jaxcpt.mining.raw_document import BROKEN, Problem, report_error

Item = TypeVar("Item")
STEP_BYTES = 2**16
"""Compressed bytes that are read at once, and the most bytes that are returned at once."""
ZSTD_FRAME = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""The last three bytes of a skippable frame's magic number. Its first byte is 0x50 to 0x5f."""
ZSTD_REPEATED = 1
"""The type of a block that repeats one byte."""


class PieceStream(io.RawIOBase):
    """A stream of the bytes in an iterator of pieces, up to its end or its first error."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.piece = pieces, b""
        self.error: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.piece and self.error is None:
            try:
                self.piece = next(self.pieces)
            except StopIteration:
                return 0
            except BROKEN as error:
                self.error = error
        count = min(len(buffer), len(self.piece))
        buffer[:count], self.piece = self.piece[:count], self.piece[count:]
        return count


def find_break(stream: BinaryIO) -> BaseException | None:
    """Returns the error that ended a PieceStream early; None for a whole one or another stream."""
    raw = getattr(stream, "raw", None)
    return raw.error if isinstance(raw, PieceStream) else None


def read_pieces(
    name: str,
    pieces: Iterator[bytes],
    parent: BinaryIO | None,
    read: Callable[[BinaryIO], Iterator[Item]],
) -> Iterator[Item | Problem]:
    """Yields what `read` finds in a stream of the pieces, and a Problem if there is a break.

    parent: the stream from which the pieces come. If that has a break itself, there is no Problem
    here, because the parent's own reader reports it.
    """
    raw = PieceStream(pieces)
    error: BaseException | None = None
    try:
        yield from read(cast(BinaryIO, io.BufferedReader(raw, STEP_BYTES)))
    except BROKEN as raised:
        error = raised
    error = raw.error or error
    if error and not (parent and find_break(parent)):
        yield report_error(name, error)


def inflate(stream: BinaryIO, compression: str) -> Iterator[bytes]:
    """Yields the text of a gzip or zstd stream piece by piece. Raises an error at a break.

    Several consecutive compressed files are one stream. NUL bytes after the last one are padding.
    """
    return _inflate_gzip(stream) if compression == ".gz" else _inflate_zstd(stream)


def _inflate_gzip(stream: BinaryIO) -> Iterator[bytes]:
    data = stream.read(STEP_BYTES)
    while data:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not member.eof:
            if not data and not (data := stream.read(STEP_BYTES)):
                yield member.flush()
                raise EOFError("the file ends early")
            before = member.copy()
            try:
                piece = member.decompress(data, STEP_BYTES)
            except zlib.error:  # the text that was inflated in this step is lost
                yield from (before.decompress(data[i : i + 1]) for i in range(len(data)))
                raise
            data = member.unused_data if member.eof else member.unconsumed_tail
            yield piece
        data = data.lstrip(b"\0")
        while not data and (padding := stream.read(STEP_BYTES)):
            data = padding.lstrip(b"\0")


def _inflate_zstd(stream: BinaryIO) -> Iterator[bytes]:
    """Decompresses one block at a time, because after an error the text of that call is lost."""
    decompressor = zstandard.ZstdDecompressor()
    magic = stream.read(4)
    while magic:
        if magic[1:] == ZSTD_SKIPPABLE and magic[0] >> 4 == 5:
            left = int.from_bytes(_read_exactly(stream, 4), "little")
            while left:
                left -= len(_read_exactly(stream, min(left, STEP_BYTES)))
        elif magic == ZSTD_FRAME:
            frame = decompressor.decompressobj()
            descriptor = _read_exactly(stream, 1)
            yield frame.decompress(magic + descriptor + _read_header(stream, descriptor[0]))
            is_last = False
            while not is_last:
                header = _read_exactly(stream, 3)
                size = int.from_bytes(header, "little")
                is_last, kind, size = bool(size & 1), size >> 1 & 3, size >> 3
                block = _read_exactly(stream, 1 if kind == ZSTD_REPEATED else size)
                yield frame.decompress(header + block)
            if descriptor[0] & 4:
                frame.decompress(_read_exactly(stream, 4))  # the checksum of the text
        else:
            raise ValueError("not a zstd frame")
        magic = stream.read(4)
        if not magic.strip(b"\0"):
            magic = _skip_padding(stream)


def _read_header(stream: BinaryIO, descriptor: int) -> bytes:
    """Returns the rest of a frame's header: window, dictionary and size of the content."""
    single = descriptor >> 5 & 1
    size = (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6] + 1 - single
    return _read_exactly(stream, size)


def _skip_padding(stream: BinaryIO) -> bytes:
    """Skips NUL bytes. Returns the other bytes of the step in which they end."""
    while padding := stream.read(STEP_BYTES):
        if rest := padding.lstrip(b"\0"):
            return rest
    return b""


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("the file ends early")
    return content
