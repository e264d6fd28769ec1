# -*- test-case-name: tests.test_listeners -*-
"""
Where the daemon listens: sockets that are opened once, and may be shared by several processes.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from OpenSSL import SSL, crypto
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    ILoggingContext,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from storageproxy.config import ConfigurationError, ListenerSettings

#: Connections that wait to be accepted, as in the original.
BACKLOG = 1024

#: Seconds for which a process that has taken a connection leaves the next one to the others. One
#: with nothing else to do sleeps for a millisecond, as epoll counts; one that is busy looks sooner.
TURN = 0.0002


@frozen
class Certificate:
    """
    The certificate of a port, as bytes: who runs the daemon later on may not read its files.

    :param chain: PEM, the port's own certificate first.
    :param key: PEM.
    """

    chain: bytes
    key: bytes = field(repr=False)

    @classmethod
    def load(cls, settings: ListenerSettings) -> Certificate | None:
        """
        Read the files of a port.

        :return: None when it speaks plain HTTP.
        :raises ConfigurationError: when the files hold no certificate and its key.
        """
        if not settings.ssl_enabled:
            return None
        try:
            certificate = cls(
                Path(settings.ssl_cert or "").read_bytes(),
                Path(settings.ssl_privkey or "").read_bytes(),
            )
            certificate.options().getContext().check_privatekey()
        except (OSError, IndexError, crypto.Error, SSL.Error, ValueError) as error:
            raise ConfigurationError(
                [
                    f"ssl-cert, ssl-privkey: a PEM certificate and the key that belongs to it,"
                    f" which {settings.ssl_cert} and {settings.ssl_privkey} are not: {error!r}"
                ]
            ) from None
        return certificate

    def options(self) -> CertificateOptions:
        """What Twisted makes a context of: the certificate, with the chain that stands below it."""
        chain = [
            crypto.load_certificate(crypto.FILETYPE_PEM, part) for part in _pem_parts(self.chain)
        ]
        return CertificateOptions(
            privateKey=crypto.load_privatekey(crypto.FILETYPE_PEM, self.key),
            certificate=chain[0],
            extraCertChain=chain[1:],
            acceptableProtocols=[b"http/1.1"],
        )


def _pem_parts(data: bytes) -> list[bytes]:
    end = b"-----END CERTIFICATE-----"
    return [part + end + b"\n" for part in data.split(end)[:-1]]


@frozen
class Listener:
    """
    A socket that listens.

    :param socket: not blocking.
    :param certificate: for TLS.
    :param shared: whether other processes listen on the same socket.
    """

    socket: socket.socket
    certificate: Certificate | None = None
    shared: bool = False

    def listen(self, reactor: Any, factory: IProtocolFactory) -> IListeningPort:
        """
        Begin to accept connections.

        :return: a port with a descriptor of its own; the socket is closed.
        """
        if self.certificate is not None:
            factory = TLSMemoryBIOFactory(self.certificate.options(), False, factory)
        turns = TakingTurns(factory, reactor) if self.shared else None
        port: IListeningPort = reactor.adoptStreamPort(
            self.socket.fileno(), self.socket.family, turns or factory
        )
        if turns is not None:
            turns.begin(port)
        self.socket.close()
        return port


def open_socket(host: str, port: int) -> socket.socket:
    """
    Listen on an address.

    :param host: a name, an address of IPv4 or IPv6, or "" for all of IPv4.
    :raises OSError: when that is not possible, as the address is taken for instance.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    *_, address = socket.getaddrinfo(
        host or None, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


@implementer(IProtocolFactory, ILoggingContext)
@define(eq=False)
class TakingTurns:
    """
    Spreads connections that come at once over the processes that share a socket: each takes one,
    and then lets the others have theirs. Twisted alone would take all that wait, and who wakes
    first would serve everybody while the others have nothing to do.

    :param factory: whose connections they are.
    :param reactor: for the turns.
    """

    factory: IProtocolFactory
    reactor: Any
    _port: Any = None
    _next: Any = None

    def begin(self, port: Any) -> None:
        """
        Take the first turn.

        :param port: a :class:`twisted.internet.tcp.Port` with this factory.
        """
        self._port = port
        port.numberAccepts = 1

    def doStart(self) -> None:
        """The port listens."""
        self.factory.doStart()

    def doStop(self) -> None:
        """The port does not listen any more."""
        if self._next is not None:
            self._next.cancel()
        self.factory.doStop()

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """Take a connection, and then none for a moment."""
        self._port.stopReading()
        self._next = self.reactor.callLater(TURN, self._take_turn)
        return self.factory.buildProtocol(addr)

    def logPrefix(self) -> str:
        """What the port is called in the log."""
        return type(self.factory).__name__

    def _take_turn(self) -> None:
        self._next = None
        # Twisted raises it each time that as many have come as it has asked for.
        self._port.numberAccepts = 1
        self._port.startReading()
