"""
Tests for :mod:`storageproxy.daemon`.
"""

from __future__ import annotations

import atexit
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
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogLevel
from twisted.python.components import Componentized
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

import storageproxy
from storageproxy import daemon
from storageproxy.config import ConfigurationError
from storageproxy.daemon import Daemon, IServing, drop_privileges
from storageproxy.listeners import Listener, open_socket
from tests.harness import MANAGER_SECRET, TOKEN_SECRET, Events, make_certificate, settings_of


@implementer(IServing)
class Serving(Service):
    """Serves nobody, and tells when it would."""

    def __init__(self, steps: list[str]) -> None:
        self.steps = steps
        self.waiting: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self.listeners: list[Listener] = []

    def listen(self, listeners: list[Listener]) -> None:
        self.listeners = listeners
        self.steps.append("listen")

    def ready(self) -> Deferred[None]:
        return self.waiting

    def startService(self) -> None:
        super().startService()
        self.steps.append("start")

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self.steps.append("stop")
        return self.ended


class DaemonCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.reactor = MemoryReactorClock()
        self.steps: list[str] = []
        self.patch(daemon, "drop_privileges", lambda *args: self.steps.append("drop"))
        self.patch(daemon, "notify", lambda environ, *said: self.steps.append(said[0]))
        self.daemon = self.make()

    def make(self, greeting: str = "", observer: Any = None, **proxy: Any) -> Daemon:
        self.serving = Serving(self.steps)
        return Daemon(
            settings_of(self.root, **proxy), self.serving, self.reactor, observer, greeting, {}
        )

    def start(self) -> None:
        self.daemon.privilegedStartService()
        self.addCleanup(self.daemon._close)
        self.daemon.startService()

    def ports(self) -> list[int]:
        return [listener.socket.getsockname()[1] for listener in self.serving.listeners]


class StartTests(DaemonCase):
    def test_interfaces(self) -> None:
        """It is a service of Twisted's."""
        verifyObject(IService, self.daemon)
        verifyObject(IServing, self.serving)

    def test_order(self) -> None:
        """
        Ports are opened while the process may, then it drops its rights, then it begins; systemd
        hears of it when requests are served.
        """
        self.daemon.privilegedStartService()
        self.addCleanup(self.daemon._close)
        self.assertEqual(self.steps, ["listen"])
        self.daemon.startService()
        self.assertEqual(self.steps, ["listen", "drop", "start"])
        self.serving.waiting.callback(None)
        self.assertEqual(self.steps, ["listen", "drop", "start", "READY=1"])

    def test_listens(self) -> None:
        """Whoever connects before requests are served waits, and is not refused."""
        self.start()
        for port in self.ports():
            socket.create_connection(("127.0.0.1", port)).close()

    def test_certificates(self) -> None:
        """The certificate of each port goes with it, as what is in the files."""
        chain, key = make_certificate(self.root)
        settings = settings_of(self.root)
        client = evolve(
            settings.api.client, ssl_enabled=True, ssl_cert=str(chain), ssl_privkey=str(key)
        )
        settings = evolve(settings, api=evolve(settings.api, client=client))
        self.daemon = Daemon(settings, self.serving, self.reactor, environ={})
        key.unlink()
        self.start()
        first, second = (listener.certificate for listener in self.serving.listeners)
        assert first is not None
        self.assertEqual(first.chain, chain.read_bytes())
        self.assertIsNone(second)
        chain.unlink()
        self.assertRaises(ConfigurationError, Daemon, settings, self.serving, self.reactor)

    def test_tells_when_it_serves(self) -> None:
        """The log has that it has started once it serves, and no secret is in it."""
        events = Events(self)
        self.start()
        self.assertEqual([event for event in events if "version" in event], [])
        self.serving.waiting.callback(None)
        self.assertIn(storageproxy.__version__, [event.get("version") for event in events])
        for event in events:
            self.assertNotIn(MANAGER_SECRET, str(event))
            self.assertNotIn(TOKEN_SECRET, str(event))

    def test_log_observer(self) -> None:
        """The configured log becomes that of the application."""

        def observer(event: Any) -> None:
            """Drop it."""

        application = Componentized()
        application.addService = lambda child: None  # type: ignore[attr-defined]
        made = self.make(observer=observer)
        made.setServiceParent(_Application(application))
        self.assertIs(application.getComponent(ILogObserver), observer)

    def test_pid_file(self) -> None:
        """The pid file is there while the daemon runs."""
        path = self.root / "pid"
        self.daemon = self.make(**{"pid-file": str(path)})
        self.start()
        self.assertEqual(path.read_text().strip(), str(os.getpid()))
        stopping = self.daemon.stopService()
        self.assertTrue(path.exists())
        self.serving.ended.callback(None)
        self.successResultOf(stopping)
        self.assertFalse(path.exists())

    def test_pid_file_that_stays(self) -> None:
        """A pid file that root has written and the user cannot remove is no reason not to end."""
        self.daemon = self.make(**{"pid-file": str(self.root / "pid")})
        self.start()

        def refuse(path: Path, missing_ok: bool = False) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        self.patch(Path, "unlink", refuse)
        self.serving.ended.callback(None)
        self.successResultOf(self.daemon.stopService())
        self.assertFalse(self.daemon.running)

    def test_no_pid_file(self) -> None:
        """Without a pid file none is written, and /dev/null stays."""
        self.start()
        self.serving.ended.callback(None)
        self.successResultOf(self.daemon.stopService())
        self.assertTrue(os.path.exists(os.devnull))


class _Application(MultiService):
    """An application, as twistd makes it."""

    def __init__(self, components: Componentized) -> None:
        super().__init__()
        self._components = components

    def setComponent(self, interface: Any, component: Any) -> None:
        self._components.setComponent(interface, component)


class PortInUseTests(DaemonCase):
    def setUp(self) -> None:
        super().setUp()
        self.pid_file = self.root / "pid"
        self.daemon = self.make(**{"pid-file": str(self.pid_file)})
        self.taken: list[str] = []
        self.opened: list[socket.socket] = []

        def refuse(host: str, port: int) -> socket.socket:
            if len(self.opened) == self.allowed:
                raise OSError(98, "Address already in use")
            opened = open_socket(host, port)
            self.opened.append(opened)
            return opened

        self.patch(daemon, "open_socket", refuse)

    def refused(self, allowed: int) -> str:
        self.allowed = allowed
        error = self.assertRaises(SystemExit, self.start)
        self.assertEqual(self.steps, [])
        return str(error.code)

    def test_ends(self) -> None:
        """When a port is taken the daemon says which, and ends with a failure."""
        said = self.refused(0)
        self.assertIn("api.client.service-addr: 127.0.0.1:", said)
        self.assertIn("Address already in use", said)

    def test_second_port(self) -> None:
        """One port is not enough to begin with, and is given back."""
        self.assertIn("api.manager.service-addr: ", self.refused(1))
        self.assertEqual([opened.fileno() for opened in self.opened], [-1])

    def test_pid_file_of_the_other(self) -> None:
        """The pid file of the daemon that has the port is left alone."""
        self.pid_file.write_text("1\n")
        self.refused(0)
        self.assertEqual(self.pid_file.read_text(), "1\n")


class StopTests(DaemonCase):
    def test_order(self) -> None:
        """The ports are closed at once, and the daemon ends when those who serve have ended."""
        self.start()
        ports = self.ports()
        del self.steps[:]
        stopping = self.daemon.stopService()
        self.assertEqual(self.steps, ["STOPPING=1", "stop"])
        for port in ports:
            self.assertRaises(OSError, socket.create_connection, ("127.0.0.1", port))
        self.assertNoResult(stopping)
        self.serving.ended.callback(None)
        self.successResultOf(stopping)

    def test_nobody_serves(self) -> None:
        """When nobody can serve, the process ends with status 1, and says why."""
        events = Events(self)
        exits: list[Any] = []
        self.patch(atexit, "register", lambda *call: exits.append(call))
        self.start()
        # The fake stops by itself when it runs.
        self.reactor.run()
        self.reactor.hasStopped = False
        self.serving.waiting.errback(RuntimeError("They cannot."))
        self.assertTrue(self.reactor.hasStopped)
        self.assertEqual(exits, [(os._exit, 1)])
        self.assertNotIn("READY=1", self.steps)
        [said] = [event for event in events if event["log_level"] is LogLevel.critical]
        self.assertEqual(said["reason"], "They cannot.")


class NotifyTests(SynchronousTestCase):
    def test_told(self) -> None:
        """systemd gets what is meant for it, where the environment says."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listener.close)
        name = f"storage-proxy-tests-{uuid4().hex}"
        listener.bind("\0" + name)
        listener.settimeout(5)
        serving = Serving([])
        made = Daemon(
            settings_of(Path(self.mktemp()).absolute()),
            serving,
            MemoryReactorClock(),
            environ={"NOTIFY_SOCKET": "@" + name},
        )
        made.privilegedStartService()
        made.startService()
        serving.waiting.callback(None)
        self.assertEqual(listener.recv(4096).decode().splitlines(), ["READY=1", "STATUS=1 volumes"])
        serving.ended.callback(None)
        self.successResultOf(made.stopService())
        self.assertEqual(listener.recv(4096), b"STOPPING=1")


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
