"""
What an upload session is on disk.

Its bytes are in ``<folder>/.upload/<session>``, as nodes of the original have it: the size of that
file is the offset, and it is held under flock(2) by whoever works on it. When it is complete it is
renamed to its final name, and an empty file in the root of the volume remembers that for as long as
a token may live. All of this blocks, and belongs into a volume's threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex

from attrs import frozen

from storageproxy.beneath import Directory, File
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

#: Ends the name of a file that holds the offset to fall back to.
_FALLBACK = ".offset"

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
    above, _, last = path.rpartition("/")
    if last in (".", "..", ""):
        raise InvalidSubpath.unnamed(path)
    if path.partition("/")[0] == UPLOADS:
        raise InvalidSubpath(f"{UPLOADS} is for unfinished uploads", subpath=path)
    if max(len(os.fsencode(part)) for part in path.split("/")) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    try:
        parent, name = folder.parent(path)
    except FileNotFoundError:
        if ".." in above.split("/"):
            raise InvalidSubpath(subpath=path) from None
        return
    with parent:
        refuse_directory(parent, name, path)


def create(folder: Directory) -> str:
    """
    Make a session with no bytes.

    :return: its name.
    """
    session = token_hex(16)
    for _ in range(_RACES):
        try:
            with folder.ensure(UPLOADS) as uploads:
                uploads.open_file(
                    session, os.O_WRONLY | os.O_CREAT | os.O_EXCL, links=False
                ).close()
            return session
        except FileNotFoundError:
            # The last upload but this one was completed, and took the directory away.
            continue
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), UPLOADS)


def hold(root: Directory, folder: Directory, session: str) -> Staged:
    """
    Take hold of a session.

    :param root: the root of the volume.
    :raises Completed: when all of it is in place already.
    :raises Busy: when another process holds it.
    :raises NoSuchUpload: when there is none.
    """
    try:
        with folder.descend(UPLOADS, links=False) as uploads:
            return _hold(uploads, session)
    except (FileNotFoundError, NotADirectoryError, NotRegularFile, InvalidSubpath, NoSuchUpload):
        pass
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    try:
        root.status(f"{COMPLETED}/{session}")
    except FileNotFoundError:
        raise NoSuchUpload() from None
    raise Completed


def _hold(uploads: Directory, session: str) -> Staged:
    file = uploads.open_file(session, os.O_RDWR, links=False)
    try:
        with file.descriptor() as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy from None
        # Its holder may have completed or ended it before the lock was free.
        _check_named(uploads, session, file)
        offset = _fall_back(uploads, session, file)
        return Staged(file, file.status().st_size if offset is None else offset)
    except BaseException:
        file.close()
        raise


def _fall_back(uploads: Directory, session: str, file: File) -> int | None:
    try:
        with uploads.open_file(session + _FALLBACK, links=False) as note:
            said = note.read(0, 32)
    except (OSError, NotRegularFile):
        # There is none, or the owner of the vfolder has put something in its place.
        return None
    if not said.isdigit():
        # It was never written, and so no byte that it is about.
        forget_fallback(uploads, session)
        return None
    file.truncate(min(int(said), file.status().st_size))
    file.sync_data()
    forget_fallback(uploads, session)
    uploads.sync()
    return file.status().st_size


def remember_fallback(folder: Directory, session: str, file: File, offset: int) -> None:
    """
    Note where to go back to, should the daemon end while bytes arrive that have yet to be verified.
    """
    # This, and all else that changes a session, is under its lock even when it hangs: the file
    # stays open, and so locked, until it comes back.
    with file.descriptor(), folder.descend(UPLOADS, links=False) as uploads:
        with uploads.open_file(
            session + _FALLBACK, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, links=False
        ) as note:
            note.write([str(offset).encode()], 0)
            note.sync()
        uploads.sync()


def forget_fallback(uploads: Directory, session: str) -> None:
    """Take that note back: the bytes are verified, or are gone."""
    with suppress(FileNotFoundError):
        os.unlink(session + _FALLBACK, dir_fd=uploads.descriptor)


def settle_checksum(folder: Directory, session: str, file: File, size: int) -> None:
    """
    Keep this many bytes for good, and no others.
    """
    with file.descriptor(), folder.descend(UPLOADS, links=False) as uploads:
        file.truncate(size)
        file.sync_data()
        forget_fallback(uploads, session)
        # Were the note to come back after a power failure, the offset would shrink.
        uploads.sync()


def finish(root: Directory, folder: Directory, session: str, file: File, path: str) -> None:
    """
    Put a complete file in its place, on stable storage. A file that is there is replaced.

    :raises TargetConflict: when a directory is in its place.
    """
    with file.descriptor():
        _finish(root, folder, session, file, path)


def _finish(root: Directory, folder: Directory, session: str, file: File, path: str) -> None:
    check_target(folder, path)
    file.sync()
    with _uploads(folder) as uploads, root.ensure(COMPLETED, 0o700) as completed:
        _check_named(uploads, session, file)
        above = path.rpartition("/")[0]
        if above:
            folder.make_directories(above)
        parent, name = folder.parent(path)
        with parent:
            refuse_directory(parent, name, path)
            # Made before the rename, so that there is never neither of them. On ext4 and XFS the
            # one journal writes it before the rename, which the fsync below waits for.
            completed.open_file(session, os.O_WRONLY | os.O_CREAT, links=False).close()
            try:
                os.rename(
                    session, name, src_dir_fd=uploads.descriptor, dst_dir_fd=parent.descriptor
                )
            except OSError:
                os.unlink(session, dir_fd=completed.descriptor)
                raise
            parent.sync()
    with suppress(OSError):
        os.rmdir(UPLOADS, dir_fd=folder.descriptor)


def _uploads(folder: Directory) -> Directory:
    try:
        return folder.descend(UPLOADS, links=False)
    except (FileNotFoundError, NotADirectoryError):
        raise NoSuchUpload() from None


def _check_named(uploads: Directory, session: str, file: File) -> None:
    """
    :raises NoSuchUpload: when the session's name is that of another file, or of none.
    """
    try:
        named = os.stat(session, dir_fd=uploads.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        raise NoSuchUpload() from None
    if not os.path.samestat(named, file.status()):
        raise NoSuchUpload("the session's file was replaced")


def discard(root: Directory, folder: Directory, session: str, file: File) -> None:
    """End a session, and forget its bytes."""
    with file.descriptor():
        _discard(root, folder, session)


def _discard(root: Directory, folder: Directory, session: str) -> None:
    with suppress(FileNotFoundError):
        # An attempt to finish it may have failed at the last step.
        os.unlink(f"{COMPLETED}/{session}", dir_fd=root.descriptor)
    with folder.descend(UPLOADS, links=False) as uploads:
        forget_fallback(uploads, session)
        os.unlink(session, dir_fd=uploads.descriptor)
    with suppress(OSError):
        os.rmdir(UPLOADS, dir_fd=folder.descriptor)


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
            with _hold(uploads, name).file:
                forget_fallback(uploads, name)
                os.unlink(name, dir_fd=uploads.descriptor)
    except (OSError, StorageProxyError, Busy):
        return 0
    return 1


def _unlink_alone(uploads: Directory, note: str) -> None:
    try:
        os.stat(note.removesuffix(_FALLBACK), dir_fd=uploads.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        os.unlink(note, dir_fd=uploads.descriptor)


def sweep_completed(
    root: Directory, before: float, step: Callable[[], None] = lambda: None
) -> None:
    """Forget sessions that were completed before any token that still lives was made."""
    try:
        completed = root.descend(COMPLETED, links=False)
    except FileNotFoundError:
        return
    with completed, os.scandir(completed.descriptor) as found:
        for entry in found:
            step()
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(entry.name, dir_fd=completed.descriptor)
