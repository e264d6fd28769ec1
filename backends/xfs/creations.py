# -*- test-case-name: tests.test_xfs_volume -*-
"""
Directories that are being made, and have no project or no limit yet.

Each has a note in the volume, which is there before the directory is, is locked (flock(2)) while
somebody works on it, and is gone before anybody is told that the directory exists. So a creation
that was broken off is known by its note, whatever has become of the directory. All of this blocks.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from attrs import frozen

from storageproxy.beneath import Directory, File

#: Where the notes are, in the root of the volume.
CREATING = ".storage-proxy/creating"


@frozen
class Creation:
    """
    A creation that is held.

    :param names: of the directory and of those above it, from the root of the volume on.
    :param note: the note, locked until it is closed. Unless it was taken back, the creation is one
        that was broken off then.
    """

    names: tuple[str, ...]
    note: File


def begin(root: Directory, names: Sequence[str]) -> Creation | None:
    """
    Begin a creation, or take up one that was broken off.

    :param root: the open volume.
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
        return _hold(tuple(names), note)


def end(root: Directory, creation: Creation, *, durable: bool = False) -> None:
    """
    Take the note back, as the directory is made, or is gone.

    :param durable: return when that, and so all that was done before, is on stable storage.
    """
    with root.descend(CREATING, links=False) as notes:
        # While others look for it they also look for the directory.
        with _alone(notes):
            os.unlink("-".join(creation.names), dir_fd=notes.descriptor)
        if durable:
            # XFS has one journal, and writes it up to the last change of what is synced.
            notes.sync()


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
                creation = _hold(tuple(name.split("-")), note)
            if creation is not None:
                yield creation


@contextmanager
def _alone(notes: Directory) -> Iterator[None]:
    fcntl.flock(notes.descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(notes.descriptor, fcntl.LOCK_UN)


def _hold(names: tuple[str, ...], note: File) -> Creation | None:
    try:
        with note.descriptor() as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        note.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return Creation(names, note)


def _is_there(root: Directory, names: Sequence[str]) -> bool:
    try:
        root.status("/".join(names))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
