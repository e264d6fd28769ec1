"""
A directory as one zip file, made while it is sent.

It is stored, not compressed: what people keep here mostly is compressed already, and so the length
is known before the first byte.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections.abc import Callable
from functools import partial

from isal.isal_zlib import crc32

from storageproxy import trees
from storageproxy.beneath import Directory
from storageproxy.errors import ArchiveTooLarge, InvalidSubpath
from storageproxy.threads import Progress
from storageproxy.transfer import ziprecords
from storageproxy.transfer.bodies import Body, Chunks, Extent
from storageproxy.transfer.ziprecords import Member
from storageproxy.vfolder import UPLOADS

#: Files of one archive: their names are in memory until it is sent.
MAX_MEMBERS = 1_000_000

#: Bytes of a path that system calls take, with the NUL at its end (limits.h).
PATH_MAX = 4096

#: Below the top, what cannot be seen is left out.
_FORGIVEN = trees.VANISHED | {errno.EACCES}


def members(folder: Directory, path: str, progress: Progress) -> list[Member]:
    """
    What goes into the archive of a directory.

    Files, links to files inside of the vfolder (as files), and empty directories. What leads out,
    leads nowhere, cannot be read, or is no file is left out. Blocks.

    :param path: the directory, relative to the vfolder.
    :raises ArchiveTooLarge: when there are too many.
    """
    found: list[Member] = []
    prefix = "" if path == "." else f"{path}/"
    skip = UPLOADS if path == "." else None
    me = os.geteuid()
    with folder.descend(path) as top:
        for below, directory, entries in trees.walk(top, skip, _FORGIVEN, progress.step):
            empty = bool(below)
            inside = f"{below}/" if below else ""
            for entry in entries:
                empty = False
                name = inside + entry.name
                full = prefix + name if prefix else name
                status = _file_status(folder, directory, full, entry, me)
                if status is None:
                    progress.step()
                    continue
                size = status.st_size
                progress.step(1, size)
                found.append(Member(full, _spelled(name), size, status.st_mode, status.st_mtime))
                if len(found) > MAX_MEMBERS:
                    raise ArchiveTooLarge(f"more than {MAX_MEMBERS} files")
            if empty:
                status = os.fstat(directory.descriptor)
                name = _spelled(below) + "/"
                found.append(Member(prefix + below, name, 0, status.st_mode, status.st_mtime))
    if len(found) > MAX_MEMBERS:
        raise ArchiveTooLarge(f"more than {MAX_MEMBERS} files")
    return found


def _file_status(
    folder: Directory, directory: Directory, path: str, entry: os.DirEntry[str], me: int
) -> os.stat_result | None:
    """The state of the file that an entry stands for, if it goes into an archive."""
    status = trees.lstat(entry, _FORGIVEN)
    # A character has four bytes at most. Nobody could unpack a longer path either.
    if status is None or (len(path) * 4 >= PATH_MAX and len(os.fsencode(path)) >= PATH_MAX):
        return None
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        try:
            status = folder.status(path, follow=True)
        except (OSError, InvalidSubpath):
            return None
        mode = status.st_mode
    if not stat.S_ISREG(mode):
        return None
    # Whoever owns it need not ask, which is most of the time.
    if mode & stat.S_IRUSR and status.st_uid == me:
        return status
    return status if os.access(entry.name, os.R_OK, dir_fd=directory.descriptor) else None


def archive(open_folder: Callable[[], Directory], contents: list[Member]) -> Body:
    """
    :param open_folder: opens the vfolder, in the thread that makes the chunks.
    :param contents: from :func:`members`.
    """
    length = ziprecords.length(contents)
    return Body(length, (partial(_write, open_folder, contents),))


def _spelled(name: str) -> str:
    """A name as a zip file has it, in UTF-8; bytes that are not are spelled out."""
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _write(open_folder: Callable[[], Directory], contents: list[Member], block: int) -> Chunks:
    sums = array("I")
    # A descriptor of its own: this may go on in a hanging call after the caller has given up.
    with open_folder() as own:
        for member in contents:
            yield ziprecords.header(member)
            crc = 0
            if not member.is_directory:
                with own.open_file(member.path) as file:
                    for data in Extent(file, 0, member.size).read(block):
                        crc = crc32(data, crc)
                        yield data
                yield ziprecords.descriptor(member, crc)
            sums.append(crc)
    yield from ziprecords.directory(contents, sums)
