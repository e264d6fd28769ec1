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

from backends.xfs import backend
from backends.xfs.backend import Options, XFSBackend, connect
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


class ConnectTests(SynchronousTestCase):
    def connect(self, **options: Any) -> Any:
        return connect(Options(**options), "test", "/mnt", SynchronousThreads(), reactor)

    def load(self, name: str) -> Any:
        """Stands for what is loaded by name; says what it is made with."""

        class Loaded:
            def __init__(self, *args: Any) -> None:
                self.name, self.args, self.more = name, args, {}

            @classmethod
            def embedded(cls, *args: Any, **more: Any) -> Any:
                made = cls(*args)
                made.more = more
                return made

        return Loaded

    def setUp(self) -> None:
        self.patch(backend, "namedAny", self.load)
        self.patch(os, "geteuid", lambda: 0)
        self.patch(shutil, "which", lambda name, path: f"/usr/sbin/{name}")

    def test_embedded(self) -> None:
        """Root sets limits itself, with the registry that it is told."""
        made = self.connect(ids=[5, 9], projects="/p", projid="/q")
        self.assertEqual(made.name, "backends.xfs.projects.Projects")
        self.assertIs(made.args[0], reactor)
        self.assertEqual(made.args[1], "/mnt")
        self.assertEqual(made.args[3].args, ("/p", "/q"))
        self.assertEqual(made.more, {"ids": range(5, 10)})

    def test_embedded_defaults(self) -> None:
        """The registry is that of the system, unless another one is named."""
        made = self.connect()
        self.assertEqual(made.args[3].args, ("/etc/projects", "/etc/projid"))
        self.assertEqual(made.more, {})

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
                    self.assertEqual(made.name, "backends.xfs.remote.RemoteProjects")
                    self.assertEqual(made.args, (reactor, path, "/mnt"))

    def test_no_agent(self) -> None:
        """An agent that is not there is named, with what to do."""
        error = self.assertRaises(VolumeUnavailable, self.connect, agent="/nowhere/agent.sock")
        self.assertIn("/nowhere/agent.sock", error.message)
        self.assertIn("storage-proxy-xfs-agent", error.message)
