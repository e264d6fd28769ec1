"""
What every backend has to pass, on a mounted CephFS.
"""

from __future__ import annotations

import shutil
from uuid import uuid4

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from backends.cephfs.backend import CephFSBackend
from backends.cephfs.volume import CephFSVolume
from storageproxy.config import VolumeSettings
from storageproxy.conformance_quota import EnforcedScopeConformance, NestedLimitsConformance
from tests.ceph import counting


class CephFSTests(EnforcedScopeConformance, NestedLimitsConformance, TestCase):
    """The cluster keeps account of what folders hold."""

    timeout = 300
    options: dict[str, object] = {}

    def make_path(self) -> str:
        """A directory on the mount."""
        path = counting.cluster().mount("one") / uuid4().hex
        path.mkdir()
        self.addCleanup(shutil.rmtree, path)
        return str(path)

    def make_volume(self, path: str) -> CephFSVolume:
        """A volume as the configuration makes it."""
        settings = VolumeSettings(backend="cephfs", path=path, options=self.options)
        volume = CephFSBackend().volume("test", settings, reactor)
        self.addCleanup(volume.threads.stop)
        return volume

    async def counted(self) -> None:
        """Return when the cluster has counted what was written."""
        await counting.counted(self.path)

    async def test_check(self) -> None:
        """A volume on CephFS can be used."""
        await self.volume.check()
