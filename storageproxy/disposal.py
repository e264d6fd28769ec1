"""
The emptying of the trash, a moment after something was put into it.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.internet.task import deferLater

from storageproxy.background import Background
from storageproxy.interfaces import IVolume

#: Seconds for which more is waited for: managers delete many vfolders at a time, and the trash is
#: looked through as a whole.
MOMENT = 2.0


@define(eq=False)
class Disposal:
    """
    Has the trash of volumes emptied.

    :param reactor: for the moment.
    :param background: where it is done.
    """

    _reactor: Any
    _background: Background
    _asked: set[str] = field(factory=set)

    def soon(self, volume: IVolume) -> None:
        """Empty the trash of a volume, once for all that is put into it in the next moment."""
        if volume.name not in self._asked:
            self._asked.add(volume.name)
            self._background.start("Emptying the trash", self._empty(volume))

    async def _empty(self, volume: IVolume) -> None:
        await deferLater(self._reactor, MOMENT)
        self._asked.discard(volume.name)
        await volume.empty_trash()
