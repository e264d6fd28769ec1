"""
What the owner of several folders does to get out of a limit, or to stop reconciling; and what an
administrator has set up himself.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path
from uuid import uuid4

from storageproxy.vfolder import VFolderID
from tests.xfs import kernel, services
from tests.xfs.case import LIMIT, MEBI, ProjectsCase


class DeletionTests(ProjectsCase):
    """He gives the project of one folder to another one, and has that deleted."""

    def setUp(self) -> None:
        super().setUp()
        self.victim = self.limited_folder()
        self.first, self.second = self.owned_folder(), self.owned_folder()
        self.numbers = {path: kernel.project(path).id for path in (self.first, self.second)}

    def deleted(self, path: Path) -> None:
        """Delete a folder, and see that the others have their limits after a round."""
        left = {self.victim, self.first, self.second} - {path}
        self.delete(path)
        self.mortal.do("empty_trash")
        charges = kernel.charges()
        for other in left:
            self.assertEqual(charges[self.recorded()[str(other)]].limit, LIMIT)
        self.reconcile()
        self.assert_sound(*left)
        for other in left & set(self.numbers):
            self.assertEqual(kernel.project(other).id, self.numbers[other])
        self.assertEqual(self.reconcile(), [])

    def test_left_and_deleted(self) -> None:
        """He leaves the project of the first one, gives it to the second, and deletes that."""
        self.give(self.second, self.numbers[self.first])
        self.give(self.first, 0)
        self.deleted(self.second)

    def test_swapped(self) -> None:
        """He swaps them."""
        self.give(self.second, self.numbers[self.first])
        self.give(self.first, self.numbers[self.second])
        self.deleted(self.second)

    def test_first_deleted(self) -> None:
        """He deletes the first one, whose project the second has."""
        self.give(self.second, self.numbers[self.first])
        self.deleted(self.first)

    def test_inside(self) -> None:
        """A directory in the second one has it."""
        self.as_owner("mkdir", self.second / "sub")
        self.give(self.second / "sub", self.numbers[self.first])
        self.as_owner("touch", self.second / "sub" / "file")
        self.deleted(self.first)
        self.assertEqual(kernel.project(self.second / "sub" / "file").id, self.numbers[self.second])

    def test_of_somebody_else(self) -> None:
        """He takes that of somebody else."""
        self.give(self.second, kernel.project(self.victim).id)
        self.deleted(self.second)

    def test_registry_lost(self) -> None:
        """He does that when the registry is lost."""
        self.give(self.second, self.numbers[self.first])
        for name in ("projects", "projid"):
            (self.registry / name).unlink()
        self.delete(self.second)
        self.mortal.do("empty_trash")
        self.reconcile()
        self.assert_sound(self.victim, self.first)


class LimitTests(ProjectsCase):
    """He takes an empty folder out of its project, and waits until it is limited anew."""

    def emptied(self, path: Path) -> None:
        """Leave a project, with a folder that was made empty."""
        self.as_owner("rm", "-f", path / "file")
        self.give(path, 0)

    def refused(self, vfid: VFolderID, why: str) -> None:
        """Try to limit a folder."""
        error = self.assertRaises(RuntimeError, self.mortal.do, "set_quota", vfid, 2 * LIMIT)
        self.assertIn(why, str(error))

    def test_emptied(self) -> None:
        """It gets no other project, but its own again, with the limit."""
        path = self.owned_folder()
        number = kernel.project(path).id
        self.emptied(path)
        self.refused(self.vfid(path), "reconciling gives it back")
        self.assertEqual(self.recorded(), {str(path): number})
        error = self.assertRaises(RuntimeError, self.mortal.do, "get_quota", self.vfid(path))
        self.assertIn("reconciling gives it back", str(error))
        self.told(path, "had project 0")
        self.assertEqual(kernel.project(path).id, number)
        self.assert_sound(path)
        self.mortal.do("set_quota", self.vfid(path), 2 * LIMIT)
        self.assertEqual(kernel.charges()[number].limit, 2 * LIMIT)

    def test_in_scope(self) -> None:
        """In a scope that is limited as a whole it gets none, whatever he makes of its own."""
        vfid = VFolderID.parse(f"user:{uuid4()}/{uuid4()}")
        assert vfid.scope is not None
        self.mortal.do("create_scope", vfid.scope, LIMIT)
        self.mortal.do("create_folder", vfid, None, None)
        path = self.volume.joinpath(*vfid.layout)
        number = kernel.project(path).id
        os.chown(path, services.USER, services.USER)
        for foreign in (0, 7):
            self.give(path, foreign)
            self.refused(vfid, "the quota scope is limited")
            self.reconcile()
            self.assertEqual(kernel.project(path), (number, True))
            self.assertEqual(self.recorded(), {str(self.volume / vfid.scope.layout[0]): number})


class ObstacleTests(ProjectsCase):
    """One folder cannot be looked at; the others are put right all the same."""

    def setUp(self) -> None:
        super().setUp()
        folders = sorted(self.owned_folder() for _ in range(3))
        self.before, self.path, self.behind = folders
        self.number = kernel.project(self.path).id
        for path in (self.before, self.behind):
            self.give(path, 7)

    def told(self, *words: object) -> None:
        super().told(*words)
        for path in (self.before, self.behind):
            self.assertNotEqual(kernel.project(path).id, 7)

    def mount(self, *arguments: str | Path) -> None:
        subprocess.run(["mount", *arguments], check=True)
        self.addCleanup(subprocess.run, ["umount", arguments[-1]], check=True)

    def test_deep(self) -> None:
        """Neither depth nor the length of a path is a limit."""
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(self.path)
        for _ in range(80):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        kernel.set_project(Path(), 0)
        Path("large").write_bytes(bytes(10 * MEBI))
        self.told(self.path, "2 files and directories")
        self.assertEqual(kernel.project(Path("large")).id, self.number)
        os.chdir(here)
        self.assert_sound(self.before, self.path, self.behind)

    def test_lease(self) -> None:
        """A file with a lease is told, and who may know more."""
        self.addCleanup(signal.signal, signal.SIGIO, signal.signal(signal.SIGIO, signal.SIG_IGN))
        with (self.path / "file").open("r+b") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            self.told(self.path, "1 files and directories", "lease", "/proc/locks")
        self.reconcile()
        self.assert_sound(self.before, self.path, self.behind)

    def test_mounted(self) -> None:
        """What is mounted in a folder is left alone, also when it is of the same file system."""
        for name in ("other", "same"):
            (self.path / name).mkdir()
        elsewhere = self.volume / "elsewhere"
        (elsewhere / "sub").mkdir(parents=True)
        self.mount("-t", "tmpfs", "none", self.path / "other")
        self.mount("--bind", elsewhere, self.path / "same")
        self.told(self.path, "2 files and directories", "umount")
        for path in (elsewhere, elsewhere / "sub"):
            self.assertEqual(kernel.project(path), (0, False))

    def test_mounted_over(self) -> None:
        """A folder that is hidden by a mount is not taken for one that is gone."""
        self.mount("-t", "tmpfs", "none", self.path)
        self.told(self.path, "could not be looked at", "umount")
        error = self.assertRaises(RuntimeError, self.mortal.do, "release", self.number)
        self.assertIn("is there", str(error))
        self.assertEqual(kernel.charges()[self.number].limit, LIMIT)
        self.assertEqual(self.recorded()[str(self.path)], self.number)


class AdministratorTests(ProjectsCase):
    """Somebody else has projects of his own in the volume."""

    def test_inside(self) -> None:
        """What he has set up stays, with line and limit; so does a folder that he claims."""
        path, claimed, gone = (self.owned_folder() for _ in range(3))
        inside, named = path / "his", self.ids[-1]
        inside.mkdir()
        numbers = {inside: 70_000, path / "file": 70_001, claimed: named, gone / "his": 70_002}
        lines = [f"{number}:{place}/\n" for place, number in numbers.items()]
        for name, more in (("projects", lines), ("projid", [f"his:{named}\n"])):
            file = self.registry / name
            file.write_text("".join([*more, file.read_text()]))
        for place, number in numbers.items():
            kernel.set_limit(number, LIMIT)
            self.addCleanup(kernel.set_limit, number, 0)
            if place.exists():
                kernel.set_project(place, number, inherits=place.is_dir())
        self.as_owner("mkdir", path / "sub")
        self.give(path / "sub", 7)
        self.remove(gone)
        self.told(claimed, named, "left alone")
        error = self.assertRaises(RuntimeError, self.mortal.do, "release", named)
        self.assertIn("none of ours", str(error))
        charges = kernel.charges()
        for place, number in numbers.items():
            self.assertEqual(charges[number].limit, LIMIT)
            if place.exists():
                self.assertEqual(kernel.project(place), (number, place.is_dir()))
        self.assertEqual(kernel.project(path / "sub").id, kernel.project(path).id)
        self.assertTrue((self.registry / "projects").read_text().startswith("".join(lines)))
        self.assertTrue((self.registry / "projid").read_text().startswith(f"his:{named}\n"))
