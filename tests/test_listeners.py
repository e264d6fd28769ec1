"""
Tests for :mod:`storageproxy.listeners`.
"""

from __future__ import annotations

import pickle
import socket
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import ILoggingContext, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from storageproxy.config import ConfigurationError, ListenerSettings
from storageproxy.listeners import (
    BACKLOG,
    TURN,
    Certificate,
    Listener,
    TakingTurns,
    open_socket,
)
from tests.harness import make_certificate


class CertificateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir(parents=True)
        self.certificate, self.key = make_certificate(self.root)

    def listener(self, certificate: Path | None, key: Path | None) -> ListenerSettings:
        return ListenerSettings(
            ("127.0.0.1", 0),
            True,
            None if certificate is None else str(certificate),
            None if key is None else str(key),
        )

    def options(self, chain: Path) -> CertificateOptions:
        certificate = Certificate.load(self.listener(chain, self.key))
        assert certificate is not None
        return certificate.options()

    def refused(self, certificate: Path, key: Path) -> None:
        error = self.assertRaises(
            ConfigurationError, Certificate.load, self.listener(certificate, key)
        )
        [problem] = error.problems
        self.assertIn("ssl-cert", problem)
        self.assertIn("ssl-privkey", problem)

    def test_good(self) -> None:
        """A certificate and its key make a port with TLS."""
        options = self.options(self.certificate)
        options.getContext().check_privatekey()

    def test_chain(self) -> None:
        """Certificates below the first one are sent with it."""
        other, _ = make_certificate(self.root, "other")
        chain = self.root / "chain"
        chain.write_bytes(self.certificate.read_bytes() + other.read_bytes())
        options = self.options(chain)
        self.assertEqual(len(options.extraCertChain), 1)

    def test_wrong_key(self) -> None:
        """A key of another certificate is refused before anything is started."""
        _, other = make_certificate(self.root, "other")
        self.refused(self.certificate, other)

    def test_wrong_files(self) -> None:
        """Files that hold something else are refused."""
        empty = self.root / "empty"
        empty.write_bytes(b"")
        noise = self.root / "noise"
        noise.write_bytes(b"-----BEGIN CERTIFICATE-----\nbm9pc2U=\n-----END CERTIFICATE-----\n")
        for wrong in (empty, noise, self.key, self.root / "missing", self.root):
            self.refused(wrong, self.key)
        for wrong in (empty, noise, self.certificate, self.root / "missing", self.root):
            self.refused(self.certificate, wrong)

    def test_plain(self) -> None:
        """A port without TLS has none, whatever files are named."""
        self.assertIsNone(Certificate.load(ListenerSettings(("", 0), False, "/missing", None)))

    def test_handed_over(self) -> None:
        """It can be handed to another process, and its key is in no message."""
        certificate = Certificate.load(self.listener(self.certificate, self.key))
        self.assertEqual(pickle.loads(pickle.dumps(certificate)), certificate)
        self.assertNotIn("PRIVATE KEY", repr(certificate))


class OpenTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        """Names and addresses of both kinds can be listened on, "" is all addresses of IPv4."""
        for host, wanted, to in (
            ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
            ("localhost", "127.0.0.1", "127.0.0.1"),
            ("", "0.0.0.0", "127.0.0.1"),
            ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
            ("::1", "::1", "::1"),
            ("::", "::", "127.0.0.1"),
        ):
            with open_socket(host, 0) as opened:
                self.assertEqual(opened.getsockname()[0], wanted)
                self.assertFalse(opened.getblocking())
                socket.create_connection((to, opened.getsockname()[1])).close()

    def test_taken(self) -> None:
        """A port that somebody listens on cannot be had, and nothing is left open."""
        with open_socket("127.0.0.1", 0) as first:
            error = self.assertRaises(OSError, open_socket, *first.getsockname())
        self.assertIn("in use", error.strerror)

    def test_again(self) -> None:
        """A daemon that is started again gets its port, though old connections linger."""
        with open_socket("127.0.0.1", 0) as first:
            address = first.getsockname()
            with socket.create_connection(address) as client:
                first.setblocking(True)
                accepted, _ = first.accept()
                accepted.close()
                self.assertEqual(client.recv(1), b"")
        open_socket(*address).close()

    def test_many_wait(self) -> None:
        """There is room for many that wait."""
        self.assertGreaterEqual(BACKLOG, 1024)


class Port:
    """A port of Twisted's, as far as turns need one."""

    numberAccepts = 100
    reading = True

    def stopReading(self) -> None:
        self.reading = False

    def startReading(self) -> None:
        self.reading = True


class ListenTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.factory = Factory.forProtocol(Protocol)
        self.socket = open_socket("127.0.0.1", 0)
        self.addCleanup(self.socket.close)

    def listen(self, **more: Any) -> Any:
        """The factory that a port gets."""
        descriptor = self.socket.fileno()
        Listener(self.socket, **more).listen(self.reactor, self.factory)
        [(adopted, family, factory)] = self.reactor.adoptedPorts
        self.assertEqual((adopted, family), (descriptor, socket.AF_INET))
        # Who closes the port must have closed the last descriptor.
        self.assertEqual(self.socket.fileno(), -1)
        return factory

    def test_plain(self) -> None:
        """Who listens alone takes all connections as they come."""
        self.assertIs(self.listen(), self.factory)

    def test_tls(self) -> None:
        """A certificate makes it TLS."""
        root = Path(self.mktemp())
        root.mkdir(parents=True)
        certificate, key = make_certificate(root)
        loaded = Certificate(certificate.read_bytes(), key.read_bytes())
        factory = self.listen(certificate=loaded)
        self.assertIsInstance(factory, TLSMemoryBIOFactory)
        self.assertIs(factory.wrappedFactory, self.factory)

    def test_shared(self) -> None:
        """Who shares the port takes turns."""
        factory = self.listen(shared=True)
        self.assertIsInstance(factory, TakingTurns)
        self.assertIs(factory.factory, self.factory)


class TakingTurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.inner = Factory.forProtocol(Protocol)
        self.inner.noisy = False
        self.factory = TakingTurns(self.inner, self.reactor)
        self.port = Port()
        self.factory.doStart()
        self.factory.begin(self.port)

    def test_interfaces(self) -> None:
        """It is a factory, and called in the log what the other one is."""
        verifyObject(IProtocolFactory, self.factory)
        verifyObject(ILoggingContext, self.factory)
        self.assertEqual(self.factory.logPrefix(), "Factory")

    def test_one(self) -> None:
        """One connection is asked for at a time."""
        self.assertEqual(self.port.numberAccepts, 1)
        self.assertTrue(self.port.reading)

    def test_turn(self) -> None:
        """After a connection the others have a moment, and then one is taken again."""
        protocol = self.factory.buildProtocol(None)  # type: ignore[arg-type]
        self.assertIsInstance(protocol, Protocol)
        self.assertFalse(self.port.reading)
        # As Twisted does when as many have come as it has asked for.
        self.port.numberAccepts += 20
        self.reactor.advance(TURN)
        self.assertTrue(self.port.reading)
        self.assertEqual(self.port.numberAccepts, 1)

    def test_stopped(self) -> None:
        """A port that is closed takes no further turn."""
        self.factory.buildProtocol(None)  # type: ignore[arg-type]
        self.factory.doStop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.inner.numPorts, 0)
