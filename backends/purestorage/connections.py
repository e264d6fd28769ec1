# -*- test-case-name: tests.test_purestorage_tls -*-
"""
Connections to an array: TLS, its authority, and a pool.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from treq.client import HTTPClient
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.iweb import IPolicyForHTTPS
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
    return BrowserLikePolicyForHTTPS(authority(ca_file))


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
    return HTTPClient(Agent(reactor, trusted, connectTimeout=deadline, pool=pool)), pool
