# -*- test-case-name: tests.test_workers -*-
"""
Several processes that serve on the same ports: how they are started, watched and ended.

Each worker is a :mod:`storageproxy.worker` with its own reactor. They share the listening sockets,
and nothing else but the disk. A pipe to each one's standard input brings it what it has to know,
and stays open: its end asks the worker to end, also when this process has been killed. Standard
output brings the lines of its log.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from attrs import define, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessProtocol
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from storageproxy.config import Configuration
from storageproxy.daemon import IServing
from storageproxy.listeners import Certificate, Listener

#: The descriptor on which a worker says that it serves, and those of its sockets.
READY, CLIENT, MANAGER = 3, 4, 5

#: Seconds before a worker that has failed is replaced; doubled each time that it fails when young.
FIRST_DELAY, LAST_DELAY = 1.0, 30.0
#: Seconds for which a worker is young.
YOUNG = 10.0
#: Seconds that workers get to end: more than :mod:`storageproxy.service` needs for it.
PATIENCE = 25.0
#: Seconds after which one that cannot even be killed is left behind.
LAST_PATIENCE = 5.0

#: Bytes that Twisted reads of a pipe at a time, and seconds for which lines may gather there after
#: it was less: to be woken costs as much as dozens of lines.
MOST, GATHER = 8192, 0.02


class WorkersFailed(Exception):
    """No worker has ever begun to serve."""


@frozen
class Instructions:
    """
    What a worker has to know. It may not read the files again: they may have changed, or be there
    for root alone.

    :param number: 0 is the one that takes away what is left over.
    :param settings: the checked configuration.
    :param certificates: of the clients' port, and of the managers'.
    :param debug: whether it logs everything.
    """

    number: int
    settings: Configuration
    certificates: tuple[Certificate | None, ...]
    debug: bool


@implementer(IServing)
@define(eq=False)
class Workers(Service):
    """
    Keeps ``num-proc`` workers running.

    :param settings: the checked configuration.
    :param reactor: for the processes.
    :param take_lines: gets whole lines of the workers' log.
    :param debug: whether workers log everything.
    :param environ: the environment of the workers.
    """

    _settings: Configuration
    _reactor: Any
    _take_lines: Callable[[str], object]
    _debug: bool = False
    _environ: Mapping[str, str] = field(factory=lambda: _environment(os.environ, sys.path))
    _listeners: list[Listener] = field(factory=list)
    _running: dict[int, WorkerProcess] = field(factory=dict)
    _waiting: dict[int, Any] = field(factory=dict)
    _delays: dict[int, float] = field(factory=dict)
    # Those that have ended before any has served; None when one has.
    _stillborn: set[int] | None = field(factory=set)
    _ready: Deferred[None] = field(factory=Deferred)
    _ended: Deferred[None] | None = None
    _log: Logger = field(factory=lambda: Logger("storageproxy.workers"))

    def listen(self, listeners: list[Listener]) -> None:
        """See :meth:`storageproxy.daemon.IServing.listen`."""
        self._listeners = listeners

    def ready(self) -> Deferred[None]:
        """See :meth:`storageproxy.daemon.IServing.ready`."""
        return self._ready

    def startService(self) -> None:
        """Start all workers."""
        super().startService()
        for number in range(self._settings.storage_proxy.num_proc):
            self._start(number)

    def stopService(self) -> Deferred[None]:
        """Ask all workers to end, and wait until they have; kill those that do not."""
        super().stopService()
        for call in self._waiting.values():
            call.cancel()
        self._waiting.clear()
        for worker in self._running.values():
            worker.end()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._all_ended(PATIENCE)
        for worker in self._running.values():
            self._log.warn("{who} does not end, and is killed.", **worker.named)
            worker.kill()
        await self._all_ended(LAST_PATIENCE)

    async def _all_ended(self, seconds: float) -> None:
        if self._running:
            self._ended = Deferred()
            await self._ended.addTimeout(seconds, self._reactor, lambda *_: None)

    def _start(self, number: int) -> None:
        self._waiting.pop(number, None)
        instructions = Instructions(
            number,
            self._settings,
            tuple(listener.certificate for listener in self._listeners),
            self._debug,
        )
        worker = WorkerProcess(self, number, self._reactor, pickle.dumps(instructions))
        self._running[number] = worker
        client, manager = (listener.socket.fileno() for listener in self._listeners)
        try:
            self._reactor.spawnProcess(
                worker,
                sys.executable,
                # Without -P the working directory would be searched for modules.
                [sys.executable, "-P", "-m", "storageproxy.worker"],
                self._environ,
                childFDs={0: "w", 1: "r", 2: "r", READY: "r", CLIENT: client, MANAGER: manager},
            )
        except OSError as error:
            self.ended(
                worker,
                f"cannot be started: {error.strerror}. The daemon's user has to be able to run"
                f" {sys.executable}, and to read the program.",
            )

    def serves(self, worker: WorkerProcess) -> None:
        """A worker has begun to serve."""
        self._log.info("{who} serves.", **worker.named)
        self._stillborn = None
        if not self._ready.called and all(
            number in self._running and self._running[number].serving
            for number in range(self._settings.storage_proxy.num_proc)
        ):
            self._ready.callback(None)

    def told(self, lines: str) -> None:
        """A worker has written to its log."""
        try:
            self._take_lines(lines)
        except Exception as error:
            # Out of here it would close the pipe, and the worker would never log again.
            self._log.error("Lines of the log are lost: {error}.", error=error)

    def ended(self, worker: WorkerProcess, why: str) -> None:
        """
        A worker is gone: have another in its place.

        :param why: ends a sentence about it; "" when it was asked to.
        """
        number = worker.number
        del self._running[number]
        if not self.running:
            if self._ended is not None and not self._running:
                self._ended.callback(None)
            return
        if self._stillborn is not None:
            self._stillborn.add(number)
            if len(self._stillborn) == self._settings.storage_proxy.num_proc:
                self._give_up(why)
                return
        if not why:
            self._delays.pop(number, None)
            self._log.info("{who} was asked to end; another takes its place.", **worker.named)
            self._start(number)
            return
        delay = FIRST_DELAY
        if self._reactor.seconds() - worker.began < YOUNG:
            delay = min(self._delays.get(number, FIRST_DELAY / 2) * 2, LAST_DELAY)
        self._delays[number] = delay
        self._log.error(
            "{who} {why} Another takes its place in {delay:.0f} s.",
            why=why,
            delay=delay,
            **worker.named,
        )
        self._waiting[number] = self._reactor.callLater(delay, self._start, number)

    def _give_up(self, why: str) -> None:
        for call in self._waiting.values():
            call.cancel()
        self._waiting.clear()
        if self._ready.called:
            return
        self._ready.errback(WorkersFailed(f"No worker could begin to serve. The last one {why}"))


@implementer(IProcessProtocol)
class WorkerProcess(ProcessProtocol):
    """
    A worker, as this process sees it.

    :param workers: hears of it.
    :param number: its place, which its successor inherits.
    :param reactor: has started it now.
    :param instructions: for its standard input.
    :ivar began: when it was started, as the reactor counts.
    :ivar serving: whether it has begun to.
    """

    transport: Any
    _log = Logger("storageproxy.workers")

    def __init__(self, workers: Workers, number: int, reactor: Any, instructions: bytes) -> None:
        self.number = number
        self.began: float = reactor.seconds()
        self._reactor = reactor
        self.serving = False
        self._workers = workers
        self._instructions = instructions
        self._pid: int | None = None
        self._rest = b""

    @property
    def named(self) -> dict[str, object]:
        """Who it is, for the log."""
        return {"worker": self.number, "who": f"Worker {self.number} (process {self._pid})"}

    def connectionMade(self) -> None:
        """It is started: tell it what it has to do."""
        self._pid = self.transport.pid
        self.transport.writeToChild(0, self._instructions)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It has written something."""
        if childFD == READY:
            self.serving = True
            self._workers.serves(self)
        elif childFD == 1:
            lines, newline, self._rest = (self._rest + data).rpartition(b"\n")
            if len(data) < MOST:
                self.transport.pauseProducing()
                self._reactor.callLater(GATHER, self.transport.resumeProducing)
            if newline:
                self._workers.told((lines + newline).decode("utf-8", "replace"))
        else:
            # What Python says of its end, for instance.
            text = data.decode("utf-8", "replace").rstrip()
            self._log.warn("{who} says: {text}", text=text, **self.named)

    def processEnded(self, reason: Failure) -> None:
        """It is gone, and all that it has written was read."""
        number = getattr(reason.value, "signal", None)
        status = getattr(reason.value, "exitCode", None)
        if number == signal.SIGKILL:
            why = "was killed. The kernel does so when memory is short: see dmesg."
        elif number is not None and number != signal.SIGTERM:
            why = f"has crashed by {signal.Signals(number).name}. What it said is in this log."
        elif status:
            why = f"has failed with status {status}. What it said is in this log."
        else:
            why = ""
        self._workers.ended(self, why)

    def end(self) -> None:
        """Ask it to end, once it has done what it is at."""
        self.transport.closeStdin()

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")


def _environment(environ: Mapping[str, str], path: Sequence[str]) -> dict[str, str]:
    # Modules are found where this process has found them, also in another working directory.
    return {**environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, path))}
