"""
Bytes that a volume's threads make a little ahead of who sends them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from twisted.python.failure import Failure

from storageproxy.interfaces import IThreads
from storageproxy.transfer.bodies import Chunks, gather

#: Blocks that are made before the first of them is taken.
AHEAD = 3

#: Seconds that a thread waits with the next block for one to be taken. To have the reactor wake a
#: thread again costs as much as some hundred KiB; a slow client is not waited for.
PATIENCE = 0.002

#: Bytes after which a thread gives way to other calls on its volume.
LAP = 128 * 1024 * 1024


class Feed:
    """
    What a generator yields, block by block. It runs in a volume's threads, and goes on there while
    blocks are taken; the reactor is told only when it had to wait for one.

    :param reactor: of who takes them.
    :param threads: the volume's.
    :param chunks: closed at the end, whatever happens.
    :param block: bytes that are put together.
    :param arrived: called when there is something to take, after there was not.
    :param failed: called with a Failure when the generator, or its volume, has failed.
    """

    def __init__(
        self,
        reactor: Any,
        threads: IThreads,
        chunks: Chunks,
        block: int,
        arrived: Callable[[], None],
        failed: Callable[[Failure], None],
    ) -> None:
        self._reactor = reactor
        self._threads = threads
        self._chunks = chunks
        self._block = block
        self._arrived = arrived
        self._failed = failed
        self._ready: deque[list[bytes]] = deque()
        #: One for each block that may be made.
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(AHEAD):
            self._room.put(None)
        #: Whether somebody waits for a block.
        self._wanted = False
        self._running = False
        self._complete = False
        self._closed = False

    def take(self) -> list[bytes] | None:
        """
        Take the next block.

        :return: its pieces; none of them at the end; None when there is nothing yet.
        """
        if not self._ready:
            self._go_on()
            self._wanted = True
            # It may have come before the thread could see that.
            if not self._ready:
                return None
            self._wanted = False
        pieces = self._ready.popleft()
        self._room.put(None)
        if self._room.qsize() > AHEAD // 2:
            self._go_on()
        return pieces

    def close(self) -> None:
        """Take no more."""
        self._closed = True
        if not self._running:
            self._threads.clean_up(self._close)

    # ---- in the reactor

    def _go_on(self) -> None:
        if self._running or self._complete or self._closed:
            return
        self._running = True
        self._threads.submit(
            self._make, self._threads.slow_deadline, lambda _: self._close()
        ).addCallbacks(self._made, self._gave_up)

    def _made(self, _: None) -> None:
        self._running = False
        if self._closed:
            self._threads.clean_up(self._close)
        elif self._wanted:
            if self._ready:
                self._tell()
            else:
                self._go_on()

    def _gave_up(self, failure: Failure) -> None:
        self._running = False
        self._complete = True
        if self._closed:
            self._threads.clean_up(self._close)
        else:
            self._failed(failure)

    def _tell(self) -> None:
        if self._wanted and self._ready and not self._closed:
            self._wanted = False
            self._arrived()

    # ---- in a thread

    def _make(self) -> None:
        left = LAP
        while left > 0 and not self._closed:
            try:
                self._room.get(timeout=PATIENCE)
            except Empty:
                return
            pieces = gather(self._chunks, self._block)
            self._complete = not pieces
            self._ready.append(pieces)
            if self._wanted:
                self._reactor.callFromThread(self._tell)
            if not pieces:
                return
            left -= sum(map(len, pieces))

    def _close(self) -> None:
        # One that still hangs in a call is closed when that comes back.
        with suppress(ValueError):
            self._chunks.close()
