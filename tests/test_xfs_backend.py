"""
``backend = "xfs"``: its options, and where limits are set.
"""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from backends.xfs.backend import Options, XFSBackend, connect
from backends.xfs.projects import IDS, Projects
from backends.xfs.remote import RemoteProjects
from storageproxy.config import VolumeSettings, backends
from storageproxy.durability import Durability
from storageproxy.errors import BackendFailure, VolumeUnavailable
from storageproxy.interfaces import IBackend, IVolume
from storageproxy.testing import SynchronousThreads


class OptionsTests(SynchronousTestCase):
    def check(self, **options: Any) -> list[str]:
        return XFSBackend().check("test", VolumeSettings("xfs", "/", options=options))

    def test_good(self) -> None:
        """Options that are allowed are not complained about."""
        for options in (
            {},
            {"agent": "embedded", "ids": [5, 9], "projects": "/a", "projid": "/b"},
            {"agent": "/run/agent.sock", "threads": 2, "durability": "none"},
            {"ids": [1, 4294967294]},
        ):
            self.assertEqual(self.check(**options), [], options)

    def test_bad(self) -> None:
        """Every complaint names its key; those of the plain backend are made, too."""
        for options, key in (
            ({"agent": "agent.sock"}, "options.agent"),
            ({"agent": ""}, "options.agent"),
            ({"agent": 7}, "options.agent"),
            ({"agent": "/a", "ids": [1, 2]}, "options.ids"),
            ({"agent": "/a", "projects": "/b"}, "options.projects"),
            ({"agent": "/a", "projid": "/b"}, "options.projid"),
            ({"agent": "/a", "reconcile-interval": "1d"}, "options.reconcile-interval"),
            ({"reconcile-interval": "daily"}, "options.reconcile-interval"),
            ({"reconcile-interval": -1}, "options.reconcile-interval"),
            ({"ids": [9, 5]}, "options.ids"),
            ({"ids": [0, 5]}, "options.ids"),
            ({"ids": [1, 4294967295]}, "options.ids"),
            ({"ids": [1]}, "options.ids"),
            ({"ids": "1-5"}, "options.ids"),
            ({"projects": "projects"}, "options.projects"),
            ({"projid": "projid"}, "options.projid"),
            ({"threads": 1}, "options.threads"),
        ):
            complaints = self.check(**options)
            self.assertEqual(len(complaints), 1, options)
            self.assertTrue(complaints[0].startswith(key), complaints)

    def test_plugin(self) -> None:
        """The daemon finds the backend, which needs nothing to be there yet."""
        found = backends()["xfs"]
        verifyObject(IBackend, found)
        verifyObject(IBackend, XFSBackend())
        settings = VolumeSettings(
            "xfs", "/", options={"threads": 8, "durability": "none", "agent": "/nowhere"}
        )
        volume = found.volume("test", settings, reactor)
        self.addCleanup(volume.threads.stop)
        verifyObject(IVolume, volume)
        self.assertEqual(volume.backend, "xfs")
        self.assertEqual(volume.threads.size, 8)
        self.assertIs(volume.durability, Durability.NONE)


class IntervalTests(SynchronousTestCase):
    def test_reconciling(self) -> None:
        """Root reconciles each day, unless something else is said; the agent does so by itself."""
        for options, expected in (
            ({}, 86400.0),
            ({"agent": "embedded", "reconcile-interval": "2h"}, 7200.0),
            ({"reconcile-interval": 0}, 0.0),
            ({"agent": "/run/agent.sock"}, 0.0),
        ):
            settings = VolumeSettings("xfs", "/", options=options)
            volume = XFSBackend().volume("test", settings, reactor)
            self.addCleanup(volume.threads.stop)
            self.assertEqual(volume.maintenance_interval, expected)


class ConnectTests(SynchronousTestCase):
    def connect(self, **options: Any) -> Any:
        return connect(Options(**options), "test", "/mnt", SynchronousThreads(), reactor)

    def setUp(self) -> None:
        self.patch(os, "geteuid", lambda: 0)
        self.patch(shutil, "which", lambda name, path: f"/usr/sbin/{name}")

    def test_embedded(self) -> None:
        """Root sets limits itself, with the registry that it is told."""
        made = self.connect(ids=[5, 9], projects="/p", projid="/q")
        self.assertIsInstance(made, Projects)
        self.assertEqual((made.tree.path, made.ids), ("/mnt", range(5, 10)))
        self.assertEqual((made.registry.projects, made.registry.projid), ("/p", "/q"))

    def test_embedded_defaults(self) -> None:
        """The registry is that of the system, unless another one is named."""
        made = self.connect()
        self.assertEqual(made.registry.projects, os.path.realpath("/etc/projects"))
        self.assertEqual(made.registry.projid, os.path.realpath("/etc/projid"))
        self.assertEqual(made.ids, IDS)

    def test_not_root(self) -> None:
        """An ordinary user is told to start the agent."""
        self.patch(os, "geteuid", lambda: 1000)
        error = self.assertRaises(BackendFailure, self.connect)
        self.assertIn("storage-proxy-xfs-agent", error.message)
        self.assertIn("options.agent", error.message)

    def test_no_command(self) -> None:
        """Without xfs_quota it is told which package has it."""
        self.patch(shutil, "which", lambda name, path: None)
        self.assertIn("xfsprogs", self.assertRaises(BackendFailure, self.connect).message)

    def test_agent(self) -> None:
        """An agent that answers is used, however many wait for it."""
        path = os.path.relpath(self.mktemp())
        with socket.socket(socket.AF_UNIX) as agent:
            agent.bind(path)
            agent.listen(0)
            self.patch(os, "geteuid", lambda: 1000)
            with socket.socket(socket.AF_UNIX) as before:
                before.connect(path)
                for _ in range(3):
                    made = self.connect(agent=path)
                    self.assertIsInstance(made, RemoteProjects)

    def test_no_agent(self) -> None:
        """An agent that is not there is named, with what to do."""
        error = self.assertRaises(VolumeUnavailable, self.connect, agent="/nowhere/agent.sock")
        self.assertIn("/nowhere/agent.sock", error.message)
        self.assertIn("storage-proxy-xfs-agent", error.message)
