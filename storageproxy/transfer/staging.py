"""
What an upload session is on disk.

Its bytes are in ``<folder>/.upload/<session>``, as nodes of the original have it: the size of that
file is the offset, and it is held under flock(2) by whoever works on it. When it is complete it is
renamed to its final name, and an empty file in the root of the volume remembers that for as long as
a token may live. All of this blocks, and belongs into a volume's threads.

When it is put on stable storage, is for the volume's :class:`~storageproxy.durability.Durability`
to say.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex

from attrs import frozen

from storageproxy.beneath import Directory, File
from storageproxy.durability import Durability
from storageproxy.errors import (
    InvalidSubpath,
    NoSuchUpload,
    NotRegularFile,
    StorageProxyError,
)
from storageproxy.files import refuse_directory
from storageproxy.vfolder import UPLOADS

#: Names of sessions that are complete, in the root of the volume.
COMPLETED = ".storage-proxy/completed"

#: The note that others become further names of, and the seconds for which they do.
_SHARED_NOTE, SHARED_SECONDS = ".storage-proxy/note", 600.0

#: Names of sessions that somebody waits for, in the root of the volume.
WANTED = ".storage-proxy/wanted"

#: Files named as sessions, with the offset that counts, in the root of the volume: out of reach of
#: the vfolder's owner and of its quota.
OFFSETS = ".storage-proxy/offsets"

#: Ends the name of a file that holds the offset to fall back to.
_FALLBACK = ".offset"

_OFFSET_DIGITS = 20
_NO_OFFSET = b"0" * _OFFSET_DIGITS

#: Bytes of a file name (limits.h).
NAME_MAX = 255

_RACES = 16


class Completed(Exception):
    """The session is complete, and its file has its final name."""


class Busy(Exception):
    """Another process holds the session."""


@frozen
class Staged:
    """
    An upload session that is held.

    :param file: its bytes so far, under a lock that ends when it is closed.
    :param offset: how many there are.
    """

    file: File
    offset: int


def check_target(folder: Directory, path: str) -> None:
    """
    Refuse a target where no file could ever be put; parents that are missing are no reason.

    :raises InvalidSubpath: when it lies outside of the vfolder, or is the vfolder itself.
    :raises TargetConflict: when it is a directory.
    """
    _check_name(path)
    try:
        parent, name = folder.parent(path)
    except FileNotFoundError:
        _refuse_missing(path.rpartition("/")[0], path)
        return
    with parent:
        refuse_directory(parent, name, path)


def _check_name(path: str) -> None:
    """
    Refuse what can be no file's path, wherever it leads.

    :raises InvalidSubpath:
    """
    if path.rpartition("/")[2] in (".", "..", ""):
        raise InvalidSubpath.unnamed(path)
    if path.partition("/")[0] == UPLOADS:
        raise InvalidSubpath(f"{UPLOADS} is for unfinished uploads", subpath=path)
    if max(len(os.fsencode(part)) for part in path.split("/")) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)


def _refuse_missing(above: str, path: str) -> None:
    if ".." in above.split("/"):
        raise InvalidSubpath(subpath=path) from None


@frozen
class Staging:
    """
    The upload sessions of a vfolder.

    :param root: the open root of the volume.
    :param folder: the open vfolder.
    :param durability: the volume's.
    """

    root: Directory
    folder: Directory
    durability: Durability

    def create(self) -> str:
        """
        Make a session with no bytes.

        :return: its name.
        """
        session = token_hex(16)
        if self.durability.keeps_offsets:
            # It takes its room now: on a disk that is full no offset could be told later.
            with self._open_note(f"{OFFSETS}/{session}", os.O_WRONLY) as note:
                note.write([_NO_OFFSET], 0)
        missing = False
        for _ in range(_RACES):
            # The last upload but this one may be completed, and take the directory away.
            with suppress(FileNotFoundError):
                if missing:
                    self.folder.make_directories(UPLOADS, durable=self.durability.keeps_offsets)
                self.folder.open_file(
                    f"{UPLOADS}/{session}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, links=False
                ).close()
                return session
            missing = True
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), UPLOADS)

    def hold(self, session: str) -> Staged:
        """
        Take hold of a session.

        :raises Completed: when all of it is in place already.
        :raises Busy: when another process holds it. It is asked to let go.
        :raises NoSuchUpload: when there is none.
        """
        try:
            with self.folder.descend(UPLOADS, links=False) as uploads:
                file, status = _lock(uploads, session)
                try:
                    self.take_back_note(session)
                    return Staged(file, self._recover(uploads, session, file, status))
                except BaseException:
                    file.close()
                    raise
        except (
            FileNotFoundError,
            NotADirectoryError,
            NotRegularFile,
            InvalidSubpath,
            NoSuchUpload,
        ):
            pass
        except Busy:
            self._note(f"{WANTED}/{session}")
            raise
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        # There is nobody to let go of it any more, whoever has asked for that.
        self.take_back_note(session)
        try:
            self.root.status(f"{COMPLETED}/{session}")
        except FileNotFoundError:
            raise NoSuchUpload() from None
        raise Completed

    def take_back_note(self, session: str) -> None:
        """Ask its holder no more to let go of a session. Whoever else waits asks again."""
        with suppress(FileNotFoundError):
            os.unlink(f"{WANTED}/{session}", dir_fd=self.root.descriptor)

    def _recover(self, uploads: Directory, session: str, file: File, status: os.stat_result) -> int:
        """Let go of bytes that cannot be trusted; how many there are then."""
        if status.st_mtime < _boot_time() or not self.durability.trusts_sizes:
            # What a machine had not written when it went down is missing anywhere in the file,
            # before bytes that are there: its size tells nothing. A note of unverified bytes may
            # be an old one that has come back. It goes first: once the file is changed, nothing
            # tells any more that the machine went down.
            _forget_fallback(uploads, session)
            trusted = min(self._noted(session), status.st_size)
            if trusted < status.st_size:
                self._settle(uploads, session, file, trusted)
            return trusted
        said = _fallback(uploads, session)
        if said is None:
            return status.st_size
        trusted = min(said, status.st_size)
        self._settle(uploads, session, file, trusted)
        return trusted

    def remember_fallback(self, session: str, file: File, offset: int) -> None:
        """
        Note where to go back to, should the daemon end while bytes arrive that have yet to be
        verified.
        """
        if not self.durability.trusts_sizes:
            # It is noted already.
            return
        # This, and all else that changes a session, is under its lock even when it hangs: the file
        # stays open, and so locked, until it comes back.
        with file.descriptor(), self.folder.descend(UPLOADS, links=False) as uploads:
            with uploads.open_file(
                session + _FALLBACK, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, links=False
            ) as note:
                note.write([str(offset).encode()], 0)

    def keep(self, session: str, file: File, size: int) -> None:
        """
        Keep this many bytes for good, and no others.
        """
        with file.descriptor(), self.folder.descend(UPLOADS, links=False) as uploads:
            self._settle(uploads, session, file, size)

    def _settle(self, uploads: Directory, session: str, file: File, size: int) -> None:
        file.truncate(size)
        self.settle(session, file, size)
        _forget_fallback(uploads, session)

    def resume(self, session: str, file: File, offset: int) -> None:
        """
        Prepare for bytes behind an offset: losses that are found from now on are theirs, and none
        of them count yet.
        """
        if offset:
            self.durability.at_patch(file.sync_data)
        if self.durability.keeps_offsets and self._noted(session) != offset:
            self._note_offset(session, offset)

    def settle(self, session: str, file: File, offset: int) -> None:
        """
        Put the bytes before an offset where the durability wants them, and then the offset, before
        it is told.
        """
        self.durability.at_patch(file.sync_data)
        self._note_offset(session, offset)

    def _noted(self, session: str) -> int:
        try:
            with self.root.open_file(f"{OFFSETS}/{session}", links=False) as note:
                return int(note.read(0, _OFFSET_DIGITS))
        except (FileNotFoundError, ValueError):
            return 0

    def _note_offset(self, session: str, offset: int) -> None:
        if not self.durability.keeps_offsets or offset == self._noted(session) == 0:
            return
        # Always as long, and written over what is there: one block changes, so that it is never
        # half of one and half of the other.
        said = b"%0*d" % (_OFFSET_DIGITS, offset)
        with self._open_note(f"{OFFSETS}/{session}", os.O_RDWR) as note:
            found = note.read(0, _OFFSET_DIGITS)
            if found != said:
                note.write([said], 0)
            note.sync()
        if found in (b"", _NO_OFFSET, said):
            # It is new, or of a process that may have been killed before it had synced it.
            with self.root.descend(OFFSETS, links=False) as notes:
                notes.sync()

    def finish(self, session: str, file: File, path: str) -> None:
        """
        Put a complete file in its place. A file that is there is replaced.

        :raises TargetConflict: when a directory is in its place.
        """
        with file.descriptor():
            self.durability.at_completion(file.sync)
            parent, name = self._parent(path)
            with parent, _uploads(self.folder) as uploads:
                _check_named(uploads, session, file)
                refuse_directory(parent, name, path)
                # Made before the rename, so that there is never neither of them. On ext4 and XFS
                # the one journal writes it before the rename, which the fsync below waits for.
                self._note_completed(session)
                try:
                    os.rename(
                        session, name, src_dir_fd=uploads.descriptor, dst_dir_fd=parent.descriptor
                    )
                except OSError:
                    self._forget_completed(session)
                    raise
                self.durability.at_completion(parent.sync)
        self._forget_offset(session)
        self._leave()

    def _parent(self, path: str) -> tuple[Directory, str]:
        """Where a complete file has to go; directories that are missing are made."""
        _check_name(path)
        try:
            return self.folder.parent(path)
        except FileNotFoundError:
            above = path.rpartition("/")[0]
            _refuse_missing(above, path)
            self.folder.make_directories(above, durable=self.durability.keeps_files)
            return self.folder.parent(path)

    def _note_completed(self, session: str) -> None:
        path, root = f"{COMPLETED}/{session}", self.root.descriptor
        # A new file takes up an inode, and looking for a free one takes ext4 a millisecond when
        # files were deleted nearby. A second name takes neither; but the servers of a cluster
        # have more to do for that than for a file.
        shares = self.durability.trusts_sizes
        if shares and self._share_note(path):
            return
        # The other one is too old or has as many names as it may have, or this file system knows
        # of one name only.
        self._note(path)
        if shares:
            with suppress(OSError):
                os.unlink(_SHARED_NOTE, dir_fd=root)
            with suppress(OSError):
                os.link(path, _SHARED_NOTE, src_dir_fd=root, dst_dir_fd=root)

    def _share_note(self, path: str) -> bool:
        root = self.root.descriptor
        try:
            os.link(_SHARED_NOTE, path, src_dir_fd=root, dst_dir_fd=root)
            # Its age counts for all its names.
            if abs(time.time() - os.stat(path, dir_fd=root).st_mtime) < SHARED_SECONDS:
                return True
            os.unlink(path, dir_fd=root)
        except FileExistsError:
            # Of an attempt that was killed before the rename. It is to be as young as this one.
            with suppress(OSError):
                os.utime(path, dir_fd=root)
            return True
        except OSError:
            pass
        return False

    def _note(self, path: str) -> None:
        """Make an empty file in the root of the volume, if it is not there."""
        self._open_note(path, os.O_WRONLY).close()

    def _open_note(self, path: str, access: int) -> File:
        try:
            return self.root.open_file(path, access | os.O_CREAT, links=False)
        except FileNotFoundError:
            above = path.rpartition("/")[0]
            self.root.make_directories(above, 0o700, durable=self.durability.keeps_files)
            return self.root.open_file(path, access | os.O_CREAT, links=False)

    def _forget_offset(self, session: str) -> None:
        if self.durability.keeps_offsets:
            with suppress(FileNotFoundError):
                os.unlink(f"{OFFSETS}/{session}", dir_fd=self.root.descriptor)

    def _forget_completed(self, session: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{COMPLETED}/{session}", dir_fd=self.root.descriptor)

    def discard(self, session: str, file: File) -> None:
        """End a session, and forget its bytes."""
        with file.descriptor():
            # An attempt to finish it may have failed at the last step.
            self._forget_completed(session)
            with self.folder.descend(UPLOADS, links=False) as uploads:
                _forget_fallback(uploads, session)
                os.unlink(session, dir_fd=uploads.descriptor)
        self._forget_offset(session)
        self._leave()

    def _leave(self) -> None:
        with suppress(OSError):
            os.rmdir(UPLOADS, dir_fd=self.folder.descriptor)


def is_wanted(root: Directory, session: str) -> bool:
    """
    Whether another process waits for a session.
    """
    try:
        # A directory that is opened is looked at anew by an NFS client; a name alone is not.
        with root.descend(WANTED, links=False) as wanted:
            os.stat(session, dir_fd=wanted.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _lock(uploads: Directory, session: str) -> tuple[File, os.stat_result]:
    file = uploads.open_file(session, os.O_RDWR, links=False)
    try:
        with file.descriptor() as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy from None
        # Its holder may have completed or ended it before the lock was free.
        return file, _check_named(uploads, session, file)
    except BaseException:
        file.close()
        raise


def _boot_time() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _fallback(uploads: Directory, session: str) -> int | None:
    try:
        with uploads.open_file(session + _FALLBACK, links=False) as note:
            said = note.read(0, 32)
    except (OSError, NotRegularFile):
        # There is none, or the owner of the vfolder has put something in its place.
        return None
    if not said.isdigit():
        # It was never written, and so no byte that it is about.
        _forget_fallback(uploads, session)
        return None
    return int(said)


def _forget_fallback(uploads: Directory, session: str) -> None:
    """Take that note back: the bytes are verified, or are gone."""
    with suppress(FileNotFoundError):
        os.unlink(session + _FALLBACK, dir_fd=uploads.descriptor)


def _uploads(folder: Directory) -> Directory:
    try:
        return folder.descend(UPLOADS, links=False)
    except (FileNotFoundError, NotADirectoryError):
        raise NoSuchUpload() from None


def _check_named(uploads: Directory, session: str, file: File) -> os.stat_result:
    """
    :return: the state of the file.
    :raises NoSuchUpload: when the session's name is that of another file, or of none.
    """
    try:
        named = os.stat(session, dir_fd=uploads.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        raise NoSuchUpload() from None
    if not os.path.samestat(named, file.status()):
        raise NoSuchUpload("the session's file was replaced")
    return named


def sweep(folder: Directory, before: float, step: Callable[[], None] = lambda: None) -> int:
    """
    Remove what sessions have left that nobody has written to for a long time.

    :param before: seconds since the epoch; what was changed later stays.
    :param step: called for each file.
    :return: how many files were removed.
    """
    removed = 0
    try:
        uploads = folder.descend(UPLOADS, links=False)
    except (FileNotFoundError, NotADirectoryError, InvalidSubpath):
        return 0
    except OSError as error:
        if error.errno == errno.ELOOP:
            return 0
        raise
    with uploads:
        # Sessions come before their notes, which go with them.
        for name in sorted(os.listdir(uploads.descriptor)):
            step()
            removed += _sweep_one(uploads, name, before)
    with suppress(OSError):
        os.rmdir(UPLOADS, dir_fd=folder.descriptor)
    return removed


def _sweep_one(uploads: Directory, name: str, before: float) -> int:
    try:
        status = os.stat(name, dir_fd=uploads.descriptor, follow_symlinks=False)
        if status.st_mtime >= before:
            return 0
        if name.endswith(_FALLBACK):
            _unlink_alone(uploads, name)
        else:
            with _lock(uploads, name)[0]:
                _forget_fallback(uploads, name)
                os.unlink(name, dir_fd=uploads.descriptor)
    except (OSError, StorageProxyError, Busy):
        return 0
    return 1


def _unlink_alone(uploads: Directory, note: str) -> None:
    try:
        os.stat(note.removesuffix(_FALLBACK), dir_fd=uploads.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        os.unlink(note, dir_fd=uploads.descriptor)


def sweep_notes(root: Directory, before: float, step: Callable[[], None] = lambda: None) -> None:
    """
    Forget sessions that were completed, waited for, or told an offset, before any token that still
    lives was made.
    """
    for path in (COMPLETED, WANTED, OFFSETS):
        # One that has been given to others is as old as the first of them.
        last = before - SHARED_SECONDS if path == COMPLETED else before
        try:
            notes = root.descend(path, links=False)
        except FileNotFoundError:
            continue
        with notes, os.scandir(notes.descriptor) as found:
            for entry in found:
                step()
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < last:
                        os.unlink(entry.name, dir_fd=notes.descriptor)
