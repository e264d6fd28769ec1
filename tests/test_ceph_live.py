"""
Directories whose snapshots cannot be reached. A plain directory stands for the one of CephFS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from backends.cephfs.live import SNAPSHOTS, LiveDirectory
from storageproxy import beneath, files
from storageproxy.durability import Durability
from storageproxy.errors import InvalidSubpath, StorageProxyError
from storageproxy.transfer.staging import Staging, check_target


class LiveTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.realpath(self.mktemp())
        for path in ("snap.d", "a/.snap/one/sub", ".snap/one/a"):
            os.makedirs(os.path.join(self.path, path))
        for path in ("file", "a/.snap/one/file", ".snap/one/file"):
            with open(os.path.join(self.path, path), "w") as file:
                file.write(path)
        for name, target in (
            ("link", ".snap"),
            ("far", "a/.snap/one"),
            ("a/up", "../.snap/one/file"),
            ("fine", "snap.d"),
        ):
            os.symlink(target, os.path.join(self.path, name))
        self.folder = LiveDirectory.open_root(self.path)
        self.addCleanup(self.folder.close)
        self.before = self.names()

    def names(self) -> list[tuple[str, list[str], list[str]]]:
        return sorted((top, sorted(inner), sorted(own)) for top, inner, own in os.walk(self.path))

    #: Paths to snapshots, or into one.
    ways = (
        *(".snap", ".snap/one", ".snap/one/file", "a/.snap", "a/.snap/one/new"),
        *("link/one", "link/new", "far/file", "far/sub", "far/new", "a/../.snap/one"),
    )

    def refused(self, function: Callable[..., Any], *args: Any) -> None:
        """Check that something is refused by an error that is the client's, and changes nothing."""
        try:
            function(*args)
        except (FileNotFoundError, NotADirectoryError):
            # The path leads nowhere.
            pass
        except StorageProxyError as error:
            self.assertIsInstance(error, InvalidSubpath, args)
            self.assertIn(SNAPSHOTS, error.message)
        else:
            self.fail(f"{function.__name__} {args}")
        self.assertEqual(self.names(), self.before)

    def test_reading(self) -> None:
        """No path leads to a snapshot, neither by its name nor by a link."""
        for path in (*self.ways, "link", "far", "a/up"):
            self.refused(self.folder.descend, path)
            self.refused(self.folder.open_file, path)
            self.refused(lambda path: self.folder.status(path, follow=True), path)

    def test_writing(self) -> None:
        """Nothing is made, renamed or deleted in there."""
        for path in self.ways:
            self.refused(self.folder.make_directories, path)
            self.refused(files.make_directory, self.folder, path, False, False)
            self.refused(files.make_directory, self.folder, path, True, True)
            self.refused(files.rename, self.folder, path, "new")
            self.refused(files.rename, self.folder, "file", path)
            self.refused(files.delete, self.folder, "test", [path], False)
            self.refused(files.delete, self.folder, "test", [path], True)
            self.refused(check_target, self.folder, path)

    def test_upload(self) -> None:
        """A file that was uploaded is not put there, whatever has become of the path meanwhile."""
        staging = Staging(self.folder, self.folder, Durability.NONE)
        for path in ("link/new", "far/new", "far/sub/new/new", ".snap"):
            session = staging.create()
            with staging.hold(session).file as file:
                self.assertRaises(InvalidSubpath, staging.finish, session, file, path)
                staging.discard(session, file)
        self.assertEqual([one for one in self.names() if ".storage-proxy" not in one[0]][1:], [
            one for one in self.before[1:]
        ])  # fmt: skip

    def test_present(self) -> None:
        """All else is as ever; links themselves can be renamed and deleted."""
        with self.folder.descend("fine") as below:
            self.assertIsInstance(below, LiveDirectory)
        with self.folder.open_file("file") as file:
            self.assertEqual(file.read(0, 10), b"file")
        self.folder.make_directories("fine/x/.snapshot/snap")
        files.rename(self.folder, "link", "fine/moved")
        files.delete(self.folder, "test", ["far", "a/up"], True)
        self.assertEqual(os.readlink(os.path.join(self.path, "snap.d", "moved")), ".snap")

    def test_told(self) -> None:
        """Who asks for a snapshot that is there is told that it is none of his."""
        for path in (".snap", ".snap/one/file", "a/.snap/one", "link", "far/sub", "a/up"):
            self.assertRaises(InvalidSubpath, self.folder.status, path, follow=True)

    def test_below(self) -> None:
        """What is opened by way of it is of the same kind, and so refuses too."""
        os.mkdir(os.path.join(self.path, "a", "b"))
        self.before = self.names()
        for opened in (
            self.folder.descend("a/b"),
            self.folder.ensure("a/b"),
            self.folder.parent("a/b/new")[0],
        ):
            with opened:
                self.refused(opened.descend, "../../.snap")
                self.refused(opened.parent, ".snap")

    def test_without_openat2(self) -> None:
        """The same holds on kernels that resolve no paths beneath a directory."""
        self.patch(beneath, "open_beneath", beneath._walk)
        for path in (".snap", "a/.snap/one/file"):
            self.refused(self.folder.descend, path)

    def test_removed(self) -> None:
        """A directory is known that has no name any more."""
        os.mkdir(os.path.join(self.path, "d"))
        os.symlink("d/.snap", os.path.join(self.path, "l"))
        os.mkdir(os.path.join(self.path, "d", ".snap"))
        readlink = os.readlink
        self.patch(os, "readlink", lambda path: f"{readlink(path)} (deleted)")
        self.assertRaises(InvalidSubpath, self.folder.descend, "l")
