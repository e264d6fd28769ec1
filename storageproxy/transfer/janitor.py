"""
Takes away what nobody will come back for: stale upload sessions and the remains of deleted folders.
Volumes that need more than that are looked after, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from storageproxy.beneath import Directory
from storageproxy.interfaces import IMaintained, IVolume
from storageproxy.threads import Progress
from storageproxy.transfer import staging
from storageproxy.volumes import Volumes

#: Seconds between two rounds; less where sessions live for less than four hours.
INTERVAL = 3600.0

_PREFIX = re.compile(r"[0-9a-f]{2}")
_FOLDER = re.compile(r"[0-9a-f]{28}")
_SCOPE = re.compile(r"[0-9a-f]{32}")


@define(eq=False)
class Janitor(Service):
    """
    Goes round all volumes, at the start and then every hour or so; what volumes need beside that
    (:class:`~storageproxy.interfaces.IMaintained`) is done at the start, and as often as they say.

    :param reactor: for the rounds.
    :param lifetime: seconds after which the token of a session has expired.
    :param clock: returns seconds since the epoch, as the files' times do.
    """

    volumes: Volumes
    reactor: IReactorTime
    lifetime: float
    clock: Callable[[], float]
    _log: Logger = field(factory=lambda: Logger("storageproxy.janitor"))
    _rounds: list[LoopingCall] = field(factory=list)
    _maintaining: set[Deferred[None]] = field(factory=set)

    def startService(self) -> None:
        """Begin the rounds: one for each volume, so that none waits for another that hangs."""
        super().startService()
        for volume in self.volumes:
            self._begin(self._clean, volume, max(1.0, min(INTERVAL, self.lifetime / 4)))
            if IMaintained.providedBy(volume) and volume.maintenance_interval:
                self._begin(self._maintain, volume, volume.maintenance_interval)

    def stopService(self) -> None:
        """End them; a round under way is left to its thread."""
        super().stopService()
        rounds, self._rounds = self._rounds, []
        for one in rounds:
            one.stop()
        for maintaining in list(self._maintaining):
            maintaining.cancel()

    def _begin(
        self, work: Callable[[Any], Coroutine[Any, Any, None]], volume: Any, interval: float
    ) -> None:
        rounds = LoopingCall(lambda: Deferred.fromCoroutine(work(volume)))
        rounds.clock = self.reactor
        rounds.start(interval)
        self._rounds.append(rounds)

    async def _maintain(self, volume: Any) -> None:
        # It may be at it for hours, which nobody waits for when the daemon ends.
        maintaining = Deferred.fromCoroutine(volume.maintain())
        self._maintaining.add(maintaining)
        try:
            await self._try(volume, "it cannot be maintained", maintaining)
        finally:
            self._maintaining.discard(maintaining)

    async def _clean(self, volume: IVolume) -> None:
        if await self._try(volume, "it cannot be used", volume.check()):
            await self._try(volume, "its trash cannot be emptied", volume.empty_trash())
            await self._try(volume, "stale uploads cannot be removed", self._sweep(volume))

    async def _sweep(self, volume: IVolume) -> None:
        before = self.clock() - self.lifetime
        removed = await volume.threads.run_long(
            lambda progress: sweep(volume.open_root, before, progress), "looking for stale uploads"
        )
        if removed:
            self._log.info(
                "Volume {name}: {removed} stale files of uploads are removed.",
                name=volume.name,
                removed=removed,
            )

    async def _try(self, volume: IVolume, what: str, work: Awaitable[None]) -> bool:
        try:
            await work
            return True
        except CancelledError:
            return False
        except Exception as error:
            self._log.warn(
                "Volume {name}: {what}: {error}. It is tried again in the next round.",
                name=volume.name,
                what=what,
                error=str(error),
            )
            return False


def sweep(open_root: Callable[[], Directory], before: float, progress: Progress) -> int:
    """
    Remove stale upload sessions from all vfolders of a volume. Blocks.

    :param before: seconds since the epoch; younger sessions stay.
    :return: how many files were removed.
    """
    removed = 0
    with open_root() as root:
        staging.sweep_notes(root, before, progress.step)
        for folder in vfolders(root):
            with folder:
                progress.step()
                # One that its owner has closed to us is no reason to leave the others.
                with suppress(OSError):
                    removed += staging.sweep(folder, before, progress.step)
    return removed


def vfolders(root: Directory) -> Iterator[Directory]:
    """
    All vfolders of a volume, in both layouts, open.

    Directories above vfolders that are empty, as whoever deleted the last one was killed, go.
    """
    for name in os.listdir(root.descriptor):
        if _PREFIX.fullmatch(name):
            yield from _below(root, name, (_PREFIX, _FOLDER))
        elif _SCOPE.fullmatch(name):
            yield from _below(root, name, (_PREFIX, _PREFIX, _FOLDER))


def _below(parent: Directory, name: str, names: tuple[re.Pattern[str], ...]) -> Iterator[Directory]:
    with suppress(OSError):
        directory = parent.descend(name, links=False)
        if not names:
            yield directory
            return
        with directory:
            found = os.listdir(directory.descriptor)
            for below in found:
                if names[0].fullmatch(below):
                    yield from _below(directory, below, names[1:])
        if not found and _PREFIX.fullmatch(name):
            os.rmdir(name, dir_fd=parent.descriptor)
