"""
Projects of inodes on a real XFS. The kernel need not have quotas; root is needed.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from backends.xfs.interfaces import Mark, Quotas
from backends.xfs.kernel import Kernel, device_of
from backends.xfs.seizure import seize
from storageproxy.beneath import Directory
from tests.engines import xfs


class MountedCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        stack = ExitStack()
        self.addCleanup(stack.close)
        self.top = stack.enter_context(xfs.mounted(str(directory)))
        self.kernel = Kernel()

    def open(self, name: str) -> int:
        descriptor = os.open(os.path.join(self.top, name), os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        return descriptor


class MarkTests(MountedCase):
    def test_marks(self) -> None:
        """What is made in a directory that hands its project on belongs to it, too."""
        os.mkdir(os.path.join(self.top, "a"))
        directory = self.open("a")
        self.assertEqual(self.kernel.mark(directory), Mark(0, False))
        self.kernel.set_mark(directory, Mark(4_294_967_294, True))
        self.assertEqual(self.kernel.mark(directory), Mark(4_294_967_294, True))
        os.mkdir(os.path.join(self.top, "a", "b"))
        Path(self.top, "a", "c").write_text("c")
        self.assertEqual(self.kernel.mark(self.open("a/b")), Mark(4_294_967_294, True))
        self.assertEqual(self.kernel.mark(self.open("a/c")), Mark(4_294_967_294, False))
        self.kernel.set_mark(directory, Mark(7, False))
        self.assertEqual(self.kernel.mark(directory), Mark(7, False))
        self.assertEqual(self.kernel.mark(self.open("a/c")), Mark(4_294_967_294, False))

    def test_other_attributes(self) -> None:
        """Whatever else was set on an inode stays."""
        path = os.path.join(self.top, "a")
        os.mkdir(path)
        subprocess.run(["xfs_io", "-c", "extsize 64k", "-c", "chattr +d", path], check=True)
        self.kernel.set_mark(self.open("a"), Mark(7, True))
        said = subprocess.run(
            ["xfs_io", "-c", "stat", path], check=True, capture_output=True, text=True
        ).stdout
        self.assertIn("fsxattr.extsize = 65536", said)
        self.assertIn("fsxattr.projid = 7", said)

    def test_no_quotas(self) -> None:
        """Mounted without quotas, it says so."""
        self.assertEqual(self.kernel.quotas(self.open(".")), Quotas.OFF)

    def test_device(self) -> None:
        """The device is found that it is mounted from."""
        self.assertTrue(device_of(self.open(".")).startswith("/dev/loop"))


class SeizeTests(MountedCase):
    """A tree is given to a project while its owner swaps directories for links that lead out."""

    def test_swapped(self) -> None:
        """Nothing outside is ever given to it."""
        outside = Path(self.top, "outside")
        outside.mkdir()
        for number in range(20):
            (outside / str(number)).write_text("x")
        top = Path(self.top, "folder")
        (top / "a").mkdir(parents=True)
        for number in range(20):
            (top / "a" / str(number)).write_text("x")
        end = threading.Event()

        def move(source: Path, target: Path) -> None:
            while True:
                try:
                    return os.rename(source, target)
                except OSError as error:
                    # The directory above has the next project already, and this one has not.
                    self.assertEqual(error.errno, errno.EXDEV)
                    if end.is_set():
                        self.kernel.set_mark(self.open(str(source)), Mark(0, True))
                        self.kernel.set_mark(self.open(str(top)), Mark(0, True))

        def swap() -> None:
            while not end.is_set():
                move(top / "a", top / "b")
                os.symlink(outside, top / "a")
                os.unlink(top / "a")
                move(top / "b", top / "a")

        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            with Directory.open_root(str(top)) as directory:
                for project in range(1, 200):
                    seize(self.kernel, directory, project)
        finally:
            end.set()
            swapping.join()
        for path in (outside, *outside.iterdir()):
            descriptor = self.open(str(path))
            self.assertEqual(self.kernel.mark(descriptor), Mark(0, False))
        with Directory.open_root(str(top)) as directory:
            self.assertEqual(seize(self.kernel, directory, 7).entries, 22)
        for path in (top, top / "a", *(top / "a").iterdir()):
            self.assertEqual(self.kernel.mark(self.open(str(path))).project, 7)
