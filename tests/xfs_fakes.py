"""
A volume on a kernel in memory, and what sets limits there: for tests on any file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from zope.interface import implementer

from backends.xfs.commits import Commits
from backends.xfs.interfaces import ILimits, Limit
from backends.xfs.projects import Projects
from backends.xfs.registry import Registry, no_step
from backends.xfs.testing import BLOCK, MemoryKernel
from backends.xfs.tree import Tree
from storageproxy.interfaces import IThreads

IDS = range(1000, 2000)


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
