"""
Commands that tests have run.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.process import ProcessReader, reapProcessHandlers


def all_ended(reactor: Any) -> Deferred[None]:
    """
    Wait until the end of each command is known, however busy the machine is: what a test leaves to
    the reactor is an error of the test.
    """
    ended: Deferred[None] = Deferred()

    def look() -> None:
        readers = (isinstance(one, ProcessReader) for one in reactor.getReaders())
        if reapProcessHandlers or any(readers):
            reactor.callLater(0.001, look)
        else:
            ended.callback(None)

    look()
    return ended
