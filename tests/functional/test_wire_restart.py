"""
What is left when the daemon is killed, or asked to end, and started again.
"""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import time
from uuid import uuid4

from tests.functional.daemon import Daemon, claims
from tests.functional.http11 import Answer, Connection, Headers, OnFolder, dialects, new_daemon
from tests.functional.http11 import request_head as head_of

TUS: Headers = {"Tus-Resumable": "1.0.0"}
SIZE = 3_000_000


class Restart(OnFolder):
    """A daemon of its own for each test."""

    def provide(self) -> Daemon:
        """Start a daemon that is gone after the test."""
        daemon, remove = new_daemon()
        self.addCleanup(remove)
        daemon.start()
        return daemon

    def setUp(self) -> None:
        """Have an upload session."""
        super().setUp()
        self.data = os.urandom(SIZE)
        answer = self.post("/folder/file/upload", relpath="d/file", size=SIZE)
        self.token = answer.json()["token"]
        self.target = f"/upload?token={self.token}"
        self.staging = self.root / ".upload" / claims(self.token)["session"]

    def kill(self) -> None:
        """Kill the daemon as a power failure would, and start it again."""
        self._hang_up()
        self.daemon.kill()
        self.daemon.start()

    def append(self, offset: int, body: bytes) -> Answer:
        """PATCH as tus clients do."""
        headers = {**TUS, "Upload-Offset": str(offset)}
        return self.client("PATCH", self.target, headers, body)

    def offset(self) -> int:
        """The offset that a client is told."""
        answer = self.client("HEAD", self.target, TUS)
        self.assertEqual(answer.status, 200)
        return int(answer.header("Upload-Offset") or "-1")

    def begin(self, offset: int, count: int, **more: str) -> Connection:
        """Begin a PATCH of the rest, send a part of it, and see some of it arrive."""
        connection = self.connect(self.daemon.client_port)
        headers = {**TUS, "Upload-Offset": str(offset), "Content-Length": str(SIZE - offset)}
        headers.update({name.replace("_", "-"): value for name, value in more.items()})
        part = self.data[offset : offset + count]
        connection.write(head_of("PATCH", self.target, headers, None) + part)
        self.eventually(lambda: self.staging.stat().st_size > offset)
        return connection

    def finish(self) -> None:
        """Send the rest, and check the file."""
        offset = self.offset()
        answer = self.append(offset, self.data[offset:])
        self.assertEqual(answer.status, 204, answer.body)
        self.assertTrue((self.root / "d" / "file").read_bytes() == self.data)
        self.assertFalse((self.root / ".upload").exists())

    def test_told(self) -> None:
        """An offset that was told holds after a crash."""
        self.assertEqual(self.append(0, self.data[:1_000_001]).status, 204)
        self.kill()
        self.assertEqual(self.offset(), 1_000_001)
        self.finish()

    def test_not_told(self) -> None:
        """A crash in the middle of a part loses no more than the part."""
        self.append(0, self.data[:1_000_001])
        self.begin(1_000_001, 1_500_000)
        self.kill()
        self.assertTrue(1_000_001 <= self.offset() <= 2_500_001)
        self.finish()

    def test_unchecked(self) -> None:
        """After a crash in the middle of a part with a checksum none of it counts."""
        self.append(0, self.data[:1_000_001])
        digest = base64.b64encode(hashlib.sha1(self.data[1_000_001:]).digest()).decode()
        self.begin(1_000_001, 1_500_000, Upload_Checksum=f"sha1 {digest}")
        self.kill()
        self.assertEqual(self.offset(), 1_000_001)
        self.finish()

    def test_complete(self) -> None:
        """A client that missed the last answer by a crash still learns that all is there."""
        self.assertEqual(self.append(0, self.data).status, 204)
        self.kill()
        self.assertEqual(self.offset(), SIZE)
        self.assertTrue((self.root / "d" / "file").read_bytes() == self.data)

    def test_asked_to_end(self) -> None:
        """A daemon that is asked to end keeps what it has received, and ends well."""
        self.begin(0, 2_000_000)
        self._hang_up()
        self.assertIn(self.daemon.stop(), (0, -signal.SIGTERM))
        self.daemon.start()
        self.assertTrue(0 < self.offset() <= 2_000_000)
        self.finish()

    def test_begun_anew(self) -> None:
        """A session that was given before a crash can be used after it."""
        self.kill()
        self.assertEqual(self.offset(), 0)
        self.finish()

    def test_stale_sessions(self) -> None:
        """Sessions whose tokens have expired are taken away, and younger ones stay."""
        self.append(0, self.data[:10])
        stale = self.staging.with_name(uuid4().hex)
        stale.write_bytes(b"x" * 1000)
        long_ago = time.time() - 3 * 86400
        os.utime(stale, (long_ago, long_ago))
        self.kill()
        self.eventually(lambda: not stale.exists())
        self.assertEqual(self.offset(), 10)
        self.finish()

    def test_deleted_folder(self) -> None:
        """The rest of a deleted folder is taken away after a crash."""
        name = uuid4().hex
        for number in range(2000):
            (self.root / f"{name}-{number}").touch()
        self.assertEqual(self.post("/folder/delete").status, 204)
        self.kill()
        self.assertFalse(self.root.exists())
        volume = self.daemon.volumes["local"]
        self.eventually(
            lambda: not any(name in file for _, _, files in os.walk(volume) for file in files)
        )


class MoreProcesses(OnFolder):
    """``num-proc`` above the number of processors, as the original's own sample has it."""

    def provide(self) -> Daemon:
        """Start a daemon with one process more than there are processors."""
        daemon, remove = new_daemon()
        self.addCleanup(remove)
        count = (os.cpu_count() or 1) + 1
        config = daemon.config.read_text()
        daemon.config.write_text(config.replace("num-proc = 1\n", f"num-proc = {count}\n"))
        daemon.start()
        return daemon

    def test_starts(self) -> None:
        """The daemon starts, and serves."""
        (self.root / "file").write_bytes(b"content")
        token = self.sign(self.claims("download", self.vfid, "file"))
        self.assertEqual(self.client("GET", f"/download?token={token}").body, b"content")


globals().update(dialects(Restart, MoreProcesses))
