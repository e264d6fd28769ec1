"""
A machine that is gone, with its mount and its daemon, and all that it had not written yet.
"""

from __future__ import annotations

import http.client
import json
import signal
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from tests.ceph.case import CephCase
from tests.functional.clients.case import MIB, noise
from tests.functional.daemon import AUTH, MANAGER_SECRET, Daemon, claims

#: What a daemon has said to have, what it has got, and the whole file.
TOLD, SENT, SIZE = 4 * MIB, 48 * MIB, 52 * MIB
#: What it has on its mount by then, at least.
WRITTEN = 24 * MIB
#: Bytes of an object, of which files consist.
OBJECT = 4 * MIB
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
        self.vfid = self.lasting.folder()
        self.folders = [daemon.path(self.vfid) for daemon in (self.lasting, self.mortal)]

    def new_upload(self) -> Path:
        """A session, of which a part was told; where it is on the mount that is to be lost."""
        url = self.mortal.upload_url(self.vfid, "file", SIZE)
        self.target = url.removeprefix(self.mortal.client_url)
        (token,) = parse_qs(urlsplit(self.target).query)["token"]
        self.staged = Path(".upload", str(claims(token)["session"]))
        self.assertEqual(self.ask(self.mortal, "PATCH", 0, self.content[:TOLD]), (204, TOLD))
        return self.folders[1] / self.staged

    def hang(self, path: Path, size: int) -> bool:
        """
        Have a storage daemon hang that has a part of a file before one that another has.

        :param size: what counts of the file.
        :return: whether there is one.
        """
        number = path.stat().st_ino
        places = [
            self.cluster.command("osd", "map", "data", f"{number:x}.{index:08x}")["acting_primary"]
            for index in range(TOLD // OBJECT, size // OBJECT)
        ]
        for place, following in pairwise(places):
            if place != following:
                self.hung = f"osd.{place}"
                self.cluster.signal(self.hung, signal.SIGSTOP)
                self.addCleanup(self.cluster.signal, self.hung, signal.SIGCONT)
                return True
        return False

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
        while not self.hang(staged := self.new_upload(), WRITTEN):
            self.assertEqual(self.ask(self.mortal, "DELETE")[0], 204)
        connection = http.client.HTTPConnection("127.0.0.1", self.mortal.client_port, timeout=120)
        self.addCleanup(connection.close)
        connection.putrequest("PATCH", self.target)
        connection.putheader("Upload-Offset", str(TOLD))
        connection.putheader("Content-Length", str(SENT - TOLD))
        connection.endheaders()
        connection.sock.setblocking(False)
        sent = TOLD
        while staged.stat().st_size < WRITTEN:
            try:
                sent += connection.sock.send(self.content[sent : sent + MIB])
            except BlockingIOError:
                pass
        self.eventually(lambda: set(self.cluster.requests("mortal")) == {self.hung})

    def lose(self) -> None:
        """Lose the machine, and have the cluster know."""
        self.cluster.kill("fuse.mortal")
        self.mortal.kill()
        self.cluster.evict("mortal")
        self.cluster.signal(self.hung, signal.SIGCONT)

    def clone(self) -> tuple[int, Path]:
        """Have the mortal machine clone the vfolder: the status, and where the clone is."""
        vfid = uuid4().hex
        body = {
            "src_volume": "local",
            "src_vfid": self.vfid,
            "dst_volume": "local",
            "dst_vfid": vfid,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.mortal.manager_port, timeout=120)
        with closing(connection):
            headers = {AUTH: MANAGER_SECRET}
            connection.request("POST", "/folder/clone", json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
        return answer.status, self.lasting.path(vfid)

    def test_clone(self) -> None:
        """A clone is answered when all of it has arrived, and not before."""
        (self.folders[1] / "sub").mkdir(mode=0o750)
        original = self.folders[1] / "sub" / "file"
        while True:
            original.write_bytes(self.content)
            if self.hang(original, SIZE):
                break
        self.assertEqual(self.clone()[0], 503)
        self.cluster.signal(self.hung, signal.SIGCONT)
        while (answer := self.clone())[0] == 503:
            # Threads that were stuck come back one by one.
            pass
        status, clone = answer
        self.lose()
        self.assertEqual(status, 200)
        self.assertTrue((clone / "sub" / "file").read_bytes() == self.content)
        self.assertEqual((clone / "sub").stat().st_mode & 0o777, 0o750)

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
