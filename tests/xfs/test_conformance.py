"""
What every backend has to pass, on a real volume.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from backends.xfs.backend import XFSBackend
from backends.xfs.kernel import Kernel
from backends.xfs.remote import RemoteProjects
from backends.xfs.volume import XFSVolume
from storageproxy.config import VolumeSettings
from storageproxy.conformance_quota import EnforcedQuotaConformance, SingleLimitConformance
from storageproxy.threads import VolumeThreads
from storageproxy.trees import Usage
from tests.xfs import kernel, services


class EmbeddedTests(EnforcedQuotaConformance, SingleLimitConformance, TestCase):
    """Limits are set by this process, which is root."""

    filled = Usage(6, 2 * 4096)

    def make_path(self) -> str:
        """A directory on the mount."""
        path = kernel.mount() / uuid4().hex
        path.mkdir()
        return str(path)

    def options(self) -> dict[str, object]:
        """``[volume.NAME.options]``"""
        registry = Path(os.environ["TMPDIR"])
        return {"projects": str(registry / "projects"), "projid": str(registry / "projid")}

    def make_volume(self, path: str) -> XFSVolume:
        """A volume as the configuration makes it."""
        settings = VolumeSettings(backend="xfs", path=path, options=self.options())
        volume = XFSBackend().volume("test", settings, reactor)
        self.addCleanup(volume.threads.stop)
        return volume


class AgentTests(EmbeddedTests):
    """Limits are set by the agent."""

    def setUp(self) -> None:
        """Have volumes that the agent knows."""
        self.spare = services.spare_volumes()
        super().setUp()

    def make_path(self) -> str:
        """A directory of the agent's."""
        return str(next(self.spare))

    def make_volume(self, path: str) -> XFSVolume:
        """A volume with a connection to the agent."""
        threads = VolumeThreads(reactor, "test", size=8)
        self.addCleanup(threads.stop)
        projects = RemoteProjects(reactor, str(services.agent().socket), path)
        self.addCleanup(projects.disconnect)
        return XFSVolume("test", path, "", threads, reactor, lambda: projects, Kernel())
