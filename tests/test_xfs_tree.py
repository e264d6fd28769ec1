"""
The directories of a volume, on a kernel in memory.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from backends.xfs.testing import MemoryKernel
from backends.xfs.tree import Tree
from storageproxy.beneath import Directory
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
            found = self.tree.folders(root, self.missed)
            return [(self.tree.relative(path), scope) for path, scope in found]

    def missed(self, path: str, error: OSError) -> None:
        raise error

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
            found = list(tree.folders(root, self.missed))
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

    def test_missed(self) -> None:
        """What cannot be looked at is told, and the rest is found."""
        folder = Path(self.top, "ab", "cd", "0" * 28)
        folder.mkdir(parents=True)
        Path(self.top, "ef", "01").mkdir(parents=True)
        descend = Directory.descend

        def refuse(directory: Directory, path: str, **how: bool) -> Directory:
            if path == "ef":
                raise PermissionError(errno.EACCES, "Permission denied")
            if path == "ab":
                self.assertEqual(how, {"links": False, "mounts": False})
            return descend(directory, path, **how)

        self.patch(Directory, "descend", refuse)
        missed: list[tuple[str, int | None]] = []
        with self.tree.open() as root:
            found = list(
                self.tree.folders(root, lambda path, error: missed.append((path, error.errno)))
            )
        self.assertEqual(found, [(str(folder), False)])
        self.assertEqual(missed, [(os.path.join(self.top, "ef"), errno.EACCES)])

    def test_find(self) -> None:
        """Links are none; what is hidden by a mount is there, and is not looked at."""
        Path(self.top, "a", "b").mkdir(parents=True)
        Path(self.top, "link").symlink_to("a")
        with self.tree.open() as root:
            for name in ("x", "link", "link/b", "a/b/c"):
                self.assertIsNone(self.tree.find(root, os.path.join(self.top, name)))
            found = self.tree.find(root, os.path.join(self.top, "a/b"))
            assert found is not None
            found.close()
        proc = Tree("/", self.kernel)
        with proc.open() as root, self.assertRaises(OSError) as caught:
            proc.find(root, "/proc/self")
        self.assertEqual(caught.exception.errno, errno.EXDEV)
