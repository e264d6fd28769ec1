"""
Paths beneath an open directory: nothing outside of it is ever reached.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import threading
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from storageproxy import beneath
from storageproxy.beneath import Directory, File
from storageproxy.errors import InvalidSubpath, NotRegularFile
from storageproxy.testing import GIVE_UP

#: How a path that leads nowhere good may be refused.
REFUSED = (OSError, InvalidSubpath)


def descriptors() -> list[tuple[str, str]]:
    """The open files and directories of this process, by descriptor."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            # That of the listing itself.
            continue
        # Neither pipes nor what belongs to the reactor.
        if target.startswith("/"):
            found.append((number, target))
    return sorted(found)


class BeneathTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.outside = os.path.abspath(self.mktemp())
        os.makedirs(os.path.join(self.outside, "dir"))
        self.secret = os.path.join(self.outside, "secret")
        with open(self.secret, "wb") as file:
            file.write(b"secret")
        self.path = os.path.abspath(self.mktemp())
        os.makedirs(os.path.join(self.path, "sub", "deep"))
        with open(self.at("sub", "file"), "wb") as file:
            file.write(b"0123456789")
        self.folder = Directory.open_root(self.path)
        self.addCleanup(self.folder.close)

    def at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def assertNothingOutside(self) -> None:
        self.assertEqual(sorted(os.listdir(self.outside)), ["dir", "secret"])
        self.assertEqual(os.listdir(os.path.join(self.outside, "dir")), [])
        with open(self.secret, "rb") as file:
            self.assertEqual(file.read(), b"secret")


class _Beneath:
    """For every way to open a path."""

    way: Any
    #: Whether links that stay inside are followed.
    follows = True

    def setUp(self: Any) -> None:
        super().setUp()
        self.patch(beneath, "open_beneath", self.way)
        before = descriptors()
        self.addCleanup(lambda: self.assertEqual(descriptors(), before))

    def refuse_all(self: Any, path: str) -> None:
        """Try all that can be done with a path, and see it refused."""
        for operation in (
            lambda: os.close(self.folder.open(path, os.O_RDONLY)),
            lambda: self.folder.open_file(path).close(),
            lambda: self.folder.open_file(path, os.O_RDWR).close(),
            lambda: self.folder.open_file(path, os.O_WRONLY | os.O_TRUNC).close(),
            lambda: self.folder.open_file(path, os.O_WRONLY | os.O_CREAT).close(),
            lambda: self.folder.descend(path).close(),
            lambda: self.folder.descend(path, links=False).close(),
        ):
            self.assertRaises(REFUSED, operation)
        try:
            status = self.folder.status(path, follow=True)
        except REFUSED:
            pass
        else:
            # The link itself is inside.
            self.assertTrue(stat.S_ISLNK(status.st_mode))
        self.assertNothingOutside()

    # ---- escapes

    def test_parent(self: Any) -> None:
        """``..`` does not lead out, wherever it stands in the path."""
        name = os.path.basename(self.outside)
        for path in (
            "..",
            "../",
            f"../{name}",
            f"../{name}/secret",
            f"sub/../../{name}/secret",
            f"./.././{name}/secret",
            f"sub/deep/../../../{name}/secret",
            "../" * 64 + self.secret[1:],
        ):
            self.assertRaises(InvalidSubpath, self.folder.open, path, os.O_RDONLY)
            self.refuse_all(path)

    def test_parent_and_back(self: Any) -> None:
        """``..`` does not lead out, not even to come back in."""
        self.refuse_all(f"../{os.path.basename(self.path)}/sub/file")

    def test_parent_inside(self: Any) -> None:
        """``..`` that stays inside is followed, or refused as a bad path, never anything else."""
        if self.follows:
            with self.folder.open_file("sub/deep/../file") as file:
                self.assertEqual(file.read(0, 10), b"0123456789")
        else:
            self.assertRaises(InvalidSubpath, self.folder.open_file, "sub/deep/../file")

    def test_absolute_path(self: Any) -> None:
        """An absolute path does not lead out."""
        self.refuse_all(self.secret)
        self.refuse_all("/etc/passwd")

    def test_link_out(self: Any) -> None:
        """A link that leads out is refused, absolute or relative, to a file or a directory."""
        name = os.path.basename(self.outside)
        for number, target in enumerate(
            (self.secret, self.outside, f"../{name}", f"../{name}/secret", "/", "..", "/etc/passwd")
        ):
            os.symlink(target, self.at(f"link{number}"))
            self.assertRaises(InvalidSubpath, self.folder.open, f"link{number}", os.O_RDONLY)
            self.refuse_all(f"link{number}")

    def test_link_out_to_nothing(self: Any) -> None:
        """A link to where nothing is yet makes nothing there."""
        os.symlink(os.path.join(self.outside, "new"), self.at("link"))
        self.refuse_all("link")
        self.assertRaises(REFUSED, self.folder.make_directories, "link/a/b")
        self.assertNothingOutside()

    def test_link_in_the_middle(self: Any) -> None:
        """A link out is refused where more of the path follows."""
        name = os.path.basename(self.outside)
        for number, target in enumerate((self.outside, f"../../{name}")):
            os.symlink(target, self.at("sub", f"link{number}"))
            for rest in ("secret", "dir", "new", "dir/new"):
                self.refuse_all(f"sub/link{number}/{rest}")
            self.assertRaises(REFUSED, self.folder.parent, f"sub/link{number}/secret")
            self.assertRaises(REFUSED, self.folder.make_directories, f"sub/link{number}/a/b")
            self.assertRaises(REFUSED, self.folder.ensure, f"sub/link{number}/a/b")
            self.assertRaises(REFUSED, self.folder.ensure, f"sub/link{number}")
        self.assertNothingOutside()

    def test_link_to_link_out(self: Any) -> None:
        """A link inside that leads to a link out is refused."""
        os.symlink(self.outside, self.at("sub", "second"))
        os.symlink("sub/second", self.at("first"))
        self.refuse_all("first")
        self.refuse_all("first/secret")

    def test_link_out_and_back(self: Any) -> None:
        """A link that leads out and in again is refused."""
        os.symlink(f"../{os.path.basename(self.path)}/sub", self.at("link"))
        self.refuse_all("link/file")

    def test_magic_links(self: Any) -> None:
        """The links of /proc, which are no paths at all, lead nowhere."""
        secret = os.open(self.secret, os.O_RDONLY)
        try:
            os.symlink(f"/proc/self/fd/{secret}", self.at("link"))
            self.refuse_all("link")
            with Directory.open_root("/proc/self") as process:
                for name in (f"fd/{secret}", "exe", "cwd", "root", "root/etc/passwd"):
                    self.assertRaises(REFUSED, process.open, name, os.O_RDONLY)
                    self.assertRaises(REFUSED, process.open_file, name)
        finally:
            os.close(secret)

    def test_link_itself(self: Any) -> None:
        """The status of a link can be had without going where it leads."""
        os.symlink(self.secret, self.at("link"))
        self.assertTrue(stat.S_ISLNK(self.folder.status("link").st_mode))

    def test_status_of_target(self: Any) -> None:
        """Where the target of a link is asked for and cannot be had, the link does not stand in."""
        os.symlink(self.secret, self.at("link"))
        self.assertRaises(InvalidSubpath, self.folder.status, "link", follow=True)

    def test_swapped_parent(self: Any) -> None:
        """A directory that was opened stays the same when its name is given to a link."""
        parent, name = self.folder.parent("sub/file")
        with parent:
            os.rename(self.at("sub"), self.at("elsewhere"))
            os.symlink(self.outside, self.at("sub"))
            os.rename(name, "renamed", src_dir_fd=parent.descriptor, dst_dir_fd=parent.descriptor)
        self.assertEqual(sorted(os.listdir(self.at("elsewhere"))), ["deep", "renamed"])
        self.assertNothingOutside()

    # ---- what stays inside

    def test_links_inside(self: Any) -> None:
        """Links that stay inside are followed for reading, where the kernel can tell."""
        os.symlink("file", self.at("sub", "link"))
        os.symlink("sub", self.at("dirlink"))
        os.symlink("../file", self.at("sub", "deep", "up"))
        paths = ("sub/link", "dirlink/file", "dirlink/link", "sub/deep/up", "dirlink/deep/up")
        for path in paths:
            if self.follows:
                with self.folder.open_file(path) as file:
                    self.assertEqual(file.read(0, 10), b"0123456789")
                self.assertEqual(self.folder.status(path, follow=True).st_size, 10)
            else:
                self.assertRaises(InvalidSubpath, self.folder.open_file, path)

    def test_links_refused(self: Any) -> None:
        """Where links are not wanted, none is followed, not even one that stays inside."""
        os.symlink("sub", self.at("dirlink"))
        os.symlink("file", self.at("sub", "link"))
        for path in ("dirlink/file", "sub/link", "dirlink/link"):
            self.assertRaises(REFUSED, self.folder.open_file, path, links=False)
        self.assertRaises(REFUSED, self.folder.descend, "dirlink", links=False)

    def test_itself(self: Any) -> None:
        """The path ``.`` is the directory itself."""
        with self.folder.descend(".") as same:
            self.assertTrue(
                os.path.samestat(os.fstat(same.descriptor), os.fstat(self.folder.descriptor))
            )

    def test_missing(self: Any) -> None:
        """What is not there is not found, at the end of a path and in the middle."""
        for path in ("no", "no/file", "sub/no", "sub/no/file"):
            self.assertRaises(FileNotFoundError, self.folder.open, path, os.O_RDONLY)
            self.assertRaises(FileNotFoundError, self.folder.status, path)

    def test_file_in_the_middle(self: Any) -> None:
        """A file has nothing below it."""
        self.assertRaises(NotADirectoryError, self.folder.open, "sub/file/x", os.O_RDONLY)
        self.assertRaises(NotADirectoryError, self.folder.descend, "sub/file")

    def test_odd_names(self: Any) -> None:
        """Names may have line breaks, blanks, and bytes that are no UTF-8."""
        for raw in (b"a\nb", b" ", b"\xff\xfe", b"caf\xe9", "löwe".encode(), b"-rf", b"..."):
            name = os.fsdecode(raw)
            with self.folder.open_file(f"sub/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                file.write([raw], 0)
            self.assertIn(raw, os.listdir(os.fsencode(self.at("sub"))))
            with self.folder.open_file(f"sub/{name}") as file:
                self.assertEqual(file.read(0, 100), raw)
            self.folder.make_directories(f"made/{name}/{name}")
            self.assertTrue(os.path.isdir(self.at("made", name, name)))

    def test_nul(self: Any) -> None:
        """A path with a NUL in it names nothing, not even what stands before the NUL."""
        with self.assertRaises((OSError, ValueError, InvalidSubpath)):
            os.close(self.folder.open("sub/file\0x", os.O_RDONLY))

    def test_loop(self: Any) -> None:
        """Links that lead to each other come to an end."""
        os.symlink("loop", self.at("loop"))
        os.symlink("pong", self.at("ping"))
        os.symlink("ping", self.at("pong"))
        for path in ("loop", "ping", "loop/x", "ping/x"):
            self.refuse_all(path)

    def test_long_name(self: Any) -> None:
        """A name that no file system takes is refused."""
        with self.assertRaises(OSError) as caught:
            self.folder.open("n" * 256, os.O_RDONLY)
        self.assertEqual(caught.exception.errno, errno.ENAMETOOLONG)
        self.refuse_all("n" * 256)

    def test_long_path(self: Any) -> None:
        """A path that is longer than any is refused."""
        for path in ("n/" * 3000 + "n", "sub/" + "./" * 100_000 + "no/n", "../" * 3000 + "n"):
            self.refuse_all(path)

    # ---- files

    def test_fifo(self: Any) -> None:
        """A FIFO is refused at once; nobody waits for its other end."""
        os.mkfifo(self.at("fifo"))
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT):
            self.assertRaises(NotRegularFile, self.folder.open_file, "fifo", flags)

    def test_fifo_with_reader(self: Any) -> None:
        """A FIFO that somebody reads gets nothing from us."""
        os.mkfifo(self.at("fifo"))
        reader = os.open(self.at("fifo"), os.O_RDONLY | os.O_NONBLOCK)
        try:
            self.assertRaises(NotRegularFile, self.folder.open_file, "fifo", os.O_WRONLY)
        finally:
            os.close(reader)

    def test_socket(self: Any) -> None:
        """A socket is refused."""
        here = os.getcwd()
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(self.path)
            try:
                listener.bind("socket")
            finally:
                os.chdir(here)
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                self.assertRaises(NotRegularFile, self.folder.open_file, "socket", flags)

    def test_device(self: Any) -> None:
        """A device is refused."""
        os.mknod(self.at("zero"), 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        for flags in (os.O_RDONLY, os.O_WRONLY):
            # A mount with ``nodev`` says it by itself.
            self.assertRaises(
                (NotRegularFile, PermissionError), self.folder.open_file, "zero", flags
            )

    def test_directory_as_file(self: Any) -> None:
        """A directory is refused as a file, for reading and for writing."""
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            self.assertRaises(NotRegularFile, self.folder.open_file, "sub", flags)

    def test_new_file(self: Any) -> None:
        """A file is made with the mode that was asked for, and only when there is none."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with self.folder.open_file("new", flags, 0o600) as file:
            self.assertEqual(file.write([b"a", b"b"], 0), 2)
        self.assertEqual(stat.S_IMODE(os.stat(self.at("new")).st_mode), 0o600)
        self.assertRaises(FileExistsError, self.folder.open_file, "new", flags)
        os.symlink("nowhere", self.at("dangling"))
        self.assertRaises(REFUSED, self.folder.open_file, "dangling", flags)
        self.assertFalse(os.path.exists(self.at("nowhere")))

    def test_close_on_exec(self: Any) -> None:
        """No child process inherits an open file."""
        with self.folder.open_file("sub/file") as file, file.descriptor() as descriptor:
            self.assertFalse(os.get_inheritable(descriptor))
        with self.folder.descend("sub") as directory:
            self.assertFalse(os.get_inheritable(directory.descriptor))

    # ---- parents and new directories

    def test_parent_of(self: Any) -> None:
        """The directory that holds a path, and the name in it."""
        parent, name = self.folder.parent("sub/new")
        with parent:
            self.assertEqual(name, "new")
            self.assertTrue(os.path.samestat(os.fstat(parent.descriptor), os.stat(self.at("sub"))))
        parent, name = self.folder.parent("top")
        with parent:
            self.assertTrue(os.path.samestat(os.fstat(parent.descriptor), os.stat(self.path)))

    def test_parent_of_no_name(self: Any) -> None:
        """A path that ends with no name is refused."""
        for path in (".", "..", "", "sub/.", "sub/..", "sub/"):
            self.assertRaises(InvalidSubpath, self.folder.parent, path)

    def test_make_directories(self: Any) -> None:
        """All directories that are missing are made, and those that exist are no error."""
        for _ in range(2):
            self.folder.make_directories("sub/a/b/c")
        self.assertTrue(os.path.isdir(self.at("sub", "a", "b", "c")))

    def test_make_directories_over_file(self: Any) -> None:
        """A file is in nobody's way without being noticed, and stays."""
        for path in ("sub/file", "sub/file/a/b"):
            self.assertRaises(
                (FileExistsError, NotADirectoryError), self.folder.make_directories, path
            )
        self.assertEqual(os.path.getsize(self.at("sub", "file")), 10)

    def test_make_directories_out(self: Any) -> None:
        """No directory is made outside, whatever the path says."""
        name = os.path.basename(self.outside)
        for path in (f"../{name}/new", f"a/../../{name}/new", f"a/b/../../../{name}/x", ".."):
            self.assertRaises(InvalidSubpath, self.folder.make_directories, path)
        self.assertNothingOutside()

    def test_make_directories_swapped(self: Any) -> None:
        """A directory that becomes a link while those below it are made is not followed."""
        mkdir = os.mkdir

        def swap(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            mkdir(name, mode, dir_fd=dir_fd)
            os.rmdir(name, dir_fd=dir_fd)
            os.symlink(self.outside, name, dir_fd=dir_fd)

        self.patch(os, "mkdir", swap)
        self.assertRaises(REFUSED, self.folder.make_directories, "new/below")
        self.assertNothingOutside()

    def test_make_directories_race(self: Any) -> None:
        """Many can make the same directories at one time."""
        start = threading.Barrier(8, timeout=GIVE_UP)
        failures: list[BaseException] = []

        def make() -> None:
            try:
                for number in range(10):
                    start.wait()
                    self.folder.make_directories(f"race{number}/a/b/c")
            except BaseException as error:
                failures.append(error)
                start.abort()

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GIVE_UP)
        self.assertEqual(failures, [])
        for number in range(10):
            self.assertTrue(os.path.isdir(self.at(f"race{number}", "a", "b", "c")))

    def test_ensure(self: Any) -> None:
        """A directory is opened, and made before when it is missing."""
        for _ in range(2):
            with self.folder.ensure("sub/x/y", 0o700) as directory:
                self.assertTrue(
                    os.path.samestat(
                        os.fstat(directory.descriptor), os.stat(self.at("sub", "x", "y"))
                    )
                )
        self.assertEqual(stat.S_IMODE(os.stat(self.at("sub", "x", "y")).st_mode), 0o700)


class Openat2Tests(_Beneath, BeneathTestCase):
    way = staticmethod(beneath._openat2)

    def test_race(self) -> None:
        """A path that the kernel cannot tell for all the renames is tried again, not for ever."""
        calls: list[object] = []

        def again(*args: object) -> int:
            calls.append(args)
            beneath.ctypes.set_errno(errno.EAGAIN)
            return -1

        self.patch(beneath, "_syscall", again)
        with self.assertRaises(OSError) as caught:
            self.folder.open("sub/../sub", os.O_RDONLY)
        self.assertEqual(caught.exception.errno, errno.EAGAIN)
        self.assertTrue(2 < len(calls) < 10_000)


class WalkTests(_Beneath, BeneathTestCase):
    way = staticmethod(beneath._walk)
    follows = False


class FileTests(BeneathTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.file = self.folder.open_file("sub/file", os.O_RDWR)
        self.addCleanup(self.file.close)

    def content(self) -> bytes:
        with open(self.at("sub", "file"), "rb") as file:
            return file.read()

    def test_read(self) -> None:
        """Bytes are read from where they are asked for, and fewer at the end only."""
        self.assertEqual(self.file.read(2, 3), b"234")
        self.assertEqual(self.file.read(8, 5), b"89")
        self.assertEqual(self.file.read(10, 5), b"")

    def test_write(self) -> None:
        """Many buffers are written one behind the other, where they belong."""
        self.assertEqual(self.file.write([b"ab", b"", b"c"], 4), 3)
        self.assertEqual(self.content(), b"0123abc789")

    def test_write_nothing(self) -> None:
        """No bytes are written when there are none."""
        for buffers in ([], [b""], [b"", b""]):
            self.assertEqual(self.file.write(buffers, 4), 0)
        self.assertEqual(self.content(), b"0123456789")

    def test_write_many(self) -> None:
        """More buffers are written than the kernel takes in one call."""
        buffers = [bytes([number % 251]) * (number % 5) for number in range(5000)]
        self.assertEqual(self.file.write(iter(buffers), 10), sum(map(len, buffers)))
        self.assertEqual(self.content(), b"0123456789" + b"".join(buffers))

    def test_short_writes(self) -> None:
        """When the kernel writes less than it was given, the rest follows."""
        pwritev = os.pwritev
        for most in (1, 2, 3, 7):

            def short(descriptor: int, buffers: Any, offset: int, most: int = most) -> int:
                return pwritev(descriptor, [b"".join(buffers)[:most]], offset)

            self.patch(os, "pwritev", short)
            data = [b"abc", b"", b"defgh", b"i", b"jklmn"]
            self.assertEqual(self.file.write(data, 3), 14)
            self.assertEqual(self.content(), b"012abcdefghijklmn")

    def test_failed_write(self) -> None:
        """When the disk is full, what was written stays, and the failure is told."""
        pwritev = os.pwritev
        calls: list[int] = []

        def full(descriptor: int, buffers: Any, offset: int) -> int:
            calls.append(offset)
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwritev(descriptor, [bytes(buffers[0])[:2]], offset)

        self.patch(os, "pwritev", full)
        self.assertRaises(OSError, self.file.write, [b"abcd"], 10)
        self.assertEqual(self.content(), b"0123456789ab")

    def test_truncate(self) -> None:
        """A file can be cut and can grow."""
        self.file.truncate(3)
        self.assertEqual(self.content(), b"012")
        self.file.truncate(5)
        self.assertEqual(self.file.status().st_size, 5)

    def test_sync(self) -> None:
        """A file can be brought to stable storage, its bytes alone or with its metadata."""
        self.file.sync_data()
        self.file.sync()

    def test_sync_all(self) -> None:
        """All of a file system can be brought to stable storage; what is lost is told."""
        self.folder.sync_all()
        closed = Directory(os.dup(self.folder.descriptor))
        closed.close()
        with self.assertRaises(beneath.WritebackError) as caught:
            closed.sync_all()
        self.assertEqual(caught.exception.errno, errno.EBADF)

    def test_fuse(self) -> None:
        """On FUSE nobody is told that all is to be synced."""
        self.assertTrue(self.folder.can_sync_all())

        def fuse(descriptor: Any, status: Any) -> int:
            status[:8] = (0x65735546).to_bytes(8, sys.byteorder)
            return 0

        self.patch(beneath, "_fstatfs", fuse)
        self.assertFalse(self.folder.can_sync_all())
        self.patch(beneath, "_fstatfs", lambda descriptor, status: -1)
        self.assertRaises(OSError, self.folder.can_sync_all)

    def test_closed(self) -> None:
        """A closed file can be closed again, and used for nothing else."""
        for _ in range(2):
            self.file.close()
        for operation in (
            lambda: self.file.read(0, 1),
            lambda: self.file.write([b"x"], 0),
            lambda: self.file.truncate(0),
            self.file.status,
            self.file.sync,
            self.file.sync_data,
        ):
            with self.assertRaises(OSError) as caught:
                operation()
            self.assertEqual(caught.exception.errno, errno.EBADF)
        self.assertEqual(self.content(), b"0123456789")

    def test_closed_at_the_end_of_the_block(self) -> None:
        """A file in a ``with`` block is closed behind it, also when the block fails."""
        before = descriptors()
        with self.assertRaises(KeyError), self.folder.open_file("sub/file"):
            raise KeyError
        self.assertEqual(descriptors(), before)

    def test_closed_during_calls(self) -> None:
        """A file closed during calls stays open for them, and is closed when the last one ends."""
        go = [threading.Event(), threading.Event()]
        inside = threading.Semaphore(0)
        numbers: list[int] = []
        read: list[bytes] = []

        def use(event: threading.Event) -> None:
            with self.file.descriptor() as descriptor:
                numbers.append(descriptor)
                inside.release()
                event.wait(GIVE_UP)
                read.append(os.pread(descriptor, 4, 0))

        threads = [threading.Thread(target=use, args=(event,)) for event in go]
        for thread in threads:
            thread.start()
            self.assertTrue(inside.acquire(timeout=GIVE_UP))
        self.file.close()
        self.assertRaises(OSError, self.file.read, 0, 1)
        # Nobody gets the number of the descriptor while a call may still use it.
        with open(self.secret, "rb") as other:
            self.assertNotIn(other.fileno(), numbers)
        for event, thread in zip(go, threads, strict=True):
            self.assertEqual(os.fstat(numbers[0]).st_size, 10)
            event.set()
            thread.join(GIVE_UP)
        self.assertEqual(read, [b"0123", b"0123"])
        self.assertRaises(OSError, os.fstat, numbers[0])

    def test_failed_call(self) -> None:
        """A call that fails does not keep a closed file open."""
        with self.file.descriptor() as number:
            pass
        with self.assertRaises(KeyError), self.file.descriptor():
            self.file.close()
            raise KeyError
        self.assertRaises(OSError, os.fstat, number)

    def test_wraps_descriptor(self) -> None:
        """A file takes over the descriptor that it is made of."""
        file = File(os.open(self.secret, os.O_RDONLY))
        with file.descriptor() as number:
            pass
        file.close()
        self.assertRaises(OSError, os.fstat, number)
