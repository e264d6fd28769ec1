"""
Whole trees, which somebody may change meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
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

    def step(self) -> None:
        super().step()
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


def visited_all(top: Directory) -> list[tuple[str, Directory, list[trees.Entry]]]:
    """A walk to its end."""
    return [(path, opened, list(entries)) for path, opened, entries in trees.walk(top)]


class WalkTests(TreesTestCase):
    def paths(self, walk: Iterator[Any]) -> list[str]:
        return [entry.path for _, _, entries in walk for entry in entries]

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
            [(_, _, [entry])] = visited_all(top)
            self.assertTrue(stat.S_ISLNK(entry.status.st_mode))

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
            next(walk)
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
            self.assertEqual(self.paths(trees.walk(top)), ["b"])

    def swapped(self) -> None:
        self.write(self.at("top", "a", "file"))
        with self.parent.descend("top") as top:
            walk = trees.walk(top)
            next(walk)
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
            next(walk)
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
        self.assertRaises(trees.TooSlow, self.usage, None, 3.0, lambda: float(next(now)))

    def test_limit_kept(self) -> None:
        """Counting that is done in time tells its result."""
        for number in range(10):
            self.write(self.at("top", str(number), "file"))
        now = iter(range(1000))
        found = self.usage(None, 500.0, lambda: float(next(now)))
        self.assertEqual(found, trees.Usage(10, 10))

    def test_abandoned(self) -> None:
        """Counting ends when nobody waits for it."""
        progress = Progress()
        progress.abandon()
        self.assertRaises(Abandoned, self.usage, progress)

    def test_deep(self) -> None:
        """A tree that is deeper than any path is long can be counted."""
        self.deep("top")
        self.assertEqual(self.usage(), trees.Usage(1, 0))


class _Remove:
    def test_remove(self: Any) -> None:
        """A directory is removed with all that is in it, and nothing else."""
        for name in ("a/b/c/file", "a/file", "file"):
            self.write(self.at("top", name))
        os.mkfifo(self.at("top", "a", "fifo"))
        os.symlink("nowhere", self.at("top", "a", "link"))
        self.write(self.at("other"))
        trees.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), ["other"])

    def test_odd_names(self: Any) -> None:
        """Names of any bytes and of the greatest length are no obstacle."""
        for raw in (b"\xff\xfe", b"a\nb", "ä".encode() * 127, b"n" * 255, b"-rf", b" "):
            self.write(os.path.join(self.at("top"), os.fsdecode(raw), os.fsdecode(raw), "file"))
        trees.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])

    def test_links(self: Any) -> None:
        """Links are removed; what they lead to stays."""
        os.makedirs(self.at("top", "a"))
        os.symlink(self.outside, self.at("top", "out"))
        os.symlink(self.outside, self.at("top", "a", "out"))
        os.symlink(os.path.join(self.outside, "secret"), self.at("top", "a", "file"))
        trees.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])
        self.assertOutsideUntouched()

    def test_link_itself(self: Any) -> None:
        """A link in the place of the directory is not followed."""
        os.symlink(self.outside, self.at("link"))
        with self.assertRaises(Exception):  # noqa: B017
            trees.remove(self.parent, "link")
        self.assertOutsideUntouched()

    def test_missing(self: Any) -> None:
        """What is not there is not found."""
        self.assertRaises(FileNotFoundError, trees.remove, self.parent, "none")

    def test_deep(self: Any) -> None:
        """A tree that is deeper than any path is long is removed."""
        self.deep("top")
        trees.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])

    def test_wide(self: Any) -> None:
        """A directory with many others in it is removed."""
        for number in range(300):
            self.write(self.at("top", str(number), str(number), "file"))
        trees.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])

    def test_steps(self: Any) -> None:
        """The removal shows progress, and ends when nobody wants it any more."""
        for number in range(20):
            self.write(self.at("top", str(number), "a", "file"))
        progress = Progress()
        trees.remove(self.parent, "top", progress.step)
        self.assertGreater(progress.steps, 20)
        self.write(self.at("top", "a", "file"))
        progress.abandon()
        self.assertRaises(Abandoned, trees.remove, self.parent, "top", progress.step)

    def test_files_meanwhile(self: Any) -> None:
        """What is put into the tree while it is removed is removed too."""
        for number in range(5):
            self.write(self.at("top", f"d{number}", "sub", "file"))
        made: list[str] = []

        def step() -> None:
            if len(made) < 10:
                for directory, _, _ in os.walk(self.at("top")):
                    made.append(directory)
                    self.write(os.path.join(directory, f"new{len(made)}", "file"))

        trees.remove(self.parent, "top", step)
        self.assertGreaterEqual(len(made), 10)
        self.assertEqual(os.listdir(self.path), [])

    def test_file_at_the_last_moment(self: Any) -> None:
        """What comes at the very last moment is removed too, or the removal says that it stays."""
        self.write(self.at("top", "a", "file"))
        rmdir = os.rmdir
        made: list[str] = []

        def late(name: str, *, dir_fd: int | None = None) -> None:
            if name not in made:
                made.append(name)
                os.close(os.open(f"{name}/late", os.O_WRONLY | os.O_CREAT, dir_fd=dir_fd))
            rmdir(name, dir_fd=dir_fd)

        self.patch(os, "rmdir", late)
        try:
            trees.remove(self.parent, "top")
        except OSError as error:
            self.assertEqual(error.errno, errno.ENOTEMPTY)
            trees.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])

    def test_swapped_inside(self: Any) -> None:
        """A directory that becomes a link while the tree is removed is removed as a link."""
        for at in range(1, 8):
            self.write(self.at("top", "a", "b", "file"))
            progress = Interrupting(at, lambda: self.try_swap("top/a"))
            trees.remove(self.parent, "top", progress.step)
            self.assertFalse(os.path.lexists(self.at("top")))
            self.assertOutsideUntouched()
            subprocess.run(["rm", "-rf", "--", self.at("swapped")], check=True)

    def try_swap(self: Any, name: str) -> None:
        try:
            self.swap(name)
        except FileNotFoundError:
            pass

    def empty(self: Any) -> None:
        for directory, directories, names in os.walk(self.at("top"), topdown=False):
            for name in names:
                os.unlink(os.path.join(directory, name))
            for name in directories:
                os.rmdir(os.path.join(directory, name))

    def test_emptied_meanwhile(self: Any) -> None:
        """Somebody else may remove the same tree."""
        for at in range(1, 8):
            self.write(self.at("top", "a", "b", "file"))
            progress = Interrupting(at, self.empty)
            trees.remove(self.parent, "top", progress.step)
            self.assertEqual(os.listdir(self.path), [])


class RemoveTests(_Remove, TreesTestCase):
    pass


class RemoveWithoutOpenat2Tests(_Remove, TreesTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(beneath, "open_beneath", beneath._walk)


class CopyTests(TreesTestCase):
    def setUp(self) -> None:
        super().setUp()
        os.makedirs(self.at("copy"))

    def copy(self, progress: Progress | None = None, skip: str | None = None) -> None:
        with self.parent.descend("top") as source, self.parent.descend("copy") as target:
            trees.copy(source, target, progress or Progress(), skip)

    def read(self, *names: str) -> bytes:
        with open(self.at(*names), "rb") as file:
            return file.read()

    def test_copy(self) -> None:
        """Files, directories and links are copied with permissions and times."""
        self.write(self.at("top", "a", "b", "file"), b"content")
        os.makedirs(self.at("top", "a", "empty"))
        os.symlink("b/file", self.at("top", "a", "link"))
        os.chmod(self.at("top", "a", "b", "file"), 0o640)
        os.chmod(self.at("top", "a", "b"), 0o500)
        names = ("a/b/file", "a/empty", "a/link", "a/b", "a")
        for number, name in enumerate(names):
            times = (10**18 + number, 10**18 + 7 * number)
            os.utime(self.at("top", name), ns=times, follow_symlinks=False)
        self.copy()
        self.assertEqual(self.read("copy", "a", "b", "file"), b"content")
        self.assertEqual(os.readlink(self.at("copy", "a", "link")), "b/file")
        for name in names:
            before, after = (os.lstat(self.at(where, name)) for where in ("top", "copy"))
            self.assertEqual(oct(before.st_mode), oct(after.st_mode), name)
            self.assertEqual(before.st_mtime_ns, after.st_mtime_ns, name)

    def test_special_bits(self) -> None:
        """A copy runs as nobody but who starts it."""
        self.write(self.at("top", "file"))
        os.chmod(self.at("top", "file"), 0o6755)
        self.copy()
        self.assertEqual(stat.S_IMODE(os.stat(self.at("copy", "file")).st_mode), 0o755)

    def test_left_out(self) -> None:
        """Sockets, FIFOs and devices are left out."""
        os.mkfifo(self.at("top", "fifo"))
        self.copy()
        self.assertEqual(os.listdir(self.at("copy")), [])

    def test_skip(self) -> None:
        """A name at the top can be left out."""
        self.write(self.at("top", "a", ".upload", "file"))
        self.write(self.at("top", ".upload", "file"))
        self.copy(skip=".upload")
        self.assertEqual(os.listdir(self.at("copy")), ["a"])
        self.assertEqual(os.listdir(self.at("copy", "a")), [".upload"])

    def test_large(self) -> None:
        """A file that is copied in several steps is whole, and each step shows progress."""
        self.patch(trees, "COPY_STEP", 1000)
        content = bytes(range(256)) * 40
        self.write(self.at("top", "file"), content)
        progress = Progress()
        self.copy(progress)
        self.assertEqual(self.read("copy", "file"), content)
        self.assertGreater(progress.steps, 10)

    def test_without_copy_in_kernel(self) -> None:
        """Where the kernel cannot copy between two file systems, the daemon does."""
        for number in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):

            def fail(*args: object, number: int = number) -> int:
                raise OSError(number, os.strerror(number))

            self.patch(os, "copy_file_range", fail)
            self.patch(trees, "COPY_STEP", 1000)
            self.write(self.at("top", "file"), bytes(range(256)) * 40)
            self.copy()
            self.assertEqual(self.read("copy", "file"), bytes(range(256)) * 40)

    def test_disk_full(self) -> None:
        """A copy that fails says why, and leaves nothing open."""

        def fail(*args: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(os, "copy_file_range", fail)
        self.write(self.at("top", "a", "file"))
        with self.assertRaises(OSError) as caught:
            self.copy()
        self.assertEqual(caught.exception.errno, errno.ENOSPC)

    def test_abandoned(self) -> None:
        """A copy ends when nobody wants it any more."""
        progress = Progress()
        progress.abandon()
        self.write(self.at("top", "file"))
        self.assertRaises(Abandoned, self.copy, progress)
        self.assertEqual(os.listdir(self.at("copy")), [])

    def test_into_existing(self) -> None:
        """What the target has stays, but for files of the same names, links among them."""
        self.write(self.at("top", "a", "same"), b"new")
        self.write(self.at("top", "a", "link"), b"new")
        self.write(self.at("copy", "a", "same"), b"old and longer")
        self.write(self.at("copy", "a", "kept"), b"kept")
        os.symlink(os.path.join(self.outside, "secret"), self.at("copy", "a", "link"))
        self.copy()
        self.assertEqual(self.read("copy", "a", "same"), b"new")
        self.assertEqual(self.read("copy", "a", "kept"), b"kept")
        self.assertEqual(self.read("copy", "a", "link"), b"new")
        self.assertEqual(self.read(os.path.join(self.outside, "secret")), b"secret")

    def test_target_is_a_link(self) -> None:
        """A link in the target is not followed where a directory is to be copied."""
        self.write(self.at("top", "a", "secret"), b"new")
        os.symlink(self.outside, self.at("copy", "a"))
        try:
            self.copy()
        except Exception:
            pass
        self.assertEqual(self.read(os.path.join(self.outside, "secret")), b"secret")
        self.assertOutsideUntouched()

    def changed(self, change: Callable[[], object], *kept: str) -> None:
        """Copy with a change at each step; what did not change is copied."""
        for at in range(1, 12):
            subprocess.run(
                ["rm", "-rf", "--", *(self.at(name) for name in ("top", "copy", "swapped"))],
                check=True,
            )
            self.write(self.at("top", "a", "file"), b"content")
            self.write(self.at("top", "b", "file"), b"content")
            os.symlink("file", self.at("top", "a", "link"))
            os.makedirs(self.at("copy"))

            def once() -> None:
                try:
                    change()
                except FileNotFoundError:
                    pass

            self.copy(Interrupting(at, once))
            for name in kept:
                self.assertEqual(self.read("copy", name), b"content", at)
            for directory, _, names in os.walk(self.at("copy")):
                for name in names:
                    if not os.path.islink(os.path.join(directory, name)):
                        self.assertNotEqual(self.read(directory, name), b"secret", at)

    def test_vanishing(self) -> None:
        """What vanishes while the tree is copied is passed over."""
        self.changed(lambda: os.unlink(self.at("top", "a", "file")), "b/file")
        self.changed(lambda: os.unlink(self.at("top", "a", "link")), "b/file", "a/file")
        self.changed(lambda: os.rename(self.at("top", "a"), self.at("swapped")), "b/file")

    def test_swapped_directory(self) -> None:
        """A directory that becomes a link out while the tree is copied is passed over."""
        self.changed(lambda: self.swap("top/a"), "b/file")

    def test_swapped_file(self) -> None:
        """A file that becomes a link out while the tree is copied is passed over."""

        def swap() -> None:
            os.unlink(self.at("top", "a", "file"))
            os.symlink(os.path.join(self.outside, "secret"), self.at("top", "a", "file"))

        self.changed(swap, "b/file")

    def test_file_becomes_fifo(self) -> None:
        """A file that becomes a FIFO while the tree is copied is passed over."""

        def swap() -> None:
            os.unlink(self.at("top", "a", "file"))
            os.mkfifo(self.at("top", "a", "file"))

        self.changed(swap, "b/file")

    def test_link_becomes_file(self) -> None:
        """A link that becomes a file while the tree is copied is copied or passed over."""

        def swap() -> None:
            os.unlink(self.at("top", "a", "link"))
            self.write(self.at("top", "a", "link"), b"content")

        self.changed(swap, "b/file")
