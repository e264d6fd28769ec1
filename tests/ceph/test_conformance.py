"""
What every backend has to pass, on a mounted CephFS.
"""

from __future__ import annotations

from storageproxy.conformance_quota import EnforcedScopeConformance, NestedLimitsConformance
from tests.ceph import counting
from tests.ceph.volumes import OnCephFS


class CephFSTests(EnforcedScopeConformance, NestedLimitsConformance, OnCephFS):
    """What is expected of volumes holds of one on CephFS."""

    async def counted(self) -> None:
        """Return when the cluster has counted what was written."""
        await counting.counted(self.path)
