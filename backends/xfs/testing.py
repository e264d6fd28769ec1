"""
Fakes of the kernel's side of XFS projects, and of what has privileges, for tests on other systems.

Nothing is enforced: limits are remembered, and what directories hold is counted when it is asked
for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from attrs import evolve
from zope.interface import implementer

from backends.xfs.interfaces import (
    Account,
    Drifted,
    IKernel,
    IProjects,
    Limit,
    Mark,
    NotManaged,
    Quotas,
)

BLOCK = 4096

#: The mark of an inode. The true one is there as well, and so stays through renames.
_ATTRIBUTE = "user.storage-proxy.project"


@implementer(IKernel)
class MemoryKernel:
    """
    A file system that counts, whatever the true one is.

    What is made in a directory belongs to its project until it is given to another one, or moved.

    :param top: the path that it is mounted at.
    :ivar state: whether it can limit projects.
    :ivar limits: project to limit.
    """

    def __init__(self, top: str) -> None:
        self._top = os.path.realpath(top)
        self.state = Quotas.ENFORCED
        self.limits: dict[int, Limit] = {}

    def quotas(self, descriptor: int) -> Quotas:
        """See :meth:`backends.xfs.interfaces.IKernel.quotas`."""
        os.fstat(descriptor)
        return self.state

    def mark(self, descriptor: int) -> Mark:
        """See :meth:`backends.xfs.interfaces.IKernel.mark`."""
        own = _attribute(descriptor)
        if own is not None:
            return own
        try:
            project = self._handed_on(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            project = 0
        return Mark(project, project != 0 and stat.S_ISDIR(os.fstat(descriptor).st_mode))

    def set_mark(self, descriptor: int, mark: Mark) -> None:
        """See :meth:`backends.xfs.interfaces.IKernel.set_mark`."""
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._settle(descriptor)
        _set_attribute(descriptor, mark)

    def account(self, descriptor: int, project: int) -> Account:
        """See :meth:`backends.xfs.interfaces.IKernel.account`."""
        sizes = [size for owner, size in self._charged() if owner == project]
        return Account(project, self.limits.get(project, Limit(0)), sum(sizes), len(sizes))

    def accounts(self, descriptor: int) -> Iterator[Account]:
        """See :meth:`backends.xfs.interfaces.IKernel.accounts`."""
        found = {owner for owner, _ in self._charged()} | set(self.limits)
        for project in sorted(found - {0}):
            yield self.account(descriptor, project)

    # ---- for tests

    def of(self, path: str) -> Mark:
        """The mark of a file or directory."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return self.mark(descriptor)
        finally:
            os.close(descriptor)

    def put(self, path: str, project: int, inherited: bool | None = None) -> None:
        """Change the mark of a file or directory, as its owner may."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            wanted = os.path.isdir(path) if inherited is None else inherited
            self.set_mark(descriptor, Mark(project, wanted))
        finally:
            os.close(descriptor)

    def make(self, path: str, content: bytes | None = None) -> str:
        """Make a directory or a file that keeps the project it is made in, wherever it goes."""
        if content is None:
            os.mkdir(path)
        else:
            with open(path, "xb") as file:
                file.write(content)
        mark = self.of(path)
        if mark.project:
            self.put(path, mark.project)
        return path

    # ----

    def _settle(self, directory: int) -> None:
        """Give what is in a directory a mark of its own, as that of the directory will change."""
        for name in os.listdir(directory):
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                inner = os.open(name, flags, dir_fd=directory)
            except OSError:
                # A link, or a socket.
                continue
            try:
                is_one = stat.S_IFMT(os.fstat(inner).st_mode) in (stat.S_IFDIR, stat.S_IFREG)
                if is_one and _attribute(inner) is None:
                    _set_attribute(inner, self.mark(inner))
            finally:
                os.close(inner)

    def _handed_on(self, path: str) -> int:
        """The project that a path has from the directories above it."""
        while path != self._top and path.startswith(self._top):
            path = os.path.dirname(path)
            own = _attribute(path)
            if own is not None:
                return own.project if own.inherited else 0
        return 0

    def _charged(self) -> Iterator[tuple[int, int]]:
        for directory, directories, files in os.walk(self._top):
            # What somebody removes meanwhile does not count.
            with suppress(FileNotFoundError):
                project = self.of(directory).project
                yield project, 0
                for path in (os.path.join(directory, name) for name in directories + files):
                    with suppress(FileNotFoundError):
                        status = os.lstat(path)
                        if stat.S_ISREG(status.st_mode):
                            yield self.of(path).project, -(-status.st_size // BLOCK) * BLOCK
                        elif not stat.S_ISDIR(status.st_mode):
                            # It lies in its inode, and is in the project that it was made in.
                            yield project, 0


def _set_attribute(descriptor: int, mark: Mark) -> None:
    os.setxattr(descriptor, _ATTRIBUTE, b"%d %d" % (mark.project, mark.inherited))


def _attribute(place: str | int) -> Mark | None:
    try:
        project, inherited = os.getxattr(place, _ATTRIBUTE).split()
    except OSError as error:
        # What is gone, or closed, may still be looked at by its path.
        if error.errno == errno.EBADF:
            raise
        return None
    return Mark(int(project), inherited == b"1")


@implementer(IProjects)
class MemoryProjects:
    """
    The projects of such a file system.

    :param kernel: the :class:`MemoryKernel`.
    :ivar places: project to the path of its directory.
    :ivar refusal: raised by all calls, when it is set.
    """

    def __init__(self, kernel: MemoryKernel) -> None:
        self.kernel = kernel
        self.places: dict[int, str] = {}
        self.refusal: Exception | None = None

    async def allocate(self, directory: int) -> int:
        """See :meth:`backends.xfs.interfaces.IProjects.allocate`."""
        self._refuse()
        path = os.readlink(f"/proc/self/fd/{directory}")
        for project, place in self.places.items():
            if place == path and self.kernel.mark(directory).project == project:
                return project
        project = max(self.places, default=1000) + 1
        self.places[project] = path
        self.kernel.set_mark(directory, Mark(project, True))
        return project

    async def account(self, directory: int) -> Account:
        """See :meth:`backends.xfs.interfaces.IProjects.account`."""
        self._refuse()
        path = os.readlink(f"/proc/self/fd/{directory}")
        own = {project for project, place in self.places.items() if place == path}
        if not own:
            raise NotManaged(f"{path} has no project")
        project = self.kernel.mark(directory).project
        if project not in own:
            raise Drifted(f"{path} has project {project}, and not its own")
        return self.kernel.account(directory, project)

    async def set_limit(self, directory: int, limit: Limit) -> Account:
        """See :meth:`backends.xfs.interfaces.IProjects.set_limit`."""
        self._limit((await self.account(directory)).project, limit)
        return await self.account(directory)

    async def release(self, project: int) -> bool:
        """See :meth:`backends.xfs.interfaces.IProjects.release`."""
        self._refuse()
        if os.path.isdir(self.places.get(project, "")):
            raise NotManaged(f"{self.places[project]} is there")
        if self.kernel.account(-1, project).inodes:
            return False
        self.places.pop(project, None)
        self.kernel.limits.pop(project, None)
        return True

    async def reconcile(self) -> list[str]:
        """See :meth:`backends.xfs.interfaces.IProjects.reconcile`."""
        self._refuse()
        found = []
        for project, path in list(self.places.items()):
            if not os.path.exists(path) and await self.release(project):
                found.append(f"project {project} is free, as {path} is gone")
        return found

    def _limit(self, project: int, limit: Limit) -> None:
        self.kernel.limits[project] = evolve(limit, size=-(-limit.size // BLOCK) * BLOCK)

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal
