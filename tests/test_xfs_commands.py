"""
What xfs_quota is asked, told by a stand-in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from backends.xfs.commands import XFSQuota
from backends.xfs.interfaces import ILimits, Limit
from storageproxy.errors import BackendFailure, VolumeUnavailable
from storageproxy.testing import GIVE_UP
from tests.test_process import Reactor


class XFSQuotaTests(TestCase):
    timeout = GIVE_UP

    def stand_in(self, script: str, reactor: Any = reactor) -> XFSQuota:
        path = Path(self.mktemp()).absolute()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return XFSQuota(reactor, 15.0, str(path))

    def test_interface(self) -> None:
        """It sets limits as is wanted of it."""
        verifyObject(ILimits, XFSQuota(reactor))

    async def test_arguments(self) -> None:
        """The id is a number, and files of projects and names are empty ones."""
        quota = self.stand_in('printf "%s\\n" "$@"')
        said = await quota.set("/mnt/a b", 101, Limit(4096, 20))
        self.assertEqual(
            said.split("\n"),
            "-x|-D|/dev/null|-P|/dev/null|-c"
            "|limit -p bsoft=0 bhard=4096 isoft=0 ihard=20 101|/mnt/a b".split("|"),
        )

    async def test_says(self) -> None:
        """What it complains about is what is told."""
        quota = self.stand_in("echo out; echo cannot set limits >&2; exit 0")
        self.assertEqual(await quota.set("/mnt", 101, Limit(0)), "cannot set limits")

    async def test_silent(self) -> None:
        """When it says nothing, its status is told."""
        self.assertIn("status 1", await self.stand_in("exit 1").set("/mnt", 101, Limit(0)))

    async def test_missing(self) -> None:
        """When it is not installed, that is said."""
        with self.assertRaises(BackendFailure) as caught:
            await XFSQuota(reactor, command="no-such-command").set("/mnt", 101, Limit(0))
        self.assertIn("no-such-command: not found", str(caught.exception))
        self.assertIn("xfsprogs", str(caught.exception))

    async def test_late(self) -> None:
        """When it hangs, the volume is unavailable."""
        clock = Reactor()
        quota = self.stand_in("exec sleep 1000", reactor=clock)
        made = Deferred.fromCoroutine(quota.set("/mnt", 101, Limit(0)))
        clock.advance(15.0)
        with self.assertRaises(VolumeUnavailable) as caught:
            await made
        self.assertIn("/mnt: ", str(caught.exception))
        await clock.ended[0]
