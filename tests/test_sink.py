"""
Tests for :mod:`storageproxy.transfer.sink`.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from storageproxy.errors import VolumeUnavailable
from storageproxy.transfer.request import BodyDone
from storageproxy.transfer.sink import BLOCK, BOUND, LAP, FileSink, Outcome
from tests.harness import HeldThreads


class MemoryFile:
    """
    A file in memory.

    :ivar writes: offset and length of each write.
    :ivar room: bytes that the disk takes, None for any number.
    """

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.writes: list[tuple[int, int]] = []
        self.room: int | None = None

    def write(self, buffers: Iterable[bytes], offset: int) -> int:
        data = b"".join(buffers)
        self.writes.append((offset, len(data)))
        taken = data if self.room is None else data[: self.room]
        self.content[offset : offset + len(taken)] = taken
        if len(taken) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    def write_back(self, start: int, end: int, *, wait: bool) -> None:
        """There is no disk behind it."""


class Source(StringTransport):
    """
    A request in memory.

    :ivar waiting: what a thread would find on the connection, None where none may read from it.
    :ivar lent: the last loan.
    :ivar back: bytes that threads have read, as far as it knows.
    """

    waiting: bytes | None = None
    lent: MemoryLoan | None = None
    back = 0

    def lend_socket(self) -> MemoryLoan | None:
        self.lent = None if self.waiting is None else MemoryLoan(self)
        return self.lent

    def take_back(self, loan: MemoryLoan) -> None:
        assert self.producerState == "paused"
        self.waiting = loan.waiting
        self.back += loan.taken
        loan.close()


class MemoryLoan:
    """What a thread reads from a connection in memory."""

    def __init__(self, source: Source) -> None:
        self.waiting = source.waiting or b""
        self.taken = 0
        self.closed = False

    def read_into(self, block: memoryview) -> int:
        if self.closed:
            return 0
        data, self.waiting = self.waiting[: len(block)], self.waiting[len(block) :]
        block[: len(data)] = data
        self.taken += len(data)
        return len(data)

    def close(self) -> None:
        self.closed = True


class SinkCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = HeldThreads(self.clock, held=True)
        self.file = MemoryFile()
        self.transport = Source()

    def sink(self, offset: int = 0, room: int = 10 * BOUND, checksum: Any = None) -> FileSink:
        file: Any = self.file
        sink = FileSink(self.threads, offset, room, checksum)
        sink.file = file
        sink.makeConnection(self.transport)
        return sink

    def end(self, sink: FileSink) -> None:
        sink.connectionLost(Failure(BodyDone()))

    def outcome(self, sink: FileSink) -> Outcome:
        """How the flow has ended; what was left is written then."""
        found: Outcome = self.successResultOf(sink.done)
        sink.flush()
        return found


class FileSinkTests(SinkCase):
    def test_writes_what_comes(self) -> None:
        """All bytes are in the file, in order, when it is done."""
        sink = self.sink()
        for data in (b"abc", b"", b"def", b"g"):
            sink.dataReceived(data)
        self.end(sink)
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)
        self.assertEqual(self.file.writes, [(0, 7)])
        self.assertEqual(bytes(self.file.content), b"abcdefg")
        self.assertEqual(sink.offset, 7)

    def test_begins_at_its_offset(self) -> None:
        """What is in the file already stays."""
        self.file.content[:] = b"abc"
        sink = self.sink(3)
        sink.dataReceived(b"def")
        self.end(sink)
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)
        self.assertEqual(bytes(self.file.content), b"abcdef")
        self.assertEqual(sink.offset, 6)

    def test_nothing_comes(self) -> None:
        """An empty body is done at once."""
        sink = self.sink()
        self.end(sink)
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)
        self.assertEqual(self.file.writes, [])

    def test_small_pieces_are_gathered(self) -> None:
        """Small pieces do not cost a call in a thread each."""
        sink = self.sink()
        for _ in range(BLOCK // 1024 - 1):
            sink.dataReceived(bytes(1024))
        self.assertEqual(self.threads.calls, [])
        sink.dataReceived(bytes(1024))
        self.threads.step()
        self.assertEqual(self.file.writes, [(0, BLOCK)])

    def test_one_write_at_a_time_and_in_order(self) -> None:
        """While a write is under way no other begins, so that the order is that of the body."""
        sink = self.sink()
        for byte in b"abc":
            sink.dataReceived(bytes([byte]) * BLOCK)
            self.assertEqual(len(self.threads.calls), 1)
        self.end(sink)
        self.assertEqual(len(self.threads.calls), 1)
        self.assertNoResult(sink.done)
        self.threads.step()
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)
        self.assertEqual(self.file.writes, [(0, BLOCK), (BLOCK, 2 * BLOCK)])
        self.assertEqual(bytes(self.file.content), b"".join(bytes([b]) * BLOCK for b in b"abc"))

    def test_paused_above_the_bound(self) -> None:
        """A client that is faster than the disk is held back before memory fills."""
        sink = self.sink()
        sink.dataReceived(bytes(BOUND - 1))
        self.assertEqual(self.transport.producerState, "producing")
        sink.dataReceived(b"x")
        self.assertEqual(self.transport.producerState, "paused")

    def test_resumed_below_half_of_the_bound(self) -> None:
        """The client goes on when half of what was held is written, and not for a little less."""
        sink = self.sink()
        sink.dataReceived(bytes(BOUND // 2))
        sink.dataReceived(bytes(BOUND // 2))
        self.assertEqual(self.transport.producerState, "paused")
        self.threads.step()
        self.assertEqual(self.transport.producerState, "paused")
        self.threads.step()
        self.assertEqual(self.transport.producerState, "producing")

    def test_not_resumed_when_ended(self) -> None:
        """A body that has ended while it was held back is not asked for more."""
        sink = self.sink()
        sink.dataReceived(bytes(BOUND))
        self.end(sink)
        self.threads.step_all()
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)
        self.assertEqual(self.transport.producerState, "paused")

    def test_cut_settles(self) -> None:
        """When the connection breaks, what came before is written."""
        sink = self.sink()
        sink.dataReceived(b"abc")
        sink.connectionLost(Failure(ConnectionLost()))
        self.assertIs(self.outcome(sink), Outcome.CUT)
        self.assertEqual(bytes(self.file.content), b"abc")

    def test_stop_settles(self) -> None:
        """Who is asked to stop takes no more, and is done when nothing is being written."""
        sink = self.sink()
        sink.dataReceived(bytes(BLOCK))
        sink.dataReceived(b"abc")
        sink.stop()
        sink.dataReceived(b"def")
        self.assertNoResult(sink.done)
        self.threads.step()
        self.assertIs(self.outcome(sink), Outcome.CUT)
        self.assertEqual(bytes(self.file.content), bytes(BLOCK) + b"abc")
        self.assertEqual(sink.offset, BLOCK + 3)

    def test_stop_twice(self) -> None:
        """Being asked to stop by several, and then by the connection, is no mistake."""
        sink = self.sink()
        sink.dataReceived(b"abc")
        sink.stop()
        sink.stop()
        sink.connectionLost(Failure(ConnectionLost()))
        self.threads.step_all()
        sink.stop()
        self.assertIs(self.outcome(sink), Outcome.CUT)

    def test_stop_after_the_end(self) -> None:
        """A body that is complete is not cut afterwards, also when it is not written yet."""
        sink = self.sink()
        sink.dataReceived(b"abc")
        self.end(sink)
        sink.stop()
        self.threads.step_all()
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)

    def test_overflow(self) -> None:
        """More bytes than were announced are not written."""
        sink = self.sink(room=5)
        sink.dataReceived(b"abc")
        sink.dataReceived(b"def")
        sink.dataReceived(b"g")
        self.threads.step_all()
        self.assertIs(self.outcome(sink), Outcome.OVERFLOW)
        self.assertEqual(bytes(self.file.content), b"abc")

    def test_exactly_what_was_announced(self) -> None:
        """The last byte that was announced is no overflow."""
        sink = self.sink(room=3)
        sink.dataReceived(b"abc")
        self.end(sink)
        self.threads.step_all()
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)

    def test_disk_full(self) -> None:
        """FIX 6: a write that fails ends it, its offset is that of the writes before."""
        sink = self.sink()
        sink.dataReceived(bytes(BLOCK))
        sink.dataReceived(b"x" * BLOCK)
        self.threads.step()
        self.file.room = 100
        self.threads.step()
        self.assertIs(self.successResultOf(sink.done), Outcome.CUT)
        error = self.assertRaises(OSError, sink.flush)
        self.assertEqual(error.errno, errno.ENOSPC)
        self.assertEqual(sink.offset, BLOCK)

    def test_nothing_after_a_failure(self) -> None:
        """After a write has failed nothing more is taken or written."""
        self.file.room = 0
        sink = self.sink()
        sink.dataReceived(bytes(BLOCK))
        self.threads.step()
        self.successResultOf(sink.done)
        sink.dataReceived(bytes(BLOCK))
        self.end(sink)
        sink.stop()
        self.assertEqual(self.threads.calls, [])

    def test_volume_hangs(self) -> None:
        """A write that never comes back ends it, and its client need not wait for ever."""
        sink = self.sink()
        sink.dataReceived(bytes(BLOCK))
        self.clock.advance(self.threads.deadline * 4)
        self.failureResultOf(sink.done, VolumeUnavailable)
        self.assertEqual(sink.offset, 0)

    def test_checksum(self) -> None:
        """The checksum is that of all bytes that were written, and of no others."""
        checksum = hashlib.sha256()
        sink = self.sink(checksum=checksum)
        sink.dataReceived(b"a" * BLOCK)
        sink.dataReceived(b"b")
        sink.stop()
        sink.dataReceived(b"c")
        self.threads.step()
        self.assertIs(self.outcome(sink), Outcome.CUT)
        self.assertEqual(sink.digest(), hashlib.sha256(b"a" * BLOCK + b"b").digest())

    def test_memory_is_bounded(self) -> None:
        """A client that stops when it is told to never has more than the bound in memory."""
        sink = self.sink(room=100 * BOUND)
        piece = bytes(BLOCK // 2)
        most = sent = 0
        while sent < 20 * BOUND:
            if self.transport.producerState == "producing":
                sink.dataReceived(piece)
                sent += len(piece)
                most = max(most, sent - sink.offset)
            else:
                self.threads.step()
        self.end(sink)
        self.threads.step_all()
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)
        self.assertEqual(len(self.file.content), sent)
        self.assertLessEqual(most, BOUND)


class LoanTests(SinkCase):
    """The thread that writes may read from the connection itself."""

    def setUp(self) -> None:
        super().setUp()
        self.transport.waiting = b""

    def test_takes_what_is_there(self) -> None:
        """What waits on the connection is written behind what has come, in the same call."""
        waiting = os.urandom(2 * BLOCK + 5)
        self.transport.waiting = waiting
        sink = self.sink()
        sink.dataReceived(b"x" * BLOCK)
        self.assertEqual(self.transport.producerState, "paused")
        self.threads.step()
        self.assertEqual(self.threads.calls, [])
        self.assertEqual(self.transport.producerState, "producing")
        self.assertEqual(sink.offset, 3 * BLOCK + 5)
        sink.dataReceived(b"end")
        self.end(sink)
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)
        self.assertEqual(bytes(self.file.content), b"x" * BLOCK + waiting + b"end")

    def test_others_have_a_turn(self) -> None:
        """A connection that never runs dry does not have a thread for itself."""
        self.transport.waiting = bytes(2 * LAP)
        sink = self.sink(room=4 * LAP)
        sink.dataReceived(bytes(BLOCK))
        self.threads.step()
        self.assertEqual(sink.offset, BLOCK + LAP)
        self.assertEqual(self.transport.producerState, "producing")

    def test_counts_as_room(self) -> None:
        """What a thread has read is not room for others."""
        self.transport.waiting = bytes(10)
        sink = self.sink(room=BLOCK + 12)
        sink.dataReceived(bytes(BLOCK))
        self.threads.step()
        sink.dataReceived(b"abc")
        self.assertIs(self.outcome(sink), Outcome.OVERFLOW)

    def test_checksum_of_a_loan(self) -> None:
        """What a thread has read counts for the checksum."""
        self.transport.waiting = b"waiting"
        sink = self.sink(checksum=hashlib.sha256())
        sink.dataReceived(bytes(BLOCK))
        self.threads.step()
        self.end(sink)
        self.assertIs(self.outcome(sink), Outcome.COMPLETE)
        self.assertEqual(sink.digest(), hashlib.sha256(bytes(BLOCK) + b"waiting").digest())

    def test_stop_is_soon(self) -> None:
        """Who is asked to stop takes nothing more from the connection."""
        self.transport.waiting = bytes(BLOCK)
        sink = self.sink()
        sink.dataReceived(bytes(BLOCK))
        sink.stop()
        self.threads.step()
        self.assertIs(self.outcome(sink), Outcome.CUT)
        self.assertEqual(sink.offset, BLOCK)

    def given_back(self, taken: int) -> None:
        """The connection can be closed, and goes on behind what the thread has taken."""
        assert self.transport.lent is not None
        self.assertTrue(self.transport.lent.closed)
        self.assertEqual(self.transport.back, taken)

    def test_disk_full(self) -> None:
        """When the bytes that had come cannot be written, the connection is given back."""
        self.file.room = 0
        sink = self.sink()
        sink.dataReceived(bytes(BLOCK))
        self.threads.step()
        self.given_back(0)
        self.assertIs(self.successResultOf(sink.done), Outcome.CUT)

    def test_disk_full_later(self) -> None:
        """What the thread has read is counted, also when it cannot be written."""
        write = self.file.write

        def write_first(buffers: Iterable[bytes], offset: int) -> int:
            self.file.room = None if offset == 0 else 0
            return write(buffers, offset)

        self.patch(self.file, "write", write_first)
        self.transport.waiting = bytes(10)
        sink = self.sink()
        sink.dataReceived(bytes(BLOCK))
        known: list[int] = []
        sink.done.addCallback(lambda _: known.append(self.transport.back))
        self.threads.step()
        self.given_back(10)
        self.assertEqual(known, [10])

    def test_no_thread(self) -> None:
        """A write that is refused, as too many are waiting, gives the connection back."""
        self.transport.waiting = bytes(10)
        sink = self.sink()
        sink.dataReceived(bytes(BLOCK))
        self.threads.fail(VolumeUnavailable("too many calls are waiting"))
        self.given_back(0)
        self.failureResultOf(sink.done, VolumeUnavailable)

    def test_comes_back_late(self) -> None:
        """A thread that was given up takes nothing from the connection any more."""
        self.transport.waiting = bytes(10)
        sink = self.sink()
        sink.dataReceived(bytes(BLOCK))
        [late] = self.threads.calls
        self.clock.advance(self.threads.slow_deadline)
        self.failureResultOf(sink.done, VolumeUnavailable)
        late.function()
        self.given_back(0)
        self.assertEqual(self.transport.waiting, bytes(10))
