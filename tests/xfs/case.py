"""
A volume and its registry, with processes that work on them and may be killed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from storageproxy.vfolder import VFolderID
from tests.functional.daemon import select_pause, unprivileged
from tests.xfs import kernel, services
from tests.xfs.crash import Mortal

MEBI = 1 << 20
LIMIT = 8 * MEBI
NOTHING = kernel.Charge(0, 0, 0, 0)

_first_ids = itertools.count(1000, 100)


class ProjectsCase(SynchronousTestCase):
    """A test with a volume, a registry, and project ids of its own."""

    #: How many ids there are.
    count = 100

    def setUp(self) -> None:
        self.volume = kernel.mount() / uuid4().hex
        self.volume.mkdir()
        self.addCleanup(shutil.rmtree, self.volume)
        self.registry = Path(self.mktemp()).resolve()
        self.registry.mkdir(parents=True)
        first = next(_first_ids)
        self.ids = range(first, first + self.count)
        self.mortal = Mortal(self.volume, self.registry, self.ids)

    def new_folder(self) -> tuple[VFolderID, Path]:
        """A vfolder that does not exist, and where it would lie."""
        vfid = VFolderID.parse(str(uuid4()))
        return vfid, self.volume.joinpath(*vfid.layout)

    def folder(self) -> Path:
        """A vfolder from before there were projects."""
        _, path = self.new_folder()
        path.mkdir(parents=True)
        return path

    def limited_folder(self) -> Path:
        """Make a vfolder, with its limit and a file."""
        vfid, path = self.new_folder()
        self.mortal.do("create_folder", vfid, None, LIMIT)
        (path / "file").write_bytes(bytes(MEBI))
        return path

    def owned_folder(self) -> Path:
        """A vfolder of an ordinary user, with its limit."""
        path = self.limited_folder()
        os.chown(path, services.USER, services.USER)
        return path

    def as_owner(self, *command: str | Path) -> None:
        """What an ordinary user does."""
        subprocess.run([*unprivileged(services.USER), *command], check=True)

    def give(self, path: Path, number: int) -> None:
        """Give a directory to a project, as its owner may."""
        self.as_owner("xfs_io", "-r", "-c", f"chproj {number}", path)

    def vfid(self, path: Path) -> VFolderID:
        """The vfolder that lies there."""
        return VFolderID.parse("".join(path.parts[-3:]))

    def delete(self, path: Path) -> None:
        """Delete a vfolder as the daemon does."""
        self.assertTrue(self.mortal.do("delete_folder", self.vfid(path)).result)

    def remove(self, path: Path) -> None:
        """Remove a vfolder."""
        number = kernel.project(path).id
        shutil.rmtree(path)
        self.settle(number)

    def settle(self, number: int) -> None:
        """Wait until nothing is charged to a project. XFS counts what was removed for a moment."""
        while kernel.charges().get(number, NOTHING).inodes:
            select_pause()

    def folders(self) -> Iterator[Path]:
        """All vfolders of the volume."""
        return self.volume.glob("??/??/*")

    def recorded(self) -> dict[str, int]:
        """Directories that the registry has, with their projects."""
        return services.recorded(self.registry)

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
            self.assertIn(project.id, self.ids)
            self.assertTrue(project.inherits)
            for child in path.iterdir():
                self.assertEqual(kernel.project(child).id, project.id)
            if path in limited:
                self.assertEqual(charges[project.id].limit, LIMIT)
        self.assertEqual(
            self.recorded(), {str(path): project.id for path, project in found.items()}
        )
        others = {one for one, charge in charges.items() if one in self.ids and charge.limit}
        self.assertLessEqual(others, set(numbers), "a limit without a folder")

    def reconcile(self) -> list[str]:
        """Reconcile, in a process that lives; what was found."""
        result: list[str] = self.mortal.do("reconcile").result
        return result

    def told(self, *words: object) -> None:
        """Reconcile, and check that one line says something with all of these words."""
        lines = self.reconcile()
        self.assertTrue(
            any(all(str(word) in line for word in words) for line in lines), (words, lines)
        )
