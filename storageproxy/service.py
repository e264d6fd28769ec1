"""
The APIs and the volumes put together: what one process consists of, how it starts, and how it ends.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, gatherResults, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from zope.interface import implementer

from storageproxy.api.client import ClientAPI, allow_origin
from storageproxy.api.handover import Handover
from storageproxy.api.manager import ManagerAPI
from storageproxy.api.routing import Front
from storageproxy.background import Background
from storageproxy.config import Configuration
from storageproxy.daemon import IServing
from storageproxy.disposal import Disposal
from storageproxy.listeners import Listener
from storageproxy.tokens import TokenKey
from storageproxy.transfer.janitor import Janitor
from storageproxy.transfer.site import StreamingSite
from storageproxy.transfer.uploads import Uploads
from storageproxy.volumes import Volumes

#: Seconds that answers under way get when the daemon stops.
GRACE = 10.0
#: Seconds that uploads then get to put on disk what has come.
SETTLE = 10.0


def favour_reactor() -> None:
    """
    Set the interpreter up for a reactor that has threads beside it.

    The garbage collector passes over what is loaded by now, which never goes: to look through it
    again and again would stop the reactor for 15 ms each time. And a thread that runs Python code
    gives the interpreter's lock away after two milliseconds: by default it is five, for which the
    reactor would wait after each of its system calls.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.002)


@implementer(IServing)
class StorageProxy(MultiService):
    """
    Serves both APIs.

    :param settings: the checked configuration.
    :param reactor: where everything runs.
    :param janitor: whether it also takes away what is left over on the volumes; one process does.
    :param clock: returns seconds since the epoch.
    """

    log = Logger()

    def __init__(
        self,
        settings: Configuration,
        reactor: Any,
        janitor: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        proxy = settings.storage_proxy
        self._reactor = reactor
        self._listeners: list[Listener] = []
        self._ports: list[IListeningPort] = []
        self._background = Background()
        self.volumes = Volumes.build(settings.volume, reactor)
        self.uploads = Uploads(reactor)
        key = TokenKey(proxy.secret, proxy.session_expire)
        self.client = ClientAPI(
            self.volumes,
            self.uploads,
            key,
            proxy.max_upload_size,
            clock,
            Handover(
                {name: volume.x_accel_redirect or "" for name, volume in settings.volume.items()},
                settings.api.client.trusted_proxies,
            ),
        )
        self.manager = ManagerAPI(
            self.volumes,
            self.uploads,
            key,
            settings.api.manager.secret,
            proxy.scandir_limit,
            proxy.max_upload_size,
            settings.api.manager.delete_status,
            self._background,
            Disposal(reactor, self._background),
            clock,
        )
        self._sites = [
            StreamingSite(Front(self.client.app, self.client.failed, allow_origin), reactor),
            StreamingSite(Front(self.manager.app, self.manager.failed), reactor),
        ]
        self._janitor = janitor
        if janitor:
            Janitor(self.volumes, reactor, proxy.session_expire, clock).setServiceParent(self)

    def listen(self, listeners: list[Listener]) -> None:
        """See :meth:`storageproxy.daemon.IServing.listen`."""
        self._listeners = listeners

    def ready(self) -> Deferred[None]:
        """See :meth:`storageproxy.daemon.IServing.ready`."""
        return succeed(None)

    def startService(self) -> None:
        """Begin."""
        super().startService()
        if not self._janitor:
            # Who has one looks at the volumes in its rounds; what they can do is for all to know.
            for volume in self.volumes:
                self._background.start(f"A look at volume {volume.name}", volume.check())
        self._ports = [
            listener.listen(self._reactor, site)
            for listener, site in zip(self._listeners, self._sites, strict=True)
        ]

    async def _stop(self) -> None:
        self.manager.draining = True
        # The rounds of the janitor end.
        await MultiService.stopService(self)
        for port in self._ports:
            await _waited(port.stopListening())
        # Uploads cannot end by themselves in a moment: what has come is kept, and a client comes
        # back for the rest.
        self.log.info("Waiting for {count} requests to end.", count=self._active())
        settled = Deferred.fromCoroutine(self.uploads.stop())
        uploads = Deferred.fromCoroutine(_within(self._reactor, SETTLE, settled))
        answers = gatherResults(
            [
                *(site.drain() for site in self._sites),
                Deferred.fromCoroutine(self._background.wait()),
            ],
            consumeErrors=True,
        )
        await _within(self._reactor, GRACE, answers)
        await uploads
        for site in self._sites:
            for channel in list(site.connections):
                channel.forceAbortClient()
        stopped = [Deferred.fromCoroutine(volume.stop()) for volume in self.volumes]
        await _within(self._reactor, GRACE, gatherResults(stopped, consumeErrors=True))

    def stopService(self) -> Deferred[None]:
        """
        Take no more connections, let running answers end for a moment, keep the bytes of running
        uploads.
        """
        return Deferred.fromCoroutine(self._stop())

    def _active(self) -> int:
        return sum(len(site.active) for site in self._sites)


async def _within(reactor: Any, seconds: float, work: Deferred[Any]) -> None:
    """Wait for some work, but not for ever."""
    work.addTimeout(seconds, reactor)
    try:
        await work
    except (TimeoutError, CancelledError):
        pass
    except Exception as error:
        StorageProxy.log.warn("While stopping: {error!r}", error=error)


async def _waited(result: Any) -> None:
    if isinstance(result, Deferred):
        await result
