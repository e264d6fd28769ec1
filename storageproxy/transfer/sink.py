"""
From a connection to a file: the consumer of an upload's bytes.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from storageproxy.beneath import File
from storageproxy.interfaces import IThreads
from storageproxy.transfer.request import BodyDone
from storageproxy.tus import Hash

#: Bytes that are worth a call in a thread, while more are on their way.
BLOCK = 1024 * 1024
#: Pieces with fewer bytes are put together.
SMALL = 4096
#: Bytes after which what is written is sent on to the disk.
WINDOW = 32 * BLOCK
#: Bytes in memory above which the connection is not read.
BOUND = 4 * BLOCK


class Outcome(Enum):
    """How the flow of bytes has ended."""

    COMPLETE = "the whole body arrived"
    CUT = "the connection ended, or a newer request took over"
    OVERFLOW = "more bytes arrived than were announced"


class FileSink(Protocol):
    """
    Writes a body to a file, in a volume's threads, and holds the connection back meanwhile.

    It is done when every byte it took is written. Whatever ends it, the bytes before stay.

    :param threads: the volume's.
    :param file: where to write.
    :param offset: where to begin, in bytes.
    :param room: bytes that may come.
    :param checksum: fed with all bytes that are written.
    :ivar offset: behind the last byte written.
    :ivar done: a Deferred with the :class:`Outcome`, or with the failure of a write.
    """

    def __init__(
        self, threads: IThreads, file: File, offset: int, room: int, checksum: Hash | None = None
    ) -> None:
        self.offset = offset
        self.done: Deferred[Outcome] = Deferred()
        self._threads = threads
        self._file = file
        self._room = room
        self._checksum = checksum
        self._buffers: list[bytes | bytearray] = []
        self._tail: bytearray | None = None
        self._begun = self._waited = offset
        self._buffered = 0
        self._writing = False
        self._paused = False
        self._outcome: Outcome | None = None

    def dataReceived(self, data: bytes) -> None:
        """Take bytes, and hold the connection when there are too many."""
        if self._outcome is not None:
            return
        self._room -= len(data)
        if self._room < 0:
            self._end(Outcome.OVERFLOW)
            return
        self._hold(data)
        if self._buffered >= BOUND and not self._paused:
            self._paused = True
            self._transport.pauseProducing()
        if self._buffered >= BLOCK:
            self._write()

    def _hold(self, data: bytes) -> None:
        self._buffered += len(data)
        if len(data) >= SMALL:
            self._tail = None
            self._buffers.append(data)
            return
        # A body may come in chunks of a few bytes each; what counts is not to hold each of them.
        if self._tail is None or len(self._tail) >= BLOCK:
            self._tail = bytearray()
            self._buffers.append(self._tail)
        self._tail += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body has ended, one way or the other."""
        self._end(Outcome.COMPLETE if reason.check(BodyDone) else Outcome.CUT)

    def stop(self) -> None:
        """Take no more bytes, and be done when those that came are written."""
        self._end(Outcome.CUT)

    @property
    def _transport(self) -> Any:
        return self.transport

    def _end(self, outcome: Outcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._write()

    def _write(self) -> None:
        if self._writing or self.done.called:
            return
        if not self._buffers:
            if self._outcome is not None:
                self.done.callback(self._outcome)
            return
        self._writing = True
        buffers, self._buffers, self._tail = self._buffers, [], None
        writing = self._threads.submit(
            lambda: self._write_in_thread(buffers), self._threads.slow_deadline, None
        )
        writing.addCallbacks(self._written, self._failed)

    def _write_in_thread(self, buffers: list[bytes | bytearray]) -> int:
        written = self._file.write(buffers, self.offset)
        end = self.offset + written
        if end - self._begun >= WINDOW:
            # The disk works while more comes, and never has much left when the end is synced.
            self._file.write_back(self._waited, self._begun, wait=True)
            self._file.write_back(self._begun, end, wait=False)
            self._waited, self._begun = self._begun, end
        if self._checksum is not None:
            for data in buffers:
                self._checksum.update(bytes(data))
        return written

    def _written(self, count: int) -> None:
        self._writing = False
        self.offset += count
        self._buffered -= count
        if self._paused and self._outcome is None and self._buffered < BOUND // 2:
            self._paused = False
            self._transport.resumeProducing()
        if self._buffered >= BLOCK or self._outcome is not None:
            self._write()

    def _failed(self, failure: Failure) -> None:
        self._outcome = self._outcome or Outcome.CUT
        self._buffers.clear()
        self.done.errback(failure)
