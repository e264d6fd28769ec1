"""
A volume on a FlashBlade: its conformance, and what it makes of its array.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from treq.testing import StubTreq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from backends.purestorage.array import Array
from backends.purestorage.client import RESTClient
from backends.purestorage.interfaces import IArray
from backends.purestorage.volume import PureStorageVolume
from storageproxy.conformance import VolumeConformance
from storageproxy.errors import BackendFailure, InvalidParameters, VolumeUnavailable
from storageproxy.interfaces import IPerformanceMetric, IQuota, IVolumeQuota, capabilities
from storageproxy.schema import ENDLESS
from storageproxy.testing import SynchronousThreads, bare_id, result_of
from storageproxy.threads import VolumeThreads
from tests.engines.flashblade.array import API_TOKEN, example
from tests.engines.flashblade.simulator import Simulator


class ConformanceTests(VolumeConformance, TestCase):
    """With a simulated array, in memory."""

    def make_volume(self, path: str) -> PureStorageVolume:
        directory = Path(self.mktemp())
        directory.mkdir()
        simulator = Simulator(reactor, example(Clock().seconds), directory)
        treq = StubTreq(simulator.app.resource())
        rest = RESTClient(reactor, treq, "test", "https://array", API_TOKEN, None, 15.0)
        threads = VolumeThreads(reactor, "test", size=8)
        self.addCleanup(threads.stop)
        array = Array(rest, "test", "FB-NFS1")
        return PureStorageVolume("test", path, "", threads, reactor, array)


@implementer(IArray)
class MemoryArray:
    """
    Remembers a limit, and answers as it is told.

    :ivar error: what is raised instead of each answer.
    :ivar used: how often it was asked.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0
        self.size = 7
        self.stopped = False

    def _ask(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    async def look(self) -> None:
        self._ask()

    async def health(self) -> dict[str, Any]:
        self._ask()
        return {"status": "degraded", "status_info": "a blade", "metadata": {"name": "array"}}

    async def usage(self) -> tuple[int, int]:
        self._ask()
        return 100, 40

    async def metric(self) -> dict[str, Any]:
        self._ask()
        return {"iops_read": 1}

    async def limit(self) -> int:
        self._ask()
        return self.size

    async def set_limit(self, size: int) -> None:
        self._ask()
        self.size = size

    async def stop(self) -> None:
        self.stopped = True
        self._ask()


class VolumeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.realpath(self.mktemp())
        os.makedirs(self.path)
        self.array = MemoryArray()
        verifyObject(IArray, self.array)
        self.threads = SynchronousThreads()
        self.volume = PureStorageVolume(
            "fb", self.path, "", self.threads, reactor, self.array, environ={"PATH": ""}
        )
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def warnings(self) -> list[str]:
        return [
            event["error"]
            for event in self.events
            if event["log_namespace"] == "storageproxy.purestorage"
            and event["log_level"] is LogLevel.warn
        ]

    def test_capabilities(self) -> None:
        """It can be measured, and limited as a whole; vfolders have no quotas."""
        for ability in (IPerformanceMetric, IVolumeQuota):
            verifyObject(ability, self.volume)
        self.assertFalse(IQuota.providedBy(self.volume))
        self.assertIn("metric", capabilities(self.volume))
        self.assertNotIn("quota", capabilities(self.volume))

    def test_told(self) -> None:
        """What the array says is told."""
        self.assertEqual(result_of(self.volume.fs_usage()), (100, 40))
        self.assertEqual(result_of(self.volume.performance_metric()), {"iops_read": 1})
        self.assertEqual(result_of(self.volume.hardware_info())["status"], "degraded")

    def test_quota(self) -> None:
        """The limit of the file system is read and set; a size without a limit is none."""
        self.assertEqual(result_of(self.volume.get_volume_quota()), 7)
        for size, expected in ((1 << 40, 1 << 40), (0, 0), (5, 5), (ENDLESS, 0)):
            result_of(self.volume.set_volume_quota(size))
            self.assertEqual(result_of(self.volume.get_volume_quota()), expected)

    def test_bad_quota(self) -> None:
        """What can be no size does not come to the array."""
        for size in (-1, ENDLESS + 1, 1 << 80):
            work = self.volume.set_volume_quota(size)
            self.assertRaises(InvalidParameters, result_of, work)
        self.assertEqual(self.array.asked, 0)

    def test_unavailable(self) -> None:
        """An array that cannot be asked is unavailable, with the reason; no error."""
        for error in (VolumeUnavailable("no route"), BackendFailure("no token")):
            self.array.error = error
            self.assertEqual(
                result_of(self.volume.hardware_info()),
                {"status": "unavailable", "status_info": error.message, "metadata": {}},
            )

    def test_errors(self) -> None:
        """All else that is asked of it fails with its message."""
        self.array.error = BackendFailure("its own words")
        for work in (
            self.volume.fs_usage(),
            self.volume.performance_metric(),
            self.volume.get_volume_quota(),
            self.volume.set_volume_quota(5),
        ):
            self.assertEqual(
                self.assertRaises(BackendFailure, result_of, work).message, "its own words"
            )

    def test_files(self) -> None:
        """Nothing that is done with files asks the array, a clone neither."""
        self.array.error = BackendFailure("never")
        result_of(self.volume.create_folder(bare_id(1), None, 1 << 40))
        result_of(self.volume.clone_folder(bare_id(1), self.volume, bare_id(2)))
        result_of(self.volume.usage(bare_id(2)))
        result_of(self.volume.used_bytes(bare_id(2)))
        result_of(self.volume.within(bare_id(2), lambda folder: None))
        self.assertTrue(result_of(self.volume.delete_folder(bare_id(2))))
        result_of(self.volume.empty_trash())
        self.assertEqual(self.array.asked, 0)

    def test_check(self) -> None:
        """An array that is as configured is not worth a line."""
        result_of(self.volume.check())
        self.assertEqual((self.array.asked, self.warnings()), (1, []))

    def test_check_array(self) -> None:
        """One that is not is a warning, and no obstacle."""
        self.array.error = BackendFailure("volume fb: the array says no")
        result_of(self.volume.check())
        self.assertEqual(self.warnings(), ["volume fb: the array says no"])

    def test_check_mount(self) -> None:
        """A mount that is not there is one, as elsewhere."""
        os.rmdir(self.path)
        self.assertRaises(FileNotFoundError, result_of, self.volume.check())

    def test_stop(self) -> None:
        """The array is taken leave of, and then the threads end."""
        result_of(self.volume.stop())
        self.assertTrue(self.array.stopped and self.threads.stopped)

    def test_stop_array_that_fails(self) -> None:
        """The threads end also when the array makes trouble, or is never done."""
        self.array.error = VolumeUnavailable("no")
        self.assertRaises(VolumeUnavailable, result_of, self.volume.stop())
        self.assertTrue(self.threads.stopped)
        self.threads.stopped = False

        async def stop() -> None:
            await Deferred()

        self.patch(self.array, "stop", stop)
        stopping = Deferred.fromCoroutine(self.volume.stop())
        stopping.cancel()
        self.failureResultOf(stopping)
        self.assertTrue(self.threads.stopped)
