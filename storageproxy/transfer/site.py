"""
The HTTP server that both faces of the daemon stand on.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.web.http import Request
from twisted.web.resource import IResource
from twisted.web.server import Site

from storageproxy.transfer.request import StreamingChannel, StreamingRequest

#: Seconds after which a silent connection is closed, as the original does.
IDLE = 75


class StreamingSite(Site):
    """
    A site whose requests are :class:`~storageproxy.transfer.request.StreamingRequest` objects, and
    which knows its connections, so that they can end before the daemon does.

    :param resource: what answers.
    :param reactor: for timeouts.
    :ivar active: the requests under way.
    :ivar connections: the open connections.
    :ivar draining: whether connections are closed after their next answer.
    """

    noisy = False
    # HTTP/1.1 alone, without Twisted's choice between that and HTTP/2.
    protocol = StreamingChannel  # type: ignore[assignment]

    def __init__(self, resource: IResource, reactor: Any) -> None:
        super().__init__(resource, StreamingRequest, timeout=IDLE, reactor=reactor)
        self.active: set[StreamingRequest] = set()
        self.connections: set[StreamingChannel] = set()
        self.draining = False
        self._drained: list[Deferred[None]] = []

    def drain(self) -> Deferred[None]:
        """
        Close each connection, after the answer that is under way.

        :return: a Deferred that fires when none is left, and all that was answered is sent.
        """
        self.draining = True
        for channel in list(self.connections):
            if not channel.requests:
                channel.loseConnection()
        if not self.connections:
            return succeed(None)
        drained: Deferred[None] = Deferred(self._drained.remove)
        self._drained.append(drained)
        return drained

    def connected(self, channel: StreamingChannel) -> None:
        """A connection is open."""
        self.connections.add(channel)

    def disconnected(self, channel: StreamingChannel) -> None:
        """A connection is closed."""
        self.connections.discard(channel)
        if not self.connections:
            waiting, self._drained = self._drained, []
            for drained in waiting:
                drained.callback(None)

    def acceptableProtocols(self) -> list[bytes]:
        """What is offered on TLS: HTTP/2 in Twisted moves 64 KiB for each round trip."""
        return [b"http/1.1"]

    def log(self, request: Request) -> None:
        """Nothing: requests are logged by themselves, and without their tokens."""
