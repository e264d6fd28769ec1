"""
The directories of a volume, on a kernel in memory.
"""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from backends.xfs.interfaces import Mark
from backends.xfs.testing import MemoryKernel
from backends.xfs.tree import Seizure, Tree
from storageproxy.beneath import Directory
from storageproxy.removal import remove
from storageproxy.threads import Abandoned, Progress
from storageproxy.vfolder import VFolderID
from tests.strategies import QUICK, vfolder_ids


class TreeTests(SynchronousTestCase):
    def setUp(self) -> None:
        top = Path(self.mktemp()).absolute()
        top.mkdir(parents=True)
        self.top = os.path.realpath(top)
        self.kernel = MemoryKernel(self.top)
        self.tree = Tree(self.top, self.kernel)

    def folders(self) -> list[tuple[str, bool]]:
        with self.tree.open() as root:
            return [(self.tree.relative(path), scope) for path, scope in self.tree.folders(root)]

    def seize(self, path: str, project: int, others: tuple[str, ...] = ()) -> Seizure:
        with Directory.open_root(path) as top:
            return self.tree.seize(top, project, others)

    def test_mount(self) -> None:
        """The mount point is the last directory above that is on the same file system."""
        mount = self.tree.mount
        self.assertTrue(os.path.ismount(mount))
        self.assertEqual(os.stat(mount).st_dev, os.stat(self.top).st_dev)
        self.assertEqual(Tree("/proc/self", self.kernel).mount, "/proc")
        self.assertEqual(Tree("/", self.kernel).mount, "/")

    def test_paths(self) -> None:
        """What begins with the volume's path, and no more, is in it."""
        for top in ("/vol", "/vol/"):
            tree = Tree(top, self.kernel)
            self.assertTrue(tree.has("/vol/a/b"))
            self.assertEqual(tree.relative("/vol/a/b"), "a/b")
            for path in ("/vol", "/volume/a", "/", "vol/a"):
                self.assertFalse(tree.has(path))
        self.assertEqual(Tree("/", self.kernel).relative("/a/b"), "a/b")

    @QUICK
    @given(st.lists(vfolder_ids(), max_size=5))
    def test_folders(self, vfids: list[VFolderID]) -> None:
        """All vfolders are found, in both layouts, and the scopes before those in them."""
        directory = Path(self.top, os.urandom(8).hex())
        directory.mkdir()
        tree = Tree(str(directory), self.kernel)
        for vfid in vfids:
            directory.joinpath(*vfid.layout).mkdir(parents=True, exist_ok=True)
        with tree.open() as root:
            found = list(tree.folders(root))
        expected = {(str(directory.joinpath(*vfid.layout)), False) for vfid in vfids}
        scopes = {vfid.scope.owner.hex for vfid in vfids if vfid.scope is not None}
        expected |= {(str(directory / scope), True) for scope in scopes}
        self.assertEqual(set(found), expected)
        self.assertEqual(len(found), len(expected))
        for index, (path, is_scope) in enumerate(found):
            if is_scope:
                self.assertFalse(any(one.startswith(path) for one, _ in found[:index]))

    def test_links_are_no_folders(self) -> None:
        """A link in the place of a folder, or above it, is none."""
        real = Path(self.top, "ab", "cd", "0" * 28)
        real.mkdir(parents=True)
        real.with_name("1" * 28).symlink_to(real)
        Path(self.top, "ef").symlink_to("ab")
        self.assertEqual(self.folders(), [(f"ab/cd/{'0' * 28}", False)])

    def test_seize(self) -> None:
        """A tree is given to a project, but for what has one of its own."""
        top = self.kernel.make(os.path.join(self.top, "a"))
        other = self.kernel.make(self.kernel.make(os.path.join(top, "b")) + "/c")
        self.kernel.make(os.path.join(other, "file"), b"")
        file = self.kernel.make(os.path.join(top, "b", "file"), b"")
        os.symlink("file", os.path.join(top, "link"))
        self.assertEqual(self.seize(top, 7, ("b/c",)), Seizure(7, entries=4, changed=3, closed=0))
        self.assertEqual(self.kernel.of(top), Mark(7, True))
        self.assertEqual(self.kernel.of(file), Mark(7, False))
        self.assertEqual(self.kernel.of(other), Mark(0, False))
        self.assertEqual(self.seize(top, 7, ("b/c",)).changed, 0)
        self.assertEqual(self.seize(top, 7), Seizure(7, entries=6, changed=2, closed=0))

    def test_deep(self) -> None:
        """Depth is no limit."""
        top = self.kernel.make(os.path.join(self.top, "a"))
        here = os.getcwd()
        # Trial cannot remove a path of this length.
        volume = Directory.open_root(self.top)
        self.addCleanup(volume.close)
        self.addCleanup(remove, volume, "a")
        self.addCleanup(os.chdir, here)
        os.chdir(top)
        for _ in range(60):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        self.assertEqual(self.seize(top, 7), Seizure(7, entries=61, changed=61, closed=0))

    def test_abandoned(self) -> None:
        """It ends when nobody waits for it any more."""
        top = self.kernel.make(os.path.join(self.top, "a"))
        self.kernel.make(os.path.join(top, "b"), b"")
        progress = Progress()
        progress.abandon()
        with Directory.open_root(top) as directory:
            self.assertRaises(Abandoned, self.tree.seize, directory, 7, (), progress.step)
