# -*- test-case-name: tests.test_ceph_live -*-
"""
Directories whose snapshots cannot be reached.

Each directory of CephFS has a ``.snap`` that no listing shows. Directories that are made, renamed
and removed in there are snapshots. They are the administrator's business, or the owner's on a mount
of his own; whoever comes through the daemon sees the present only.
"""

from __future__ import annotations

import os

from storageproxy.beneath import Directory
from storageproxy.errors import InvalidSubpath

#: Where CephFS has the snapshots of a directory. No other file can have that name.
SNAPSHOTS = ".snap"


class LiveDirectory(Directory):
    """
    An open directory, through which no snapshot is named.
    """

    __slots__ = ()

    def open(
        self, path: str, flags: int, mode: int = 0, *, links: bool = True, mounts: bool = True
    ) -> int:
        """
        See :meth:`storageproxy.beneath.Directory.open`.

        :raises InvalidSubpath: also when the path leads to snapshots.
        """
        _refuse(path, path)
        descriptor = super().open(path, flags, mode, links=links, mounts=mounts)
        if links:
            try:
                # Where symbolic links have led, in the words of the kernel (proc(5)).
                _refuse(os.readlink(f"/proc/self/fd/{descriptor}"), path)
            except BaseException:
                os.close(descriptor)
                raise
        return descriptor

    def parent(self, path: str) -> tuple[LiveDirectory, str]:
        """See :meth:`storageproxy.beneath.Directory.parent`."""
        _refuse(path, path)
        return super().parent(path)


def _refuse(place: str, path: str) -> None:
    # The kernel says so of what is open and has no name any more.
    if SNAPSHOTS in place.removesuffix(" (deleted)").split("/"):
        raise InvalidSubpath(f"{SNAPSHOTS} is for snapshots, on a mount", subpath=path)
