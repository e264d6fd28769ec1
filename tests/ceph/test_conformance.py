"""
What every backend has to pass, on a mounted CephFS.
"""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from storageproxy.conformance_quota import EnforcedScopeConformance, NestedLimitsConformance
from tests.ceph import counting
from tests.ceph.volumes import OnCephFS


class CephFSTests(OnCephFS, EnforcedScopeConformance, NestedLimitsConformance, TestCase):
    """What is expected of volumes holds of one on CephFS."""

    async def counted(self) -> None:
        """Return when the cluster has counted what was written."""
        await counting.counted(self.path)
