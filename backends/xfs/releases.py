# -*- test-case-name: tests.test_xfs_volume -*-
"""
Projects whose directories have been removed, until they are given back.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from backends.xfs.interfaces import IProjects, NotManaged

#: Seconds between two tries to release a project: XFS counts what was removed for a moment more.
LAGS = (0.02, 0.1, 0.5, 2.0)


@define(eq=False)
class Releases:
    """
    Those of one volume.

    :param volume: its name, for the log.
    :param reactor: for pauses.
    :param connected: finds the :class:`~backends.xfs.interfaces.IProjects`.
    """

    volume: str
    reactor: IReactorTime
    connected: Callable[[], IProjects]
    _gone: list[int] = field(factory=list)
    _log: Logger = field(factory=lambda: Logger("storageproxy.xfs"))

    def add(self, project: int) -> None:
        """Note that nothing is left of a directory. It may be called in any thread."""
        self._gone.append(project)

    async def release(self) -> None:
        """
        Give back what was noted.

        :raises StorageProxyError: when that cannot be done now; those that are left stay noted.
        """
        while self._gone:
            await self._release(self._gone.pop())

    async def _release(self, project: int) -> None:
        try:
            for lag in (*LAGS, None):
                if await self.connected().release(project):
                    return
                if lag is not None:
                    await deferLater(self.reactor, lag)
        except NotManaged as error:
            # The owner had given it a project that nobody is to release, or that of another one.
            self._log.info("Volume {name}: {error}", name=self.volume, error=error.message)
            return
        except BaseException:
            self._gone.append(project)
            raise
        self._log.info(
            "Volume {name}: something is still charged to project {project} of a deleted vfolder."
            " It is free when nothing is, and it was reconciled.",
            name=self.volume,
            project=project,
        )
