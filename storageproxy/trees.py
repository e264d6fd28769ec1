"""
Whole trees beneath an open directory: counting, removing, copying.

A tree belongs to somebody who may change it meanwhile. Symbolic links are never followed, sub
directories are opened by name beneath the one that is open, and what vanishes is passed over. All
of it blocks, and belongs into a volume's threads.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar
from uuid import uuid4

from attrs import frozen

from storageproxy.beneath import Directory
from storageproxy.errors import NotRegularFile
from storageproxy.threads import Progress

#: Bytes that are copied between two looks at the progress.
COPY_STEP = 8 * 1024 * 1024

T = TypeVar("T")

#: Levels of a tree that is removed.
MAX_ROUNDS = 100_000

#: Characters of the longest path of a walk.
LONGEST_PATH = 16384

#: What a name says that is not a directory any more.
VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

_NO_RANGE_COPY = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF}
)


@frozen
class Usage:
    """
    What a tree holds.

    :param files: files and symbolic links; directories do not count.
    :param used_bytes: the sum of their sizes.
    """

    files: int
    used_bytes: int


class TooSlow(Exception):
    """The tree could not be counted in the time given."""


@frozen
class Entry:
    """
    Something in a tree.

    :param path: relative to the top of the walk.
    :param status: its ``lstat``.
    """

    path: str
    status: os.stat_result


def walk(
    top: Directory,
    skip: str | None = None,
    forgive: frozenset[int] = VANISHED,
    step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, Directory, Iterator[Entry]]]:
    """
    Visit a directory and all below it, each before those in it.

    Only one directory is open at a time, whatever the depth, and of its entries only one is in
    memory, besides the names of directories.

    :param skip: the name of an entry at the top to pass over.
    :param forgive: the errors with which what is below the top is passed over.
    :param step: called for each directory and entry; what it raises ends the walk.
    :return: for each, its path ("" for the top), itself (open until the next step), its entries
        (each to be taken before the next step).
    """
    pending = [""]
    while pending:
        step()
        path = pending.pop()
        try:
            directory = descend_far(top, path or ".")
        except OSError as error:
            if path and error.errno in forgive:
                continue
            raise
        with directory, os.scandir(directory.descriptor) as found:
            wanted = found if path or skip is None else _without(found, skip)
            yield path, directory, _entries(path, wanted, pending, forgive, step)


def _without(found: Iterable[os.DirEntry[str]], name: str) -> Iterator[os.DirEntry[str]]:
    return (item for item in found if item.name != name)


def _entries(
    path: str,
    found: Iterable[os.DirEntry[str]],
    pending: list[str],
    forgive: frozenset[int],
    step: Callable[[], None],
) -> Iterator[Entry]:
    for item in found:
        step()
        inner = f"{path}/{item.name}" if path else item.name
        try:
            status = item.stat(follow_symlinks=False)
        except OSError as error:
            if error.errno in forgive:
                continue
            raise
        if stat.S_ISDIR(status.st_mode):
            pending.append(inner)
        yield Entry(inner, status)


def descend_far(top: Directory, path: str) -> Directory:
    """
    Open a directory of a walk, also where its path is longer than the kernel takes at once.

    :raises OSError: ENAMETOOLONG for trees that are deeper than any use they could have.
    """
    if len(path) > LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    current = top
    while True:
        # PATH_MAX counts bytes, of which a character has four at most.
        cut = path.rfind("/", 0, 1000) if len(path) > 1000 else -1
        try:
            below = current.descend(path if cut < 0 else path[:cut], links=False)
        finally:
            if current is not top:
                current.close()
        if cut < 0:
            return below
        current, path = below, path[cut + 1 :]


def usage(
    top: Directory,
    progress: Progress | None = None,
    limit: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Usage:
    """
    Count a tree as the original does: files and symbolic links, with their apparent sizes.

    :param limit: seconds after which to give up.
    :raises TooSlow: when that time is over.
    """
    end = None if limit is None else clock() + limit

    def step() -> None:
        if end is not None and clock() > end:
            raise TooSlow
        if progress is not None:
            progress.step()

    files = used_bytes = 0
    # What people have closed to us counts as far as it can be seen.
    for _, _, entries in walk(top, forgive=VANISHED | {errno.EACCES}, step=step):
        step()
        for entry in entries:
            if stat.S_ISREG(entry.status.st_mode) or stat.S_ISLNK(entry.status.st_mode):
                files += 1
                used_bytes += entry.status.st_size
    return Usage(files, used_bytes)


def remove(parent: Directory, name: str, step: Callable[[], None] = lambda: None) -> None:
    """
    Remove a directory with all that is in it.

    Directories inside are first moved up to the top, so that neither depth nor the length of a
    path is ever a limit, and only two directories are open.

    :param step: called for each entry; what it raises ends the removal.
    """
    with _enter(parent, name) as top:
        # Somebody may go on filling it.
        for _ in range(MAX_ROUNDS):
            inner = _unlink_files(top, step)
            for below in inner:
                _flatten(top, below, step)
            if inner:
                continue
            try:
                os.rmdir(name, dir_fd=parent.descriptor)
                return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _enter(parent: Directory, name: str) -> Directory:
    """Open a directory that is to be removed."""
    try:
        return parent.descend(name, links=False)
    except PermissionError:
        _make_writable(parent, name)
        return parent.descend(name, links=False)


def _make_writable(parent: Directory, name: str) -> None:
    # People close and write-protect directories of theirs, which does not stop their removal.
    descriptor = parent.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, links=False)
    try:
        os.chmod(f"/proc/self/fd/{descriptor}", 0o700)
    finally:
        os.close(descriptor)


def _flatten(top: Directory, name: str, step: Callable[[], None]) -> None:
    try:
        directory = _enter(top, name)
    except OSError as error:
        if error.errno in VANISHED:
            return
        raise
    with directory:
        for below in _unlink_files(directory, step):
            with suppress(FileNotFoundError):
                _move_up(directory, below, top)
    with suppress(FileNotFoundError):
        try:
            os.rmdir(name, dir_fd=top.descriptor)
        except OSError as error:
            # Somebody has put something into it, or in its place; the next round sees it.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR):
                raise


def _move_up(directory: Directory, name: str, top: Directory) -> None:
    def move() -> None:
        os.rename(
            name,
            f"{name[:32]}-{uuid4().hex}",
            src_dir_fd=directory.descriptor,
            dst_dir_fd=top.descriptor,
        )

    try:
        move()
    except PermissionError:
        os.fchmod(directory.descriptor, 0o700)
        _make_writable(directory, name)
        move()


def _unlink_files(directory: Directory, step: Callable[[], None]) -> list[str]:
    """Remove what is no directory, and return the names of the rest."""
    step()
    rest = []
    with os.scandir(directory.descriptor) as found:
        for item in found:
            step()
            if item.is_dir(follow_symlinks=False):
                rest.append(item.name)
                continue
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


def copy(source: Directory, target: Directory, progress: Progress, skip: str | None = None) -> None:
    """
    Copy what is in a directory into another one: files, directories and symbolic links as links,
    with their permissions and times. Sockets, FIFOs and devices are left out. What the target has
    already stays, but for files of the same names.

    :param skip: the name of an entry at the top that is not copied.
    """
    directories: list[Entry] = []
    for path, opened, entries in walk(source, skip, step=progress.step):
        with descend_far(target, path or ".") as into:
            for entry in entries:
                progress.step()
                name = entry.path.rpartition("/")[2]
                kind = stat.S_IFMT(entry.status.st_mode)
                if kind == stat.S_IFDIR:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=into.descriptor)
                    directories.append(entry)
                elif kind == stat.S_IFLNK:
                    _copy_link(opened, into, name, entry.status)
                elif kind == stat.S_IFREG:
                    _copy_file(opened, into, name, progress)
    # Last, as what is put into a directory changes its time; the deepest ones first.
    for entry in reversed(directories):
        with descend_far(target, entry.path) as made:
            _keep(made.descriptor, entry.status)


def _copy_link(source: Directory, target: Directory, name: str, status: os.stat_result) -> None:
    try:
        link = os.readlink(name, dir_fd=source.descriptor)
    except OSError as error:
        # EINVAL: it is no link any more.
        if error.errno in VANISHED | {errno.EINVAL}:
            return
        raise
    _replace(lambda: os.symlink(link, name, dir_fd=target.descriptor), target, name)
    os.utime(
        name,
        ns=(status.st_atime_ns, status.st_mtime_ns),
        dir_fd=target.descriptor,
        follow_symlinks=False,
    )


def _copy_file(source: Directory, target: Directory, name: str, progress: Progress) -> None:
    try:
        reader = source.open_file(name, links=False)
    except NotRegularFile:
        return
    except OSError as error:
        if error.errno in VANISHED:
            return
        raise

    def create() -> int:
        return os.open(
            name,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
            0o600,
            dir_fd=target.descriptor,
        )

    with reader, reader.descriptor() as from_fd:
        to_fd = _replace(create, target, name)
        try:
            _copy_bytes(from_fd, to_fd, progress)
            _keep(to_fd, os.fstat(from_fd))
        finally:
            os.close(to_fd)


def _copy_bytes(from_fd: int, to_fd: int, progress: Progress) -> None:
    in_kernel = True
    while True:
        progress.step()
        if in_kernel:
            try:
                copied = os.copy_file_range(from_fd, to_fd, COPY_STEP)
            except OSError as error:
                if error.errno not in _NO_RANGE_COPY:
                    raise
                in_kernel = False
                continue
        else:
            data = os.read(from_fd, COPY_STEP)
            copied = len(data)
            while data:
                data = data[os.write(to_fd, data) :]
        if not copied:
            return


def _replace(create: Callable[[], T], directory: Directory, name: str) -> T:
    try:
        return create()
    except FileExistsError:
        os.unlink(name, dir_fd=directory.descriptor)
        return create()


def _keep(descriptor: int, status: os.stat_result) -> None:
    os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
    # Never more than the owner could have given to a file of the daemon's user.
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o777)
