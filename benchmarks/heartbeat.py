"""
How long a reactor was ever kept from running.

Every 5 ms the reactor shall run a call, and how late that was is kept. Nothing of it is in the
daemon: ``sitecustomize`` of this directory attaches it to each Python process that has a reactor,
worker processes too, where :data:`VARIABLE` is in the environment.

A machine with few cores keeps a process waiting although it is not blocked. The kernel tells how
long the reactor's thread was runnable and had no CPU (second number of ``schedstat``, Linux
Documentation/scheduler/sched-stats.rst): that is taken off. As a second witness a process that does
nothing but sleep is measured in the same way (``heartbeat.py FILE``).
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

from attrs import frozen

#: Seconds between two beats.
INTERVAL = 0.005

#: Where the directory for one file a process is named.
VARIABLE = "STORAGEPROXY_BENCHMARK_HEARTBEAT"

_LAYOUT = struct.Struct("=ddd")


@frozen
class Lateness:
    """
    The worst since the last reset, in seconds; each may be of another beat.

    :param blocked: late, and not for want of a CPU.
    :param late: late for whatever reason.
    :param starved: runnable without a CPU, from one beat to the next.
    """

    blocked: float = 0.0
    late: float = 0.0
    starved: float = 0.0

    def worse(self, other: Lateness) -> Lateness:
        """The worst of both."""
        return Lateness(
            max(self.blocked, other.blocked),
            max(self.late, other.late),
            max(self.starved, other.starved),
        )


class Record:
    """
    A file that the measured process and the benchmark both have in memory.

    :param path: made when it is not there.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(descriptor, _LAYOUT.size)
        self._memory = mmap.mmap(descriptor, _LAYOUT.size)
        os.close(descriptor)

    def read(self) -> Lateness:
        """The worst so far."""
        return Lateness(*_LAYOUT.unpack_from(self._memory))

    def write(self, lateness: Lateness) -> None:
        """Keep it."""
        _LAYOUT.pack_into(self._memory, 0, lateness.blocked, lateness.late, lateness.starved)

    def reset(self) -> None:
        """Begin anew."""
        self.write(Lateness())


class Heart:
    """Compares when it is called, in the thread that it is made in, with when it was due."""

    def __init__(self, path: Path) -> None:
        self._record = Record(path)
        self._schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._starved = self._wait_so_far()
        self._due = time.monotonic() + INTERVAL

    def _wait_so_far(self) -> float:
        return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9

    def beat(self) -> None:
        """Take note, and expect the next one."""
        late = time.monotonic() - self._due
        starved = self._wait_so_far()
        waited, self._starved = starved - self._starved, starved
        lateness = Lateness(max(0.0, late - waited), max(0.0, late), waited)
        self._record.write(self._record.read().worse(lateness))
        self._due = time.monotonic() + INTERVAL


def attach() -> None:
    """Give a heart to the reactor of this process, when it comes to have one."""
    threading.Thread(target=_attach, daemon=True).start()


def _attach() -> None:
    # While it is imported, the module itself stands there.
    reactor: Any = None
    while not hasattr(reactor, "callFromThread"):
        time.sleep(INTERVAL)
        reactor = sys.modules.get("twisted.internet.reactor")
    reactor.callFromThread(_start, reactor)


def _start(reactor: Any) -> None:
    heart = Heart(Path(os.environ[VARIABLE]) / str(os.getpid()))

    def beat() -> None:
        heart.beat()
        reactor.callLater(INTERVAL, beat)

    reactor.callLater(INTERVAL, beat)


def main() -> None:
    """Sleep, and measure it."""
    heart = Heart(Path(sys.argv[1]))
    while True:
        time.sleep(INTERVAL)
        heart.beat()


if __name__ == "__main__":
    main()
