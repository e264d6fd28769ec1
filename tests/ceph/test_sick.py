"""
A cluster that hangs, and mounts that are dead: what they cost is told, and is theirs alone.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.ceph.case import CephCase
from tests.engines.ceph import MDS
from tests.functional.clients.case import MIB, noise
from tests.functional.daemon import AUTH, MANAGER_SECRET

#: How many requests to the sick volume are under way at once.
CALLERS = 32
#: Threads of the volume, seconds for a call, and what that makes of an upload.
OPTIONS = '[volume.local.options]\ndurability = "shared"\nthreads = 8\ndeadline = 2\n'
#: Bytes that the daemon may grow by.
GROWTH = 64 * MIB
SIZE = 12 * MIB


class SickCase(CephCase):
    """A daemon with a volume on a mount, and one on the disk of this machine."""

    mounts = ("well", "sick")

    def setUp(self) -> None:
        super().setUp()
        disk = self.work / "disk"
        disk.mkdir()
        well = f'[volume.well]\nbackend = "vfs"\npath = "{disk}"\n'
        self.daemon = self.make_daemon_on(1, OPTIONS + well)
        self.daemon.start()
        self.well = self.daemon.folder("well")
        self.vfid = self.daemon.folder()
        # What is made by another mount, the sick one has to ask for.
        self.elsewhere = self.tops[0] / "local"
        self.content = noise(SIZE)
        path = self.daemon.path(self.vfid).relative_to(self.tops[1])
        (self.tops[0] / path / "file").write_bytes(self.content)
        self.assertEqual(self.list_folder("well", self.well)[0], 200)

    def hang(self, name: str) -> None:
        """Have a daemon of the cluster hang until the test ends, at the latest."""
        self.cluster.signal(name, signal.SIGSTOP)
        self.addCleanup(self.go_on, name)

    def go_on(self, name: str) -> None:
        """Let it go on."""
        self.cluster.signal(name, signal.SIGCONT)

    def new_folder(self) -> str:
        """A vfolder that the sick mount knows nothing of."""
        vfid = uuid4().hex
        (self.elsewhere / vfid[:2] / vfid[2:4] / vfid[4:]).mkdir(parents=True)
        return vfid

    def ask(
        self, port: int, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """A request on a connection of its own: status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(connection):
            connection.request(method, target, body, fields)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def list_folder(self, volume: str, vfid: str) -> tuple[int, dict[str, str], bytes]:
        """List a vfolder."""
        body = json.dumps({"volume": volume, "vfid": vfid, "relpath": "."}).encode()
        secret = {AUTH.replace("-", "_"): MANAGER_SECRET}
        return self.ask(self.daemon.manager_port, "POST", "/folder/file/list", body, **secret)

    def client(
        self, method: str, url: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """A request to the client API."""
        target = url.removeprefix(self.daemon.client_url)
        return self.ask(self.daemon.client_port, method, target, body, **headers)

    def assert_unavailable(self, answer: tuple[int, dict[str, str], bytes]) -> str:
        """Check that a volume is said to be unavailable; how."""
        status, headers, body = answer
        self.assertEqual(status, 503, body)
        self.assertGreater(int(headers["Retry-After"]), 0)
        return str(json.loads(body)["msg"]) if body else ""

    def watch_other(self, stuck: list[Future[Any]], why: str) -> None:
        """List the other volume while these wait: it answers as ever."""
        took = []
        while not all(call.done() for call in stuck):
            began = time.monotonic()
            self.assertEqual(self.list_folder("well", self.well)[0], 200)
            took.append(time.monotonic() - began)
        took.sort()
        self.assertGreater(len(took), 100)
        p99 = took[len(took) * 99 // 100] * 1000
        print(f"{why}: {len(took)} listings of another volume, p99 {p99:.1f} ms")

    def threads(self) -> int:
        """How many threads the daemon has."""
        assert self.daemon.process is not None
        return len(list(Path(f"/proc/{self.daemon.process.pid}/task").iterdir()))

    def memory(self) -> int:
        """How many bytes of memory the daemon takes up."""
        assert self.daemon.process is not None
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def assert_well(self) -> None:
        """All works again, without a restart: listing, download, upload."""
        self.eventually(lambda: self.list_folder("local", self.vfid)[0] == 200)
        download = self.daemon.download_url(self.vfid, "file")
        status, _, body = self.client("GET", download)
        self.assertEqual(status, 200)
        self.assertTrue(body == self.content)
        upload = self.daemon.upload_url(self.vfid, "new", SIZE)
        self.assertEqual(self.client("PATCH", upload, self.content, Upload_Offset="0")[0], 204)
        self.assertTrue((self.daemon.path(self.vfid) / "new").read_bytes() == self.content)


class HungClusterTests(SickCase):
    """What serves the file system has stopped."""

    def test_mds(self) -> None:
        """Without the metadata server all requests to the volume are answered in time."""
        folders = [self.new_folder() for _ in range(CALLERS)]
        before = self.memory()
        self.hang(MDS)
        with ThreadPoolExecutor(CALLERS) as callers:
            stuck = [callers.submit(self.list_folder, "local", vfid) for vfid in folders]
            self.watch_other(stuck, "MDS hung")
            for call in stuck:
                self.assert_unavailable(call.result())
        # All threads of the volume are stuck: it is said at once.
        message = self.assert_unavailable(self.list_folder("local", folders[0]))
        self.assertIn("volume local: all its threads are stuck", message)
        self.assertLess(self.threads(), 8 + 24)
        self.assertLess(self.memory() - before, GROWTH)
        self.go_on(MDS)
        self.assert_well()

    def test_osd(self) -> None:
        """Without a storage daemon uploads are answered in time, and go on from what was told."""
        url = self.daemon.upload_url(self.vfid, "slow", SIZE)
        half = SIZE // 2
        self.assertEqual(self.client("PATCH", url, self.content[:half], Upload_Offset="0")[0], 204)
        before = self.memory()
        download = self.daemon.download_url(self.vfid, "file")
        self.hang("osd.0")
        with ThreadPoolExecutor() as callers:
            stuck = [
                callers.submit(
                    self.client, "PATCH", url, self.content[half:], Upload_Offset=str(half)
                ),
                callers.submit(self.client, "GET", download),
            ]
            self.watch_other(stuck, "OSD hung")
            self.assert_unavailable(stuck[0].result())
            self.assert_unavailable(stuck[1].result())
        self.assertLess(self.memory() - before, GROWTH)
        self.go_on("osd.0")
        self.assert_well()
        self.eventually(lambda: self.client("HEAD", url)[0] == 200)
        offset = int(self.client("HEAD", url)[1]["Upload-Offset"])
        self.assertGreaterEqual(offset, half)
        rest = self.content[offset:]
        status = self.client("PATCH", url, rest, Upload_Offset=str(offset))[0]
        self.assertEqual(status, 204)
        self.assertTrue((self.daemon.path(self.vfid) / "slow").read_bytes() == self.content)

    def test_stop(self) -> None:
        """The daemon serves nothing any more when it is asked to end, and is gone at last."""
        process = self.daemon.process
        assert process is not None
        folder = self.new_folder()
        self.hang(MDS)
        self.assert_unavailable(self.list_folder("local", folder))
        process.terminate()
        status = Path(f"/proc/{process.pid}/status")
        # A thread in the kernel cannot be ended, and the process lasts as long.
        self.eventually(lambda: process.poll() is not None or "State:\tZ" in status.read_text())
        for port in (self.daemon.client_port, self.daemon.manager_port):
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
        self.go_on(MDS)
        self.assertIn(process.wait(60), (0, -signal.SIGTERM))


class DeadMountTests(SickCase):
    """The mount will never work again, until there is a new one in its place."""

    def assert_dead(self) -> None:
        """What is asked of the volume is answered with what to do; the other one is well."""
        message = self.assert_unavailable(self.list_folder("local", self.vfid))
        self.assertRegex(message, "volume local: .*: its mount is dead")
        self.assertNotIn(str(self.tops[1]), message)
        self.assertIn(
            f"{message}; unmount {self.daemon.volumes['local']} and mount it again",
            self.daemon.log.read_text(),
        )
        self.assertEqual(self.list_folder("well", self.well)[0], 200)

    def remount(self) -> None:
        """Unmount and mount."""
        self.cluster.unmount("sick", lazily=True)
        self.cluster.mount("sick")

    def test_killed(self) -> None:
        """ceph-fuse was killed; an upload goes on when it is back."""
        url = self.daemon.upload_url(self.vfid, "slow", SIZE)
        half = SIZE // 2
        self.client("PATCH", url, self.content[:half], Upload_Offset="0")
        download = self.daemon.download_url(self.vfid, "file")
        self.cluster.kill("fuse.sick")
        self.assert_dead()
        self.assert_unavailable(self.client("HEAD", url))
        self.assert_unavailable(self.client("GET", download))
        self.cluster.evict("sick")
        self.remount()
        self.assert_well()
        self.assertEqual(int(self.client("HEAD", url)[1]["Upload-Offset"]), half)

    def test_killed_under_way(self) -> None:
        """ceph-fuse is killed while calls wait for it."""
        folders = [self.new_folder() for _ in range(CALLERS)]
        self.hang(MDS)
        with ThreadPoolExecutor(CALLERS) as callers:
            stuck = [callers.submit(self.list_folder, "local", vfid) for vfid in folders]
            self.eventually(lambda: any(call.done() for call in stuck))
            self.cluster.kill("fuse.sick")
            for call in stuck:
                self.assert_unavailable(call.result())
        self.assert_dead()
        self.go_on(MDS)
        self.cluster.evict("sick")
        self.remount()
        self.assert_well()

    def test_shut_out(self) -> None:
        """The cluster has given the mount up."""
        self.cluster.evict("sick")
        self.eventually(lambda: self.list_folder("local", self.vfid)[0] == 503)
        self.assert_dead()
        self.remount()
        self.assert_well()
