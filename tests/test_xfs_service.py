"""
The agent as a service: its socket, its privilege, its rounds.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from backends.xfs import agent as agent_module
from backends.xfs.agent import Agent, Once, make_volumes, open_socket
from backends.xfs.interfaces import IProjects, Limit, Mark, Quotas
from backends.xfs.privilege import Capability
from backends.xfs.settings import AgentSettings, to_range
from storageproxy.config import LoggingSettings, UserID
from storageproxy.errors import VolumeUnavailable
from storageproxy.schema import Duration, Text
from storageproxy.testing import SynchronousThreads
from tests.test_xfs_agent import AgentCase
from tests.xfs_fakes import Rig


class SocketTests(AgentCase):
    def test_mode(self) -> None:
        """Its permissions are those wanted, and never others."""
        with open_socket(self.socket, 0o620, -1):
            status = os.stat(self.socket)
        self.assertTrue(stat.S_ISSOCK(status.st_mode))
        self.assertEqual(status.st_mode & 0o777, 0o620)

    def test_group(self) -> None:
        """So is its group."""
        group = os.getegid()
        with open_socket(self.socket, 0o660, group):
            self.assertEqual(os.stat(self.socket).st_gid, group)

    def test_left(self) -> None:
        """What a killed agent has left is replaced."""
        open_socket(self.socket, 0o660, -1).close()
        with open_socket(self.socket, 0o660, -1), socket.socket(socket.AF_UNIX) as peer:
            peer.connect(self.socket)

    def test_taken(self) -> None:
        """An agent that runs is not."""
        with open_socket(self.socket, 0o660, -1):
            error = self.assertRaises(OSError, open_socket, self.socket, 0o660, -1)
        self.assertEqual(error.errno, errno.EADDRINUSE)

    def test_file(self) -> None:
        """Neither is a file."""
        with open(self.socket, "w"):
            pass
        self.assertRaises(OSError, open_socket, self.socket, 0o660, -1)
        self.assertTrue(os.path.isfile(self.socket))


class ServiceTests(AgentCase):
    """The service as a whole, on a kernel in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.kept: list[Any] = []
        self.patch(agent_module.privilege, "missing", lambda: [])
        self.patch(agent_module.privilege, "keep", self.kept.append)
        self.rig = Rig(self.directory, SynchronousThreads())
        self.patch(agent_module, "make_volumes", self.make_volumes)

    def make_volumes(self, *_: Any) -> dict[str, Any]:
        return {self.rig.top: self.rig.another()}

    def settings(self, **more: Any) -> AgentSettings:
        return AgentSettings(
            [Text(self.rig.top)],
            [UserID(os.geteuid())],
            socket=Text(self.socket),
            projects=Text(self.rig.places),
            projid=Text(self.rig.names),
            logging=LoggingSettings(),
            **{"reconcile_interval": Duration(0), **more},
        )

    def start(self, agent: Agent) -> None:
        agent.privilegedStartService()
        agent.startService()
        self.addCleanup(lambda: agent.running and agent.stopService())

    async def test_volumes(self) -> None:
        """The volumes share a registry, and each has threads of its own."""
        settings = self.settings()
        made = make_volumes(settings, Clock())
        self.assertEqual(list(made), [self.rig.top])
        [projects] = made.values()
        verifyObject(IProjects, projects)
        self.assertIsNot(projects.threads, projects.commits.threads)
        self.assertEqual(projects.ids, to_range(settings.ids))

    async def test_serve(self) -> None:
        """It serves until it is stopped, and leaves no socket."""
        agent = Agent(self.settings(), reactor)
        self.start(agent)
        remote = self.client(self.rig.top)
        path = self.rig.folder(1)
        descriptor = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        self.assertEqual(await remote.allocate(descriptor), 1000)
        self.assertEqual(self.rig.kernel.of(path), Mark(1000, True))
        self.assertEqual((await remote.set_limit(descriptor, Limit(1))).limit, Limit(4096))
        self.assertEqual((await remote.account(descriptor)).limit, Limit(4096))
        self.assertEqual(await remote.reconcile(), [])
        os.rmdir(path)
        self.assertTrue(await remote.release(1000))
        await agent.stopService()
        self.assertFalse(os.path.exists(self.socket))
        with self.assertRaises(VolumeUnavailable):
            await remote.release(1000)

    async def test_privilege(self) -> None:
        """It keeps two capabilities, and a third one when that is wanted."""
        needed = {Capability.CAP_SYS_ADMIN, Capability.CAP_FOWNER}
        for read_all in (False, True):
            agent = Agent(self.settings(read_all=read_all), reactor)
            self.start(agent)
            await agent.stopService()
        self.assertEqual(self.kept, [needed, needed | {Capability.CAP_DAC_READ_SEARCH}])

    def test_missing_privilege(self) -> None:
        """Without them it does not start, and says what it lacks."""
        self.patch(agent_module.privilege, "missing", lambda: ["CAP_FOWNER", "CAP_SYS_ADMIN"])
        agent = Agent(self.settings(), reactor)
        error = self.assertRaises(SystemExit, agent.privilegedStartService)
        self.assertIn("CAP_FOWNER and CAP_SYS_ADMIN", str(error))
        self.assertFalse(os.path.exists(self.socket))

    def test_socket_taken(self) -> None:
        """Where it cannot listen it does not start."""
        with open_socket(self.socket, 0o660, -1):
            agent = Agent(self.settings(), reactor)
            error = self.assertRaises(SystemExit, agent.privilegedStartService)
        self.assertIn(self.socket, str(error))

    async def test_reconcile(self) -> None:
        """It reconciles when it starts, and then again and again."""
        clock = Clock()
        clock.adoptStreamPort = reactor.adoptStreamPort  # type: ignore[attr-defined]
        agent = Agent(self.settings(reconcile_interval=Duration(3600.0)), clock)
        first = self.rig.folder(1)
        self.start(agent)
        self.assertEqual(self.rig.kernel.of(first).project, 1000)
        second = self.rig.folder(2)
        clock.advance(3600.0)
        self.assertEqual(self.rig.kernel.of(second).project, 1001)
        shutil.rmtree(self.rig.top)
        clock.advance(3600.0)
        os.mkdir(self.rig.top)
        third = self.rig.folder(3)
        clock.advance(3600.0)
        self.assertEqual(self.rig.kernel.of(third), Mark(1002, True), "one failure is not the end")

    async def test_once(self) -> None:
        """It can be told to reconcile once, and end."""
        stopped = []

        class Half(Clock):
            def callWhenRunning(self, function: Callable[[], Any]) -> None:
                function()

            def stop(self) -> None:
                stopped.append(True)

        at_exit: list[Any] = []
        self.patch(atexit, "register", lambda *call: at_exit.append(call))
        path = self.rig.folder(1)
        once = Once(self.settings(), Half())
        once.privilegedStartService()
        once.startService()
        self.assertEqual(self.rig.kernel.of(path).project, 1000)
        self.assertEqual((stopped, at_exit), ([True], []))
        self.assertFalse(os.path.exists(self.socket))
        self.assertEqual(self.kept, [{Capability.CAP_SYS_ADMIN, Capability.CAP_FOWNER}])
        # One volume that fails, before others that do not, is a failure.
        self.rig.kernel.state = Quotas.OFF
        sound = self.rig.another()
        self.patch(sound, "reconcile", lambda: succeed([]))
        volumes = {**self.make_volumes(), "/other": sound}
        self.patch(agent_module, "make_volumes", lambda *_: volumes)
        Once(self.settings(), Half()).startService()
        self.assertEqual((stopped, at_exit), ([True] * 2, [(os._exit, 1)]))

    def test_once_without_privilege(self) -> None:
        """Without what it needs it says so, and does nothing."""
        self.patch(agent_module.privilege, "missing", lambda: ["CAP_FOWNER"])
        once = Once(self.settings(), Clock())
        error = self.assertRaises(SystemExit, once.privilegedStartService)
        self.assertIn("CAP_FOWNER", str(error))


class CredentialTests(SynchronousTestCase):
    def test_layout(self) -> None:
        """What the kernel vouches for is read as unix(7) says."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        size = struct.calcsize("=iII")
        found = agent_module._UCRED.unpack(
            ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        self.assertEqual(found, (os.getpid(), os.getuid(), os.getgid()))
