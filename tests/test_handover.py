"""
Tests for :mod:`storageproxy.api.handover`.
"""

from __future__ import annotations

import os
from ipaddress import ip_network

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from storageproxy.api.handover import Handover, location
from tests.harness import Answer, MemoryCase

PROXIES = (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))


class HandoverCase(MemoryCase):
    def setUp(self) -> None:
        super().setUp()
        self.proxy.handover = Handover({"local": "/files/"}, PROXIES)
        self.proxy.restart()

    def get(self, relpath: str, host: str = "10.1.2.3", method: str = "GET") -> Answer:
        wire = self.proxy.connect()
        wire.peerAddr = IPv4Address("TCP", host, 1)
        wire.request(method, self.proxy.download_path(self.vfid, relpath), {"Range": "bytes=1-2"})
        [answer] = wire.answers(method)
        return answer

    def place(self, name: str) -> str:
        return f"/files/{self.folder.relative_to(self.proxy.volume['local'].path)}/{name}"


class DownloadTests(HandoverCase):
    def test_trusted(self) -> None:
        """A proxy that is trusted gets the place of the file, and nothing of it."""
        self.put("dir/file", b"content")
        for method in ("GET", "HEAD"):
            answer = self.get("dir/file", method=method)
            self.assertEqual((answer.status, answer.body), (200, b""))
            self.assertEqual(answer.headers["x-accel-redirect"], self.place("dir/file"))
            self.assertIn('filename="file"', answer.headers["content-disposition"])
            self.assertEqual(answer.headers["content-type"], "application/octet-stream")
            self.assertEqual(answer.headers["x-content-type-options"], "nosniff")

    def test_others(self) -> None:
        """Everybody else gets the file."""
        self.put("file", b"content")
        answer = self.get("file", "10.2.0.1")
        self.assertEqual((answer.status, answer.body), (206, b"on"))
        self.assertNotIn("x-accel-redirect", answer.headers)

    def test_other_volume(self) -> None:
        """A volume for which nothing is said is not handed over."""
        self.proxy.handover = Handover({"other": "/files/"}, PROXIES)
        self.proxy.restart()
        self.put("file", b"content")
        self.assertEqual(self.get("file").body, b"on")

    def test_odd_names(self) -> None:
        """A name is one path, whatever is in it."""
        for name, quoted in (("a b?c#d%2f", "a%20b%3Fc%23d%252f"), ("l\u00f6we", "l%C3%B6we")):
            self.put(name, b"content")
            self.assertEqual(self.get(name).headers["x-accel-redirect"], self.place(quoted))

    def test_link(self) -> None:
        """A link inside of the vfolder is told as what it leads to."""
        self.put("dir/file", b"content")
        (self.folder / "link").symlink_to("dir/file")
        self.assertEqual(self.get("link").headers["x-accel-redirect"], self.place("dir/file"))

    def test_outside(self) -> None:
        """What leads out is refused, as always."""
        (self.folder / "link").symlink_to("/etc/passwd")
        answer = self.get("link")
        self.assertGreaterEqual(answer.status, 400)
        self.assertNotIn("x-accel-redirect", answer.headers)


class LocationTests(HandoverCase):
    def test_deleted(self) -> None:
        """A file that has no path any more has no place, nor has one whose path is another's."""
        path = self.put("file", b"content")
        volume = self.proxy.volume["local"]
        with volume.open_root() as root:
            file = root.open_file(os.path.relpath(path, volume.path))
        with file:
            self.assertIsNotNone(location("/files/", volume, file))
            path.unlink()
            self.assertIsNone(location("/files/", volume, file))
            path.with_name("file (deleted)").write_bytes(b"another")
            self.assertIsNone(location("/files/", volume, file))

    def test_moved_out(self) -> None:
        """Nor has one that was moved out of the volume."""
        path = self.put("file", b"content")
        volume = self.proxy.volume["local"]
        with volume.open_root() as root:
            file = root.open_file(os.path.relpath(path, volume.path))
        with file:
            path.rename(self.root / "elsewhere")
            self.assertIsNone(location("/files/", volume, file))


class PrefixTests(HandoverCase):
    def test_addresses(self) -> None:
        """Addresses are compared as such: IPv6, and IPv4 in IPv6, and none."""
        volume = self.proxy.volume["local"]
        for client, trusted in (
            (IPv4Address("TCP", "10.1.255.255", 1), True),
            (IPv4Address("TCP", "10.2.0.0", 1), False),
            (IPv6Address("TCP", "fd12::1", 1), True),
            (IPv6Address("TCP", "::ffff:10.1.0.9", 1), True),
            (IPv6Address("TCP", "::1", 1), False),
            (IPv6Address("TCP", "fe80::1%eth0", 1), False),
            (UNIXAddress("socket"), False),
            (None, False),
        ):
            prefix = self.proxy.handover.prefix(volume, client)
            self.assertEqual(prefix, "/files/" if trusted else None, client)
