# -*- test-case-name: tests.test_process -*-
"""
Commands: an argument vector that is run with a deadline, never a shell.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

#: Seconds that a command which was asked to end gets before it is killed.
GRACE = 2.0

#: Bytes at most of what a command says, on each of its two outputs.
MAX_OUTPUT = 1024 * 1024


class CommandFailed(Exception):
    """A command could not be run to its end."""


class CommandTimedOut(CommandFailed):
    """A command took too long."""


@frozen
class Outcome:
    """
    How a command has ended.

    :param status: its exit status, or the number of the signal that ended it, negative.
    :param output: what it has written to standard output.
    :param errors: what it has written to standard error.
    """

    status: int
    output: bytes
    errors: bytes


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """
    The small environment that commands get: a path to find them on, that of the daemon with the
    places of the system's own tools behind, and messages in English.
    """
    path = environ.get("PATH") or os.defpath
    return {"PATH": f"{path}:/usr/sbin:/sbin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


def run(
    reactor: Any,
    argv: Sequence[str | bytes],
    deadline: float,
    max_output: int = MAX_OUTPUT,
    environ: Mapping[str, str] = os.environ,
) -> Deferred[Outcome]:
    """
    Run a command, with nothing on its standard input.

    :param reactor: an IReactorProcess and IReactorTime.
    :param argv: the command, which is looked for on the path, and its arguments.
    :param deadline: seconds that it may take. Then it is ended, and nobody waits until it is.
    :param max_output: bytes at most on each output; a command that writes more is ended.
    :param environ: of the daemon, see :func:`environment`.
    :return: a Deferred with its :class:`Outcome`, whatever its exit status. Cancelling it ends the
        command.
    :raises CommandFailed: (in the Deferred) when it cannot be run, or is ended.
    """
    name = os.fsdecode(argv[0])
    protocol = _Command(reactor, name, max_output)
    wanted = environment(environ)
    try:
        # spawnProcess() would look it up on the path of this process, which may be shorter.
        reactor.spawnProcess(protocol, _find(name, wanted["PATH"]), list(argv), wanted)
    except OSError as error:
        protocol.fail(CommandFailed(f"{name}: {error.strerror}"))
        return protocol.ended
    protocol.limit(deadline)
    return protocol.ended


def _find(name: str, path: str) -> str:
    if "/" in name:
        return name
    for place in path.split(":"):
        found = os.path.join(place, name)
        if place and os.access(found, os.X_OK) and os.path.isfile(found):
            return found
    raise FileNotFoundError(errno.ENOENT, "not found; is it installed?", name)


class _Command(ProcessProtocol):
    transport: Any

    def __init__(self, reactor: Any, name: str, max_output: int) -> None:
        self._reactor = reactor
        self._name = name
        self._max_output = max_output
        self._said: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self._timers: list[Any] = []
        self.ended: Deferred[Outcome] = Deferred(lambda _: self._end())

    def limit(self, deadline: float) -> None:
        """Begin to count the time."""
        self._timers.append(self._reactor.callLater(deadline, self._late, deadline))

    def fail(self, error: Exception) -> None:
        """Tell that it will not come to its end."""
        if not self.ended.called:
            self.ended.errback(error)

    def connectionMade(self) -> None:
        """It runs."""
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It has written something."""
        said = self._said[childFD]
        said += data[: self._max_output - len(said)]
        if len(said) >= self._max_output and not self.ended.called:
            self._end()
            self.fail(CommandFailed(f"{self._name}: says more than {self._max_output} bytes"))

    def processEnded(self, reason: Failure) -> None:
        """It has ended, and all that it has written is here."""
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        if self.ended.called:
            return
        status = 0
        if isinstance(reason.value, ProcessTerminated):
            value = reason.value
            status = value.exitCode if value.signal is None else -value.signal
        self.ended.callback(Outcome(status, bytes(self._said[1]), bytes(self._said[2])))

    def _late(self, deadline: float) -> None:
        self._end()
        said = bytes(self._said[2]).decode("utf-8", "replace").strip()
        self.fail(
            CommandTimedOut(
                f"{self._name}: no end after {deadline:g} seconds{': ' if said else ''}{said}"
            )
        )

    def _end(self) -> None:
        self._signal("TERM")
        self._timers.append(self._reactor.callLater(GRACE, self._signal, "KILL"))

    def _signal(self, name: str) -> None:
        try:
            self.transport.signalProcess(name)
        except ProcessExitedAlready:
            # What holds its outputs open are its children: they are not waited for.
            self.transport.loseConnection()
