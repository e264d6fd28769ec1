"""
Fakes of what CephFS does, for tests without one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

from zope.interface import implementer

from backends.cephfs.attributes import BYTES, ENTRIES, FILES, MAX_BYTES, IAttributes
from backends.cephfs.cluster import ICluster


@implementer(IAttributes)
class FakeAttributes:
    """
    The numbers of directories on any file system: a limit is an attribute of a user's, and nobody
    keeps to it; the others are counted.

    :ivar refusal: raised as its number when a limit is set.
    :ivar missing: whether the file system has no such attributes.
    """

    def __init__(self) -> None:
        self.refusal: int | None = None
        self.missing = False

    def get(self, directory: int, name: str) -> int:
        """See :meth:`backends.cephfs.attributes.IAttributes.get`."""
        self._check_name(name)
        if name == MAX_BYTES:
            try:
                return int(os.getxattr(directory, f"user.{name}"))
            except OSError as error:
                if error.errno == errno.ENODATA:
                    return 0
                raise
        if not stat.S_ISDIR(os.fstat(directory).st_mode):
            return 0
        # A file counts once, however many names it has.
        below = _below(f"/proc/self/fd/{directory}/.")
        found = {status.st_ino: status for status in below}.values()
        if name == ENTRIES:
            return len(found) + 1
        sizes = [status.st_size for status in found if not stat.S_ISDIR(status.st_mode)]
        return len(sizes) if name == FILES else sum(sizes)

    def set(self, directory: int, name: str, value: int) -> None:
        """See :meth:`backends.cephfs.attributes.IAttributes.set`."""
        self._check_name(name)
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
        if name != MAX_BYTES or not 0 <= value < 2**63:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        os.setxattr(directory, f"user.{name}", str(value).encode("ascii"))

    def _check_name(self, name: str) -> None:
        if self.missing or name not in (BYTES, ENTRIES, FILES, MAX_BYTES):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def _below(path: str) -> Iterator[os.stat_result]:
    with os.scandir(path) as found:
        for entry in found:
            yield entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)


@implementer(ICluster)
class FakeCluster:
    """
    A cluster that says what it is told to say.

    :ivar info: what is said of its state.
    :ivar metric: what is said of its work.
    """

    def __init__(self) -> None:
        self.info: dict[str, Any] = {
            "status": "healthy",
            "status_info": None,
            "metadata": {"health": "HEALTH_OK"},
        }
        self.metric: dict[str, Any] = {
            **dict.fromkeys(("iops_read", "iops_write", "io_bytes_read", "io_bytes_write"), 0),
            **dict.fromkeys(("io_usec_read", "io_usec_write"), 0.0),
        }

    async def hardware_info(self) -> dict[str, Any]:
        """See :meth:`backends.cephfs.cluster.ICluster.hardware_info`."""
        return self.info

    async def performance_metric(self) -> dict[str, Any]:
        """See :meth:`backends.cephfs.cluster.ICluster.performance_metric`."""
        return self.metric
