"""Reads lines of any length in bounded memory.

In: a binary stream. Out: its lines with their offsets. The module does not know the format or the
encoding of the lines.
"""

from collections.abc import Iterator
from typing import BinaryIO

RECORD_BYTES = 16 * 2**20
"""Most bytes of a line, a record, a web page or a source file that is read."""
CHUNK_BYTES = 2**20
"""Bytes of a document. A longer plain text is cut into documents of about this size."""


def read_bounded_lines(
    stream: BinaryIO, span: tuple[int, int] | None
) -> Iterator[tuple[int, bytes]]:
    """Yields (offset, line). span: yield only the lines that begin in this range of bytes.

    A line of more than RECORD_BYTES is cut after RECORD_BYTES + 1 bytes.
    """
    offset, end = span or (0, None)
    if offset:
        # A line that begins before the span belongs to the previous part.
        stream.seek(offset - 1)
        offset += _skip_line(stream) - 1
    while end is None or offset < end:
        line = stream.readline(RECORD_BYTES + 1)
        if not line:
            return
        yield offset, line
        offset += len(line)
        if len(line) > RECORD_BYTES and not line.endswith(b"\n"):
            offset += _skip_line(stream)


def _skip_line(stream: BinaryIO) -> int:
    """Reads to the end of the line. Returns the number of bytes that it skipped."""
    skipped = 0
    while rest := stream.readline(CHUNK_BYTES):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped
