"""
Fakes of what CephFS does, for tests without one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from zope.interface import implementer

from backends.cephfs.attributes import BYTES, ENTRIES, FILES, MAX_BYTES, IAttributes


@implementer(IAttributes)
class MemoryAttributes:
    """
    The numbers of directories on any file system: limits are kept in memory, and nobody keeps to
    them; the others are counted.

    :ivar refusal: raised as its number when a limit is set.
    :ivar missing: whether the file system has no such attributes.
    """

    def __init__(self) -> None:
        self.refusal: int | None = None
        self.missing = False
        self._limits: dict[tuple[int, int], int] = {}

    def get(self, directory: int, name: str) -> int:
        """See :meth:`backends.cephfs.attributes.IAttributes.get`."""
        self._check_name(name)
        if name == MAX_BYTES:
            return self._limits.get(_identity(directory), 0)
        if not stat.S_ISDIR(os.fstat(directory).st_mode):
            return 0
        found = list(_below(f"/proc/self/fd/{directory}/."))
        if name == ENTRIES:
            return len(found) + 1
        files = [status for status in found if not stat.S_ISDIR(status.st_mode)]
        if name == FILES:
            return len(files)
        # A file counts once, however many names it has.
        return sum({(one.st_dev, one.st_ino): one.st_size for one in files}.values())

    def set(self, directory: int, name: str, value: int) -> None:
        """See :meth:`backends.cephfs.attributes.IAttributes.set`."""
        self._check_name(name)
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
        if name != MAX_BYTES or not 0 <= value < 2**63:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._limits[_identity(directory)] = value

    def _check_name(self, name: str) -> None:
        if self.missing or name not in (BYTES, ENTRIES, FILES, MAX_BYTES):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _identity(directory: int) -> tuple[int, int]:
    status = os.fstat(directory)
    return status.st_dev, status.st_ino


def _below(path: str) -> Iterator[os.stat_result]:
    with os.scandir(path) as found:
        for entry in found:
            yield entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)
