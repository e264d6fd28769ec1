"""
Whole trees, which somebody may change meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from storageproxy import beneath, trees
from storageproxy.beneath import Directory
from storageproxy.threads import Abandoned, Progress
from tests.test_beneath import descriptors

#: Deeper than the longest path that Linux takes (4,096 bytes) with names of one letter.
DEEP = 3000


class Interrupting(Progress):
    """
    Progress that does something to the tree at a chosen step.
    """

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        super().__init__()
        self.at = at
        self.action = action

    def step(self, entries: int = 1, size: int = 0) -> None:
        super().step(entries, size)
        if self.steps == self.at:
            self.action()


class TreesTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        os.makedirs(self.path)
        self.addCleanup(subprocess.run, ["rm", "-rf", "--", self.path], check=True)
        self.outside = os.path.abspath(self.mktemp())
        os.makedirs(self.outside)
        self.write(os.path.join(self.outside, "secret"), b"secret")
        self.parent = Directory.open_root(self.path)
        self.addCleanup(self.parent.close)
        os.makedirs(self.at("top"))
        before = descriptors()
        self.addCleanup(lambda: self.assertEqual(descriptors(), before))

    def at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def write(self, path: str, content: bytes = b"x") -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)

    def deep(self, name: str, file: bool = True) -> None:
        """Make a tree that is deeper than any path is long."""
        current = os.open(self.path, os.O_RDONLY)
        for part in [name] + ["dd"] * DEEP:
            try:
                os.mkdir(part, dir_fd=current)
            except FileExistsError:
                pass
            below = os.open(part, os.O_RDONLY, dir_fd=current)
            os.close(current)
            current = below
        if file:
            os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=current))
        os.close(current)

    def assertOutsideUntouched(self) -> None:
        self.assertEqual(os.listdir(self.outside), ["secret"])

    def swap(self, name: str) -> None:
        """Put a link out in the place of a directory."""
        os.rename(self.at(name), self.at("swapped"))
        os.symlink(self.outside, self.at(name))


def visited_all(top: Directory) -> list[tuple[str, Directory, list[os.DirEntry[str]]]]:
    """A walk to its end."""
    return [
        (path, opened, list(chain.from_iterable(batches)))
        for path, opened, batches in trees.walk(top)
    ]


class WalkTests(TreesTestCase):
    def paths(self, walk: Iterator[Any]) -> list[str]:
        return [
            os.path.join(path, entry.name)
            for path, _, batches in walk
            for entry in chain.from_iterable(batches)
        ]

    def enter(self, walk: Iterator[Any]) -> None:
        """Take the first directory with its entries, so that what is in it comes next."""
        _, _, batches = next(walk)
        self.assertTrue(list(batches))

    def test_walk(self) -> None:
        """All directories are visited, each before those in it."""
        for name in ("a/b/c/file", "a/file", "file"):
            self.write(self.at("top", name))
        with self.parent.descend("top") as top:
            visited = [path for path, _, _ in visited_all(top)]
            self.assertEqual(visited, ["", "a", "a/b", "a/b/c"])
            self.assertEqual(
                sorted(self.paths(trees.walk(top))),
                ["a", "a/b", "a/b/c", "a/b/c/file", "a/file", "file"],
            )

    def test_batches(self) -> None:
        """However many entries a directory has, they come once each."""
        for count in (trees.BATCH - 1, trees.BATCH, trees.BATCH + 1, 3 * trees.BATCH):
            for number in range(count):
                self.write(self.at("top", str(count), str(number)))
            with self.parent.descend(f"top/{count}") as top:
                [(_, _, entries)] = visited_all(top)
                self.assertEqual(len(entries), count)
                self.assertEqual({entry.name for entry in entries}, set(map(str, range(count))))
                self.assertEqual(trees.usage(top), trees.Usage(count, count))

    def test_skip(self) -> None:
        """A name is passed over at the top only."""
        self.write(self.at("top", "skipped", "file"))
        self.write(self.at("top", "a", "skipped"))
        with self.parent.descend("top") as top:
            self.assertEqual(sorted(self.paths(trees.walk(top, "skipped"))), ["a", "a/skipped"])

    def test_links(self) -> None:
        """Links are told as links, and are not followed."""
        os.symlink(self.outside, self.at("top", "link"))
        with self.parent.descend("top") as top:
            for _, _, batches in trees.walk(top):
                for entry in chain.from_iterable(batches):
                    self.assertTrue(entry.is_symlink())
                    status = trees.lstat(entry)
                    assert status is not None
                    self.assertTrue(stat.S_ISLNK(status.st_mode))
            self.assertEqual(self.paths(trees.walk(top)), ["link"])

    def test_odd_names(self) -> None:
        """Names with line breaks and bytes that are no UTF-8 are told as they are."""
        for raw in (b"\xff", b"a\nb", b" "):
            self.write(self.at("top", os.fsdecode(raw), "file"))
        with self.parent.descend("top") as top:
            self.assertEqual(
                sorted(path for path, _, _ in visited_all(top)),
                sorted(["", os.fsdecode(b"\xff"), "a\nb", " "]),
            )

    def test_vanished_directory(self) -> None:
        """A directory that goes away before it is visited is passed over."""
        self.write(self.at("top", "a", "file"))
        with self.parent.descend("top") as top:
            walk = trees.walk(top)
            self.enter(walk)
            os.rename(self.at("top", "a"), self.at("gone"))
            self.assertEqual(list(walk), [])

    def test_vanished_entry(self) -> None:
        """A file that goes away while its directory is read is passed over."""
        for name in ("a", "b"):
            self.write(self.at("top", name))
        scandir = os.scandir

        class Vanishing:
            def __init__(self, found: Any) -> None:
                self.found = found

            def __enter__(self) -> Any:
                self.found.__enter__()
                return self.entries()

            def __exit__(self, *args: Any) -> None:
                self.found.__exit__(*args)

            def entries(this) -> Iterator[Any]:  # noqa: N805
                for entry in this.found:
                    if entry.name == "a":
                        os.unlink(self.at("top", "a"))
                    yield entry

        with self.parent.descend("top") as top:
            self.patch(os, "scandir", lambda path: Vanishing(scandir(path)))
            self.assertEqual(trees.usage(top), trees.Usage(1, 1))

    def test_unknown_type(self) -> None:
        """What a file system tells only to those who may look is passed over if they may not."""
        self.write(self.at("top", "file"))
        scandir = os.scandir

        class Closed:
            name = "closed"

            def is_dir(self, *, follow_symlinks: bool) -> bool:
                raise PermissionError(errno.EACCES, "closed")

            stat = is_dir

        @contextmanager
        def scan(path: int) -> Iterator[Iterator[Any]]:
            with scandir(path) as found:
                yield iter([Closed(), *found])

        with self.parent.descend("top") as top:
            self.patch(os, "scandir", scan)
            self.assertEqual(trees.usage(top), trees.Usage(1, 1))
            with closing(trees.walk(top)) as walk:  # type: ignore[type-var]
                self.assertRaises(PermissionError, self.enter, walk)

    def swapped(self) -> None:
        self.write(self.at("top", "a", "file"))
        with self.parent.descend("top") as top:
            walk = trees.walk(top)
            self.enter(walk)
            self.swap("top/a")
            self.assertEqual(list(walk), [])

    def test_swapped(self) -> None:
        """A directory that becomes a link before it is visited is passed over."""
        self.swapped()

    def test_swapped_without_openat2(self) -> None:
        """A directory that becomes a link is passed over on old kernels too."""
        self.patch(beneath, "open_beneath", beneath._walk)
        self.swapped()

    def test_became_a_file(self) -> None:
        """A directory that becomes a file before it is visited is passed over."""
        self.write(self.at("top", "a", "file"))
        with self.parent.descend("top") as top:
            walk = trees.walk(top)
            self.enter(walk)
            os.rename(self.at("top", "a"), self.at("gone"))
            self.write(self.at("top", "a"))
            self.assertEqual(list(walk), [])

    def test_left_early(self) -> None:
        """Whoever stops half-way leaves nothing open."""
        self.write(self.at("top", "a", "file"))
        with self.parent.descend("top") as top:
            walk = trees.walk(top)
            next(walk)
            walk.close()  # type: ignore[attr-defined]


class UsageTests(TreesTestCase):
    def usage(self, *args: Any, **kwargs: Any) -> trees.Usage:
        with self.parent.descend("top") as top:
            return trees.usage(top, *args, **kwargs)

    def test_empty(self) -> None:
        """There is nothing in an empty directory."""
        self.assertEqual(self.usage(), trees.Usage(0, 0))

    def test_usage(self) -> None:
        """Files and links count with their apparent size; directories and FIFOs do not."""
        self.write(self.at("top", "a", "b", "file"), b"12345")
        self.write(self.at("top", "sparse"))
        os.truncate(self.at("top", "sparse"), 1 << 30)
        os.symlink("1234567", self.at("top", "link"))
        os.mkfifo(self.at("top", "fifo"))
        self.assertEqual(self.usage(), trees.Usage(3, 5 + (1 << 30) + 7))

    def test_links_out(self) -> None:
        """What a link leads to does not count."""
        os.symlink(self.outside, self.at("top", "l"))
        self.assertEqual(self.usage(), trees.Usage(1, len(self.outside)))

    def test_limit(self) -> None:
        """Counting is given up when the time is over."""
        for number in range(10):
            self.write(self.at("top", str(number), "file"))
        now = iter(range(100))
        self.assertRaises(trees.TooSlow, self.usage, trees.unwatched, 3.0, lambda: float(next(now)))

    def test_limit_kept(self) -> None:
        """Counting that is done in time tells its result."""
        for number in range(10):
            self.write(self.at("top", str(number), "file"))
        now = iter(range(1000))
        found = self.usage(trees.unwatched, 500.0, lambda: float(next(now)))
        self.assertEqual(found, trees.Usage(10, 10))

    def test_abandoned(self) -> None:
        """Counting ends when nobody waits for it."""
        progress = Progress()
        progress.abandon()
        self.assertRaises(Abandoned, self.usage, progress.step)

    def test_deep(self) -> None:
        """A tree that is deeper than any path is long can be counted."""
        self.deep("top")
        self.assertEqual(self.usage(), trees.Usage(1, 0))
