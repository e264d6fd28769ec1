"""
Killed between any two steps, and put right by reconciling: no project is used twice, and no folder
is left without its limit.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from backends.xfs.creations import CREATING
from backends.xfs.interfaces import Limit
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
                self.assertGreater(count, 1, "it was killed at all")
                return
            yield arguments

    def test_create(self) -> None:
        """A folder that was being made is there with its limit, or not at all."""
        limited = [self.limited_folder()]

        def prepare() -> tuple[Any, ...]:
            return self.new_folder()[0], None, LIMIT

        for vfid, *_ in self.at_each_step(prepare, "create_folder"):
            # As the daemon does when it starts.
            self.mortal.do("empty_trash")
            self.reconcile()
            path = self.volume.joinpath(*vfid.layout)
            if path.exists():
                limited.append(path)
            self.assert_sound(*limited)
        self.assertGreater(len(limited), 1, "it was also killed when the folder was made")

    def test_create_used(self) -> None:
        """One into which somebody has put something meanwhile has its limit and its mode."""

        def prepare() -> tuple[Any, ...]:
            return self.new_folder()[0], 0o750, LIMIT

        used = []
        for vfid, *_ in self.at_each_step(prepare, "create_folder"):
            path = self.volume.joinpath(*vfid.layout)
            if path.exists():
                (path / "file").write_bytes(bytes(MEBI))
                used.append(path)
        # As the daemon does each hour, before and after the agent has gone round.
        self.mortal.do("empty_trash")
        self.reconcile()
        self.mortal.do("empty_trash")
        self.assertGreater(len(used), 1)
        self.assert_sound(*used)
        self.assertEqual({path.stat().st_mode & 0o777 for path in used}, {0o750})
        self.assertEqual(list((self.volume / CREATING).iterdir()), [])

    def test_create_again(self) -> None:
        """Who asks for the same folder again, at once, gets it with its limit."""
        limited = [self.limited_folder()]

        def prepare() -> tuple[Any, ...]:
            return self.new_folder()[0], None, LIMIT

        for vfid, *_ in self.at_each_step(prepare, "create_folder"):
            with contextlib.suppress(RuntimeError):
                # It may be there.
                self.mortal.do("create_folder", vfid, None, LIMIT)
            limited.append(self.volume.joinpath(*vfid.layout))
        self.reconcile()
        self.assert_sound(*limited)

    def test_allocate(self) -> None:
        """A project that was being given to a directory is on it, or another one is."""
        kept = self.limited_folder()
        for (path,) in self.at_each_step(lambda: (self.folder(),), "allocate"):
            number = kernel.project(path).id
            self.reconcile()
            self.assert_sound(kept)
            if number:
                self.assertEqual(kernel.project(path).id, number)

    def test_set_limit(self) -> None:
        """A limit that was being changed is the one before or the new one."""

        def prepare() -> tuple[Path, Limit]:
            return self.limited_folder(), Limit(4 * MEBI)

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

    def test_delete(self) -> None:
        """Of a folder that was deleted nothing is left after the next start and one round."""
        kept, number = self.limited_folder(), 0

        def prepare() -> tuple[()]:
            nonlocal number
            path = self.limited_folder()
            number = kernel.project(path).id
            self.delete(path)
            return ()

        for _ in self.at_each_step(prepare, "empty_trash"):
            self.mortal.do("empty_trash")
            self.settle(number)
            self.reconcile()
            self.assert_sound(kept)
            self.assertNotIn(f":{number}\n", (self.registry / "projid").read_text())

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
