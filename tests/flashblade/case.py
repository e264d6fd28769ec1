"""
What tests with clients that block have in common.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.engines.flashblade.array import Array, example
from tests.engines.flashblade.simulator import Simulator

T = TypeVar("T")

# Each client puts one more handler to the log of urllib3, and all of py-pure-client's want to log
# out when the process ends, when there is no array any more.
logging.disable(logging.WARNING)


class SimulatorCase(TestCase):
    """A test with an array of its own."""

    #: Seconds. Clients that hang would hang for good.
    timeout = 60

    def setUp(self) -> Any:
        directory = Path(self.mktemp())
        directory.mkdir(parents=True)
        self.now = 1_700_000_000.0
        self.array: Array = example(lambda: self.now)
        self.simulator = Simulator(reactor, self.array, directory)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.simulator.stop()))
        return Deferred.fromCoroutine(self.simulator.start())

    def block(self, function: Callable[..., T], *args: Any, **named: Any) -> Deferred[T]:
        """Call a client in a thread."""
        return deferToThread(function, *args, **named)
