"""
What an answer consists of, before anything of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from uuid import uuid4

from attrs import frozen

from storageproxy.beneath import File
from storageproxy.conditional import ByteRange

#: Bytes that are read by one call in a thread.
BLOCK = 1048576

#: Bytes of the pieces that are put together.
SMALL_PIECE = 4096

Chunks = Generator[bytes, None, None]


def gather(chunks: Chunks, block: int) -> list[bytes]:
    """
    What a generator yields next, up to a block of it; nothing when it has ended. Blocks.

    :param block: bytes that are enough.
    """
    found: list[bytes] = []
    size = 0
    for data in chunks:
        found.append(data)
        size += len(data)
        if size >= block:
            break
    # Many small ones cost more than a copy of them.
    return [b"".join(found)] if size < len(found) * SMALL_PIECE else found


class Changed(Exception):
    """There is less than was announced, as a file has become shorter while it was sent."""


@frozen
class Extent:
    """
    Bytes of an open file.

    :param stop: behind the last one.
    """

    file: File
    start: int
    stop: int

    def read(self, block: int = BLOCK) -> Chunks:
        """
        The bytes themselves. Blocks.

        :param block: bytes that are read by one call.
        :raises Changed: when the file is shorter.
        """
        offset = self.start
        while offset < self.stop:
            data = self.file.read(offset, min(block, self.stop - offset))
            if not data:
                raise Changed
            offset += len(data)
            yield data


#: Bytes, those of a file, or what makes a generator that is run in a volume's threads, given the
#: number of bytes to read by one call.
Part = bytes | Extent | Callable[[int], Chunks]


@frozen
class Body:
    """
    The bytes of an answer.

    :param length: how many there are, None when that is not known.
    :param parts: where they come from, in their order.
    """

    length: int | None
    parts: Sequence[Part]

    def chunks(self) -> Chunks:
        """All of it. Blocks; the ``finally`` of the generator frees what it holds."""
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from part.read() if isinstance(part, Extent) else part(BLOCK)

    def cached(self) -> bytes | None:
        """All of a small one, when that takes no waiting."""
        found = []
        for part in self.parts:
            if isinstance(part, bytes):
                found.append(part)
            elif isinstance(part, Extent):
                data = part.file.read_cached(part.start, part.stop - part.start)
                if data is None:
                    return None
                found.append(data)
            else:
                return None
        return b"".join(found)


def whole(file: File, size: int) -> Body:
    """A file from its beginning to its end."""
    return part(file, ByteRange(0, size))


def part(file: File, wanted: ByteRange) -> Body:
    """One range of a file."""
    return Body(len(wanted), (Extent(file, wanted.start, wanted.stop),))


def multipart(
    file: File, ranges: Sequence[ByteRange], size: int, media_type: str
) -> tuple[Body, str]:
    """
    Several ranges of a file, as multipart/byteranges (RFC 9110 section 14.6).

    :param size: bytes of the whole file.
    :param media_type: of the file.
    :return: the body, and the value of its Content-Type.
    """
    boundary = uuid4().hex
    parts: list[Part] = []
    length = 0
    for wanted in ranges:
        head = (
            f"\r\n--{boundary}\r\nContent-Type: {media_type}\r\n"
            f"Content-Range: {wanted.content_range(size)}\r\n\r\n"
        ).encode("ascii")
        parts += (head, Extent(file, wanted.start, wanted.stop))
        length += len(head) + len(wanted)
    tail = f"\r\n--{boundary}--\r\n".encode("ascii")
    return Body(length + len(tail), (*parts, tail)), f"multipart/byteranges; boundary={boundary}"
