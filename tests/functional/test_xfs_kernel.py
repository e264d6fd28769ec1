"""
Projects of inodes on a real XFS. The kernel need not have quotas; root is needed.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from backends.xfs.interfaces import Mark, Quotas
from backends.xfs.kernel import Kernel, device_of
from tests.engines import reflink


class MarkTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        stack = ExitStack()
        self.addCleanup(stack.close)
        self.top = stack.enter_context(reflink.mounted(str(directory)))
        self.kernel = Kernel()

    def open(self, name: str) -> int:
        descriptor = os.open(os.path.join(self.top, name), os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        return descriptor

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
