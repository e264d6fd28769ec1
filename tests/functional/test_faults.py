"""
Real faults under the running daemon: a mount that hangs, a disk that is full, an ordinary user.
"""

from __future__ import annotations

import http.client
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.daemon import AUTH, MANAGER_SECRET, Daemon, select_pause

MIB = 1024 * 1024


class FaultCase(SynchronousTestCase):
    """A test with a daemon, and mounts, of its own."""

    def setUp(self) -> None:
        # Where an ordinary user can get to, which a checkout's parents need not allow.
        self.root = Path(tempfile.mkdtemp()).resolve()
        self.addCleanup(shutil.rmtree, self.root, ignore_errors=True)
        self.root.chmod(0o755)

    def start(self, daemon: Daemon) -> Daemon:
        """Start a daemon that ends with the test."""
        daemon.start()
        self.addCleanup(daemon.stop)
        return daemon

    def request(
        self, port: int, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        """One request; the answer's body is read."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.addCleanup(connection.close)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, fields)
        answer = connection.getresponse()
        self.body = answer.read()
        return answer


class HungMountTests(FaultCase):
    """
    One volume is on a mount whose server has stopped, as with a dead NFS server.
    """

    def setUp(self) -> None:
        super().setUp()
        (self.root / "behind").mkdir()
        (self.root / "sick").mkdir()
        self.server = subprocess.Popen(
            ["bindfs", "-f", str(self.root / "behind"), str(self.root / "sick")],
            stdin=subprocess.DEVNULL,
        )
        self.addCleanup(self.server.wait)
        self.addCleanup(subprocess.run, ["umount", "-l", str(self.root / "sick")], check=True)
        self.addCleanup(self.server.send_signal, signal.SIGCONT)
        while not (self.root / "sick").is_mount():
            self.assertIsNone(self.server.poll())
            select_pause()
        daemon = Daemon(self.root, volumes=("sick", "well"))
        text = daemon.config.read_text()
        options = "[volume.sick.options]\ndeadline = 1\nthreads = 4\n"
        daemon.config.write_text(text.replace("[volume.well]", options + "[volume.well]"))
        self.daemon = self.start(daemon)
        self.sick = self.daemon.folder("sick")
        self.well = self.daemon.folder("well")
        (self.root / "behind").joinpath(*self.sick_parts(), "file").write_bytes(b"x" * MIB)

    def sick_parts(self) -> tuple[str, ...]:
        """Where the sick volume's folder lies in it."""
        return self.daemon.path(self.sick, "sick").relative_to(self.root / "sick").parts

    def listing(self, volume: str, vfid: str) -> tuple[int, str | None]:
        """List a folder: the status, and when to come back."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.manager_port, timeout=60)
        try:
            connection.request(
                "POST",
                "/folder/file/list",
                f'{{"volume": "{volume}", "vfid": "{vfid}", "relpath": "."}}',
                {AUTH: MANAGER_SECRET},
            )
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.getheader("Retry-After")
        finally:
            connection.close()

    def test_others_never_notice(self) -> None:
        """Its own requests get a 503 and a time to come back; everything else answers."""
        download = urlsplit(self.daemon.download_url(self.sick, "file", "sick"))
        self.server.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(24) as callers:
            stuck = [callers.submit(self.listing, "sick", self.sick) for _ in range(20)]
            while not any(call.done() for call in stuck):
                self.assertEqual(self.listing("well", self.well), (200, None))
                volumes = self.daemon.manager("GET", "/volumes")["volumes"]
                self.assertEqual([volume["name"] for volume in volumes], ["sick", "well"])
                for probe in ("/status", "/livez", "/readyz", "/health"):
                    answer = self.request(self.daemon.manager_port, "GET", probe)
                    self.assertEqual(answer.status, 200)
            for call in stuck:
                status, retry_after = call.result()
                self.assertEqual(status, 503)
                self.assertGreater(int(retry_after or "0"), 0)
        answer = self.request(self.daemon.client_port, "GET", f"{download.path}?{download.query}")
        self.assertEqual(answer.status, 503)
        self.assertIn(b'"msg"', self.body)
        self.assertEqual(answer.getheader("Access-Control-Allow-Origin"), "*")
        threads = Path(f"/proc/{self.daemon.process.pid}/task")  # type: ignore[union-attr]
        self.assertLess(len(list(threads.iterdir())), 32)

        self.server.send_signal(signal.SIGCONT)
        while self.listing("sick", self.sick)[0] != 200:
            select_pause()
        answer = self.request(self.daemon.client_port, "GET", f"{download.path}?{download.query}")
        self.assertEqual((answer.status, self.body), (200, b"x" * MIB))

    def test_upload(self) -> None:
        """An upload that the mount holds up ends, and goes on when the mount is well again."""
        url = urlsplit(self.daemon.upload_url(self.sick, "new", 8 * MIB, "sick"))
        target = f"{url.path}?{url.query}"
        self.server.send_signal(signal.SIGSTOP)
        answer = self.request(
            self.daemon.client_port, "PATCH", target, b"y" * MIB, Upload_Offset="0"
        )
        self.assertEqual(answer.status, 503)
        self.server.send_signal(signal.SIGCONT)
        while (answer := self.request(self.daemon.client_port, "HEAD", target)).status != 200:
            self.assertIn(answer.status, (423, 503))
        offset = int(answer.getheader("Upload-Offset") or "-1")
        self.assertIn(offset, (0, MIB))
        answer = self.request(
            self.daemon.client_port,
            "PATCH",
            target,
            b"y" * (8 * MIB - offset),
            Upload_Offset=str(offset),
        )
        self.assertEqual(answer.status, 204)
        uploaded = (self.root / "behind").joinpath(*self.sick_parts(), "new")
        self.assertEqual(uploaded.read_bytes(), b"y" * (8 * MIB))

    def test_stop(self) -> None:
        """The daemon ends all the same."""
        self.server.send_signal(signal.SIGSTOP)
        self.assertEqual(self.listing("sick", self.sick)[0], 503)
        self.assertIn(self.daemon.stop(), (0, -signal.SIGTERM))


class FullDiskTests(FaultCase):
    """The volume is smaller than what people upload."""

    def setUp(self) -> None:
        super().setUp()
        mount = self.root / "local"
        mount.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", str(mount)], check=True)
        self.daemon = self.start(Daemon(self.root))
        self.vfid = self.daemon.folder()

    def test_upload(self) -> None:
        """A full disk is a 507, what has come stays, and with room the upload goes on (FIX 6)."""
        size = 12 * MIB
        data = os.urandom(size)
        url = urlsplit(self.daemon.upload_url(self.vfid, "big", size))
        target = f"{url.path}?{url.query}"
        port = self.daemon.client_port
        answer = self.request(port, "PATCH", target, data, Upload_Offset="0")
        self.assertEqual(answer.status, 507)
        self.assertIn(b'"error_code"', self.body)
        self.assertEqual(answer.getheader("Access-Control-Allow-Origin"), "*")
        answer = self.request(port, "HEAD", target)
        offset = int(answer.getheader("Upload-Offset") or "-1")
        self.assertGreater(offset, 0)
        self.assertLess(offset, 8 * MIB + 1)
        subprocess.run(["mount", "-o", "remount,size=32m", str(self.root / "local")], check=True)
        answer = self.request(port, "PATCH", target, data[offset:], Upload_Offset=str(offset))
        self.assertEqual(answer.status, 204)
        self.assertEqual((self.daemon.path(self.vfid) / "big").read_bytes(), data)

    def test_clone(self) -> None:
        """A clone that does not fit is refused before anything is copied."""
        (self.daemon.path(self.vfid) / "file").write_bytes(b"x" * (5 * MIB))
        copy = "0123456789abcdef0123456789abcdef"
        with self.assertRaisesRegex(RuntimeError, "507.* are free"):
            self.daemon.manager(
                "POST",
                "/folder/clone",
                {
                    "src_volume": "local",
                    "src_vfid": self.vfid,
                    "dst_volume": "local",
                    "dst_vfid": copy,
                },
            )
        self.assertFalse(self.daemon.path(copy).exists())


class OrdinaryUserTests(FaultCase):
    """Started as root, the daemon binds its ports and becomes somebody else (FIX 30)."""

    def drop(self, user: str, group: str) -> Any:
        """Start with these settings; the process's status file as a table."""
        daemon = Daemon(self.root)
        text = daemon.config.read_text()
        daemon.config.write_text(
            text.replace("user = -1\n", f"user = {user}\n").replace(
                "group = -1\n", f"group = {group}\n"
            )
        )
        for path in daemon.volumes.values():
            path.chmod(0o777)
        self.daemon = self.start(daemon)
        # The ports are open before it drops its privileges, and answer after.
        self.vfid = self.daemon.folder()
        lines = Path(f"/proc/{daemon.process.pid}/status").read_text()  # type: ignore[union-attr]
        return dict(line.split(":\t", 1) for line in lines.splitlines())

    def test_by_name(self) -> None:
        """A user that the system knows."""
        status = self.drop('"nobody"', '"nogroup"')
        nobody = pwd.getpwnam("nobody")
        self.assertEqual(set(status["Uid"].split()), {str(nobody.pw_uid)})
        self.assertEqual(set(status["Gid"].split()), {str(nobody.pw_gid)})
        self.assertEqual(int(status["CapEff"], 16), 0)
        self.assertEqual(self.daemon.path(self.vfid).stat().st_uid, nobody.pw_uid)

    def test_by_number(self) -> None:
        """A number that is in no table, as in many containers."""
        status = self.drop("54321", "54322")
        self.assertEqual(set(status["Uid"].split()), {"54321"})
        self.assertEqual(status["Groups"].split(), ["54322"])
        self.assertEqual(self.daemon.path(self.vfid).stat().st_gid, 54322)
