"""
A TCP proxy that hurts: it cuts, strands, delays and swallows what a client and the daemon say.

It stands between a real client and the daemon and knows nothing of HTTP, apart from where the
head of an answer ends.  It runs in a thread of its own, so that blocking clients may use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

BLOCK = 64 * 1024
LATE_LIMIT = 256 * 1024
START_DEADLINE = 10.0
END_DEADLINE = 10.0


class Way(enum.Enum):
    """The direction whose bytes a fault counts."""

    UP = "from the client to the daemon"
    DOWN = "from the daemon to the client"


class Kind(enum.Enum):
    """What happens to the connection when a fault strikes."""

    RESET = "both sides see a reset"
    CLOSE = "both sides see an ordinary end of the stream, the client after the daemon"
    STRAND = "the client sees a reset, the daemon sees a connection that has gone silent"
    LATE = "as STRAND, and bytes on their way arrive once the daemon has answered the next client"


@dataclass(frozen=True)
class Fault:
    """
    One fault.

    :ivar after: how many bytes pass first, counted since the fault before and over all
        connections.
    :ivar way: which bytes are counted.
    :ivar kind: what then happens.
    """

    after: int
    way: Way = Way.UP
    kind: Kind = Kind.RESET


@dataclass
class _Late:
    """Bytes that a client has sent and that the daemon is still to get."""

    writer: asyncio.StreamWriter
    content: bytes = field(repr=False)


class Cutter:
    """
    The proxy.  The faults strike in their order; once none is left everything passes.

    :param port: the loopback port of the daemon.
    :param faults: what goes wrong, in this order.
    :param swallow: a pattern; the first answer whose head matches never reaches the client, and
        both sides are reset instead.
    """

    def __init__(self, port: int, *faults: Fault, swallow: bytes | None = None) -> None:
        self._upstream = port
        self._faults = deque(faults)
        self._left = faults[0].after if faults else 0
        self._swallow = None if swallow is None else re.compile(swallow, re.IGNORECASE | re.DOTALL)
        self._late: list[_Late] = []
        self._stranded: list[asyncio.StreamWriter] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="cutter", daemon=True)
        #: The port to connect to.
        self.port = 0
        #: How many faults have struck.
        self.struck = 0
        #: How many answers were swallowed.
        self.swallowed = 0
        #: How many connections were taken.
        self.accepted = 0
        #: Bytes passed on in each direction.
        self.passed = {Way.UP: 0, Way.DOWN: 0}

    def start(self) -> Cutter:
        """Listen; returns when connections are taken."""
        self._thread.start()
        if not self._ready.wait(START_DEADLINE):
            raise RuntimeError("the cutting proxy does not start")
        return self

    def close(self) -> None:
        """End every connection, also the stranded ones, and the thread."""
        assert self._loop is not None and self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def url(self, url: str) -> str:
        """The same URL, but by way of this proxy."""
        return url.replace(f"//127.0.0.1:{self._upstream}/", f"//127.0.0.1:{self.port}/")

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=BLOCK)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for writer in self._stranded:
            _reset(writer)
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.accepted += 1
        try:
            await self._connection(reader, writer)
        finally:
            self._connections.discard(task)

    async def _connection(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            answers, daemon = await asyncio.open_connection(
                "127.0.0.1", self._upstream, limit=BLOCK
            )
        except OSError:
            _reset(client)
            return
        up = asyncio.ensure_future(self._pump(Way.UP, reader, daemon))
        down = asyncio.ensure_future(self._pump(Way.DOWN, answers, client))
        kind: Kind | None = Kind.RESET
        done: set[asyncio.Task[Kind | None]] = set()
        try:
            done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            kind = next((task.result() for task in done if task.result() is not None), None)
        finally:
            for pump in (up, down):
                pump.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            if kind in (Kind.STRAND, Kind.LATE):
                _reset(client)
                self._stranded.append(daemon)
            elif kind is Kind.RESET:
                _reset(client)
                _reset(daemon)
            else:
                if kind is Kind.CLOSE and up in done:
                    await self._end_of_body(answers, daemon)
                await _end(daemon)
                await _end(client)

    async def _end_of_body(
        self, answers: asyncio.StreamReader, daemon: asyncio.StreamWriter
    ) -> None:
        """End a request in its middle, and wait until the daemon has seen that."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(END_DEADLINE):
                daemon.write_eof()
                while await answers.read(BLOCK):
                    pass

    async def _pump(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Kind | None:
        """
        Pass bytes on in one direction until the stream ends or a fault strikes.

        :return: how the connection is to end, None for an ordinary end.
        """
        with contextlib.suppress(ConnectionError):
            while content := await reader.read(BLOCK):
                if way is Way.DOWN:
                    if self._swallow is not None and content.startswith(b"HTTP/1."):
                        while b"\r\n\r\n" not in content and (more := await reader.read(BLOCK)):
                            content += more
                        if self._swallow.match(content):
                            self._swallow = None
                            self.swallowed += 1
                            return Kind.RESET
                    await self._deliver_late()
                count, kind = self._count(way, len(content))
                self.passed[way] += count
                writer.write(content[:count])
                await writer.drain()
                if kind is Kind.LATE:
                    rest = content[count:]
                    while len(rest) < LATE_LIMIT and (more := await reader.read(BLOCK)):
                        rest += more
                    self._late.append(_Late(writer, rest))
                if kind is not None:
                    return kind
        return None

    def _count(self, way: Way, size: int) -> tuple[int, Kind | None]:
        """How many of these bytes may pass, and the fault that strikes behind them."""
        if not self._faults or self._faults[0].way is not way:
            return size, None
        if size < self._left:
            self._left -= size
            return size, None
        count = self._left
        kind = self._faults.popleft().kind
        self.struck += 1
        self._left = self._faults[0].after if self._faults else 0
        return count, kind

    async def _deliver_late(self) -> None:
        """Give the daemon what an earlier connection still owed it."""
        late, self._late = self._late, []
        for owed in late:
            with contextlib.suppress(ConnectionError):
                owed.writer.write(owed.content)
                await owed.writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other side sees a reset."""
    connection: Any = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _end(writer: asyncio.StreamWriter) -> None:
    """Close a connection after everything written has been sent."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
