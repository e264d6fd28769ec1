"""
What holds of the numbers that CephFS has for directories, and of the fake of them.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from zope.interface.verify import verifyObject

from backends.cephfs.attributes import BYTES, ENTRIES, FILES, MAX_BYTES, IAttributes

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase as TestCase
else:
    TestCase = object


class AttributesConformance(TestCase):
    """To be mixed into a TestCase, with ``attributes``, and ``path`` of an empty directory."""

    attributes: Any
    path: str

    def open(self, *names: str) -> int:
        """A descriptor."""
        descriptor = os.open(os.path.join(self.path, *names), os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        return descriptor

    def write(self, name: str, size: int) -> None:
        """Make a file."""
        with open(os.path.join(self.path, name), "wb") as file:
            file.write(bytes(size))

    def eventually(self, descriptor: int, name: str, value: int) -> None:
        """Check a number, which may be late."""
        self.assertEqual(self.attributes.get(descriptor, name), value)

    def test_interface(self) -> None:
        """It has all that the volume asks for."""
        verifyObject(IAttributes, self.attributes)

    def test_limit(self) -> None:
        """A limit is what was set, to the byte; 0 is none."""
        directory = self.open()
        self.assertEqual(self.attributes.get(directory, MAX_BYTES), 0)
        for limit in (1, 4097, 2**63 - 1, 0, 0, 5):
            self.attributes.set(directory, MAX_BYTES, limit)
            self.assertEqual(self.attributes.get(directory, MAX_BYTES), limit)
        os.mkdir(os.path.join(self.path, "a"))
        self.assertEqual(self.attributes.get(self.open("a"), MAX_BYTES), 0)

    def test_no_limit(self) -> None:
        """What can be no limit is refused."""
        directory = self.open()
        for limit in (-1, 2**63):
            error = self.assertRaises(OSError, self.attributes.set, directory, MAX_BYTES, limit)
            self.assertEqual(error.errno, errno.EINVAL)
        self.assertEqual(self.attributes.get(directory, MAX_BYTES), 0)

    def test_counts(self) -> None:
        """
        Sizes are counted, and those of links, and of a file with several names once.
        """
        os.mkdir(os.path.join(self.path, "a"))
        self.write("one", 5000)
        self.write("a/two", 300)
        os.link(os.path.join(self.path, "one"), os.path.join(self.path, "a", "again"))
        os.symlink("123", os.path.join(self.path, "a", "link"))
        with open(os.path.join(self.path, "sparse"), "wb") as file:
            file.truncate(1 << 30)
        directory = self.open()
        self.eventually(directory, BYTES, 5000 + 300 + 3 + (1 << 30))
        self.eventually(directory, FILES, 4)
        self.eventually(directory, ENTRIES, 6)

    def test_empty(self) -> None:
        """A directory counts itself among the entries."""
        self.eventually(self.open(), ENTRIES, 1)
        self.eventually(self.open(), BYTES, 0)
