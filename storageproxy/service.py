"""
The daemon put together: what it consists of, how it starts, and how it ends.
"""

from __future__ import annotations

import grp
import os
import pwd
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.ssl import CertificateOptions
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

import storageproxy
from storageproxy.api.client import ClientAPI, allow_origin
from storageproxy.api.handover import Handover
from storageproxy.api.manager import ManagerAPI
from storageproxy.api.routing import Front
from storageproxy.background import Background
from storageproxy.config import Configuration, ConfigurationError, ListenerSettings
from storageproxy.notify import notify
from storageproxy.tokens import TokenKey
from storageproxy.transfer.janitor import Janitor
from storageproxy.transfer.site import StreamingSite
from storageproxy.transfer.uploads import Uploads
from storageproxy.volumes import Volumes

#: Seconds that answers under way get when the daemon stops.
GRACE = 10.0
#: Seconds that uploads then get to put on disk what has come.
SETTLE = 10.0

#: Connections that wait to be accepted, as in the original.
BACKLOG = 1024


class StorageProxy(MultiService):
    """
    The daemon.

    :param settings: the checked configuration.
    :param reactor: where everything runs.
    :param log_observer: put into the application that the service becomes a part of.
    :param greeting: said when both ports are open.
    :param clock: returns seconds since the epoch.
    :param environ: the environment, for systemd.
    """

    log = Logger()

    def __init__(
        self,
        settings: Configuration,
        reactor: Any,
        log_observer: Any = None,
        greeting: str = "",
        clock: Callable[[], float] = time.time,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__()
        proxy = settings.storage_proxy
        self._settings = settings
        self._reactor = reactor
        self._log_observer = log_observer
        self._greeting = greeting
        self._environ = environ
        self._listening: list[Deferred[IListeningPort]] = []
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
            clock,
        )
        self._sites = [
            (StreamingSite(Front(self.client.app, allow_origin), reactor), settings.api.client),
            (StreamingSite(Front(self.manager.app), reactor), settings.api.manager),
        ]
        self._contexts = [
            tls_options(listener) if listener.ssl_enabled else None for _, listener in self._sites
        ]
        self._janitor = Janitor(self.volumes, reactor, proxy.session_expire, clock)
        self._janitor.setServiceParent(self)

    def setServiceParent(self, parent: Any) -> None:
        """Join the application, whose log is ours too."""
        if self._log_observer is not None and hasattr(parent, "setComponent"):
            parent.setComponent(ILogObserver, self._log_observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open both ports, while the process may."""
        super().privilegedStartService()
        for (factory, listener), context in zip(self._sites, self._contexts, strict=True):
            listening = endpoint(self._reactor, listener, context).listen(factory)
            # An endpoint for an address answers at once, with a port or with a failure.
            failed: list[Failure] = []
            listening.addErrback(failed.append)
            if failed:
                raise SystemExit(f"service-addr: {failed[0].getErrorMessage()}")
            self._listening.append(listening)
        self._write_pid()

    def startService(self) -> None:
        """Become an ordinary user, and begin."""
        drop_privileges(
            os.geteuid(), self._settings.storage_proxy.user, self._settings.storage_proxy.group
        )
        super().startService()
        self._tell()
        notify(self._environ, "READY=1", f"STATUS={len(self.volumes.by_name)} volumes")

    async def _stop(self) -> None:
        notify(self._environ, "STOPPING=1")
        self.manager.draining = True
        self._janitor.stopService()
        for listening in self._listening:
            await _waited((await listening).stopListening())
        # Uploads cannot end by themselves in a moment: what has come is kept, and a client comes
        # back for the rest.
        self.log.info("Waiting for {count} requests to end.", count=self._active())
        settled = Deferred.fromCoroutine(self.uploads.stop())
        uploads = Deferred.fromCoroutine(_within(self._reactor, SETTLE, settled))
        answers = gatherResults(
            [
                *(factory.drain() for factory, _ in self._sites),
                Deferred.fromCoroutine(self._background.wait()),
            ],
            consumeErrors=True,
        )
        await _within(self._reactor, GRACE, answers)
        await uploads
        for factory, _ in self._sites:
            for channel in list(factory.connections):
                channel.forceAbortClient()
        for volume in self.volumes:
            volume.threads.stop()
        self._remove_pid()

    def stopService(self) -> Deferred[None]:
        """
        Take no more connections, let running answers end for a moment, keep the bytes of running
        uploads.
        """
        stopping = Deferred.fromCoroutine(self._stop())
        stopping.addCallback(lambda _: MultiService.stopService(self))
        return stopping

    def _active(self) -> int:
        return sum(len(factory.active) for factory, _ in self._sites)

    def _tell(self) -> None:
        self.log.info("Storage Proxy {version} has started.", version=storageproxy.__version__)
        proxy = self._settings.storage_proxy
        if proxy.num_proc > 1:
            self.log.info(
                "storage-proxy.num-proc is {wanted}; this release runs one process.",
                wanted=proxy.num_proc,
            )
        if self._settings.ignored:
            self.log.info(
                "These keys of the configuration mean nothing here: {keys}",
                keys=", ".join(self._settings.ignored),
            )
        if self._greeting:
            # For a person at a terminal, beside the log; twistd has taken sys.stderr for that.
            print(self._greeting, file=sys.__stderr__, flush=True)

    def _write_pid(self) -> None:
        path = self._settings.storage_proxy.pid_file
        if path != os.devnull:
            Path(path).write_text(f"{os.getpid()}\n")

    def _remove_pid(self) -> None:
        path = self._settings.storage_proxy.pid_file
        if path != os.devnull:
            try:
                Path(path).unlink(missing_ok=True)
            except OSError as error:
                self.log.info("{path} stays: {error}", path=path, error=error.strerror)


def endpoint(reactor: Any, listener: ListenerSettings, context: Any) -> Any:
    """
    Where an API listens.

    :param context: of TLS, or None.
    """
    host, port = listener.service_addr
    if context is not None:
        return SSL4ServerEndpoint(reactor, port, context, BACKLOG, host)
    if ":" in host:
        return TCP6ServerEndpoint(reactor, port, BACKLOG, host)
    return TCP4ServerEndpoint(reactor, port, BACKLOG, host)


def tls_options(listener: ListenerSettings) -> CertificateOptions:
    """
    The certificate of a port, with the chain that stands below it in its file.

    :raises ConfigurationError: when the files hold no certificate and its key.
    """
    try:
        chain = [
            crypto.load_certificate(crypto.FILETYPE_PEM, part)
            for part in _pem_parts(Path(listener.ssl_cert or "").read_bytes())
        ]
        key = crypto.load_privatekey(
            crypto.FILETYPE_PEM, Path(listener.ssl_privkey or "").read_bytes()
        )
        options = CertificateOptions(
            privateKey=key,
            certificate=chain[0],
            extraCertChain=chain[1:],
            acceptableProtocols=[b"http/1.1"],
        )
        options.getContext().check_privatekey()
        return options
    except (OSError, IndexError, crypto.Error, SSL.Error, ValueError) as error:
        raise ConfigurationError(
            [
                f"ssl-cert, ssl-privkey: a PEM certificate and the key that belongs to it,"
                f" which {listener.ssl_cert} and {listener.ssl_privkey} are not: {error!r}"
            ]
        ) from None


def _pem_parts(data: bytes) -> list[bytes]:
    end = b"-----END CERTIFICATE-----"
    return [part + end + b"\n" for part in data.split(end)[:-1]]


def drop_privileges(euid: int, user: int, group: int) -> None:
    """
    Become an ordinary user, when the process was started as root.

    :param euid: who it is.
    :param user: who it shall be: a uid, -1 to stay, -2 for the owner of the program.
    :param group: likewise.
    """
    if euid != 0:
        return
    owner = os.stat(storageproxy.__file__)
    uid = {-1: 0, -2: owner.st_uid}.get(user, user)
    gid = {-1: os.getegid(), -2: owner.st_gid}.get(group, group)
    if uid == 0 and gid == os.getegid():
        return
    try:
        # The groups of the user, if he is in the table; containers often have none.
        name = pwd.getpwuid(uid).pw_name
        groups = [entry.gr_gid for entry in grp.getgrall() if name in entry.gr_mem]
    except KeyError:
        groups = []
    os.setgroups(sorted({gid, *groups}))
    os.setgid(gid)
    os.setuid(uid)


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
