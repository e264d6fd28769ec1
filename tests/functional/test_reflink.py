"""
A clone on a file system whose files can share blocks takes no space, nor time, for its bytes.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from backends.vfs import VFSVolume
from storageproxy.testing import SynchronousThreads, bare_id, result_of
from tests.engines import xfs

MEBI = 1 << 20


class ReflinkTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = self.mktemp()
        os.makedirs(directory)
        engine = xfs.mounted(directory)
        self.path = engine.__enter__()
        self.addCleanup(engine.__exit__, None, None, None)
        self.volume = VFSVolume("test", self.path, "", SynchronousThreads())
        result_of(self.volume.create_folder(bare_id(1), None, None))

    def place(self, number: int, name: str) -> str:
        return os.path.join(self.path, *bare_id(number).layout, name)

    def write(self, name: str, size: int) -> bytes:
        content = os.urandom(size)
        with open(self.place(1, name), "wb") as file:
            file.write(content)
        return content

    def used(self) -> int:
        """Bytes in use, with all that was written."""
        os.sync()
        status = os.statvfs(self.path)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def clone(self) -> int:
        """Clone the folder; how many bytes that takes."""
        before = self.used()
        result_of(self.volume.clone_folder(bare_id(1), self.volume, bare_id(2)))
        return self.used() - before

    def content(self, number: int, name: str) -> bytes:
        with open(self.place(number, name), "rb") as file:
            return file.read()

    def test_shared(self) -> None:
        """The blocks of large and small files are shared with the clone."""
        contents = {"large": self.write("large", 64 * MEBI), "odd": self.write("odd", MEBI + 1)}
        contents |= {str(number): self.write(str(number), 50_000) for number in range(100)}
        self.assertLess(self.clone(), 2 * MEBI)
        for name, content in contents.items():
            self.assertEqual(self.content(2, name), content, name)

    def test_apart(self) -> None:
        """What is written into the clone does not show in the folder."""
        content = self.write("large", MEBI)
        self.clone()
        with open(self.place(2, "large"), "r+b") as file:
            file.write(b"other")
        self.assertEqual(self.content(1, "large"), content)
        self.assertEqual(self.content(2, "large"), b"other" + content[5:])

    def test_more_than_is_free(self) -> None:
        """A folder that fills most of the disk can be cloned, as that takes nothing."""
        free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
        size = free * 2 // 3
        with open(self.place(1, "large"), "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        self.assertLess(self.clone(), 2 * MEBI)
        self.assertEqual(os.stat(self.place(2, "large")).st_size, size)
