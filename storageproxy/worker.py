# -*- test-case-name: tests.functional.test_workers -*-
"""
One of several processes that serve on the same ports: ``python -m storageproxy.worker``, as
:mod:`storageproxy.workers` starts it.
"""

from __future__ import annotations

import pickle
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import ILogObserver, LogEvent, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from storageproxy.listeners import Listener
from storageproxy.logs import JSONObserver, observer
from storageproxy.workers import CLIENT, MANAGER, READY, Instructions


class Lifeline(Protocol):
    """
    The pipes to the process that has started this one.

    :param end: called when that one wants this one to end, or is gone.
    """

    transport: Any

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end

    def connectionMade(self) -> None:
        """Say that requests are served."""
        self.transport.write(b"\n")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See ``end``."""
        self._end()


def serve(instructions: Instructions, reactor: Any) -> None:
    """
    Serve until the parent, or an operator by SIGTERM, wants an end.

    :param reactor: is run.
    """
    from twisted.internet.stdio import StandardIO

    from storageproxy.service import StorageProxy, favour_reactor

    proxy = StorageProxy(instructions.settings, reactor, instructions.number == 0)
    proxy.listen(
        [
            Listener(socket.socket(fileno=descriptor), certificate, shared=True)
            for descriptor, certificate in zip(
                (CLIENT, MANAGER), instructions.certificates, strict=True
            )
        ]
    )

    def end() -> None:
        try:
            reactor.stop()
        except ReactorNotRunning:
            # Asked twice: a signal to all processes comes to the parent also.
            return

    def begin() -> None:
        signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(end))
        # mypy takes it for that of Windows.
        StandardIO(Lifeline(end), 0, READY, reactor)  # type: ignore[call-arg]

    # Before the reactor runs: what is raised ends the process, and the parent hears of it.
    proxy.startService()
    reactor.callWhenRunning(begin)
    reactor.callWhenRunning(favour_reactor)
    reactor.addSystemEventTrigger("before", "shutdown", proxy.stopService)
    reactor.run()


def log(instructions: Instructions) -> None:
    """Begin to log to standard output, saying who this is."""
    stdout = JSONObserver(sys.stdout.write, sys.stdout.flush)
    tell = observer(instructions.settings.logging, instructions.debug, [stdout])

    @implementer(ILogObserver)
    def tell_who(event: LogEvent) -> None:
        tell({**event, "worker": instructions.number})

    globalLogBeginner.beginLoggingTo([tell_who])


def main() -> None:
    """Be a worker."""
    # Ctrl-C at a terminal goes to all processes; the parent passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    instructions: Instructions = pickle.load(sys.stdin.buffer)
    from twisted.internet import reactor

    log(instructions)
    serve(instructions, reactor)


if __name__ == "__main__":
    main()
