"""
``backend = "cephfs"``: its options, and what is made of them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from backends.cephfs.backend import CephFSBackend, Options
from backends.cephfs.volume import CephFSVolume
from storageproxy.config import VolumeSettings, backends
from storageproxy.durability import Durability
from storageproxy.interfaces import IBackend, IVolume, capabilities
from storageproxy.schema import structure


class OptionsTests(SynchronousTestCase):
    def check(self, **options: Any) -> list[str]:
        """Complaints; underscores stand for dashes."""
        table = {name.replace("_", "-"): value for name, value in options.items()}
        return CephFSBackend().check("test", VolumeSettings("cephfs", "/", options=table))

    def test_good(self) -> None:
        """Options that are allowed are not complained about."""
        for options in (
            {},
            {"exact_usage": True, "threads": 2, "durability": "none"},
            {"client": "client.a", "conf": "/a", "keyring": "/b", "fs_name": "c"},
        ):
            self.assertEqual(self.check(**options), [], options)

    def test_bad(self) -> None:
        """Every complaint names its key; those of the plain backend are made, too."""
        for options, key in (
            ({"client": "admin"}, "options.client"),
            ({"client": "osd.1"}, "options.client"),
            ({"client": "client."}, "options.client"),
            ({"client": 7}, "options.client"),
            ({"client": "client.a", "conf": "ceph.conf"}, "options.conf"),
            ({"client": "client.a", "keyring": ""}, "options.keyring"),
            ({"client": "client.a", "fs_name": "-"}, "options.fs-name"),
            ({"client": "client.a", "fs_name": "--id=x"}, "options.fs-name"),
            ({"conf": "/a"}, "options.conf"),
            ({"fs_name": "a"}, "options.fs-name"),
            ({"exact_usage": "perhaps"}, "options.exact-usage"),
            ({"threads": 1}, "options.threads"),
        ):
            complaints = self.check(**options)
            self.assertEqual(len(complaints), 1, options)
            self.assertTrue(complaints[0].startswith(key), complaints)

    def test_plugin(self) -> None:
        """It is found by its name."""
        found = backends()["cephfs"]
        verifyObject(IBackend, found)
        self.assertEqual(found.name, "cephfs")


class BackendTests(TestCase):
    def make_volume(self, **options: Any) -> CephFSVolume:
        path = os.path.realpath(self.mktemp())
        os.makedirs(path)
        settings = VolumeSettings(backend="cephfs", path=path, options=options)
        volume = CephFSBackend().volume("test", settings, reactor)
        self.addCleanup(volume.threads.stop)
        return volume

    def test_volume(self) -> None:
        """A volume has the options of its table."""
        volume = self.make_volume(deadline=3, durability="none", client="client.a")
        verifyObject(IVolume, volume)
        self.assertEqual(volume.threads.deadline, 3)
        self.assertEqual(volume.durability, Durability.NONE)
        self.assertEqual(self.make_volume().durability, Durability.SHARED)
        self.assertIn("metric", capabilities(volume))
        self.assertNotIn("metric", capabilities(self.make_volume()))

    async def test_command(self) -> None:
        """ceph(8) is run as the options say, with a time limit, and no shell."""
        place = Path(self.mktemp()).resolve()
        place.mkdir()
        program = place / "ceph"
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >&2\nexit 1\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.addCleanup(os.environ.__setitem__, "PATH", os.environ["PATH"])
        os.environ["PATH"] = str(place)
        table = {"client": "client.$(a)", "conf": "/c o", "keyring": "/k", "deadline": 5}
        options = structure({**table, "fs-name": "f"}, Options)
        cluster = options.make_cluster("test", reactor)
        assert cluster is not None
        self.assertEqual(
            cluster._argv,
            ("ceph", "--name", "client.$(a)", "--connect-timeout", "5", "--conf", "/c o",
             "--keyring", "/k"),
        )  # fmt: skip
        info = await cluster.hardware_info()
        self.assertEqual(info["status"], "unavailable")
        self.assertTrue(info["status_info"].endswith("ceph health: health"), info)

    async def test_no_command(self) -> None:
        """Where ceph(8) is not installed that is what is said."""
        options = structure({"client": "client.a"}, Options)
        cluster = options.make_cluster("test", reactor)
        assert cluster is not None
        cluster._argv = ("ceph-that-is-nowhere",)
        info = await cluster.hardware_info()
        self.assertEqual(info["status"], "unavailable")
        self.assertIn("is it installed?", info["status_info"])
