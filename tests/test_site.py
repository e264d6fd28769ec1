"""
Tests for :mod:`storageproxy.transfer.site`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from storageproxy.config import ListenerSettings
from storageproxy.listeners import Certificate, Listener, open_socket
from storageproxy.transfer.request import StreamingRequest
from storageproxy.transfer.site import IDLE, StreamingSite
from tests.harness import Wire, make_certificate


class Slow(Resource):
    """Answers when it is told to."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[StreamingRequest] = []

    def render(self, request: Any) -> Any:
        self.requests.append(request)
        return NOT_DONE_YET


class StreamingSiteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.resource = Slow()
        self.site = StreamingSite(self.resource, self.clock)

    def ask(self, length: int | None = None) -> Wire:
        wire = Wire(self.site, self.clock)
        wire.request("PATCH" if length else "GET", "/", length=length)
        return wire

    def test_serves_streaming_requests(self) -> None:
        """It is a site of Twisted's whose requests need not wait for their bodies."""
        self.assertIsInstance(self.site, Site)
        self.ask()
        self.assertIsInstance(self.resource.requests[0], StreamingRequest)

    def test_drained_at_first(self) -> None:
        """A site without connections can end at once."""
        self.successResultOf(self.site.drain())

    def test_idle_connections_are_closed(self) -> None:
        """Connections without a request are closed, which does not take long."""
        wire = Wire(self.site, self.clock)
        drained = self.site.drain()
        self.assertTrue(wire.disconnecting)
        wire.disconnect()
        self.successResultOf(drained)

    def test_knows_what_is_under_way(self) -> None:
        """A request is known from its headers to its answer."""
        self.ask()
        self.assertEqual(self.site.active, set(self.resource.requests))
        self.resource.requests[0].finish()
        self.assertEqual(self.site.active, set())

    def test_body_on_its_way(self) -> None:
        """A request whose body still comes is under way as well."""
        self.ask(10)
        self.assertEqual(self.site.active, set(self.resource.requests))

    def test_client_gone(self) -> None:
        """A request whose client is gone is not waited for."""
        wire = self.ask()
        drained = self.site.drain()
        wire.disconnect()
        self.successResultOf(drained)

    def test_waits_for_all(self) -> None:
        """It is drained when the last of several answers has left."""
        wires = [self.ask(), self.ask()]
        first, second = self.site.drain(), self.site.drain()
        for wire, request in zip(wires, self.resource.requests, strict=True):
            self.assertFalse(wire.disconnecting)
            self.assertNoResult(first)
            request.finish()
            # What was written is still on its way to the client.
            self.assertTrue(wire.disconnecting)
            self.assertFalse(wire.aborted)
            self.assertNoResult(first)
            wire.disconnect()
        self.successResultOf(first)
        self.successResultOf(second)

    def test_answer_that_had_begun(self) -> None:
        """A connection that was to be kept is closed behind its answer all the same."""
        wire = self.ask()
        self.resource.requests[0].write(b"begun")
        self.site.drain()
        self.assertFalse(wire.disconnecting)
        self.resource.requests[0].finish()
        self.assertTrue(wire.disconnecting)

    def test_waiting_can_be_given_up(self) -> None:
        """Who waits no more is not called later on."""
        wire = self.ask()
        drained = self.site.drain()
        drained.addErrback(lambda failure: None)
        drained.cancel()
        wire.disconnect()
        self.assertIsNone(self.successResultOf(drained))

    def test_no_http_2(self) -> None:
        """HTTP/2 is left to the web server in front."""
        self.assertEqual(self.site.acceptableProtocols(), [b"http/1.1"])

    def test_idle_timeout(self) -> None:
        """Connections are kept as long as the original keeps them."""
        self.assertEqual(self.site.timeOut, IDLE)
        self.assertEqual(IDLE, 75)

    def test_says_who_serves(self) -> None:
        """Every answer names the daemon, and not what it is made of."""
        wire = self.ask()
        self.resource.requests[0].finish()
        self.assertEqual(wire.answers()[0].headers["server"], "storage-proxy")

    def test_no_access_log_of_twisted(self) -> None:
        """Twisted's own access log, which has the tokens, is not written."""
        events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.site.startFactory()
        self.addCleanup(self.site.stopFactory)
        wire = Wire(self.site, self.clock)
        wire.request("GET", "/download?token=hidden")
        self.resource.requests[0].finish()
        for event in events:
            self.assertNotIn(
                "hidden", str(event.get("log_text", "")) + str(event.get("log_legacy"))
            )


class Greeter(Protocol):
    """Notes what TLS has agreed upon, and goes."""

    def __init__(self) -> None:
        self.agreed: Deferred[bytes | None] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    def dataReceived(self, data: bytes) -> None:
        if not self.agreed.called:
            transport: Any = self.transport
            self.agreed.callback(transport.negotiatedProtocol)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)


class _OffersHTTP2:
    def getContext(self) -> Any:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_alpn_protos([b"h2", b"http/1.1"])
        return context


class TLSTests(TestCase):
    async def test_client_that_offers_http_2(self) -> None:
        """A client that would like HTTP/2 on TLS gets HTTP/1.1."""
        from twisted.internet.interfaces import IOpenSSLContextFactory
        from zope.interface import directlyProvides

        root = Path(self.mktemp())
        root.mkdir(parents=True)
        certificate, key = make_certificate(root)
        listener = ListenerSettings(("127.0.0.1", 0), True, str(certificate), str(key))
        resource = Resource()
        site = StreamingSite(resource, reactor)
        opened = open_socket(*listener.service_addr)
        port = Listener(opened, Certificate.load(listener)).listen(reactor, site)
        greeter = Greeter()
        context = _OffersHTTP2()
        directlyProvides(context, IOpenSSLContextFactory)
        factory = TLSMemoryBIOFactory(context, True, Factory.forProtocol(lambda: greeter))
        factory.noisy = False
        from twisted.internet.endpoints import TCP4ClientEndpoint

        client = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        protocol = await client.connect(factory)
        self.assertIsInstance(protocol, TLSMemoryBIOProtocol)
        self.assertEqual(await greeter.agreed, b"http/1.1")
        await greeter.ended
        await port.stopListening()
