"""
Tests for :mod:`storageproxy.transfer.request`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from storageproxy.errors import RequestTooLarge
from storageproxy.transfer.request import (
    LARGE_READ,
    LINGER_BYTES,
    LINGER_SECONDS,
    SHORT_REST,
    BodyDone,
    Loan,
    StreamingRequest,
    read_body,
)
from storageproxy.transfer.site import IDLE, StreamingSite
from tests.harness import Events, MemoryCase, Wire


class Taker(Protocol):
    """Takes a body, and remembers what came."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.reason: Failure | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def complete(self) -> bool:
        return self.reason is not None and self.reason.check(BodyDone) is not None

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert self.reason is None, "the end is told once"
        self.reason = reason


class Route(Resource):
    """A resource that does what a test says."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[StreamingRequest] = []
        self.then: Callable[[StreamingRequest], None] = lambda request: None

    def render(self, request: Any) -> Any:
        self.requests.append(request)
        self.then(request)
        return NOT_DONE_YET


class RequestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.route = Route()
        self.site = StreamingSite(self.route, self.clock)
        self.wire = Wire(self.site, self.clock)
        self.takers: list[Taker] = []

    @property
    def taker(self) -> Taker:
        return self.takers[-1]

    def take(self, request: StreamingRequest) -> None:
        self.takers.append(Taker())
        request.deliver_body(self.takers[-1])

    def answer(self, request: StreamingRequest, status: int = 200, body: bytes = b"done") -> None:
        request.setResponseCode(status)
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        request.finish()

    def refuse(self, request: StreamingRequest) -> None:
        self.answer(request, 409, b"no")


#: A request whose end is seen only when it is read.
CHUNKED = b"PATCH / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


class BodyTests(RequestCase):
    def test_body_that_nobody_takes(self) -> None:
        """Once an answer has begun, a body that nobody has asked for is not kept."""
        self.wire.request("PATCH", "/", length=1000)
        request = self.route.requests[0]
        self.wire.send(b"kept until then")
        request.write(b"an answer")
        request.resumeProducing()
        self.wire.send(b"x" * 100)
        self.assertEqual(request._arrived, [])

    def test_runs_when_the_headers_are_complete(self) -> None:
        """A route is called before the first byte of the body has come."""
        self.wire.request("PATCH", "/upload?token=x&y=%20", length=10)
        [request] = self.route.requests
        self.assertEqual(request.method, b"PATCH")
        self.assertEqual(request.path, b"/upload")
        self.assertEqual(request.query_map(), {"token": "x", "y": " "})
        self.assertEqual(request.body_length, 10)
        self.assertEqual(request.received, 0)

    def test_does_not_run_before(self) -> None:
        """A route is not called while headers are missing."""
        self.wire.send(b"PATCH /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n")
        self.assertEqual(self.route.requests, [])
        self.wire.send(b"\r\n")
        self.assertEqual(len(self.route.requests), 1)

    def test_body_comes_in_pieces(self) -> None:
        """The bytes of a body reach the route as they come, and its end is told once."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", length=6)
        self.assertEqual(self.taker.pieces, [])
        self.wire.send(b"ab", b"cd")
        self.assertEqual(self.taker.pieces, [b"ab", b"cd"])
        self.assertIsNone(self.taker.reason)
        self.wire.send(b"ef")
        self.assertEqual(self.taker.body, b"abcdef")
        self.assertTrue(self.taker.complete)
        self.assertEqual(self.route.requests[0].received, 6)

    def test_body_with_the_headers(self) -> None:
        """A body that arrives in one piece with its headers is complete when it is asked for."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", body=b"abcdef")
        self.assertEqual(self.taker.body, b"abcdef")
        self.assertTrue(self.taker.complete)

    def test_nothing_to_wait_for(self) -> None:
        """A body that came with its headers pauses nothing, and keeps its refused client."""
        self.route.then = self.refuse
        for _ in range(2):
            self.wire.request("PATCH", "/", {"Expect": "100-continue"}, body=b"abcdef")
        self.assertEqual([answer.status for answer in self.wire.answers()], [409, 409])
        self.assertEqual(self.wire.pauses, 0)
        self.assertFalse(self.wire.disconnecting)

    def test_body_with_the_headers_is_taken_later(self) -> None:
        """A client that leaves when it has sent all of a body is not noticed before the answer."""
        self.wire.request("PATCH", "/", body=b"abcdef")
        self.assertTrue(self.wire.paused)
        self.take(self.route.requests[0])
        self.assertEqual((self.taker.body, self.taker.complete), (b"abcdef", True))
        self.assertTrue(self.wire.paused)
        self.answer(self.route.requests[0])
        self.assertFalse(self.wire.paused)
        self.wire.request("GET", "/next")
        self.assertEqual(self.route.requests[-1].path, b"/next")

    def test_body_is_taken_later(self) -> None:
        """A route that looks something up first holds the client back, and misses no byte."""
        self.wire.send(b"PATCH / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nab", b"cd")
        self.assertTrue(self.wire.paused)
        self.assertEqual(self.wire.waiting, 2)
        self.take(self.route.requests[0])
        self.clock.advance(0)
        self.assertFalse(self.wire.paused)
        self.assertEqual(self.taker.body, b"abcd")
        self.wire.send(b"ef")
        self.assertTrue(self.taker.complete)

    def test_chunked_body(self) -> None:
        """A body whose length the client does not say comes without its chunks' framing."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", {"Transfer-Encoding": "chunked"})
        self.assertIsNone(self.route.requests[0].body_length)
        self.wire.send(b"3\r\nabc\r\n", b"3\r\nde", b"f\r\n0\r\n\r\n")
        self.assertEqual(self.taker.body, b"abcdef")
        self.assertTrue(self.taker.complete)

    def test_no_body(self) -> None:
        """A request without a body ends at once when its body is asked for."""
        self.route.then = self.take
        self.wire.request("GET", "/")
        self.assertEqual(self.taker.body, b"")
        self.assertTrue(self.taker.complete)

    def test_cut_body(self) -> None:
        """When the client goes in mid-body, the route has the bytes, and knows of the cut."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", length=6)
        self.wire.send(b"abc")
        self.wire.disconnect()
        self.assertEqual(self.taker.body, b"abc")
        self.assertIsNotNone(self.taker.reason)
        self.assertFalse(self.taker.complete)

    def test_cut_before_the_body_is_taken(self) -> None:
        """A route that asks for the body of a client that has gone is told so."""
        self.wire.request("PATCH", "/", length=6)
        self.wire.disconnect()
        self.take(self.route.requests[0])
        self.assertIsNotNone(self.taker.reason)
        self.assertFalse(self.taker.complete)

    def test_answer_after_the_body(self) -> None:
        """An answer given after the body keeps the connection, for the next request."""

        def echo(request: StreamingRequest) -> None:
            read: Deferred[bytes] = Deferred.fromCoroutine(read_body(request, 100))
            read.addCallback(lambda body: self.answer(request, body=body))

        self.route.then = echo
        self.wire.request("PATCH", "/", length=3)
        self.wire.send(b"abc")
        self.wire.request("PATCH", "/", body=b"de")
        self.assertEqual([answer.body for answer in self.wire.answers()], [b"abc", b"de"])
        self.assertFalse(self.wire.disconnecting)

    def test_pipelined_requests(self) -> None:
        """Requests that follow a body in the same packet are answered in order."""

        def echo(request: StreamingRequest) -> None:
            read: Deferred[bytes] = Deferred.fromCoroutine(read_body(request, 100))
            read.addCallback(lambda body: self.answer(request, body=request.path + body))

        self.route.then = echo
        first = b"PATCH /one HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        second = b"GET /two HTTP/1.1\r\nHost: x\r\n\r\n"
        third = b"PATCH /three HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nde"
        self.wire.send(first + second + third)
        bodies = [answer.body for answer in self.wire.answers()]
        self.assertEqual(bodies, [b"/oneabc", b"/two", b"/threede"])

    def test_pipelined_request_waits(self) -> None:
        """A request that comes before the answer to the one before it begins after that."""
        self.route.then = self.take
        self.wire.send(
            b"PATCH /one HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
            b"GET /two HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        self.assertEqual([request.path for request in self.route.requests], [b"/one"])
        self.answer(self.route.requests[0])
        self.assertEqual([request.path for request in self.route.requests], [b"/one", b"/two"])

    def test_pause_and_resume(self) -> None:
        """Who takes the body can hold the client back, and let it go on."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", length=6)
        self.taker.transport.pauseProducing()
        self.wire.send(b"abc")
        self.assertEqual(self.taker.body, b"")
        self.taker.transport.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(self.taker.body, b"abc")

    def test_large_reads(self) -> None:
        """While a large body comes it is read in large pieces, and small ones after it."""
        self.wire.bufferSize = 65536  # type: ignore[attr-defined]
        self.route.then = self.take
        self.wire.request("PATCH", "/", length=LARGE_READ + 1)
        self.assertEqual(self.wire.bufferSize, LARGE_READ)  # type: ignore[attr-defined]
        self.wire.send(bytes(LARGE_READ + 1))
        self.assertEqual(self.wire.bufferSize, 65536)  # type: ignore[attr-defined]

    def test_read_body_limit(self) -> None:
        """A body that is announced as too large is refused before it is read."""
        self.wire.request("POST", "/", length=101)
        reading = Deferred.fromCoroutine(read_body(self.route.requests[0], 100))
        self.failureResultOf(reading, RequestTooLarge)

    def test_read_body_limit_of_chunks(self) -> None:
        """A body of unknown length is refused when it has become too large."""
        self.wire.request("POST", "/", {"Transfer-Encoding": "chunked"})
        reading = Deferred.fromCoroutine(read_body(self.route.requests[0], 4))
        self.wire.send(b"4\r\nabcd\r\n")
        self.assertNoResult(reading)
        self.wire.send(b"1\r\ne\r\n0\r\n\r\n")
        self.failureResultOf(reading, RequestTooLarge)

    def test_query_that_is_not_utf8(self) -> None:
        """A query that cannot be read is the client's mistake."""
        from storageproxy.errors import MalformedRequest

        self.wire.request("GET", "/?token=%ff")
        self.assertRaises(MalformedRequest, self.route.requests[0].query_map)

    def test_head_has_no_body(self) -> None:
        """The answer to a HEAD has the headers of a GET, and nothing behind them."""
        self.route.then = self.answer
        self.wire.request("HEAD", "/")
        self.wire.request("GET", "/")
        for_head, for_get = self.wire.answers("HEAD", "GET")
        self.assertEqual(for_head.headers["content-length"], "4")
        self.assertEqual((for_head.body, for_get.body), (b"", b"done"))


class EarlyAnswerTests(RequestCase):
    def setUp(self) -> None:
        super().setUp()
        self.route.then = self.refuse

    def test_short_rest_keeps_the_connection(self) -> None:
        """When little of a refused body is left it is read, and the connection goes on."""
        self.wire.request("PATCH", "/", length=SHORT_REST)
        [answer] = self.wire.answers()
        self.assertEqual(answer.status, 409)
        self.assertNotIn("connection", answer.headers)
        self.assertFalse(self.wire.paused)
        self.wire.send(bytes(SHORT_REST))
        self.wire.request("GET", "/next")
        self.assertEqual(len(self.wire.answers()), 2)
        self.assertEqual(self.route.requests[-1].path, b"/next")
        self.assertFalse(self.wire.disconnecting)

    def test_long_rest_closes(self) -> None:
        """A client that still has much to send is told at once that the connection closes."""
        self.wire.request("PATCH", "/", length=SHORT_REST + 1)
        [answer] = self.wire.answers()
        self.assertEqual(answer.status, 409)
        self.assertEqual(answer.headers["connection"].lower(), "close")
        self.assertFalse(self.wire.disconnecting)

    def test_chunked_rest_closes(self) -> None:
        """Nobody knows how much is left of a chunked body, so the connection closes."""
        self.wire.request("PATCH", "/", {"Transfer-Encoding": "chunked"})
        [answer] = self.wire.answers()
        self.assertEqual(answer.headers["connection"].lower(), "close")

    def test_rest_is_drained(self) -> None:
        """The rest of a refused body is read, so that the client can read its answer."""
        self.wire.request("PATCH", "/", length=SHORT_REST * 4)
        self.wire.send(bytes(SHORT_REST * 2))
        self.assertEqual(self.wire.waiting, 0)
        self.assertFalse(self.wire.disconnecting)
        self.wire.send(bytes(SHORT_REST * 2))
        self.assertTrue(self.wire.closed)
        self.assertEqual(len(self.wire.answers()), 1)

    def test_drain_is_bounded_in_bytes(self) -> None:
        """A client that will not stop is cut off after LINGER_BYTES."""
        self.wire.request("PATCH", "/", length=LINGER_BYTES * 2)
        piece = bytes(LINGER_BYTES // 16)
        self.wire.send(*[piece] * 16)
        self.assertFalse(self.wire.disconnecting)
        self.wire.send(b"x")
        self.assertTrue(self.wire.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_drain_is_bounded_in_time(self) -> None:
        """A client that does not go on is cut off after LINGER_SECONDS."""
        self.wire.request("PATCH", "/", length=SHORT_REST * 4)
        self.clock.advance(LINGER_SECONDS - 1)
        self.wire.send(b"x")
        self.assertFalse(self.wire.disconnecting)
        self.clock.advance(1)
        self.clock.advance(0)
        self.assertTrue(self.wire.closed)

    def test_short_rest_is_bounded_in_time(self) -> None:
        """The short rest of a refused body is not waited for longer than a long one."""
        self.wire.request("PATCH", "/", length=10)
        self.clock.advance(LINGER_SECONDS)
        self.clock.advance(0)
        self.assertTrue(self.wire.closed)

    def test_timer_ends_with_the_body(self) -> None:
        """The bound in time is for one body, not for the requests that follow it."""
        self.wire.request("PATCH", "/", length=10)
        self.wire.send(bytes(10))
        self.clock.advance(LINGER_SECONDS + 1)
        self.clock.advance(0)
        self.assertFalse(self.wire.disconnecting)

    def test_rest_is_no_request(self) -> None:
        """What is left of a refused body is never taken for a request, whatever it looks like."""
        trap = b"GET /trap HTTP/1.1\r\nHost: x\r\n\r\n"
        for length in (len(trap), SHORT_REST * 2):
            wire = Wire(self.site, self.clock)
            wire.request("PATCH", "/", length=length)
            wire.send(trap * (length // len(trap)))
            wire.send(trap)
            wire.send(trap)
            self.assertNotIn(b" 400 ", wire.value())
        paths = [request.path for request in self.route.requests]
        # After the short body a new request may begin; in the long one none ever does.
        self.assertEqual(paths, [b"/", b"/trap", b"/trap", b"/"])

    def test_requests_behind_a_long_rest_are_dropped(self) -> None:
        """After "Connection: close" nothing of what follows the body is a request."""
        self.wire.request("PATCH", "/", length=SHORT_REST * 2)
        self.wire.send(bytes(SHORT_REST * 2) + b"GET /trap HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertEqual(len(self.route.requests), 1)
        self.assertTrue(self.wire.closed)

    def test_refused_in_mid_body(self) -> None:
        """A route that has taken a part of the body can refuse the rest."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", length=SHORT_REST * 4)
        self.wire.send(b"abc")
        self.refuse(self.route.requests[0])
        self.wire.send(b"def")
        self.assertEqual(self.taker.body, b"abc")
        self.assertEqual(self.wire.answers()[0].headers["connection"].lower(), "close")

    def test_chunked_answer_ends(self) -> None:
        """An early answer without a length is complete for the client."""

        def stream(request: StreamingRequest) -> None:
            request.write(b"abc")
            request.finish()

        self.route.then = stream
        self.wire.request("PATCH", "/", length=SHORT_REST * 4)
        [answer] = self.wire.answers()
        self.assertEqual(answer.body, b"abc")

    def test_client_goes_while_lingering(self) -> None:
        """A client that goes when it has its answer leaves nothing behind."""
        self.wire.request("PATCH", "/", length=SHORT_REST * 4)
        self.wire.disconnect()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.site.active, set())


class ExpectTests(RequestCase):
    headers = {"Expect": "100-continue"}

    def test_continue_when_wanted(self) -> None:
        """A client that waits for it is told to go on when the route wants the body."""
        self.wire.request("PATCH", "/", self.headers, length=3)
        self.assertEqual(self.wire.value(), b"")
        self.take(self.route.requests[0])
        self.assertEqual(self.wire.value(), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.wire.send(b"abc")
        self.answer(self.route.requests[0])
        self.assertEqual([answer.status for answer in self.wire.answers()], [100, 200])

    def test_no_continue_when_refused(self) -> None:
        """A client that is refused is not told to go on, and its connection is closed."""
        self.route.then = self.refuse
        self.wire.request("PATCH", "/", self.headers, length=3)
        [answer] = self.wire.answers()
        self.assertEqual(answer.status, 409)
        self.assertEqual(answer.headers["connection"].lower(), "close")

    def test_no_continue_unasked(self) -> None:
        """A client that did not ask gets none."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", length=3)
        self.assertEqual(self.wire.value(), b"")


class IdleTests(RequestCase):
    def test_silent_connection(self) -> None:
        """A connection on which nothing is asked is closed after a while."""
        self.clock.advance(IDLE - 1)
        self.assertFalse(self.wire.disconnecting)
        self.clock.advance(1)
        self.clock.advance(0)
        self.assertTrue(self.wire.closed)

    def test_request_line_byte_by_byte(self) -> None:
        """A request that comes byte by byte is not waited for longer than a silent one."""
        for _ in range(IDLE):
            self.wire.send(b"G")
            self.clock.advance(1)
        self.clock.advance(0)
        self.assertTrue(self.wire.closed)

    def test_headers_byte_by_byte(self) -> None:
        """Nor are its headers."""
        self.wire.send(b"GET / HTTP/1.1\r\n")
        for _ in range(IDLE + 1):
            self.wire.send(b"X")
            self.clock.advance(1)
        self.clock.advance(0)
        self.assertTrue(self.wire.closed)

    def test_silent_body(self) -> None:
        """A client that stops in mid-body, while we would read, is closed."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", length=6)
        self.clock.advance(IDLE - 1)
        self.wire.send(b"abc")
        self.clock.advance(IDLE - 1)
        self.assertFalse(self.wire.disconnecting)
        self.clock.advance(1)
        self.clock.advance(0)
        self.assertTrue(self.wire.closed)
        self.assertFalse(self.taker.complete)

    def test_not_before_the_body_is_wanted(self) -> None:
        """A client is not found idle while its route has not asked for the body."""
        self.wire.request("PATCH", "/", length=6)
        self.clock.advance(IDLE * 10)
        self.assertFalse(self.wire.disconnecting)

    def test_not_while_paused(self) -> None:
        """A client is not found idle while the disk holds it back, and is when it may go on."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", length=6)
        self.wire.send(b"abc")
        self.taker.transport.pauseProducing()
        self.clock.advance(IDLE * 10)
        self.assertFalse(self.wire.disconnecting)
        self.taker.transport.resumeProducing()
        self.clock.advance(IDLE)
        self.clock.advance(0)
        self.assertTrue(self.wire.closed)

    def test_after_a_body_that_ended_while_paused(self) -> None:
        """When a body ends while it is held back, the connection is watched again later on."""
        self.wire.send(CHUNKED)
        self.take(self.route.requests[0])
        self.clock.advance(IDLE * 10)
        self.assertFalse(self.wire.disconnecting)
        self.answer(self.route.requests[0])
        self.clock.advance(IDLE - 1)
        self.assertFalse(self.wire.disconnecting)
        self.clock.advance(1)
        self.clock.advance(0)
        self.assertTrue(self.wire.closed)

    def test_reading_goes_on_after_a_body_that_ended_while_paused(self) -> None:
        """When a body ends while it is held back, the next request is read all the same."""
        self.wire.send(CHUNKED)
        self.assertTrue(self.wire.paused)
        self.take(self.route.requests[0])
        self.answer(self.route.requests[0])
        self.wire.request("GET", "/next")
        self.assertEqual(self.route.requests[-1].path, b"/next")

    def test_not_while_answering(self) -> None:
        """A client that waits for a slow answer is not idle."""
        self.wire.request("GET", "/")
        self.clock.advance(IDLE * 10)
        self.assertFalse(self.wire.disconnecting)


class RequestIDTests(RequestCase):
    def setUp(self) -> None:
        super().setUp()
        self.route.then = self.answer

    def test_taken(self) -> None:
        """The id that a client gives is echoed, so that both logs can be laid side by side."""
        self.wire.request("GET", "/", {"X-Request-ID": "a.b-c:1"})
        self.assertEqual(self.wire.answers()[0].headers["x-request-id"], "a.b-c:1")
        self.assertEqual(self.route.requests[0].request_id, "a.b-c:1")

    def test_made(self) -> None:
        """A request without an id gets one of its own."""
        self.wire.request("GET", "/")
        self.wire.request("GET", "/")
        first, second = (answer.headers["x-request-id"] for answer in self.wire.answers())
        self.assertTrue(first)
        self.assertNotEqual(first, second)

    def test_odd_ids_are_not_taken(self) -> None:
        """What could spoil a log is not echoed."""
        for odd in ("a b", "é", "x" * 129, '"', "{}"):
            wire = Wire(self.site, self.clock)
            wire.request("GET", "/", {"X-Request-ID": odd})
            self.assertNotEqual(wire.answers()[0].headers["x-request-id"], odd)

    def test_on_refusals(self) -> None:
        """An answer that comes before the body has the id too."""
        self.wire.request("PATCH", "/", {"X-Request-ID": "abc"}, length=10)
        self.assertEqual(self.wire.answers()[0].headers["x-request-id"], "abc")


class AccessLogTests(RequestCase):
    def setUp(self) -> None:
        super().setUp()
        self.events = Events(self)

    def test_finished(self) -> None:
        """A request is one line, with what an operator asks for."""
        self.route.then = self.take
        self.wire.request("PATCH", "/path?token=hidden", {"X-Request-ID": "abc"}, length=3)
        self.clock.advance(2)
        self.wire.send(b"xyz")
        self.assertEqual(self.events.requests(), [])
        self.route.requests[0].route = "/route"
        self.answer(self.route.requests[0], 201)
        [event] = self.events.requests()
        self.assertEqual(event["method"], "PATCH")
        self.assertEqual(event["route"], "/route")
        self.assertEqual(event["status"], 201)
        self.assertEqual(event["bytes_sent"], 4)
        self.assertEqual(event["bytes_received"], 3)
        self.assertEqual(event["duration"], 2)
        self.assertEqual(event["request_id"], "abc")
        self.assertFalse(event["aborted"])

    def test_path_without_a_route(self) -> None:
        """A request that no route knows is logged by its path, without the query."""
        self.route.then = self.answer
        self.wire.request("GET", "/path?token=hidden")
        [event] = self.events.requests()
        self.assertEqual(event["route"], "/path")

    def test_client_gone(self) -> None:
        """A request whose client went away is logged once, as aborted."""
        self.route.then = self.take
        self.wire.request("PATCH", "/", length=6)
        self.wire.send(b"abc")
        self.wire.disconnect()
        [event] = self.events.requests()
        self.assertTrue(event["aborted"])
        self.assertEqual(event["bytes_received"], 3)

    def test_aborted_by_the_daemon(self) -> None:
        """An answer that was broken off is logged once, as aborted."""
        self.wire.request("GET", "/")
        self.route.requests[0].write(b"abc")
        self.route.requests[0].abort()
        self.clock.advance(0)
        [event] = self.events.requests()
        self.assertTrue(event["aborted"])

    def test_lingering(self) -> None:
        """A refused request is logged when it is answered, and not again when its body ends."""
        self.route.then = self.refuse
        self.wire.request("PATCH", "/", length=6)
        [event] = self.events.requests()
        self.assertEqual(event["status"], 409)
        self.assertFalse(event["aborted"])
        self.wire.send(b"abcdef")
        self.wire.disconnect()
        self.assertEqual(len(self.events.requests()), 1)

    def test_cut_while_lingering(self) -> None:
        """A client that hangs up on its refusal has had its answer."""
        self.route.then = self.refuse
        self.wire.request("PATCH", "/", length=SHORT_REST * 4)
        self.wire.disconnect()
        [event] = self.events.requests()
        self.assertFalse(event["aborted"])

    def test_nothing_for_a_connection_without_a_request(self) -> None:
        """A connection on which no request was complete is not logged as one."""
        self.wire.send(b"GET / HT")
        self.wire.disconnect()
        self.assertEqual(self.events.requests(), [])


class SecretsInLogTests(MemoryCase):
    def test_no_token_in_the_log(self) -> None:
        """FIX 26: neither a token nor the manager's secret is in any event, whatever happens."""
        from tests.harness import AUTH, MANAGER_SECRET, head

        events = Events(self)
        self.put("file", b"content")
        session = self.successResultOf(
            Deferred.fromCoroutine(
                self.proxy.uploads.create(self.proxy.volumes.get("local"), self._vfid(), "new", 6)
            )
        )
        upload = self.proxy.sign(
            op="upload",
            volume="local",
            vfid=self.vfid,
            relpath="new",
            size=6,
            session=session,
        )
        download = self.proxy.download_path(self.vfid, "file")
        missing = self.proxy.download_path(self.vfid, "missing")
        for path in (download, missing, f"/nowhere?token={upload}"):
            wire = self.proxy.connect()
            wire.request("GET", path)
            wire.disconnect()
        for offset, body, length in ((0, b"abc", 6), (1, b"x", 1), (3, b"def", 3)):
            wire = self.proxy.connect()
            headers = {"Upload-Offset": str(offset)}
            wire.send(head("PATCH", f"/upload?token={upload}", headers, None, length) + body)
            wire.disconnect()
        wire = self.proxy.connect(self.proxy.manager_site)
        wire.request("GET", "/volumes", {AUTH: MANAGER_SECRET})
        self.threads.held = True
        wire = self.proxy.connect()
        wire.request("GET", download)
        self.clock.advance(self.threads.deadline)
        self.assertEqual((self.folder / "new").read_bytes(), b"abcdef")
        self.assertGreater(len(events.requests()), 7)
        secrets = [upload, download.partition("=")[2], missing.partition("=")[2], MANAGER_SECRET]
        for event in events:
            text = repr({key: _shown(value) for key, value in event.items()})
            for secret in secrets:
                self.assertNotIn(secret, text)

    def _vfid(self) -> Any:
        from storageproxy.vfolder import VFolderID

        return VFolderID.parse(self.vfid)


def _shown(value: Any) -> str:
    return value.getTraceback() if isinstance(value, Failure) else str(value)


class LoanTests(SynchronousTestCase):
    """A connection that a thread reads."""

    def setUp(self) -> None:
        self.connection, self.client = socket.socketpair()
        self.addCleanup(self.connection.close)
        self.addCleanup(self.client.close)
        self.block = memoryview(bytearray(8))

    def loan(self, left: int) -> Loan:
        loan = Loan(self.connection, left)
        self.addCleanup(loan.close)
        return loan

    def test_no_more_than_the_body(self) -> None:
        """What follows the body stays on the connection."""
        self.client.send(b"0123456789next")
        loan = self.loan(10)
        self.assertEqual(loan.read_into(self.block), 8)
        self.assertEqual(bytes(self.block), b"01234567")
        self.assertEqual(loan.read_into(self.block), 2)
        self.assertEqual(bytes(self.block[:2]), b"89")
        self.assertEqual(loan.read_into(self.block), 0)
        self.assertEqual(loan.taken, 10)
        loan.close()
        self.assertEqual(self.connection.recv(10), b"next")

    def test_nothing_there(self) -> None:
        """Nobody waits for bytes that have not come."""
        self.assertEqual(self.loan(10).read_into(self.block), 0)

    def test_broken(self) -> None:
        """A connection that is broken has no more bytes; it is for the reactor to find that out."""
        loan = self.loan(10)
        self.client.close()
        self.assertEqual(loan.read_into(self.block), 0)
        loan.close()
        self.assertEqual(loan.read_into(self.block), 0)
        self.assertEqual(loan.taken, 0)

    def test_closed(self) -> None:
        """Nothing is taken from a loan that is over, and its connection can end."""
        self.client.send(b"0123")
        loan = self.loan(10)
        loan.close()
        self.assertEqual(loan.read_into(self.block), 0)
        self.assertEqual(loan.taken, 0)
        self.assertEqual(self.connection.recv(10), b"0123")
        self.connection.close()
        self.assertEqual(self.client.recv(1), b"")
