"""
What a scenario is: something that is measured of the daemon and of its peers, and what is expected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field, frozen
from bench import Bench
from clients import Load
from servers import StorageProxy

OURS = "ours"


@frozen
class Target:
    """
    What ours has to be, compared with a peer.

    :param peer: the peer; empty for a limit of the value itself.
    :param factor: at least so many times the peer's rate, or at most so many times its time.
    :param aim: what it had better be.
    """

    peer: str
    factor: float
    aim: float | None = None


@frozen
class Measurement:
    """
    One number.

    :param value: in the scenario's unit; None when there was nothing to measure.
    :param errors: one line for each unexpected answer or short body.
    """

    value: float | None
    errors: list[str] = field(factory=list)


@define(kw_only=True, eq=False)
class Scenario:
    """
    Something to measure.

    :param name: for the command line.
    :param title: for the table.
    :param unit: of its values; times (``s``, ``ms``) are better when smaller, rates when greater.
    :param peers: who is measured beside the daemon.
    :param tool: what the peer ``tool`` is.
    :param targets: what is expected.
    :param rounds: at most so many, for what takes long.
    """

    name: str
    title: str
    unit: str
    peers: tuple[str, ...] = ()
    tool: str = ""
    targets: tuple[Target, ...] = ()
    rounds: int = 1000

    @property
    def smaller_is_better(self) -> bool:
        """Whether values are times."""
        return self.unit in ("s", "ms")

    def equip(self, bench: Bench) -> None:
        """
        Make what has to be there before the servers start.

        :raises NotHere: when it cannot be made on this machine.
        """

    def prepare(self, bench: Bench) -> None:
        """Make what is measured on, once; the servers run."""

    @contextmanager
    def daemon(self, bench: Bench) -> Iterator[StorageProxy]:
        """The daemon that is measured, for one measurement."""
        yield bench.ours

    def measure(self, bench: Bench, who: str, daemon: StorageProxy) -> Measurement:
        """
        :param who: the daemon, or one of the peers.
        """
        raise NotImplementedError


def rate(load: Load, expected: int | None = None) -> Measurement:
    """
    Conversations a second.

    :param expected: how many there should have been, where it is known.
    """
    return Measurement(load.done / (load.seconds or 1e-9), _errors(load, expected))


def speed(load: Load, size: int, expected: int) -> Measurement:
    """
    Megabytes a second.

    :param size: bytes of one conversation.
    """
    return Measurement(load.done * size / 1e6 / (load.seconds or 1e-9), _errors(load, expected))


def _errors(load: Load, expected: int | None) -> list[str]:
    missing = 0 if expected is None else expected - load.done - len(load.errors)
    return load.errors + ["not done"] * max(0, missing)
