"""
The daemon is killed, stopped and strained: no promised byte is lost, and memory stays flat.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients.case import KIB, MIB, digest, noise
from tests.functional.daemon import Daemon, claims

GIB = 1024 * MIB
DEADLINE = 60.0
KILLS = 10
#: What the sockets between a client and the daemon may hold at most.
IN_FLIGHT = 8 * MIB
#: How much a transfer of any size may make the daemon grow.
GROWTH = 64 * MIB


class DaemonCase(SynchronousTestCase):
    """A test that has the daemon for itself, and speaks to it over plain sockets."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).resolve()
        self.root.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.root)
        self.daemon = self.make_daemon()
        self.addCleanup(self.end)
        self.daemon.start()
        self.vfid = self.daemon.folder()
        self.folder = self.daemon.path(self.vfid)

    def make_daemon(self) -> Daemon:
        """The daemon, which is not started yet."""
        return Daemon(self.root)

    def end(self) -> None:
        """Stop the daemon, when the test has not."""
        process = self.daemon.process
        if process is not None and process.poll() is None:
            self.daemon.stop()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the client API with small buffers on this side."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.daemon.client_port, timeout=DEADLINE
        )
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * KIB)
        self.addCleanup(connection.close)
        return connection

    def target(self, url: str) -> str:
        """Path and query of a URL."""
        return url.removeprefix(self.daemon.client_url)

    def head(self, url: str) -> tuple[int, int]:
        """Status and Upload-Offset of a HEAD; the offset is -1 when there is none."""
        connection = self.connect()
        connection.request("HEAD", self.target(url), headers={"Tus-Resumable": "1.0.0"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, int(answer.headers.get("Upload-Offset", "-1"))

    def offset(self, url: str) -> int:
        """The offset that the daemon tells for a session."""
        status, offset = self.head(url)
        self.assertEqual(status, 200)
        return offset

    def begin_patch(self, url: str, offset: int, length: int) -> http.client.HTTPConnection:
        """Send the head of a PATCH."""
        connection = self.connect()
        connection.putrequest("PATCH", self.target(url))
        connection.putheader("Tus-Resumable", "1.0.0")
        connection.putheader("Content-Type", "application/offset+octet-stream")
        connection.putheader("Upload-Offset", str(offset))
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        return connection

    def patch(self, url: str, offset: int, content: bytes) -> int:
        """A whole PATCH; returns the offset that its answer tells."""
        connection = self.begin_patch(url, offset, len(content))
        connection.send(content)
        answer = connection.getresponse()
        answer.read()
        self.assertEqual(answer.status, 204)
        return int(answer.headers["Upload-Offset"])

    def staged(self, url: str) -> Path:
        """The staging file of a session."""
        (token,) = parse_qs(urlsplit(url).query)["token"]
        return self.folder / ".upload" / str(claims(token)["session"])

    def assert_prefix(self, path: Path, content: bytes, length: int) -> None:
        """A file begins with the first bytes of the content."""
        with path.open("rb") as stream:
            self.assertEqual(
                hashlib.sha256(stream.read(length)).digest(),
                hashlib.sha256(content[:length]).digest(),
            )


class KillTests(DaemonCase):
    """The daemon is killed as by a crash."""

    def test_ten_kills_in_one_upload(self) -> None:
        """
        Killed ten times within one upload of 64 MiB: each time the upload goes on from the offset
        that is told, no offset is ever less than one told before, and the result is the source.
        """
        size = 64 * MIB
        content = noise(size)
        dice = random.Random(20261122)
        url = self.daemon.upload_url(self.vfid, "uploaded.bin", size)
        told = 0
        for _ in range(KILLS):
            offset = self.offset(url)
            self.assertGreaterEqual(offset, told)
            self.assert_prefix(self.staged(url), content, offset)
            told = self.patch(url, offset, content[offset : offset + MIB])
            self.assertEqual(told, offset + MIB)
            running = self.begin_patch(url, told, size - told)
            running.send(content[told : told + 4 * MIB + dice.randrange(MIB)])
            self.daemon.kill()
            self.daemon.start()
        offset = self.offset(url)
        self.assertGreaterEqual(offset, told)
        self.assertLess(offset, size)
        self.assertEqual(self.patch(url, offset, content[offset:]), size)
        result = self.folder / "uploaded.bin"
        self.assertEqual(digest(result), hashlib.sha256(content).hexdigest())
        self.assertFalse(self.staged(url).exists())
        self.assertEqual(self.offset(url), size)

    def test_killed_while_completing(self) -> None:
        """
        Killed when all bytes of several uploads have been sent and no answer has come: afterwards
        each file is either whole under its name, or its upload goes on to that end.
        """
        content = noise(2 * MIB)
        for turn in range(3):
            urls = [
                self.daemon.upload_url(self.vfid, f"{turn}/{n}.bin", len(content)) for n in range(8)
            ]
            connections = [self.begin_patch(url, 0, len(content)) for url in urls]
            for connection in connections:
                connection.send(content)
            if turn:
                answer = connections[turn].getresponse()
                answer.read()
                self.assertEqual(answer.status, 204)
            self.daemon.kill()
            self.daemon.start()
            for n, url in enumerate(urls):
                target = self.folder / str(turn) / f"{n}.bin"
                offset = self.offset(url)
                if turn and n == turn:
                    self.assertEqual(offset, len(content))
                if offset < len(content):
                    self.assertFalse(target.exists())
                    self.patch(url, offset, content[offset:])
                self.assertEqual(target.read_bytes(), content)

    def test_killed_after_the_empty_file(self) -> None:
        """An empty file is there from the moment its session is made, and stays."""
        self.daemon.upload_url(self.vfid, "a/empty.bin", 0)
        self.daemon.kill()
        self.daemon.start()
        self.assertEqual((self.folder / "a" / "empty.bin").read_bytes(), b"")


class StopTests(DaemonCase):
    """The daemon is stopped in the ordinary way."""

    def stop(self) -> None:
        """Ask the daemon to end; twistd ends itself by the signal it was sent."""
        self.assertIn(self.daemon.stop(), (0, -signal.SIGTERM))

    def test_running_upload(self) -> None:
        """SIGTERM in mid-upload keeps every byte that has reached the daemon."""
        size = 64 * MIB
        content = noise(size)
        url = self.daemon.upload_url(self.vfid, "uploaded.bin", size)
        running = self.begin_patch(url, 0, size)
        running.send(content[: 32 * MIB])
        self.stop()
        self.daemon.start()
        offset = self.offset(url)
        self.assertGreaterEqual(offset, 32 * MIB - IN_FLIGHT)
        self.assertLessEqual(offset, 32 * MIB)
        self.assert_prefix(self.staged(url), content, offset)
        self.assertEqual(self.patch(url, offset, content[offset:]), size)
        self.assertEqual((self.folder / "uploaded.bin").read_bytes(), content)

    def test_running_download(self) -> None:
        """SIGTERM in mid-download lets the answer finish."""
        content = noise(64 * MIB)
        (self.folder / "data.bin").write_bytes(content)
        url = self.daemon.download_url(self.vfid, "data.bin")
        connection = self.connect()
        connection.request("GET", self.target(url))
        answer = connection.getresponse()
        self.assertEqual(answer.status, 200)
        received = hashlib.sha256(answer.read(MIB))
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGTERM)
        while block := answer.read(MIB):
            received.update(block)
        self.assertEqual(received.digest(), hashlib.sha256(content).digest())
        self.assertIn(self.daemon.process.wait(DEADLINE), (0, -signal.SIGTERM))

    def test_idle_connections(self) -> None:
        """Clients that keep their connections without a request do not hold the end up."""
        idle = [self.connect() for _ in range(5)]
        for connection in idle:
            connection.request("OPTIONS", "/upload")
            connection.getresponse().read()
        self.stop()


class MemoryTests(DaemonCase):
    """Bodies stream: the size of a file has nothing to do with the size of the daemon."""

    #: Sizes of the transfers.
    download_size = 4 * GIB
    upload_size = GIB

    def memory(self, figure: str) -> int:
        """A figure of the daemon's memory in bytes, VmRSS (now) or VmHWM (the highest so far)."""
        assert self.daemon.process is not None
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(f"{figure}:"))
        return int(line.split()[1]) * KIB

    @contextmanager
    def flat_memory(self) -> Iterator[None]:
        """What is done within makes the daemon grow by less than ``GROWTH``."""
        url = self.daemon.upload_url(self.vfid, "warm.bin", MIB)
        self.patch(url, 0, noise(MIB))
        with self.reader("warm.bin") as (_, answer):
            answer.read()
        before = self.memory("VmRSS")
        yield
        grown = self.memory("VmHWM") - before
        self.assertLess(grown, GROWTH)

    @contextmanager
    def reader(
        self, name: str, buffer: int = MIB
    ) -> Iterator[tuple[http.client.HTTPConnection, http.client.HTTPResponse]]:
        """A client that has received the head of a download."""
        url = self.daemon.download_url(self.vfid, name)
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.daemon.client_port, timeout=DEADLINE
        )
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        listening.settimeout(DEADLINE)
        listening.connect(("127.0.0.1", self.daemon.client_port))
        connection.sock = listening
        try:
            connection.request("GET", self.target(url))
            answer = connection.getresponse()
            self.assertEqual(answer.status, 200)
            yield connection, answer
        finally:
            connection.close()

    def test_download(self) -> None:
        """
        A sparse file of 4 GB goes to a reader that takes all, while four that take next to nothing
        wait for theirs.
        """
        big = self.folder / "big.bin"
        with big.open("wb") as stream:
            stream.truncate(self.download_size)
        with self.flat_memory():
            slow = [self.reader("big.bin", 64 * KIB) for _ in range(4)]
            answers = [reader.__enter__()[1] for reader in slow]
            for answer in answers:
                self.assertEqual(len(answer.read(10 * KIB)), 10 * KIB)
            block = bytearray(4 * MIB)
            received = 0
            with self.reader("big.bin") as (_, answer):
                while count := answer.readinto(block):
                    received += count
            self.assertEqual(received, self.download_size)
            for reader, answer in zip(slow, answers, strict=True):
                self.assertEqual(len(answer.read(10 * KIB)), 10 * KIB)
                reader.__exit__(None, None, None)

    def test_upload(self) -> None:
        """One PATCH of a gigabyte."""
        url = self.daemon.upload_url(self.vfid, "big.bin", self.upload_size)
        blocks = noise(16 * MIB + 1)
        sent = hashlib.sha256()
        with self.flat_memory():
            running = self.begin_patch(url, 0, self.upload_size)
            for number in range(self.upload_size // (4 * MIB)):
                start = number * 65537 % (12 * MIB)
                block = blocks[start : start + 4 * MIB]
                running.send(block)
                sent.update(block)
            answer = running.getresponse()
            answer.read()
            self.assertEqual(answer.status, 204)
            self.assertEqual(answer.headers["Upload-Offset"], str(self.upload_size))
        self.assertEqual(digest(self.folder / "big.bin"), sent.hexdigest())
