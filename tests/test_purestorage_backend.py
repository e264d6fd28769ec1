"""
``backend = "purestorage"``: its options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from backends.purestorage.backend import Options, PureStorageBackend
from backends.purestorage.connections import Unverified, policy
from backends.purestorage.volume import PureStorageVolume
from storageproxy.config import VolumeSettings, backends
from storageproxy.durability import Durability
from storageproxy.interfaces import IBackend, IVolume
from storageproxy.schema import structure
from storageproxy.testing import result_of
from tests.engines.flashblade.certificates import Authority

SAMPLE = {
    "purity_endpoint": "https://pure01.example.com",
    "purity_ssl_verify": False,
    "purity_api_token": "T-11111111-2222-3333-4444-000000000000",
    "purity_api_version": "1.8",
    "purity_fs_name": "FB-NFS1",
}


class OptionsTests(SynchronousTestCase):
    def check(self, **options: Any) -> list[str]:
        table = {key: value for key, value in {**SAMPLE, **options}.items() if value is not None}
        return PureStorageBackend().check("fb", VolumeSettings("purestorage", "/", options=table))

    def authority(self) -> str:
        path = Path(self.mktemp())
        path.write_bytes(Authority().pem)
        return str(path)

    def test_good(self) -> None:
        """The original's sample is taken, and the rest may be left out."""
        for options in (
            {},
            {"purity_api_version": None, "purity_ssl_verify": None},
            {"purity_api_version": "2.0", "purity_ssl_verify": "yes"},
            {"purity_api_version": "1.8.1", "purity_endpoint": "https://10.0.0.1:8443/"},
            {"purity_endpoint": "https://[fd00::1]:443", "threads": 4, "durability": "none"},
            {"purity_ca_file": self.authority(), "items_of_later_releases": 1},
        ):
            self.assertEqual(self.check(**options), [], options)

    def test_bad(self) -> None:
        """Every complaint names its key, and tells no token."""
        for options, key in (
            ({"purity_endpoint": None}, "purity_endpoint"),
            ({"purity_endpoint": "pure01.example.com"}, "purity_endpoint"),
            ({"purity_endpoint": "http://pure01.example.com"}, "purity_endpoint"),
            ({"purity_endpoint": "https://pure01.example.com/api"}, "purity_endpoint"),
            ({"purity_endpoint": "https://user:secret@host"}, "purity_endpoint"),
            ({"purity_endpoint": "https://"}, "purity_endpoint"),
            ({"purity_endpoint": 7}, "purity_endpoint"),
            ({"purity_api_token": None}, "purity_api_token"),
            ({"purity_api_token": ""}, "purity_api_token"),
            ({"purity_api_token": "T-secret\nx"}, "purity_api_token"),
            ({"purity_api_token": "T-secret 1"}, "purity_api_token"),
            ({"purity_api_token": ["T-secret"]}, "purity_api_token"),
            ({"purity_fs_name": None}, "purity_fs_name"),
            ({"purity_fs_name": " "}, "purity_fs_name"),
            ({"purity_fs_name": "FB-NFS1,other"}, "purity_fs_name"),
            ({"purity_api_version": 1.8}, "purity_api_version"),
            ({"purity_api_version": "1.7"}, "purity_api_version"),
            ({"purity_api_version": "2.30"}, "purity_api_version"),
            ({"purity_api_version": "latest"}, "purity_api_version"),
            ({"purity_ssl_verify": "perhaps"}, "purity_ssl_verify"),
            ({"purity_ca_file": "/does/not/exist"}, "purity_ca_file"),
            ({"purity_ca_file": "/dev/null"}, "purity_ca_file"),
            ({"threads": 1}, "threads"),
        ):
            complaints = self.check(**options)
            self.assertEqual(len(complaints), 1, options)
            self.assertTrue(complaints[0].startswith(f"options.{key}: "), complaints)
            self.assertNotIn("secret", complaints[0])

    def test_garbage_authority(self) -> None:
        """A file that looks like certificates has to be some."""
        path = Path(self.mktemp())
        path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        [complaint] = self.check(purity_ca_file=str(path))
        self.assertIn(str(path), complaint)

    def test_secret(self) -> None:
        """The API token is in no repr."""
        options = structure(SAMPLE, Options)
        settings = VolumeSettings("purestorage", "/", options=SAMPLE)
        for text in (repr(options), repr(settings), str(settings)):
            self.assertNotIn(SAMPLE["purity_api_token"], text)
        self.assertIn("FB-NFS1", repr(options))

    def test_plugin(self) -> None:
        """The daemon finds the backend, which asks nobody before it is used."""
        found = backends()["purestorage"]
        verifyObject(IBackend, found)
        verifyObject(IBackend, PureStorageBackend())
        settings = VolumeSettings(
            "purestorage", "/", options={**SAMPLE, "threads": 8, "durability": "completion"}
        )
        volume = found.volume("fb", settings, reactor)
        verifyObject(IVolume, volume)
        self.assertIsInstance(volume, PureStorageVolume)
        self.assertEqual((volume.name, volume.backend), ("fb", "purestorage"))
        self.assertEqual(volume.threads.size, 8)
        self.assertIs(volume.durability, Durability.COMPLETION)
        result_of(volume.stop())

    def test_verified(self) -> None:
        """Certificates are looked at, unless the configuration says otherwise."""
        self.assertTrue(structure({**SAMPLE, "purity_ssl_verify": True}, Options).purity_ssl_verify)
        table = {key: value for key, value in SAMPLE.items() if key != "purity_ssl_verify"}
        self.assertTrue(structure(table, Options).purity_ssl_verify)
        self.assertFalse(structure(SAMPLE, Options).purity_ssl_verify)
        self.assertIsInstance(policy(False, None), Unverified)
        self.assertNotIsInstance(policy(True, None), Unverified)
        self.assertNotIsInstance(policy(True, self.authority()), Unverified)
