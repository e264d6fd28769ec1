"""
Trees that are removed, while somebody may change them.
"""

from __future__ import annotations

import errno
import os
import subprocess
from typing import Any

from storageproxy import beneath, removal
from storageproxy.threads import Abandoned, Progress
from tests.test_trees import Interrupting, TreesTestCase


class _Remove:
    def test_remove(self: Any) -> None:
        """A directory is removed with all that is in it, and nothing else."""
        for name in ("a/b/c/file", "a/file", "file"):
            self.write(self.at("top", name))
        os.mkfifo(self.at("top", "a", "fifo"))
        os.symlink("nowhere", self.at("top", "a", "link"))
        self.write(self.at("other"))
        removal.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), ["other"])

    def test_odd_names(self: Any) -> None:
        """Names of any bytes and of the greatest length are no obstacle."""
        for raw in (b"\xff\xfe", b"a\nb", "ä".encode() * 127, b"n" * 255, b"-rf", b" "):
            self.write(os.path.join(self.at("top"), os.fsdecode(raw), os.fsdecode(raw), "file"))
        removal.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])

    def test_links(self: Any) -> None:
        """Links are removed; what they lead to stays."""
        os.makedirs(self.at("top", "a"))
        os.symlink(self.outside, self.at("top", "out"))
        os.symlink(self.outside, self.at("top", "a", "out"))
        os.symlink(os.path.join(self.outside, "secret"), self.at("top", "a", "file"))
        removal.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])
        self.assertOutsideUntouched()

    def test_projects(self: Any) -> None:
        """Directories of other projects, which cannot be moved at once, are removed too."""
        self.write(self.at("top", "a", "b", "c", "file"))
        move = removal._move
        handed_on = {"top"}

        def refuse(directory: beneath.Directory, name: str, top: beneath.Directory) -> None:
            if handed_on:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            move(directory, name, top)

        def stop(directory: beneath.Directory) -> None:
            place = os.readlink(f"/proc/self/fd/{directory.descriptor}")
            handed_on.remove(os.path.basename(place))

        self.patch(removal, "_move", refuse)
        self.patch(removal, "_stop_handing_on", stop)
        removal.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])

    def test_limits(self: Any) -> None:
        """Limits of directories on CephFS, which nothing is moved out of, are taken away."""
        self.write(self.at("top", "a", "b", "c", "file"))
        move = removal._move
        lifted: list[int] = []

        def refuse(directory: beneath.Directory, name: str, top: beneath.Directory) -> None:
            if os.fstat(directory.descriptor).st_ino not in lifted:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            move(directory, name, top)

        def not_here(directory: beneath.Directory) -> None:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

        def setxattr(descriptor: int, name: str, value: bytes) -> None:
            self.assertEqual((name, value), ("ceph.quota", b"max_bytes=0 max_files=0"))
            lifted.append(os.fstat(descriptor).st_ino)

        self.patch(removal, "_move", refuse)
        self.patch(removal, "_stop_handing_on", not_here)
        self.patch(os, "setxattr", setxattr)
        removal.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])
        self.assertTrue(lifted)

    def hold(self: Any, *held: str) -> set[str]:
        """Directories that cannot be removed although they are empty, as ones with snapshots."""
        names = set(held)
        rmdir = os.rmdir

        def refuse(name: str, *, dir_fd: int | None = None) -> None:
            if name in names:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            rmdir(name, dir_fd=dir_fd)

        self.patch(os, "rmdir", refuse)
        return names

    def test_released(self: Any) -> None:
        """What holds an empty directory can be taken away by who knows of it."""
        self.write(self.at("top", "a", "file"))
        self.write(self.at("top", "b", "file"))
        held = self.hold("top", "a")
        released: list[str] = []

        def release(directory: beneath.Directory) -> None:
            self.assertEqual(os.listdir(directory.descriptor), [])
            name = os.path.basename(os.readlink(f"/proc/self/fd/{directory.descriptor}"))
            released.append(name)
            held.remove(name)

        removal.remove(self.parent, "top", release=release)
        self.assertEqual(released, ["a", "top"])
        self.assertEqual(os.listdir(self.path), [])

    def test_held(self: Any) -> None:
        """It is not tried for ever to remove an empty directory that cannot be removed."""
        for held in ("top", "a"):
            self.write(self.at("top", "a", "file"))
            names = self.hold(held)
            progress = Progress()
            error = self.assertRaises(OSError, removal.remove, self.parent, "top", progress.step)
            self.assertEqual(error.errno, errno.ENOTEMPTY)
            self.assertIn("snapshots", str(error))
            self.assertLess(progress.entries, 100)
            names.clear()
            removal.remove(self.parent, "top")

    def test_link_itself(self: Any) -> None:
        """A link in the place of the directory is not followed."""
        os.symlink(self.outside, self.at("link"))
        with self.assertRaises(Exception):  # noqa: B017
            removal.remove(self.parent, "link")
        self.assertOutsideUntouched()

    def test_missing(self: Any) -> None:
        """What is not there is not found."""
        self.assertRaises(FileNotFoundError, removal.remove, self.parent, "none")

    def test_deep(self: Any) -> None:
        """A tree that is deeper than any path is long is removed."""
        self.deep("top")
        removal.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])

    def test_wide(self: Any) -> None:
        """A directory with many others in it is removed."""
        for number in range(300):
            self.write(self.at("top", str(number), str(number), "file"))
        removal.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])

    def test_steps(self: Any) -> None:
        """The removal shows progress, and ends when nobody wants it any more."""
        for number in range(20):
            self.write(self.at("top", str(number), "a", "file"))
        progress = Progress()
        removal.remove(self.parent, "top", progress.step)
        self.assertGreater(progress.steps, 20)
        self.write(self.at("top", "a", "file"))
        progress.abandon()
        self.assertRaises(Abandoned, removal.remove, self.parent, "top", progress.step)

    def test_files_meanwhile(self: Any) -> None:
        """What is put into the tree while it is removed is removed too."""
        for number in range(5):
            self.write(self.at("top", f"d{number}", "sub", "file"))
        made: list[str] = []

        def step(entries: int = 1, size: int = 0) -> None:
            if len(made) < 10:
                for directory, _, _ in os.walk(self.at("top")):
                    made.append(directory)
                    self.write(os.path.join(directory, f"new{len(made)}", "file"))

        removal.remove(self.parent, "top", step)
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
            removal.remove(self.parent, "top")
        except OSError as error:
            self.assertEqual(error.errno, errno.ENOTEMPTY)
            removal.remove(self.parent, "top")
        self.assertEqual(os.listdir(self.path), [])

    def test_swapped_inside(self: Any) -> None:
        """A directory that becomes a link while the tree is removed is removed as a link."""
        for at in range(1, 8):
            self.write(self.at("top", "a", "b", "file"))
            progress = Interrupting(at, lambda: self.try_swap("top/a"))
            removal.remove(self.parent, "top", progress.step)
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
            removal.remove(self.parent, "top", progress.step)
            self.assertEqual(os.listdir(self.path), [])


class RemoveTests(_Remove, TreesTestCase):
    pass


class RemoveWithoutOpenat2Tests(_Remove, TreesTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(beneath, "open_beneath", beneath._walk)
