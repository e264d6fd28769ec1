"""
Two daemons on two mounts: each upload has one writer, and the newest request counts.
"""

from __future__ import annotations

from tests.ceph.case import CephCase
from tests.functional import test_steal
from tests.functional.daemon import Daemon


class StealTests(CephCase, test_steal.StealTests):
    """What holds for two daemons on one disk, with a CephFS between them."""

    def make_daemon(self) -> Daemon:
        """The one on the first mount."""
        return self.make_daemon_on(0)

    def make_other(self) -> Daemon:
        """The one on the other mount."""
        return self.make_daemon_on(1)
