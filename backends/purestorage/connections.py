# -*- test-case-name: tests.test_purestorage_tls -*-
"""
Connections to an array: TLS, its authority, and a pool.
"""

from __future__ import annotations

import re
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

from attrs import frozen
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

#: Requests at most that one volume makes at one time, and so its connections.
CONNECTIONS = 4

#: Seconds that a connection stays open for the next request.
IDLE = 60

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@implementer(IPolicyForHTTPS)
class Unverified:
    """Takes any certificate: nobody knows who answers."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> CertificateOptions:
        """See :meth:`twisted.web.iweb.IPolicyForHTTPS.creatorForNetloc`."""
        return CertificateOptions(verify=False)


@implementer(IAgent)
class Uncompressed:
    """
    Asks for answers that are not compressed, and has none unpacked: a few bytes could be any number
    in memory by then, before anybody has counted them.

    :param agent: an :class:`IAgent` that asks.
    """

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See :meth:`twisted.web.iweb.IAgent.request`."""
        asked = Headers() if headers is None else headers.copy()
        asked.setRawHeaders(b"Accept-Encoding", [b"identity"])
        answer: Deferred[IResponse] = self._agent.request(method, uri, asked, bodyProducer)
        return answer.addCallback(_as_it_is)


def _as_it_is(response: IResponse) -> IResponse:
    response.headers.removeHeader(b"Content-Encoding")
    return response


def authority(path: str) -> Any:
    """
    Read the certificates that are to be trusted.

    :param path: a PEM file.
    :return: a trust root of Twisted.
    :raises OSError: when it cannot be read.
    :raises ValueError: when there is no certificate in it.
    """
    found = _PEM.findall(Path(path).read_bytes())
    try:
        certificates = [Certificate.loadPEM(one) for one in found]
    except Exception:
        # What the libraries below raise differs with their versions.
        certificates = []
    if not certificates:
        raise ValueError("no certificate in PEM form")
    return trustRootFromCertificates(certificates)


class NoAuthority(Exception):
    """The certificates that are to be trusted cannot be read."""


@implementer(IPolicyForHTTPS)
@frozen
class Authority:
    """
    Takes the certificates of an authority whose own one is in a file. It is read for each
    connection: it may be replaced, and the user that the daemon has become may not be able to read
    what could be read at its start.

    :param path: of the PEM file.
    """

    path: str

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """See :meth:`twisted.web.iweb.IPolicyForHTTPS.creatorForNetloc`."""
        try:
            trusted = authority(self.path)
        except (OSError, ValueError) as error:
            raise NoAuthority(f"{self.path}: {getattr(error, 'strerror', error)}") from None
        return BrowserLikePolicyForHTTPS(trusted).creatorForNetloc(hostname, port)


def policy(verify: bool, ca_file: str | None) -> Any:
    """
    Whom to trust.

    :param verify: whether certificates are looked at.
    :param ca_file: the authority when it is none that this system knows.
    :return: an :class:`IPolicyForHTTPS`.
    """
    if not verify:
        return Unverified()
    if ca_file is None:
        return BrowserLikePolicyForHTTPS()
    return Authority(ca_file)


def connections(reactor: Any, trusted: Any, deadline: float) -> tuple[HTTPClient, Any]:
    """
    What requests are made with.

    :param trusted: an :class:`IPolicyForHTTPS`.
    :param deadline: seconds that connecting may take.
    :return: the client, and its pool, which is to be closed.
    """
    pool = HTTPConnectionPool(reactor)
    pool.maxPersistentPerHost = CONNECTIONS
    pool.cachedConnectionTimeout = IDLE
    agent = Agent(reactor, trusted, connectTimeout=deadline, pool=pool)
    return client(agent), pool


def client(agent: Any) -> HTTPClient:
    """
    What unpacks nothing, and remembers nothing that the array has not been asked for.

    :param agent: an :class:`IAgent` that asks.
    """
    nothing = IndexableCookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return HTTPClient(Uncompressed(agent), nothing)
