"""
A volume with very many projects.
"""

from __future__ import annotations

from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from backends.xfs.interfaces import Limit
from backends.xfs.remote import RemoteProjects
from storageproxy.beneath import Directory
from tests.xfs import kernel, services

MEBI = 1 << 20


class ManyTests(TestCase):
    """2,000 projects on a volume, a tenth of which are limited."""

    count = 2000
    limited = 10
    timeout = 240

    def setUp(self) -> None:
        self.path = next(services.spare_volumes())
        socket = str(services.agent().socket)
        self.projects = RemoteProjects(reactor, socket, str(self.path))
        self.addCleanup(self.projects.disconnect)

    def limit(self, number: int) -> int:
        """What a folder may hold, 0 for anything."""
        return 0 if number % self.limited else (number + 1) * MEBI

    async def make(self, number: int) -> tuple[Path, int]:
        """Make a folder: where it lies, and its project."""
        path = self.path / "ab" / f"{number % 256:02x}" / f"{number:028x}"
        path.mkdir(parents=True)
        with Directory.open_root(str(path)) as folder:
            project = await self.projects.allocate(folder.descriptor)
            if limit := self.limit(number):
                await self.projects.set_limit(folder.descriptor, Limit(limit))
            return path, project

    async def test_many(self) -> None:
        """Each has its own, with its limit, and there is nothing to reconcile."""
        made: dict[Path, int] = {}
        for begin in range(0, self.count, 50):
            some = [
                Deferred.fromCoroutine(self.make(number)) for number in range(begin, begin + 50)
            ]
            made.update(await gatherResults(some))
        self.assertEqual(len(set(made.values())), self.count)
        charges = kernel.charges()
        for number, (path, project) in enumerate(made.items()):
            self.assertEqual(kernel.project(path), (project, True))
            self.assertEqual(charges[project].limit, self.limit(number))
        self.assertEqual(await self.projects.reconcile(), [])
        recorded = services.agent().recorded()
        self.assertEqual({path: recorded[str(path)] for path in made}, made)
        path, project = list(made.items())[self.count // 2]
        with Directory.open_root(str(path)) as folder:
            account = await self.projects.set_limit(folder.descriptor, Limit(7 * MEBI))
            self.assertEqual((account.project, account.limit.size), (project, 7 * MEBI))
