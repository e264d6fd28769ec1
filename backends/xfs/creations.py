# -*- test-case-name: tests.test_xfs_volume -*-
"""
Directories that are being made, and have no project or no limit yet.

Each has a note in the volume, which is there before the directory is, is locked (flock(2)) while
somebody works on it, and is gone before anybody is told that the directory exists. So a creation
that was broken off is known by its note, whatever has become of the directory, and can be completed
by what the note says. All of this blocks.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from attrs import frozen

from backends.xfs.interfaces import Limit
from storageproxy.beneath import Directory, File

#: Where the notes are, in the root of the volume.
CREATING = ".storage-proxy/creating"

#: Bytes of a note.
_LENGTH = 64


@frozen
class Wanted:
    """
    What a directory is to have.

    :param limit: that of its project.
    :param mode: its permissions, None to leave them as they are.
    """

    limit: Limit
    mode: int | None

    def encode(self) -> bytes:
        """As it is noted: always as long, so that one write replaces what another one said."""
        said = json.dumps({"size": self.limit.size, "mode": self.mode})
        return said.ljust(_LENGTH).encode("ascii")

    @classmethod
    def decode(cls, note: bytes) -> Wanted:
        """What a note says: nothing in particular when its bytes were lost with the power."""
        try:
            found = json.loads(note)
            return cls(Limit(found["size"]), found["mode"])
        except (ValueError, TypeError, KeyError):
            return cls(Limit(0), None)


@frozen
class Creation:
    """
    A creation that is held.

    :param names: of the directory and of those above it, from the root of the volume on.
    :param wanted: what the directory is to have.
    :param note: the note, locked until it is closed. Unless it was taken back, the creation is one
        that was broken off then.
    """

    names: tuple[str, ...]
    wanted: Wanted
    note: File

    def __str__(self) -> str:
        return "/".join(self.names)


def begin(root: Directory, names: Sequence[str], wanted: Wanted) -> Creation | None:
    """
    Begin a creation, or take up one that was broken off.

    :param root: the open volume.
    :param wanted: what the directory is to have now.
    :return: None when the directory is made, or somebody else makes it.
    """
    with root.ensure(CREATING, 0o700) as notes, _alone(notes):
        name = "-".join(names)
        try:
            note = notes.open_file(name, os.O_RDWR, links=False)
        except FileNotFoundError:
            if _is_there(root, names):
                return None
            note = notes.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, links=False)
        if not _is_held(note):
            return None
        try:
            note.write([wanted.encode()], 0)
        except BaseException:
            note.close()
            raise
        return Creation(tuple(names), wanted, note)


def complete(
    root: Directory, creation: Creation, directory: Directory, *, durable: bool = False
) -> None:
    """
    Take the note back, as the directory has project and limit, and give it its permissions.

    Those come last: they may be such that nobody can open it, and who takes a creation up has to.

    :param durable: return when that, and so all that was done before, is on stable storage.
    """
    with root.descend(CREATING, links=False) as notes:
        _take_back(notes, creation)
        changed = notes
        if creation.wanted.mode is not None:
            os.fchmod(directory.descriptor, creation.wanted.mode)
            changed = directory
        if durable:
            # XFS has one journal, and writes it up to the last change of what is synced.
            changed.sync()


def end(root: Directory, creation: Creation) -> None:
    """Take the note back, as there is no directory."""
    with root.descend(CREATING, links=False) as notes:
        _take_back(notes, creation)


def _take_back(notes: Directory, creation: Creation) -> None:
    # While others look for it they also look for the directory.
    with _alone(notes):
        os.unlink("-".join(creation.names), dir_fd=notes.descriptor)


def broken_off(root: Directory) -> Iterator[Creation]:
    """
    Take hold of all creations that were broken off, one after the other.

    :return: each is to be ended, and closed.
    """
    try:
        notes = root.descend(CREATING, links=False)
    except FileNotFoundError:
        return
    with notes:
        for name in os.listdir(notes.descriptor):
            with _alone(notes):
                try:
                    note = notes.open_file(name, os.O_RDWR, links=False)
                except FileNotFoundError:
                    continue
                is_held = _is_held(note)
            if is_held:
                wanted = Wanted.decode(note.read(0, _LENGTH))
                yield Creation(tuple(name.split("-")), wanted, note)


@contextmanager
def _alone(notes: Directory) -> Iterator[None]:
    fcntl.flock(notes.descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(notes.descriptor, fcntl.LOCK_UN)


def _is_held(note: File) -> bool:
    """Whether nobody else works on it; it is closed when somebody does."""
    try:
        with note.descriptor() as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        note.close()
        if isinstance(error, BlockingIOError):
            return False
        raise
    return True


def _is_there(root: Directory, names: Sequence[str]) -> bool:
    try:
        root.status("/".join(names))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
