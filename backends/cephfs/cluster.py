# -*- test-case-name: tests.test_ceph_cluster -*-
"""
How the cluster is, as ceph(8) tells those who have a key for its monitors.

That takes a third of a second of a processor, so answers are kept for a few seconds, and whoever
asks meanwhile gets the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import Interface, implementer

from storageproxy.errors import VolumeUnavailable
from storageproxy.process import CommandFailed, Outcome

T = TypeVar("T")

#: Seconds for which an answer is good.
FRESH = 5.0

#: Characters at most of what is wrong, and of what a failed command says.
MOST_WORDS = 1000

#: What ceph(8) calls a state, and what managers do.
_STATES = {"HEALTH_OK": "healthy", "HEALTH_WARN": "degraded", "HEALTH_ERR": "degraded"}

#: Complaints that mean that no file can be reached.
#: https://docs.ceph.com/en/latest/cephfs/health-messages/
_OFFLINE = frozenset({"MDS_ALL_DOWN"})


#: What ``ceph osd pool stats`` tells of a pool.
_RATES = ("read_op_per_sec", "write_op_per_sec", "read_bytes_sec", "write_bytes_sec")


class ICluster(Interface):
    """Whom to ask how a cluster is."""

    def hardware_info() -> Any:
        """
        :return: a coroutine as of :meth:`storageproxy.interfaces.IVolume.hardware_info`. That the
            cluster does not tell is one of its states.
        """

    def performance_metric() -> Any:
        """
        :return: a coroutine as of
            :meth:`storageproxy.interfaces.IPerformanceMetric.performance_metric`.
        :raises storageproxy.errors.VolumeUnavailable: when the cluster does not tell.
        """


@define(eq=False)
class _Answer:
    """
    One answer, for all who ask.

    :ivar told: when it came, None before.
    """

    told: float | None = None
    _result: Any = None
    _waiting: list[Deferred[Any]] = field(factory=list)

    def tell(self, now: float, result: object) -> None:
        """Pass on a result."""
        self.told, self._result = now, result
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(result)

    def get(self) -> Deferred[Any]:
        """The result, now or later. Cancelling lets go of it only."""
        one: Deferred[Any] = Deferred(self._waiting.remove)
        if self.told is None:
            self._waiting.append(one)
        else:
            one.callback(self._result)
        return one


@implementer(ICluster)
class Cluster:
    """
    A cluster, asked by commands.

    :param clock: tells how old an answer is.
    :param run: runs a command (:func:`storageproxy.process.run`).
    :param argv: the beginning of the commands: ceph(8) and as whom to ask.
    :param volume: the name of the volume, for messages.
    :param file_system: the name of the file system; empty for all that the cluster has.
    """

    def __init__(
        self,
        clock: IReactorTime,
        run: Callable[[Sequence[str]], Deferred[Outcome]],
        argv: Sequence[str],
        volume: str,
        file_system: str = "",
    ) -> None:
        self._clock = clock
        self._run = run
        self._argv = tuple(argv)
        self._volume = volume
        self._file_system = file_system
        self._answers: dict[tuple[str, ...], _Answer] = {}

    async def hardware_info(self) -> dict[str, Any]:
        """See :meth:`ICluster.hardware_info`."""
        try:
            health, checks = await self._ask(_health, "health")
        except VolumeUnavailable as error:
            return {"status": "unavailable", "status_info": error.message, "metadata": {}}
        status, metadata = _STATES.get(health, "degraded"), {"health": health}
        if _OFFLINE & checks.keys():
            status = "offline"
        try:
            servers = await self._ask(_servers, "fs", "status", *self._file_systems())
        except VolumeUnavailable as error:
            # The manager daemon may be down, and files be served all the same.
            checks["fs status"] = error.message
        else:
            metadata["metadata_servers"] = ", ".join(f"{name}: {state}" for name, state in servers)
            if all(state != "active" for _, state in servers):
                status = "offline"
        said = "; ".join(f"{name}: {message}" for name, message in checks.items())
        return {"status": status, "status_info": said[:MOST_WORDS] or None, "metadata": metadata}

    async def performance_metric(self) -> dict[str, Any]:
        """
        See :meth:`ICluster.performance_metric`.

        Operations and bytes are those of the data pools, in a second, from all clients. The time of
        a write is the mean of what the storage daemons take to commit one. No such time is told of
        reads: it is 0.
        """
        pools = await self._ask(self._data_pools, "fs", "ls")
        rates = await self._ask(lambda found: _rates(found, pools), "osd", "pool", "stats")
        return {
            "iops_read": rates["read_op_per_sec"],
            "iops_write": rates["write_op_per_sec"],
            "io_bytes_read": rates["read_bytes_sec"],
            "io_bytes_write": rates["write_bytes_sec"],
            "io_usec_read": 0.0,
            "io_usec_write": await self._ask(_commit_time, "osd", "perf"),
        }

    def _file_systems(self) -> list[str]:
        return [self._file_system] if self._file_system else []

    def _data_pools(self, found: Any) -> set[str]:
        wanted = self._file_systems() or [one["name"] for one in found]
        return {pool for one in found if one["name"] in wanted for pool in one["data_pools"]}

    async def _ask(self, read: Callable[[Any], T], *words: str) -> T:
        """
        :param read: finds in the decoded answer what is asked for.
        :raises VolumeUnavailable: when there is no such answer.
        """
        answer = self._answers.get(words)
        now = self._clock.seconds()
        if answer is None or (answer.told is not None and now - answer.told >= FRESH):
            answer = self._answers[words] = _Answer()
            tell = answer.tell
            asked = Deferred.fromCoroutine(self._command(words))
            asked.addBoth(lambda result: tell(self._clock.seconds(), result))
        found = await answer.get()
        if isinstance(found, VolumeUnavailable):
            # Each caller gets one of his own, as each adds where it was raised.
            raise VolumeUnavailable(found.message)
        try:
            return read(found)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise self._failed(words, "it says what cannot be understood") from None

    async def _command(self, words: Sequence[str]) -> Any:
        """The decoded answer, or the error instead of it."""
        try:
            outcome = await self._run([*self._argv, "--format", "json", *words])
        except CommandFailed as error:
            return self._failed(words, str(error))
        if outcome.status:
            return self._failed(words, _last_line(outcome.errors) or f"status {outcome.status}")
        try:
            return json.loads(outcome.output)
        except ValueError:
            return self._failed(words, _last_line(outcome.errors) or "no JSON")

    def _failed(self, words: Sequence[str], why: str) -> VolumeUnavailable:
        return VolumeUnavailable(f"volume {self._volume}: ceph {' '.join(words)}: {why}")


def _last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:MOST_WORDS]


def _health(found: Any) -> tuple[str, dict[str, str]]:
    checks = {name: str(check["summary"]["message"]) for name, check in found["checks"].items()}
    return str(found["status"]), checks


def _servers(found: Any) -> list[tuple[str, str]]:
    return [(str(one["name"]), str(one["state"])) for one in found["mdsmap"]
            if one["state"] != "standby"]  # fmt: skip


def _rates(found: Any, pools: Iterable[str]) -> dict[str, int]:
    rates = [pool["client_io_rate"] for pool in found if pool["pool_name"] in pools]
    # What has not happened lately is not among them.
    return {name: sum(int(rate.get(name, 0)) for rate in rates) for name in _RATES}


def _commit_time(found: Any) -> float:
    times = [one["perf_stats"]["commit_latency_ns"] for one in found["osdstats"]["osd_perf_infos"]]
    return fmean(times) / 1000 if times else 0.0
