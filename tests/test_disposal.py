"""
The trash is emptied a moment after something was put into it.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from storageproxy.background import Background
from storageproxy.disposal import MOMENT, Disposal


class Volume:
    """Tells how often its trash is emptied."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.emptied: list[Deferred[None]] = []

    async def empty_trash(self) -> None:
        emptying: Deferred[None] = Deferred()
        self.emptied.append(emptying)
        await emptying


class DisposalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.background = Background()
        disposal = Disposal(self.clock, self.background)
        self.volume, self.other = Volume("one"), Volume("other")
        self.soon: Any = disposal.soon

    def test_once(self) -> None:
        """What is put in within a moment goes together."""
        for _ in range(3):
            self.soon(self.volume)
            self.clock.advance(MOMENT / 4)
        self.assertEqual(self.volume.emptied, [])
        self.clock.advance(MOMENT)
        self.assertEqual(len(self.volume.emptied), 1)

    def test_again(self) -> None:
        """What is put in while the trash is emptied is seen to, as well."""
        for number in (1, 2):
            self.soon(self.volume)
            self.clock.advance(MOMENT)
            self.assertEqual(len(self.volume.emptied), number)

    def test_volumes(self) -> None:
        """No volume waits for another."""
        self.soon(self.volume)
        self.soon(self.other)
        self.clock.advance(MOMENT)
        self.assertEqual((len(self.volume.emptied), len(self.other.emptied)), (1, 1))

    def test_end(self) -> None:
        """Who waits for the background waits for it, too."""
        self.soon(self.volume)
        waiting = Deferred.fromCoroutine(self.background.wait())
        self.clock.advance(MOMENT)
        self.assertNoResult(waiting)
        self.volume.emptied[0].callback(None)
        self.successResultOf(waiting)
