"""
Volumes with a RapidFile Toolkit: what its commands do, and what is done without them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.testing import EventLoggingObserver
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import TestCase

from backends.purestorage import probe, rapid, rapidfile
from backends.purestorage.rapid import RapidFileVolume
from backends.vfs import TRASH
from storageproxy import files, removal, trees
from storageproxy.conformance import VolumeConformance
from storageproxy.errors import BackendFailure
from storageproxy.interfaces import IFastScan, capabilities
from storageproxy.testing import GIVE_UP, bare_id
from storageproxy.threads import VolumeThreads
from storageproxy.trees import TooSlow, Usage
from tests.commands import all_ended
from tests.engines.flashblade.rapidfile import Behaviour, behave, install, running


class RapidCase(TestCase):
    timeout = GIVE_UP
    generation = 2

    def make_commands(self) -> None:
        self.bin = os.path.realpath(self.mktemp())
        os.mkdir(self.bin)
        install(self.bin, Behaviour(self.generation))
        self.addCleanup(all_ended, reactor)

    def make_volume(self, path: str) -> RapidFileVolume:
        threads = VolumeThreads(reactor, "test", size=8)
        self.addCleanup(threads.stop)
        environ = {"PATH": f"{self.bin}:/usr/bin:/bin"}
        return RapidFileVolume("test", path, "", threads, reactor, environ=environ)

    def forbid(self, place: Any, name: str) -> None:
        """Have a test fail that does something by the calls of the kernel."""

        def call(*arguments: object, **more: object) -> None:
            raise AssertionError(f"{name} was called")

        self.patch(place, name, call)


class ConformanceTests(VolumeConformance, RapidCase):
    """With the commands of the generation 2."""

    def setUp(self) -> Any:
        self.make_commands()
        super().setUp()
        return Deferred.fromCoroutine(self.volume.check())


class BareConformanceTests(VolumeConformance, RapidCase):
    """Without any."""

    def setUp(self) -> Any:
        self.make_commands()
        for name in os.listdir(self.bin):
            os.unlink(os.path.join(self.bin, name))
        super().setUp()
        return Deferred.fromCoroutine(self.volume.check())


class VolumeCase(RapidCase):
    def setUp(self) -> Any:
        self.events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.make_commands()
        self.path = os.path.realpath(self.mktemp())
        os.mkdir(self.path)
        self.volume = self.make_volume(self.path)
        return Deferred.fromCoroutine(self.volume.create_folder(bare_id(1), None, None))

    @property
    def folder(self) -> Path:
        return Path(self.path, *bare_id(1).layout)

    def behave(self, **how: Any) -> None:
        behave(self.bin, Behaviour(self.generation, **how))

    def told(self, level: Any = LogLevel.info) -> list[str]:
        return [
            event["log_format"].format(**event)
            for event in self.events
            if event["log_namespace"] == "storageproxy.rapidfile" and event["log_level"] == level
        ]

    def warnings(self) -> list[str]:
        return self.told(LogLevel.warn)

    async def names(self) -> set[str]:
        def scan(folder: Any) -> set[str]:
            return {name for name, _ in self.volume.scan(folder, 0)}

        found: set[str] = await self.volume.within(bare_id(1), scan)
        return found

    async def gone(self) -> None:
        """Wait until none of the commands runs any more."""
        while running(self.bin):
            await deferToThread(os.sched_yield)


class DetectionTests(VolumeCase):
    async def test_all(self) -> None:
        """A volume with all of them says so, and that it counts fast."""
        self.assertEqual(capabilities(self.volume), ["vfolder"])
        await self.volume.check()
        self.assertEqual(capabilities(self.volume), ["vfolder", "fast-scan"])
        self.assertEqual(list(self.volume.versions), ["pls", "pdu", "prm", "pcopy", "pfind"])
        self.assertEqual(
            self.told(),
            [
                "Volume test: RapidFile Toolkit: pls 2.1.1 (listings), pdu 2.1.1 (usage), prm 2.1.1"
                " (the trash), pcopy 2.1.1 (not used), pfind 2.1.1 (not used)."
            ],
        )
        self.assertEqual(self.warnings(), [])
        self.assertEqual(os.listdir(os.path.join(self.path, probe.PLACE)), [])

    async def test_unused(self) -> None:
        """Of commands that would not be used anyway nobody is warned; those of the same name are
        not taken for them."""
        os.unlink(os.path.join(self.bin, "pfind"))
        other = Path(self.bin, "pcp")
        other.write_text("#!/bin/sh\necho pcp version 6.0.3\n")
        other.chmod(0o755)
        await self.volume.check()
        self.assertEqual(list(self.volume.versions), ["pls", "pdu", "prm", "pcopy"])
        self.assertEqual(self.warnings(), [])

    async def test_other_volumes(self) -> None:
        """What one volume can do is not said of others."""
        await self.volume.check()
        self.assertFalse(IFastScan.providedBy(self.make_volume(self.path)))

    async def test_missing(self) -> None:
        """Of missing commands there is one warning, however often it is looked."""
        for name in ("pls", "pdu"):
            os.unlink(os.path.join(self.bin, name))
        for _ in range(3):
            await self.volume.check()
        [warning] = self.warnings()
        for part in ("Volume test", "pls: not found", "pdu: not found", "without them"):
            self.assertIn(part, warning)
        self.assertNotIn("prm", warning)
        [told] = self.told()
        self.assertIn(": prm 2.1.1 (the trash), pcopy", told)
        self.assertEqual(capabilities(self.volume), ["vfolder"])
        self.assertEqual(await self.volume.usage(bare_id(1)), Usage(0, 0))
        self.assertEqual(await self.names(), set())

    async def test_does_not_work(self) -> None:
        """Of commands that do not work on the volume there is one warning, and no use."""
        self.behave(by_path=True)
        await self.volume.check()
        self.assertEqual(len(self.warnings()), 1)
        [told] = self.told()
        self.assertEqual(told.count("(not used)"), 5)
        self.behave(garbage="these commands are not called\n")
        (self.folder / "file").write_bytes(b"12345")
        self.assertEqual(await self.volume.usage(bare_id(1)), Usage(1, 5))
        self.assertEqual(await self.names(), {"file"})
        self.assertEqual(len(self.warnings()), 1)

    async def test_disk_is_full(self) -> None:
        """Where they cannot be tried just now, they are later, and one warning says so."""

        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        patched = self.patch(rapid, "probe", full)
        await self.volume.check()
        await self.volume.check()
        [warning] = self.warnings()
        self.assertIn("cannot be tried: [Errno 28]", warning)
        self.assertEqual(capabilities(self.volume), ["vfolder"])
        patched.restore()
        await self.volume.check()
        self.assertEqual(capabilities(self.volume), ["vfolder", "fast-scan"])

    async def test_at_once(self) -> None:
        """Whoever looks while it is looked already does not look again."""
        looks: list[object] = []
        find = rapidfile.find

        async def counted(*arguments: Any) -> Any:
            looks.append(arguments)
            return await find(*arguments)

        self.patch(rapidfile, "find", counted)
        checks = [Deferred.fromCoroutine(self.volume.check()) for _ in range(3)]
        await gatherResults(checks)
        self.assertEqual(len(looks), 1)

    async def test_software(self) -> None:
        """What a command may read as software has nothing of the volume in it."""
        link = Path(self.mktemp()).resolve()
        link.symlink_to("/opt/vfolders")
        self.assertNotIn("/opt", self.make_volume(str(link))._software())
        for path, missing in (("/opt/vfolders", {"/opt"}), ("/mnt/usr", set()), ("/usr", {"/usr"})):
            volume = self.make_volume(path)
            self.assertEqual(set(rapidfile.SOFTWARE) - set(volume._software()), missing)


class OperationTests(VolumeCase):
    def setUp(self) -> Any:
        return super().setUp().addCallback(lambda _: Deferred.fromCoroutine(self.volume.check()))

    def fill(self, number: int = 3) -> set[str]:
        for one in range(number):
            (self.folder / str(one)).write_bytes(bytes(one))
        return {str(one) for one in range(number)}

    async def test_scan(self) -> None:
        """A directory is listed by the command."""
        names = self.fill()
        self.forbid(files, "scan")
        self.assertEqual(await self.names(), names)

    async def test_few(self) -> None:
        """A listing that is cut before long is made without the command."""
        names = self.fill()
        self.behave(garbage="it is not called\n")

        def scan(folder: Any) -> set[str]:
            return {name for name, _ in self.volume.scan(folder, 1000)}

        self.assertEqual(await self.volume.within(bare_id(1), scan), names)
        self.assertEqual(self.warnings(), [])

    async def test_count(self) -> None:
        """A folder is counted by the command."""
        self.fill()
        self.forbid(trees, "usage")
        self.assertEqual(await self.volume.usage(bare_id(1)), Usage(3, 3))
        self.assertEqual(await self.volume.used_bytes(bare_id(1)), 3)

    async def test_remove(self) -> None:
        """The trash is emptied by the command."""
        self.fill()
        await self.volume.delete_folder(bare_id(1))
        self.forbid(removal, "remove")
        await self.volume.empty_trash()
        self.assertEqual(os.listdir(os.path.join(self.path, TRASH)), [])

    async def test_failures(self) -> None:
        """What a command fails to do is done without it, and the log says why."""
        names = self.fill()
        for how in (
            {"complaint": "RPC: Timed out", "complete": 2},
            {"complaint": "RPC: Timed out", "status": 1, "complete": 0},
            {"garbage": "RPC: Timed out\n\0"},
        ):
            self.behave(**how)
            self.assertEqual(await self.names(), names)
            self.assertEqual(await self.volume.usage(bare_id(1)), Usage(3, 3))
            self.assertEqual(await self.volume.used_bytes(bare_id(1)), 3)
        self.behave(complaint="RPC: Timed out", complete=1)
        await self.volume.delete_folder(bare_id(1))
        await self.volume.empty_trash()
        self.assertEqual(os.listdir(os.path.join(self.path, TRASH)), [])
        warnings = self.warnings()
        self.assertEqual(len(warnings), 10)
        for warning in warnings:
            self.assertRegex(warning, "^Volume test: .*RPC: Timed out")

    async def test_gone(self) -> None:
        """A command that is not there any more is done without."""
        names = self.fill()
        for name in rapidfile.COMMANDS:
            os.unlink(os.path.join(self.bin, name))
        self.assertEqual(await self.names(), names)
        self.assertEqual(await self.volume.usage(bare_id(1)), Usage(3, 3))

    async def test_hangs(self) -> None:
        """One that hangs is done without after a while, and none is left."""
        names = self.fill()
        self.volume._toolkit = rapidfile.Toolkit(
            reactor, self.volume.versions, environ=self.volume._environ, silence=0.5
        )
        self.behave(complete=2, hangs=True, child=True)
        self.assertEqual(await self.names(), names)
        self.assertEqual(await self.volume.used_bytes(bare_id(1)), 3)
        await self.gone()

    async def test_too_slow(self) -> None:
        """A count that takes longer than a manager waits is given up."""
        self.patch(trees.time, "monotonic", iter(range(0, 10**6, 2)).__next__)
        self.fill()
        self.behave(complete=0, hangs=True)
        with self.assertRaises(TooSlow):
            await deferToThread(self._count, 3.0)
        await self.gone()

    def _count(self, limit: float) -> Usage:
        with self.volume.open_folder(bare_id(1)) as folder:
            return self.volume._measure(folder, limit=limit)

    async def test_cancelled(self) -> None:
        """A count that nobody waits for any more leaves no process."""
        self.fill()
        self.behave(complete=1, hangs=True)
        counting = Deferred.fromCoroutine(self.volume.used_bytes(bare_id(1)))
        while not running(self.bin):
            await deferToThread(os.sched_yield)
        counting.addErrback(lambda failure: None)
        counting.cancel()
        await counting
        await self.gone()

    async def test_fails_later(self) -> None:
        """A listing of which some was told does not begin anew; the failure names the volume."""
        self.behave(synthetic=5000, complete=4000, complaint="RPC: Timed out")
        taken: list[str] = []

        def scan(folder: Any) -> None:
            for name, _ in self.volume.scan(folder, 0):
                taken.append(name)

        with self.assertRaises(BackendFailure) as caught:
            await self.volume.within(bare_id(1), scan)
        self.assertIn("volume test: pls: RPC: Timed out", str(caught.exception))
        self.assertEqual(len(taken), 4000)

    async def test_listing_is_closed(self) -> None:
        """A listing that is given up half-way leaves no process."""
        self.behave(synthetic=10**9)

        def scan(folder: Any) -> None:
            found = self.volume.scan(folder, 0)
            next(found)
            found.close()

        await self.volume.within(bare_id(1), scan)
        await self.gone()

    async def test_swapped(self) -> None:
        """Nothing outside is counted or removed by way of a link that has just come."""
        outside = Path(self.path, "outside")
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        (self.folder / "sub").symlink_to(outside)
        self.behave(swapped="sub")
        expected = Usage(1, len(str(outside)))
        self.assertEqual(await self.volume.usage(bare_id(1)), expected)
        await self.volume.delete_folder(bare_id(1))
        await self.volume.empty_trash()
        self.assertEqual(os.listdir(os.path.join(self.path, TRASH)), [])
        self.assertEqual(os.listdir(outside), ["secret"])
        self.assertEqual(len(self.warnings()), 2)

    async def test_closed_directory(self) -> None:
        """A directory that its owner has closed is removed all the same."""
        closed = self.folder / "closed"
        closed.mkdir()
        (closed / "file").touch()
        closed.chmod(0)
        await self.volume.delete_folder(bare_id(1))
        await self.volume.empty_trash()
        self.assertEqual(os.listdir(os.path.join(self.path, TRASH)), [])
