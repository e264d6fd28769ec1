"""
Limits, as the real daemon sets them, and as they hold on two mounts of one CephFS.
"""

from __future__ import annotations

import shutil
from uuid import uuid4

from twisted.trial.unittest import SynchronousTestCase

from backends.cephfs.attributes import Attributes
from tests.ceph import counting
from tests.ceph_attributes import AttributesConformance
from tests.functional.daemon import select_pause

MEBI = 1 << 20
#: What one client may write that another does not know of yet.
SLACK = 8 * MEBI


class AttributesTests(AttributesConformance, SynchronousTestCase):
    """What is expected of CephFS holds of it."""

    def setUp(self) -> None:
        path = counting.cluster().mount("one") / uuid4().hex
        path.mkdir()
        self.addCleanup(shutil.rmtree, path)
        self.path = str(path)
        self.attributes = Attributes()

    def eventually(self, descriptor: int, name: str, value: int) -> None:
        """It is a little late."""
        for _ in range(200):
            if self.attributes.get(descriptor, name) == value:
                break
            select_pause()
        super().eventually(descriptor, name, value)
