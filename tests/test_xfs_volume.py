"""
The XFS backend without XFS: the conformance of its volumes, and what it does besides.
"""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from backends.xfs.testing import MemoryKernel, MemoryProjects
from backends.xfs.volume import XFSVolume
from storageproxy.conformance_quota import QuotaConformance, ScopeConformance
from storageproxy.testing import SynchronousThreads
from storageproxy.threads import VolumeThreads
from storageproxy.trees import Usage


class XFSConformance(QuotaConformance, ScopeConformance):
    filled = Usage(6, 2 * 4096)

    def setUp(self) -> None:
        self.systems: dict[str, MemoryProjects] = {}
        super().setUp()

    def projects(self, path: str) -> MemoryProjects:
        return self.systems.setdefault(path, MemoryProjects(MemoryKernel(path)))


class SynchronousXFSTests(XFSConformance, TestCase):
    def make_volume(self, path: str) -> XFSVolume:
        projects = self.projects(path)
        return XFSVolume(
            "test", path, "", SynchronousThreads(), Clock(), lambda: projects, projects.kernel
        )


class ThreadedXFSTests(XFSConformance, TestCase):
    def make_volume(self, path: str) -> XFSVolume:
        projects = self.projects(path)
        threads = VolumeThreads(reactor, "test", size=8)
        self.addCleanup(threads.stop)
        return XFSVolume("test", path, "", threads, reactor, lambda: projects, projects.kernel)
