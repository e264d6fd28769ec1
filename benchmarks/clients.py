"""
Load: light clients, so that the server is what is measured.

One thread and one epoll drive all connections. A caller holds its connections open and goes through
one conversation after the other, each request when the answer before it is complete. What is
downloaded is discarded in the kernel (MSG_TRUNC, tcp(7)); what is uploaded goes from the page cache
with sendfile(2).
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TypeAlias

from attrs import define, field, frozen

HOST = "127.0.0.1"

#: Seconds without any progress after which a load is given up.
PATIENCE = 120.0

_READ = 16 * 1024
_SCRATCH = memoryview(bytearray(4 * 1024 * 1024))
_SEND = 4 * 1024 * 1024


@frozen
class Request:
    """
    What is sent.

    :param port: where to.
    :param head: the request, with its body if that is short.
    :param file: a descriptor, an offset and a length: the rest of the body.
    :param least: bytes that the answer's body has at least.
    :param keep: whether the conversation gets the answer's body; it is discarded otherwise.
    """

    port: int
    head: bytes
    file: tuple[int, int, int] | None = None
    least: int = 0
    keep: bool = False


#: Yields requests and is given the bodies of their answers.
Conversation: TypeAlias = Generator[Request, bytes, None]


@define
class Load:
    """
    What came of it.

    :param done: conversations that went as they should.
    :param received: bytes of bodies.
    :param seconds: from the start to the end of the last conversation.
    :param first: seconds to the headers of the first answer.
    :param slowest: seconds that the slowest request took.
    :param errors: one line for each answer that was not what it should be.
    """

    done: int = 0
    received: int = 0
    seconds: float = 0.0
    first: float = 0.0
    slowest: float = 0.0
    errors: list[str] = field(factory=list)


_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Failed(Exception):
    """An answer is not what it should be."""


def request(
    port: int,
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    file: tuple[int, int, int] | None = None,
    least: int = 0,
    keep: bool = False,
) -> Request:
    """Put a request together."""
    length = len(body) + (file[2] if file else 0)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}:{port}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {length}")
    head = "\r\n".join([*lines, "", ""]).encode("ascii") + body
    return Request(port, head, file, least, keep)


def single(*requests: Request) -> Conversation:
    """A conversation whose requests do not depend on any answer."""
    for one in requests:
        _ = yield one  # not "yield from": a tuple takes no answers


def connect(port: int, buffer: int = 0) -> socket.socket:
    """
    :param buffer: bytes that the kernel shall receive for us at most, 0 for its own choice.
    :return: a connection that does not block.
    """
    sock = socket.socket()
    try:
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(PATIENCE)
        sock.connect((HOST, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


class _Answer:
    """One answer, as it comes."""

    def __init__(self, keep: bool) -> None:
        self.head = False
        self.complete = False
        self.close = False
        self.status = 0
        self.received = 0
        self._keep = keep
        self._length: int | None = None
        self._chunked = False
        self._pending = bytearray()
        self._kept = bytearray()

    @property
    def body(self) -> bytes:
        return bytes(self._kept)

    def discards(self) -> int:
        """Bytes that are expected and that nobody wants to see."""
        if self.head and not self._keep and not self._chunked and not self.complete:
            return len(_SCRATCH) if self._length is None else self._length - self.received
        return 0

    def discarded(self, count: int) -> None:
        self.received += count
        self.complete = self.received == self._length

    def feed(self, data: bytes) -> None:
        if not self.head:
            if self._pending:
                data = bytes(self._pending) + data
                self._pending.clear()
            head, end, rest = data.partition(b"\r\n\r\n")
            if not end:
                self._pending += data
                return
            data = rest
            self._parse(head)
            if not self.head:
                self.feed(data)
                return
        if self._chunked:
            self._pending += data
            self._chunks()
            return
        self.received += len(data)
        if self._keep:
            self._kept += data
        if self._length is not None:
            if self.received > self._length:
                raise Failed(f"{self.received - self._length} bytes too many")
            self.complete = self.received == self._length

    def closed(self) -> None:
        """The server has closed the connection."""
        if not self.head or self._chunked or self._length is not None:
            raise Failed(f"closed after {self.received} of {self._length} bytes")
        self.close = self.complete = True

    def _parse(self, head: bytes) -> None:
        self.status = int(head.split(b" ", 2)[1])
        if self.status == 100:
            return
        self.head = True
        # Not line by line: on a machine with two cores what a client does is missing elsewhere.
        length = _LENGTH.search(head)
        if length is not None:
            self._length = int(length[1])
        self._chunked = _CHUNKED.search(head) is not None
        self.close = _CLOSE.search(head) is not None
        if self.status in (204, 304):
            self._length = 0

    def _chunks(self) -> None:
        while True:
            end = self._pending.find(b"\r\n")
            if end < 0:
                return
            size = int(bytes(self._pending[:end]).split(b";")[0], 16)
            if len(self._pending) < end + 4 + size:
                return
            if self._keep:
                self._kept += self._pending[end + 2 : end + 2 + size]
            self.received += size
            del self._pending[: end + 4 + size]
            if size == 0:
                self.complete = True
                return


class _Caller:
    """One who goes through conversations, and the connections that he holds open for them."""

    def __init__(self, load: _Run) -> None:
        self._run = load
        self._sockets: dict[int, socket.socket] = {}
        self._conversation: Conversation | None = None

    def begin(self) -> None:
        """Start the next conversation, if there is one."""
        while (conversation := self._run.next()) is not None:
            self._conversation = conversation
            try:
                self._send(next(conversation))
                return
            except (Failed, OSError) as error:
                self._fail(error)

    def _send(self, one: Request) -> None:
        self._request = one
        self._answer = _Answer(one.keep)
        self._began = time.perf_counter()
        self._unsent = one.head
        self._file = one.file
        sock = self._sockets.get(one.port)
        if sock is None:
            sock = self._sockets[one.port] = connect(one.port)
            self._run.epoll.register(sock.fileno(), select.EPOLLIN)
            self._run.callers[sock.fileno()] = self
        self._socket = sock
        self._waits_to_write = False
        self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            while self._file is not None:
                descriptor, offset, left = self._file
                sent = os.sendfile(self._socket.fileno(), descriptor, offset, min(left, _SEND))
                if sent == 0:
                    raise Failed("the source of the body is too short")
                self._file = (descriptor, offset + sent, left - sent) if sent < left else None
        except BlockingIOError:
            if not self._waits_to_write:
                self._waits_to_write = True
                self._run.epoll.modify(self._socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
            return
        if self._waits_to_write:
            self._waits_to_write = False
            self._run.epoll.modify(self._socket.fileno(), select.EPOLLIN)

    def ready(self, descriptor: int, events: int) -> None:
        """Go on with what a connection is ready for."""
        if self._conversation is None or descriptor != self._socket.fileno():
            self._drop(descriptor)
            return
        try:
            if events & ~select.EPOLLOUT:
                self._read()
            elif self._waits_to_write:
                self._write()
        except (Failed, OSError, ValueError) as error:
            self._fail(error)
            self.begin()

    def _read(self) -> None:
        answer = self._answer
        try:
            discards = answer.discards()
            if discards:
                count = self._socket.recv_into(
                    _SCRATCH, min(discards, len(_SCRATCH)), socket.MSG_TRUNC
                )
                if count:
                    answer.discarded(count)
                else:
                    answer.closed()
            else:
                data = self._socket.recv(_READ)
                if data:
                    answer.feed(data)
                else:
                    answer.closed()
        except BlockingIOError:
            return
        if answer.head and not self._run.load.first:
            self._run.load.first = time.perf_counter() - self._run.began
        if answer.complete:
            self._answered()

    def _answered(self) -> None:
        answer, one, load = self._answer, self._request, self._run.load
        load.slowest = max(load.slowest, time.perf_counter() - self._began)
        load.received += answer.received
        if not 200 <= answer.status < 300:
            raise Failed(f"status {answer.status}")
        if answer.received < one.least:
            raise Failed(f"{answer.received} bytes instead of {one.least}")
        if self._unsent or self._file is not None:
            raise Failed(f"status {answer.status} before the body was sent")
        if answer.close:
            self._drop(self._socket.fileno())
        assert self._conversation is not None
        try:
            self._send(self._conversation.send(answer.body))
        except StopIteration:
            load.done += 1
            self._run.ended()
            self._conversation = None
            self.begin()

    def _fail(self, error: Exception) -> None:
        what = self._request.head.split(b"?")[0].split(b" HTTP/1.1")[0].decode("ascii", "replace")
        self._run.load.errors.append(f"{what}: {error}")
        if self._conversation is not None:
            self._conversation.close()
            self._conversation = None
        for sock in list(self._sockets.values()):
            self._drop(sock.fileno())

    def _drop(self, descriptor: int) -> None:
        for port, sock in list(self._sockets.items()):
            if sock.fileno() == descriptor:
                del self._sockets[port], self._run.callers[descriptor]
                sock.close()

    @property
    def busy(self) -> bool:
        return self._conversation is not None

    def close(self) -> None:
        if self._conversation is not None:
            self._conversation.close()
        for sock in list(self._sockets.values()):
            self._drop(sock.fileno())


class _Run:
    """One load, under way."""

    def __init__(self, conversations: Iterator[Conversation], seconds: float) -> None:
        self.load = Load()
        self.epoll = select.epoll()
        self.callers: dict[int, _Caller] = {}
        self._conversations = conversations
        self.began = time.perf_counter()
        self._deadline = self.began + seconds

    def next(self) -> Conversation | None:
        if time.perf_counter() >= self._deadline:
            return None
        return next(self._conversations, None)

    def ended(self) -> None:
        self.load.seconds = time.perf_counter() - self.began


def run(callers: int, conversations: Iterable[Conversation], seconds: float = float("inf")) -> Load:
    """
    Let some callers go through conversations.

    :param callers: how many at one time.
    :param conversations: each is taken by the first who is free; without end, if there is a limit
        of time.
    :param seconds: after which none is begun.
    """
    load = _Run(iter(conversations), seconds)
    everyone = [_Caller(load) for _ in range(callers)]
    try:
        for caller in everyone:
            caller.begin()
        while any(caller.busy for caller in everyone):
            ready = load.epoll.poll(PATIENCE)
            if not ready:
                load.load.errors += ["no answer"] * sum(caller.busy for caller in everyone)
                break
            for descriptor, events in ready:
                if descriptor in load.callers:
                    load.callers[descriptor].ready(descriptor, events)
    finally:
        for caller in everyone:
            caller.close()
        load.epoll.close()
    return load.load
