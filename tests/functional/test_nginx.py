"""
The sample of etc/nginx.conf in front of the daemon.
"""

from __future__ import annotations

import os
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.functional.daemon import CHECKOUT, Daemon, connected, free_port


class NginxTests(TestCase):
    def setUp(self) -> None:
        root = Path(self.mktemp())
        root.mkdir()
        self.root = root.resolve()
        self.daemon = Daemon(
            self.root,
            client_settings='trusted-proxies = ["127.0.0.1"]',
            volume_settings='x-accel-redirect = "/vfolders/local/"',
        )
        self.daemon.start()
        self.addCleanup(self.daemon.stop)
        self.port = free_port()
        self._start()
        self.vfid = self.daemon.folder()
        self.content = os.urandom(3_000_000)
        (self.daemon.path(self.vfid) / "file").write_bytes(self.content)

    def _start(self) -> None:
        sample = (CHECKOUT / "etc" / "nginx.conf").read_text()
        for old, new in (
            ("listen 80", f"listen 127.0.0.1:{self.port}"),
            ("127.0.0.1:6021", f"127.0.0.1:{self.daemon.client_port}"),
            ("/vfroot/local/", f"{self.daemon.volumes['local']}/"),
        ):
            self.assertIn(old, sample)
            sample = sample.replace(old, new)
        (self.root / "server.conf").write_text(sample)
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = "".join(
            f"{name}_temp_path {self.root}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.root / "nginx.conf").write_text(
            f"daemon off; {user} pid {self.root}/nginx.pid; error_log {self.root}/error.log;"
            f"events {{}} http {{ access_log {self.root}/access.log; {temporary}"
            f"include {self.root}/server.conf; }}"
        )
        nginx = subprocess.Popen(
            ["nginx", "-c", f"{self.root}/nginx.conf", "-e", f"{self.root}/error.log"]
        )
        self.addCleanup(nginx.wait, 30)
        self.addCleanup(nginx.terminate)
        connected(self.port, nginx)

    def get(self, url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes, str]:
        request = urllib.request.Request(url, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read(), answer.headers["Content-Disposition"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), ""

    def through(self, url: str) -> str:
        return re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{self.port}", url)

    def log(self) -> str:
        return self.daemon.log.read_text()

    def test_download(self) -> None:
        """Downloads through nginx are sent by nginx; the bytes, ranges and names are the same."""
        url = self.through(self.daemon.download_url(self.vfid, "file"))
        self.assertEqual(
            self.get(url),
            (200, self.content, "attachment;filename=\"file\"; filename*=UTF-8''file"),
        )
        status, part, _ = self.get(url, {"Range": "bytes=1000-1999"})
        self.assertEqual((status, part), (206, self.content[1000:2000]))
        self.assertEqual(self.log().count('/download (handed over)", "status": 200'), 2)

    def test_headers(self) -> None:
        """Pages of other origins can read what nginx sends, its refusals too."""
        url = self.through(self.daemon.download_url(self.vfid, "file"))
        for wanted, status in (("bytes=0-9", 206), ("bytes=9000000-", 416)):
            request = urllib.request.Request(
                url, headers={"Origin": "https://page.example", "Range": wanted}
            )
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    found, headers = answer.status, answer.headers
            except urllib.error.HTTPError as error:
                with error:
                    found, headers = error.code, error.headers
            self.assertEqual(found, status)
            self.assertEqual(headers["Access-Control-Allow-Origin"], "https://page.example")
            self.assertEqual(headers["Access-Control-Allow-Credentials"], "true")
            self.assertIn("Content-Range", headers["Access-Control-Expose-Headers"])
            self.assertEqual(headers["Vary"], "Origin")
            self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
            self.assertTrue(headers["X-Request-ID"])

    def test_upload(self) -> None:
        """An upload goes through, and its file comes back."""
        url = self.through(self.daemon.upload_url(self.vfid, "new file", len(self.content)))
        request = urllib.request.Request(
            url,
            self.content,
            {
                "Tus-Resumable": "1.0.0",
                "Upload-Offset": "0",
                "Content-Type": "application/offset+octet-stream",
            },
            method="PATCH",
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            self.assertEqual(answer.headers["Upload-Offset"], str(len(self.content)))
        url = self.through(self.daemon.download_url(self.vfid, "new file"))
        self.assertEqual(self.get(url)[:2], (200, self.content))

    def test_not_by_itself(self) -> None:
        """Nobody gets a file from nginx without a token."""
        path = self.daemon.path(self.vfid).relative_to(self.daemon.volumes["local"])
        status, body, _ = self.get(f"http://127.0.0.1:{self.port}/vfolders/local/{path}/file")
        self.assertEqual(status, 404)
        self.assertNotIn(self.content[:100], body)
