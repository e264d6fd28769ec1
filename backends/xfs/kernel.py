# -*- test-case-name: tests.test_xfs_kernel -*-
"""
The kernel's side of project quotas: ioctl(2) for inodes, quotactl(2) for limits and usage.

Setting the project of an inode by ``xfs_quota -c 'project -s -p PATH ID'`` would take a path. That
of an inherited descriptor, ``/proc/self/fd/N``, is refused as a special file; ``/proc/self/fd/N/.``
is taken, but costs two hundred times as much as the two calls on the descriptor here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from zope.interface import implementer

from backends.xfs.interfaces import Account, IKernel, Limit, Mark, Quotas

#: ``linux/fs.h``: the numbers are the same on all architectures but those of MIPS, PowerPC, SPARC.
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
#: struct fsxattr: xflags, extsize, nextents, projid, cowextsize, padding.
_FSXATTR = struct.Struct("=IIIII8s")
_FS_XFLAG_PROJINHERIT = 0x200

#: ``linux/quota.h``, ``linux/dqblk_xfs.h``.
_PRJQUOTA = 2
_Q_XGETQUOTA, _Q_XGETQSTATV, _Q_XGETNEXTQUOTA = 0x5803, 0x5808, 0x5809
#: struct fs_disk_quota as far as it is read: version, flags, fieldmask, id, hard and soft limit of
#: blocks, hard and soft limit of inodes, blocks, inodes.
_DISK_QUOTA = struct.Struct("=bbHI6Q")
_DISK_QUOTA_SIZE = 112
#: struct fs_quota_statv: version, padding, flags. The rest is reserved here generously.
_STATE = struct.Struct("=bBH")
_STATE_SIZE = 256
_FS_QUOTA_PDQ_ACCT, _FS_QUOTA_PDQ_ENFD = 0x10, 0x20
#: Bytes of a block of struct fs_disk_quota, whatever those of the file system.
_BLOCK = 512

#: The last id of a project: the one above means "none" to the kernel.
LAST_PROJECT = 0xFFFFFFFE

#: statfs(2)
_XFS_SUPER_MAGIC = 0x58465342

#: The number of the call is the same on all architectures.
_SYS_QUOTACTL_FD = 443

_libc = ctypes.CDLL(None, use_errno=True)


def _failed(result: int) -> OSError | None:
    if not result:
        return None
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _has_quotactl_fd() -> bool:
    result = _libc.syscall(ctypes.c_long(_SYS_QUOTACTL_FD), -1, 0, 0, None)
    return bool(result) and ctypes.get_errno() != errno.ENOSYS


def device_of(descriptor: int) -> str:
    """
    The block device that a file lies on, for kernels before 5.14, which know quotactl(2) only.

    :raises OSError: ENODEV when it is on none that is mounted.
    """
    number = os.fstat(descriptor).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            # proc(5): id parent major:minor root point options fields… - type source options
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                return after.split()[1].encode("latin-1").decode("unicode_escape")
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


@implementer(IKernel)
class Kernel:
    """
    The kernel that this process runs on.

    :param by_descriptor: whether it has quotactl_fd(2).
    """

    def __init__(self, by_descriptor: bool | None = None) -> None:
        self._by_descriptor = _has_quotactl_fd() if by_descriptor is None else by_descriptor

    def quotas(self, descriptor: int) -> Quotas:
        """See :meth:`backends.xfs.interfaces.IKernel.quotas`."""
        # struct statfs has the type first, as a long on the architectures with 64 bits.
        status = ctypes.create_string_buffer(256)
        if error := _failed(_libc.fstatfs(ctypes.c_int(descriptor), status)):
            raise error
        if ctypes.c_long.from_buffer(status).value != _XFS_SUPER_MAGIC:
            return Quotas.NOT_XFS
        state = ctypes.create_string_buffer(_STATE_SIZE)
        _STATE.pack_into(state, 0, 1, 0, 0)
        try:
            self._ask(_Q_XGETQSTATV, descriptor, 0, state)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ESRCH):
                return Quotas.OFF
            raise
        flags = _STATE.unpack_from(state)[2]
        if not flags & _FS_QUOTA_PDQ_ACCT:
            return Quotas.OFF
        return Quotas.ENFORCED if flags & _FS_QUOTA_PDQ_ENFD else Quotas.COUNTED

    def mark(self, descriptor: int) -> Mark:
        """See :meth:`backends.xfs.interfaces.IKernel.mark`."""
        flags, _, _, project, *_ = self._attributes(descriptor)
        return Mark(project, bool(flags & _FS_XFLAG_PROJINHERIT))

    def set_mark(self, descriptor: int, mark: Mark) -> None:
        """See :meth:`backends.xfs.interfaces.IKernel.set_mark`."""
        flags, extent, extents, _, *rest = self._attributes(descriptor)
        flags &= ~_FS_XFLAG_PROJINHERIT
        if mark.inherited:
            flags |= _FS_XFLAG_PROJINHERIT
        wanted = _FSXATTR.pack(flags, extent, extents, mark.project, *rest)
        fcntl.ioctl(descriptor, _FS_IOC_FSSETXATTR, wanted)

    def account(self, descriptor: int, project: int) -> Account:
        """See :meth:`backends.xfs.interfaces.IKernel.account`."""
        try:
            return self._account(_Q_XGETQUOTA, descriptor, project)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return Account(project, Limit(0), 0, 0)

    def accounts(self, descriptor: int) -> Iterator[Account]:
        """See :meth:`backends.xfs.interfaces.IKernel.accounts`."""
        following = 1
        # Asked for the one above the last the kernel says EINVAL.
        while following <= LAST_PROJECT:
            try:
                found = self._account(_Q_XGETNEXTQUOTA, descriptor, following)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESRCH):
                    return
                raise
            yield found
            following = found.project + 1

    def _attributes(self, descriptor: int) -> tuple[int, int, int, int, int, bytes]:
        attributes = bytearray(_FSXATTR.size)
        fcntl.ioctl(descriptor, _FS_IOC_FSGETXATTR, attributes)
        found: tuple[int, int, int, int, int, bytes] = _FSXATTR.unpack(attributes)
        return found

    def _account(self, command: int, descriptor: int, project: int) -> Account:
        quota = ctypes.create_string_buffer(_DISK_QUOTA_SIZE)
        self._ask(command, descriptor, project, quota)
        _, _, _, project, blocks_hard, _, inodes_hard, _, blocks, inodes = _DISK_QUOTA.unpack_from(
            quota
        )
        return Account(project, Limit(blocks_hard * _BLOCK, inodes_hard), blocks * _BLOCK, inodes)

    def _ask(
        self, command: int, descriptor: int, project: int, answer: ctypes.Array[ctypes.c_char]
    ) -> None:
        wanted = ctypes.c_uint(command << 8 | _PRJQUOTA)
        if self._by_descriptor:
            result = _libc.syscall(
                ctypes.c_long(_SYS_QUOTACTL_FD),
                ctypes.c_uint(descriptor),
                wanted,
                ctypes.c_uint(project),
                answer,
            )
        else:
            device = os.fsencode(device_of(descriptor))
            result = _libc.quotactl(wanted, device, ctypes.c_uint(project), answer)
        if error := _failed(result):
            raise error
