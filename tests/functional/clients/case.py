"""
What the tests with real clients share: one daemon, source files, and the cutting proxy.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import random
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.cutter import Cutter, Fault
from tests.functional.daemon import Daemon

KIB = 1024
MIB = 1024 * 1024
CLIENT_DEADLINE = 120.0
#: What a line of the daemon's log has when the daemon itself has failed.
_ERROR = re.compile(r'Traceback|"level": "(error|critical)"')


@functools.cache
def shared_daemon() -> Daemon:
    """The daemon that all tests with clients use; it is stopped when the test run ends."""
    root = Path(tempfile.mkdtemp(prefix="clients-", dir=Path.cwd()))
    daemon = Daemon(root)
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    daemon.start()
    atexit.register(daemon.stop)
    return daemon


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@functools.lru_cache(maxsize=4)
def noise(size: int) -> bytes:
    """The same bytes for the same size, which do not repeat within it."""
    return random.Random(size).randbytes(size)


@dataclass(frozen=True)
class Session:
    """
    An upload session.

    :ivar url: what the client is given.
    :ivar target: where the file lies once it is complete.
    """

    url: str
    target: Path

    @property
    def endpoint(self) -> str:
        """The same URL: creation with the session's token answers with the session."""
        return self.url


class ClientCase(SynchronousTestCase):
    """A test that runs a client against the daemon, in a directory of its own."""

    def setUp(self) -> None:
        self.daemon = shared_daemon()
        self.logged = self.daemon.log.stat().st_size
        self.work = Path(self.mktemp()).resolve()
        self.work.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.work)
        self.vfid = self.daemon.folder()
        self.folder = self.daemon.path(self.vfid)
        self.addCleanup(shutil.rmtree, self.folder)

    def tearDown(self) -> None:
        """Whatever a client did: the daemon lives, and no error of its own is in its log."""
        assert self.daemon.process is not None
        self.assertIsNone(self.daemon.process.poll())
        with self.daemon.log.open("rb") as log:
            log.seek(self.logged)
            lines = log.read().decode().splitlines()
        self.assertEqual([line[:2000] for line in lines if _ERROR.search(line)], [])

    def source(self, size: int, name: str = "source.bin") -> Path:
        """A local file for a client to upload."""
        path = self.work / name
        path.write_bytes(noise(size))
        return path

    def stored(self, size: int, name: str = "data.bin") -> Path:
        """A file in the vfolder for a client to download."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(size))
        return path

    def session(self, size: int, relpath: str = "uploaded.bin") -> Session:
        """Open an upload session in the vfolder."""
        url = self.daemon.upload_url(self.vfid, relpath, size)
        return Session(url, self.folder / relpath)

    def cutter(self, *faults: Fault, swallow: bytes | None = None) -> Cutter:
        """A running proxy in front of the daemon's client API."""
        cutter = Cutter(self.daemon.client_port, *faults, swallow=swallow).start()
        self.addCleanup(cutter.close)
        return cutter

    def execute(
        self, *command: str, content: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the test's directory and return how it ended."""
        return subprocess.run(
            command,
            cwd=self.work,
            input=b"" if content is None else content,
            capture_output=True,
            timeout=CLIENT_DEADLINE,
            check=False,
        )

    def assert_identical(self, result: Path, source: Path) -> None:
        """Both files have the same content."""
        self.assertTrue(result.is_file(), f"there is no {result.name}")
        self.assertEqual(result.stat().st_size, source.stat().st_size)
        self.assertEqual(digest(result), digest(source))

    def assert_nothing_staged(self) -> None:
        """No upload session has left anything in the vfolder's staging directory."""
        staging = self.folder / ".upload"
        left = sorted(path.name for path in staging.iterdir()) if staging.is_dir() else []
        self.assertEqual(left, [])
