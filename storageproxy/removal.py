"""
The removal of a directory with all that is in it, while its owner may go on filling it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from storageproxy.beneath import Directory
from storageproxy.trees import VANISHED, Step, unwatched

#: How often the top of a tree is looked through: its levels, and more for very wide ones.
MAX_ROUNDS = 100_000

#: Directories whose names are in memory at one time.
MOST_NAMES = 10_000

#: ``linux/fs.h``: FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, their struct fsxattr, and of its flags
#: FS_XFLAG_PROJINHERIT: what is made in a directory gets its project. ioctl_xfs_fsgetxattr(2)
_GET, _SET, _ATTRIBUTES, _HANDED_ON = 0x801C581F, 0x401C5820, struct.Struct("=I24s"), 0x200

#: Called with a directory that has no entries, and cannot be removed all the same.
Release = Callable[[Directory], None]


def refuse(directory: Directory) -> None:
    """The release of those who know of none."""
    raise OSError(errno.ENOTEMPTY, "it has no entries, and cannot be removed: are there snapshots?")


def remove(parent: Directory, name: str, step: Step = unwatched, release: Release = refuse) -> None:
    """
    Remove a directory with all that is in it.

    Directories inside are first moved up to the top, so that neither depth nor the length of a
    path is ever a limit, and only two directories are open.

    :param step: called for each entry; what it raises ends the removal.
    :param release: takes away what holds an empty directory; what it raises ends the removal.
    """
    with _enter(parent, name) as top:
        # Somebody may go on filling it.
        for _ in range(MAX_ROUNDS):
            inner = _unlink_files(top, step)
            for below in inner:
                try:
                    _flatten(top, below, step, release)
                except OSError as error:
                    # Somebody has taken it away, or put something in its place.
                    if error.errno not in VANISHED:
                        raise
            if inner:
                continue
            try:
                os.rmdir(name, dir_fd=parent.descriptor)
                return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
            _release_empty(top, release)
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _enter(parent: Directory, name: str) -> Directory:
    """Open a directory that is to be removed."""
    try:
        return parent.descend(name, links=False)
    except PermissionError:
        make_writable(parent, name)
        return parent.descend(name, links=False)


def make_writable(parent: Directory, name: str) -> None:
    """
    Open a directory to its owner alone, which need not be open to him.

    People close and write-protect directories of theirs, which does not stop their removal.
    """
    descriptor = parent.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, links=False)
    try:
        os.chmod(f"/proc/self/fd/{descriptor}", 0o700)
    finally:
        os.close(descriptor)


def _flatten(top: Directory, name: str, step: Step, release: Release) -> None:
    with _enter(top, name) as directory:
        for below in _unlink_files(directory, step):
            step(0)
            with suppress(FileNotFoundError):
                _move_up(directory, below, top)
    step()
    try:
        os.rmdir(name, dir_fd=top.descriptor)
    except OSError as error:
        # Somebody has put something into it; the next round sees it.
        if error.errno != errno.ENOTEMPTY:
            raise
        with _enter(top, name) as directory:
            _release_empty(directory, release)


def _release_empty(directory: Directory, release: Release) -> None:
    with os.scandir(directory.descriptor) as found:
        is_empty = next(found, None) is None
    if is_empty:
        release(directory)


def _move_up(directory: Directory, name: str, top: Directory) -> None:
    def move() -> None:
        try:
            _move(directory, name, top)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _unbind(directory, top)
            _move(directory, name, top)

    try:
        move()
    except PermissionError:
        os.fchmod(directory.descriptor, 0o700)
        make_writable(directory, name)
        move()


def _move(directory: Directory, name: str, top: Directory) -> None:
    os.rename(
        name,
        f"{name[:32]}-{uuid4().hex}",
        src_dir_fd=directory.descriptor,
        dst_dir_fd=top.descriptor,
    )


def _unbind(directory: Directory, top: Directory) -> None:
    """
    Take away what keeps the kernel from moving something from one directory into another.
    """
    try:
        # On XFS, people give directories of theirs another project, and none of another one goes
        # where one is handed on.
        _stop_handing_on(top)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        # On CephFS, they give them a quota, and nothing goes out of where it holds.
        os.setxattr(directory.descriptor, "ceph.quota", b"max_bytes=0 max_files=0")


def _stop_handing_on(directory: Directory) -> None:
    """Take away from a directory what its owner may: that what is in it belongs to its project."""
    found = fcntl.ioctl(directory.descriptor, _GET, bytes(_ATTRIBUTES.size))
    flags, rest = _ATTRIBUTES.unpack(found)
    fcntl.ioctl(directory.descriptor, _SET, _ATTRIBUTES.pack(flags & ~_HANDED_ON, rest))


def _unlink_files(directory: Directory, step: Step) -> list[str]:
    """Remove what is no directory, and return the names of the rest, or of many of them."""
    step(0)
    rest: list[str] = []
    with os.scandir(directory.descriptor) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                step(0)
                rest.append(item.name)
                if len(rest) >= MOST_NAMES:
                    break
                continue
            step()
            try:
                _unlink(directory, item.name)
            except FileNotFoundError:
                pass
            except IsADirectoryError:
                rest.append(item.name)
    return rest


def _unlink(directory: Directory, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory.descriptor)
    except PermissionError:
        os.fchmod(directory.descriptor, 0o700)
        os.unlink(name, dir_fd=directory.descriptor)
