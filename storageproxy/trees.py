"""
Whole trees beneath an open directory: visiting them, and counting what they hold.

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
from itertools import islice
from typing import Protocol

from attrs import frozen

from storageproxy.beneath import Directory

#: Characters of the longest path of a walk.
LONGEST_PATH = 16384

#: Entries of a directory that a walk hands over at once. More would cost hardly less, and whoever
#: waits for a sign of life of a slow mount would wait longer.
BATCH = 16

#: The bits of a mode that tell what a file is (S_IFMT, inode(7)).
KIND = 0o170000

#: What counts when a tree is counted.
_COUNTED = frozenset({stat.S_IFREG, stat.S_IFLNK})

#: What a name says that is not a directory any more.
VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Step(Protocol):
    """Called often by what works on a tree: :meth:`storageproxy.threads.Progress.step`."""

    def __call__(self, entries: int = 1, size: int = 0) -> None:
        """Tell how many entries and bytes there were; what it raises ends the work."""


def unwatched(entries: int = 1, size: int = 0) -> None:
    """The step of work that nobody watches."""


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


def walk(
    top: Directory,
    skip: str | None = None,
    forgive: frozenset[int] = VANISHED,
    step: Step = unwatched,
) -> Iterator[tuple[str, Directory, Iterator[list[os.DirEntry[str]]]]]:
    """
    Visit a directory and all below it, each before those in it, and those before its neighbours.

    Only one directory is open at a time, whatever the depth, and of its entries only some are in
    memory, besides the names of directories.

    :param skip: the name of an entry at the top to pass over.
    :param forgive: the errors with which what is below the top is passed over.
    :param step: called for each directory, with no entries; what it raises ends the walk. Those
        who take the entries call it for them.
    :return: for each, its path ("" for the top), itself (open until the next step), its entries in
        batches (each to be taken before the next step). They are those of :func:`os.scandir`, which
        know their type without a system call on most file systems; it is what they were a moment
        ago.
    """
    pending = [""]
    while pending:
        step(0)
        path = pending.pop()
        try:
            directory = descend_far(top, path or ".")
        except OSError as error:
            if path and error.errno in forgive:
                continue
            raise
        with directory, os.scandir(directory.descriptor) as found:
            wanted = found if path or skip is None else _without(found, skip)
            yield path, directory, _batches(f"{path}/" if path else "", wanted, pending, forgive)


def _without(found: Iterable[os.DirEntry[str]], name: str) -> Iterator[os.DirEntry[str]]:
    return (item for item in found if item.name != name)


def _batches(
    prefix: str,
    found: Iterator[os.DirEntry[str]],
    pending: list[str],
    forgive: frozenset[int],
) -> Iterator[list[os.DirEntry[str]]]:
    while entries := list(islice(found, BATCH)):
        try:
            below = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            below = [entry for entry in entries if _is_dir(entry, forgive)]
        pending += [prefix + entry.name for entry in below]
        yield entries


def _is_dir(entry: os.DirEntry[str], forgive: frozenset[int]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError as error:
        if error.errno in forgive:
            return False
        raise


def lstats(
    entries: list[os.DirEntry[str]], forgive: frozenset[int] = VANISHED
) -> tuple[list[os.DirEntry[str]], list[os.stat_result]]:
    """Those entries of a walk of which :func:`lstat` knows the state, and their states."""
    try:
        return entries, [entry.stat(follow_symlinks=False) for entry in entries]
    except OSError as error:
        if error.errno not in forgive:
            raise
        # One of them has vanished, which happens rarely enough to ask again.
        told = [(entry, status) for entry in entries if (status := lstat(entry, forgive))]
        return [entry for entry, _ in told], [status for _, status in told]


def lstat(entry: os.DirEntry[str], forgive: frozenset[int] = VANISHED) -> os.stat_result | None:
    """
    The state of an entry of a walk.

    :return: None when it has vanished, or fails with another of the errors forgiven.
    """
    try:
        return entry.stat(follow_symlinks=False)
    except OSError as error:
        if error.errno in forgive:
            return None
        raise


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
    step: Step = unwatched,
    limit: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Usage:
    """
    Count a tree as the original does: files and symbolic links, with their apparent sizes.

    :param step: called for some entries at a time, with their size; what it raises ends the
        counting.
    :param limit: seconds after which to give up.
    :raises TooSlow: when that time is over.
    """
    if limit is not None:
        step = limited(limit, step, clock)
    # What people have closed to us counts as far as it can be seen.
    forgive = VANISHED | {errno.EACCES}
    files = used_bytes = 0
    for _, _, batches in walk(top, forgive=forgive, step=step):
        for entries in batches:
            _, states = lstats(entries, forgive)
            sizes = [status.st_size for status in states if status.st_mode & KIND in _COUNTED]
            files += len(sizes)
            used_bytes += (size := sum(sizes))
            step(len(entries), size)
    return Usage(files, used_bytes)


def limited(seconds: float, step: Step, clock: Callable[[], float] = time.monotonic) -> Step:
    """
    A step that raises :exc:`TooSlow` when some time is over, beginning now.

    :param step: is called before.
    """
    end = clock() + seconds

    def until(entries: int = 1, size: int = 0) -> None:
        if clock() > end:
            raise TooSlow
        step(entries, size)

    return until
