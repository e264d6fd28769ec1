"""
Tests for :mod:`storageproxy.workers`.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IProcessProtocol, IProcessTransport
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from storageproxy import service, worker
from storageproxy.daemon import IServing
from storageproxy.listeners import Certificate, Listener, open_socket
from storageproxy.service import StorageProxy
from storageproxy.workers import (
    CLIENT,
    FIRST_DELAY,
    GATHER,
    LAST_DELAY,
    LAST_PATIENCE,
    MANAGER,
    MOST,
    PATIENCE,
    READY,
    YOUNG,
    Instructions,
    Workers,
    WorkersFailed,
)
from tests.harness import Events, settings_of

CERTIFICATE = Certificate(b"the chain", b"the key")


@implementer(IProcessTransport)
@define(eq=False)
class Process:
    """A process that does nothing, and ends when it is told to."""

    protocol: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    pid: int
    said: bytes = b""
    signals: list[str] = field(factory=list)
    asked: bool = False
    gone: bool = False
    paused: bool = False

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def writeToChild(self, childFD: int, data: bytes) -> None:
        assert childFD == 0
        self.said += data

    def closeStdin(self) -> None:
        self.asked = True

    def signalProcess(self, signalID: str | int) -> None:
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(str(signalID))

    def instructions(self) -> Instructions:
        instructions: Instructions = pickle.loads(self.said)
        return instructions

    def serve(self) -> None:
        """Say that requests are served."""
        self.protocol.childDataReceived(READY, b"\n")

    def end(self, status: int = 0, number: int | None = None) -> None:
        """Be gone."""
        if status or number:
            reason: Any = ProcessTerminated(status or None, number)
        else:
            reason = ProcessDone(0)
        self.gone = True
        self.protocol.processExited(Failure(reason))
        self.protocol.processEnded(Failure(reason))

    def closeChildFD(self, descriptor: int) -> None: ...

    def closeStdout(self) -> None: ...

    def closeStderr(self) -> None: ...

    def loseConnection(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    def writeSequence(self, data: Any) -> None: ...

    def getPeer(self) -> Any: ...

    def getHost(self) -> Any: ...


class ProcessReactor(MemoryReactorClock):
    """Starts processes that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.broken = False

    def spawnProcess(self, protocol: Any, *arguments: Any, **options: Any) -> Process:
        if self.broken:
            raise OSError(11, "Resource temporarily unavailable")
        process = Process(protocol, arguments, options, 1000 + len(self.processes))
        self.processes.append(process)
        protocol.makeConnection(process)
        return process


class WorkersCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = ProcessReactor()
        self.lines: list[str] = []
        self.settings = settings_of(Path(self.mktemp()).absolute(), **{"num-proc": 2})
        self.workers = Workers(self.settings, self.reactor, self.lines.append)
        self.sockets = [open_socket("127.0.0.1", 0) for _ in range(2)]
        for opened in self.sockets:
            self.addCleanup(opened.close)
        self.workers.listen(
            [Listener(self.sockets[0], CERTIFICATE), Listener(self.sockets[1], None)]
        )
        self.events = Events(self)

    def start(self) -> list[Process]:
        """Have them serve."""
        self.workers.startService()
        for process in self.processes:
            process.serve()
        return self.processes

    @property
    def processes(self) -> list[Process]:
        return self.reactor.processes

    def told(self) -> list[str]:
        """What the log says."""
        return [formatEvent(event) for event in self.events]


class StartTests(WorkersCase):
    def test_interfaces(self) -> None:
        """They serve, and what watches them is what Twisted wants; so is the fake."""
        verifyObject(IServing, self.workers)
        [first, _] = self.start()
        verifyObject(IProcessProtocol, first.protocol)
        verifyObject(IProcessTransport, first)

    def test_none_before_the_start(self) -> None:
        """Processes are started when rights are dropped, and not before."""
        self.workers.privilegedStartService()
        self.assertEqual(self.processes, [])

    def test_program(self) -> None:
        """Each is the same Python, which does not look for modules where it happens to be."""
        for process in self.start():
            executable, arguments, _ = process.arguments
            self.assertEqual(executable, sys.executable)
            self.assertEqual(arguments, [sys.executable, "-P", "-m", "storageproxy.worker"])

    def test_modules(self) -> None:
        """Modules are found from any working directory."""
        self.patch(sys, "path", ["", "relative", "/absolute"])
        self.patch(os, "environ", {"PATH": "/bin", "PYTHONPATH": "old"})
        self.workers = Workers(self.settings, self.reactor, self.lines.append)
        self.workers.listen([Listener(opened) for opened in self.sockets])
        self.workers.startService()
        here = os.getcwd()
        self.assertEqual(
            self.processes[0].arguments[2],
            {"PATH": "/bin", "PYTHONPATH": f"{here}:{here}/relative:/absolute"},
        )

    def test_descriptors(self) -> None:
        """Each gets the sockets, and pipes for the rest."""
        client, manager = (opened.fileno() for opened in self.sockets)
        for process in self.start():
            self.assertEqual(
                process.options["childFDs"],
                {0: "w", 1: "r", 2: "r", READY: "r", CLIENT: client, MANAGER: manager},
            )

    def test_instructions(self) -> None:
        """Each gets what it must know, as it was checked, and a number."""
        for number, process in enumerate(self.start()):
            self.assertEqual(
                process.instructions(),
                Instructions(number, self.settings, (CERTIFICATE, None), False),
            )
            self.assertFalse(process.asked)

    def test_ready(self) -> None:
        """They are ready when all of them serve."""
        self.workers.startService()
        ready = self.workers.ready()
        self.processes[1].serve()
        self.assertNoResult(ready)
        self.processes[0].serve()
        self.successResultOf(ready)

    def test_ready_at_the_second_attempt(self) -> None:
        """One that fails at first, as memory was short for instance, is waited for."""
        self.workers.startService()
        ready = self.workers.ready()
        self.processes[0].serve()
        self.processes[1].end(1)
        self.reactor.advance(FIRST_DELAY)
        self.assertNoResult(ready)
        self.processes[2].serve()
        self.successResultOf(ready)


class FirstStartTests(WorkersCase):
    def setUp(self) -> None:
        super().setUp()
        self.workers.startService()
        self.failed = self.workers.ready()

    def test_all_fail(self) -> None:
        """When none can ever serve, the daemon is told why instead of trying for ever."""
        self.processes[0].protocol.childDataReceived(2, b"No module named klein\n")
        self.processes[0].end(1)
        self.assertNoResult(self.failed)
        self.processes[1].end(3)
        error = self.failureResultOf(self.failed, WorkersFailed)
        self.assertIn("status 3", error.getErrorMessage())
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertIn("Worker 0 (process 1000) says: No module named klein", self.told())

    def test_one_after_the_other(self) -> None:
        """Also when the first is already tried again."""
        self.processes[0].end(1)
        self.reactor.advance(FIRST_DELAY)
        self.assertNoResult(self.failed)
        self.processes[1].end(1)
        self.failureResultOf(self.failed, WorkersFailed)
        # The daemon stops then.
        stopping = self.workers.stopService()
        self.assertTrue(self.processes[2].asked)
        self.processes[2].end()
        self.successResultOf(stopping)

    def test_one_serves(self) -> None:
        """One that has served is enough to go on."""
        self.processes[0].serve()
        self.processes[0].end(1)
        self.processes[1].end(1)
        self.assertNoResult(self.failed)
        self.reactor.advance(FIRST_DELAY)
        self.assertEqual(len(self.processes), 4)


class CannotStartTests(WorkersCase):
    def test_at_first(self) -> None:
        """When no process can be started, the daemon is told."""
        self.reactor.broken = True
        self.workers.startService()
        error = self.failureResultOf(self.workers.ready(), WorkersFailed)
        self.assertIn("temporarily unavailable", error.getErrorMessage())
        self.successResultOf(self.workers.stopService())

    def test_later(self) -> None:
        """Later on it is tried again."""
        first, _ = self.start()
        first.end(1)
        self.reactor.broken = True
        self.reactor.advance(FIRST_DELAY)
        self.reactor.broken = False
        self.assertEqual(len(self.processes), 2)
        self.reactor.advance(2 * FIRST_DELAY)
        self.assertEqual(len(self.processes), 3)


class RestartTests(WorkersCase):
    def test_replaced(self) -> None:
        """A worker that dies is replaced after a moment, by one with its number."""
        first, second = self.start()
        self.reactor.advance(YOUNG)
        second.end(number=signal.SIGKILL)
        self.reactor.advance(FIRST_DELAY / 2)
        self.assertEqual(len(self.processes), 2)
        self.reactor.advance(FIRST_DELAY / 2)
        self.assertEqual(self.processes[2].instructions().number, 1)
        self.assertFalse(first.asked)

    def test_backs_off(self) -> None:
        """One that dies young again and again has to wait longer each time, within bounds."""
        _, dying = self.start()
        waited = []
        for _ in range(8):
            dying.end(1)
            [call] = self.reactor.getDelayedCalls()
            waited.append(call.getTime() - self.reactor.seconds())
            self.reactor.advance(waited[-1])
            dying = self.processes[-1]
        self.assertEqual(waited, [1, 2, 4, 8, 16, 30, 30, 30])
        self.assertEqual((FIRST_DELAY, LAST_DELAY), (1, 30))

    def test_each_for_itself(self) -> None:
        """One that dies often does not make the other wait."""
        healthy, dying = self.start()
        for delay in (1, 2, 4):
            dying.end(1)
            self.reactor.advance(delay)
            dying = self.processes[-1]
        healthy.end(1)
        self.reactor.advance(1)
        self.assertEqual(self.processes[-1].instructions().number, 0)

    def test_grows_old(self) -> None:
        """One that has lived for a while begins anew."""
        _, dying = self.start()
        for delay in (1, 2, 4):
            dying.end(1)
            self.reactor.advance(delay)
            dying = self.processes[-1]
        self.reactor.advance(YOUNG)
        dying.end(1)
        self.reactor.advance(1)
        self.assertEqual(len(self.processes), 6)

    def test_asked_to_end(self) -> None:
        """One that an operator has asked to end is replaced at once."""
        first, second = self.start()
        first.end()
        self.assertEqual(self.processes[2].instructions().number, 0)
        second.end(number=signal.SIGTERM)
        self.assertEqual(self.processes[3].instructions().number, 1)
        self.assertEqual([event for event in self.events if event["log_level"] > LogLevel.info], [])

    def test_told(self) -> None:
        """Each end is told: who it was, how it ended, what there is to do, and what comes next."""
        first, second = self.start()
        first.end(number=signal.SIGKILL)
        second.end(number=signal.SIGSEGV)
        self.reactor.advance(FIRST_DELAY)
        self.processes[2].end(3)
        killed, crashed, failed = [
            event for event in self.events if event["log_level"] is LogLevel.error
        ]
        self.assertEqual(
            formatEvent(killed),
            "Worker 0 (process 1000) was killed. The kernel does so when memory is short: see"
            " dmesg. Another takes its place in 1 s.",
        )
        self.assertIn("Worker 1 (process 1001) has crashed by SIGSEGV", formatEvent(crashed))
        self.assertIn("Worker 0 (process 1002) has failed with status 3", formatEvent(failed))
        self.assertIn("in 2 s", formatEvent(failed))
        self.assertEqual([killed["worker"], crashed["worker"], failed["worker"]], [0, 1, 0])


class StopTests(WorkersCase):
    def test_drains(self) -> None:
        """All are asked to end, and it is over when the last has."""
        first, second = self.start()
        stopping = self.workers.stopService()
        self.assertTrue(first.asked and second.asked)
        self.assertEqual(first.signals + second.signals, [])
        first.end()
        self.assertNoResult(stopping)
        second.end()
        self.successResultOf(stopping)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(len(self.processes), 2)

    def test_killed(self) -> None:
        """One that does not end is killed, after it had its time."""
        first, second = self.start()
        stopping = self.workers.stopService()
        second.end()
        self.reactor.advance(PATIENCE - 1)
        self.assertEqual(first.signals, [])
        self.reactor.advance(1)
        self.assertEqual(first.signals, ["KILL"])
        self.assertNoResult(stopping)
        first.end(number=signal.SIGKILL)
        self.successResultOf(stopping)
        self.assertIn("Worker 0 (process 1000) does not end, and is killed.", self.told())

    def test_not_even_killed(self) -> None:
        """One that the kernel keeps, as its disk hangs, does not keep the daemon."""
        self.start()
        stopping = self.workers.stopService()
        self.reactor.advance(PATIENCE)
        self.reactor.advance(LAST_PATIENCE)
        self.successResultOf(stopping)
        for process in self.processes:
            process.end(number=signal.SIGKILL)

    def test_gone_in_the_same_moment(self) -> None:
        """One that ends as it is to be killed is no error."""
        first, second = self.start()
        stopping = self.workers.stopService()
        first.gone = second.gone = True
        self.reactor.advance(PATIENCE)
        first.end()
        second.end()
        self.successResultOf(stopping)

    def test_patience(self) -> None:
        """They have more time than a worker takes by itself."""
        self.assertGreater(PATIENCE, service.GRACE + service.SETTLE)

    def test_none_left(self) -> None:
        """When all have just died there is nothing to wait for, and none is started again."""
        for process in self.start():
            process.end(1)
        self.successResultOf(self.workers.stopService())
        self.reactor.advance(LAST_DELAY)
        self.assertEqual(len(self.processes), 2)

    def test_before_they_serve(self) -> None:
        """A daemon that is stopped while it starts stops."""
        self.workers.startService()
        stopping: Deferred[None] = self.workers.stopService()
        for process in self.processes:
            process.end()
        self.successResultOf(stopping)
        self.assertNoResult(self.workers.ready())


class WorkerTests(WorkersCase):
    def test_cannot_start(self) -> None:
        """A worker that cannot begin to serve ends, so that its parent hears of it."""

        def fail(_: object) -> None:
            raise OSError(24, "Too many open files")

        self.patch(StorageProxy, "startService", fail)
        self.patch(socket, "socket", lambda fileno: None)
        instructions = Instructions(0, self.settings, (None, None), False)
        self.assertRaises(OSError, worker.serve, instructions, self.reactor)
        self.assertFalse(self.reactor.hasRun)


class LogTests(WorkersCase):
    def test_whole_lines(self) -> None:
        """Lines are passed on whole, however they come, and those of two are not mixed."""
        first, second = (process.protocol for process in self.start())
        first.childDataReceived(1, b'{"a"')
        second.childDataReceived(1, b'{"b": 1}\n{"c"')
        self.assertEqual(self.lines, ['{"b": 1}\n'])
        first.childDataReceived(1, b": 2}\n{}\n")
        second.childDataReceived(1, b": 3}\n")
        self.assertEqual(self.lines[1:], ['{"a": 2}\n{}\n', '{"c": 3}\n'])

    def test_gathered(self) -> None:
        """While little is said, it is read now and then; when much is said, all of it at once."""
        first, second = self.start()
        first.protocol.childDataReceived(1, b"{}\n")
        second.protocol.childDataReceived(1, b"{}\n" * (MOST // 3) + b"{}")
        self.assertEqual((first.paused, second.paused), (True, False))
        self.reactor.advance(GATHER)
        self.assertFalse(first.paused)

    def test_rest(self) -> None:
        """What a worker was about to say when it was killed is no line."""
        first, second = self.start()
        first.protocol.childDataReceived(1, b'{"a"')
        first.end(number=signal.SIGKILL)
        second.protocol.childDataReceived(1, b"{}\n")
        self.assertEqual(self.lines, ["{}\n"])

    def test_lost(self) -> None:
        """A log that cannot be written costs the lines that come then, and none after them."""

        def full(_: str) -> None:
            raise OSError(28, "No space left on device")

        self.workers._take_lines = full
        first, _ = self.start()
        first.protocol.childDataReceived(1, b'{"lost": 1}\n')
        self.assertIn("Lines of the log are lost: [Errno 28] No space left on device.", self.told())
        self.workers._take_lines = self.lines.append
        first.protocol.childDataReceived(1, b"{}\n")
        self.assertEqual(self.lines, ["{}\n"])

    def test_other_words(self) -> None:
        """What is not of its log is told with who said it."""
        first, _ = self.start()
        first.protocol.childDataReceived(2, b"Fatal Python error: \xff {broken}\nin thread\n")
        [event] = [event for event in self.events if event["log_level"] is LogLevel.warn]
        self.assertEqual(
            formatEvent(event),
            "Worker 0 (process 1000) says: Fatal Python error: \ufffd {broken}\nin thread",
        )
