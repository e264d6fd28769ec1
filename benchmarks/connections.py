"""
Many connections: what they cost, and whether others are still answered.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from attrs import define, field
from bench import Bench
from clients import Conversation, connect, request, run, single
from scenarios import Measurement, Scenario
from servers import StorageProxy
from transfers import SMALL, Files, big_file

#: Seconds that the connections are there.
LASTS = 2.0


class Crowd:
    """
    Connections of one kind.

    :param connections: held open.
    """

    def __init__(self, connections: list[socket.socket]) -> None:
        self._connections = connections

    def sip(self) -> int:
        """Read 1 KiB from each that has something; return how many are closed."""
        closed = 0
        for connection in self._connections:
            with suppress(BlockingIOError):
                try:
                    closed += not connection.recv(1024)
                except ConnectionError:
                    closed += 1
        return closed


@contextmanager
def crowd(port: int, count: int, head: bytes, buffer: int) -> Iterator[Crowd]:
    """
    :param head: what each sends at first.
    :param buffer: bytes that each receives ahead, 0 for the kernel's choice.
    """
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connections.append(stack.enter_context(connect(port, buffer)))
            if head:
                connections[-1].send(head)
        yield Crowd(connections)


@define(kw_only=True, eq=False)
class Crowded(Scenario):
    """
    How long others wait while very many are there.

    :param count: how many are.
    :param reads: whether they have asked for a big file, and read it slowly.
    """

    count: Callable[[Bench], int]
    reads: bool
    _files: Files = field(init=False)

    def prepare(self, bench: Bench) -> None:
        """The big file."""
        self._files = bench.once(big_file)

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """The median wait of another for a token and 4 KiB of the file."""
        files = self._files
        port, target = files.target(daemon, "big")
        head = request(port, "GET", target).head if self.reads else b""
        params = {"volume": "none", "vfid": files.vfid, "relpath": "big"}
        calls = [
            daemon.rpc("POST", "/folder/file/download", params, 100),
            request(port, "GET", target, [("Range", f"bytes=0-{SMALL - 1}")], least=SMALL),
        ]
        errors: list[str] = []
        waits: list[float] = []
        count = self.count(bench)
        with crowd(port, count, head, 16 * 1024 if self.reads else 0) as others:
            deadline = time.monotonic() + min(LASTS, 10 * bench.sizes.seconds)

            def probe() -> Conversation:
                yield from single(*calls)

            while time.monotonic() < deadline:
                closed = others.sip()
                if closed:
                    errors.append(f"{closed} of {count} connections are closed")
                    break
                load = run(1, [probe()])
                errors += load.errors
                waits.append(load.seconds)
                time.sleep(0.02)
        waits.sort()
        return Measurement(waits[len(waits) // 2] * 1000 if waits else 0.0, errors)


SCENARIOS: list[Scenario] = [
    Crowded(
        name="slow-readers",
        title="token and 4 KiB for another, while 200 read 1 GiB slowly",
        unit="ms",
        count=lambda bench: bench.sizes.readers,
        reads=True,
    ),
    Crowded(
        name="idle",
        title="token and 4 KiB for another, with 2,000 idle connections",
        unit="ms",
        count=lambda bench: bench.sizes.idle,
        reads=False,
    ),
]
