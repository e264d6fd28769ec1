"""
The sample of etc/haproxy.cfg in front of two daemons on two mounts.
"""

from __future__ import annotations

import http.client
import json
from uuid import uuid4

from tests.ceph.case import CephCase, held
from tests.ceph.proxy import HAProxy
from tests.functional.clients.case import MIB, noise
from tests.functional.daemon import AUTH, MANAGER_SECRET

SIZE = 16 * MIB
SENT = 12 * MIB
#: What the daemon itself may have in memory of it.
IN_MEMORY = 4 * MIB


class HAProxyTests(CephCase):
    """Clients and managers know the proxy alone."""

    mounts = ("one", "two", "mortal")

    def setUp(self) -> None:
        super().setUp()
        self.daemons = [self.make_daemon_on(0), self.make_daemon_on(2)]
        for daemon in self.daemons:
            daemon.start()
        self.proxy = HAProxy(self.work, self.daemons)
        process = self.proxy.start()
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.vfid = self.daemons[0].folder()

    def request(
        self, port: int, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """A request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.addCleanup(connection.close)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, fields)
        answer = connection.getresponse()
        return answer, answer.read()

    def manager(self, method: str, target: str, **parameters: object) -> int:
        """A request to the manager API; its status."""
        body = json.dumps(parameters).encode()
        port = self.proxy.manager_port
        headers = {AUTH.replace("-", "_"): MANAGER_SECRET}
        return self.request(port, method, target, body, **headers)[0].status

    def new_upload(self, size: int) -> str:
        """Path and query of a session's URL."""
        daemon = self.daemons[0]
        return daemon.upload_url(self.vfid, uuid4().hex, size).removeprefix(daemon.client_url)

    def offset(self, target: str) -> int:
        """What a HEAD is told."""
        answer, _ = self.request(self.proxy.client_port, "HEAD", target)
        self.assertEqual(answer.status, 200)
        return int(answer.headers["Upload-Offset"])

    def use(self, times: int) -> None:
        """Work with both APIs; none of these requests fails."""
        for number in range(times):
            content = b"%d" % number
            target = self.new_upload(len(content))
            answer, _ = self.request(
                self.proxy.client_port, "PATCH", target, content, Upload_Offset="0"
            )
            self.assertEqual(answer.status, 204)
            self.assertEqual(self.offset(target), len(content))
            vfid = str(uuid4())
            self.assertEqual(self.manager("POST", "/folder/create", volume="local", vfid=vfid), 204)
            self.assertEqual(
                self.manager("POST", "/folder/file/list", volume="local", vfid=vfid, relpath="."),
                200,
            )

    def test_both(self) -> None:
        """Both daemons get requests; the log has no token, and the daemons' names of requests."""
        self.use(10)
        log = self.proxy.log.read_text()
        for server in ("clients/one", "clients/two", "managers/one", "managers/two"):
            self.assertIn(server, log)
        self.assertNotIn("token", log)
        lines = [line.split() for line in log.splitlines() if "clients/one" in line]
        known = self.daemons[0].log.read_text()
        for line in lines:
            self.assertIn(f'"{line[-1]}"', known)

    def test_not_held_back(self) -> None:
        """What has arrived when a client goes away is kept."""
        target = self.new_upload(SIZE)
        content = noise(SIZE)
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.client_port, timeout=60)
        connection.putrequest("PATCH", target)
        connection.putheader("Upload-Offset", "0")
        connection.putheader("Content-Length", str(SIZE))
        connection.endheaders()
        connection.send(content[:SENT])
        self.eventually(
            lambda: any(
                size >= SENT - IN_MEMORY for daemon in self.daemons for size in held(daemon)
            )
        )
        # This asks for the session, wherever it is, and waits until it is settled.
        offset = self.offset(target)
        connection.close()
        self.assertGreaterEqual(offset, SENT - IN_MEMORY)
        answer, _ = self.request(
            self.proxy.client_port, "PATCH", target, content[offset:], Upload_Offset=str(offset)
        )
        self.assertEqual(answer.status, 204)
        (path,) = self.daemons[1].path(self.vfid).iterdir()
        self.assertTrue(path.read_bytes() == content)

    def test_killed(self) -> None:
        """No request notices that a daemon was killed before it, and that it is back."""
        self.daemons[1].kill()
        self.use(5)
        self.daemons[1].start()
        self.use(5)

    def test_killed_beside_busy(self) -> None:
        """Nor does one whose other daemon has uploads under way."""
        for _ in range(6):
            connection = http.client.HTTPConnection("127.0.0.1", self.proxy.client_port, timeout=60)
            self.addCleanup(connection.close)
            connection.putrequest("PATCH", self.new_upload(2))
            connection.putheader("Upload-Offset", "0")
            connection.putheader("Content-Length", "2")
            connection.endheaders()
            connection.send(b"x")
        self.eventually(lambda: sum(len(held(daemon)) for daemon in self.daemons) == 6)
        self.daemons[1].kill()
        self.use(5)

    def test_drained(self) -> None:
        """Nor that one ends in an orderly way."""
        assert self.daemons[1].process is not None
        self.daemons[1].process.terminate()
        while self.daemons[1].process.poll() is None:
            self.use(1)
        self.use(2)

    def test_dead_mount(self) -> None:
        """Where a daemon has lost its mount, another is asked what can be asked twice."""
        targets = [self.new_upload(SIZE) for _ in range(8)]
        self.cluster.kill("fuse.mortal")
        self.cluster.evict("mortal")
        self.assertEqual([self.offset(target) for target in targets], [0] * 8)
        log = self.proxy.log.read_text()
        self.assertIn("retries:+1", log)
        self.assertIn('"status": 503', self.daemons[1].log.read_text())
