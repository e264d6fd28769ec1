"""
Tests for :mod:`storageproxy.service`.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
from pathlib import Path
from typing import Any
from unittest.mock import NonCallableMock
from uuid import uuid4

from attrs import evolve
from twisted.application.service import IService, MultiService, Service
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver
from twisted.python.components import Componentized
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from zope.interface.verify import verifyObject

import storageproxy
from storageproxy import config, service
from storageproxy.config import Configuration, ConfigurationError, ListenerSettings
from storageproxy.service import GRACE, SETTLE, StorageProxy, drop_privileges, tls_options
from storageproxy.vfolder import VFolderID
from tests.harness import (
    MANAGER_SECRET,
    NOW,
    TOKEN_SECRET,
    Events,
    HeldThreads,
    Wire,
    make_certificate,
)


def settings_of(root: Path, **proxy: Any) -> Configuration:
    (root / "local").mkdir(parents=True, exist_ok=True)
    return config.check(
        {
            "storage-proxy": {
                "node-id": "i-tests",
                "secret": TOKEN_SECRET,
                "session-expire": "1d",
                "user": -1,
                "group": -1,
                "num-proc": 1,
                **proxy,
            },
            "api": {
                "client": {"service-addr": "127.0.0.1:6021"},
                "manager": {"service-addr": "127.0.0.1:6022", "secret": MANAGER_SECRET},
            },
            "volume": {"local": {"backend": "vfs", "path": str(root / "local")}},
        }
    )


class ServiceCase(SynchronousTestCase):
    environ: dict[str, str] = {}

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.reactor = MemoryReactorClock()
        self.daemon = self.make()

    def make(self, greeting: str = "", observer: Any = None, **proxy: Any) -> StorageProxy:
        daemon = StorageProxy(
            settings_of(self.root, **proxy),
            self.reactor,
            observer,
            greeting,
            lambda: NOW,
            self.environ,
        )
        for volume in daemon.volumes:
            volume.threads = HeldThreads(self.reactor)  # type: ignore[misc]
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

    def connect(self, port: int = 6021) -> Wire:
        for number, factory, *_ in self.reactor.tcpServers:
            if number == port:
                return Wire(factory, self.reactor)
        raise LookupError(port)


class StartTests(ServiceCase):
    def test_is_a_service(self) -> None:
        """It is a service of Twisted's."""
        verifyObject(IService, self.daemon)

    def test_nothing_before_the_start(self) -> None:
        """Nothing listens before the daemon is started."""
        self.assertEqual(self.reactor.tcpServers, [])

    def test_listens(self) -> None:
        """Both APIs are on their ports and addresses, with room for many that wait."""
        self.start()
        found = [(port, backlog, host) for port, _, backlog, host in self.reactor.tcpServers]
        self.assertEqual(found, [(6021, 1024, "127.0.0.1"), (6022, 1024, "127.0.0.1")])
        for port, kind in ((6021, "client"), (6022, "manager")):
            wire = self.connect(port)
            wire.request("GET", "/" if port == 6021 else "/status")
            self.assertEqual(wire.answers()[0].json()["type"], f"{kind}-facing")

    def test_order(self) -> None:
        """Ports are opened while the process may, then it drops its rights, then it begins."""
        steps: list[str] = []
        listen = self.reactor.listenTCP

        def traced(*args: Any, **kwargs: Any) -> Any:
            steps.append("listen")
            return listen(*args, **kwargs)

        self.reactor.listenTCP = traced  # type: ignore[method-assign]
        self.patch(service, "drop_privileges", lambda *args: steps.append("drop"))
        self.patch(service, "notify", lambda *args: steps.append(args[1]))
        self.patch(MultiService, "startService", lambda _: steps.append("begin"))
        self.start()
        self.assertEqual(steps, ["listen", "listen", "drop", "begin", "READY=1"])

    def test_sweeps(self) -> None:
        """What a deletion before the restart has left is removed at the start."""
        left = self.root / "local" / ".storage-proxy" / "trash" / "left"
        left.mkdir(parents=True)
        self.start()
        self.assertFalse(left.exists())

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

    def test_more_processes(self) -> None:
        """FIX 29: any number of processes may be asked for, and it is said that one runs."""
        self.daemon = self.make(**{"num-proc": 1000})
        events = Events(self)
        self.start()
        self.assertIn(1000, [event.get("wanted") for event in events])

    def test_pid_file(self) -> None:
        """The pid file is there while the daemon runs."""
        path = self.root / "pid"
        self.daemon = self.make(**{"pid-file": str(path)})
        self.start()
        self.assertEqual(path.read_text().strip(), str(os.getpid()))
        self.successResultOf(self.stop())
        self.assertFalse(path.exists())

    def test_pid_file_that_stays(self) -> None:
        """A pid file that root has written and the user cannot remove is no reason not to end."""
        self.daemon = self.make(**{"pid-file": str(self.root / "pid")})
        self.start()

        def refuse(path: Path, missing_ok: bool = False) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        self.patch(Path, "unlink", refuse)
        self.successResultOf(self.stop())
        self.assertFalse(self.daemon.running)

    def test_no_pid_file(self) -> None:
        """Without a pid file none is written, and /dev/null stays."""
        self.start()
        self.successResultOf(self.stop())
        self.assertTrue(os.path.exists(os.devnull))

    def test_log_observer(self) -> None:
        """The configured log becomes that of the application."""

        def observer(event: Any) -> None:
            """Drop it."""

        application = Componentized()
        application.addService = lambda child: None  # type: ignore[attr-defined]
        daemon = self.make(observer=observer)
        daemon.setServiceParent(_Application(application))
        self.assertIs(application.getComponent(ILogObserver), observer)

    def test_frozen_reasons(self) -> None:
        """No secret is in what the daemon says when it starts."""
        events = Events(self)
        self.start()
        for event in events:
            self.assertNotIn(MANAGER_SECRET, str(event))
            self.assertNotIn(TOKEN_SECRET, str(event))


class _Application(MultiService):
    """An application, as twistd makes it."""

    def __init__(self, components: Componentized) -> None:
        super().__init__()
        self._components = components

    def setComponent(self, interface: Any, component: Any) -> None:
        self._components.setComponent(interface, component)


class PortInUseTests(ServiceCase):
    taken = (6021, 6022)

    def setUp(self) -> None:
        super().setUp()
        self.pid_file = self.root / "pid"
        self.daemon = self.make(**{"pid-file": str(self.pid_file)})
        self.told: list[str] = []
        self.patch(service, "notify", lambda _, *said: self.told.extend(said))
        listen = self.reactor.listenTCP

        def refuse(port: int, *args: Any, **kwargs: Any) -> Any:
            if port in self.taken:
                raise CannotListenError("127.0.0.1", port, OSError(98, "Address already in use"))
            return listen(port, *args, **kwargs)

        self.reactor.listenTCP = refuse  # type: ignore[method-assign]

    def refused(self) -> str:
        error = self.assertRaises(SystemExit, self.start)
        self.assertNotEqual(error.code, 0)
        return str(error.code)

    def test_ends(self) -> None:
        """When a port is taken the daemon says which, and ends with a failure."""
        self.assertIn("6021", self.refused())
        self.assertEqual(self.told, [])

    def test_second_port(self) -> None:
        """One port is not enough to begin with."""
        self.taken = (6022,)
        self.assertIn("6022", self.refused())
        self.assertEqual(self.told, [])

    def test_pid_file_of_the_other(self) -> None:
        """The pid file of the daemon that has the port is left alone."""
        self.pid_file.write_text("1\n")
        self.refused()
        self.assertEqual(self.pid_file.read_text(), "1\n")


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

    def test_not_ready_meanwhile(self) -> None:
        """While it ends, a daemon sends new work elsewhere."""
        asking = self.connect(6022)
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
        for _, factory, *_ in self.reactor.tcpServers:
            self.assertEqual(factory.active, set())


def _layout(vfid: str) -> tuple[str, ...]:
    digits = vfid.replace("-", "")
    return digits[:2], digits[2:4], digits[4:]


class NotifyTests(ServiceCase):
    def setUp(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.listener.close)
        name = f"storage-proxy-tests-{uuid4().hex}"
        self.listener.bind("\0" + name)
        self.listener.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": "@" + name}
        super().setUp()

    def told(self) -> list[str]:
        found = []
        while True:
            try:
                found += self.listener.recv(4096).decode().splitlines()
            except BlockingIOError:
                return found

    def test_ready(self) -> None:
        """systemd is told when the daemon serves, and not before."""
        self.daemon.privilegedStartService()
        self.assertEqual(self.told(), [])
        self.daemon.startService()
        self.assertIn("READY=1", self.told())

    def test_stopping(self) -> None:
        """systemd is told when the daemon begins to end."""
        self.start()
        self.told()
        self.stop()
        self.assertEqual(self.told(), ["STOPPING=1"])


class PrivilegesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        for name in ("setgroups", "setgid", "setuid"):
            self.patch(os, name, lambda value, name=name: self.calls.append((name, value)))

    def test_ordinary_user(self) -> None:
        """A daemon that was started by an ordinary user stays what it is."""
        drop_privileges(1000, 2000, 2000)
        self.assertEqual(self.calls, [])

    def test_root_becomes_the_user(self) -> None:
        """Root gives up its groups first and its user last."""
        self.patch(pwd, "getpwuid", lambda uid: NonCallableMock(pw_name="user"))
        groups = [
            NonCallableMock(gr_gid=7, gr_mem=["other", "user"]),
            NonCallableMock(gr_gid=8, gr_mem=["other"]),
        ]
        self.patch(grp, "getgrall", lambda: groups)
        drop_privileges(0, 2000, 3000)
        self.assertEqual(self.calls, [("setgroups", [7, 3000]), ("setgid", 3000), ("setuid", 2000)])

    def test_user_without_a_name(self) -> None:
        """FIX 30: a uid that is in no table, as in containers, is taken all the same."""

        def nobody(uid: int) -> Any:
            raise KeyError(uid)

        self.patch(pwd, "getpwuid", nobody)
        drop_privileges(0, 54321, 54322)
        self.assertEqual(self.calls, [("setgroups", [54322]), ("setgid", 54322), ("setuid", 54321)])

    def test_stay_root(self) -> None:
        """-1 means to stay who one is."""
        drop_privileges(0, -1, -1)
        self.assertEqual(self.calls, [])

    def test_owner_of_the_program(self) -> None:
        """-2, the default, means the owner of the program."""
        owner = NonCallableMock(st_uid=4000, st_gid=5000)
        stat = os.stat
        self.patch(
            os,
            "stat",
            lambda path, *args, **kwargs: (
                owner if path == storageproxy.__file__ else stat(path, *args, **kwargs)
            ),
        )
        drop_privileges(0, -2, -2)
        self.assertEqual(self.calls[1:], [("setgid", 5000), ("setuid", 4000)])

    def test_only_the_group(self) -> None:
        """A group alone can be changed."""
        drop_privileges(0, -1, 3000)
        self.assertIn(("setgid", 3000), self.calls)


class TLSOptionsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir(parents=True)
        self.certificate, self.key = make_certificate(self.root)

    def listener(self, certificate: Path | None, key: Path | None) -> ListenerSettings:
        return ListenerSettings(
            ("127.0.0.1", 0),
            True,
            None if certificate is None else str(certificate),
            None if key is None else str(key),
        )

    def refused(self, certificate: Path, key: Path) -> None:
        error = self.assertRaises(ConfigurationError, tls_options, self.listener(certificate, key))
        [problem] = error.problems
        self.assertIn("ssl-cert", problem)
        self.assertIn("ssl-privkey", problem)

    def test_good(self) -> None:
        """A certificate and its key make a port with TLS."""
        options = tls_options(self.listener(self.certificate, self.key))
        options.getContext().check_privatekey()

    def test_chain(self) -> None:
        """Certificates below the first one are sent with it."""
        other, _ = make_certificate(self.root, "other")
        chain = self.root / "chain"
        chain.write_bytes(self.certificate.read_bytes() + other.read_bytes())
        options = tls_options(self.listener(chain, self.key))
        self.assertEqual(len(options.extraCertChain), 1)

    def test_wrong_key(self) -> None:
        """A key of another certificate is refused before anything is started."""
        _, other = make_certificate(self.root, "other")
        self.refused(self.certificate, other)

    def test_wrong_files(self) -> None:
        """Files that hold something else are refused."""
        empty = self.root / "empty"
        empty.write_bytes(b"")
        noise = self.root / "noise"
        noise.write_bytes(b"-----BEGIN CERTIFICATE-----\nbm9pc2U=\n-----END CERTIFICATE-----\n")
        for wrong in (empty, noise, self.key, self.root / "missing", self.root):
            self.refused(wrong, self.key)
        for wrong in (empty, noise, self.certificate, self.root / "missing", self.root):
            self.refused(self.certificate, wrong)


class TCPTests(TestCase):
    async def test_over_real_ports(self) -> None:
        """The daemon starts, answers and ends on real ports, also with a request under way."""
        root = Path(self.mktemp()).absolute()
        settings = settings_of(root)
        ports = []
        for _ in range(2):
            probe = socket.socket()
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
            self.addCleanup(probe.close)
            probe.close()
        api = evolve(
            settings.api,
            client=evolve(settings.api.client, service_addr=("127.0.0.1", ports[0])),
            manager=evolve(settings.api.manager, service_addr=("127.0.0.1", ports[1])),
        )
        # Its rounds would go on in their threads.
        self.patch(service, "Janitor", lambda *args: Service())
        daemon = StorageProxy(evolve(settings, api=api), real_reactor, environ={})
        daemon.privilegedStartService()
        daemon.startService()
        agent = Agent(real_reactor, pool=HTTPConnectionPool(real_reactor, False))
        for port, path in zip(ports, ("/", "/status"), strict=True):
            answer = await agent.request(b"GET", f"http://127.0.0.1:{port}{path}".encode())
            self.assertEqual(answer.code, 200)
            await readBody(answer)
        await daemon.stopService()
        self.assertFalse(daemon.running)
