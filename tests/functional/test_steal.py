"""
Two daemons that share a volume, as two workers or two machines do: each upload has one writer, and
the newest request counts.
"""

from __future__ import annotations

import hashlib
import http.client
from urllib.parse import urlsplit

from tests.functional.clients.case import MIB, digest, noise
from tests.functional.daemon import Daemon
from tests.functional.test_crash import DEADLINE, IN_FLIGHT, DaemonCase

SIZE = 16 * MIB
SENT = 12 * MIB


class StealTests(DaemonCase):
    """An upload that stalls on one daemon, and goes on at another one."""

    def setUp(self) -> None:
        super().setUp()
        self.other = self.make_other()
        self.addCleanup(self.end_other)
        self.other.start()
        self.content = noise(SIZE)
        self.url = self.daemon.upload_url(self.vfid, "dir/file.bin", SIZE)

    def make_other(self) -> Daemon:
        """A daemon with the same volumes."""
        root = self.root / "other"
        root.mkdir()
        return Daemon(root, mounts=self.root)

    def end_other(self) -> None:
        """Stop the other daemon."""
        self.other.stop()

    def stall(self) -> http.client.HTTPConnection:
        """Send a part of a PATCH to the first daemon, most of which it has then."""
        running = self.begin_patch(self.url, 0, SIZE)
        running.send(self.content[:SENT])
        return running

    def ask_other(
        self, method: str, offset: int | None = None, body: bytes = b""
    ) -> http.client.HTTPResponse:
        """A request for the session to the other daemon."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.other.client_port, timeout=DEADLINE
        )
        self.addCleanup(connection.close)
        headers = {"Tus-Resumable": "1.0.0"}
        if offset is not None:
            headers["Upload-Offset"] = str(offset)
            headers["Content-Type"] = "application/offset+octet-stream"
        target = urlsplit(self.url)
        connection.request(method, f"{target.path}?{target.query}", body or None, headers)
        answer = connection.getresponse()
        answer.read()
        return answer

    def settled(self) -> int:
        """What the other daemon tells of the session."""
        answer = self.ask_other("HEAD")
        self.assertEqual(answer.status, 200)
        offset = int(answer.headers["Upload-Offset"])
        self.assertGreaterEqual(offset, SENT - IN_FLIGHT)
        self.assertLessEqual(offset, SENT)
        return offset

    def go_on(self, offset: int) -> None:
        """The other daemon takes the rest, and the file is that which was sent."""
        answer = self.ask_other("PATCH", offset, self.content[offset:])
        self.assertEqual((answer.status, answer.headers["Upload-Offset"]), (204, str(SIZE)))
        result = self.folder / "dir" / "file.bin"
        self.assertEqual(digest(result), hashlib.sha256(self.content).hexdigest())
        self.assertFalse((self.folder / ".upload").exists())
        wanted = self.daemon.volumes["local"] / ".storage-proxy" / "wanted"
        self.assertEqual(list(wanted.iterdir()), [])

    def assert_cut(self, connection: http.client.HTTPConnection) -> None:
        """A connection is closed without an answer."""
        self.assertRaises(
            (ConnectionError, http.client.HTTPException), lambda: connection.getresponse().read()
        )

    def test_stalled(self) -> None:
        """A HEAD makes the daemon that holds the session settle, and is told all that came."""
        stalled = self.stall()
        offset = self.settled()
        self.assert_cut(stalled)
        self.assertEqual(self.offset(self.url), offset)
        self.go_on(offset)

    def test_patch_at_once(self) -> None:
        """A PATCH elsewhere is told where the stalled one has come to, and goes on from there."""
        stalled = self.stall()
        answer = self.ask_other("PATCH", 0, self.content)
        self.assertEqual(answer.status, 409)
        self.assert_cut(stalled)
        self.go_on(int(answer.headers["Upload-Offset"]))

    def test_given_up(self) -> None:
        """An upload is given up on another daemon than that where it has stalled."""
        stalled = self.stall()
        self.assertEqual(self.ask_other("DELETE").status, 204)
        self.assert_cut(stalled)
        self.assertEqual(list(self.folder.iterdir()), [])
        self.assertEqual(self.head(self.url)[0], 404)

    def test_killed(self) -> None:
        """A daemon that is killed in mid-PATCH costs its connection; the other one goes on."""
        (self.daemon.volumes["local"] / ".storage-proxy" / "wanted").mkdir(parents=True)
        self.stall()
        self.daemon.kill()
        answer = self.ask_other("HEAD")
        self.assertEqual(answer.status, 200)
        offset = int(answer.headers["Upload-Offset"])
        self.assertLessEqual(offset, SENT)
        self.assert_prefix(self.staged(self.url), self.content, offset)
        self.go_on(offset)
