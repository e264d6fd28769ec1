"""
The numbers of directories on CephFS, where there is none.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from backends.cephfs.attributes import ENTRIES, MAX_BYTES, Attributes
from backends.cephfs.testing import FakeAttributes
from tests.ceph_attributes import AttributesConformance


class FakeTests(AttributesConformance, SynchronousTestCase):
    """The fake does as CephFS (tests.ceph.test_quota)."""

    def setUp(self) -> None:
        self.path = os.path.realpath(self.mktemp())
        os.makedirs(self.path)
        self.attributes = FakeAttributes()

    def test_refused(self) -> None:
        """It can refuse, and be another file system."""
        directory = self.open()
        self.attributes.refusal = errno.EACCES
        self.assertRaises(PermissionError, self.attributes.set, directory, MAX_BYTES, 1)
        self.attributes.missing = True
        for ask in (self.attributes.get, Attributes().get):
            error = self.assertRaises(OSError, ask, directory, ENTRIES)
            self.assertEqual(error.errno, errno.EOPNOTSUPP)


class CallTests(SynchronousTestCase):
    """How the system is called."""

    def test_get(self) -> None:
        """What is not there is 0; other errors are told."""
        answers: list[Any] = [b"17", OSError(errno.ENODATA, "none"), OSError(errno.EIO, "bad")]

        def getxattr(directory: int, name: str) -> bytes:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            assert isinstance(answer, bytes)
            return answer

        self.patch(os, "getxattr", getxattr)
        attributes = Attributes()
        self.assertEqual(attributes.get(7, MAX_BYTES), 17)
        self.assertEqual(attributes.get(7, MAX_BYTES), 0)
        self.assertEqual(self.assertRaises(OSError, attributes.get, 7, ENTRIES).errno, errno.EIO)

    def test_set(self) -> None:
        """A limit is written as a number of digits, and taken away as one of 0."""
        written: list[tuple[int, str, bytes]] = []
        self.patch(os, "setxattr", lambda *args: written.append(args))
        for limit in (1 << 40, 0):
            Attributes().set(7, MAX_BYTES, limit)
        self.assertEqual(written, [(7, MAX_BYTES, b"1099511627776"), (7, MAX_BYTES, b"0")])
