"""
What is taken away because nobody will come back for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from backends.vfs import TRASH, VFSVolume
from storageproxy.errors import BackendFailure, VolumeUnavailable
from storageproxy.interfaces import IMaintained
from storageproxy.testing import (
    SynchronousThreads,
    ThreadedClock,
    bare_id,
    result_of,
    scoped_id,
)
from storageproxy.threads import Abandoned, Progress
from storageproxy.transfer import janitor, staging
from storageproxy.transfer.janitor import Janitor
from storageproxy.vfolder import UPLOADS, VFolderID
from storageproxy.volumes import Volumes
from tests.test_beneath import descriptors

NOW = 1_000_000.0
LIFETIME = 3600.0
DAY = 86400.0
#: What is told of a volume that cannot be maintained.
MAINTENANCE_FAILED = ("other", "mount it with pquota")


class JanitorTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.volume = self.new_volume("one")
        for vfid in (bare_id(1), bare_id(2), scoped_id(1)):
            result_of(self.volume.create_folder(vfid, None, None))
        before = descriptors()
        self.addCleanup(lambda: self.assertEqual(descriptors(), before))

    def new_volume(self, name: str) -> VFSVolume:
        path = os.path.realpath(self.mktemp())
        os.makedirs(path)
        return VFSVolume(name, path, "", SynchronousThreads())

    def place(self, vfid: VFolderID, *names: str) -> str:
        return os.path.join(self.volume.path, *vfid.layout, *names)

    def upload(self, vfid: VFolderID, name: str, age: float) -> str:
        path = self.place(vfid, UPLOADS, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"bytes")
        os.utime(path, (NOW - age, NOW - age))
        return path


class SweepTests(JanitorTestCase):
    def sweep(self) -> int:
        return janitor.sweep(self.volume.open_root, NOW - LIFETIME, Progress())

    def test_stale(self) -> None:
        """Stale sessions are removed from all folders, in both layouts; young ones stay."""
        stale = [self.upload(vfid, "a" * 32, 2 * LIFETIME) for vfid in (bare_id(1), scoped_id(1))]
        young = [self.upload(vfid, "b" * 32, 60) for vfid in (bare_id(2), scoped_id(1))]
        self.assertEqual(self.sweep(), 2)
        self.assertEqual([path for path in stale if os.path.exists(path)], [])
        self.assertEqual([path for path in young if not os.path.exists(path)], [])
        self.assertFalse(os.path.exists(self.place(bare_id(1), UPLOADS)))

    def test_other_files(self) -> None:
        """The files of the owner stay, however old they are and whatever their names."""
        for names in (("old",), ("sub", UPLOADS, "old")):
            path = self.place(bare_id(1), *names)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb"):
                pass
            os.utime(path, (1, 1))
        self.sweep()
        self.assertTrue(os.path.exists(self.place(bare_id(1), "old")))
        self.assertTrue(os.path.exists(self.place(bare_id(1), "sub", UPLOADS, "old")))

    def test_planted(self) -> None:
        """A link in the place of the sessions is left alone, and nothing is removed behind it."""
        outside = os.path.abspath(self.mktemp())
        os.makedirs(outside)
        with open(os.path.join(outside, "a" * 32), "wb"):
            pass
        os.utime(os.path.join(outside, "a" * 32), (1, 1))
        os.symlink(outside, self.place(bare_id(1), UPLOADS))
        os.symlink(self.place(bare_id(2)), self.place(scoped_id(1), UPLOADS))
        precious = self.place(bare_id(2), "precious")
        with open(precious, "wb"):
            pass
        os.utime(precious, (1, 1))
        stale = self.upload(bare_id(2), "a" * 32, 2 * LIFETIME)
        self.sweep()
        self.assertEqual(os.listdir(outside), ["a" * 32])
        self.assertTrue(os.path.exists(precious))
        self.assertEqual(os.readlink(self.place(bare_id(1), UPLOADS)), outside)
        self.assertFalse(os.path.exists(stale))

    def test_not_a_folder(self) -> None:
        """What does not have the name of a vfolder is none, and is not touched."""
        kept = []
        for place in ("lost+found", "ab/cd/other", "ab/xyz/" + "0" * 28, "AB/cd/" + "0" * 28):
            path = os.path.join(self.volume.path, place, UPLOADS, "a" * 32)
            os.makedirs(os.path.dirname(path))
            with open(path, "wb"):
                pass
            os.utime(path, (1, 1))
            kept.append(path)
        self.sweep()
        self.assertEqual([path for path in kept if not os.path.exists(path)], [])

    def test_files_in_the_way(self) -> None:
        """Files with the names of prefixes and folders do not end the round."""
        for place in ("ff", "ab/ff", "ab/cd/" + "f" * 28, "f" * 32):
            with open(os.path.join(self.volume.path, place), "wb"):
                pass
        os.symlink(self.volume.path, os.path.join(self.volume.path, "fe"))
        stale = self.upload(bare_id(1), "a" * 32, 2 * LIFETIME)
        self.sweep()
        self.assertFalse(os.path.exists(stale))

    def test_vanishing(self) -> None:
        """A folder that is deleted during the round is passed over."""
        stale = self.upload(scoped_id(1), "a" * 32, 2 * LIFETIME)
        sweep = staging.sweep
        deleted: list[bool] = []

        def delete(folder: Any, *args: Any) -> int:
            for vfid in (bare_id(1), bare_id(2)):
                deleted.append(result_of(self.volume.delete_folder(vfid)))
            return sweep(folder, *args)

        self.patch(staging, "sweep", delete)
        self.sweep()
        self.assertFalse(os.path.exists(stale))

    def test_empty_prefixes(self) -> None:
        """Directories above vfolders that somebody left empty go, one level in each round."""
        left = [
            os.path.join(self.volume.path, *above, *names)
            for above in ((), scoped_id(1).layout[:1])
            for names in (("ff",), ("ff", "00"), (bare_id(1).layout[0], "00"))
        ]
        for path in left:
            os.makedirs(path, exist_ok=True)
        others = [os.path.join(self.volume.path, name) for name in ("lost+found", "xy", "f" * 32)]
        for path in others:
            os.mkdir(path)
        self.sweep()
        self.sweep()
        self.assertEqual([path for path in left if os.path.exists(path)], [])
        for path in (*others, *(self.place(vfid) for vfid in (bare_id(1), scoped_id(1)))):
            self.assertTrue(os.path.isdir(path), path)

    def test_abandoned(self) -> None:
        """A round that was given up ends at the next folder, and leaves nothing open."""
        progress = Progress()
        progress.abandon()
        self.assertRaises(Abandoned, janitor.sweep, self.volume.open_root, 0, progress)

    def test_folders(self) -> None:
        """All folders of a volume are found, in both layouts, each once."""
        found = []
        with self.volume.open_root() as root:
            for folder in janitor.vfolders(root):
                with folder:
                    found.append(os.fstat(folder.descriptor).st_ino)
        expected = [
            os.stat(self.place(vfid)).st_ino for vfid in (bare_id(1), bare_id(2), scoped_id(1))
        ]
        self.assertEqual(sorted(found), sorted(expected))


class RoundTests(JanitorTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = ThreadedClock()
        self.other = self.new_volume("other")
        self.janitor = Janitor(
            Volumes({"other": self.other, "one": self.volume}),
            self.clock,
            LIFETIME,
            lambda: NOW + self.clock.seconds(),
        )

    def start(self) -> None:
        self.janitor.startService()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        if self.janitor.running:
            self.janitor.stopService()

    def test_start(self) -> None:
        """The first round is made when the daemon starts."""
        stale = self.upload(bare_id(1), "a" * 32, 2 * LIFETIME)
        self.start()
        self.assertFalse(os.path.exists(stale))

    def test_rounds(self) -> None:
        """Later rounds find what has become stale since, and not before."""
        path = self.upload(bare_id(1), "a" * 32, LIFETIME / 2)
        self.start()
        self.clock.advance(janitor.INTERVAL / 4)
        self.assertTrue(os.path.exists(path))
        self.clock.advance(janitor.INTERVAL)
        self.assertFalse(os.path.exists(path))

    def test_trash(self) -> None:
        """What deleted folders have left is removed."""
        result_of(self.volume.delete_folder(bare_id(1)))
        self.start()
        self.assertEqual(os.listdir(os.path.join(self.volume.path, TRASH)), [])

    def test_sick_volume(self) -> None:
        """A volume that fails is passed over, and tried again in the next round."""
        self.other.threads.stop()
        stale = self.upload(bare_id(1), "a" * 32, 2 * LIFETIME)
        self.start()
        self.assertFalse(os.path.exists(stale))
        stale = self.upload(bare_id(2), "a" * 32, 2 * LIFETIME)
        self.clock.advance(janitor.INTERVAL)
        self.assertFalse(os.path.exists(stale))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_unusable_volume(self) -> None:
        """What is wrong with a volume is told at the start, and nothing is tried on it."""
        told: list[Any] = []
        self.patch(self.janitor._log, "warn", lambda text, **values: told.append(values))

        async def check() -> None:
            raise BackendFailure("mount it with pquota")

        async def empty_trash() -> None:
            raise AssertionError("tried")

        self.volume.check = check  # type: ignore[method-assign]
        self.volume.empty_trash = empty_trash  # type: ignore[method-assign]
        self.start()
        self.assertEqual([one["error"] for one in told], ["mount it with pquota"])
        self.assertEqual([one["name"] for one in told], ["one"])

    def test_hanging_volume(self) -> None:
        """A volume that hangs holds no other one up, in this round and the next."""
        hanging: list[Deferred[None]] = []

        async def empty_trash() -> None:
            hanging.append(Deferred())
            await hanging[-1]

        self.other.empty_trash = empty_trash  # type: ignore[method-assign]
        self.start()
        for number in range(3):
            stale = self.upload(bare_id(1), "a" * 32, 2 * LIFETIME)
            self.clock.advance(janitor.INTERVAL)
            self.assertFalse(os.path.exists(stale), number)
        for deferred in hanging:
            deferred.errback(VolumeUnavailable())

    def test_trash_that_stays(self) -> None:
        """Sessions are swept also when the trash of their volume cannot be emptied."""

        async def empty_trash() -> None:
            raise PermissionError(1, os.strerror(1))

        self.volume.empty_trash = empty_trash  # type: ignore[method-assign]
        stale = self.upload(bare_id(1), "a" * 32, 2 * LIFETIME)
        self.start()
        self.assertFalse(os.path.exists(stale))

    def maintained(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have one of the volumes maintained each day."""
        directlyProvides(self.other, IMaintained)
        self.other.maintenance_interval = DAY  # type: ignore[attr-defined]
        self.other.maintain = work  # type: ignore[attr-defined]

    def test_maintained(self) -> None:
        """A volume that needs it is maintained at the start, and as often as it says."""
        rounds: list[float] = []

        async def maintain() -> None:
            rounds.append(self.clock.seconds())

        self.maintained(maintain)
        self.start()
        self.clock.pump([DAY - 1, 1, DAY])
        self.assertEqual(rounds, [0, DAY, 2 * DAY])

    def test_never_maintained(self) -> None:
        """One that says never is not."""

        async def maintain() -> None:
            raise AssertionError("maintained")

        self.maintained(maintain)
        self.other.maintenance_interval = 0  # type: ignore[attr-defined]
        self.start()
        self.clock.advance(DAY)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_maintenance_fails(self) -> None:
        """A failure is one line in the log, and the next round is made all the same."""
        told: list[Any] = []
        self.patch(self.janitor._log, "warn", lambda text, **values: told.append(values))

        async def maintain() -> None:
            raise BackendFailure("mount it with pquota")

        self.maintained(maintain)
        self.start()
        self.assertEqual([(one["name"], one["error"]) for one in told], [MAINTENANCE_FAILED])
        self.clock.advance(DAY)
        self.assertEqual([(one["name"], one["error"]) for one in told], [MAINTENANCE_FAILED] * 2)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_long_maintenance(self) -> None:
        """One that takes long holds nothing up, and ends with the daemon, without a word."""
        told: list[Any] = []
        self.patch(self.janitor._log, "warn", lambda text, **values: told.append(values))
        cancelled: list[bool] = []

        async def maintain() -> None:
            await Deferred(lambda _: cancelled.append(True))

        self.maintained(maintain)
        self.start()
        stale = self.upload(bare_id(1), "a" * 32, 2 * LIFETIME)
        self.clock.advance(janitor.INTERVAL)
        self.assertFalse(os.path.exists(stale))
        self.assertEqual(cancelled, [])
        self.janitor.stopService()
        self.assertEqual((cancelled, told), ([True], []))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """No round is made when the daemon has stopped, and no timer is left."""
        self.start()
        self.janitor.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
