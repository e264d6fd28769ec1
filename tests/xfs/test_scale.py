"""
Many projects, and several daemons at once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase, TestCase

from backends.xfs.interfaces import Limit
from backends.xfs.remote import RemoteProjects
from storageproxy.beneath import Directory
from tests.xfs import kernel, services

MEBI = 1 << 20


class TwoDaemonsTests(SynchronousTestCase):
    """Two daemons with an agent each, on one volume and one registry."""

    folders = 500

    def test_at_once(self) -> None:
        """500 folders that both make at once have 500 projects, and those with a limit have it."""
        daemons = [services.daemon(name) for name in ("one", "two")]

        def create(number: int) -> tuple[Path, int]:
            daemon, vfid = daemons[number % 2], str(uuid4())
            # Setting one takes four times as long as all the rest, on one processor.
            limit = 0 if number % 5 else (number + 1) * MEBI
            params: dict[str, Any] = {"volume": "local", "vfid": vfid, "options": {"quota": limit}}
            daemon.manager("POST", "/folder/create", params)
            return daemon.path(vfid), limit

        with ThreadPoolExecutor(16) as managers:
            made = dict(managers.map(create, range(self.folders)))
        projects = {path: kernel.project(path) for path in made}
        numbers = {project.id for project in projects.values()}
        self.assertEqual(len(numbers), self.folders)
        self.assertTrue(all(project.inherits for project in projects.values()))
        charges = kernel.charges()
        self.assertEqual(
            {path: charges[project.id].limit for path, project in projects.items()}, made
        )
        recorded = services.agent().recorded()
        self.assertEqual(
            {path: recorded[str(path)] for path in made},
            {path: project.id for path, project in projects.items()},
        )
        self.assertLessEqual(numbers, services.agent().named())


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
