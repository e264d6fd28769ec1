"""
A kernel with project quotas, and what sets limits, in memory: for tests on any file system.

Marks of inodes are kept in extended attributes. What is made in a directory inherits nothing by
itself, as no kernel sees to it: :meth:`MemoryKernel.inherit` does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from zope.interface import implementer

from backends.xfs.commits import Commits
from backends.xfs.interfaces import Account, IKernel, ILimits, Limit, Mark, Quotas
from backends.xfs.projects import Projects
from backends.xfs.registry import Registry, no_step
from backends.xfs.tree import Tree
from storageproxy.interfaces import IThreads

_ATTRIBUTE = "user.storage-proxy-test"
BLOCK = 4096
IDS = range(1000, 2000)


@implementer(IKernel)
class MemoryKernel:
    """
    :param top: the directory that stands for a mounted file system.
    :ivar state: what :meth:`quotas` says.
    :ivar limits: of projects.
    :ivar closed: paths beneath the top whose permissions do not allow to open them.
    """

    def __init__(self, top: str) -> None:
        self.top = top
        self.state = Quotas.ENFORCED
        self.limits: dict[int, Limit] = {}

    def quotas(self, descriptor: int) -> Quotas:
        """See :meth:`backends.xfs.interfaces.IKernel.quotas`."""
        os.fstat(descriptor)
        return self.state

    def mark(self, descriptor: int) -> Mark:
        """See :meth:`backends.xfs.interfaces.IKernel.mark`."""
        try:
            project, inherited = os.getxattr(descriptor, _ATTRIBUTE).split()
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return Mark(0, False)
        return Mark(int(project), inherited == b"1")

    def set_mark(self, descriptor: int, mark: Mark) -> None:
        """See :meth:`backends.xfs.interfaces.IKernel.set_mark`."""
        os.setxattr(descriptor, _ATTRIBUTE, b"%d %d" % (mark.project, mark.inherited))

    def account(self, descriptor: int, project: int) -> Account:
        """See :meth:`backends.xfs.interfaces.IKernel.account`."""
        os.fstat(descriptor)
        sizes = [size for owner, size in self._charged() if owner == project]
        limit = self.limits.get(project, Limit(0))
        return Account(project, limit, sum(sizes), len(sizes))

    def accounts(self, descriptor: int) -> Iterator[Account]:
        """See :meth:`backends.xfs.interfaces.IKernel.accounts`."""
        found = {owner for owner, _ in self._charged()} | set(self.limits)
        for project in sorted(found - {0}):
            yield self.account(descriptor, project)

    def _charged(self) -> Iterator[tuple[int, int]]:
        for directory, _, files in os.walk(self.top):
            for path in (directory, *(os.path.join(directory, name) for name in files)):
                if not os.path.islink(path):
                    yield self.of(path).project, os.stat(path).st_blocks * 512

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
        """Make a directory, or a file, which inherits the project of the directory above."""
        if content is None:
            os.mkdir(path)
        else:
            with open(path, "xb") as file:
                file.write(content)
        above = self.of(os.path.dirname(path))
        if above.inherited:
            self.put(path, above.project)
        return path


@implementer(ILimits)
class MemoryLimits:
    """
    :param kernel: has the limits.
    :ivar before: called before a limit is set.
    :ivar says: what is said in the place of setting it.
    """

    def __init__(self, kernel: MemoryKernel) -> None:
        self.kernel = kernel
        self.calls: list[tuple[str, int, Limit]] = []
        self.before: Callable[[], object] = lambda: None
        self.says = ""

    async def set(self, mount: str, project: int, limit: Limit) -> str:
        """See :meth:`backends.xfs.interfaces.ILimits.set`."""
        self.calls.append((mount, project, limit))
        self.before()
        if not self.says:
            size = -(-(limit.size // 512 * 512) // BLOCK) * BLOCK
            self.kernel.limits[project] = Limit(size, limit.inodes)
            if self.kernel.limits[project] == Limit(0):
                del self.kernel.limits[project]
        return self.says


class Rig:
    """
    A volume and all that its projects need.

    :param directory: an empty one.
    :param threads: those of the volume.
    """

    def __init__(self, directory: str, threads: IThreads) -> None:
        self.top = os.path.join(os.path.realpath(directory), "volume")
        os.mkdir(self.top)
        self.kernel = MemoryKernel(self.top)
        self.limits = MemoryLimits(self.kernel)
        self.places = os.path.join(directory, "projects")
        self.names = os.path.join(directory, "projid")
        self.threads = threads
        self.steps: list[str] = []
        self.on_step: Callable[[str], object] = no_step
        self.projects = self.another()

    def another(self) -> Projects:
        """One more daemon, so to say."""
        registry = Registry(self.places, self.names, self.step)
        tree = Tree(self.top, self.kernel)
        commits = Commits(registry, self.threads)
        return Projects(tree, commits, self.limits, self.threads, IDS, self.step)

    def step(self, name: str) -> None:
        """Note a step, and do what the test wants then."""
        self.steps.append(name)
        self.on_step(name)

    def path(self, *names: str) -> str:
        """A path in the volume."""
        return os.path.join(self.top, *names)

    def folder(self, digits: int, scope: str = "") -> str:
        """Make a vfolder; nothing gives it a project."""
        path = self.top
        for name in (*([scope] if scope else []), "ab", "cd", f"{digits:028x}"):
            path = os.path.join(path, name)
            if not os.path.isdir(path):
                self.kernel.make(path)
        return path
