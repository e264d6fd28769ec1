"""
Trees that are copied, while somebody may change them.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storageproxy import cloning, trees
from storageproxy.errors import TargetConflict
from storageproxy.threads import Abandoned, Progress
from tests.test_trees import Interrupting, TreesTestCase


class CopyTests(TreesTestCase):
    def setUp(self) -> None:
        super().setUp()
        os.makedirs(self.at("copy"))
        # The kernel is to copy what is small enough for a test.
        self.patch(cloning, "SMALL", 0)

    def copy(self, progress: Progress | None = None, skip: str | None = None) -> None:
        with self.parent.descend("top") as source, self.parent.descend("copy") as target:
            cloning.copy(source, target, (progress or Progress()).step, skip)

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

    def test_special_bits_of_directories(self) -> None:
        """A directory that is shared by a group, or by all, is so in the copy."""
        for name, mode in (("group", 0o2775), ("all", 0o1777), ("both", 0o3770), ("user", 0o4755)):
            self.write(self.at("top", name, "file"))
            os.chmod(self.at("top", name), mode)
        self.copy()
        for name, mode in (("group", 0o2775), ("all", 0o1777), ("both", 0o3770), ("user", 0o755)):
            self.assertEqual(stat.S_IMODE(os.stat(self.at("copy", name)).st_mode), mode, name)

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
        self.patch(cloning, "COPY_STEP", 1000)
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
            self.patch(cloning, "COPY_STEP", 1000)
            self.write(self.at("top", "file"), bytes(range(256)) * 40)
            self.copy()
            self.assertEqual(self.read("copy", "file"), bytes(range(256)) * 40)

    def test_small(self) -> None:
        """Small files are copied without the help of the kernel, and are whole too."""
        self.patch(cloning, "SMALL", 1000)
        self.patch(cloning, "COPY_STEP", 300)
        for size in (0, 1, 299, 300, 301, 1000, 1001):
            self.write(self.at("top", str(size)), b"c" * size)
        self.copy()
        for size in (0, 1, 299, 300, 301, 1000, 1001):
            self.assertEqual(self.read("copy", str(size)), b"c" * size)

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

    def test_target_is_a_directory(self) -> None:
        """A directory in the place of a file, or of a link, stays; the error says where it is."""
        self.write(self.at("copy", "a", "taken", "kept"), b"kept")
        os.makedirs(self.at("top", "a"))
        os.symlink("nowhere", self.at("top", "a", "taken"))
        with self.assertRaises(TargetConflict) as caught:
            self.copy()
        self.assertEqual(caught.exception.members, {"paths": ["a/taken"]})
        os.unlink(self.at("top", "a", "taken"))
        self.write(self.at("top", "a", "taken"), b"file")
        with self.assertRaises(TargetConflict) as caught:
            self.copy()
        self.assertIn("a/taken", caught.exception.message)
        self.assertEqual(self.read("copy", "a", "taken", "kept"), b"kept")

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

    def test_hard_links(self) -> None:
        """Names of one file are names of one file in the copy, in whatever directories."""
        self.write(self.at("top", "one"), b"content")
        os.makedirs(self.at("top", "a", "b"))
        for name in ("two", "a/three", "a/b/four"):
            os.link(self.at("top", "one"), self.at("top", name))
        self.copy()
        names = ("one", "two", "a/three", "a/b/four")
        self.assertEqual(len({os.stat(self.at("copy", name)).st_ino for name in names}), 1)
        self.assertEqual(os.stat(self.at("copy", "one")).st_nlink, 4)
        self.assertNotEqual(
            os.stat(self.at("copy", "one")).st_ino, os.stat(self.at("top", "one")).st_ino
        )
        self.assertEqual(self.read("copy", "a", "three"), b"content")

    def test_hard_links_out(self) -> None:
        """A file that has a name outside of the tree is copied, and shares nothing with it."""
        os.link(os.path.join(self.outside, "secret"), self.at("top", "file"))
        self.copy()
        self.assertEqual(self.read("copy", "file"), b"secret")
        self.assertEqual(os.stat(self.at("copy", "file")).st_nlink, 1)

    def test_too_many_hard_links(self) -> None:
        """Files with several names that are too many to be remembered are copied all the same."""
        self.patch(cloning, "MOST_LINKED", 1)
        for name in ("one", "two"):
            self.write(self.at("top", name), name.encode())
            os.link(self.at("top", name), self.at("top", f"{name}-again"))
        self.copy()
        for name in ("one", "two"):
            self.assertEqual(self.read("copy", name), name.encode())
            self.assertEqual(self.read("copy", f"{name}-again"), name.encode())
        numbers = {os.stat(self.at("copy", name)).st_ino for name in os.listdir(self.at("copy"))}
        self.assertIn(len(numbers), (3, 4))

    def test_hard_links_refused(self) -> None:
        """Where a file cannot get more names, each name gets a file."""
        self.write(self.at("top", "one"), b"content")
        os.link(self.at("top", "one"), self.at("top", "two"))

        def fail(*args: object, **kwargs: object) -> None:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

        self.patch(os, "link", fail)
        self.copy()
        for name in ("one", "two"):
            self.assertEqual(self.read("copy", name), b"content")

    def linked_after(self, change: Callable[[], object]) -> None:
        """Copy a file with two names; between them, something is done to the copy."""
        self.write(self.at("top", "one"), b"content")
        os.link(self.at("top", "one"), self.at("top", "two"))
        link_again = cloning._Copy._link_again
        done: list[bool] = []

        def changed(copying: cloning._Copy, *args: Any) -> bool:
            if copying._linked and not done:
                done.append(True)
                change()
            return link_again(copying, *args)

        self.patch(cloning._Copy, "_link_again", changed)
        self.copy()
        self.assertTrue(done)

    def first(self) -> str:
        [name] = os.listdir(self.at("copy"))
        return self.at("copy", name)

    def test_hard_link_replaced_by_link(self) -> None:
        """A copy that became a link out gives no name to what that leads to."""

        def plant() -> None:
            first = self.first()
            os.unlink(first)
            os.symlink(os.path.join(self.outside, "secret"), first)

        self.linked_after(plant)
        self.assertEqual(os.stat(os.path.join(self.outside, "secret")).st_nlink, 1)
        contents = {
            self.read("copy", name)
            for name in os.listdir(self.at("copy"))
            if not os.path.islink(self.at("copy", name))
        }
        self.assertEqual(contents, {b"content"})

    def test_hard_link_replaced_by_file(self) -> None:
        """A copy that became another file is not given another name."""

        def plant() -> None:
            first = self.first()
            self.write(self.at("copy", "another"), b"another")
            os.rename(self.at("copy", "another"), first)

        self.linked_after(plant)
        contents = sorted(self.read("copy", name) for name in os.listdir(self.at("copy")))
        self.assertEqual(contents, [b"another", b"content"])

    def test_hard_link_written(self) -> None:
        """
        A copy whose content is another by now, as that of a new file with its number would be, is
        given no other name.
        """
        self.linked_after(lambda: self.write(self.first(), b"another"))
        contents = sorted(self.read("copy", name) for name in os.listdir(self.at("copy")))
        self.assertEqual(contents, [b"another", b"content"])

    def changed_after(self, content: bytes, time: int) -> None:
        """Copy a file with two names; between them, it becomes what a new one could be."""
        one, two = self.at("top", "one"), self.at("top", "two")
        self.write(one, b"content")
        os.utime(one, (0, 0))
        os.link(one, two)
        keep = cloning._keep
        done: list[bool] = []

        def change(*args: Any) -> Any:
            result = keep(*args)
            if not done:
                done.append(True)
                # A new file gets the number by chance only; this one has it for sure.
                self.write(one, content)
                os.utime(one, (time, time))
            return result

        self.patch(cloning, "_keep", change)
        self.copy()
        contents = {self.read("copy", name) for name in ("one", "two")}
        self.assertEqual(contents, {b"content", content})

    def test_number_used_again(self) -> None:
        """A file that has got the number of one that was copied is copied itself."""
        self.changed_after(b"another", 1)

    def test_number_and_time_used_again(self) -> None:
        """So is one that has got its time, too."""
        self.changed_after(b"and longer", 0)

    def test_hard_link_taken_away(self) -> None:
        """A copy that was taken away meanwhile is made again for its other name."""
        self.linked_after(lambda: os.unlink(self.first()))
        [name] = os.listdir(self.at("copy"))
        self.assertEqual(self.read("copy", name), b"content")

    def test_attributes(self) -> None:
        """Extended attributes are kept, of files that nobody may write too."""
        self.write(self.at("top", "a", "file"))
        for name in ("a", "a/file"):
            os.setxattr(self.at("top", name), "user.colour", b"red")
            os.setxattr(self.at("top", name), "user.empty", b"")
        os.chmod(self.at("top", "a", "file"), 0o444)
        self.copy()
        for name in ("a", "a/file"):
            self.assertEqual(os.getxattr(self.at("copy", name), "user.colour"), b"red")
            self.assertEqual(os.getxattr(self.at("copy", name), "user.empty"), b"")
        self.assertEqual(stat.S_IMODE(os.stat(self.at("copy", "a", "file")).st_mode), 0o444)

    def test_attributes_that_do_not_fit(self) -> None:
        """An attribute of the system that cannot be set does not keep the file out."""
        self.write(self.at("top", "file"), b"content")
        os.setxattr(self.at("top", "file"), "user.colour", b"red")
        names = ["ceph.dir.rbytes", "trusted.x", "user.colour"]
        self.patch(os, "listxattr", lambda descriptor: names)
        asked: list[str] = []

        def get(descriptor: int, name: str) -> bytes:
            asked.append(name)
            return b"value"

        def refuse(descriptor: int, name: str, value: bytes) -> None:
            number = errno.EPERM if name == "trusted.x" else errno.EOPNOTSUPP
            raise OSError(number, os.strerror(number))

        self.patch(os, "getxattr", get)
        self.patch(os, "setxattr", refuse)
        self.copy()
        self.assertEqual(self.read("copy", "file"), b"content")
        self.assertEqual(asked, ["trusted.x", "user.colour"])

    def test_attribute_lost(self) -> None:
        """A copy that would lose an attribute of its owner fails."""
        self.write(self.at("top", "file"), b"content")
        os.setxattr(self.at("top", "file"), "user.colour", b"red")

        def full(descriptor: int, name: str, value: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(os, "setxattr", full)
        self.assertRaises(OSError, self.copy)

    def test_umask(self) -> None:
        """Permissions are kept whatever the umask."""
        for name, mode in (("open", 0o666), ("closed", 0o000), ("script", 0o751)):
            self.write(self.at("top", name))
            os.chmod(self.at("top", name), mode)
        for mask in (0o000, 0o077, 0o777):
            self.addCleanup(os.umask, os.umask(mask))
            self.copy()
            for name in ("open", "closed", "script"):
                self.assertEqual(
                    oct(os.stat(self.at("copy", name)).st_mode),
                    oct(os.stat(self.at("top", name)).st_mode),
                )

    def test_holes(self) -> None:
        """A file of nearly nothing but holes takes no more space, nor time, in the copy."""
        with open(self.at("top", "sparse"), "wb") as file:
            file.truncate(1 << 42)
            for place in (0, 1 << 30, (1 << 42) - 5):
                file.seek(place)
                file.write(b"bytes")
        with open(self.at("top", "nothing"), "wb") as file:
            file.truncate(1 << 42)
        self.copy()
        self.assertEqual(os.stat(self.at("copy", "nothing")).st_size, 1 << 42)
        self.assertEqual(os.stat(self.at("copy", "nothing")).st_blocks, 0)
        self.assertEqual(os.stat(self.at("copy", "sparse")).st_size, 1 << 42)
        self.assertLess(os.stat(self.at("copy", "sparse")).st_blocks, 1000)
        with open(self.at("copy", "sparse"), "rb") as file:
            for place in (0, 1 << 30, (1 << 42) - 5):
                file.seek(place)
                self.assertEqual(file.read(5), b"bytes")
            file.seek(1000)
            self.assertEqual(file.read(5), bytes(5))

    def test_shared(self) -> None:
        """Blocks are shared where that is possible, and nothing is copied then."""
        self.write(self.at("top", "file"), b"content")

        def share(made: int, request: int, what: bytes) -> int:
            self.assertEqual(request, 0x4020940D)
            original, *place = struct.unpack("qQQQ", what)
            self.assertEqual(os.pread(original, 7, 0), b"content")
            self.assertEqual(place, [0, 7, 0])
            os.pwrite(made, b"shared!", 0)
            return 0

        self.patch(cloning.fcntl, "ioctl", share)
        progress = Progress()
        self.copy(progress)
        self.assertEqual(self.read("copy", "file"), b"shared!")
        self.assertEqual(progress.size, 7)

    def test_shared_in_steps(self) -> None:
        """A large file is shared in steps, each of which shows progress, and may end the copy."""
        self.assertEqual(cloning.SHARE_STEP % (1 << 20), 0)
        self.patch(cloning, "SHARE_STEP", 1000)
        self.write(self.at("top", "file"), b"c" * 2500)
        progress = Progress()
        seen: list[tuple[int, int, int]] = []

        def share(made: int, request: int, what: bytes) -> int:
            _, start, count, into = struct.unpack("qQQQ", what)
            self.assertEqual(into, start)
            seen.append((start, count, progress.size))
            return 0

        self.patch(cloning.fcntl, "ioctl", share)
        self.copy(progress)
        self.assertEqual(seen, [(0, 1000, 0), (1000, 1000, 1000), (2000, 500, 2000)])
        progress.abandon()
        self.assertRaises(Abandoned, self.copy, progress)
        self.assertEqual(len(seen), 3)

    def test_some_shared(self) -> None:
        """A file that can be shared no more half-way, as it was cut or has grown, is copied."""
        self.patch(cloning, "SHARE_STEP", 1000)
        self.write(self.at("top", "file"), b"c" * 2500)

        def share(made: int, request: int, what: bytes) -> int:
            if struct.unpack("qQQQ", what)[1]:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            os.pwrite(made, b"c" * 1000, 0)
            return 0

        self.patch(cloning.fcntl, "ioctl", share)
        self.copy()
        self.assertEqual(self.read("copy", "file"), b"c" * 2500)

    def test_written_back(self) -> None:
        """Few bytes of a file wait to be written at one time, so closing it does not take long."""
        self.patch(cloning, "COPY_STEP", 1000)
        self.patch(cloning, "WINDOW", 2000)
        seen: list[tuple[int, int, bool]] = []

        def write_back(made: int, start: int, stop: int, *, wait: bool) -> None:
            seen.append((start, stop, wait))

        self.patch(cloning, "write_back", write_back)
        self.write(self.at("top", "small"), b"c" * 1999)
        self.write(self.at("top", "file"), b"c" * 6500)
        self.copy()
        self.assertEqual(
            seen,
            [
                (0, 0, True),
                (0, 2000, False),
                (0, 2000, True),
                (2000, 4000, False),
                (2000, 4000, True),
                (4000, 6000, False),
            ],
        )

    def test_written_back_holes(self) -> None:
        """In a file with holes it is the bytes that count, however far apart they are."""
        self.patch(cloning, "WINDOW", 8192)
        seen: list[tuple[int, int, bool]] = []

        def write_back(made: int, start: int, stop: int, *, wait: bool) -> None:
            seen.append((start, stop, wait))

        self.patch(cloning, "write_back", write_back)
        with open(self.at("top", "file"), "wb") as file:
            for number in range(3):
                file.seek(number << 30)
                file.write(b"c" * 4096)
        self.copy()
        self.assertEqual(seen, [(0, 0, True), (0, (1 << 30) + 4096, False)])

    def refused(self, number: int) -> int:
        """Copy files that cannot be shared; how often it was tried."""
        tried: list[int] = []

        def refuse(made: int, request: int, what: bytes) -> int:
            tried.append(made)
            raise OSError(number, os.strerror(number))

        self.patch(cloning.fcntl, "ioctl", refuse)
        for name in ("one", "two", "a/three"):
            self.write(self.at("top", name), name.encode())
        self.copy()
        for name in ("one", "two", "a/three"):
            self.assertEqual(self.read("copy", name), name.encode())
        return len(tried)

    def test_never_shared(self) -> None:
        """Where blocks can never be shared it is tried once."""
        for number in (errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY):
            self.assertEqual(self.refused(number), 1)

    def test_some_not_shared(self) -> None:
        """A file that cannot be shared says nothing about the others."""
        for number in (errno.EINVAL, errno.EPERM, errno.ETXTBSY):
            self.assertEqual(self.refused(number), 3)

    def test_grows(self) -> None:
        """A file that never ends is copied as it was when it was opened."""
        self.write(self.at("top", "file"), b"content")
        copy_file_range = os.copy_file_range

        def grow(*args: int) -> int:
            with open(self.at("top", "file"), "ab") as file:
                file.write(b"more")
            return copy_file_range(*args)

        self.patch(os, "copy_file_range", grow)
        self.copy()
        self.assertEqual(self.read("copy", "file"), b"content")

    def test_shrinks(self) -> None:
        """A file that is cut while it is copied does not keep the copy from its end."""
        self.patch(cloning, "COPY_STEP", 100)
        self.write(self.at("top", "file"), b"c" * 1000)
        copy_file_range = os.copy_file_range

        def cut(*args: int) -> int:
            os.truncate(self.at("top", "file"), 150)
            return copy_file_range(*args)

        self.patch(os, "copy_file_range", cut)
        self.copy()
        self.assertEqual(self.read("copy", "file"), b"c" * 150)

    def test_progress(self) -> None:
        """What was copied is told: entries, and bytes."""
        self.write(self.at("top", "a", "b", "file"), b"12345")
        self.write(self.at("top", "file"), b"123")
        os.symlink("file", self.at("top", "link"))
        progress = Progress()
        self.copy(progress)
        self.assertEqual((progress.entries, progress.size), (5, 8))

    def test_deep(self) -> None:
        """A tree that is deeper than any path is long is copied, with few descriptors open."""
        self.deep("top")
        self.copy()
        with self.parent.descend("copy") as copied:
            self.assertEqual(trees.usage(copied), trees.Usage(1, 0))

    def needed(self) -> cloning.Needed:
        with self.parent.descend("top") as source:
            return cloning.needed(source, trees.unwatched, ".upload")

    def test_needed(self) -> None:
        """A copy needs the blocks of its files and directories, but neither holes nor the rest."""
        self.write(self.at("top", "file"), b"c" * 5000)
        self.write(self.at("top", "a", "file"), b"c" * 300)
        self.write(self.at("top", ".upload", "file"), b"c" * 5000)
        os.symlink("file", self.at("top", "link"))
        os.mkfifo(self.at("top", "fifo"))
        with open(self.at("top", "sparse"), "wb") as file:
            file.truncate(1 << 42)
        directory = os.stat(self.at("top", "a")).st_blocks * 512
        sizes = 5000 + 300 + len("file") + (1 << 42)
        self.assertEqual(self.needed(), cloning.Needed(8192 + 4096 + directory, sizes))

    def test_needed_of_hard_links(self) -> None:
        """A file counts once, whatever names it has; so many of them as a copy remembers."""
        for name in ("one", "two"):
            self.write(self.at("top", name), b"c" * 1000)
            os.makedirs(self.at("top", "a"), exist_ok=True)
            os.link(self.at("top", name), self.at("top", "a", name))
            os.link(self.at("top", name), self.at("top", f"{name}-again"))
        directory = os.stat(self.at("top", "a")).st_blocks * 512
        self.assertEqual(self.needed(), cloning.Needed(2 * 4096 + directory, 2 * 1000))
        self.patch(cloning, "MOST_LINKED", 1)
        self.assertEqual(self.needed(), cloning.Needed(4 * 4096 + directory, 4 * 1000))

    def test_least_needed(self) -> None:
        """Small files take less than their blocks where sizes count, and holes nothing else."""
        self.assertEqual(cloning.Needed(4096, 10).least, 10)
        self.assertEqual(cloning.Needed(4096, 1 << 42).least, 4096)

    def test_needed_abandoned(self) -> None:
        """It ends when nobody wants to know any more."""
        progress = Progress()
        progress.abandon()
        with self.parent.descend("top") as source:
            self.assertRaises(Abandoned, cloning.needed, source, progress.step)

    def test_can_share(self) -> None:
        """Whether blocks can be shared is found out by files that nobody sees."""
        answers: list[OSError | None] = [None, OSError(errno.EXDEV, os.strerror(errno.EXDEV))]

        def share(made: int, request: int, what: bytes) -> int:
            original, *_ = struct.unpack("qQQQ", what)
            self.assertEqual(os.fstat(original).st_nlink, 0)
            self.assertEqual(os.fstat(made).st_nlink, 0)
            if answers[0]:
                raise answers[0]
            return 0

        self.patch(cloning.fcntl, "ioctl", share)
        with self.parent.descend("top") as source, self.parent.descend("copy") as target:
            self.assertTrue(cloning.can_share(source, target))
            answers.reverse()
            self.assertFalse(cloning.can_share(source, target))


#: Modes that the owner can change back, so that a tree can be looked at.
MODES = st.sampled_from((0o600, 0o640, 0o644, 0o755, 0o777))
TIMES = st.integers(0, 2**33 * 10**9)
NAMES = st.sampled_from(("a", "b", "c", "ö", os.fsdecode(b"\xff"), " ", "new\nline", "n" * 255))
ATTRIBUTES = st.dictionaries(
    st.sampled_from(("user.a", "user.b")), st.binary(max_size=50), max_size=2
)
CONTENTS = st.lists(
    # Data at a number of pages, so that there are holes.
    st.tuples(st.integers(0, 64), st.binary(max_size=9000)),
    max_size=3,
)
FILES = st.tuples(st.just("file"), CONTENTS, MODES, TIMES, ATTRIBUTES)
LEAVES = FILES | st.tuples(st.just("link"), NAMES, TIMES) | st.tuples(st.just("again"))
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4),
    lambda below: st.dictionaries(
        NAMES, LEAVES | st.tuples(st.just("directory"), below, MODES, TIMES, ATTRIBUTES), max_size=5
    ),
    max_leaves=12,
)


class AnyTreeTests(TreesTestCase):
    def make(self, path: str, tree: dict[str, Any], files: list[str]) -> None:
        for name, (kind, *rest) in tree.items():
            inner = os.path.join(path, name)
            if kind == "again":
                if files:
                    os.link(files[len(files) // 2], inner)
                continue
            if kind == "link":
                os.symlink(rest[0], inner)
                os.utime(inner, ns=(rest[1], rest[1]), follow_symlinks=False)
                continue
            content, mode, time, attributes = rest
            if kind == "directory":
                os.mkdir(inner)
                self.make(inner, content, files)
            else:
                with open(inner, "wb") as file:
                    for page, data in content:
                        file.seek(page * 4096)
                        file.write(data)
                        file.truncate()
                    file.truncate(file.tell() + 5000 * (len(content) % 2))
                files.append(inner)
            for key, value in attributes.items():
                os.setxattr(inner, key, value)
            os.chmod(inner, mode)
            os.utime(inner, ns=(time, time))

    def seen(self, top: str) -> dict[str, Any]:
        """All that is to be the same in a copy."""
        found: dict[str, Any] = {}
        numbers: dict[int, str] = {}
        for directory, directories, names in os.walk(top):
            for name in sorted([*directories, *names]):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                told: list[Any] = [oct(status.st_mode), status.st_mtime_ns]
                if stat.S_ISLNK(status.st_mode):
                    told.append(os.readlink(path))
                else:
                    told.append({key: os.getxattr(path, key) for key in os.listxattr(path)})
                if stat.S_ISREG(status.st_mode):
                    with open(path, "rb") as file:
                        told += [file.read(), status.st_nlink]
                    relative = os.path.relpath(path, top)
                    numbers[status.st_ino] = min(relative, numbers.get(status.st_ino, relative))
                    told.append(status.st_ino)
                found[os.path.relpath(path, top)] = told
        for told in found.values():
            if len(told) > 3:
                told[-1] = numbers[told[-1]]
        return found

    @given(TREES)
    @settings(
        deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None
    )
    def test_copy(self, tree: dict[str, Any]) -> None:
        """A copy has all that the original has."""
        for name in ("source", "target"):
            shutil.rmtree(self.at(name), ignore_errors=True)
            os.mkdir(self.at(name))
        self.make(self.at("source"), tree, [])
        before = self.seen(self.at("source"))
        with self.parent.descend("source") as source, self.parent.descend("target") as target:
            cloning.copy(source, target, trees.unwatched)
        self.assertEqual(self.seen(self.at("target")), before)
