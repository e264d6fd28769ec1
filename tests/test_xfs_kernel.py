"""
What the kernel says of projects, as far as any kernel can be asked.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from backends.xfs import kernel
from backends.xfs.interfaces import Account, IKernel, Limit, Quotas
from backends.xfs.kernel import LAST_PROJECT, Kernel

#: struct fs_disk_quota, linux/dqblk_xfs.h, up to the count of inodes.
_HEAD = struct.Struct("=bbHI6Q")


class KernelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.kernel = Kernel(by_descriptor=True)
        self.quotas: dict[int, tuple[int, int, int, int]] = {}
        self.error = errno.ENOENT

    def answer(self) -> None:
        """Have quotactl_fd(2) answered by the test."""

        class Libc:
            syscall = staticmethod(self.syscall)

        self.patch(kernel, "_libc", Libc)

    def syscall(self, number: Any, descriptor: Any, wanted: Any, project: Any, answer: Any) -> int:
        self.assertEqual((number.value, descriptor.value, wanted.value & 0xFF), (443, 0, 2))
        asked = project.value
        if wanted.value >> 8 == 0x5809:
            if asked > LAST_PROJECT:
                ctypes.set_errno(errno.EINVAL)
                return -1
            asked = min((one for one in self.quotas if one >= asked), default=-1)
        if asked not in self.quotas:
            ctypes.set_errno(self.error)
            return -1
        hard, inodes_hard, blocks, inodes = self.quotas[asked]
        _HEAD.pack_into(answer, 0, 1, 2, 0, asked, hard, 7, inodes_hard, 7, blocks, inodes)
        return 0

    def test_interface(self) -> None:
        """It answers what is wanted of it."""
        verifyObject(IKernel, Kernel())

    def test_not_xfs(self) -> None:
        """A file system that is no XFS is told apart."""
        descriptor = os.open("/proc", os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        self.assertEqual(Kernel().quotas(descriptor), Quotas.NOT_XFS)

    def test_no_device(self) -> None:
        """A file on no mount has no device."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        error = self.assertRaises(OSError, kernel.device_of, reading)
        self.assertEqual(error.errno, errno.ENODEV)

    def test_account(self) -> None:
        """Blocks are of 512 bytes; soft limits mean nothing."""
        self.quotas[101] = (8, 20, 4, 3)
        self.answer()
        self.assertEqual(self.kernel.account(0, 101), Account(101, Limit(4096, 20), 2048, 3))

    def test_unknown(self) -> None:
        """A project that was never used has neither limit nor usage."""
        self.answer()
        self.assertEqual(self.kernel.account(0, 101), Account(101, Limit(0), 0, 0))

    def test_error(self) -> None:
        """What the kernel refuses is told."""
        self.error = errno.EPERM
        self.answer()
        self.assertRaises(PermissionError, self.kernel.account, 0, 101)
        self.assertRaises(PermissionError, list, self.kernel.accounts(0))

    def test_accounts(self) -> None:
        """All projects are found, up to the very last id."""
        for project in (3, 101, LAST_PROJECT):
            self.quotas[project] = (0, 0, 2, 1)
        self.answer()
        found = list(self.kernel.accounts(0))
        self.assertEqual([one.project for one in found], [3, 101, LAST_PROJECT])
        self.assertEqual(found[0], Account(3, Limit(0), 1024, 1))

    def test_no_accounts(self) -> None:
        """There may be none."""
        self.answer()
        self.assertEqual(list(self.kernel.accounts(0)), [])
