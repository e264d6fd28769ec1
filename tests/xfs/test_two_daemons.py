"""
Two daemons at once, on one volume and one registry.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

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
