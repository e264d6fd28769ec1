"""
A directory as one zip file, made while it is sent.

It is stored, not compressed: what people keep here mostly is compressed already, and so the length
is known before the first byte.
"""

from __future__ import annotations

import errno
import os
import posixpath
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
from storageproxy.transfer.ziprecords import Members
from storageproxy.vfolder import UPLOADS

#: Files of one archive: their names are in memory until it is sent.
MAX_MEMBERS = 1_000_000

#: Bytes of a path that system calls take, with the NUL at its end (limits.h).
PATH_MAX = 4096

#: The bits of a mode that tell a file which its owner may read, and what they are then.
_KIND, _OPEN = trees.KIND | stat.S_IRUSR, stat.S_IFREG | stat.S_IRUSR

#: Below the top, what cannot be seen is left out.
_FORGIVEN = trees.VANISHED | {errno.EACCES}


def members(folder: Directory, path: str, progress: Progress) -> Members:
    """
    What goes into the archive of a directory.

    Files, links to files inside of the vfolder (as files), and empty directories. What leads out,
    leads nowhere, cannot be read, or is no file is left out. Blocks.

    :param path: the directory, relative to the vfolder.
    :raises ArchiveTooLarge: when there are too many.
    """
    prefix = "" if path == "." else f"{path}/"
    skip = UPLOADS if path == "." else None
    found = Members(prefix)
    # A character has four bytes at most.
    surely_short = PATH_MAX // 4 - len(prefix)
    me = os.geteuid()
    with folder.descend(path) as top:
        for below, directory, batches in trees.walk(top, skip, _FORGIVEN, progress.step):
            inside = f"{below}/" if below else ""
            empty = bool(below)
            for entries in batches:
                empty = False
                names: list[str] = []
                states: list[os.stat_result] = []
                for entry, status in zip(*trees.lstats(entries, _FORGIVEN), strict=True):
                    name = inside + entry.name
                    # Most of what people keep are files of the daemon's own.
                    if (
                        status.st_mode & _KIND != _OPEN
                        or status.st_uid != me
                        or len(name) >= surely_short
                    ):
                        progress.step(0)
                        found_file = _file(folder, directory, prefix + name, status, me)
                        if found_file is None:
                            continue
                        status = found_file
                    names.append(name)
                    states.append(status)
                progress.step(len(entries), found.add_files(names, states))
                _check_number(found)
            if empty:
                found.add_directory(below, os.fstat(directory.descriptor))
                _check_number(found)
    return found


def _check_number(found: Members) -> None:
    if len(found) > MAX_MEMBERS:
        raise ArchiveTooLarge(f"more than {MAX_MEMBERS} files")


def _file(
    folder: Directory, directory: Directory, path: str, status: os.stat_result, me: int
) -> os.stat_result | None:
    """The state of the file that an entry stands for, if it goes into an archive."""
    # Nobody could unpack a longer path either.
    if len(os.fsencode(path)) >= PATH_MAX:
        return None
    if stat.S_ISLNK(status.st_mode):
        try:
            status = folder.status(path, follow=True)
        except (OSError, InvalidSubpath):
            return None
    if status.st_mode & _KIND == _OPEN and status.st_uid == me:
        return status
    name = posixpath.basename(path)
    readable = stat.S_ISREG(status.st_mode) and os.access(
        name, os.R_OK, dir_fd=directory.descriptor
    )
    return status if readable else None


def archive(open_folder: Callable[[], Directory], contents: Members) -> Body:
    """
    :param open_folder: opens the vfolder, in the thread that makes the chunks.
    :param contents: from :func:`members`.
    """
    return Body(contents.length, (partial(_write, open_folder, contents),))


def _write(open_folder: Callable[[], Directory], contents: Members, block: int) -> Chunks:
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
