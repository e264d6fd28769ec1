"""
Fakes of the kernel's side of XFS projects, and of what has privileges, for tests on other systems.

Nothing is enforced: limits are remembered, and what directories hold is counted when it is asked
for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from attrs import evolve
from zope.interface import implementer

from backends.xfs.interfaces import Account, IKernel, IProjects, Limit, Mark, Quotas

BLOCK = 4096

#: The project of a directory. The true one is on the inode as well, and so stays through renames.
_ATTRIBUTE = "user.storage-proxy.project"


@implementer(IKernel)
class MemoryKernel:
    """
    A file system that counts.

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
        return self.state

    def mark(self, descriptor: int) -> Mark:
        """See :meth:`backends.xfs.interfaces.IKernel.mark`."""
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        project = self._project(path)
        return Mark(project, project != 0 and os.path.isdir(path))

    def set_mark(self, descriptor: int, mark: Mark) -> None:
        """See :meth:`backends.xfs.interfaces.IKernel.set_mark`."""
        os.setxattr(descriptor, _ATTRIBUTE, str(mark.project).encode())

    def account(self, descriptor: int, project: int) -> Account:
        """See :meth:`backends.xfs.interfaces.IKernel.account`."""
        found = Account(project, self.limits.get(project, Limit(0)), 0, 0)
        for path, directories, files in os.walk(self._top):
            if self._project(path) == project:
                found = evolve(found, inodes=found.inodes + 1)
                names = [name for name in directories if os.path.islink(os.path.join(path, name))]
                for name in names + files:
                    found = evolve(
                        found,
                        inodes=found.inodes + 1,
                        size=found.size + _charge(os.lstat(os.path.join(path, name))),
                    )
        return found

    def accounts(self, descriptor: int) -> Iterator[Account]:
        """See :meth:`backends.xfs.interfaces.IKernel.accounts`."""
        projects = {self._project(path) for path, _, _ in os.walk(self._top)}
        for project in sorted(projects | set(self.limits)):
            yield self.account(descriptor, project)

    def _project(self, path: str) -> int:
        while path.startswith(self._top):
            try:
                return int(os.getxattr(path, _ATTRIBUTE))
            except OSError:
                # It inherits that of the one it lies in.
                path = os.path.dirname(path)
        return 0


def _charge(status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        # Directories and links that are small lie in their inodes.
        return 0
    return -(-status.st_size // BLOCK) * BLOCK


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
        return self.kernel.account(directory, self.kernel.mark(directory).project)

    async def set_limit(self, directory: int, limit: Limit) -> Account:
        """See :meth:`backends.xfs.interfaces.IProjects.set_limit`."""
        self._refuse()
        self._limit(self.kernel.mark(directory).project, limit)
        return await self.account(directory)

    async def release(self, project: int) -> bool:
        """See :meth:`backends.xfs.interfaces.IProjects.release`."""
        self._refuse()
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
