"""
Tests for :mod:`storageproxy.transfer.producers` on real sockets, which a test drives by hand.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from io import BytesIO
from typing import Any
from zipfile import ZipFile

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer
from twisted.internet.tcp import Server
from twisted.python.failure import Failure
from zope.interface.verify import verifyClass

from storageproxy import pagecache
from storageproxy.beneath import File
from storageproxy.errors import VolumeUnavailable
from storageproxy.transfer import producers
from storageproxy.transfer.bodies import BLOCK
from storageproxy.transfer.downloads import SMALL
from storageproxy.transfer.feed import AHEAD
from storageproxy.transfer.producers import FRESH, STALLED, KernelProducer
from tests.harness import Answer, Descriptors, Events, MemoryCase, parse_answers

TURN = 1024 * 1024


class Writable:
    """What a socket's transport wants of a reactor, beside a clock."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.writers: set[Any] = set()

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def addReader(self, reader: Any) -> None:
        """Nothing: the test says when there is something to read."""

    def removeReader(self, reader: Any) -> None:
        """Nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clock, name)


class Connection:
    """
    A TCP connection to a site; nothing moves on it but by :meth:`turn` and :meth:`read`.
    """

    _realPortNumber = 0

    def __init__(self, factory: Any, clock: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.client = socket.create_connection(listening.getsockname())
            accepted, address = listening.accept()
        self.client.setblocking(False)
        accepted.setblocking(False)
        self.reactor = Writable(clock)
        self.received = bytearray()
        self.protocol = factory.buildProtocol(None)
        self.transport = Server(accepted, self.protocol, address, self, 1, self.reactor)
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def turn(self) -> bool:
        """Let the server write once, if it wants to and the kernel lets it; whether it did."""
        if self.transport not in self.reactor.writers:
            return False
        if not select.select([], [self.transport], [], 0)[1]:
            return False
        result = self.transport.doWrite()
        if result is not None:
            self.transport.connectionLost(Failure(ConnectionDone()))
        return True

    def read(self, size: int = 1 << 24) -> int:
        """Let the client read what there is; how many bytes that was."""
        count = 0
        while count < size:
            try:
                data = self.client.recv(min(1 << 20, size - count))
            except (BlockingIOError, ConnectionResetError):
                break
            if not data:
                break
            self.received += data
            count += len(data)
        return count

    def flow(self) -> None:
        """Let the client read until nothing comes any more."""
        self.reactor.clock.advance(0)
        while self.turn() | bool(self.read()):
            self.reactor.clock.advance(0)

    def answers(self, *methods: str) -> list[Answer]:
        return parse_answers(bytes(self.received), methods)

    def disconnect(self) -> None:
        self.client.close()
        if self.transport.connected:
            self.transport.connectionLost(Failure(ConnectionDone()))

    @property
    def idle(self) -> bool:
        """Whether the channel is the transport's producer, as between two requests."""
        return self.transport.producer is self.protocol


class KernelCase(MemoryCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(producers, "TURN", TURN)
        self.descriptors = Descriptors()

    def connect(self) -> Connection:
        connection = Connection(self.proxy.client_site, self.clock)
        self.addCleanup(connection.disconnect)
        return connection

    def ask(self, connection: Connection, relpath: str, query: str = "", **headers: str) -> None:
        path = self.proxy.download_path(self.vfid, relpath, query)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.send(f"GET {path} HTTP/1.1\r\nHost: here\r\n{lines}\r\n".encode())
        self.clock.advance(0)

    def begin(self, relpath: str, query: str = "", **headers: str) -> Connection:
        connection = self.connect()
        self.ask(connection, relpath, query, **headers)
        return connection

    def get(self, relpath: str, query: str = "", **headers: str) -> Answer:
        connection = self.begin(relpath, query, **headers)
        connection.flow()
        [answer] = connection.answers()
        self.assertTrue(connection.idle)
        return answer

    def cold(self, *answers: bool) -> None:
        """Have the page cache say so, one answer after the other; the last one stays."""
        left = list(answers or (False,))
        self.patch(pagecache, "is_cached", lambda *_: left.pop(0) if len(left) > 1 else left[0])

    def assert_all_closed(self) -> None:
        self.assertEqual(self.descriptors.left(self.root), set())
        self.assertEqual(self.proxy.client_site.active, set())
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.time > 1e6], [])


class KernelProducerTests(KernelCase):
    def setUp(self) -> None:
        super().setUp()
        self.content = os.urandom(2 * TURN + 4321)
        self.put("file", self.content)

    def test_interface(self) -> None:
        """It is a pull producer."""
        self.assertTrue(verifyClass(IPullProducer, KernelProducer))

    def test_at_once(self) -> None:
        """A small answer is with the client before the reactor has looked at its sockets again."""
        self.put("small", b"content")
        connection = self.begin("small")
        connection.read()
        [answer] = connection.answers()
        self.assertEqual((answer.status, answer.body), (200, b"content"))
        self.assertFalse(connection.turn())
        self.ask(connection, "small")
        connection.read()
        self.assertEqual(len(connection.answers()), 2)

    def test_client_left(self) -> None:
        """That the client is gone when it is answered is found by the reactor, as ever."""
        self.threads.held = True
        connection = self.begin("file", Range="bytes=0-9")
        connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.client.close()
        self.threads.release()
        self.assertTrue(connection.transport.connected)
        self.assertIsNotNone(connection.transport.doRead())

    def test_cached(self) -> None:
        """What the page cache has goes out without a thread."""
        self.threads.held = True
        connection = self.begin("file")
        self.threads.step()
        connection.flow()
        [answer] = connection.answers()
        self.assertEqual((answer.status, answer.body == self.content), (200, True))
        # Nothing but the closing of the file.
        self.assertEqual(len(self.threads.calls), 1)
        self.threads.release()
        self.assert_all_closed()

    def test_not_cached(self) -> None:
        """What is on the disk only is read in a thread, one call at a time."""
        self.patch(producers, "READ", BLOCK)
        self.cold()
        self.threads.held = True
        connection = self.begin("file")
        self.threads.step()
        reads = 0
        connection.flow()
        while connection.received[-100:] != self.content[-100:]:
            self.assertEqual(len(self.threads.calls), 1)
            self.threads.step()
            reads += 1
            connection.flow()
        self.assertEqual(reads, -(-len(self.content) // BLOCK // AHEAD))
        self.threads.release()
        connection.flow()
        self.assertEqual(connection.answers()[0].body, self.content)
        self.assert_all_closed()

    def test_looks(self) -> None:
        """One look at the page cache is for what is sent soon; then it is looked at again."""
        looks: list[tuple[int, int]] = []

        def look(_: int, offset: int, size: int) -> bool:
            looks.append((offset, size))
            return True

        self.patch(pagecache, "is_cached", look)
        connection = self.begin("file")
        self.assertTrue(connection.turn() and connection.turn())
        self.assertEqual(looks, [(0, len(self.content))])
        connection.read()
        self.clock.advance(FRESH)
        self.assertTrue(connection.turn())
        self.assertEqual(looks[1:], [(2 * TURN, len(self.content) - 2 * TURN)])
        connection.flow()
        self.assertEqual(connection.answers()[0].body, self.content)
        self.assertEqual(len(looks), 2)

    def test_partly_cached(self) -> None:
        """What the page cache has goes out of it, though the rest is on the disk only."""
        self.patch(pagecache, "is_cached", lambda _, offset, size: offset + size <= TURN)
        self.threads.held = True
        connection = self.begin("file")
        self.threads.step()
        connection.flow()
        self.assertEqual(connection.received[-TURN:], self.content[:TURN])
        self.threads.release()
        connection.flow()
        self.assertEqual(connection.answers()[0].body, self.content)
        self.assert_all_closed()

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.booleans(), min_size=1), st.lists(st.integers(1, 3 * TURN)))
    def test_any_course(self, cached: list[bool], amounts: list[int]) -> None:
        """Whatever is in the cache, and however the client reads, it gets the file."""
        self.cold(*cached)
        connection = self.begin("file", Range="bytes=77-")
        for amount in amounts:
            connection.turn()
            connection.read(amount)
        connection.flow()
        self.assertEqual(connection.answers()[0].body, self.content[77:])
        connection.disconnect()
        self.assert_all_closed()

    def test_many_ranges(self) -> None:
        """Several ranges come in one answer, as long as was said."""
        answer = self.get("file", Range=f"bytes=5-{TURN}, 0-9, -100000")
        self.assertEqual(answer.status, 206)
        self.assertEqual(len(answer.body), int(answer.headers["content-length"]))
        for part in (self.content[5 : TURN + 1], self.content[:10], self.content[-100000:]):
            self.assertIn(b"\r\n\r\n" + part + b"\r\n--", answer.body)
        self.assert_all_closed()

    def test_archive(self) -> None:
        """An archive is made in threads, and arrives whole."""
        for name in "abc":
            self.put(f"dir/{name}", os.urandom(3 * BLOCK + 7))
        answer = self.get("dir", "&archive=true")
        self.assertEqual(len(answer.body), int(answer.headers["content-length"]))
        found = ZipFile(BytesIO(answer.body))
        self.assertIsNone(found.testzip())
        self.assertEqual(sorted(found.namelist()), ["a", "b", "c"])
        self.assert_all_closed()

    def test_archive_ahead(self) -> None:
        """Of an archive, no more is made ahead of a client that reads nothing than a few blocks."""
        self.patch(producers, "READ", BLOCK)
        made = 0
        read = File.read

        def count(file: File, offset: int, size: int) -> bytes:
            nonlocal made
            made += size
            return read(file, offset, size)

        self.patch(File, "read", count)
        self.put("dir/a", os.urandom(8 * TURN))
        connection = self.begin("dir", "&archive=true")
        while connection.turn():
            self.clock.advance(0)
        [request] = self.proxy.client_site.active
        self.assertLessEqual(made, request.sentLength + (AHEAD + 1) * BLOCK)
        self.assertLess(made, 8 * TURN)
        connection.flow()
        self.assertIsNone(ZipFile(BytesIO(connection.answers()[0].body)).testzip())

    def test_blocks_shrink(self) -> None:
        """However many connections there are, they have no more in memory than was said."""
        sizes: list[int] = []
        read = File.read

        def note(file: File, offset: int, size: int) -> bytes:
            sizes.append(size)
            return read(file, offset, size)

        self.patch(File, "read", note)
        self.patch(producers, "MEMORY", 40 * producers.LEAST_READ)
        self.cold()
        for others, shares in ((0, 10), (1, 5), (4, 2), (30, 1)):
            connections = [self.begin("file") for _ in range(others)]
            sizes.clear()
            self.begin("file", Connection="close").flow()
            self.assertEqual(sizes[0], shares * producers.LEAST_READ)
            for connection in connections:
                connection.disconnect()

    def test_connection_goes_on(self) -> None:
        """A connection serves one download after the other, pipelined ones too."""
        connection = self.begin("file")
        self.ask(connection, "file", Range="bytes=-70000")
        connection.flow()
        self.ask(connection, "file", Range="bytes=1-")
        connection.flow()
        bodies = [answer.body for answer in connection.answers()]
        self.assertEqual(bodies, [self.content, self.content[-70000:], self.content[1:]])
        self.assertTrue(connection.idle)

    def test_after_small_ones(self) -> None:
        """A connection goes on when a large answer came after small ones that filled the buffer."""
        self.put("small", bytes(SMALL))
        connection = self.begin("small")
        for _ in range(40):
            self.ask(connection, "small")
        self.ask(connection, "file")
        connection.flow()
        self.ask(connection, "small")
        connection.flow()
        self.assertEqual(len(connection.answers()), 43)

    def test_late_archive(self) -> None:
        """A piece of an archive that comes when nobody waits any more closes what it has open."""
        self.put("dir/a", bytes(4 * TURN))
        self.threads.held = True
        connection = self.begin("dir", "&archive=true")
        while not connection.turn():
            self.threads.step()
        connection.flow()
        self.clock.advance(self.threads.slow_deadline)
        self.assertFalse(connection.transport.connected)
        self.threads.release()
        self.assert_all_closed()

    def test_last_of_its_connection(self) -> None:
        """A connection that is to end after its answer ends after all of it."""
        connection = self.begin("file", Connection="close")
        connection.flow()
        self.assertEqual(connection.answers()[0].body, self.content)
        self.assertFalse(connection.transport.connected)
        self.assert_all_closed()

    def test_one_turn(self) -> None:
        """A connection gives way to the others before its client has all that it could take."""
        self.put("large", bytes(8 * TURN))
        connection = self.begin("large")
        before = 0
        [request] = self.proxy.client_site.active
        for _ in range(4):
            connection.turn()
            self.assertLessEqual(request.sentLength - before, TURN)
            before = request.sentLength
            connection.read()

    def test_shares(self) -> None:
        """The more requests there are, the less each may send before the others, but something."""
        unit = producers.SHARE
        self.patch(producers, "COST", unit)
        self.patch(producers, "ROUND", 8 * unit)
        self.put("large", bytes(4 * TURN))
        for others, shares in ((0, 7), (1, 3), (3, 1), (20, 1)):
            connections = [self.begin("large") for _ in range(others + 1)]
            connections[0].turn()
            [request] = [
                one
                for one in self.proxy.client_site.active
                if one.transport is connections[0].transport
            ]
            self.assertEqual(request.sentLength, shares * unit)
            for connection in connections:
                connection.disconnect()

    def test_log(self) -> None:
        """The log has the bytes that were sent, of a download that was cut too."""
        events = Events(self)
        self.get("file")
        self.assertEqual(events.requests()[-1]["bytes_sent"], len(self.content))
        connection = self.begin("file")
        connection.turn()
        connection.turn()
        [request] = self.proxy.client_site.active
        sent = request.sentLength
        self.assertGreater(sent, 0)
        connection.disconnect()
        self.assertEqual(events.requests()[-1]["bytes_sent"], sent)
        self.assertTrue(events.requests()[-1]["aborted"])

    def test_small(self) -> None:
        """A small answer is one piece with its headers, and needs no producer."""
        self.patch(KernelProducer, "__init__", None)
        connection = self.begin("file", Range=f"bytes=10-{SMALL + 9}")
        connection.turn()
        connection.read()
        self.assertEqual(connection.answers()[0].body, self.content[10 : SMALL + 10])

    def test_small_not_cached(self) -> None:
        """A small answer that is on the disk only is read in a thread."""
        self.patch(pagecache, "read_cached", lambda *_: None)
        self.threads.held = True
        connection = self.begin("file", Range="bytes=10-19")
        self.threads.step()
        connection.flow()
        self.assertEqual(len(self.threads.calls), 1)
        self.threads.release()
        connection.flow()
        self.assertEqual(connection.answers()[0].body, self.content[10:20])
        self.assert_all_closed()


class EndTests(KernelCase):
    def setUp(self) -> None:
        super().setUp()
        self.put("file", bytes(6 * TURN))
        for name in "abc":
            self.put(f"dir/{name}", bytes(TURN))
        self.events = Events(self)

    def gone_after(self, steps: int, relpath: str, query: str = "", **headers: str) -> bool:
        """A client that goes after so many steps; whether there were as many."""
        self.threads.held = True
        connection = self.begin(relpath, query, **headers)
        for _ in range(steps):
            if self.threads.calls:
                self.threads.step()
            elif not connection.turn() | bool(connection.read(BLOCK)):
                break
        more = bool(self.threads.calls) or connection.transport in connection.reactor.writers
        connection.disconnect()
        self.threads.release()
        self.assert_all_closed()
        return more

    def test_at_any_point(self) -> None:
        """Wherever a client hangs up, nothing is left open or waiting."""
        for asked in (("file", ""), ("dir", "&archive=true")):
            for cached in (True, False):
                self.cold(cached)
                steps = 0
                while self.gone_after(steps, *asked):
                    steps += 1
                self.assertGreater(steps, 4)

    def test_reset(self) -> None:
        """A client that resets its connection is no error of ours."""
        connection = self.begin("file")
        connection.turn()
        connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.client.close()
        while connection.turn():
            self.clock.advance(0)
        self.assertFalse(connection.transport.connected)
        self.assert_all_closed()
        self.assertEqual([event for event in self.events if event["log_level"].name != "info"], [])

    def broken(self, connection: Connection) -> None:
        """The connection has ended, with less than was promised."""
        connection.flow()
        self.clock.advance(0)
        self.assertFalse(connection.transport.connected)
        self.assertRaises(ValueError, connection.answers)
        self.assertTrue(self.events.requests()[-1]["aborted"])
        self.threads.release()
        self.assert_all_closed()

    def test_shrinks(self) -> None:
        """A file that shrinks while it is sent ends the connection."""
        for cached in (True, False):
            self.cold(cached)
            path = self.put("shrinking", bytes(6 * TURN))
            connection = self.begin("shrinking")
            for _ in range(3):
                connection.turn()
            os.truncate(path, BLOCK)
            self.broken(connection)

    def test_disk_fails(self) -> None:
        """A disk that fails in mid-file ends the connection."""
        self.patch(producers, "READ", producers.LEAST_READ)
        self.cold()
        self.threads.held = True
        connection = self.begin("file")
        for _ in range(3):
            self.threads.step()
            connection.flow()
        self.threads.fail(OSError(errno.EIO, "Input/output error"))
        self.broken(connection)

    def test_disk_fails_in_sendfile(self) -> None:
        """So it does when the kernel finds out itself."""
        connection = self.begin("file")
        connection.turn()
        self.patch(os, "sendfile", _fail)
        self.broken(connection)

    def test_volume_hangs(self) -> None:
        """A volume that hangs in mid-file ends the connection in bounded time."""
        self.patch(producers, "READ", producers.LEAST_READ)
        self.cold()
        self.threads.held = True
        connection = self.begin("file")
        for _ in range(3):
            self.threads.step()
            connection.flow()
        self.clock.advance(self.threads.slow_deadline)
        self.broken(connection)

    def test_volume_unavailable(self) -> None:
        """So does one that takes no more calls."""
        self.cold()
        connection = self.begin("file")
        self.patch(self.threads, "submit", self._refuse)
        self.broken(connection)

    def _refuse(self, *_: object) -> Any:
        return fail(VolumeUnavailable("all threads are stuck"))

    def test_stalled(self) -> None:
        """A client that takes nothing for a quarter of an hour is cut off, and not before."""
        connection = self.begin("file")
        while connection.turn():
            continue
        self.clock.advance(STALLED - 1)
        connection.read(TURN)
        connection.turn()
        self.clock.advance(STALLED - 1)
        self.assertTrue(connection.transport.connected)
        self.clock.advance(1)
        self.clock.advance(0)
        self.assertFalse(connection.transport.connected)
        self.assert_all_closed()


def _fail(*_: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
