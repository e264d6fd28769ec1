"""
Killed between any two steps, and put right by reconciling: no project is used twice, and no folder
is left without its limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.xfs import kernel
from tests.xfs.case import LIMIT, MEBI, ProjectsCase


class CrashTests(ProjectsCase):
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
            self.remove(path)
            return (number,)

        for _ in self.at_each_step(prepare, "release"):
            self.reconcile()
            self.assert_sound(kept)
            self.assert_sound(kept, self.limited_folder())

    def test_reconcile(self) -> None:
        """Reconciling itself can be killed, and done again."""
        kept, last = self.limited_folder(), self.limited_folder()

        def prepare() -> tuple[()]:
            nonlocal last
            self.remove(last)
            last = self.limited_folder()
            kernel.set_project(last, 1)
            (last / "escaped").write_bytes(bytes(MEBI))
            (self.registry / "projid").unlink()
            return ()

        for _ in self.at_each_step(prepare, "reconcile"):
            self.reconcile()
            self.assert_sound(kept, last)
