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
    which knows those under way, so that they can end before the daemon does.

    :param resource: what answers.
    :param reactor: for timeouts.
    :ivar active: the requests under way.
    :ivar draining: whether connections are closed after their next answer.
    """

    noisy = False
    # HTTP/1.1 alone, without Twisted's choice between that and HTTP/2.
    protocol = StreamingChannel  # type: ignore[assignment]

    def __init__(self, resource: IResource, reactor: Any) -> None:
        super().__init__(resource, StreamingRequest, timeout=IDLE, reactor=reactor)
        self.active: set[StreamingRequest] = set()
        self.draining = False
        self._waiting: list[Deferred[None]] = []

    def begun(self, request: StreamingRequest) -> None:
        """A request is under way."""
        self.active.add(request)

    def ended(self, request: StreamingRequest) -> None:
        """A request is answered, or its client is gone."""
        self.active.discard(request)
        if not self.active:
            waiting, self._waiting = self._waiting, []
            for idle in waiting:
                idle.callback(None)

    def idle(self) -> Deferred[None]:
        """
        :return: a Deferred that fires when no request is under way.
        """
        if not self.active:
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        return waiting

    def acceptableProtocols(self) -> list[bytes]:
        """What is offered on TLS: HTTP/2 in Twisted moves 64 KiB for each round trip."""
        return [b"http/1.1"]

    def log(self, request: Request) -> None:
        """Nothing: requests are logged by themselves, and without their tokens."""
