"""
A directory is given to a project with all that is in it, on a kernel in memory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from backends.xfs import seizure
from backends.xfs.interfaces import Mark
from backends.xfs.seizure import Seizure, seize
from backends.xfs.testing import MemoryKernel
from storageproxy.beneath import Directory
from storageproxy.errors import InvalidSubpath
from storageproxy.removal import remove
from storageproxy.threads import Abandoned, Progress


class SeizureTests(SynchronousTestCase):
    def setUp(self) -> None:
        above = Path(self.mktemp()).absolute()
        above.mkdir(parents=True)
        self.above = os.path.realpath(above)
        self.kernel = MemoryKernel(self.above)
        self.top = self.kernel.make(os.path.join(self.above, "top"))
        descriptors = os.listdir("/proc/self/fd")
        self.addCleanup(lambda: self.assertEqual(os.listdir("/proc/self/fd"), descriptors))

    def make(self, *names: str, content: bytes | None = None) -> str:
        path = os.path.join(self.top, *names)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return self.kernel.make(path, content)

    def seize(self, project: int = 7, others: tuple[str, ...] = ()) -> Seizure:
        with Directory.open_root(self.top) as top:
            return seize(self.kernel, top, project, others)

    def assertSeized(self, *paths: str, project: int = 7) -> None:
        for path in paths:
            self.assertEqual(self.kernel.of(path), Mark(project, os.path.isdir(path)), path)

    def when_seen(self, path: str, deed: Callable[[], object]) -> None:
        """Do something as soon as a directory is given to a project."""
        mark = self.kernel.mark

        def watched(descriptor: int) -> Mark:
            if os.readlink(f"/proc/self/fd/{descriptor}") == path:
                deed()
            return mark(descriptor)

        self.patch(self.kernel, "mark", watched)

    def test_seize(self) -> None:
        """All is given to the project, and only once; links stay as they are."""
        below = self.make("a", "b")
        files = [self.make(*names, "file", content=b"") for names in ((), ("a",), ("a", "b"))]
        os.symlink("file", os.path.join(self.top, "link"))
        os.mkfifo(os.path.join(self.top, "fifo"))
        self.assertEqual(self.seize(), Seizure(7, entries=8, changed=6))
        self.assertSeized(self.top, below, os.path.dirname(below), *files)
        self.assertEqual(self.seize(), Seizure(7, entries=8, changed=0))

    def test_others(self) -> None:
        """What belongs to others stays as it is, be it a directory or a file."""
        theirs = [self.make("a", "b", "c"), self.make("a", "file", content=b"")]
        self.make("a", "b", "c", "file", content=b"")
        ours = [self.make("a", "b", "d"), self.make("c"), self.make("b", content=b"")]
        found = self.seize(others=("a/b/c", "a/file", "x", "c/b"))
        self.assertEqual(found, Seizure(7, entries=6, changed=6))
        self.assertSeized(*ours)
        for path in theirs:
            self.assertEqual(self.kernel.of(path), Mark(0, False))

    def test_deep(self) -> None:
        """Neither depth nor the length of a path is a limit."""
        volume = Directory.open_root(self.above)
        here = os.getcwd()
        # Trial cannot remove a path of this length.
        self.addCleanup(volume.close)
        self.addCleanup(remove, volume, "top")
        self.addCleanup(os.chdir, here)
        os.chdir(self.top)
        for _ in range(100):
            os.mkdir("d" * 250)
            Path("e" * 250).mkdir()
            os.chdir("d" * 250)
        self.assertEqual(self.seize(), Seizure(7, entries=201, changed=201))
        self.assertEqual(self.kernel.of("."), Mark(7, True))
        for name in ("../../" + "e" * 250, "../" + "e" * 250):
            self.assertEqual(self.kernel.of(name), Mark(7, True))

    def test_lease(self) -> None:
        """A file that somebody has a lease on is counted, and the others are given."""
        leased = self.make("a", "leased", content=b"")
        rest = [self.make("a", name, content=b"") for name in ("before", "later", "next")]
        self.kernel.put(leased, 0)
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGIO, before)
        with open(leased, "r+b") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            found = self.seize()
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        self.assertEqual(found, Seizure(7, 6, 5, Counter({errno.EAGAIN: 1})))
        self.assertSeized(self.top, *rest)
        self.assertEqual(self.seize().changed, 1)

    def refuse(self, error: Exception, *names: str) -> None:
        """Have something in the way of what has these names."""

        def wrap(real: Callable[..., object]) -> Callable[..., object]:
            def wrapped(directory: object, path: str, *args: object, **how: object) -> object:
                self.assertIs(how["links"], False)
                self.assertIs(how["mounts"], False)
                if path in names:
                    raise error
                return real(directory, path, *args, **how)

            return wrapped

        self.patch(Directory, "descend", wrap(Directory.descend))
        self.patch(Directory, "open_file", wrap(Directory.open_file))

    def test_missed(self) -> None:
        """Whatever is in the way of one is not in the way of the rest."""
        self.make("a", "b", "closed")
        self.make("a", "shut", content=b"")
        rest = [self.make("a", "c"), self.make("a", "b", "x", content=b""), self.make("d")]
        for number in (errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.EMFILE):
            self.refuse(OSError(number, "no"), "closed", "shut")
            self.assertEqual(self.seize(number).missed, {number: 2})
            self.assertSeized(*rest, project=number)

    def test_mounted(self) -> None:
        """What is mounted in it is left alone, and counted."""
        self.make("a", "closed", "below")
        self.make("shut", content=b"")
        self.refuse(InvalidSubpath(subpath="closed"), "closed", "shut")
        self.assertEqual(self.seize(), Seizure(7, 3, 2, Counter({errno.EXDEV: 2})))

    def test_not_changed(self) -> None:
        """So is what the kernel does not change."""
        self.make("a", "file", content=b"")

        def set_mark(descriptor: int, mark: Mark) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        self.patch(self.kernel, "set_mark", set_mark)
        self.assertEqual(self.seize(), Seizure(7, 3, 0, Counter({errno.EOPNOTSUPP: 3})))

    def test_cannot_be_listed(self) -> None:
        """A directory that does not tell what is in it is counted, and given to the project."""
        self.make("a", "b")
        scandir = os.scandir

        def refuse(descriptor: int) -> object:
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/a"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return scandir(descriptor)

        self.patch(os, "scandir", refuse)
        self.assertEqual(self.seize(), Seizure(7, 2, 2, Counter({errno.EIO: 1})))

    def test_moved(self) -> None:
        """The way back is found when a directory is moved while it is gone through."""
        self.make("a", "b", "c", "d")
        names = "0123456789"
        rest = [self.make("a", name, "x", "y") for name in names]
        moved = os.path.join(self.above, "moved")
        self.when_seen(
            os.path.join(self.top, "a", "b", "c", "d"),
            lambda: os.rename(os.path.join(self.top, "a", "b"), moved),
        )
        found = self.seize()
        self.assertEqual(found, Seizure(7, 35, 35))
        self.assertSeized(*rest, os.path.join(moved, "c", "d"))
        self.assertEqual(self.kernel.of(self.above), Mark(0, False))

    def test_led_on(self) -> None:
        """Who moves what was visited to where it is visited again is not followed for ever."""
        self.patch(seizure, "PATIENCE", 10)
        names = [str(number) for number in range(8)]
        bottoms = [os.stat(self.make(top, *names)).st_ino for top in "ab"]
        tops = [os.path.join(self.top, top) for top in "ab"]
        moves: list[int] = []
        real = os.scandir

        def scandir(place: int | str) -> object:
            inode = os.fstat(place).st_ino if isinstance(place, int) else 0
            if inode in bottoms and len(moves) < 100:
                # The other chain goes on where this one ends.
                this, other = bottoms.index(inode), 1 - bottoms.index(inode)
                moves.append(this)
                top = os.path.join(self.top, f"{len(moves)}")
                os.rename(tops[this], top)
                tops[this], below = top, os.path.join(top, *names, "below")
                os.rename(tops[other], below)
                tops[other] = below
            return real(place)

        self.patch(os, "scandir", scandir)
        self.assertGreater(self.seize().missed[errno.ENOENT], 0)
        self.assertLess(len(moves), 10)

    def test_lost(self) -> None:
        """What cannot be found again is counted, and nothing else is taken for it."""
        for name in "bcde":
            self.make("a", name, "x", "y")
        rest = self.make("z", "y", "x")
        lost: list[str] = []

        def swap() -> None:
            if not lost:
                lost.append("a")
                [inner] = [name for name in "bcde" if self.seen_in(name)]
                os.rename(os.path.join(self.top, "a", inner), os.path.join(self.above, "inner"))
                os.rename(os.path.join(self.top, "a"), os.path.join(self.above, "a"))
                os.mkdir(os.path.join(self.top, "a"))
                self.kernel.put(os.path.join(self.top, "a"), 0, inherited=False)

        for name in "bcde":
            self.when_seen(os.path.join(self.top, "a", name, "x", "y"), swap)
        self.assertEqual(self.seize().missed, {errno.ENOENT: 3})
        self.assertSeized(rest)
        self.assertEqual(self.kernel.of(os.path.join(self.top, "a")), Mark(0, False))

    def seen_in(self, name: str) -> bool:
        return self.kernel.of(os.path.join(self.top, "a", name)) == Mark(7, True)

    def test_vanished(self) -> None:
        """A directory that vanishes is counted, as it may be elsewhere; a file is not."""
        directory, file = self.make("a"), self.make("file", content=b"")

        def vanish() -> None:
            if os.path.exists(file):
                os.rmdir(directory)
                os.unlink(file)

        real = os.scandir

        def scandir(descriptor: int) -> object:
            found = list(real(descriptor))
            vanish()

            class Found:
                def __enter__(self) -> object:
                    return iter(found)

                def __exit__(self, *args: object) -> None:
                    pass

            return Found()

        self.patch(os, "scandir", scandir)
        self.assertEqual(self.seize(), Seizure(7, 2, 1, Counter({errno.ENOENT: 1})))

    def test_abandoned(self) -> None:
        """It ends when nobody waits for it any more."""
        self.make("a", "b")
        progress = Progress()
        progress.abandon()
        with Directory.open_root(self.top) as top:
            self.assertRaises(Abandoned, seize, self.kernel, top, 7, (), progress.step)
