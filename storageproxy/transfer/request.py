"""
Requests that are handled when their headers are complete, while the body is still on its way.

``twisted.web`` calls a resource only after it has put the whole body into a temporary file: an
upload that is cut would never be seen. Here a resource runs at once, and takes the body as it
comes with :meth:`StreamingRequest.deliver_body`, as ``IResponse.deliverBody`` gives it to clients.
What is private to ``twisted.web`` is touched in this module only.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from secrets import token_hex
from typing import Any
from urllib.parse import parse_qsl

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IPullProducer,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Request
from zope.interface import implementer

from storageproxy.errors import MalformedRequest, RequestTooLarge

#: What a refused request may still send before its connection is closed (as in nginx'
#: ``lingering_close``): clients read an answer only when they could write.
LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 20.0

#: What is left of a refused request's body, in bytes, that is read to keep its connection.
SHORT_REST = 256 * 1024

#: Bytes that are read from the socket at one time while a large body comes.
LARGE_READ = 1024 * 1024

log = Logger()

_ORIGIN = re.compile(rb"https?://[^/?]*(?=[/?])", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class StreamingChannel(HTTPChannel):
    """
    A connection that answers what it cannot understand in JSON too, and does not wait for ever for
    the end of a request's headers.
    """

    factory: Any
    transport: Any

    def connectionMade(self) -> None:
        """The connection is open."""
        super().connectionMade()
        if ITCPTransport.providedBy(self.transport):
            # Finds out about clients that vanish without a word.
            self.transport.setTcpKeepAlive(True)
        self.factory.connected(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is closed."""
        super().connectionLost(reason)
        self.factory.disconnected(self)

    def requestDone(self, request: Request) -> None:
        """A request is answered."""
        if self.factory.draining:
            self.persistent = False
        super().requestDone(request)
        wire = self.transport
        if isinstance(wire, Connection) and wire.connected and not wire.disconnecting:
            # Now, as far as the kernel takes it. To wait until the reactor finds out that it does
            # costs as much as a tenth of a small answer.
            wire.doWrite()

    def dataReceived(self, data: bytes) -> None:
        """Bytes have come."""
        if self.line_mode and (self.requests or self._buffer):
            # Headers that come byte by byte do not keep the connection.
            LineReceiver.dataReceived(self, data)
        else:
            super().dataReceived(data)

    def headerReceived(self, line: bytes) -> bool:
        """A header is complete."""
        if line[:15].lower() == b"content-length:" and len(line[15:].strip()) > 19:
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(super().headerReceived(line))

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Write the head of an answer, in one piece."""
        lines = [b"%b %b %b" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            lines += [b"%b: %b" % (name, value) for value in values]
        lines.append(b"\r\n")
        self.transport.write(b"\r\n".join(lines))

    def lend_transport(self, producer: IPullProducer) -> None:
        """Let a producer of an answer write to the transport past this channel."""
        self.transport.unregisterProducer()
        self.transport.registerProducer(producer, False)

    def take_transport_back(self) -> None:
        """Go on as the transport's producer."""
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)
        if self._waitingForTransport:
            # That there is room again was told to the other producer.
            self.resumeProducing()

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line is longer than any client's."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        if not (self.requests and self.requests[-1].startedWriting):
            body = json.dumps(MalformedRequest("this is not HTTP/1.1").document()).encode("ascii")
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
                b"Access-Control-Allow-Origin: *\r\n"
                b"Content-Type: application/problem+json; charset=utf-8\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
        self.timeoutConnection()


class BodyDone(Exception):
    """The reason with which a body's protocol loses its connection when all of it has arrived."""


class Loan:
    """
    A connection that is read by a thread, as far as one body goes.

    :param connection: stays as it is; what is closed is a handle of its own. Were its number closed
        behind the thread's back, it could come to stand for another client.
    :param left: bytes that the body still has.
    :ivar taken: bytes that were read.
    """

    def __init__(self, connection: socket.socket, left: int) -> None:
        self.taken = 0
        self._left = left
        self._handle = connection.dup()
        self._handle.setblocking(False)
        self._lock = threading.Lock()

    def read_into(self, block: memoryview) -> int:
        """
        Read what is there.

        :return: the number of bytes; 0 for nothing, also when the loan is closed or the connection
            is broken: the reactor finds that out.
        """
        room = block[: self._left - self.taken]
        if not room:
            # For recv_into a size of 0 is no bound.
            return 0
        with self._lock:
            try:
                count = self._handle.recv_into(room)
            except OSError:
                return 0
            self.taken += count
        return count

    def close(self) -> None:
        """Have nothing more taken, whatever the thread is doing."""
        with self._lock:
            self._handle.close()


@implementer(IPushProducer)
class StreamingRequest(Request):
    """
    A request whose resource need not wait for the body.

    As a producer it is the body's source: the transport of the protocol that takes the body.

    :ivar body_length: bytes that the body will have, None when the client does not say.
    :ivar request_id: the client's ``X-Request-ID``, or a new one.
    :ivar route: what the router calls it, for the log.
    :ivar received: bytes of the body that have come.
    :ivar reactor: the site's.
    :ivar started: when it came, by the reactor's clock.
    """

    channel: Any
    transport: Any
    site: Any
    #: No guesses about the type of an answer.
    defaultContentType = None

    def __init__(self, channel: HTTPChannel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self.body_length: int | None = 0
        self.request_id = ""
        self.route = ""
        self.received = 0
        self.started = 0.0
        self.reactor = channel.factory.reactor
        self._receiver: Protocol | None = None
        self._arrived: list[bytes] = []
        self._complete = False
        self._answered = False
        self._aborted = False
        self._paused = False
        self._expects_continue = False
        self._lingered = 0
        self._linger_timer: IDelayedCall | None = None
        self._usual_read: int | None = None
        self._site: Any = None

    def __repr__(self) -> str:
        """Without the query, which may hold a token."""
        path = (self.path or b"").decode("latin-1")
        return f"<{type(self).__name__} {self.method.decode('latin-1')} {path}>"

    # ---- called by the channel

    def gotLength(self, length: int | None) -> None:
        """All headers are here; a request begins whose body is not."""
        self.started = self.reactor.seconds()
        self.body_length = length
        expect = self.requestHeaders.getRawHeaders(b"expect", [b""])[0]
        if expect.lower() == b"100-continue":
            # Sent when the body is wanted, and never to a request that is refused.
            self._expects_continue = self.channel._version == b"HTTP/1.1"
            self.requestHeaders.removeHeader(b"expect")
        channel = self.channel
        if length is not None and len(channel._buffer) >= length:
            # The channel calls requestReceived at once, when its own state allows an answer.
            return
        self._paused = True
        self._begin(channel._command, channel._path, channel._version)
        if self._paused:
            self.pauseProducing()

    def handleContentChunk(self, data: bytes) -> None:
        """A piece of the body."""
        self.received += len(data)
        if self._answered:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES and self._linger_timer is not None:
                # It has had its time to see the answer; over TLS an orderly end takes more.
                self._end_lingering()
                self.channel.transport.abortConnection()
        elif self._receiver is not None:
            self._receiver.dataReceived(data)
        elif not self.startedWriting:
            self._arrived.append(data)
        if self._paused:
            # The channel resumes reading when an earlier answer has left its buffer.
            self.transport.pauseProducing()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The end of the body, or a request whose body came with its headers."""
        self._complete = True
        if self._site is None:
            self._begin(command, path, version)
            if self._arrived:
                # It is taken later on, also when the client has left by then.
                self.transport.pauseProducing()
            return
        if self._paused:
            # The channel has noted an idle timeout of None, which was ours.
            self.channel._savedTimeOut = self.channel.site.timeOut
        self._restore_read_size()
        if self._answered:
            self._end_lingering()
            if not self._disconnected:
                super().finish()
        elif self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            receiver.connectionLost(Failure(BodyDone()))

    def connectionLost(self, reason: Failure) -> None:
        """The client is gone."""
        self._end_lingering()
        if not self._answered:
            self._ended(aborted=True)
        receiver, self._receiver = self._receiver, None
        super().connectionLost(reason)
        if receiver is not None:
            receiver.connectionLost(reason)

    def _begin(self, command: bytes, path: bytes, version: bytes) -> None:
        self.method, self.uri, self.clientproto = command, path, version
        # A proxy may name the origin too (RFC 9112 section 3.2.2).
        target = _ORIGIN.sub(b"", path)
        self.path, _, self.query = target.partition(b"?")
        self.args = {}
        given = self.getHeader(b"x-request-id")
        self.request_id = (
            given.decode("ascii")
            if given is not None and _REQUEST_ID.fullmatch(given)
            else token_hex(16)
        )
        self.setHeader(b"X-Request-ID", self.request_id.encode("ascii"))
        self._site = self.channel.site
        self._site.active.add(self)
        self.process()

    def render(self, resource: IResource) -> None:
        """Let a resource answer."""
        self.setHeader(b"Server", b"storage-proxy")
        super().render(resource)

    # ---- for resources

    def header(self, name: str) -> str | None:
        """A header of the request, None when it is not there."""
        value: bytes | None = self.getHeader(name.encode("ascii"))
        return None if value is None else value.decode("latin-1")

    def header_map(self) -> dict[str, str]:
        """
        The headers of the request, by their names in lower case. What is given more than once is
        one list (RFC 9110 section 5.3), and so never mistaken for a single value.
        """
        return {
            name.decode("latin-1").lower(): b", ".join(values).decode("latin-1")
            for name, values in self.requestHeaders.getAllRawHeaders()
        }

    def query_map(self) -> dict[str, str]:
        """
        The parameters in the URL.

        :raises MalformedRequest: when they are not UTF-8.
        """
        try:
            return dict(
                parse_qsl(self.query.decode("ascii"), keep_blank_values=True, errors="strict")
            )
        except (UnicodeDecodeError, ValueError):
            raise MalformedRequest("the query of the URL cannot be read") from None

    def deliver_body(self, receiver: Protocol) -> None:
        """
        Send the body to a protocol as it comes. The protocol's connection is lost with
        :exc:`BodyDone` when all of it has arrived, and with another reason when it never will.

        :param receiver: gets this request as its transport, to pause and resume it.
        """
        receiver.makeConnection(self)
        if self.channel is None:
            receiver.connectionLost(Failure(ConnectionError("the client is gone")))
            return
        # What is done with the first bytes may be reason enough to hold the others back.
        self._paused = False
        if arrived := self.take_arrived():
            receiver.dataReceived(arrived)
        if self._complete:
            receiver.connectionLost(Failure(BodyDone()))
            return
        self._receiver = receiver
        if self.body_length is not None and self.body_length > LARGE_READ:
            self._usual_read = getattr(self.transport, "bufferSize", None)
            if self._usual_read is not None:
                self.transport.bufferSize = LARGE_READ
        if self._expects_continue:
            self._expects_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._paused:
            self.resumeProducing()

    def take_arrived(self) -> bytes:
        """What has come of the body, which is not delivered to anybody yet."""
        arrived, self._arrived = b"".join(self._arrived), []
        return arrived

    def finish(self) -> None:
        """
        The answer is complete. When the body is not, what is left of it is read for a while and
        forgotten, so that the client gets to see the answer.
        """
        if self._answered or self._disconnected:
            return
        self._ended(self._aborted)
        if self._complete:
            super().finish()
            return
        if not self.startedWriting:
            self.write(b"")
        if self.chunked:
            self.channel.write(b"0\r\n\r\n")
            self.chunked = 0
        self._answered = True
        self._receiver = None
        self._arrived = []
        self._linger_timer = self.reactor.callLater(LINGER_SECONDS, self._close)
        self._release_transport()

    def write(self, data: bytes) -> None:
        """Write a part of the answer; before its first one the headers go out."""
        if not self.startedWriting and self.channel is not None and self._is_last():
            self.setHeader(b"Connection", b"close")
            self.channel.persistent = False
        if self._receiver is None:
            # Who answers without the body does not want it any more.
            self._arrived = []
        super().write(data)

    def abort(self) -> None:
        """Close the connection, without a proper end of the answer."""
        self._aborted = True
        if self.channel is not None:
            self.channel.transport.abortConnection()

    def _is_last(self) -> bool:
        """Whether the connection ends with this answer."""
        if self._complete:
            return bool(self._site.draining)
        # What is left of the body may be worth reading, to keep the connection.
        return (
            self._site.draining
            or self._expects_continue
            or self.body_length is None
            or self.body_length - self.received > SHORT_REST
        )

    @property
    def complete(self) -> bool:
        """Whether all of the body has come."""
        return self._complete

    def lend_socket(self) -> Loan | None:
        """
        The connection, for a thread that reads the body from it while the producer is paused.

        :return: to be given to :meth:`take_back`, whatever has become of the thread; None where
            what comes is not the body as it is: over TLS, or in chunks.
        """
        if (
            self.channel is None
            or self.body_length is None
            or self.body_length == self.received
            or not isinstance(self.transport, Connection)
            or self.transport.TLS
            # An earlier answer is on its way; the channel would read again after it.
            or self.channel._waitingForTransport
        ):
            return None
        return Loan(self.transport.getHandle(), self.body_length - self.received)

    def take_back(self, loan: Loan) -> None:
        """
        Go on behind the bytes that were read from the connection. A thread that is still at it gets
        no more of them.
        """
        loan.close()
        self.received += loan.taken
        if self.channel is not None and loan.taken:
            decoder = self.channel._transferDecoder
            decoder.contentLength -= loan.taken
            if not decoder.contentLength:
                self.channel.rawDataReceived(b"")

    # ---- the body's producer

    def pauseProducing(self) -> None:
        """Hold the client back."""
        if self.channel is not None and not self._complete:
            self._hold_transport()

    def resumeProducing(self) -> None:
        """Let it go on."""
        if self.channel is not None and not self._complete:
            self._release_transport()

    def stopProducing(self) -> None:
        """Want no more of the body."""
        self.pauseProducing()

    def loseConnection(self) -> None:
        """Close the connection when what was written has been sent."""
        if self.channel is not None:
            self.channel.loseConnection()

    def _hold_transport(self) -> None:
        # While it is us who wait, the client must not be found idle.
        self._paused = True
        self.channel.setTimeout(None)
        self.transport.pauseProducing()

    def _release_transport(self) -> None:
        self._paused = False
        # The site's: the channel forgets its own when it is set to None.
        self.channel.setTimeout(self.channel.site.timeOut)
        self.transport.resumeProducing()

    def _restore_read_size(self) -> None:
        if self._usual_read is not None:
            self.transport.bufferSize = self._usual_read
            self._usual_read = None

    def _close(self) -> None:
        self._end_lingering()
        if self.channel is not None:
            # With an end, where the other side does not close it: TLS waits for that.
            self.channel.timeoutConnection()

    def _end_lingering(self) -> None:
        timer, self._linger_timer = self._linger_timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _ended(self, aborted: bool) -> None:
        if self._site is None:
            return
        self._site.active.discard(self)
        log.info(
            "{method} {route} {status} {bytes_sent} B {duration:.3f} s",
            log_access=True,
            method=self.method.decode("latin-1"),
            route=self.route or self.path.decode("latin-1"),
            status=self.code,
            bytes_sent=self.sentLength,
            bytes_received=self.received,
            duration=self.reactor.seconds() - self.started,
            request_id=self.request_id,
            client=getattr(self.client, "host", None),
            aborted=aborted,
        )


class _Collector(Protocol):
    def __init__(self, limit: int) -> None:
        self.done: Deferred[bytes] = Deferred()
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._limit:
            self._parts.append(data)
        elif not self.done.called:
            self._parts = []
            self.done.errback(RequestTooLarge(f"a body of at most {self._limit} bytes is taken"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(BodyDone):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)


async def read_body(request: StreamingRequest, limit: int) -> bytes:
    """
    All of a small body.

    :param limit: bytes at most.
    :raises RequestTooLarge: when it is longer.
    """
    if request.body_length is not None and request.body_length > limit:
        raise RequestTooLarge(f"a body of at most {limit} bytes is taken")
    if request.complete and request.received <= limit:
        return request.take_arrived()
    collector = _Collector(limit)
    request.deliver_body(collector)
    return await collector.done
