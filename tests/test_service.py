"""
Tests for :mod:`storageproxy.service`.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.testing import EventLoggingObserver, MemoryReactorClock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from zope.interface.verify import verifyObject

from backends.vfs import VFSVolume
from storageproxy.daemon import IServing
from storageproxy.listeners import Listener, open_socket
from storageproxy.service import GRACE, SETTLE, StorageProxy
from storageproxy.vfolder import VFolderID
from tests.harness import NOW, HeldThreads, Wire, settings_of


class ServiceCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.reactor = MemoryReactorClock()
        self.daemon = self.make()

    def make(self, janitor: bool = True) -> StorageProxy:
        daemon = StorageProxy(settings_of(self.root), self.reactor, janitor, lambda: NOW)
        for volume in daemon.volumes:
            volume.threads = HeldThreads(self.reactor)  # type: ignore[misc]
        sockets = [open_socket("127.0.0.1", 0) for _ in range(2)]
        for opened in sockets:
            self.addCleanup(opened.close)
        daemon.listen([Listener(opened) for opened in sockets])
        return daemon

    def start(self) -> None:
        self.daemon.privilegedStartService()
        self.daemon.startService()

    def stop(self) -> Deferred[None]:
        stopping = self.daemon.stopService()
        self.reactor.advance(0)
        return stopping

    @property
    def threads(self) -> HeldThreads:
        threads: HeldThreads = self.daemon.volumes.get("local").threads
        return threads

    def connect(self, api: str = "client") -> Wire:
        _, _, factory = self.reactor.adoptedPorts[["client", "manager"].index(api)]
        return Wire(factory, self.reactor)


class StartTests(ServiceCase):
    def test_serves(self) -> None:
        """It is a service of Twisted's, and one that serves."""
        verifyObject(IServing, self.daemon)

    def test_nothing_before_the_start(self) -> None:
        """Nothing is accepted before it is started."""
        self.assertEqual(self.reactor.adoptedPorts, [])

    def test_listens(self) -> None:
        """Both APIs are on their ports, and it is ready at once."""
        self.start()
        self.successResultOf(self.daemon.ready())
        for api, target in (("client", "/"), ("manager", "/status")):
            wire = self.connect(api)
            wire.request("GET", target)
            self.assertEqual(wire.answers()[0].json()["type"], f"{api}-facing")

    def test_sweeps(self) -> None:
        """What a deletion before the restart has left is removed at the start."""
        left = self.root / "local" / ".storage-proxy" / "trash" / "left"
        left.mkdir(parents=True)
        self.start()
        self.assertFalse(left.exists())

    def test_leaves_it_to_another(self) -> None:
        """Of several processes one has a janitor."""
        left = self.root / "local" / ".storage-proxy" / "trash" / "left"
        left.mkdir(parents=True)
        self.daemon = self.make(janitor=False)
        self.start()
        self.assertTrue(left.exists())

    def test_looks_at_volumes(self) -> None:
        """Each process looks at the volumes, as what they can do may be known only then."""
        looked = []

        async def check(volume: VFSVolume) -> None:
            looked.append(volume.name)

        self.patch(VFSVolume, "check", check)
        for janitor in (True, False):
            looked.clear()
            self.daemon = self.make(janitor)
            self.start()
            self.assertEqual(looked, [volume.name for volume in self.daemon.volumes])

    def test_sweeps_stale_uploads(self) -> None:
        """FIX 9: stale upload sessions go at the start and every hour, living ones stay."""
        uploads = self.root / "local" / "ab" / "cd" / ("e" * 28) / ".upload"
        uploads.mkdir(parents=True)
        for name, age in (("stale", 90000), ("young", 80000)):
            (uploads / name).touch()
            os.utime(uploads / name, (NOW - age, NOW - age))
        self.start()
        self.assertEqual([path.name for path in uploads.iterdir()], ["young"])
        os.utime(uploads / "young", (NOW - 90000, NOW - 90000))
        self.reactor.advance(3600)
        self.assertFalse(uploads.exists())


class DrainTests(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.vfid = str(uuid4())
        self.folder = self.root / "local" / Path(*_layout(self.vfid))
        self.folder.mkdir(parents=True)
        (self.folder / "file").write_bytes(b"content")
        self.key = self.daemon.client._key

    def download(self) -> Wire:
        token = self.key.download(NOW, "local", VFolderID.parse(self.vfid), "file")
        wire = self.connect()
        wire.request("GET", f"/download?token={token}")
        return wire

    def upload(self, length: int, body: bytes) -> Wire:
        vfid = VFolderID.parse(self.vfid)
        volume = self.daemon.volumes.get("local")
        session = self.successResultOf(
            Deferred.fromCoroutine(self.daemon.uploads.create(volume, vfid, "new", length))
        )
        token = self.key.upload(NOW, "local", vfid, "new", length, session)
        wire = self.connect()
        wire.request("PATCH", f"/upload?token={token}", {"Upload-Offset": "0"}, None, length)
        wire.send(body)
        self.staged = self.folder / ".upload" / session
        return wire

    def test_idle(self) -> None:
        """A daemon with nothing to do ends at once."""
        self.successResultOf(self.stop())
        self.assertFalse(self.daemon.running)

    def test_running_answers_finish(self) -> None:
        """An answer that is under way is completed before the daemon ends."""
        self.threads.held = True
        wire = self.download()
        stopping = self.stop()
        self.assertNoResult(stopping)
        self.threads.release()
        self.assertEqual(wire.answers()[0].body, b"content")
        self.successResultOf(stopping)

    def test_grace_is_bounded(self) -> None:
        """A client that reads for ever does not keep the daemon from ending."""
        self.threads.held = True
        wire = self.download()
        stopping = self.stop()
        self.reactor.advance(GRACE - 1)
        self.assertNoResult(stopping)
        self.assertFalse(wire.aborted)
        self.reactor.advance(1)
        self.reactor.advance(0)
        self.successResultOf(stopping)
        self.assertTrue(wire.aborted)

    def test_uploads_keep_their_bytes(self) -> None:
        """What has come of a running upload is on the disk when the daemon ends."""
        wire = self.upload(10, b"abcd")
        self.successResultOf(self.stop())
        self.assertTrue(wire.aborted)
        self.assertEqual(self.staged.read_bytes(), b"abcd")

    def test_waits_for_the_disk(self) -> None:
        """The daemon does not end while bytes of an upload are on their way to the disk."""
        self.upload(10, b"abcd")
        self.threads.held = True
        stopping = self.stop()
        self.assertNoResult(stopping)
        self.threads.release()
        self.reactor.advance(0)
        self.successResultOf(stopping)
        self.assertEqual(self.staged.read_bytes(), b"abcd")

    def test_disk_that_hangs(self) -> None:
        """A disk that hangs does not keep the daemon from ending."""
        self.upload(10, b"abcd")
        self.threads.held = True
        stopping = self.stop()
        self.reactor.advance(GRACE)
        self.reactor.advance(SETTLE)
        self.reactor.advance(0)
        self.successResultOf(stopping)
        self.threads.release()

    def test_late_is_no_failure(self) -> None:
        """That something was not waited for any longer is nothing to be told as a failure."""
        events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.upload(10, b"abcd")
        self.threads.held = True
        self.download()
        stopping = self.stop()
        self.reactor.advance(GRACE)
        self.reactor.advance(SETTLE)
        self.reactor.advance(0)
        self.successResultOf(stopping)
        told = [event for event in events if event["log_namespace"] == "storageproxy.service"]
        self.assertEqual([one for one in told if one["log_level"] > LogLevel.info], [])
        self.threads.release()

    def test_not_ready_meanwhile(self) -> None:
        """While it ends, a daemon sends new work elsewhere."""
        asking = self.connect("manager")
        asking.send(b"GET /readyz HTTP/1.1\r\n")
        self.stop()
        asking.send(b"Host: localhost\r\n\r\n")
        self.assertEqual(asking.answers()[0].status, 503)

    def test_answers_are_sent(self) -> None:
        """What is written of an answer is sent before the daemon ends."""
        wire = self.download()
        self.threads.release()
        stopping = self.stop()
        self.assertFalse(wire.aborted)
        self.assertTrue(wire.disconnecting)
        self.reactor.advance(0)
        self.successResultOf(stopping)

    def test_threads_end(self) -> None:
        """The volumes' threads end with the daemon."""
        self.successResultOf(self.stop())
        self.assertTrue(self.threads.stopped)

    def test_volume_that_does_not_end(self) -> None:
        """A volume that goes on with its leave-taking is left alone after a while."""
        [volume, *_] = self.daemon.volumes

        async def stop() -> None:
            await Deferred()

        self.patch(volume, "stop", stop)
        stopping = self.stop()
        self.reactor.advance(GRACE)
        self.successResultOf(stopping)

    def test_no_timers_are_left(self) -> None:
        """Nothing of the daemon is left in the reactor."""
        self.upload(10, b"abcd")
        self.successResultOf(self.stop())
        self.reactor.advance(0)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_requests_are_not_served_for_ever(self) -> None:
        """Every request is over when the daemon has ended."""
        self.threads.held = True
        self.download()
        stopping = self.stop()
        self.reactor.advance(GRACE)
        self.reactor.advance(0)
        self.successResultOf(stopping)
        for _, _, factory in self.reactor.adoptedPorts:
            self.assertEqual(factory.active, set())


def _layout(vfid: str) -> tuple[str, ...]:
    digits = vfid.replace("-", "")
    return digits[:2], digits[2:4], digits[4:]


class TCPTests(TestCase):
    async def test_over_real_ports(self) -> None:
        """It starts, answers and ends on real ports."""
        # Rounds of a janitor would go on in their threads.
        daemon = StorageProxy(settings_of(Path(self.mktemp()).absolute()), real_reactor, False)
        sockets = [open_socket("127.0.0.1", 0) for _ in range(2)]
        ports = [opened.getsockname()[1] for opened in sockets]
        daemon.listen([Listener(opened) for opened in sockets])
        daemon.startService()
        agent = Agent(real_reactor, pool=HTTPConnectionPool(real_reactor, False))
        for port, path in zip(ports, ("/", "/status"), strict=True):
            answer = await agent.request(b"GET", f"http://127.0.0.1:{port}{path}".encode())
            self.assertEqual(answer.code, 200)
            await readBody(answer)
        await daemon.stopService()
        self.assertFalse(daemon.running)
        for port in ports:
            with open_socket("127.0.0.1", port):
                """Nobody listens there any more."""
