"""
Upload sessions on disk.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from storageproxy import beneath
from storageproxy.beneath import Directory
from storageproxy.durability import Durability
from storageproxy.errors import InvalidSubpath, NoSuchUpload, StorageProxyError, TargetConflict
from storageproxy.transfer import staging
from storageproxy.vfolder import UPLOADS
from tests.test_beneath import descriptors

REFUSED = (OSError, StorageProxyError)


class StagingTestCase(SynchronousTestCase):
    durability = Durability.PATCH

    def setUp(self) -> None:
        self.outside = os.path.abspath(self.mktemp())
        os.makedirs(self.outside)
        self.volume = os.path.abspath(self.mktemp())
        self.path = os.path.join(self.volume, "folder")
        os.makedirs(self.path)
        self.root = Directory.open_root(self.volume)
        self.addCleanup(self.root.close)
        self.folder = Directory.open_root(self.path)
        self.addCleanup(self.folder.close)
        self.staging = staging.Staging(self.root, self.folder, self.durability)
        before = descriptors()
        self.addCleanup(lambda: self.assertEqual(descriptors(), before))

    def at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def write(self, content: bytes, *names: str) -> None:
        os.makedirs(os.path.dirname(self.at(*names)), exist_ok=True)
        with open(self.at(*names), "wb") as file:
            file.write(content)

    def read(self, *names: str) -> bytes:
        with open(self.at(*names), "rb") as file:
            return file.read()

    def session(self, content: bytes = b"") -> str:
        session = self.staging.create()
        if content:
            self.write(content, UPLOADS, session)
        return session

    def remember(self, session: str, offset: int) -> None:
        """Note where to go back to."""
        with self.folder.open_file(f"{UPLOADS}/{session}", os.O_RDWR, links=False) as file:
            self.staging.remember_fallback(session, file, offset)

    def discard(self, session: str) -> None:
        """End a session."""
        with self.folder.open_file(f"{UPLOADS}/{session}", os.O_RDWR, links=False) as file:
            self.staging.discard(session, file)

    def hold(self, session: str) -> staging.Staged:
        return self.staging.hold(session)

    def offset(self, session: str) -> int:
        held = self.hold(session)
        held.file.close()
        return held.offset

    def finish(self, path: str, content: bytes = b"content") -> str:
        session = self.session(content)
        with self.hold(session).file as file:
            self.staging.finish(session, file, path)
        return session


class HoldTests(StagingTestCase):
    def test_new(self) -> None:
        """A new session has no bytes, and a name that nobody can guess."""
        sessions = {self.session() for _ in range(10)}
        self.assertEqual(len(sessions), 10)
        for session in sessions:
            self.assertGreaterEqual(len(session), 16)
            self.assertEqual(self.offset(session), 0)
        self.assertEqual(set(os.listdir(self.at(UPLOADS))), sessions)

    def test_new_while_others_end(self) -> None:
        """
        A session can be made while the last other one takes the directory away, as soon as it is
        made or a moment later.
        """
        # The directory of notes is there.
        self.discard(self.session())
        mkdir, make = os.mkdir, Directory.make_directories
        left = {"soon": 2, "later": 2}

        def vanish(when: str) -> None:
            if left[when]:
                left[when] -= 1
                os.rmdir(self.at(UPLOADS))

        def vanish_soon(*args: Any, **kwargs: Any) -> None:
            mkdir(*args, **kwargs)
            vanish("soon")

        def vanish_later(directory: Directory, path: str, **kwargs: Any) -> None:
            make(directory, path, **kwargs)
            vanish("later")

        self.patch(os, "mkdir", vanish_soon)
        self.patch(Directory, "make_directories", vanish_later)
        self.assertEqual(self.offset(self.session()), 0)
        self.assertEqual(left, {"soon": 0, "later": 0})

    def test_offset(self) -> None:
        """The offset of a session is the number of bytes that are there."""
        self.assertEqual(self.offset(self.session(b"12345")), 5)

    def test_session_of_the_original(self) -> None:
        """A session that a node of the original has begun is gone on with."""
        self.write(b"123", UPLOADS, "0123456789abcdef")
        self.assertEqual(self.offset("0123456789abcdef"), 3)

    def test_busy(self) -> None:
        """A session is held by one at a time, and is free when its file is closed."""
        session = self.session(b"123")
        held = self.hold(session)
        self.assertRaises(staging.Busy, self.hold, session)
        held.file.close()
        self.assertEqual(self.offset(session), 3)

    def test_wanted(self) -> None:
        """A session is wanted from when it is found to be held until it is had."""
        session, other = self.session(), self.session()
        held = self.hold(session)
        self.assertFalse(staging.is_wanted(self.root, session))
        for _ in range(2):
            self.assertRaises(staging.Busy, self.hold, session)
            self.assertTrue(staging.is_wanted(self.root, session))
        self.assertFalse(staging.is_wanted(self.root, other))
        held.file.close()
        with self.hold(session).file:
            self.assertFalse(staging.is_wanted(self.root, session))

    def test_unknown(self) -> None:
        """A session that was never made is not found, with other sessions or without."""
        self.assertRaises(NoSuchUpload, self.hold, "0" * 32)
        self.session()
        self.assertRaises(NoSuchUpload, self.hold, "0" * 32)

    def test_completed(self) -> None:
        """A session that is complete says so, as long as it is remembered."""
        session = self.finish("file")
        self.assertRaises(staging.Completed, self.hold, session)

    def test_completed_wanted(self) -> None:
        """Who had asked for a session, and finds it complete, asks for it no more."""
        session = self.session(b"123")
        with self.hold(session).file:
            self.assertRaises(staging.Busy, self.hold, session)
        os.unlink(os.path.join(self.path, UPLOADS, session))
        self.assertTrue(staging.is_wanted(self.root, session))
        self.assertRaises(NoSuchUpload, self.hold, session)
        self.assertFalse(staging.is_wanted(self.root, session))

    def test_discarded(self) -> None:
        """A session that was ended is not found, and nothing of it is left."""
        session = self.session(b"123")
        self.remember(session, 1)
        self.discard(session)
        self.assertRaises(NoSuchUpload, self.hold, session)
        self.assertEqual(os.listdir(self.path), [])

    def test_discard_one(self) -> None:
        """Other sessions stay when one is ended."""
        session, other = self.session(b"123"), self.session(b"1234")
        self.discard(session)
        self.assertEqual(self.offset(other), 4)

    def test_ended_before_the_lock(self) -> None:
        """A session that is ended by its holder just before the lock is got is not found."""
        session = self.session(b"123")
        stat_ = os.stat

        def gone(*args: Any, **kwargs: Any) -> os.stat_result:
            self.patch(os, "stat", stat_)
            os.unlink(self.at(UPLOADS, session))
            self.write(b"another", UPLOADS, session)
            return stat_(*args, **kwargs)

        self.patch(os, "stat", gone)
        self.assertRaises(NoSuchUpload, self.hold, session)

    def planted(self) -> None:
        os.makedirs(self.at(UPLOADS))
        secret = os.path.join(self.outside, "secret")
        with open(secret, "wb") as file:
            file.write(b"secret")
        os.symlink(secret, self.at(UPLOADS, "a" * 32))
        os.mkfifo(self.at(UPLOADS, "b" * 32))
        os.mkdir(self.at(UPLOADS, "c" * 32))
        for name in "abc":
            self.assertRaises(REFUSED, self.hold, name * 32)
        with open(secret, "rb") as file:
            self.assertEqual(file.read(), b"secret")

    def test_planted(self) -> None:
        """A link, a FIFO or a directory in the place of a session is no session."""
        self.planted()

    def test_planted_without_openat2(self) -> None:
        """A link, a FIFO or a directory is no session on old kernels either."""
        self.patch(beneath, "open_beneath", beneath._walk)
        self.planted()

    def planted_directory(self) -> None:
        with open(os.path.join(self.outside, "a" * 32), "wb") as file:
            file.write(b"secret")
        os.symlink(self.outside, self.at(UPLOADS))
        self.assertRaises(REFUSED, self.hold, "a" * 32)
        self.assertRaises(REFUSED, self.staging.create)
        self.assertRaises(REFUSED, self.remember, "a" * 32, 0)
        self.assertRaises(REFUSED, self.discard, "a" * 32)
        self.assertEqual(os.listdir(self.outside), ["a" * 32])

    def test_planted_directory(self) -> None:
        """A link in the place of the directory of sessions leads nowhere."""
        self.planted_directory()

    def test_planted_directory_without_openat2(self) -> None:
        """A link in the place of the directory leads nowhere on old kernels either."""
        self.patch(beneath, "open_beneath", beneath._walk)
        self.planted_directory()


class FallbackTests(StagingTestCase):
    def test_fall_back(self) -> None:
        """Bytes that were never verified are gone when the next one takes hold of the session."""
        session = self.session(b"verified")
        self.remember(session, 8)
        self.write(b"verified, and not", UPLOADS, session)
        self.assertEqual(self.offset(session), 8)
        self.assertEqual(self.read(UPLOADS, session), b"verified")

    def test_fall_back_once(self) -> None:
        """A session that has fallen back keeps what comes later."""
        session = self.session(b"verified")
        self.remember(session, 8)
        self.offset(session)
        self.write(b"verified and more", UPLOADS, session)
        self.assertEqual(self.offset(session), 17)
        self.assertEqual(os.listdir(self.at(UPLOADS)), [session])

    def test_not_longer(self) -> None:
        """A session never gets bytes by falling back."""
        session = self.session(b"12")
        self.remember(session, 8)
        self.assertEqual(self.offset(session), 2)
        self.assertEqual(self.read(UPLOADS, session), b"12")

    def test_note_that_was_never_written(self) -> None:
        """
        No byte is lost when the daemon ends between making the note and writing into it: nothing
        that is not verified can have arrived yet.
        """
        session = self.session(b"promised")
        self.write(b"", UPLOADS, session + ".offset")
        self.assertEqual(self.offset(session), 8)
        self.assertEqual(self.read(UPLOADS, session), b"promised")

    def test_planted_notes(self) -> None:
        """A note that somebody else has written is no internal error, whatever it says."""
        for content in (b"garbage", b"-5", b"\xff\xff", b"9" * 32, b"1_0", b"1 2"):
            session = self.session(b"12345")
            self.write(content, UPLOADS, session + ".offset")
            try:
                self.offset(session)
            except StorageProxyError:
                pass
            self.discard(session)

    def test_planted_link(self) -> None:
        """A link in the place of the note is not written through."""
        session = self.session(b"12345")
        note = os.path.join(self.outside, "note")
        with open(note, "wb") as file:
            file.write(b"3")
        os.symlink(note, self.at(UPLOADS, session + ".offset"))
        self.assertRaises(REFUSED, self.remember, session, 4)
        with open(note, "rb") as file:
            self.assertEqual(file.read(), b"3")

    def test_settle(self) -> None:
        """When a chunk is verified or dropped, exactly the bytes that count are kept."""
        for size in (4, 9):
            session = self.session(b"okay")
            held = self.hold(session)
            self.remember(session, 4)
            held.file.write([b"chunk"], 4)
            self.staging.keep(session, held.file, size)
            held.file.close()
            self.assertEqual(self.offset(session), size)
            self.assertNotIn(session + ".offset", os.listdir(self.at(UPLOADS)))


class FinishTests(StagingTestCase):
    def test_finish(self) -> None:
        """A complete file gets its name, and nothing else is left in the folder."""
        session = self.finish("file")
        self.assertEqual(self.read("file"), b"content")
        self.assertEqual(os.listdir(self.path), ["file"])
        self.assertRaises(staging.Completed, self.hold, session)

    def test_parents(self) -> None:
        """Directories above the file that are missing are made."""
        self.finish("a/b/c/file")
        self.assertEqual(self.read("a", "b", "c", "file"), b"content")

    def test_replaces(self) -> None:
        """A file of that name is replaced, and so is a link, not what it leads to."""
        self.write(b"old and longer", "file")
        self.finish("file")
        self.assertEqual(self.read("file"), b"content")
        target = os.path.join(self.outside, "target")
        with open(target, "wb") as file:
            file.write(b"secret")
        os.symlink(target, self.at("link"))
        self.finish("link")
        self.assertEqual(self.read("link"), b"content")
        with open(target, "rb") as file:
            self.assertEqual(file.read(), b"secret")

    def test_through_link_inside(self) -> None:
        """A link to a directory inside leads there."""
        os.makedirs(self.at("sub"))
        os.symlink("sub", self.at("link"))
        self.finish("link/file")
        self.assertEqual(self.read("sub", "file"), b"content")

    def test_onto_directory(self) -> None:
        """A directory is never replaced, not even an empty one; the session stays."""
        os.makedirs(self.at("sub"))
        self.assertRaises(TargetConflict, self.finish, "sub")
        [session] = os.listdir(self.at(UPLOADS))
        self.assertEqual(self.offset(session), 7)

    def test_out(self) -> None:
        """No file is put outside, by ``..`` or by a link."""
        name = os.path.basename(self.outside)
        os.symlink(self.outside, self.at("out"))
        os.makedirs(self.at("sub"))
        os.symlink(f"../../../{name}", self.at("sub", "out"))
        for path in (
            f"../../{name}/file",
            "out/file",
            "out/new/file",
            "sub/out/file",
            f"new/../../../{name}/file",
            "..",
            ".",
            "sub/..",
            "",
        ):
            self.assertRaises(REFUSED, self.finish, path)
            self.assertRaises(InvalidSubpath, staging.check_target, self.folder, path)
        self.assertEqual(os.listdir(self.outside), [])
        self.assertEqual(sorted(os.listdir(self.volume)), [".storage-proxy", "folder"])

    def test_swapped(self) -> None:
        """A directory that becomes a link out at the last moment is not followed."""
        os.makedirs(self.at("sub"))
        rename = os.rename

        def swap(*args: Any, **kwargs: Any) -> None:
            rename(self.at("sub"), self.at("swapped"))
            os.symlink(self.outside, self.at("sub"))
            rename(*args, **kwargs)

        self.patch(os, "rename", swap)
        self.finish("sub/file")
        self.assertEqual(self.read("swapped", "file"), b"content")
        self.assertEqual(os.listdir(self.outside), [])

    def test_order(self) -> None:
        """The bytes, then the memory, then the name, then its directory reach the disk."""
        seen: list[str] = []
        fsync, rename = os.fsync, os.rename

        def see_fsync(descriptor: int) -> None:
            kind = os.fstat(descriptor).st_mode
            seen.append("file" if stat.S_ISREG(kind) else "directory")
            fsync(descriptor)

        def see_rename(*args: Any, **kwargs: Any) -> None:
            seen.append("rename")
            rename(*args, **kwargs)

        self.patch(os, "fsync", see_fsync)
        self.patch(os, "rename", see_rename)
        self.finish("file")
        self.assertLess(seen.index("file"), seen.index("rename"))
        self.assertIn("directory", seen[seen.index("rename") :])

    def test_many_at_a_time(self) -> None:
        """Sessions begin and end in several threads, and none takes a thing away from another."""

        def upload(number: int) -> None:
            for turn in range(50):
                self.finish(f"{number}-{turn}")

        with ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(upload, number) for number in range(8)]:
                done.result()
        self.assertEqual(len(os.listdir(self.path)), 400)

    def test_others_stay(self) -> None:
        """Other sessions go on when one is complete."""
        other = self.session(b"12")
        self.finish("file")
        self.assertEqual(self.offset(other), 2)

    def test_check_target(self) -> None:
        """What can be put somewhere passes, whether or not its parents are there."""
        self.write(b"", "sub", "file")
        for path in ("file", "sub/file", "sub/new", "a/b/c", "sub/a/b"):
            staging.check_target(self.folder, path)
        self.assertRaises(TargetConflict, staging.check_target, self.folder, "sub")

    def test_check_target_below_file(self) -> None:
        """A file cannot hold another one."""
        self.write(b"", "sub", "file")
        self.assertRaises(REFUSED, staging.check_target, self.folder, "sub/file/new")


class NoteTests(StagingTestCase):
    """What remembers a session that is complete."""

    def inode(self, session: str) -> int:
        return os.stat(os.path.join(self.volume, staging.COMPLETED, session)).st_ino

    def shared(self) -> str:
        return os.path.join(self.volume, staging._SHARED_NOTE)

    def assert_completed(self, *sessions: str) -> None:
        for session in sessions:
            self.assertRaises(staging.Completed, self.hold, session)

    def test_one_inode(self) -> None:
        """The notes of sessions that are completed one after the other take one inode."""
        sessions = [self.finish(name) for name in ("a", "b", "c")]
        self.assertEqual(len({self.inode(session) for session in sessions}), 1)
        self.assert_completed(*sessions)

    def test_not_for_ever(self) -> None:
        """After a while it is another one, so that its age tells when it can go."""
        old = self.finish("a")
        for age in (staging.SHARED_SECONDS, -staging.SHARED_SECONDS):
            long_ago = time.time() - age - 1
            os.utime(self.shared(), (long_ago, long_ago))
            new, next_one = self.finish("b"), self.finish("c")
            self.assertEqual(self.inode(new), self.inode(next_one))
            self.assertNotEqual(self.inode(new), self.inode(old))
        staging.sweep_notes(self.root, time.time())
        self.assert_completed(new, next_one)

    def test_as_many_as_there_may_be(self) -> None:
        """One that can have no more names, or a file system without them, costs a new one."""
        refusal: list[int] = []

        def link(*args: Any, **kwargs: Any) -> None:
            raise OSError(refusal[0], os.strerror(refusal[0]))

        first = self.finish("a")
        self.patch(os, "link", link)
        for number in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
            refusal[:] = [number]
            self.assert_completed(first, self.finish("b"), self.finish("c"))

    def test_again(self) -> None:
        """One that is there already, as a process was killed before the rename, is young again."""
        session = self.session(b"content")
        self.staging._note_completed(session)
        self.assertEqual(self.offset(session), 7)
        note = os.path.join(self.volume, staging.COMPLETED, session)
        os.utime(note, (1, 1))
        shared = self.inode(self.finish("other"))
        with self.hold(session).file as file:
            self.staging.finish(session, file, "file")
        self.assert_completed(session)
        self.assertGreater(os.stat(note).st_mtime, time.time() - 60)
        self.assertEqual(self.inode(self.finish("another")), shared)

    def test_in_the_way(self) -> None:
        """What is in the place of the shared one is no obstacle."""
        os.makedirs(os.path.join(self.shared(), "inside"))
        self.assert_completed(self.finish("a"), self.finish("b"))

    def test_cluster(self) -> None:
        """On a volume of several machines, each has one of its own."""
        self.staging = staging.Staging(self.root, self.folder, Durability.SHARED)
        one, other = self.finish("a", b""), self.finish("b", b"")
        self.assertNotEqual(self.inode(one), self.inode(other))
        self.assertFalse(os.path.lexists(self.shared()))


class SweepTests(StagingTestCase):
    def aged(self, name: str, age: float, content: bytes = b"x") -> str:
        self.write(content, UPLOADS, name)
        os.utime(self.at(UPLOADS, name), (10_000 - age, 10_000 - age))
        return name

    def sweep(self, before: float = 9_000) -> int:
        return staging.sweep(self.folder, before)

    def test_stale(self) -> None:
        """Sessions that nobody has written to for long are removed, and no others."""
        self.aged("a" * 32, 2000)
        self.aged("a" * 32 + ".offset", 2000, b"1")
        self.aged("b" * 32, 500)
        self.assertGreaterEqual(self.sweep(), 1)
        self.assertEqual(os.listdir(self.at(UPLOADS)), ["b" * 32])

    def test_all(self) -> None:
        """The directory goes with the last session, and only then."""
        self.aged("a" * 32, 2000)
        self.sweep()
        self.assertEqual(os.listdir(self.path), [])

    def test_held(self) -> None:
        """A session that somebody works on stays, however old its bytes are."""
        session = self.aged("a" * 32, 2000)
        held = self.hold(session)
        self.aged(session, 2000)
        self.assertEqual(self.sweep(), 0)
        held.file.close()
        self.assertEqual(self.sweep(), 1)

    def test_bad_note(self) -> None:
        """A note that cannot be read does not keep a stale session."""
        self.aged("a" * 32, 2000)
        self.aged("a" * 32 + ".offset", 500, b"garbage")
        self.aged("b" * 32, 2000)
        self.sweep()
        self.assertFalse(os.path.exists(self.at(UPLOADS)))

    def test_others(self) -> None:
        """Links, FIFOs and directories among the sessions are not followed, opened or entered."""
        secret = os.path.join(self.outside, "secret")
        with open(secret, "wb"):
            pass
        os.utime(secret, (1, 1))
        os.makedirs(self.at(UPLOADS, "sub"))
        os.symlink(secret, self.at(UPLOADS, "a" * 32))
        os.utime(self.at(UPLOADS, "a" * 32), (1, 1), follow_symlinks=False)
        os.mkfifo(self.at(UPLOADS, "b" * 32))
        os.utime(self.at(UPLOADS, "b" * 32), (1, 1))
        self.aged("c" * 32, 2000)
        os.utime(self.at(UPLOADS, "sub"), (1, 1))
        self.sweep()
        self.assertNotIn("c" * 32, os.listdir(self.at(UPLOADS)))
        self.assertEqual(os.listdir(self.outside), ["secret"])

    def planted(self) -> None:
        secret = os.path.join(self.outside, "a" * 32)
        with open(secret, "wb"):
            pass
        os.utime(secret, (1, 1))
        os.symlink(self.outside, self.at(UPLOADS))
        self.assertEqual(self.sweep(), 0)
        self.assertTrue(os.path.islink(self.at(UPLOADS)))
        self.assertEqual(os.listdir(self.outside), ["a" * 32])

    def test_planted(self) -> None:
        """A link in the place of the directory of sessions is left alone."""
        self.planted()

    def test_planted_without_openat2(self) -> None:
        """A link in the place of the directory is left alone on old kernels too."""
        self.patch(beneath, "open_beneath", beneath._walk)
        self.planted()

    def test_none(self) -> None:
        """A folder without sessions, or with a file in their place, has nothing to be swept."""
        self.assertEqual(self.sweep(), 0)
        self.write(b"of the owner", UPLOADS)
        self.assertEqual(self.sweep(), 0)
        self.assertEqual(self.read(UPLOADS), b"of the owner")

    def test_notes(self) -> None:
        """
        Sessions that were completed, wanted or noted long ago are forgotten; younger ones are
        remembered.
        """
        staging.sweep_notes(self.root, 9_000)
        for path in (staging.COMPLETED, staging.WANTED, staging.OFFSETS):
            notes = os.path.join(self.volume, path)
            os.makedirs(notes)
            for name, age in (("old", 8_000), ("new", 9_500)):
                with open(os.path.join(notes, name), "wb"):
                    pass
                os.utime(os.path.join(notes, name), (age, age))
            staging.sweep_notes(self.root, 9_000)
            self.assertEqual(os.listdir(notes), ["new"])
