# -*- test-case-name: tests.test_xfs_agent -*-
"""
The agent: a small service with privilege, which does for daemons without it what projects need.

It serves the users that its configuration names, for whom the kernel vouches (SO_PEERCRED,
unix(7)), and gives projects to directories of the volumes that are named there, which come as
descriptors.
"""

from __future__ import annotations

import atexit
import os
import socket
import stat
import struct
from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import define, field
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import ServerFactory
from twisted.logger import ILogObserver, Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

import storageproxy
from backends.xfs import privilege, shares
from backends.xfs.commands import XFSQuota
from backends.xfs.commits import Commits
from backends.xfs.interfaces import Limit, NotManaged
from backends.xfs.kernel import Kernel
from backends.xfs.privilege import NEEDED, Capability
from backends.xfs.projects import Projects, asked_by
from backends.xfs.protocol import (
    MAX_PENDING,
    Allocate,
    GetAccount,
    Reconcile,
    Release,
    SetLimit,
    fitting,
    from_account,
    is_told,
)
from backends.xfs.registry import Registry
from backends.xfs.settings import AgentSettings, to_range
from backends.xfs.shares import Shares
from backends.xfs.tree import Tree
from storageproxy.background import Background
from storageproxy.errors import (
    BackendFailure,
    ShuttingDown,
    StorageProxyError,
    VolumeUnavailable,
    from_os_error,
)
from storageproxy.notify import notify
from storageproxy.threads import VolumeThreads

T = TypeVar("T")

#: Seconds that requests under way get when the agent stops.
GRACE = 10.0

#: Descriptors that a request has open at most, beside the one that came with it: a copy of that,
#: a lock, the pipes of a command, and some for a moment.
OPENED = 6

#: struct ucred: pid, uid, gid.
_UCRED = struct.Struct("=iII")


class AgentProtocol(amp.AMP):
    """
    A connection to the agent.

    :param factory: knows whom to serve, and with what.
    """

    factory: AgentFactory
    transport: Any
    log = Logger()

    def __init__(self, factory: AgentFactory) -> None:
        super().__init__()
        self.factory = factory
        self._peer = ""
        self._uid = -1
        self._pending = 0
        #: Whether it is served.
        self._serving = False
        #: Descriptors that have come, until they are closed.
        self._received: set[int] = set()

    def connectionMade(self) -> None:
        """Look at who it is; nobody is served else."""
        super().connectionMade()
        handle = self.transport.getHandle()
        pid, uid, _ = _UCRED.unpack(
            handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        self._peer = f"uid {uid} (process {pid})"
        self._uid = uid
        if uid not in self.factory.users:
            self._end("is not served: only the users of the configuration are.")
        elif not self.factory.shares.take(uid, 1):
            self._end("is not served: its user has too many connections, or requests.")
        else:
            self._serving = True
            # Who does not read his answers is not read, so that they do not pile up.
            self.transport.registerProducer(self.transport, True)
            self.factory.connections.add(self)

    def fileDescriptorReceived(self, descriptor: int) -> None:
        """A directory has come; the request that is about it comes next."""
        if not self._serving:
            os.close(descriptor)
            return
        if len(self._received) >= MAX_PENDING or not self.factory.shares.take(self._uid, 1):
            os.close(descriptor)
            self._end("sends more than can be taken.")
            return
        # Commands that are run meanwhile shall not have it.
        os.set_inheritable(descriptor, False)
        self._received.add(descriptor)
        super().fileDescriptorReceived(descriptor)

    def dataReceived(self, data: bytes) -> None:
        """Take a part of a request, unless it is one of a connection that is being ended."""
        if self._serving:
            super().dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Let go of what has come."""
        super().connectionLost(reason)
        self._serving = False
        while self._received:
            self._close(self._received.pop())
        if self in self.factory.connections:
            self.factory.connections.discard(self)
            self.factory.shares.give_back(self._uid, 1)

    def _end(self, why: str) -> None:
        """End the connection; nothing that comes on it counts any more."""
        self._serving = False
        self.log.warn("{peer} {why}", peer=self._peer, why=why)
        self.transport.abortConnection()

    def _close(self, directory: int) -> None:
        os.close(directory)
        self.factory.shares.give_back(self._uid, 1)

    @Allocate.responder
    def _allocate(self, volume: str, directory: int) -> Deferred[dict[str, int]]:
        async def work(projects: Any) -> dict[str, int]:
            return {"project": await projects.allocate(directory)}

        return self._answer("allocating a project", volume, work, directory)

    @GetAccount.responder
    def _account(self, volume: str, directory: int) -> Deferred[dict[str, int]]:
        async def work(projects: Any) -> dict[str, int]:
            return from_account(await projects.account(directory))

        return self._answer("reading a limit", volume, work, directory)

    @SetLimit.responder
    def _set_limit(
        self, volume: str, directory: int, size: int, inodes: int
    ) -> Deferred[dict[str, int]]:
        async def work(projects: Any) -> dict[str, int]:
            return from_account(await projects.set_limit(directory, Limit(size, inodes)))

        return self._answer("setting a limit", volume, work, directory)

    @Release.responder
    def _release(self, volume: str, project: int) -> Deferred[dict[str, bool]]:
        async def work(projects: Any) -> dict[str, bool]:
            return {"free": await projects.release(project)}

        return self._answer("releasing a project", volume, work)

    @Reconcile.responder
    def _reconcile(self, volume: str) -> Deferred[dict[str, list[str]]]:
        async def work(projects: Any) -> dict[str, list[str]]:
            return {"lines": fitting(await projects.reconcile())}

        return self._answer("reconciling", volume, work)

    def _answer(
        self, what: str, volume: str, work: Any, directory: int | None = None
    ) -> Deferred[Any]:
        token = asked_by.set(self._peer)
        try:
            # It comes to its end, whether or not he waits for it.
            return self.factory.background.run(what, self._do(volume, work, directory))
        finally:
            asked_by.reset(token)

    async def _do(self, volume: str, work: Any, directory: int | None) -> Any:
        try:
            if self._pending >= MAX_PENDING or not self.factory.shares.take(self._uid, OPENED):
                raise VolumeUnavailable("the XFS agent has too many requests of this user")
            self._pending += 1
            try:
                return await self._try(volume, work)
            finally:
                self._pending -= 1
                self.factory.shares.give_back(self._uid, OPENED)
        finally:
            if directory is not None and directory in self._received:
                self._received.discard(directory)
                self._close(directory)

    async def _try(self, volume: str, work: Any) -> Any:
        if self.factory.stopping:
            raise ShuttingDown("the XFS agent is stopping")
        projects = self.factory.volumes.get(volume)
        if projects is None:
            raise NotManaged(f"{volume} is not among the volumes of the XFS agent's configuration")
        try:
            return await work(projects)
        except StorageProxyError as error:
            raise (error if is_told(error) else BackendFailure(error.message)) from None
        except OSError as error:
            known = from_os_error(error, volume)
            # The others are about requests of clients, and leave out what they were made on.
            raise (
                known if is_told(known) else BackendFailure(f"volume {volume}: {error}")
            ) from None
        except Exception:
            self.log.failure("A request of {peer} has failed.", peer=self._peer)
            raise BackendFailure("the XFS agent has failed; its log says how") from None


@define(eq=False)
class AgentFactory(ServerFactory):
    """
    Makes connections.

    :param users: the uids that are served.
    :param volumes: path to the :class:`IProjects` of each volume.
    :param shares: what each user may have.
    """

    users: frozenset[int]
    volumes: Mapping[str, Any]
    shares: Shares
    background: Background = field(factory=Background)
    connections: set[AgentProtocol] = field(factory=set)
    stopping: bool = False

    noisy = False

    def buildProtocol(self, addr: Any) -> Any:
        """See :meth:`twisted.internet.interfaces.IProtocolFactory.buildProtocol`."""
        return AgentProtocol(self)


def make_volumes(settings: AgentSettings, reactor: Any) -> dict[str, Projects]:
    """
    The projects of each volume, which share one registry.

    :return: by path.
    """

    def threads(name: str) -> VolumeThreads:
        return VolumeThreads(reactor, name, size=settings.threads, deadline=settings.deadline)

    commits = Commits(Registry(settings.projects, settings.projid), threads("registry"))
    limits = XFSQuota(reactor, settings.deadline)
    ids = to_range(settings.ids)
    return {
        path: Projects(Tree(path, Kernel()), commits, limits, threads(path), ids)
        for path in settings.volumes
    }


def open_socket(path: str, mode: int, group: int) -> socket.socket:
    """
    Listen on a path. A socket that a killed agent has left there is replaced.

    :param mode: its permissions, from the first moment on.
    :param group: a gid, -1 for that of this process.
    :raises OSError: EADDRINUSE when somebody listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        except OSError:
            # bind() says what is wrong.
            pass
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    umask = os.umask(0o777)
    try:
        listening.bind(path)
        os.chown(path, -1, group)
        os.chmod(path, mode)
        listening.listen()
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(umask)
    return listening


class Logged(MultiService):
    """
    A service that is all of an application, and has the log as its configuration says.

    :param log_observer: put into the application; None to leave it to twistd.
    """

    def __init__(self, log_observer: Any = None) -> None:
        super().__init__()
        self._log_observer = log_observer

    def setServiceParent(self, parent: Any) -> None:
        """Join the application."""
        if self._log_observer is not None and hasattr(parent, "setComponent"):
            parent.setComponent(ILogObserver, self._log_observer)
        super().setServiceParent(parent)


class Agent(Logged):
    """
    The service.

    :param settings: its configuration.
    :param reactor: where it runs.
    :param log_observer: see :class:`Logged`.
    :param environ: the environment, for systemd.
    """

    log = Logger()

    def __init__(
        self,
        settings: AgentSettings,
        reactor: Any,
        log_observer: Any = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__(log_observer)
        self._settings = settings
        self._reactor = reactor
        self._environ = environ
        self._socket: socket.socket | None = None
        self._port: IListeningPort | None = None
        self._round: Deferred[bool] | None = None
        self.volumes = make_volumes(settings, reactor)
        users = frozenset(settings.users)
        self.factory = AgentFactory(users, self.volumes, shares.of_process(len(users)))
        if settings.reconcile_interval:
            timer = TimerService(settings.reconcile_interval, self._reconcile)
            timer.clock = reactor
            timer.setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Listen, and give up what is not needed any more."""
        check_rights()
        settings = self._settings
        try:
            self._socket = open_socket(settings.socket, settings.socket_mode, settings.socket_group)
        except OSError as error:
            raise SystemExit(f"socket: {settings.socket}: {error.strerror}") from None
        keep_rights(settings)
        super().privilegedStartService()

    def startService(self) -> None:
        """Serve."""
        if self._socket is not None:
            self._port = self._reactor.adoptStreamPort(
                self._socket.fileno(), socket.AF_UNIX, self.factory
            )
            self._socket.close()
        super().startService()
        self.log.info(
            "XFS agent {version} has started for {volumes}, on {socket}.",
            version=storageproxy.__version__,
            volumes=", ".join(self.volumes),
            socket=self._settings.socket,
        )
        notify(self._environ, "READY=1")

    def stopService(self) -> Deferred[None]:
        """Take no more requests, and wait for those under way."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        notify(self._environ, "STOPPING=1")
        self.factory.stopping = True
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        if self._round is not None:
            self._round.cancel()
        await MultiService.stopService(self)
        ended = Deferred.fromCoroutine(self.factory.background.wait())
        ended.addTimeout(GRACE, self._reactor, lambda result, _: None)
        await ended
        for connection in list(self.factory.connections):
            connection.transport.abortConnection()
        stop_threads(self.volumes)

    def _reconcile(self) -> Deferred[bool]:
        self._round = Deferred.fromCoroutine(reconcile(self.volumes))
        return self._round


def check_rights() -> None:
    """
    See whether this process may do what it is for.

    :raises SystemExit: when it lacks something; it says what, and what to do.
    """
    lacking = privilege.missing()
    if lacking:
        raise SystemExit(
            f"The XFS agent needs {' and '.join(lacking)}: start it as root, or as the unit file"
            " does."
        )


def keep_rights(settings: AgentSettings) -> None:
    """Give up what is not needed any more."""
    kept = {Capability.CAP_DAC_READ_SEARCH} if settings.read_all else set()
    privilege.keep(NEEDED | kept)


class Once(Logged):
    """
    Reconciles, and ends the process: with status 1 when one of the volumes could not be reconciled.

    :param settings: the agent's configuration.
    :param reactor: where it runs.
    :param log_observer: see :class:`Logged`.
    """

    def __init__(self, settings: AgentSettings, reactor: Any, log_observer: Any = None) -> None:
        super().__init__(log_observer)
        self._settings = settings
        self._reactor = reactor
        self.volumes = make_volumes(settings, reactor)

    def privilegedStartService(self) -> None:
        """Give up what is not needed."""
        check_rights()
        keep_rights(self._settings)
        super().privilegedStartService()

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self._reactor.callWhenRunning(lambda: Deferred.fromCoroutine(self._run()))

    async def _run(self) -> None:
        if not await reconcile(self.volumes):
            # twistd has no other way to end with a status when its reactor has run.
            atexit.register(os._exit, 1)
        stop_threads(self.volumes)
        self._reactor.stop()


def stop_threads(volumes: Mapping[str, Projects]) -> None:
    """Let the threads of all volumes end."""
    for projects in volumes.values():
        projects.threads.stop()
        projects.commits.threads.stop()


async def reconcile(volumes: Mapping[str, Projects]) -> bool:
    """
    Reconcile each volume; the log has what is found.

    :return: whether that could be done with all of them.
    """
    done = True
    for path, projects in volumes.items():
        try:
            lines = await projects.reconcile()
        except CancelledError:
            return False
        except (StorageProxyError, OSError) as error:
            Agent.log.error(
                "Volume {path} cannot be reconciled: {error}", path=path, error=str(error)
            )
            done = False
        except Exception:
            done = False
            Agent.log.failure("Volume {path} cannot be reconciled", path=path)
        else:
            Agent.log.info(
                "Volume {path} is reconciled, with {count} findings.", path=path, count=len(lines)
            )
    return done
