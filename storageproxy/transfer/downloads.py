"""
From a file to a connection: the producer of a download's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from urllib.parse import quote
from uuid import uuid4

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.static import StaticProducer
from zope.interface import implementer

from storageproxy.beneath import File
from storageproxy.conditional import ByteRange
from storageproxy.errors import StorageProxyError
from storageproxy.interfaces import IThreads
from storageproxy.transfer.request import StreamingRequest

#: Bytes that are read by one call in a thread.
BLOCK = 256 * 1024

log = Logger()

#: Seconds after which a reader that takes nothing is cut off. At 10 kB/s, what the kernel holds for
#: it may last for several minutes.
STALLED = 900.0

Chunks = Generator[bytes, None, None]


class Changed(Exception):
    """There is less than was announced, as a file has become shorter while it was sent."""


@frozen
class Body:
    """
    The bytes of an answer.

    :param length: how many there are.
    :param chunks: makes a generator of them, which is run in a volume's threads.
    """

    length: int
    chunks: Callable[[], Chunks]


def whole(file: File, size: int) -> Body:
    """A file from its beginning to its end."""
    return part(file, ByteRange(0, size))


def part(file: File, wanted: ByteRange) -> Body:
    """One range of a file."""
    return Body(len(wanted), partial(_read, file, wanted))


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
    heads = [
        (
            f"\r\n--{boundary}\r\nContent-Type: {media_type}\r\n"
            f"Content-Range: {wanted.content_range(size)}\r\n\r\n"
        ).encode("ascii")
        for wanted in ranges
    ]
    tail = f"\r\n--{boundary}--\r\n".encode("ascii")

    def chunks() -> Chunks:
        for head, wanted in zip(heads, ranges, strict=True):
            yield head
            yield from _read(file, wanted)
        yield tail

    length = sum(map(len, heads)) + sum(map(len, ranges)) + len(tail)
    return Body(length, chunks), f"multipart/byteranges; boundary={boundary}"


def _read(file: File, wanted: ByteRange) -> Chunks:
    offset = wanted.start
    while offset < wanted.stop:
        data = file.read(offset, min(BLOCK, wanted.stop - offset))
        if not data:
            raise Changed
        offset += len(data)
        yield data


def content_disposition(name: str) -> str:
    """
    The header that names a download, in the original's spelling (RFC 6266, RFC 8187).

    Bytes that are no UTF-8, and characters that could end the header or the quotes, are escaped or
    left out.
    """
    ascii_name = "".join(
        character for character in name if " " <= character <= "~" and character != "\\"
    ).replace('"', r"\"")
    encoded = quote(name.encode("utf-8", "surrogateescape"), safe="")
    return f"attachment;filename=\"{ascii_name}\"; filename*=UTF-8''{encoded}"


@implementer(IPushProducer)
class ThreadedProducer(StaticProducer):
    """
    Sends what a generator yields, which runs in a volume's threads, as fast as the client reads.

    :param request: the answer's headers are set, and nothing is written yet.
    :param threads: the volume's.
    :param body: what to send; the ``finally`` of its generator frees what that holds.
    """

    def __init__(self, request: StreamingRequest, threads: IThreads, body: Body) -> None:
        chunks = body.chunks()
        super().__init__(request, chunks)
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._threads = threads
        self._chunks = chunks
        self._left = body.length
        self._paused = True
        self._reading = False
        self._timer: IDelayedCall | None = None

    def start(self) -> Deferred[None]:
        """
        Begin.

        :return: a Deferred that fires when everything is written to the transport.
        """
        self.request.registerProducer(self, True)
        self.resumeProducing()
        return self.done

    def resumeProducing(self) -> None:
        """The client has room."""
        self._paused = False
        self._watch(False)
        self._read()

    def pauseProducing(self) -> None:
        """The client is slow."""
        self._paused = True
        self._watch(True)

    def stopProducing(self) -> None:
        """The client is gone."""
        if self.request is not None:
            self._end(Failure(CancelledError()))

    def _watch(self, stalled: bool) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if stalled and self.request is not None:
            self._timer = self.request.reactor.callLater(STALLED, self.request.abort)

    def _read(self) -> None:
        if self._reading or self._paused or self.request is None:
            return
        self._reading = True
        self._threads.submit(
            lambda: next(self._chunks, b""),
            self._threads.slow_deadline,
            lambda _: self._chunks.close(),
        ).addCallbacks(self._write, self._failed)

    def _write(self, data: bytes) -> None:
        self._reading = False
        if self.request is None:
            self._release()
        elif not data:
            self._end(Failure(Changed()))
        else:
            self._left -= len(data)
            self.request.write(data)
            if self.request is None or self._left > 0:
                self._read()
            else:
                self._end(None)

    def _failed(self, failure: Failure) -> None:
        self._reading = False
        if self.request is None:
            self._release()
        else:
            self._end(failure)

    def _end(self, result: Failure | None) -> None:
        request, self.request = self.request, None
        self._watch(False)
        if request.channel is not None:
            request.unregisterProducer()
        if not self._reading:
            self._release()
        if not self.done.called:
            self.done.callback(result)

    def _release(self) -> None:
        self._threads.clean_up(self._close)

    def _close(self) -> None:
        # A generator that still hangs in a call is closed when that comes back.
        with suppress(ValueError):
            self._chunks.close()


async def send(request: StreamingRequest, threads: IThreads, body: Body) -> None:
    """
    Send the bytes of an answer, whose headers are set.

    Nothing can be taken back once it is written: an answer that cannot be completed ends with the
    connection, so that no client takes a part for the whole.
    """
    request.setHeader(b"Content-Length", b"%d" % body.length)
    if request.method == b"HEAD" or not body.length:
        return
    try:
        await ThreadedProducer(request, threads, body).start()
    except CancelledError:
        raise
    except (Changed, OSError, StorageProxyError) as error:
        log.warn("A download was broken off: {error!r}", error=error, request_id=request.request_id)
        request.abort()
    except Exception:
        log.failure("A download was broken off", request_id=request.request_id)
        request.abort()
