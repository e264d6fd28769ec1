"""
Killed between any two steps, and put right by reconciling: no project is used twice, and no folder
is left without its limit.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from tests.xfs import kernel
from tests.xfs.crash import IDS, Mortal

MEBI = 1 << 20
LIMIT = 8 * MEBI


class CrashCase(SynchronousTestCase):
    """A test with a volume and a registry of its own."""

    def setUp(self) -> None:
        self.volume = kernel.mount() / uuid4().hex
        self.volume.mkdir()
        self.addCleanup(shutil.rmtree, self.volume)
        self.registry = Path(self.mktemp()).resolve()
        self.registry.mkdir(parents=True)
        self.mortal = Mortal(self.volume, self.registry)
        self.addCleanup(self.mortal.close)
        # Those of the tests before this one.
        self.before = {number for number in kernel.charges() if number in IDS}
        self.addCleanup(self.lift)

    def lift(self) -> None:
        """Leave no limits to the next test."""
        for number, charge in kernel.charges().items():
            if number in IDS and charge.limit:
                kernel.set_limit(number, 0)

    def folder(self) -> Path:
        """Make a directory where a vfolder lies."""
        digits = uuid4().hex
        path = self.volume / digits[:2] / digits[2:4] / digits[4:]
        path.mkdir(parents=True)
        return path

    def limited_folder(self) -> Path:
        """Make a vfolder, with its limit and a file."""
        path = self.folder()
        self.mortal.do("allocate", path, LIMIT)
        (path / "file").write_bytes(bytes(MEBI))
        return path

    def folders(self) -> Iterator[Path]:
        """All vfolders of the volume."""
        return self.volume.glob("??/??/*")

    def recorded(self) -> dict[str, int]:
        """Directories that the registry has, with their projects."""
        try:
            text = (self.registry / "projects").read_text()
        except FileNotFoundError:
            return {}
        return {path: int(number) for number, path in (line.split(":", 1) for line in text.split())}

    def assert_sound(self, *limited: Path) -> None:
        """
        Check that each folder has a project of its own, as recorded, and that all in it belongs to
        that; that these have their limit; and that nothing else has one.
        """
        found = {path: kernel.project(path) for path in self.folders()}
        numbers = [project.id for project in found.values()]
        self.assertEqual(len(set(numbers)), len(numbers), "one project, two folders")
        charges = kernel.charges()
        for path, project in found.items():
            self.assertIn(project.id, IDS)
            self.assertTrue(project.inherits)
            for child in path.iterdir():
                self.assertEqual(kernel.project(child).id, project.id)
            if path in limited:
                self.assertEqual(charges[project.id].limit, LIMIT)
        self.assertEqual(
            self.recorded(), {str(path): project.id for path, project in found.items()}
        )
        others = {one for one, charge in charges.items() if one in IDS and charge.limit}
        self.assertLessEqual(others, set(numbers), "a limit without a folder")

    def reconcile(self) -> list[str]:
        """Reconcile, in a process that lives; what was found."""
        result: list[str] = self.mortal.do("reconcile").result
        return result

    def at_each_step(
        self, prepare: Callable[[], tuple[Any, ...]], operation: str
    ) -> Iterator[tuple[Any, ...]]:
        """
        Do the same again and again, and be killed after the first step, after the second one…

        :param prepare: makes what the operation is given.
        :return: those, each time after it was killed.
        """
        for count in itertools.count(1):
            arguments = prepare()
            outcome = self.mortal.do(operation, *arguments, die_after=count)
            if not outcome.killed:
                self.assertGreater(count, 2, "it was killed at all")
                return
            yield arguments


class CrashTests(CrashCase):
    def test_allocate(self) -> None:
        """A folder that was being made: what has a project has its limit."""
        limited = [self.limited_folder()]
        for path, _ in self.at_each_step(lambda: (self.folder(), LIMIT), "allocate"):
            number = kernel.project(path).id
            if number:
                self.assertEqual(kernel.charges()[number].limit, LIMIT)
                limited.append(path)
            self.reconcile()
            self.assert_sound(*limited)
            if number:
                self.assertEqual(kernel.project(path).id, number)

    def test_allocate_again(self) -> None:
        """Who was killed and asks again gets one project, with its limit."""
        limited = [self.limited_folder()]
        for path, _ in self.at_each_step(lambda: (self.folder(), LIMIT), "allocate"):
            self.mortal.do("allocate", path, LIMIT)
            limited.append(path)
        self.reconcile()
        self.assert_sound(*limited)

    def test_set_limit(self) -> None:
        """A limit that was being changed is the one before or the new one."""

        def prepare() -> tuple[Path, int]:
            path = self.folder()
            self.mortal.do("allocate", path, 4 * MEBI)
            return path, LIMIT

        for path, _ in self.at_each_step(prepare, "set_limit"):
            self.reconcile()
            self.assert_sound()
            limit = kernel.charges()[kernel.project(path).id].limit
            self.assertIn(limit, (4 * MEBI, LIMIT))

    def test_release(self) -> None:
        """A folder that was being released leaves neither its limit nor its id behind."""
        kept = self.limited_folder()

        def prepare() -> tuple[int]:
            path = self.limited_folder()
            number = kernel.project(path).id
            shutil.rmtree(path)
            # XFS counts what was removed for a moment more.
            os.sync()
            return (number,)

        for _ in self.at_each_step(prepare, "release"):
            self.reconcile()
            self.assert_sound(kept, last)
            self.assert_sound(kept, self.limited_folder())

    def test_reconcile(self) -> None:
        """Reconciling itself can be killed, and done again."""
        kept, last = self.limited_folder(), self.limited_folder()

        def prepare() -> tuple[()]:
            nonlocal last
            shutil.rmtree(last)
            last = self.limited_folder()
            kernel.set_project(last, 1)
            (last / "escaped").write_bytes(bytes(MEBI))
            (self.registry / "projid").unlink()
            return ()

        for _ in self.at_each_step(prepare, "reconcile"):
            self.reconcile()
            self.assert_sound(kept, last)
