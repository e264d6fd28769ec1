# -*- test-case-name: tests.test_xfs_tree -*-
"""
The directories of a volume on XFS: where they are, and to which projects they belong.

All of it blocks, and belongs into a volume's threads. People write into the tree meanwhile, so it
is gone through by descriptor, and without following links.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import TypeAlias

from attrs import frozen

from backends.xfs.interfaces import IKernel, NotManaged, Quotas
from storageproxy.beneath import Directory, File
from storageproxy.errors import BackendFailure, InvalidSubpath
from storageproxy.trees import VANISHED, Step, unwatched

#: Called with the path of what cannot be looked at, and why.
Missed: TypeAlias = Callable[[str, OSError], object]

_PREFIX, _REST, _SCOPE = (re.compile(f"[0-9a-f]{{{digits}}}") for digits in (2, 28, 32))


@frozen
class Tree:
    """
    The tree of a volume.

    :param path: the volume's directory, absolute and without symbolic links.
    :param kernel: an :class:`IKernel`.
    """

    path: str
    kernel: IKernel

    def open(self) -> Directory:
        """
        Open the volume's directory.

        :raises BackendFailure: when projects cannot be limited in it; it says what to do.
        """
        root = Directory.open_root(self.path)
        try:
            quotas = self.kernel.quotas(root.descriptor)
            if quotas is not Quotas.ENFORCED:
                raise BackendFailure(f"{self.path} {quotas.value}")
        except BaseException:
            root.close()
            raise
        return root

    def lock(self, registry: str) -> File:
        """
        Lock (flock(2)) what all who share a registry do on this file system, until it is closed.

        Whoever can open a file can lock it, also for reading only: so it is one that only root can
        open, in the directory of the registry, where only root can make one. All agents and
        daemons of a machine find the same one there, whatever their volumes on the file system
        are. It is named by the device, which has one number for as long as it is mounted.

        :param registry: the path of the file of projects.
        """
        with self.open() as root:
            device = os.fstat(root.descriptor).st_dev
        path = f"{registry}.{os.major(device)}-{os.minor(device)}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        held = File(os.open(path, flags, 0o600))
        try:
            with held.descriptor() as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            held.close()
            raise
        return held

    @property
    def mount(self) -> str:
        """Where the file system is mounted that the volume lies on."""
        device, path = os.stat(self.path).st_dev, self.path
        while path != "/" and os.stat(above := os.path.dirname(path)).st_dev == device:
            path = above
        return path

    def locate(self, directory: int) -> str:
        """
        Say where an open directory is.

        The kernel knows it by the descriptor. That is looked for again beneath the volume, as it
        may have been mounted elsewhere for who opened it.

        :return: its path, which begins with that of the volume.
        :raises NotManaged: when it is no directory in the volume.
        """
        status = os.fstat(directory)
        if not stat.S_ISDIR(status.st_mode):
            raise NotManaged("what projects are given to is a directory, and no file")
        path = os.readlink(f"/proc/self/fd/{directory}")
        if not self.has(path):
            raise NotManaged(f"{path} is not in the volume {self.path}")
        with self.open() as root:
            if status.st_dev != os.fstat(root.descriptor).st_dev:
                raise NotManaged(f"{path} is on another file system than the volume {self.path}")
            try:
                found = root.open(self.relative(path), os.O_PATH | os.O_NOFOLLOW, links=False)
            except PermissionError:
                raise BackendFailure(
                    f"{path} cannot be looked for: each directory above it has to be searchable"
                    " for who gives out projects"
                ) from None
            except (InvalidSubpath, OSError) as error:
                raise NotManaged(f"{path} is not there: {error}") from None
            try:
                if not os.path.samestat(os.fstat(found), status):
                    raise NotManaged(f"{path} is another directory by now")
            finally:
                os.close(found)
        return path

    def has(self, path: str) -> bool:
        """Whether a path names something in the volume."""
        return path.startswith(self.path.rstrip("/") + "/")

    def relative(self, path: str) -> str:
        """A path in the volume, from its directory on."""
        return path[len(self.path.rstrip("/")) + 1 :]

    def find(self, root: Directory, path: str) -> Directory | None:
        """
        Open the directory at a path in the volume, unless there is none.

        :param root: the open volume.
        :raises OSError: when it cannot be looked at: EXDEV when something else is mounted there.
        """
        try:
            return root.descend(self.relative(path), links=False, mounts=False)
        except InvalidSubpath:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path) from None
        except OSError as error:
            if error.errno in VANISHED:
                return None
            raise

    def folders(
        self, root: Directory, missed: Missed, step: Step = unwatched
    ) -> Iterator[tuple[str, bool]]:
        """
        Look for the vfolders of the volume, and for the scopes that have some.

        :param root: the open volume.
        :param missed: called for each directory above them that cannot be looked at.
        :return: the path of each, and whether it is a scope; those before the vfolders in them.
        """
        yield from self._folders(root, "", missed)
        for scope in self._names(root, ".", _SCOPE, missed):
            step(1)
            yield os.path.join(self.path, scope), True
            yield from self._folders(root, f"{scope}/", missed)

    def _folders(self, root: Directory, above: str, missed: Missed) -> Iterator[tuple[str, bool]]:
        for first in self._names(root, above or ".", _PREFIX, missed):
            for second in self._names(root, f"{above}{first}", _PREFIX, missed):
                for rest in self._names(root, f"{above}{first}/{second}", _REST, missed):
                    yield os.path.join(self.path, f"{above}{first}/{second}/{rest}"), False

    def _names(
        self, root: Directory, path: str, pattern: re.Pattern[str], missed: Missed
    ) -> list[str]:
        """The directories in one that have certain names."""
        try:
            directory = self.find(root, os.path.join(self.path, path))
            if directory is None:
                return []
            with directory, os.scandir(directory.descriptor) as found:
                return sorted(
                    entry.name
                    for entry in found
                    if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                )
        except OSError as error:
            missed(os.path.join(self.path, path), error)
            return []
