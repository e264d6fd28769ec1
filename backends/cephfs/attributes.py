# -*- test-case-name: tests.test_ceph_attributes -*-
"""
What CephFS keeps for each directory, told and set by extended attributes that are numbers.

https://docs.ceph.com/en/latest/cephfs/quota/, and "Virtual extended attributes" there. None of them
is listed by listxattr(2). They block, and belong into a volume's threads.
"""

from __future__ import annotations

import errno
import os

from zope.interface import Interface, implementer

#: Bytes that a directory may have with all that is below it.
MAX_BYTES = "ceph.quota.max_bytes"

#: Bytes that it has, as far as the metadata servers have told each other: sizes, not blocks.
BYTES = "ceph.dir.rbytes"

#: Files and symbolic links that it has.
FILES = "ceph.dir.rfiles"

#: All that it has, and itself; there on any CephFS.
ENTRIES = "ceph.dir.rentries"


class IAttributes(Interface):
    """The numbers of directories."""

    def get(directory: int, name: str) -> int:
        """
        :param directory: an open directory.
        :return: 0 where there is none.
        :raises OSError: EOPNOTSUPP where the file system has no such attributes.
        """

    def set(directory: int, name: str, value: int) -> None:
        """
        :param directory: an open directory.
        :param value: 0 takes a limit away.
        :raises PermissionError: when the key of the mount, or the owner of the directory, does not
            allow it.
        """


@implementer(IAttributes)
class Attributes:
    """Those of the kernel's client, and of ceph-fuse."""

    def get(self, directory: int, name: str) -> int:
        """See :meth:`IAttributes.get`."""
        try:
            return int(os.getxattr(directory, name))
        except OSError as error:
            if error.errno == errno.ENODATA:
                return 0
            raise

    def set(self, directory: int, name: str, value: int) -> None:
        """See :meth:`IAttributes.set`."""
        # Removing the attribute (removexattr(2)) fails, and leaves the limit.
        os.setxattr(directory, name, str(value).encode("ascii"))
