"""
The cluster that tests are run on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.engines.ceph import MDS, MON, Cluster
from tests.functional.daemon import select_pause


class EngineTests(SynchronousTestCase):
    """One is brought up, found again, and ends with all that it consists of."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ceph-")).resolve() / "cluster"
        self.addCleanup(self.directory.parent.rmdir)
        self.cluster = Cluster(self.directory)
        self.addCleanup(self.cluster.stop)

    def run_command(self, action: str) -> str:
        """Run a command of the engine; what it says."""
        command = [sys.executable, "-m", "tests.engines.ceph", action]
        done = subprocess.run(
            [*command, "--directory", str(self.directory)], check=True, stdout=subprocess.PIPE
        )
        return done.stdout.decode()

    def test_command(self) -> None:
        """A cluster outlives the command that has started it, until that which stops it."""
        said = self.run_command("up")
        mount = Path(said.splitlines()[1])
        (mount / "file").write_text("content")
        mon = self.cluster.pid(MON)
        self.assertEqual(self.run_command("up"), said)
        self.assertEqual(self.cluster.pid(MON), mon)
        self.assertEqual((mount / "file").read_text(), "content")
        self.run_command("down")
        self.assertFalse(self.directory.exists())
        self.assertNotIn(str(mount), Path("/proc/mounts").read_text())
        self.run_command("down")

    def test_bluestore(self) -> None:
        """What is on real storage is there again after a crash of all that served it."""
        self.cluster.store = "bluestore"
        self.cluster.start()
        mount = self.cluster.mount("one")
        (mount / "file").write_bytes(b"content")
        self.cluster.unmount("one")
        for name in ("osd.0", MDS):
            self.cluster.kill(name)
            self.assertIsNone(self.cluster.pid(name))
        self.cluster.start_osd("osd.0")
        self.cluster.start_mds()
        self.assertEqual((self.cluster.mount("one") / "file").read_bytes(), b"content")

    def test_keys(self) -> None:
        """Only a client that may set quotas can; the others are told."""
        self.cluster.start()
        for client, capabilities in (("may", "rwp"), ("may-not", "rw")):
            self.cluster.authorize(client, capabilities)
            self.cluster.mount(client, client)
        os.setxattr(self.cluster.mount("may", "may"), "ceph.quota.max_files", b"5")
        with self.assertRaises(PermissionError):
            os.setxattr(self.cluster.mount("may-not", "may-not"), "ceph.quota.max_files", b"6")

    def test_dies_with_its_process(self) -> None:
        """Nothing runs on when a process of tests is killed."""
        start = (
            "import os, pathlib, sys; from tests.engines.ceph import Cluster\n"
            "cluster = Cluster(pathlib.Path(sys.argv[1]))\n"
            "cluster.start(); cluster.mount('one'); os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", start, str(self.directory)], check=False)
        names = [path.name for path in (self.directory / "pids").iterdir()]
        self.assertEqual(sorted(names), ["fuse.one", MDS, "mgr.x", MON, "osd.0"])
        while any(self.cluster.pid(name) for name in names):
            select_pause()
        with self.assertRaises(OSError):
            os.listdir(self.directory / "mounts" / "one")
        self.cluster.stop()
        self.assertFalse(self.directory.exists())
