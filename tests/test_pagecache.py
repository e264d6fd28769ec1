"""
Tests for :mod:`storageproxy.pagecache`.
"""

from __future__ import annotations

import errno
import os

from twisted.trial.unittest import SynchronousTestCase

from storageproxy import pagecache
from storageproxy.pagecache import is_cached, read_cached

MIB = 1024 * 1024
SIZE = 4 * MIB


class CacheTests(SynchronousTestCase):
    def setUp(self) -> None:
        path = self.mktemp()
        self.content = os.urandom(SIZE)
        with open(path, "wb") as file:
            file.write(self.content)
            os.fsync(file.fileno())
        self.file = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, self.file)

    def forget(self) -> None:
        """Take the pages out of the cache again, and have only those read that are asked for."""
        os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_RANDOM)

    def read_ends(self) -> None:
        """Have the first and the last MiB read, and nothing between them."""
        self.forget()
        os.pread(self.file, MIB, 0)
        os.pread(self.file, MIB, SIZE - MIB)

    def test_written(self) -> None:
        """What was just written is there, on any boundary."""
        for offset, size in ((0, SIZE), (1, SIZE - 1), (4095, 2), (SIZE - 1, 1), (70000, 100000)):
            self.assertTrue(is_cached(self.file, offset, size), (offset, size))
            self.assertEqual(
                read_cached(self.file, offset, size), self.content[offset : offset + size]
            )

    def test_forgotten(self) -> None:
        """What the cache has dropped is not."""
        self.forget()
        self.assertFalse(is_cached(self.file, 0, SIZE))
        self.assertIsNone(read_cached(self.file, 0, 4096))
        os.pread(self.file, SIZE, 0)
        self.assertTrue(is_cached(self.file, 0, SIZE))

    def test_hole(self) -> None:
        """Pages that are missing in the middle are seen, and do not concern those before them."""
        self.read_ends()
        self.assertFalse(is_cached(self.file, 0, SIZE))
        self.assertTrue(is_cached(self.file, 0, MIB))
        self.assertTrue(is_cached(self.file, SIZE - MIB, MIB))

    def test_end(self) -> None:
        """Behind the end of the file there is nothing to read."""
        self.assertFalse(is_cached(self.file, SIZE - 10, 20))
        self.assertIsNone(read_cached(self.file, SIZE - 10, 20))

    def test_without_cachestat(self) -> None:
        """Kernels that cannot count pages are asked for some of them."""
        self.patch(pagecache, "_SYS_CACHESTAT", 100_000)
        self.assertTrue(is_cached(self.file, 5, SIZE - 5))
        self.read_ends()
        self.assertFalse(is_cached(self.file, 5, SIZE - 5))
        self.assertTrue(is_cached(self.file, 5, MIB - 5))

    def test_cannot_tell(self) -> None:
        """Where a file system cannot tell, nothing counts as cached."""

        def unsupported(*_: object) -> int:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        self.patch(os, "preadv", unsupported)
        self.assertFalse(is_cached(self.file, 0, 10))
        self.assertIsNone(read_cached(self.file, 0, 10))

    def test_failing_disk(self) -> None:
        """An error of the disk is not taken for an empty cache."""

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        self.patch(os, "preadv", broken)
        self.assertRaises(OSError, read_cached, self.file, 0, 10)
