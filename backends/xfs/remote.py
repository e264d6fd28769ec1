# -*- test-case-name: tests.test_xfs_agent -*-
"""
The projects of a volume, by way of the agent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import (
    Deferred,
    DeferredSemaphore,
    TimeoutError,
    succeed,
)
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.protocols import amp
from twisted.python.failure import Failure
from zope.interface import implementer

from backends.xfs.interfaces import Account, IProjects, Limit
from backends.xfs.protocol import (
    MAX_PENDING,
    Allocate,
    GetAccount,
    Reconcile,
    Release,
    SetLimit,
    to_account,
)
from storageproxy.errors import BackendFailure, VolumeUnavailable


class _Connection(amp.AMP):
    #: Whether the agent has ever answered on it.
    proven = False
    lost = False

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = True
        super().connectionLost(reason)


@implementer(IProjects)
class RemoteProjects:
    """
    One connection to the agent, which is made when it is needed, and again when it was lost.

    :param reactor: where it is.
    :param socket: the path that the agent listens on.
    :param volume: the path of the volume, as the agent's configuration has it.
    :param deadline: seconds that a request may take, but for reconciling.
    """

    def __init__(self, reactor: Any, socket: str, volume: str, deadline: float = 30.0) -> None:
        self._reactor = reactor
        self._socket = socket
        self._volume = volume
        self._deadline = deadline
        self._connection: _Connection | None = None
        self._waiting: list[Deferred[_Connection]] = []
        # Fewer than the agent refuses, as those that were given up here may be under way there.
        self._turns = DeferredSemaphore(MAX_PENDING // 2)

    async def allocate(self, directory: int) -> int:
        """See :meth:`backends.xfs.interfaces.IProjects.allocate`."""
        answer = await self._ask(Allocate, {}, directory)
        project: int = answer["project"]
        return project

    async def account(self, directory: int) -> Account:
        """See :meth:`backends.xfs.interfaces.IProjects.account`."""
        return to_account(await self._ask(GetAccount, {}, directory))

    async def set_limit(self, directory: int, limit: Limit) -> Account:
        """See :meth:`backends.xfs.interfaces.IProjects.set_limit`."""
        wanted = {"size": limit.size, "inodes": limit.inodes}
        return to_account(await self._ask(SetLimit, wanted, directory))

    async def release(self, project: int) -> bool:
        """See :meth:`backends.xfs.interfaces.IProjects.release`."""
        answer = await self._ask(Release, {"project": project})
        return bool(answer["free"])

    async def reconcile(self) -> list[str]:
        """See :meth:`backends.xfs.interfaces.IProjects.reconcile`."""
        answer = await self._ask(Reconcile, {}, patient=True)
        lines: list[str] = answer["lines"]
        return lines

    async def disconnect(self) -> None:
        """Close the connection, when there is one."""
        if self._connection is not None and not self._connection.lost:
            self._connection.transport.loseConnection()  # type: ignore[union-attr]
        self._connection = None

    async def _ask(
        self,
        command: type[amp.Command],
        arguments: Mapping[str, Any],
        directory: int | None = None,
        patient: bool = False,
    ) -> dict[str, Any]:
        # It is sent later, when he who gave it may have closed it.
        held = None if directory is None else os.dup(directory)
        asked = Deferred.fromCoroutine(self._in_turn(command, arguments, held))
        # Cancelling it lets go of the answer only: what was sent is done.
        answer: Deferred[dict[str, Any]] = Deferred(lambda _: None)
        asked.addBoth(lambda result: None if answer.called else answer.callback(result))
        if not patient:
            answer.addTimeout(self._deadline, self._reactor)
        try:
            return await answer
        except TimeoutError:
            raise self._unavailable(f"does not answer within {self._deadline:g} seconds") from None
        except ConnectError as error:
            raise self._unavailable(f"cannot be reached: {error}") from None
        except ConnectionClosed:
            raise self._unavailable(
                "has closed the connection, which is what it does to users that its configuration"
                f" does not name, or that have too many (this is uid {os.geteuid()})"
            ) from None
        except amp.UnhandledCommand:
            raise BackendFailure(
                f"the XFS agent at {self._socket} does not know the command"
                f" {command.__name__}: let it be of the same version as the Storage Proxy"
            ) from None
        except amp.AmpError as error:
            raise self._unavailable(f"has failed: {error}") from None

    async def _in_turn(
        self, command: type[amp.Command], arguments: Mapping[str, Any], held: int | None
    ) -> dict[str, Any]:
        try:
            await self._turns.acquire()
            try:
                given = arguments if held is None else {"directory": held, **arguments}
                connection = await self._connected()
                try:
                    return await self._call(connection, command, given)
                except ConnectionClosed:
                    if not connection.proven:
                        raise
                    # The agent was started again. All that is asked of it may be asked twice.
                    return await self._call(await self._connected(), command, given)
            finally:
                self._turns.release()
        finally:
            if held is not None:
                os.close(held)

    async def _call(
        self, connection: _Connection, command: type[amp.Command], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        answer: dict[str, Any] = await connection.callRemote(command, volume=self._volume, **given)
        connection.proven = True
        return answer

    def _connected(self) -> Deferred[_Connection]:
        if self._connection is not None and not self._connection.lost:
            return succeed(self._connection)
        waiting: Deferred[_Connection] = Deferred()
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            endpoint = UNIXClientEndpoint(self._reactor, self._socket, timeout=5)
            connectProtocol(endpoint, _Connection()).addBoth(self._tell)
        return waiting

    def _tell(self, result: _Connection | Failure) -> None:
        if isinstance(result, _Connection):
            self._connection = result
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(result)

    def _unavailable(self, why: str) -> VolumeUnavailable:
        return VolumeUnavailable(
            f"the XFS agent at {self._socket} {why}; see to it that storage-proxy-xfs-agent runs,"
            " that this user may use its socket, and what its log says"
        )
