# -*- test-case-name: tests.test_process -*-
"""
Commands: an argument vector that is run with a deadline, never a shell.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from storageproxy import launch

#: Seconds that a command which was asked to end gets before it is killed.
GRACE = 2.0

#: Bytes at most of what a command says, on each of its two outputs.
MAX_OUTPUT = 1024 * 1024

#: Bytes at most that are taken from a stream at once, and that are kept of what it complains about.
READ, MAX_COMPLAINT = 64 * 1024, 500

#: Seconds after which a stream says that there is nothing new.
MOMENT = 0.25


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


@frozen
class Confinement:
    """
    What a command may do to files: read those in its directory, itself and software, and nothing
    else, wherever symbolic links lead it. The kernel sees to that, where it can
    (:func:`storageproxy.launch.confinable`).

    :param software: directories that it may read, and run programs of.
    :param removal: whether it may also remove what is in its directory.
    """

    software: Sequence[str]
    removal: bool = False


def stream(
    reactor: Any,
    argv: Sequence[str],
    directory: int,
    silence: float,
    confinement: Confinement | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Generator[bytes, None, None]:
    """
    Run a command in an open directory, and yield what it writes as it does. Blocks: in threads
    only, while the reactor runs in its own.

    The command waits when nothing is taken. When the generator is closed it is ended, with all that
    it has started.

    :param argv: as for :func:`run`.
    :param directory: a descriptor, which the command gets as its working directory.
    :param silence: seconds that it may neither write anything nor use the processor for.
    :param environ: of the daemon, see :func:`environment`.
    :return: bytes as they come, and none of them now and then when there are no more yet.
    :raises CommandFailed: when it cannot be run, is ended, fails, or complains about anything: what
        it has written may not be all then.
    """
    name = argv[0]
    wanted = environment(environ)
    # What a program does may hang on the name that it is called by, so links are left in it.
    command = os.path.abspath(_find_or_fail(name, wanted["PATH"]))
    software = [os.path.realpath(command), *(confinement.software if confinement else ())]
    try:
        reading, writing, place = _descriptors(directory)
    except OSError as error:
        raise CommandFailed(f"{name}: {error.strerror}") from None
    child = _Streamed(reactor, name)
    reactor.callFromThread(
        child.start,
        [
            *(sys.executable, "-I", "-S", launch.__file__),
            *(_rights(confinement), ":".join(software), command, *map(os.fsencode, argv[1:])),
        ],
        {0: "w", 1: writing, 2: "r", launch.DIRECTORY: place},
        wanted,
    )
    try:
        yield from _taken(child, reading, silence)
        child.conclude()
    finally:
        os.close(reading)
        reactor.callFromThread(child.end)


def _descriptors(directory: int) -> tuple[int, int, int]:
    """The two ends of a pipe, and a copy."""
    place = os.dup(directory)
    try:
        return *os.pipe(), place
    except OSError:
        os.close(place)
        raise


def _rights(confinement: Confinement | None) -> str:
    if confinement is None:
        return launch.ANYTHING
    return launch.REMOVE if confinement.removal else launch.READ


def _taken(child: _Streamed, reading: int, silence: float) -> Generator[bytes, None, None]:
    waiting = select.poll()
    waiting.register(reading, select.POLLIN)
    idle, used = 0.0, 0
    open_ = True
    while open_ or not child.gone.wait(MOMENT):
        if open_ and waiting.poll(MOMENT * 1000):
            data = os.read(reading, READ)
            open_ = bool(data)
            idle = 0.0
            yield data
            continue
        before, used = used, child.used()
        idle = idle + MOMENT if used == before else 0.0
        if idle >= silence:
            raise CommandTimedOut(f"{child.name}: nothing comes of it for {silence:g} seconds")
        yield b""


def _find_or_fail(name: str, path: str) -> str:
    try:
        return _find(name, path)
    except OSError as error:
        raise CommandFailed(f"{name}: {error.strerror}") from None


def _find(name: str, path: str) -> str:
    if "/" in name:
        return name
    for place in path.split(":"):
        found = os.path.join(place, name)
        if place and os.access(found, os.X_OK) and os.path.isfile(found):
            return found
    raise FileNotFoundError(errno.ENOENT, "not found; is it installed?", name)


class _Child(ProcessProtocol, ABC):
    """A command that runs."""

    transport: Any = None

    def __init__(self, reactor: Any, name: str) -> None:
        self.name = name
        self._reactor = reactor
        self._timers: list[Any] = []

    def connectionMade(self) -> None:
        """It runs."""
        self.transport.closeStdin()

    def end(self) -> None:
        """End it, one way or the other."""
        self._signal(signal.SIGTERM)
        self._timers.append(self._reactor.callLater(GRACE, self._signal, signal.SIGKILL))

    def processEnded(self, reason: Failure) -> None:
        """It has ended, and all that it has written is here."""
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        status = 0
        if isinstance(reason.value, ProcessTerminated):
            value = reason.value
            status = value.exitCode if value.signal is None else -value.signal
        self.concluded(status)

    @abstractmethod
    def concluded(self, status: int) -> None:
        """
        :param status: as in :class:`Outcome`.
        """

    def _signal(self, number: int) -> None:
        try:
            self.transport.signalProcess(number)
        except ProcessExitedAlready:
            # What holds its outputs open are its children: they are not waited for.
            self.transport.loseConnection()


class _Streamed(_Child):
    """
    :ivar gone: set when it has ended, or could not be begun.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        super().__init__(reactor, name)
        self.gone = threading.Event()
        self._pid: int | None = None
        self._complaint = bytearray()
        self._failed: str | None = None

    # ---- in the reactor

    def start(
        self, argv: list[str], descriptors: dict[int, int | str], environ: dict[str, str]
    ) -> None:
        """
        Begin.

        :param descriptors: by their numbers in the command; those that are numbers are closed here.
        """
        try:
            self._pid = self._reactor.spawnProcess(
                self, argv[0], argv, environ, childFDs=descriptors
            ).pid
        except OSError as error:
            self._failed = error.strerror
            self.gone.set()
        finally:
            for descriptor in descriptors.values():
                if isinstance(descriptor, int):
                    os.close(descriptor)

    def end(self) -> None:
        """See :meth:`_Child.end`."""
        if not self.gone.is_set():
            super().end()

    def errReceived(self, data: bytes) -> None:
        """It complains."""
        self._complaint += data[: MAX_COMPLAINT - len(self._complaint)]

    def concluded(self, status: int) -> None:
        """See :meth:`_Child.concluded`."""
        said = " ".join(bytes(self._complaint).decode("utf-8", "replace").split())
        if said or status:
            how = f"exit status {status}" if status > 0 else f"ended by signal {-status}"
            self._failed = said.removeprefix(f"{self.name}: ") or how
        self.gone.set()

    def _signal(self, number: int) -> None:
        if self._pid is not None:
            # Before it is a group of its own, and when it is none any more, there is just itself.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)
        super()._signal(number)

    # ---- in threads

    def used(self) -> int:
        """How long it has computed, in whatever unit; proc_pid_stat(5)."""
        try:
            with open(f"/proc/{self._pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return 0
        return int(fields[11]) + int(fields[12])

    def conclude(self) -> None:
        """
        To be called when it is gone.

        :raises CommandFailed: unless all is well.
        """
        if self._failed is not None:
            raise CommandFailed(f"{self.name}: {self._failed}")


class _Command(_Child):
    def __init__(self, reactor: Any, name: str, max_output: int) -> None:
        super().__init__(reactor, name)
        self._max_output = max_output
        self._said: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self.ended: Deferred[Outcome] = Deferred(lambda _: self.end())

    def limit(self, deadline: float) -> None:
        """Begin to count the time."""
        self._timers.append(self._reactor.callLater(deadline, self._late, deadline))

    def fail(self, error: Exception) -> None:
        """Tell that it will not come to its end."""
        if not self.ended.called:
            self.ended.errback(error)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It has written something."""
        said = self._said[childFD]
        said += data[: self._max_output - len(said)]
        if len(said) >= self._max_output and not self.ended.called:
            self.end()
            self.fail(CommandFailed(f"{self.name}: says more than {self._max_output} bytes"))

    def concluded(self, status: int) -> None:
        """See :meth:`_Child.concluded`."""
        if not self.ended.called:
            self.ended.callback(Outcome(status, bytes(self._said[1]), bytes(self._said[2])))

    def _late(self, deadline: float) -> None:
        self.end()
        said = bytes(self._said[2]).decode("utf-8", "replace").strip()
        self.fail(
            CommandTimedOut(
                f"{self.name}: no end after {deadline:g} seconds{': ' if said else ''}{said}"
            )
        )
