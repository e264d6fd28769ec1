# -*- test-case-name: tests.test_xfs_seizure -*-
"""
A directory is given to a project, with all that is in it.

Its owner writes into it meanwhile, and may have done anything before. So it is gone through by
descriptor, without following links or leaving the file system, and neither its depth nor anything
that cannot be looked at is an obstacle to the rest. All of it blocks.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable

from attrs import define, field

from backends.xfs.interfaces import IKernel, Mark
from storageproxy.beneath import Directory
from storageproxy.errors import InvalidSubpath, NotRegularFile
from storageproxy.trees import VANISHED, Step, unwatched

#: Directories that are visited before it is looked at whether there can be as many.
PATIENCE = 1000


@define
class Seizure:
    """
    What was found when a tree was given to a project.

    :param project: the project.
    :ivar entries: all that is in it, itself included.
    :ivar changed: how many files and directories had to be changed.
    :ivar missed: how many could not be looked at, or not changed, by the number of the error: EXDEV
        where something is mounted, EAGAIN where somebody has a lease, ENOENT where a directory was
        moved or removed meanwhile.
    """

    project: int
    entries: int = 0
    changed: int = 0
    missed: Counter[int] = field(factory=Counter)


def seize(
    kernel: IKernel,
    top: Directory,
    project: int,
    others: Iterable[str] = (),
    step: Step = unwatched,
) -> Seizure:
    """
    Give a directory to a project, with all that is in it.

    Links, FIFOs and the like keep theirs, as they cannot be opened.

    :param others: paths beneath it that belong to others, and are left as they are.
    :param step: called for each entry.
    """
    found = Seizure(project)
    _Walk(kernel, top, found, step).run(frozenset(others))
    return found


@define
class _Level:
    """
    A directory that is gone through.

    :param name: what it is called in the one above.
    :param identity: of its inode.
    :param others: see :func:`seize`; from this directory on.
    :ivar names: the directories in it that were not visited yet.
    """

    name: str
    identity: tuple[int, int]
    others: frozenset[str]
    names: list[str] = field(factory=list)

    def others_in(self, name: str) -> frozenset[str]:
        """The same, from a directory in it on."""
        begin = f"{name}/"
        return frozenset(path[len(begin) :] for path in self.others if path.startswith(begin))


class _Walk:
    """
    One way through a tree, with one directory open at a time besides the top: from each to those
    in it, and back by ``..``, which is compared with what it was.
    """

    def __init__(self, kernel: IKernel, top: Directory, found: Seizure, step: Step) -> None:
        self._kernel = kernel
        self._top = top
        self._found = found
        self._step = step
        self._levels: list[_Level] = []
        self._visited = 0

    def run(self, others: frozenset[str]) -> None:
        self._current = self._again()
        try:
            self._levels.append(self._visit(self._current, "", others))
            while self._levels:
                level = self._levels[-1]
                if level.names:
                    if self._is_led_on():
                        self._lose(0)
                        break
                    self._enter(level, level.names.pop())
                    continue
                self._levels.pop()
                if self._levels:
                    self._return()
        finally:
            self._current.close()

    def _is_led_on(self) -> bool:
        """
        Whether more directories were visited than there are. Who moves those that were visited
        beneath the others, again and again, could keep everybody else waiting for ever.
        """
        if self._visited % PATIENCE:
            return False
        account = self._kernel.account(self._top.descriptor, self._found.project)
        # Some of them may have been removed meanwhile.
        return self._visited > 2 * account.inodes

    def _enter(self, level: _Level, name: str) -> None:
        self._step(0)
        try:
            below = self._current.descend(name, links=False, mounts=False)
        except InvalidSubpath:
            self._found.missed[errno.EXDEV] += 1
            return
        except OSError as error:
            self._miss_directories(error, 1)
            return
        try:
            entered = self._visit(below, name, level.others_in(name))
        except BaseException:
            below.close()
            raise
        if entered.names:
            self._levels.append(entered)
            self._go(below)
        else:
            below.close()

    def _visit(self, directory: Directory, name: str, others: frozenset[str]) -> _Level:
        """Give a directory to the project, and the files in it."""
        level = _Level(name, _identity(directory), others)
        self._visited += 1
        self._found.entries += 1
        self._give(directory.descriptor, inherited=True)
        try:
            with os.scandir(directory.descriptor) as entries:
                for entry in entries:
                    self._step(1)
                    if entry.name not in others:
                        self._look(directory, entry, level)
        except OSError as error:
            self._miss(error)
        return level

    def _look(self, directory: Directory, entry: os.DirEntry[str], level: _Level) -> None:
        try:
            if entry.is_dir(follow_symlinks=False):
                level.names.append(entry.name)
                return
            self._found.entries += 1
            if not entry.is_file(follow_symlinks=False):
                return
            with (
                directory.open_file(entry.name, links=False, mounts=False) as file,
                file.descriptor() as descriptor,
            ):
                self._give(descriptor, inherited=False)
        except NotRegularFile:
            return
        except InvalidSubpath:
            self._found.missed[errno.EXDEV] += 1
        except OSError as error:
            if error.errno not in VANISHED:
                self._miss(error)

    def _give(self, descriptor: int, *, inherited: bool) -> None:
        mark = Mark(self._found.project, inherited)
        try:
            if self._kernel.mark(descriptor) != mark:
                self._kernel.set_mark(descriptor, mark)
                self._found.changed += 1
        except OSError as error:
            self._miss(error)

    def _return(self) -> None:
        """Go back to the directory above, which is the last one of the levels."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            above = Directory(os.open("..", flags, dir_fd=self._current.descriptor))
        except OSError:
            self._start_again()
            return
        if _identity(above) == self._levels[-1].identity:
            self._go(above)
        else:
            above.close()
            self._start_again()

    def _start_again(self) -> None:
        """Go as far as the levels are still the same: somebody has moved one of them."""
        self._go(self._again())
        for depth, level in enumerate(self._levels[1:], 1):
            try:
                below = self._current.descend(level.name, links=False, mounts=False)
            except (OSError, InvalidSubpath):
                self._lose(depth)
                return
            if _identity(below) != level.identity:
                below.close()
                self._lose(depth)
                return
            self._go(below)

    def _lose(self, depth: int) -> None:
        lost = sum(len(level.names) for level in self._levels[depth:])
        del self._levels[depth:]
        self._miss_directories(OSError(errno.ENOENT, os.strerror(errno.ENOENT)), lost)

    def _again(self) -> Directory:
        return Directory(os.dup(self._top.descriptor))

    def _go(self, directory: Directory) -> None:
        self._current.close()
        self._current = directory

    def _miss_directories(self, error: OSError, count: int) -> None:
        # They were there, and may be elsewhere in the tree by now.
        number = errno.ENOENT if error.errno in VANISHED else error.errno or errno.EIO
        if count:
            self._found.missed[number] += count

    def _miss(self, error: OSError) -> None:
        self._found.missed[error.errno or errno.EIO] += 1


def _identity(directory: Directory) -> tuple[int, int]:
    status = os.fstat(directory.descriptor)
    return status.st_dev, status.st_ino
