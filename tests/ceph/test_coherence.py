"""
What the daemon relies on where two mounts meet, and that uploads never mix there.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import random
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storageproxy import beneath
from storageproxy.beneath import Directory
from storageproxy.errors import InvalidSubpath
from tests.ceph.case import CephCase
from tests.functional.daemon import Daemon

KIB = 1024
ROUNDS = 100


class CoherenceTests(CephCase):
    """What one mount does, the other sees at once."""

    def setUp(self) -> None:
        super().setUp()
        self.one, self.two = self.tops

    def test_sizes_and_bytes(self) -> None:
        """A size is never old, nor are bytes, even when nothing was synced or closed."""
        with (self.one / "file").open("wb", buffering=0) as written:
            with (self.two / "file").open("rb", buffering=0) as seen:
                for number in range(1, ROUNDS):
                    written.write(b"%08d" % number)
                    self.assertEqual(os.fstat(seen.fileno()).st_size, 8 * number)
                    self.assertEqual((self.two / "file").stat().st_size, 8 * number)
                    self.assertEqual(seen.read(), b"%08d" % number)
                written.truncate(4)
                self.assertEqual(os.fstat(seen.fileno()).st_size, 4)

    def test_names(self) -> None:
        """A name that was looked for in vain is found as soon as it is there, and the reverse."""
        for number in range(ROUNDS):
            name, new = f"name-{number}", f"new-{number}"
            self.assertFalse((self.two / name).exists())
            (self.one / name).touch()
            self.assertTrue((self.two / name).exists())
            (self.one / name).rename(self.one / new)
            self.assertFalse((self.two / name).exists())
            self.assertTrue((self.two / new).exists())
            (self.two / new).unlink()
            self.assertFalse((self.one / new).exists())

    def test_locks(self) -> None:
        """One mount's lock holds the other off; it ends with the file, and with its process."""
        (self.one / "file").touch()
        hold = (
            "import fcntl, sys; file = open(sys.argv[1], 'r+b')\n"
            "fcntl.flock(file, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()"
        )
        for end in (subprocess.Popen.kill, lambda child: child.communicate()):
            child = subprocess.Popen(
                [sys.executable, "-c", hold, str(self.one / "file")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self.addCleanup(child.communicate)
            assert child.stdout is not None
            self.assertEqual(child.stdout.readline(), b"locked\n")
            with (self.two / "file").open("r+b") as file:
                self.assertFalse(_lock(file.fileno()))
                end(child)
                self.eventually(partial(_lock, file.fileno()))

    def test_beneath(self) -> None:
        """The kernel resolves paths beneath a directory here, too."""
        self.assertIs(beneath.open_beneath, beneath._openat2)
        (self.one / "folder").mkdir()
        (self.one / "secret").touch()
        (self.one / "folder" / "link").symlink_to("../secret")
        with Directory.open_root(str(self.two / "folder")) as folder:
            for path in ("link", "../secret"):
                self.assertRaises(InvalidSubpath, folder.open_file, path)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Attempt:
    """A PATCH that was sent, whatever has become of it."""

    offset: int
    content: bytes


class MixTests(CephCase):
    """Clients that know nothing of each other send different bytes for one upload."""

    size = 6000 * KIB

    def setUp(self) -> None:
        super().setUp()
        self.daemons = [self.make_daemon_on(0), self.make_daemon_on(1)]
        for daemon in self.daemons:
            daemon.start()
        self.vfid = self.daemons[0].folder()
        daemon = self.daemons[0]
        url = daemon.upload_url(self.vfid, "file", self.size)
        self.target = url.removeprefix(daemon.client_url)
        self.attempts: list[Attempt] = []

    def ask(
        self, daemon: Daemon, method: str, offset: int | None = None, body: bytes | None = None
    ) -> tuple[int, int]:
        """A request for the upload: its status, and the offset that is told, or -1."""
        connection = http.client.HTTPConnection("127.0.0.1", daemon.client_port, timeout=60)
        headers = {} if offset is None else {"Upload-Offset": str(offset)}
        try:
            connection.request(method, self.target, body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, int(answer.headers.get("Upload-Offset", "-1"))
        except (ConnectionError, http.client.HTTPException):
            # Another client has taken over.
            return 0, -1
        finally:
            connection.close()

    def upload(self, daemon: Daemon, seed: int) -> None:
        """Be such a client."""
        dice = random.Random(seed)
        offset = 0
        while offset < self.size:
            content = dice.randbytes(min(dice.randint(1, 300 * KIB), self.size - offset))
            self.attempts.append(Attempt(offset, content))
            _, told = self.ask(daemon, "PATCH", offset, content)
            while told < 0:
                _, told = self.ask(daemon, "HEAD")
            self.assertGreaterEqual(told, offset, "an offset has shrunk")
            offset = told

    def test_two_clients_each(self) -> None:
        """Two at each daemon: each byte is of one who began where the one before him has ended."""
        failed: list[BaseException] = []

        def run(daemon: Daemon, seed: int) -> None:
            try:
                self.upload(daemon, seed)
            except BaseException as error:
                failed.append(error)

        clients = [
            threading.Thread(target=run, args=(daemon, seed))
            for seed, daemon in enumerate(self.daemons * 2)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        self.assertEqual(failed, [])
        path = self.daemons[1].path(self.vfid) / "file"
        found = path.read_bytes()
        self.assertEqual(len(found), self.size)
        at = 0
        while at < self.size:
            here = [attempt.content for attempt in self.attempts if attempt.offset == at]
            taken = max((_common(found, at, content) for content in here), default=0)
            self.assertGreater(taken, 0, f"nobody has sent what is at {at}")
            at += taken
        self.assertEqual(sorted(path.parent.iterdir()), [path])
        notes = Path(self.daemons[0].volumes["local"], ".storage-proxy", "wanted")
        self.assertEqual(list(notes.iterdir()) if notes.exists() else [], [])


def _common(found: bytes, at: int, content: bytes) -> int:
    """How many bytes of a content are at a place."""
    if found.startswith(content, at):
        return len(content)
    return len(os.path.commonprefix([found[at : at + len(content)], content]))
