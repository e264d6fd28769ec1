"""
Tests for :mod:`storageproxy.transfer.uploads` and :mod:`storageproxy.transfer.staging`, through the
client API: what a client sees, and what is on the disk.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from storageproxy import beneath
from storageproxy.beneath import File, WritebackError
from storageproxy.durability import Durability
from storageproxy.errors import (
    InvalidSubpath,
    TargetConflict,
    VFolderNotFound,
    VolumeUnavailable,
)
from storageproxy.transfer import sink
from storageproxy.transfer.locks import PATIENCE
from storageproxy.transfer.staging import WANTED
from storageproxy.transfer.uploads import LOOK, POLL
from storageproxy.vfolder import VFolderID
from tests.harness import Answer, Descriptors, MemoryCase, MemoryProxy, Wire, head

_write, _unlink = File.write, os.unlink


def result_of(work: Any) -> Any:
    """What a coroutine returns at once."""
    results: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    return results[0]


def upload_url(proxy: MemoryProxy, vfid: str, relpath: str, size: int, session: str) -> str:
    token = proxy.sign(
        op="upload", volume="local", vfid=vfid, relpath=relpath, size=size, session=session
    )
    return f"/upload?token={token}"


def patch_head(url: str, offset: int, length: int | None, **headers: str) -> bytes:
    sent = {"Upload-Offset": str(offset), "Tus-Resumable": "1.0.0"}
    sent.update({name.replace("_", "-"): value for name, value in headers.items()})
    if length is None:
        sent["Transfer-Encoding"] = "chunked"
    return head("PATCH", url, sent, None, length)


class UploadCase(MemoryCase):
    size = 12
    content = b"abcdefghijkl"

    def setUp(self) -> None:
        super().setUp()
        self.url = self.create("dir/file", self.size)

    def create(self, relpath: str, size: int) -> str:
        session = self.successResultOf(
            Deferred.fromCoroutine(
                self.proxy.uploads.create(
                    self.proxy.volumes.get("local"), VFolderID.parse(self.vfid), relpath, size
                )
            )
        )
        self.staged = self.folder / ".upload" / session
        return upload_url(self.proxy, self.vfid, relpath, size, session)

    def ask(self, method: str, url: str | None = None, **headers: str) -> Answer:
        """A request on a connection of its own."""
        wire = self.begin(method, url, **headers)
        return wire.answers(method)[-1]

    def begin(self, method: str, url: str | None = None, **headers: str) -> Wire:
        wire = self.proxy.connect()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        wire.request(method, url or self.url, named)
        return wire

    def patch_at(self, offset: int, body: bytes, length: int | None = None, **more: str) -> Wire:
        """Send a part of the upload, or the beginning of one that is announced as longer."""
        wire = self.proxy.connect()
        announced = len(body) if length is None else length
        wire.send(patch_head(self.url, offset, announced, **more))
        wire.send(body)
        return wire

    @property
    def target(self) -> Path:
        return self.folder / "dir" / "file"

    def offset(self) -> int:
        answer = self.ask("HEAD")
        self.assertEqual(answer.status, 200)
        return int(answer.headers["upload-offset"])


class UploadTests(UploadCase):
    def test_in_parts(self) -> None:
        """A file is uploaded in parts, and appears when it is whole."""
        self.assertEqual(self.patch_at(0, b"abcd").answers()[0].headers["upload-offset"], "4")
        self.assertEqual(self.offset(), 4)
        self.assertFalse(self.target.exists())
        self.assertEqual(self.staged.read_bytes(), b"abcd")
        answer = self.patch_at(4, b"efghijkl").answers()[0]
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (204, "12"))
        self.assertEqual(self.target.read_bytes(), self.content)
        self.assertFalse((self.folder / ".upload").exists())

    def test_head_after_completion(self) -> None:
        """FIX 7: when the last answer was lost, a HEAD still says that all is there."""
        self.patch_at(0, self.content)
        self.assertEqual(self.offset(), self.size)
        self.proxy.restart()
        self.assertEqual(self.offset(), self.size)

    def test_patch_after_completion(self) -> None:
        """A client that sends its last part again, as its answer was lost, changes nothing."""
        self.patch_at(0, self.content)
        self.target.write_bytes(b"changed since")
        self.assertEqual(self.patch_at(0, self.content).answers()[0].status, 409)
        answer = self.patch_at(self.size, b"").answers()[0]
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (204, "12"))
        self.assertEqual(self.target.read_bytes(), b"changed since")

    def test_delete_after_completion(self) -> None:
        """A complete file is not the session's any more: it is not ended, and stays."""
        self.patch_at(0, self.content)
        self.assertEqual(self.ask("DELETE").status, 404)
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_replaces(self) -> None:
        """A file of the same name is replaced, in one step."""
        self.put("dir/file", b"old")
        self.patch_at(0, b"abcd")
        self.assertEqual(self.target.read_bytes(), b"old")
        self.patch_at(4, b"efghijkl")
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_empty_file(self) -> None:
        """FIX 5: an empty file is there when its session is made; nothing is ever sent for it."""
        self.url = self.create("deep/down/empty", 0)
        self.assertEqual((self.folder / "deep" / "down" / "empty").read_bytes(), b"")
        self.assertEqual(self.offset(), 0)

    def test_cut_keeps_bytes(self) -> None:
        """Bytes that came before a cut stay."""
        wire = self.patch_at(0, b"abcde", 12)
        wire.disconnect()
        self.assertEqual(self.offset(), 5)
        self.patch_at(5, b"fghijkl")
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_cut_at_the_last_byte(self) -> None:
        """When the body is complete and the client gone, the file is complete as well."""
        self.threads.held = True
        wire = self.patch_at(0, self.content)
        self.threads.step()
        wire.disconnect()
        self.threads.release()
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_wrong_offset(self) -> None:
        """FIX 2: a part that does not belong here changes nothing, and the right offset is told."""
        self.patch_at(0, b"abcd")
        answer = self.patch_at(3, b"xxx").answers()[0]
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (409, "4"))
        self.assertEqual(self.staged.read_bytes(), b"abcd")

    def test_too_long(self) -> None:
        """FIX 3: a body that is announced as too long is refused before it is read."""
        wire = self.patch_at(0, b"", 13)
        self.assertEqual(wire.answers()[0].status, 413)
        self.assertEqual(self.offset(), 0)

    def test_too_long_without_a_length(self) -> None:
        """FIX 3: a body that turns out to be too long is refused, and nothing of it stays."""
        self.patch_at(0, b"abcd")
        wire = self.proxy.connect()
        wire.send(patch_head(self.url, 4, None), b"8\r\nefghijkl\r\n", b"1\r\nm\r\n0\r\n\r\n")
        self.assertEqual(wire.answers()[0].status, 413)
        self.assertEqual(self.offset(), 4)
        self.assertFalse(self.target.exists())

    def test_terminate(self) -> None:
        """An upload that is given up leaves nothing."""
        self.patch_at(0, b"abcd")
        self.assertEqual(self.ask("DELETE").status, 204)
        self.assertEqual(self.ask("HEAD").status, 404)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_checksum(self) -> None:
        """A part whose checksum is right is kept."""
        digest = b64encode(hashlib.sha256(b"abcd").digest()).decode()
        wire = self.patch_at(0, b"abcd", Upload_Checksum=f"sha256 {digest}")
        self.assertEqual(wire.answers()[0].status, 204)
        self.assertEqual(self.offset(), 4)

    def test_wrong_checksum(self) -> None:
        """Nothing is kept of a part whose checksum is wrong."""
        self.patch_at(0, b"abcd")
        digest = b64encode(hashlib.sha1(b"other").digest()).decode()
        wire = self.patch_at(4, b"efghijkl", Upload_Checksum=f"sha1 {digest}")
        self.assertEqual(wire.answers()[0].status, 460)
        self.assertEqual(self.offset(), 4)
        self.assertFalse(self.target.exists())

    def test_cut_checksum(self) -> None:
        """Nothing is kept of a part that could not be verified, as it was cut."""
        digest = b64encode(hashlib.md5(b"abcdef").digest()).decode()
        self.patch_at(0, b"abc", 6, Upload_Checksum=f"md5 {digest}").disconnect()
        self.assertEqual(self.offset(), 0)

    def test_crash_before_a_checksum_is_verified(self) -> None:
        """Bytes that were never verified are not told after a crash."""
        self.patch_at(0, b"abcd")
        self.staged.write_bytes(b"abcdef")
        (self.staged.parent / f"{self.staged.name}.offset").write_bytes(b"4")
        self.assertEqual(self.offset(), 4)
        self.assertEqual(self.staged.read_bytes(), b"abcd")

    def test_told_bytes_are_synced_first(self) -> None:
        """Every byte that a HEAD or PATCH tells of was put on stable storage before."""
        synced: list[int] = []

        def sync(file: File) -> None:
            synced.append(file.status().st_size)

        self.patch(File, "sync_data", sync)
        self.patch_at(0, b"abcd")
        self.assertEqual(synced[-1:], [4])
        synced.clear()
        self.offset()
        self.assertEqual(synced, [4])

    def test_file_is_synced_before_it_appears(self) -> None:
        """A file with its final name is on stable storage, and so is its name."""
        steps: list[str] = []
        fsync, rename = os.fsync, os.rename

        def traced_fsync(descriptor: int) -> None:
            steps.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
            fsync(descriptor)

        def traced_rename(*args: Any, **kwargs: Any) -> None:
            steps.append("rename")
            rename(*args, **kwargs)

        self.patch(os, "fsync", traced_fsync)
        self.patch(os, "rename", traced_rename)
        self.patch_at(0, self.content)
        at = steps.index("rename")
        self.assertIn("file", steps[:at])
        self.assertIn("directory", steps[at:])

    def test_descriptors_are_closed(self) -> None:
        """However an upload ends, its files are closed."""
        before = Descriptors()
        self.patch_at(0, b"abcd")
        self.patch_at(4, b"ef", 8).disconnect()
        self.patch_at(0, b"x")
        self.offset()
        self.patch_at(6, b"ghijkl")
        self.offset()
        self.assertEqual(before.left(self.root), set())


class TargetTests(UploadCase):
    def refused(self, relpath: str, error: type[Exception]) -> None:
        work = self.proxy.uploads.create(
            self.proxy.volumes.get("local"), VFolderID.parse(self.vfid), relpath, 3
        )
        self.failureResultOf(Deferred.fromCoroutine(work), error)

    def test_outside(self) -> None:
        """FIX 1: no session is made for a target outside of the vfolder."""
        (self.folder / "link").symlink_to(self.root)
        for relpath in ("../x", "a/../../x", "link/x", "../../../x", ".", "..", "a/.."):
            self.refused(relpath, InvalidSubpath)

    def test_directory(self) -> None:
        """No session is made for a target that is a directory."""
        (self.folder / "there").mkdir()
        self.refused("there", TargetConflict)

    def test_no_folder(self) -> None:
        """No session is made in a vfolder that does not exist."""
        self.vfid = "0" * 32
        self.refused("x", VFolderNotFound)

    def test_swapped_for_a_link(self) -> None:
        """FIX 1: a directory that becomes a link out of the folder meanwhile is not followed."""
        outside = self.root / "outside"
        outside.mkdir()
        (self.folder / "dir").symlink_to(outside)
        answer = self.patch_at(0, self.content).answers()[0]
        self.assertEqual(answer.status, 400)
        self.assertEqual(list(outside.iterdir()), [])
        self.assertEqual(self.staged.read_bytes(), self.content)

    def test_target_becomes_a_directory(self) -> None:
        """A directory that is in the way at the end is a conflict, and goes away or stays."""
        self.target.mkdir(parents=True)
        self.assertEqual(self.patch_at(0, self.content).answers()[0].status, 409)
        self.target.rmdir()
        self.assertEqual(self.offset(), self.size)
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_target_is_a_link(self) -> None:
        """A link in the target's place is replaced, and what it points to left alone."""
        secret = self.root / "secret"
        secret.write_bytes(b"secret")
        self.target.parent.mkdir()
        self.target.symlink_to(secret)
        self.patch_at(0, self.content)
        self.assertEqual(secret.read_bytes(), b"secret")
        self.assertFalse(self.target.is_symlink())

    def test_parents_are_made(self) -> None:
        """FIX 4: directories above the target that are missing are made."""
        self.patch_at(0, self.content)
        self.assertTrue(self.target.is_file())

    def test_staging_directory_is_a_link(self) -> None:
        """Nothing is staged through a link that lies in the staging directory's place."""
        outside = self.root / "outside"
        outside.mkdir()
        shutil.rmtree(self.folder / ".upload")
        (self.folder / ".upload").symlink_to(outside)
        (outside / self.staged.name).write_bytes(b"")
        self.assertEqual(self.patch_at(0, b"abcd").answers()[0].status, 404)
        self.assertEqual((outside / self.staged.name).read_bytes(), b"")

    def test_staging_file_is_a_link(self) -> None:
        """Nothing is written through a link that lies in the staging file's place."""
        victim = self.root / "victim"
        victim.write_bytes(b"")
        self.staged.unlink()
        self.staged.symlink_to(victim)
        self.assertEqual(self.patch_at(0, b"abcd").answers()[0].status, 404)
        self.assertEqual(victim.read_bytes(), b"")


class StealTests(UploadCase):
    def test_head_steals(self) -> None:
        """A HEAD ends a stalled PATCH, waits until it has settled, and tells all that came."""
        stalled = self.patch_at(0, b"abcd", 12)
        self.assertEqual(self.offset(), 4)
        self.assertTrue(stalled.aborted)
        self.assertEqual(stalled.value(), b"")

    def test_patch_steals(self) -> None:
        """A newer PATCH goes on where the stalled one was."""
        stalled = self.patch_at(0, b"abcd", 12)
        answer = self.patch_at(4, b"efghijkl").answers()[0]
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (204, "12"))
        self.assertTrue(stalled.aborted)
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_waits_until_it_has_settled(self) -> None:
        """Bytes that are still on their way to the disk are told when they are there."""
        stalled = self.patch_at(0, b"abcd", 12)
        self.threads.held = True
        head_wire = self.begin("HEAD")
        # The write, the sync and the close of the older request come first.
        self.assertEqual(head_wire.value(), b"")
        self.threads.step()
        self.assertEqual(head_wire.value(), b"")
        self.threads.release()
        self.assertEqual(head_wire.answers("HEAD")[0].headers["upload-offset"], "4")
        self.assertTrue(stalled.aborted)

    def test_stolen_client_sends_on(self) -> None:
        """What a stalled client sends after it was replaced goes nowhere."""
        stalled = self.patch_at(0, b"abcd", 12)
        self.threads.held = True
        head_wire = self.begin("HEAD")
        stalled.send(b"XXXX")
        self.threads.release()
        self.assertEqual(head_wire.answers("HEAD")[0].headers["upload-offset"], "4")
        self.assertEqual(self.staged.read_bytes(), b"abcd")

    def test_holder_that_does_not_settle(self) -> None:
        """When the older request hangs in the disk, the newer one is told so in bounded time."""
        self.patch_at(0, b"abcd", 12)
        self.threads.held = True
        newer = self.begin("HEAD")
        self.clock.advance(PATIENCE - 1)
        self.assertEqual(newer.value(), b"")
        self.clock.advance(1)
        self.assertEqual(newer.answers("HEAD")[0].status, 423)
        self.threads.release()
        self.assertEqual(self.offset(), 4)

    def test_newest_of_many(self) -> None:
        """Any number of retries end in one that has the session."""
        for _ in range(5):
            self.patch_at(0, b"", 12)
        self.assertEqual(self.patch_at(0, self.content).answers()[0].status, 204)
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_delete_steals(self) -> None:
        """A client that gives up need not wait for its own stalled PATCH."""
        stalled = self.patch_at(0, b"abcd", 12)
        self.assertEqual(self.ask("DELETE").status, 204)
        self.assertTrue(stalled.aborted)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_held_by_another_process(self) -> None:
        """A session that a process elsewhere holds is waited for, and then refused."""
        with self.staged.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            wire = self.begin("HEAD")
            for _ in range(200):
                self.clock.advance(PATIENCE / 100)
            self.assertEqual(wire.answers("HEAD")[0].status, 423)

    def test_let_go_by_another_process(self) -> None:
        """A session that a process elsewhere lets go of is taken."""
        with self.staged.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            wire = self.begin("HEAD")
            self.clock.advance(PATIENCE / 4)
            self.assertEqual(wire.value(), b"")
        self.clock.advance(PATIENCE / 4)
        self.assertEqual(wire.answers("HEAD")[0].status, 200)

    def test_other_sessions_do_not_wait(self) -> None:
        """A stalled upload is nothing to the others."""
        first = self.patch_at(0, b"abcd", 12)
        self.url = self.create("other", 3)
        self.assertEqual(self.patch_at(0, b"xyz").answers()[0].status, 204)
        self.assertFalse(first.closed)


class WorkersTests(UploadCase):
    """
    Two processes that share a volume. A lock of flock(2) belongs to an open file: two objects in
    one process stand in each other's way as two processes do.
    """

    def setUp(self) -> None:
        super().setUp()
        self.other = MemoryProxy(self.root)

    def ask_other(self, method: str, sent: bytes = b"") -> Wire:
        """Send a request to the other process, which finds the session held."""
        wire = self.other.connect()
        if sent:
            wire.send(sent)
        else:
            wire.request(method, self.url)
        return wire

    def wanted(self) -> list[str]:
        return os.listdir(self.root / "local" / WANTED)

    def pass_time(self, seconds: float) -> None:
        """Let time go by in both."""
        for _ in range(round(seconds / POLL)):
            self.clock.advance(POLL)
            self.other.reactor.advance(POLL)

    def test_head_steals(self) -> None:
        """A HEAD ends a stalled PATCH of another process, and tells all that has come there."""
        stalled = self.patch_at(0, b"abcd", 12)
        newer = self.ask_other("HEAD")
        self.assertEqual(newer.value(), b"")
        self.assertFalse(stalled.closed)
        self.pass_time(LOOK + 2 * POLL)
        self.assertTrue(stalled.aborted)
        self.assertEqual(newer.answers("HEAD")[0].headers["upload-offset"], "4")
        self.assertEqual(self.wanted(), [])

    def test_patch_steals(self) -> None:
        """A newer PATCH goes on in another process, with the bytes of both."""
        stalled = self.patch_at(0, b"abcd", 12)
        newer = self.ask_other("PATCH", patch_head(self.url, 4, 8) + b"efghijkl")
        self.pass_time(LOOK + 2 * POLL)
        self.assertTrue(stalled.aborted)
        self.assertEqual(newer.answers()[0].status, 204)
        self.assertEqual(self.target.read_bytes(), self.content)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["dir"])

    def test_delete_steals(self) -> None:
        """An upload is given up in another process than the one that it is stalled in."""
        stalled = self.patch_at(0, b"abcd", 12)
        newer = self.ask_other("DELETE")
        self.pass_time(LOOK + 2 * POLL)
        self.assertTrue(stalled.aborted)
        self.assertEqual(newer.answers()[0].status, 204)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_new_holder_goes_on(self) -> None:
        """Who has got a session is not stopped by having asked for it."""
        self.patch_at(0, b"abcd", 12)
        newer = self.ask_other("PATCH", patch_head(self.url, 4, 8))
        self.pass_time(5 * LOOK)
        newer.send(b"efgh")
        self.pass_time(5 * LOOK)
        self.assertFalse(newer.aborted)
        newer.send(b"ijkl")
        self.assertEqual(newer.answers()[0].status, 204)
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_note_of_who_is_gone(self) -> None:
        """A process that has asked and died stops nobody who comes later."""
        note = self.root / "local" / WANTED / self.staged.name
        note.parent.mkdir(parents=True)
        note.touch()
        wire = self.patch_at(0, b"abcd", 12)
        self.pass_time(5 * LOOK)
        self.assertFalse(wire.aborted)
        wire.send(b"efghijkl")
        self.assertEqual(wire.answers()[0].status, 204)

    def test_in_turns(self) -> None:
        """Clients that take a session from each other get on all the same."""
        offset = 0
        while offset < self.size:
            for proxy in (self.proxy, self.other):
                wire = proxy.connect()
                wire.send(patch_head(self.url, offset, self.size - offset))
                wire.send(self.content[offset : offset + 2])
                self.pass_time(LOOK + 2 * POLL)
                offset += 2
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_holder_does_not_settle(self) -> None:
        """When the holder hangs in the disk, the newer request is told so in bounded time."""
        self.patch_at(0, b"abcd", 12)
        self.threads.held = True
        newer = self.ask_other("HEAD")
        self.pass_time(PATIENCE - 1)
        self.assertEqual(newer.value(), b"")
        self.assertEqual(self.wanted(), [self.staged.name])
        self.pass_time(2)
        self.assertEqual(newer.answers("HEAD")[0].status, 423)
        self.assertEqual(self.wanted(), [])
        self.threads.release()
        self.assertEqual(self.offset(), 4)

    def test_volume_fails_to_look(self) -> None:
        """An upload goes on when the volume cannot say whether somebody wants it."""
        wire = self.patch_at(0, b"abcd", 12)
        self.threads.held = True
        self.clock.advance(LOOK)
        self.threads.fail(OSError(errno.EIO, "no"))
        self.clock.advance(LOOK)
        self.threads.fail(VolumeUnavailable("busy"))
        self.threads.held = False
        wire.send(b"efghijkl")
        self.assertEqual(wire.answers()[0].status, 204)
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_nobody_looks_afterwards(self) -> None:
        """When an upload has ended, however it has, nothing of it goes on."""
        self.patch_at(0, b"abcd", 12).disconnect()
        self.patch_at(4, b"efghijkl")
        self.threads.held = True
        self.clock.advance(PATIENCE)
        self.assertEqual(self.threads.calls, [])


class SyncTests(UploadCase):
    """What each durability puts on stable storage, and when."""

    def setUp(self) -> None:
        super().setUp()
        self.synced: list[str] = []
        for name in ("fsync", "fdatasync"):
            self.patch(os, name, self.traced(getattr(os, name)))
        self.patch(sink, "WINDOW", 2)
        real = beneath._sync_file_range

        def write_back(*args: Any) -> Any:
            self.synced.append("write back")
            return real(*args)

        self.patch(beneath, "_sync_file_range", write_back)

    def traced(self, sync: Any) -> Any:
        def call(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self.synced.append("directory" if os.path.isdir(path) else "file")
            sync(descriptor)

        return call

    def begin_session(self, durability: Durability) -> None:
        self.proxy.volume["local"].durability = durability
        shutil.rmtree(self.folder / ".upload", ignore_errors=True)
        self.url = self.create("dir/file", self.size)

    def checked(self, offset: int, part: bytes) -> None:
        digest = b64encode(hashlib.sha256(part).digest()).decode()
        wire = self.patch_at(offset, part, Upload_Checksum=f"sha256 {digest}")
        self.assertEqual(wire.answers()[0].status, 204)

    def test_patch(self) -> None:
        """Each part is synced before its offset is told, and the name of the file at the end."""
        self.begin_session(Durability.PATCH)
        self.synced.clear()
        self.patch_at(0, b"abcd")
        # The bytes, and then their number.
        self.assertEqual(self.synced[:2], ["write back", "file"])
        self.assertEqual(self.synced[-2:], ["file", "directory"])
        self.synced.clear()
        self.offset()
        self.assertEqual(self.synced, ["file", "file", "directory"])
        self.synced.clear()
        self.patch_at(4, b"ef")
        self.assertEqual(self.synced, ["file", "write back", "file", "file"])
        self.synced.clear()
        self.patch_at(6, self.content[6:])
        self.assertEqual(self.synced[:3], ["file", "write back", "file"])
        self.assertEqual(self.synced[-1], "directory")

    def test_mismatch(self) -> None:
        """What a killed process has left is synced before a 409 tells how much it is."""
        self.begin_session(Durability.PATCH)
        self.staged.write_bytes(b"abcd")
        self.synced.clear()
        answer = self.patch_at(2, b"cd").answers()[0]
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (409, "4"))
        self.assertEqual(self.synced[0], "file")
        self.assertEqual(self.synced[-2:], ["file", "directory"])
        self.synced.clear()
        # Who noted it may not have come to sync it.
        self.assertEqual(self.patch_at(2, b"cd").answers()[0].status, 409)
        self.assertEqual(self.synced, ["file", "file", "directory"])

    def test_completion(self) -> None:
        """Nothing is synced but the file that is complete, and its name."""
        self.begin_session(Durability.COMPLETION)
        self.checked(0, b"ab")
        self.patch_at(2, b"")
        self.assertEqual(self.offset(), 2)
        self.patch_at(2, b"c", 5).disconnect()
        self.assertEqual(self.offset(), 3)
        self.assertEqual(set(self.synced), {"write back"})
        self.synced.clear()
        self.patch_at(3, self.content[3:])
        self.assertEqual(self.synced[:2], ["write back", "file"])
        self.assertEqual(self.synced[-1], "directory")
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_none(self) -> None:
        """Nothing is ever synced."""
        self.begin_session(Durability.NONE)
        self.checked(0, b"ab")
        self.assertEqual(self.offset(), 2)
        self.patch_at(2, b"c", 5).disconnect()
        self.patch_at(3, self.content[3:])
        self.url = self.create("deep/down/empty", 0)
        self.assertEqual(self.synced, [])
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_restart_of_the_machine(self) -> None:
        """
        Without a sync nobody knows what of an unfinished upload was lost when the machine went
        down: it begins again. With one, the offset stays.
        """
        for durability, left in (
            (Durability.SHARED, 4),
            (Durability.PATCH, 4),
            (Durability.COMPLETION, 0),
            (Durability.NONE, 0),
        ):
            self.begin_session(durability)
            self.patch_at(0, b"abcd")
            self.assertEqual(self.offset(), 4)
            os.utime(self.staged, (1, 1))
            self.assertEqual(self.offset(), left)
            self.patch_at(left, self.content[left:])
            self.assertEqual(self.target.read_bytes(), self.content)

    def test_holes(self) -> None:
        """
        After the machine went down, a file may be longer than what its disk has got: what nobody
        was told comes again. When just the daemon was killed, it counts.
        """
        self.begin_session(Durability.PATCH)
        self.patch_at(0, b"abcd")
        self.staged.write_bytes(b"abcdefgh")
        self.assertEqual(self.offset(), 8)
        self.staged.write_bytes(b"abcdefgh\0\0kl")
        os.utime(self.staged, (1, 1))
        self.assertEqual(self.offset(), 8)
        self.assertEqual(self.staged.read_bytes(), b"abcdefgh")
        self.patch_at(8, self.content[8:])
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_holes_at_once(self) -> None:
        """Of an upload whose first PATCH the machine did not survive, nothing counts."""
        self.begin_session(Durability.PATCH)
        self.staged.write_bytes(b"\0\0cd")
        os.utime(self.staged, (1, 1))
        self.assertEqual(self.offset(), 0)
        self.assertEqual(self.staged.read_bytes(), b"")

    def test_fallback_comes_back(self) -> None:
        """
        A note of bytes to be verified that was taken away may be there again after the machine went
        down: no offset shrinks by it, not even when the next daemon is killed at its first step.
        """
        self.begin_session(Durability.PATCH)
        self.checked(0, b"abcd")
        self.checked(4, b"ef")
        note = self.staged.with_name(self.staged.name + ".offset")
        note.write_bytes(b"4")
        self.staged.write_bytes(b"abcdef\0h")
        os.utime(self.staged, (1, 1))

        def killed(descriptor: int) -> None:
            raise OSError(errno.EIO, "killed")

        patch = self.patch(os, "fdatasync", killed)
        self.assertEqual(self.ask("HEAD").status, 500)
        patch.restore()
        self.assertEqual(self.offset(), 6)
        self.assertFalse(note.exists())

    def test_note_that_is_too_high(self) -> None:
        """A note beyond the bytes that are there is corrected before any come."""
        self.begin_session(Durability.PATCH)
        self.patch_at(0, b"abcdefgh")
        note = Path(self.proxy.volume["local"].path, ".storage-proxy/offsets", self.staged.name)
        for left in (4, 0):
            os.truncate(self.staged, left)
            wire = self.patch_at(left, b"x", 12 - left)
            self.assertEqual(int(note.read_bytes()), left)
            wire.disconnect()

    def test_loss_at_completion(self) -> None:
        """When bytes are lost that were never synced, all of them are sent again."""
        self.begin_session(Durability.COMPLETION)
        self.patch_at(0, b"abcd")

        def fails(descriptor: int) -> None:
            raise OSError(errno.EIO, "lost")

        patch = self.patch(os, "fsync", fails)
        self.assertEqual(self.patch_at(4, self.content[4:]).answers()[0].status, 500)
        patch.restore()
        self.assertFalse(self.target.exists())
        self.assertEqual(self.offset(), 0)


class SharedTests(UploadCase):
    """On a volume of several machines, offsets count that were written down, and no others."""

    def setUp(self) -> None:
        super().setUp()
        volume = self.proxy.volume["local"]
        volume.durability = Durability.SHARED
        self.offsets = Path(volume.path) / ".storage-proxy" / "offsets"

    def noted(self) -> dict[str, int]:
        """The offsets that are written down."""
        return {path.name: int(path.read_text()) for path in self.offsets.iterdir()}

    def test_in_parts(self) -> None:
        """An offset is on stable storage before it is told, and forgotten at the end."""
        synced: list[str] = []

        def traced(sync: Any) -> Any:
            def call(descriptor: int) -> None:
                synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent.name)
                sync(descriptor)

            return call

        for name in ("fsync", "fdatasync"):
            self.patch(os, name, traced(getattr(os, name)))
        for offset in (0, 4):
            synced.clear()
            self.patch_at(offset, self.content[offset : offset + 4])
            self.assertEqual(self.noted(), {self.staged.name: offset + 4})
            # New names are synced after the first note.
            last = [name for name in synced if name in (".upload", "offsets")]
            self.assertEqual(last[-2:], [".upload", "offsets"])
            self.assertEqual(self.offset(), offset + 4)
        self.patch_at(8, self.content[8:])
        self.assertEqual(self.target.read_bytes(), self.content)
        self.assertEqual(self.noted(), {})

    def test_at_once(self) -> None:
        """Of a file that comes in one piece no offset is noted."""
        self.assertEqual(self.noted(), {self.staged.name: 0})
        self.patch_at(0, self.content)
        self.assertEqual(self.target.read_bytes(), self.content)
        self.assertEqual(self.noted(), {})

    def test_machine_is_gone(self) -> None:
        """What another machine has left beyond the offset is gone, as it may have holes."""
        self.staged.write_bytes(b"\0\0cd")
        self.assertEqual(self.offset(), 0)
        self.patch_at(0, b"abcd")
        self.staged.write_bytes(b"abcd\0\0gh")
        self.assertEqual(self.offset(), 4)
        self.assertEqual(self.staged.read_bytes(), b"abcd")
        self.patch_at(4, self.content[4:])
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_in_the_midst(self) -> None:
        """Of a long PATCH, what has come counts before its end."""
        self.patch(sink, "WINDOW", 4)
        self.patch(sink, "BLOCK", 2)
        wire = self.patch_at(0, b"ab", 12)
        wire.send(b"cdef")
        self.assertEqual(self.noted(), {self.staged.name: 6})
        wire.disconnect()
        self.assertEqual(self.offset(), 6)

    def test_checksum(self) -> None:
        """Of one with a checksum, nothing counts until it is verified."""
        self.patch_at(0, b"abcd")
        self.patch(sink, "WINDOW", 2)
        self.patch(sink, "BLOCK", 2)
        digest = b64encode(hashlib.sha256(b"efgh").digest()).decode()
        wire = self.patch_at(4, b"efg", 4, Upload_Checksum=f"sha256 {digest}")
        self.assertEqual(self.noted(), {self.staged.name: 4})
        wire.send(b"h")
        self.assertEqual(wire.answers()[0].status, 204)
        self.assertEqual(self.noted(), {self.staged.name: 8})
        wrong = self.patch_at(8, b"xxxx", Upload_Checksum=f"sha256 {digest}")
        self.assertEqual(wrong.answers()[0].status, 460)
        self.assertEqual(self.offset(), 8)

    def test_no_space(self) -> None:
        """What came before there was no space left counts."""
        self.patch_at(0, b"abcd")

        def full(file: File, buffers: Iterable[bytes], offset: int) -> int:
            if offset < 4:
                # The note.
                return _write(file, buffers, offset)
            _write(file, [b"".join(buffers)[:2]], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(File, "write", full)
        self.assertEqual(self.patch_at(4, b"efgh").answers()[0].status, 507)
        self.assertEqual(self.offset(), 6)

    def test_target_becomes_a_directory(self) -> None:
        """A complete file that cannot have its name need not come again."""
        self.target.mkdir(parents=True)
        self.assertEqual(self.patch_at(0, self.content).answers()[0].status, 409)
        self.assertEqual(self.noted(), {self.staged.name: 12})
        self.target.rmdir()
        self.assertEqual(self.offset(), 12)
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_lost_bytes(self) -> None:
        """When the disk has lost bytes, the offset of before counts."""
        self.patch_at(0, b"abcd")

        def fails(descriptor: int) -> None:
            if os.fstat(descriptor).st_size > 4:
                raise OSError(errno.EIO, "lost")

        self.patch(os, "fdatasync", fails)
        self.assertEqual(self.patch_at(4, b"efgh").answers()[0].status, 500)
        self.assertEqual(self.offset(), 4)

    def test_terminate(self) -> None:
        """An upload that is given up leaves nothing."""
        self.patch_at(0, b"abcd")
        self.assertEqual(self.ask("DELETE").status, 204)
        self.assertEqual(self.noted(), {})


class FailureTests(UploadCase):
    def test_disk_full(self) -> None:
        """FIX 6: a full disk is told, and the offset is that of the bytes which are there."""
        self.patch_at(0, b"abcd")

        def full(file: File, buffers: Iterable[bytes], offset: int) -> int:
            _write(file, [b"".join(buffers)[:2]], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(File, "write", full)
        wire = self.patch_at(4, b"efghijkl")
        answer = wire.answers()[0]
        self.assertEqual(answer.status, 507)
        self.assertEqual(answer.headers["access-control-allow-origin"], "*")
        self.patch(File, "write", _write)
        offset = self.offset()
        self.assertGreaterEqual(offset, 4)
        self.patch_at(offset, self.content[offset:])
        self.assertEqual(self.target.read_bytes(), self.content)

    def test_quota(self) -> None:
        """A quota that is exceeded is told as such."""

        def over(file: File, buffers: Iterable[bytes], offset: int) -> int:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        self.patch(File, "write", over)
        self.assertEqual(self.patch_at(0, b"abcd").answers()[0].status, 413)

    def test_sync_fails(self) -> None:
        """An offset whose bytes could not be put on stable storage is not told."""

        def broken(file: File) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        self.patch(File, "sync_data", broken)
        answer = self.patch_at(0, b"abcd").answers()[0]
        self.assertEqual(answer.status, 500)
        self.assertNotIn("upload-offset", answer.headers)

    def test_lost_bytes_are_forgotten(self) -> None:
        """The kernel tells of lost bytes once; they are not told later on, when it is silent."""
        self.patch_at(0, b"abcd")
        fdatasync, failures = os.fdatasync, [0, errno.EIO]

        def fails_once(descriptor: int) -> None:
            if failures and (failure := failures.pop(0)):
                raise OSError(failure, "lost")
            fdatasync(descriptor)

        self.patch(os, "fdatasync", fails_once)
        self.assertEqual(self.patch_at(4, b"efgh").answers()[0].status, 500)
        self.assertEqual(self.offset(), 4)
        self.patch_at(4, self.content[4:])
        self.assertEqual(self.target.read_bytes(), self.content)

    def fails(self, descriptor: int) -> None:
        raise OSError(errno.EIO, "lost")

    def test_lost_bytes_found_by_a_head(self) -> None:
        """A session whose bytes are lost between two requests is given up, not guessed at."""
        self.patch_at(0, b"abcd")
        patch = self.patch(os, "fdatasync", self.fails)
        self.assertEqual(self.ask("HEAD").status, 500)
        patch.restore()
        self.assertEqual(self.ask("HEAD").status, 404)

    def test_lost_bytes_found_by_a_patch(self) -> None:
        """So is one whose bytes a PATCH finds lost, be it at their end or elsewhere."""
        for offset in (2, 4):
            self.url = self.create("dir/file", self.size)
            self.patch_at(0, b"abcd")
            patch = self.patch(os, "fdatasync", self.fails)
            self.assertEqual(self.patch_at(offset, b"efgh").answers()[0].status, 500)
            patch.restore()
            self.assertEqual(self.ask("HEAD").status, 404)

    def test_empty_file_is_lost(self) -> None:
        """An empty file that cannot be synced is told as such, and nothing of it is left."""
        others = os.listdir(self.folder / ".upload")
        self.patch(os, "fsync", self.fails)
        volume = self.proxy.volumes.get("local")
        made = self.proxy.uploads.create(volume, VFolderID.parse(self.vfid), "empty", 0)
        error = self.failureResultOf(Deferred.fromCoroutine(made), WritebackError)
        self.assertEqual(error.value.errno, errno.EIO)
        self.assertEqual(os.listdir(self.folder), [".upload"])
        self.assertEqual(os.listdir(self.folder / ".upload"), others)

    def test_write_back_tells_losses(self) -> None:
        """Bytes that are lost while more come end the upload at the offset before."""
        self.patch(sink, "WINDOW", 4)
        lost = [0, -1]

        def sync_file_range(*args: Any) -> int:
            ctypes.set_errno(errno.ENOSPC)
            return lost.pop(0) if lost else 0

        self.patch(beneath, "_sync_file_range", sync_file_range)
        self.patch_at(0, b"abcd")
        self.assertEqual(self.offset(), 4)
        self.patch(sink, "WINDOW", 2)
        self.assertEqual(self.patch_at(4, b"efgh").answers()[0].status, 507)
        self.assertEqual(self.offset(), 4)

    def test_volume_hangs(self) -> None:
        """An upload to a volume that hangs is answered in bounded time, with a time to retry."""
        self.threads.held = True
        wire = self.patch_at(0, b"abcd")
        self.clock.advance(self.threads.deadline * 4)
        answer = wire.answers()[0]
        self.assertEqual(answer.status, 503)
        self.assertGreater(int(answer.headers["retry-after"]), 0)

    def test_time_for_the_disk(self) -> None:
        """A small upload may take as long as its sync; without one it goes with all other calls."""
        for number, (durability, seconds) in enumerate(
            {
                Durability.NONE: self.threads.deadline,
                Durability.COMPLETION: self.threads.slow_deadline,
                Durability.PATCH: self.threads.slow_deadline,
            }.items()
        ):
            self.proxy.volume["local"].durability = durability
            self.threads.held = True
            wire = self.patch_at(number, b"a")
            [call] = self.threads.calls
            assert call.timer is not None
            self.assertEqual(call.timer.getTime() - self.clock.seconds(), seconds)
            self.threads.release()
            self.assertEqual(wire.answers()[0].status, 204)

    def test_time_to_forget(self) -> None:
        """The end of a session may take longer: its file may be a large one."""
        self.proxy.volume["local"].durability = Durability.NONE
        self.threads.held = True
        wire = self.begin("DELETE")
        [call] = self.threads.calls
        assert call.timer is not None
        self.assertEqual(call.timer.getTime() - self.clock.seconds(), self.threads.slow_deadline)
        self.threads.release()
        self.assertEqual(wire.answers()[0].status, 204)


class StopTests(UploadCase):
    def test_keeps_what_has_come(self) -> None:
        """When the daemon stops, the bytes of running uploads are kept."""
        wire = self.patch_at(0, b"abcd", 12)
        self.successResultOf(Deferred.fromCoroutine(self.proxy.uploads.stop()))
        self.clock.advance(0)
        self.assertTrue(wire.aborted)
        self.proxy.restart()
        self.assertEqual(self.offset(), 4)

    def test_waits_for_the_disk(self) -> None:
        """The daemon does not end before these bytes are on the disk."""
        self.patch_at(0, b"abcd", 12)
        self.threads.held = True
        stopping = Deferred.fromCoroutine(self.proxy.uploads.stop())
        self.assertNoResult(stopping)
        self.threads.release()
        self.successResultOf(stopping)
        self.assertEqual(self.staged.read_bytes(), b"abcd")

    def test_takes_no_more(self) -> None:
        """A PATCH that comes while the daemon stops is sent elsewhere."""
        self.successResultOf(Deferred.fromCoroutine(self.proxy.uploads.stop()))
        answer = self.patch_at(0, b"abcd").answers()[0]
        self.assertEqual(answer.status, 503)
        self.assertIn("retry-after", answer.headers)


# ---- a model


class _Upload:
    """What a client knows of its upload, and what has to be on the disk."""

    def __init__(self, name: str, path: str, url: str, content: bytes) -> None:
        self.name = name
        self.path = path
        self.url = url
        self.content = content
        self.size = len(content)
        #: Bytes that are there for sure, as somebody was told.
        self.told = 0
        self.ended = False

    @property
    def complete(self) -> bool:
        return self.told == self.size and not self.ended


class UploadMachine(RuleBasedStateMachine):
    """
    Clients that upload, and lose their connections, and come again; a daemon that crashes, and a
    disk that fails.
    """

    uploads = Bundle("uploads")
    durability = Durability.PATCH

    def __init__(self) -> None:
        super().__init__()
        #: What the disk has of files, by their numbers.
        self.synced: dict[int, bytes] = {}
        self.root = Path(tempfile.mkdtemp(prefix="uploads"))
        self.patches = [
            # Small pieces are many writes, and many pauses.
            mock.patch.object(sink, "BLOCK", 16),
            mock.patch.object(sink, "BOUND", 64),
            mock.patch.object(sink, "WINDOW", 64),
            mock.patch.object(File, "write", self._failing_write()),
            mock.patch.object(os, "fsync", self._noting(os.fsync)),
            mock.patch.object(os, "fdatasync", self._noting(os.fdatasync)),
            mock.patch.object(os, "unlink", self._unlink),
        ]
        for patch in self.patches:
            patch.start()
        self.room: int | None = None
        self.proxy = self._daemon()
        self.vfid = self.proxy.make_folder()
        self.folder = self.proxy.folder(self.vfid)
        (self.folder / "bystander").write_bytes(b"stays")
        self.all: list[_Upload] = []

    def _failing_write(self) -> Any:
        machine = self

        def write(file: File, buffers: Iterable[bytes], offset: int) -> int:
            data = b"".join(buffers)
            if machine.room is not None and len(data) > machine.room:
                _write(file, [data[: machine.room]], offset)
                machine.room = 0
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if machine.room is not None:
                machine.room -= len(data)
            return _write(file, buffers, offset)

        return write

    def _noting(self, sync: Any) -> Any:
        def call(descriptor: int) -> None:
            sync(descriptor)
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                path = f"/proc/self/fd/{descriptor}"
                self.synced[status.st_ino] = Path(path).read_bytes()

        return call

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        # Its number may be that of another file later.
        self.synced.pop(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino, None)
        _unlink(path, dir_fd=dir_fd)

    def _daemon(self) -> MemoryProxy:
        proxy = MemoryProxy(self.root)
        proxy.volume["local"].durability = self.durability
        return proxy

    @property
    def threads(self) -> Any:
        return self.proxy.threads["local"]

    def teardown(self) -> None:
        self.threads.release()
        for patch in self.patches:
            patch.stop()
        shutil.rmtree(self.root)

    # ---- what a client does

    def _ask(self, method: str, upload: _Upload) -> Answer:
        wire = self.proxy.connect()
        wire.request(method, upload.url, {"Tus-Resumable": "1.0.0"})
        answer: Answer = wire.answers(method)[-1]
        wire.disconnect()
        return answer

    def _head(self, upload: _Upload, most: int | None = None) -> int:
        """
        Ask how far the upload is: never less than what was told before, nor more than was sent.
        """
        answer = self._ask("HEAD", upload)
        if upload.ended:
            assert answer.status == 404, answer
            return 0
        assert answer.status == 200, answer
        offset = int(answer.headers["upload-offset"])
        assert upload.told <= offset <= (upload.told if most is None else most)
        assert int(answer.headers["upload-length"]) == upload.size
        upload.told = offset
        return offset

    def _patch(
        self,
        upload: _Upload,
        body: bytes,
        pieces: Iterable[int] = (),
        length: int | None = None,
        **headers: str,
    ) -> Wire:
        wire = self.proxy.connect()
        announced = len(body) if length is None else length
        wire.send(patch_head(upload.url, upload.told, announced, **headers))
        at = 0
        for size in pieces:
            wire.send(body[at : at + size])
            at += size
        if body[at:]:
            wire.send(body[at:])
        return wire

    def _answered(self, wire: Wire, status: int) -> Answer:
        answer: Answer = wire.answers()[-1]
        assert answer.status == status, answer
        wire.disconnect()
        return answer

    def _next(self, upload: _Upload, share: float) -> bytes:
        rest = upload.content[upload.told :]
        return rest[: round(len(rest) * share)]

    shares = st.floats(0, 1)
    pieces = st.lists(st.integers(1, 100), max_size=8)
    algorithms = st.sampled_from(["sha1", "sha256", "sha512", "md5"])

    #: Mostly longer than a write, and no two bytes that follow each other are the same.
    contents = st.builds(
        lambda size, start: bytes((start + at * 7) % 251 for at in range(size)),
        st.one_of(st.integers(0, 3), st.integers(50, 600)),
        st.integers(0, 250),
    )

    @rule(target=uploads, content=contents, nested=st.booleans())
    def create(self, content: bytes, nested: bool) -> _Upload:
        path = f"{'new/dir/' if nested else ''}file{len(self.all)}"
        volume = self.proxy.volumes.get("local")
        session = result_of(
            self.proxy.uploads.create(volume, VFolderID.parse(self.vfid), path, len(content))
        )
        url = upload_url(self.proxy, self.vfid, path, len(content), session)
        upload = _Upload(session, path, url, content)
        self.all.append(upload)
        return upload

    @rule(upload=uploads)
    def ask(self, upload: _Upload) -> None:
        self._head(upload)

    @rule(upload=uploads, share=shares, pieces=pieces)
    def append(self, upload: _Upload, share: float, pieces: list[int]) -> None:
        body = self._next(upload, share)
        wire = self._patch(upload, body, pieces)
        if upload.ended:
            self._answered(wire, 404)
            return
        answer = self._answered(wire, 204)
        upload.told += len(body)
        assert int(answer.headers["upload-offset"]) == upload.told

    @rule(upload=uploads, pieces=pieces)
    def append_all(self, upload: _Upload, pieces: list[int]) -> None:
        self.append(upload, 1.0, pieces)

    @rule(upload=uploads, share=shares, pieces=pieces)
    def cut(self, upload: _Upload, share: float, pieces: list[int]) -> None:
        body = self._next(upload, share)
        left = upload.size - upload.told
        wire = self._patch(upload, body, pieces, left)
        wire.disconnect()
        if not upload.ended:
            # What came before a cut stays, all of it.
            sent = upload.told + len(body)
            assert self._head(upload, sent) == sent

    @rule(upload=uploads, share=shares, pieces=pieces, steps=st.integers(0, 8))
    def stolen_by_head(self, upload: _Upload, share: float, pieces: list[int], steps: int) -> None:
        body = self._next(upload, share)
        before = upload.told
        if upload.ended or before + len(body) == upload.size:
            return
        self.threads.held = True
        wire = self._patch(upload, body, pieces, upload.size - before)
        for _ in range(steps):
            if self.threads.calls:
                self.threads.step()
        self.threads.held = False
        newer = self.proxy.connect()
        newer.request("HEAD", upload.url)
        self.threads.release()
        answer: Answer = newer.answers("HEAD")[-1]
        assert answer.status == 200
        offset = int(answer.headers["upload-offset"])
        assert before <= offset <= before + len(body)
        upload.told = offset
        # The older one is over, and can do no harm.
        wire.send(b"\0" * 8)
        self.threads.release()
        wire.disconnect()
        self._head(upload)

    @rule(upload=uploads, share=shares, pieces=pieces)
    def stolen_by_patch(self, upload: _Upload, share: float, pieces: list[int]) -> None:
        body = self._next(upload, share)
        left = upload.size - upload.told
        if upload.ended or len(body) == left:
            return
        stalled = self._patch(upload, body, pieces, left)
        upload.told += len(body)
        self.append(upload, share, pieces)
        assert stalled.aborted
        assert stalled.value() == b""

    @rule(
        upload=uploads,
        share=shares,
        pieces=pieces,
        algorithm=algorithms,
        kind=st.sampled_from(["right", "wrong", "cut"]),
    )
    def checksum(
        self, upload: _Upload, share: float, pieces: list[int], algorithm: str, kind: str
    ) -> None:
        body = self._next(upload, share)
        digest = hashlib.new(algorithm, body).digest()
        sent, length = body, len(body)
        if kind == "wrong":
            sent = bytes(byte ^ 1 for byte in body)
        elif kind == "cut":
            sent = body[: len(body) // 2]
        header = f"{algorithm} {b64encode(digest).decode()}"
        wire = self._patch(upload, sent, pieces, length, Upload_Checksum=header)
        if upload.ended or upload.complete:
            # Nothing is left to be sent, and nothing changes.
            wire.disconnect()
        elif sent == body:
            self._answered(wire, 204)
            upload.told += len(body)
        elif kind == "wrong":
            self._answered(wire, 460)
        else:
            wire.disconnect()
        self._head(upload)

    @rule(upload=uploads, more=st.integers(1, 50), pieces=pieces, chunked=st.booleans())
    def overflow(self, upload: _Upload, more: int, pieces: list[int], chunked: bool) -> None:
        body = upload.content[upload.told :] + b"\0" * more
        if chunked:
            wire = self.proxy.connect()
            wire.send(patch_head(upload.url, upload.told, None))
            at = 0
            for size in [*pieces, len(body)]:
                piece = body[at : at + size]
                at += size
                if piece:
                    wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            wire.send(b"0\r\n\r\n")
        else:
            wire = self._patch(upload, body, pieces)
        if upload.ended:
            self._answered(wire, 404)
        elif not (upload.complete and chunked):
            self._answered(wire, 413)
        self._head(upload)

    @rule(upload=uploads, offset=st.integers(0, 700))
    def wrong_offset(self, upload: _Upload, offset: int) -> None:
        if upload.ended or offset == upload.told:
            return
        wire = self.proxy.connect()
        wire.send(patch_head(upload.url, offset, 1) + b"\0")
        answer = self._answered(wire, 409)
        assert int(answer.headers["upload-offset"]) == upload.told

    @rule(upload=uploads)
    def give_up(self, upload: _Upload) -> None:
        answer = self._ask("DELETE", upload)
        if upload.ended or upload.complete:
            assert answer.status == 404
        else:
            assert answer.status == 204
            upload.ended = True

    @rule(upload=uploads, room=st.integers(0, 200), pieces=pieces)
    def disk_full(self, upload: _Upload, room: int, pieces: list[int]) -> None:
        body = upload.content[upload.told :]
        if upload.ended:
            return
        self.room = room
        wire = self._patch(upload, body, pieces)
        self.room = None
        answer: Answer = wire.answers()[-1]
        wire.disconnect()
        if answer.status == 204:
            upload.told = upload.size
        else:
            assert answer.status == 507, answer
            self._head(upload, upload.size)

    @rule(
        upload=uploads,
        share=shares,
        pieces=pieces,
        steps=st.integers(0, 12),
        algorithm=st.none() | algorithms,
        power=st.booleans(),
    )
    def crash(
        self,
        upload: _Upload,
        share: float,
        pieces: list[int],
        steps: int,
        algorithm: str | None,
        power: bool,
    ) -> None:
        body = self._next(upload, share)
        before = upload.told
        headers = {}
        if algorithm is not None:
            digest = b64encode(hashlib.new(algorithm, body).digest()).decode()
            headers["Upload_Checksum"] = f"{algorithm} {digest}"
        self.threads.held = True
        wire = self._patch(upload, body, pieces, **headers)
        for _ in range(steps):
            if self.threads.calls:
                self.threads.step()
        answered = wire.answers()
        self._crash()
        if power:
            self._lose_power()
        if upload.ended:
            return
        if answered and answered[0].status == 204:
            upload.told = int(answered[0].headers["upload-offset"])
            self._head(upload)
        else:
            offset = self._head(upload, before + len(body))
            if algorithm is not None:
                # What was not verified is not there, and what was is there as a whole.
                assert offset in (before, before + len(body))

    @rule()
    def restart(self) -> None:
        self._crash()

    @rule()
    def power_failure(self) -> None:
        self._crash()
        self._lose_power()

    def _lose_power(self) -> None:
        """
        Leave of each file what was synced, in its last size: the rest are zeros. Names stay, and
        notes that were taken away without a sync come back.
        """
        for path in self.root.rglob("*"):
            if path.is_file() and path.name != "bystander":
                status = path.stat()
                kept = self.synced.get(status.st_ino, b"")[: status.st_size]
                path.write_bytes(kept.ljust(status.st_size, b"\0"))
                os.utime(path, (1, 1))
        for upload in self.all:
            staged = self.folder / ".upload" / upload.name
            if staged.exists():
                note = staged.with_name(upload.name + ".offset")
                note.write_bytes(b"0")
                os.utime(note, (1, 1))
                # It is taken away by whoever takes hold of the session.
                self._head(upload, upload.size)

    def _crash(self) -> None:
        """End everything but the disk, as a kill does: with no chance to do anything more."""
        old = self.threads
        null = os.open(os.devnull, os.O_RDWR)
        root = str(self.root.resolve())
        for number in os.listdir("/proc/self/fd"):
            try:
                inside = os.readlink(f"/proc/self/fd/{number}").startswith(root)
            except OSError:
                continue
            if inside:
                # Locks end with the descriptors; the objects that had them can harm nobody.
                os.dup2(null, int(number), inheritable=False)
        os.close(null)
        self.proxy = self._daemon()
        # What the old process still would do, it does to nothing.
        old.held = True
        while old.calls:
            old.fail(OSError(errno.EIO, "crashed"))

    # ---- what has to be true whatever happens

    @invariant()
    def told_bytes_are_there(self) -> None:
        for upload in self.all:
            if not upload.ended and not upload.complete:
                staged = self.folder / ".upload" / upload.name
                found = staged.read_bytes()
                assert found[: upload.told] == upload.content[: upload.told]
                assert len(found) >= upload.told

    @invariant()
    def files_are_whole_or_not_there(self) -> None:
        for upload in self.all:
            path = self.folder / upload.path
            if upload.complete:
                assert path.read_bytes() == upload.content
            else:
                assert not path.exists()

    @invariant()
    def nothing_else_is_in_the_folder(self) -> None:
        found = {
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()
        }
        expected = {"bystander"}
        for upload in self.all:
            if upload.complete:
                expected.add(upload.path)
            elif not upload.ended:
                expected.add(f".upload/{upload.name}")
        assert found == expected
        assert (self.folder / "bystander").read_bytes() == b"stays"

    @invariant()
    def nothing_is_left_open(self) -> None:
        root = str(self.root.resolve())
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except OSError:
                continue
            assert not target.startswith(root), target


class SharedMachine(UploadMachine):
    """The same, where none but offsets that were noted count."""

    durability = Durability.SHARED


class UploadModelTests(SynchronousTestCase):
    def test_model(self) -> None:
        """
        Whatever clients, crashes and disks do: an offset once told never shrinks, the bytes below
        it are the client's, files appear whole or not at all, and nothing else changes.
        """
        self.run_machine(UploadMachine)

    def test_shared(self) -> None:
        """So it is on a volume of several machines."""
        self.run_machine(SharedMachine)

    def run_machine(self, machine: type[UploadMachine]) -> None:
        """Run it, with everything that can happen."""
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

    def test_machine_finds_what_it_is_for(self) -> None:
        """The model is not so lenient that a daemon which forgets bytes would pass."""
        machine = UploadMachine()
        self.addCleanup(machine.teardown)
        upload = machine.create(b"abcdef", False)
        machine.append(upload, 0.5, [])
        (machine.folder / ".upload" / upload.name).write_bytes(b"ab")
        self.assertRaises(AssertionError, machine.told_bytes_are_there)
        self.assertRaises(AssertionError, machine.ask, upload)
