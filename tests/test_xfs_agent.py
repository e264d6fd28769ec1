"""
The agent and who asks it, over real sockets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import globalLogPublisher
from twisted.protocols import amp
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from backends.xfs.agent import OPENED, AgentFactory, AgentProtocol
from backends.xfs.interfaces import Account, Drifted, IProjects, Limit, NotManaged
from backends.xfs.projects import asked_by
from backends.xfs.protocol import MAX_PENDING, Allocate, fitting
from backends.xfs.remote import RemoteProjects
from backends.xfs.shares import Shares, of_process
from storageproxy.errors import (
    BackendFailure,
    InvalidParameters,
    StorageProxyError,
    UnsupportedOperation,
    VolumeUnavailable,
)
from storageproxy.testing import GIVE_UP

# Twisted compares the path of a socket with text and bytes, and python -bb minds.
warnings.filterwarnings("ignore", category=BytesWarning, module=r".*internet[./]unix")

#: Another user than the one that runs the tests.
OTHER = 65534

VOLUME = "/vol\udcff: odd"


@implementer(IProjects)
class Scripted:
    """
    Projects that answer what a test says.

    :ivar answer: called with the name of the method and its arguments.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.answer: Callable[..., Any] = lambda *_: None

    async def _do(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, arguments))
        result = self.answer(name, *arguments)
        return await result if isinstance(result, Deferred) else result

    async def allocate(self, directory: int) -> int:
        number: int = await self._do("allocate", directory)
        return number

    async def account(self, directory: int) -> Account:
        account: Account = await self._do("account", directory)
        return account

    async def set_limit(self, directory: int, limit: Limit) -> Account:
        account: Account = await self._do("set_limit", directory, limit)
        return account

    async def release(self, project: int) -> bool:
        free: bool = await self._do("release", project)
        return free

    async def reconcile(self) -> list[str]:
        lines: list[str] = await self._do("reconcile")
        return lines


class AgentCase(TestCase):
    timeout = GIVE_UP

    def setUp(self) -> None:
        # The path of a socket has 107 bytes at most.
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.socket = os.path.join(self.directory, "agent")
        self.projects = Scripted()
        self.shares = Shares(10_000)
        volumes = {VOLUME: self.projects}
        self.factory = AgentFactory(frozenset({os.geteuid()}), volumes, self.shares)
        self.remote = self.client()
        self.top = os.open(self.directory, os.O_RDONLY)
        self.addCleanup(os.close, self.top)

    def client(self, volume: str = VOLUME, clock: Any = reactor) -> RemoteProjects:
        remote = RemoteProjects(clock, self.socket, volume)
        self.addCleanup(remote.disconnect)
        return remote

    async def listen(self) -> Any:
        port = await UNIXServerEndpoint(reactor, self.socket).listen(self.factory)
        self.addCleanup(self.stop, port)
        return port

    async def stop(self, port: Any) -> None:
        """Take the agent away."""
        if port.connected:
            await port.stopListening()
        await self.gone()

    async def gone(self) -> None:
        """End all connections, and wait until they are."""
        for connection in list(self.factory.connections):
            connection.transport.abortConnection()
        while self.factory.connections:
            await turn()

    def assertOpen(self, expected: int) -> None:
        """So many descriptors of the directory are open in this process."""
        found = 0
        for one in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                found += os.readlink(f"/proc/self/fd/{one}") == self.directory
        self.assertEqual(found, expected)


def turn() -> Deferred[None]:
    """One turn of the reactor."""
    done: Deferred[None] = Deferred()
    reactor.callLater(0, done.callback, None)  # type: ignore[attr-defined]
    return done


class RequestTests(AgentCase):
    async def test_interface(self) -> None:
        """By way of the agent they are the same projects."""
        verifyObject(IProjects, self.remote)
        verifyObject(IProjects, self.projects)

    async def test_requests(self) -> None:
        """Each request comes with its arguments, and goes back with its result."""
        await self.listen()
        account = Account(2**32 - 2, Limit(2**62, 7), 2**61, 3)
        answers = {
            "allocate": 101,
            "account": account,
            "set_limit": account,
            "release": True,
            "reconcile": ["a", "b\udcff"],
        }
        self.projects.answer = lambda name, *_: answers[name]
        self.assertEqual(await self.remote.allocate(self.top), 101)
        self.assertEqual(await self.remote.account(self.top), account)
        self.assertEqual(await self.remote.set_limit(self.top, Limit(2**62, 7)), account)
        self.assertIs(await self.remote.release(101), True)
        self.assertEqual(await self.remote.reconcile(), ["a", "b\udcff"])
        self.assertEqual([name for name, _ in self.projects.calls], list(answers))
        self.assertEqual(self.projects.calls[2][1][1], Limit(2**62, 7))
        self.assertEqual(self.projects.calls[3][1], (101,))
        self.assertEqual(len(self.factory.connections), 1)

    async def test_directory(self) -> None:
        """The directory that comes is the one that was given, also when that was closed at once."""
        await self.listen()
        self.projects.answer = lambda _, directory: os.fstat(directory).st_ino
        found = []
        for name in ("a", "b"):
            os.mkdir(os.path.join(self.directory, name))
            descriptor = os.open(os.path.join(self.directory, name), os.O_RDONLY)
            found.append(Deferred.fromCoroutine(self.remote.allocate(descriptor)))
            os.close(descriptor)
        expected = [os.stat(os.path.join(self.directory, name)).st_ino for name in ("a", "b")]
        self.assertEqual(await gatherResults(found), expected)

    async def test_not_inherited(self) -> None:
        """Commands that the agent runs do not get the directory."""
        await self.listen()
        self.projects.answer = lambda _, directory: int(os.get_inheritable(directory))
        self.assertEqual(await self.remote.allocate(self.top), 0)

    async def test_descriptors(self) -> None:
        """Nothing stays open of requests that are over, in whatever way."""
        await self.listen()
        self.projects.answer = lambda *_: 1
        await self.remote.allocate(self.top)

        def fail(*_: Any) -> None:
            raise NotManaged("no")

        for answer in (self.projects.answer, fail):
            self.projects.answer = answer
            made = [Deferred.fromCoroutine(self.remote.allocate(self.top)) for _ in range(20)]
            for one in made:
                one.addErrback(lambda failure: failure.trap(NotManaged))
            await gatherResults(made)
        await turn()
        self.assertOpen(1)

    async def test_many(self) -> None:
        """More requests than a connection takes wait for their turn."""
        await self.listen()
        waiting: list[Deferred[int]] = []

        def answer(*_: Any) -> Deferred[int]:
            waiting.append(Deferred())
            return waiting[-1]

        self.projects.answer = answer
        made = [Deferred.fromCoroutine(self.remote.allocate(self.top)) for _ in range(200)]
        done = 0
        while done < 200:
            self.assertLessEqual(len(waiting) - done, MAX_PENDING)
            if len(waiting) > done:
                waiting[done].callback(done)
                done += 1
            await turn()
        self.assertEqual(sorted(await gatherResults(made)), list(range(200)))

    async def test_who(self) -> None:
        """The log is told who has asked."""
        await self.listen()
        told = []
        self.projects.answer = lambda *_: told.append(asked_by.get()) or 1
        await self.remote.allocate(self.top)
        self.assertEqual(told, [f"uid {os.geteuid()} (process {os.getpid()})"])
        self.assertNotEqual(asked_by.get(), told[0])

    async def test_long(self) -> None:
        """Of more lines than an answer holds, the rest is counted."""
        await self.listen()
        lines = [f"{number} " + "x" * 1000 for number in range(1000)]
        self.projects.answer = lambda *_: lines
        *found, last = await self.remote.reconcile()
        self.assertGreater(len(found), 10)
        self.assertEqual(found, lines[: len(found)])
        self.assertIn(f"{1000 - len(found)} more", last)
        self.assertEqual(fitting(["x" * 100_000]), ["and 1 more, which the agent's log has"])


class ErrorTests(AgentCase):
    async def fails(self, error: Exception) -> StorageProxyError:
        def answer(*_: Any) -> None:
            raise error

        self.projects.answer = answer
        with self.assertRaises(StorageProxyError) as caught:
            await self.remote.allocate(self.top)
        return caught.exception

    async def test_known(self) -> None:
        """Errors are the same on both sides, with what they say."""
        await self.listen()
        for kind in (NotManaged, Drifted, InvalidParameters, VolumeUnavailable, BackendFailure):
            error = await self.fails(kind("what is wrong: \u2026"))
            self.assertIs(type(error), kind)
            self.assertEqual(error.message, "what is wrong: \u2026")

    async def test_other(self) -> None:
        """Those that only one side knows are failures, and say why."""
        await self.listen()
        error = await self.fails(UnsupportedOperation("cannot be"))
        self.assertIs(type(error), BackendFailure)
        self.assertEqual(error.message, "cannot be")

    async def test_system(self) -> None:
        """What the system says is told."""
        await self.listen()
        for number, kind in (
            (errno.EIO, BackendFailure),
            (errno.ESTALE, VolumeUnavailable),
            (errno.EPERM, BackendFailure),
            (errno.ENOSPC, BackendFailure),
        ):
            error = await self.fails(OSError(number, os.strerror(number)))
            self.assertIs(type(error), kind)
            self.assertIn(os.strerror(number), error.message)

    async def test_bug(self) -> None:
        """A fault of the agent is in its log, and nobody else is told what it is."""
        await self.listen()
        error = await self.fails(KeyError("secret"))
        self.assertIs(type(error), BackendFailure)
        self.assertIn("log", error.message)
        self.assertNotIn("secret", error.message)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.projects.answer = lambda *_: 7
        self.assertEqual(await self.remote.allocate(self.top), 7)

    async def test_unknown_volume(self) -> None:
        """A volume that the agent does not know is named."""
        await self.listen()
        with self.assertRaises(NotManaged) as caught:
            await self.client("/other").allocate(self.top)
        self.assertIn("/other", str(caught.exception))
        self.assertEqual(self.projects.calls, [])

    async def test_unknown_command(self) -> None:
        """An agent that does not know a command is a failure."""

        class Other(amp.AMP):
            pass

        class Factory(AgentFactory):
            def buildProtocol(self, addr: Any) -> Any:
                return Other()

        self.factory = Factory(frozenset(), {}, self.shares)
        await self.listen()
        with self.assertRaises(BackendFailure) as caught:
            await self.remote.release(1)
        self.assertIn(self.socket, str(caught.exception))
        self.assertIn("version", str(caught.exception))

    async def test_unknown_failure(self) -> None:
        """An agent that fails without saying how is unavailable, and there is what to do."""
        await self.listen()

        def fail(*_: Any) -> None:
            raise KeyError("descriptor")

        self.patch(AgentProtocol, "_answer", fail)
        with self.assertRaises(VolumeUnavailable) as caught:
            await self.remote.allocate(self.top)
        self.assertIn("its log", str(caught.exception))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    async def test_stopping(self) -> None:
        """An agent that is about to end takes no more."""
        await self.listen()
        self.factory.stopping = True
        with self.assertRaises(VolumeUnavailable):
            await self.remote.allocate(self.top)
        self.assertEqual(self.projects.calls, [])


class LostTests(AgentCase):
    async def unavailable(self, made: Any) -> str:
        with self.assertRaises(VolumeUnavailable) as caught:
            await made
        told = str(caught.exception)
        self.assertIn(self.socket, told)
        self.assertIn("storage-proxy-xfs-agent", told)
        return told

    async def test_none(self) -> None:
        """Without an agent the volume is unavailable, and it is said which socket that is."""
        self.assertIn("cannot be reached", await self.unavailable(self.remote.allocate(self.top)))

    async def test_again(self) -> None:
        """When the agent comes back, so does the volume."""
        self.projects.answer = lambda *_: 7
        port = await self.listen()
        self.assertEqual(await self.remote.allocate(self.top), 7)
        await self.stop(port)
        while not self.remote._connection.lost:  # type: ignore[union-attr]
            await turn()
        await self.unavailable(self.remote.allocate(self.top))
        await self.listen()
        self.assertEqual(await self.remote.allocate(self.top), 7)

    async def test_started_again(self) -> None:
        """An agent that was started again is asked again, whether or not its end was heard."""
        self.projects.answer = lambda *_: 7
        port = await self.listen()
        self.assertEqual(await self.remote.allocate(self.top), 7)
        await self.stop(port)
        await self.listen()
        # The end of the connection waits to be read.
        self.assertEqual(await self.remote.allocate(self.top), 7)

    async def test_under_way(self) -> None:
        """When it is lost, those who wait for it are told; what was begun comes to its end."""
        port = await self.listen()
        answer: Deferred[int] = Deferred()
        self.projects.answer = lambda *_: answer
        made = Deferred.fromCoroutine(self.remote.allocate(self.top))
        while not self.projects.calls:
            await turn()
        await self.stop(port)
        self.assertIn("closed the connection", await self.unavailable(made))
        ended = Deferred.fromCoroutine(self.factory.background.wait())
        self.assertFalse(ended.called)
        answer.callback(7)
        await ended

    async def test_deadline(self) -> None:
        """An agent that does not answer makes the volume unavailable, in time."""
        await self.listen()

        class Half(Clock):
            connectUNIX = staticmethod(reactor.connectUNIX)  # type: ignore[attr-defined]

        clock = Half()
        remote = self.client(clock=clock)
        answer: Deferred[int] = Deferred()
        self.projects.answer = lambda *_: answer
        made = Deferred.fromCoroutine(remote.allocate(self.top))
        while not self.projects.calls:
            await turn()
        clock.advance(29.9)
        self.assertFalse(made.called)
        clock.advance(0.2)
        self.assertIn("30 seconds", await self.unavailable(made))
        answer.callback(7)
        self.projects.answer = lambda *_: 8
        self.assertEqual(await remote.allocate(self.top), 8)

    async def test_cancel(self) -> None:
        """Who does not wait any more is not told, and the next one is."""
        await self.listen()
        answer: Deferred[int] = Deferred()
        self.projects.answer = lambda *_: answer
        made = Deferred.fromCoroutine(self.remote.allocate(self.top))
        made.addErrback(lambda _: None)
        while not self.projects.calls:
            await turn()
        made.cancel()
        answer.callback(7)
        self.projects.answer = lambda *_: 8
        self.assertEqual(await self.remote.allocate(self.top), 8)


class PeerTests(AgentCase):
    async def test_stranger(self) -> None:
        """Who is not named in the configuration gets nothing, and is in the log."""
        events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.factory.users = frozenset({os.geteuid() + 1})
        await self.listen()
        with self.assertRaises(VolumeUnavailable) as caught:
            await self.remote.allocate(self.top)
        self.assertIn(f"uid {os.geteuid()}", str(caught.exception))
        self.assertEqual(self.projects.calls, [])
        self.assertEqual(self.factory.connections, set())
        told = [event for event in events if "is not served" in event.get("why", "")]
        self.assertEqual(len(told), 1)

    async def test_stranger_talks_at_once(self) -> None:
        """Also when it sends its request before it is looked at."""
        self.factory.users = frozenset()
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as peer:
            listening.bind(self.socket)
            listening.listen()
            listening.setblocking(False)
            peer.connect(self.socket)
            box = amp.AmpBox(_command=b"Release", _ask=b"1", volume=b"/vol", project=b"1")
            peer.sendall(box.serialize())
            port = reactor.adoptStreamPort(  # type: ignore[attr-defined]
                listening.fileno(), socket.AF_UNIX, self.factory
            )
            self.addCleanup(self.stop, port)
            peer.setblocking(False)
            while True:
                try:
                    self.assertEqual(peer.recv(100), b"")
                    break
                except ConnectionResetError:
                    break
                except BlockingIOError:
                    await turn()
        self.assertEqual(self.projects.calls, [])

    async def test_flood(self) -> None:
        """Descriptors that no request is about are not collected."""
        await self.listen()
        lost: Deferred[None] = Deferred()

        class Flood(Protocol):
            transport: Any

            def connectionMade(self) -> None:
                for _ in range(MAX_PENDING + 9):
                    self.transport.sendFileDescriptor(top)
                # Parts of a request, as many as there are descriptors.
                self.transport.write(b"\0\1x\1\0" + b"x" * MAX_PENDING)

            def connectionLost(self, reason: Any = None) -> None:
                lost.callback(None)

        top = self.top
        await connectProtocol(UNIXClientEndpoint(reactor, self.socket), Flood())
        await lost
        await self.gone()
        self.flushLoggedErrors(amp.NoEmptyBoxes)
        self.assertOpen(1)

    async def test_nonsense(self) -> None:
        """What is no request ends a connection, and lets go of what came with it."""
        await self.listen()
        connection = await connectProtocol(UNIXClientEndpoint(reactor, self.socket), amp.AMP())
        connection.transport.sendFileDescriptor(self.top)
        box = amp.AmpBox(_command=Allocate.commandName, _ask=b"1", volume=b"/", directory=b"9")
        connection.sendBox(box)
        await turn()
        connection.transport.abortConnection()
        while self.factory.connections:
            await turn()
        await turn()
        self.assertOpen(1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(self.projects.calls, [])

    async def test_too_many(self) -> None:
        """A peer that asks for too much at once is refused what is too much."""
        await self.listen()
        waiting: list[Deferred[bool]] = []

        def wait(*_: Any) -> Deferred[bool]:
            waiting.append(Deferred())
            return waiting[-1]

        self.projects.answer = wait
        self.remote._turns.limit = self.remote._turns.tokens = 10 * MAX_PENDING
        made = [Deferred.fromCoroutine(self.remote.release(1)) for _ in range(MAX_PENDING + 1)]
        with self.assertRaises(VolumeUnavailable) as caught:
            await made.pop()
        self.assertIn("too many", str(caught.exception))
        for one in waiting:
            one.callback(True)
        self.assertEqual(await gatherResults(made), [True] * MAX_PENDING)


class ShareTests(AgentCase):
    """What users can take from each other."""

    def setUp(self) -> None:
        super().setUp()
        os.chmod(self.directory, 0o755)
        self.shares.size = 20
        self.factory.users = frozenset({os.geteuid(), OTHER})
        self.projects.answer = lambda *_: 7

    def visit(self, user: int) -> socket.socket:
        """A connection of some user's, which says nothing."""
        visitor = socket.socket(socket.AF_UNIX)
        self.addCleanup(visitor.close)
        # The kernel vouches for who it was that connected.
        os.seteuid(user)
        try:
            visitor.connect(self.socket)
        finally:
            os.seteuid(0)
        visitor.setblocking(False)
        return visitor

    async def served(self, visitors: list[socket.socket]) -> int:
        """Of so many connections, those that the agent keeps."""
        for _ in range(10):
            await turn()
        kept = 0
        for visitor in visitors:
            try:
                visitor.recv(1)
            except BlockingIOError:
                kept += 1
            except ConnectionResetError:
                pass
        return kept

    async def open_socket(self) -> None:
        """Listen, for everybody."""
        await self.listen()
        os.chmod(self.socket, 0o666)

    async def test_connections(self) -> None:
        """One who has too many connections gets no more; the others get theirs."""
        await self.open_socket()
        visitors = [self.visit(OTHER) for _ in range(50)]
        self.assertEqual(await self.served(visitors), 20)
        self.assertEqual(await self.remote.allocate(self.top), 7)
        for visitor in visitors:
            visitor.close()
        self.assertEqual(await self.served([self.visit(OTHER)]), 1)

    async def test_descriptors(self) -> None:
        """So it is with directories that no request is about, on many connections."""
        await self.open_socket()
        visitors = [self.visit(OTHER) for _ in range(10)]
        for visitor in visitors:
            with contextlib.suppress(OSError):
                socket.send_fds(visitor, [b"\0"], [self.top] * 253)
        kept = await self.served(visitors)
        self.assertLess(kept, 10)
        self.assertOpen(1)
        self.assertEqual(await self.remote.allocate(self.top), 7)
        self.assertEqual(self.shares._held[OTHER], kept)

    async def test_requests(self) -> None:
        """And with requests: what is too much is refused, and can be asked again."""
        await self.open_socket()
        self.shares.size = 1 + 6 * OPENED
        waiting: list[Deferred[bool]] = []

        def wait(*_: Any) -> Deferred[bool]:
            waiting.append(Deferred())
            return waiting[-1]

        self.projects.answer = wait
        made = [Deferred.fromCoroutine(self.remote.release(1)) for _ in range(7)]
        with self.assertRaises(VolumeUnavailable) as caught:
            await made.pop()
        self.assertIn("too many", str(caught.exception))
        for one in waiting:
            one.callback(True)
        self.assertEqual(await gatherResults(made), [True] * 6)
        self.assertEqual(self.shares._held[os.geteuid()], 1)

    async def test_answers(self) -> None:
        """Who asks and asks and does not listen is not listened to any more, until he does."""
        await self.open_socket()
        lines = ["x" * 1000] * 50
        self.projects.answer = lambda *_: lines
        visitor = self.visit(OTHER)
        asked = 100
        for number in range(asked):
            box = amp.AmpBox(_command=b"Reconcile", _ask=b"%d" % number, volume=os.fsencode(VOLUME))
            visitor.sendall(box.serialize())
            await turn()
        for _ in range(10):
            await turn()
        self.assertLess(len(self.projects.calls), asked)
        while len(self.projects.calls) < asked:
            with contextlib.suppress(BlockingIOError):
                visitor.recv(1 << 16)
            await turn()

    async def test_given_back(self) -> None:
        """Nothing counts any more when it is over."""
        await self.open_socket()
        for _ in range(30):
            await self.remote.allocate(self.top)
        await self.remote.disconnect()
        await self.served([])
        self.assertEqual(+self.shares._held, {})

    def test_of_process(self) -> None:
        """All shares together are less than what the process may open, however little that is."""
        asked: list[tuple[int, int]] = []
        self.patch(resource, "setrlimit", lambda _, limits: asked.append(limits))
        for soft, hard, users, expected in (
            (1024, 524_288, 2, (65_536 - 512) // 2),
            (1024, resource.RLIM_INFINITY, 1, 65_536 - 512),
            (100_000, 100_000, 10, (100_000 - 512) // 10),
            (1024, 4096, 1, 4096 - 512),
            (256, 256, 1, 128),
        ):
            self.patch(resource, "getrlimit", lambda _, found=(soft, hard): found)
            self.assertEqual(of_process(users).size, expected)
        self.assertEqual(asked[0], (65_536, 524_288))
