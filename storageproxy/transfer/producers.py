"""
From a body to a connection: the two producers of an answer's bytes.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IPullProducer,
    IPushProducer,
)
from twisted.python.failure import Failure
from twisted.web.static import StaticProducer
from zope.interface import implementer

from storageproxy.interfaces import IThreads
from storageproxy.transfer.bodies import BLOCK, Body, Changed, Chunks, Extent, Part, gather
from storageproxy.transfer.feed import AHEAD, Feed
from storageproxy.transfer.request import StreamingRequest

#: Seconds after which a reader that takes nothing is cut off. At 10 kB/s, what the kernel holds for
#: it may last for several minutes.
STALLED = 900.0

#: Bytes that one connection may send before it is the turn of the others, and seconds after which
#: it sends no more: a thread that makes the bytes may take the interpreter's lock for some
#: milliseconds after each call.
TURN, LONGEST = 16 * 1024 * 1024, 0.005

#: Bytes that all of them may send before the reactor looks at anything else, what the turn of each
#: counts for besides, as it costs some 60 microseconds, and the least that one may send in it.
ROUND, COST, SHARE = 64 * 1024 * 1024, 256 * 1024, 64 * 1024

#: Bytes that are read by one call for it, and the fewest when there are many connections. What they
#: have in memory together is about :data:`MEMORY`.
READ, LEAST_READ = 1024 * 1024, 64 * 1024
MEMORY = 64 * 1024 * 1024

#: Bytes of a file that are read in threads before the page cache is looked at again.
STRETCH = 32 * 1024 * 1024

#: Turns that one look at the page cache is for, and seconds for which what was in it is taken to be
#: there still.
LOOK_AHEAD, FRESH = 4, 0.05

#: Buffers that one call takes (limits.h).
_IOV_MAX = 1024

#: What a socket says whose other end is gone.
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT})


@implementer(IPushProducer)
class ThreadedProducer(StaticProducer):
    """
    Sends what a generator yields, which runs in a volume's threads, as fast as the client reads.
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
            partial(gather, self._chunks, BLOCK),
            self._threads.slow_deadline,
            lambda _: self._chunks.close(),
        ).addCallbacks(self._write, self._failed)

    def _write(self, pieces: list[bytes]) -> None:
        self._reading = False
        if self.request is None:
            self._release()
        elif not pieces:
            self._end(None if self._left is None else Failure(Changed()))
        else:
            data = b"".join(pieces)
            if self._left is not None:
                self._left -= len(data)
            self.request.write(data)
            if self.request is None or self._left is None or self._left > 0:
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
        _close(self._threads, self._chunks)


@implementer(IPullProducer)
class KernelProducer:
    """
    Sends on a plain socket, past the buffers of the transport: sendfile(2) for what the page cache
    has of a file, and bytes from a volume's threads for the rest, so that no disk is waited for in
    the reactor's thread.

    While it sends, it takes the place of the channel as the transport's producer.
    """

    def __init__(self, request: StreamingRequest, threads: IThreads, body: Body) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._request: StreamingRequest | None = request
        self._transport = request.transport
        self._threads = threads
        self._parts = deque(body.parts)
        #: What is made of the part before, in threads.
        self._feed: Feed | None = None
        #: What is sent before the next part is looked at.
        self._data: deque[memoryview] = deque()
        #: What was in the page cache when that was looked at, and when that was.
        self._seen: Extent | None = None
        self._seen_at = 0.0
        self._begun = False
        self._moved = request.reactor.seconds()
        self._timer: IDelayedCall | None = None

    def start(self) -> Deferred[None]:
        """
        Begin.

        :return: a Deferred that fires when everything is handed to the kernel.
        """
        assert self._request is not None
        self._request.write(b"")
        self._timer = self._request.reactor.callLater(STALLED, self._watch)
        self._request.channel.lend_transport(self)
        # It will ask for more when the headers are out of its buffer.
        self._transport.startWriting()
        return self.done

    def resumeProducing(self) -> None:
        """The buffer of the transport is empty, and the socket may have room."""
        if not self._begun:
            # Called on registration, whatever is in the buffer.
            self._begun = True
            return
        if self._request is None:
            return
        share = ROUND // max(1, len(self._request.site.active)) - COST
        try:
            self._send(min(TURN, max(SHARE, share)))
        except BlockingIOError:
            self._transport.startWriting()
        except OSError as error:
            self._end(Failure(CancelledError() if error.errno in _GONE else error))
        except Changed:
            self._end(Failure())

    def stopProducing(self) -> None:
        """The client is gone."""
        self._end(Failure(CancelledError()))

    def _send(self, left: int) -> None:
        assert self._request is not None
        end = self._request.reactor.seconds() + LONGEST
        while left > 0 and self._moved < end:
            if self._data:
                sent = self._send_data()
            elif self._feed is not None:
                pieces = self._feed.take()
                if pieces is None:
                    return
                if pieces:
                    self._data.extend(memoryview(piece) for piece in pieces if piece)
                else:
                    self._release()
                continue
            elif not self._parts:
                self._end(None)
                return
            else:
                sent = self._send_part(self._parts[0], left)
            left -= sent
            self._count(sent)
        self._transport.startWriting()

    def _send_data(self) -> int:
        sent: int = self._transport.getHandle().sendmsg(list(islice(self._data, _IOV_MAX)))
        left = sent
        while self._data and left >= len(self._data[0]):
            left -= len(self._data.popleft())
        if left:
            self._data[0] = self._data[0][left:]
        return sent

    def _send_part(self, part: Part, limit: int) -> int:
        """Send of the first part what can be sent without waiting; bytes that were sent."""
        if isinstance(part, bytes):
            self._parts.popleft()
            self._data.append(memoryview(part))
            return 0
        if not isinstance(part, Extent):
            self._parts.popleft()
            self._have_made(part)
            return 0
        size = min(limit, part.stop - part.start)
        if not self._is_cached(part, size):
            lap = Extent(part.file, part.start, min(part.stop, part.start + STRETCH))
            self._advance(part, lap.stop - lap.start)
            self._have_made(lap.read)
            return 0
        sent = part.file.send(self._transport.getHandle(), part.start, size)
        self._advance(part, sent)
        return sent

    def _is_cached(self, part: Extent, size: int) -> bool:
        assert self._request is not None
        seen, now = self._seen, self._request.reactor.seconds()
        if (
            seen is not None
            and seen.file is part.file
            and seen.start <= part.start <= part.start + size <= seen.stop
            and 0 <= now - self._seen_at < FRESH
        ):
            return True
        ahead = min(LOOK_AHEAD * size, part.stop - part.start)
        if not part.file.is_cached(part.start, ahead):
            if ahead == size or not part.file.is_cached(part.start, size):
                return False
            ahead = size
        self._seen = Extent(part.file, part.start, part.start + ahead)
        self._seen_at = now
        return True

    def _have_made(self, make: Callable[[int], Chunks]) -> None:
        assert self._request is not None
        share = MEMORY // (AHEAD + 1) // max(1, len(self._request.site.active))
        block = min(READ, max(LEAST_READ, share))
        self._feed = Feed(
            self._request.reactor, self._threads, make(block), block, self._arrived, self._failed
        )

    def _advance(self, part: Extent, count: int) -> None:
        if not count:
            raise Changed
        if part.start + count == part.stop:
            self._parts.popleft()
        else:
            self._parts[0] = Extent(part.file, part.start + count, part.stop)

    def _count(self, sent: int) -> None:
        if sent and self._request is not None:
            self._request.sentLength += sent
            self._moved = self._request.reactor.seconds()

    def _arrived(self) -> None:
        if not self._data:
            self.resumeProducing()

    def _failed(self, failure: Failure) -> None:
        self._end(failure)

    def _watch(self) -> None:
        if self._request is None:
            return
        idle = self._request.reactor.seconds() - self._moved
        if idle >= STALLED:
            self._request.abort()
        else:
            self._timer = self._request.reactor.callLater(STALLED - idle, self._watch)

    def _end(self, result: Failure | None) -> None:
        request, self._request = self._request, None
        if request is None:
            return
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._data.clear()
        self._parts.clear()
        self._release()
        if self._transport.connected:
            request.channel.take_transport_back()
        if not self.done.called:
            self.done.callback(result)

    def _release(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()


def _close(threads: IThreads, chunks: Chunks) -> None:
    def close() -> None:
        # One that still hangs in a call is closed when that comes back.
        with suppress(ValueError):
            chunks.close()

    threads.clean_up(close)
