"""
From a connection to a file: the consumer of an upload's bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from storageproxy.beneath import Buffer, File
from storageproxy.interfaces import IThreads
from storageproxy.transfer.request import BodyDone, Loan
from storageproxy.tus import Hash

#: Bytes that are worth a call in a thread, while more are on their way.
BLOCK = 1024 * 1024
#: Pieces with fewer bytes are put together.
SMALL = 4096
#: Bytes after which what is written is sent on to the disk.
WINDOW = 32 * BLOCK
#: Bytes in memory above which the connection is not read.
BOUND = 4 * BLOCK
#: Bytes after which a thread that reads from a connection itself lets others have a turn.
LAP = 16 * BLOCK

_of_thread = threading.local()


class Outcome(Enum):
    """How the flow of bytes has ended."""

    COMPLETE = "the whole body arrived"
    CUT = "the connection ended, or a newer request took over"
    OVERFLOW = "more bytes arrived than were announced"


class FileSink(Protocol):
    """
    Writes a body to a file, in a volume's threads, and holds the connection back meanwhile.

    When it is done, :meth:`flush` writes what is left. Whatever has ended it, the bytes before
    stay.

    :param threads: the volume's.
    :param offset: where to begin, in bytes.
    :param room: bytes that may come.
    :param checksum: fed with all bytes that are written.
    :param write_back: have the disk work while bytes come, as the end will be synced.
    :param keep: called in a thread now and then, with the offset behind the last byte written; for
        those who cannot leave all to the end. It takes the place of ``write_back``.
    :ivar file: where to write; to be set before more than a little comes.
    :ivar outcome: how the flow has ended, when it has.
    :ivar offset: behind the last byte written.
    :ivar done: a Deferred with the :class:`Outcome`, or with
        :exc:`~storageproxy.errors.VolumeUnavailable` when a write does not come back.
    """

    file: File

    def __init__(
        self,
        threads: IThreads,
        offset: int,
        room: int,
        checksum: Hash | None = None,
        *,
        write_back: bool = True,
        keep: Callable[[int], object] | None = None,
    ) -> None:
        self.offset = offset
        self.outcome: Outcome | None = None
        self.done: Deferred[Outcome] = Deferred()
        self._threads = threads
        self._room = room
        self._checksum = checksum
        self._write_back = write_back
        self._keep = keep
        self._buffers: list[Buffer] = []
        self._tail: bytearray | None = None
        self._begun = self._waited = offset
        self._buffered = 0
        self._writing = False
        self._paused = False
        self._error: OSError | None = None

    def dataReceived(self, data: bytes) -> None:
        """Take bytes, and hold the connection when there are too many."""
        if self.outcome is not None:
            return
        self._room -= len(data)
        if self._room < 0:
            self._end(Outcome.OVERFLOW)
            return
        self._hold(data)
        if self._buffered >= BOUND:
            self._pause()
        if self._buffered >= BLOCK:
            self._write()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pauseProducing()

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

    def flush(self) -> None:
        """
        Write what is left, once the flow has ended. Blocks.

        :raises OSError: of this write, or of the one before that ended the flow.
        """
        if self._error is not None:
            raise self._error
        if self._buffers:
            self.offset += self._store(self._buffers, self.offset)
            self._buffers = []

    def digest(self) -> bytes:
        """The checksum of all bytes that are written."""
        return b"" if self._checksum is None else self._checksum.digest()

    @property
    def _transport(self) -> Any:
        return self.transport

    def _end(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            if not self._writing:
                self.done.callback(outcome)

    def _write(self) -> None:
        if self._writing:
            return
        self._writing = True
        buffers, self._buffers, self._tail = self._buffers, [], None
        loan = self._transport.lend_socket()
        if loan is not None:
            self._pause()
        writing = self._threads.submit(
            lambda: self._write_in_thread(buffers, loan), self._threads.slow_deadline, None
        )
        writing.addCallbacks(self._written, self._failed, callbackArgs=(loan,), errbackArgs=(loan,))

    def _write_in_thread(self, buffers: Sequence[Buffer], loan: Loan | None) -> int:
        written = self._store(buffers, self.offset)
        if loan is not None:
            # The rest of what is waiting, with one copy of it in memory and no hand-over to the
            # reactor in between.
            block = _block()
            while loan.taken < LAP and self.outcome is None:
                count = loan.read_into(block)
                if not count:
                    break
                written += self._store([block[:count]], self.offset + written)
        return written

    def _store(self, buffers: Sequence[Buffer], offset: int) -> int:
        written = self.file.write(buffers, offset)
        end = offset + written
        if self._keep is not None:
            if end - self._begun >= WINDOW:
                self._keep(end)
                self._begun = end
        elif self._write_back and end - self._begun >= WINDOW:
            # The disk works while more comes, and never has much left when the end is synced.
            self.file.write_back(self._waited, self._begun, wait=True)
            self.file.write_back(self._begun, end, wait=False)
            self._waited, self._begun = self._begun, end
        if self._checksum is not None:
            for data in buffers:
                self._checksum.update(data)
        return written

    def _written(self, count: int, loan: Loan | None) -> None:
        self._writing = False
        self.offset += count
        self._buffered -= count
        if loan is not None:
            self._buffered += loan.taken
            self._room -= loan.taken
            self._transport.take_back(loan)
        if self.outcome is not None:
            if not self.done.called:
                self.done.callback(self.outcome)
            return
        if self._paused and self._buffered < BOUND // 2:
            self._paused = False
            self._transport.resumeProducing()
        if self._buffered >= BLOCK:
            self._write()

    def _failed(self, failure: Failure, loan: Loan | None) -> None:
        self.outcome = self.outcome or Outcome.CUT
        self._buffers.clear()
        if loan is not None:
            self._transport.take_back(loan)
        if isinstance(failure.value, OSError):
            self._error = failure.value
            self.done.callback(self.outcome)
        else:
            # A write that may yet come back: nothing more is done to the file.
            self.done.errback(failure)


def _block() -> memoryview:
    """A block of memory, which each thread keeps."""
    try:
        block: memoryview = _of_thread.block
    except AttributeError:
        block = _of_thread.block = memoryview(bytearray(BLOCK))
    return block
