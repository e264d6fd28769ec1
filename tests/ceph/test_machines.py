"""
A machine that is gone, with its mount and its daemon, and all that it had not written yet.
"""

from __future__ import annotations

import http.client
import signal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.ceph.case import CephCase
from tests.functional.clients.case import MIB, noise
from tests.functional.daemon import Daemon, claims

#: What a daemon has said to have, what it has got, and the whole file.
TOLD, SENT, SIZE = 4 * MIB, 48 * MIB, 52 * MIB
#: What it has on its mount by then, at least.
WRITTEN = 24 * MIB
#: The storage daemon that hangs.
HUNG = "osd.2"
#: Seconds for a call, so that tests need not wait for long.
OPTIONS = '[volume.local.options]\ndurability = "shared"\ndeadline = 1'


class MachineTests(CephCase):
    """Two machines, one of which is lost in the midst of an upload."""

    mounts = ("lasting", "mortal")
    osds = 3

    def setUp(self) -> None:
        super().setUp()
        self.lasting, self.mortal = self.make_daemon_on(0, OPTIONS), self.make_daemon_on(1, OPTIONS)
        self.lasting.start()
        self.mortal.start()
        self.content = noise(SIZE)
        vfid = self.lasting.folder()
        self.target = self.mortal.upload_url(vfid, "file", SIZE).removeprefix(
            self.mortal.client_url
        )
        (token,) = parse_qs(urlsplit(self.target).query)["token"]
        self.staged = Path(".upload", str(claims(token)["session"]))
        self.folders = [daemon.path(vfid) for daemon in (self.lasting, self.mortal)]

    def ask(
        self, daemon: Daemon, method: str, offset: int | None = None, body: bytes | None = None
    ) -> tuple[int, int]:
        """A request for the upload; its status, and the offset that it was told, or -1."""
        connection = http.client.HTTPConnection("127.0.0.1", daemon.client_port, timeout=120)
        self.addCleanup(connection.close)
        headers = {} if offset is None else {"Upload-Offset": str(offset)}
        connection.request(method, self.target, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, int(answer.headers.get("Upload-Offset", "-1"))

    def begin(self) -> None:
        """Upload a part to the daemon that is to be lost, and have it receive another."""
        self.assertEqual(self.ask(self.mortal, "PATCH", 0, self.content[:TOLD]), (204, TOLD))
        self.cluster.signal(HUNG, signal.SIGSTOP)
        self.addCleanup(self.cluster.signal, HUNG, signal.SIGCONT)
        connection = http.client.HTTPConnection("127.0.0.1", self.mortal.client_port, timeout=120)
        self.addCleanup(connection.close)
        connection.putrequest("PATCH", self.target)
        connection.putheader("Upload-Offset", str(TOLD))
        connection.putheader("Content-Length", str(SENT - TOLD))
        connection.endheaders()
        connection.sock.setblocking(False)
        sent = TOLD
        staged = self.folders[1] / self.staged
        while staged.stat().st_size < WRITTEN:
            try:
                sent += connection.sock.send(self.content[sent : sent + MIB])
            except BlockingIOError:
                pass
        self.eventually(lambda: set(self.cluster.requests("mortal")) == {HUNG})

    def lose(self) -> None:
        """Lose the machine, and have the cluster know."""
        self.cluster.kill("fuse.mortal")
        self.mortal.kill()
        self.cluster.evict("mortal")
        self.cluster.signal(HUNG, signal.SIGCONT)

    def holes(self) -> int:
        """How many MiB of the upload are zeros that nobody has sent."""
        found = (self.folders[0] / self.staged).read_bytes()
        pieces = range(0, len(found) - MIB, MIB)
        return sum(found[start : start + MIB] == bytes(MIB) for start in pieces)

    def test_upload(self) -> None:
        """What was told is there; what has holes is not told, and comes again."""
        self.begin()
        self.lose()
        self.assertGreater(self.holes(), 0, "this is what is to be survived")
        while (answer := self.ask(self.lasting, "HEAD"))[0] != 200:
            self.assertIn(answer[0], (423, 503))
        self.assertEqual(answer, (200, TOLD))
        self.assertEqual(self.ask(self.lasting, "PATCH", TOLD, self.content[TOLD:]), (204, SIZE))
        self.assertTrue((self.folders[0] / "file").read_bytes() == self.content)
