"""
A directory as one zip file, made while it is sent.

It is stored, not compressed: what people keep here mostly is compressed already, and so the length
is known before the first byte. :mod:`zipfile` writes it; only the sum of the lengths is ours.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable
from functools import partial
from zipfile import ZIP64_LIMIT, ZIP_FILECOUNT_LIMIT, ZipFile, ZipInfo

from attrs import frozen

from storageproxy import trees
from storageproxy.beneath import Directory
from storageproxy.errors import ArchiveTooLarge, InvalidSubpath
from storageproxy.threads import Progress
from storageproxy.transfer.bodies import BLOCK, Body, Changed, Chunks
from storageproxy.vfolder import UPLOADS

#: Files of one archive: their names are in memory until it is sent.
MAX_MEMBERS = 1_000_000

#: Bytes of a path that system calls take, with the NUL at its end (limits.h).
PATH_MAX = 4096

#: The first and the last time in a zip file, well inside of them in any time zone.
_DOS_FIRST, _DOS_LAST = 315_619_200, 4_354_732_800

#: Fixed lengths of the records of a zip file (APPNOTE.TXT sections 4.3.7 to 4.3.16).
_LOCAL_HEADER = 30
_CENTRAL_HEADER = 46
_END = 22
_ZIP64_SIZES = 20
_ZIP64_DESCRIPTOR = 24
_ZIP64_END = 56 + 20


@frozen
class Member:
    """
    A file or directory of an archive.

    :param path: relative to the vfolder.
    :param name: in the archive, with a slash at its end for a directory.
    :param size: bytes that it had when the archive was begun.
    :param mode: its type and permissions.
    :param mtime: seconds since the epoch.
    """

    path: str
    name: str
    size: int
    mode: int
    mtime: float


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
    with folder.descend(path) as top:
        for below, directory, entries in trees.walk(
            top, skip, trees.VANISHED | {errno.EACCES}, progress.step
        ):
            empty = bool(below)
            for entry in entries:
                empty = False
                status = _file_status(folder, directory, prefix, entry)
                if status is not None:
                    found.append(_member(prefix + entry.path, entry.path, status.st_size, status))
            if empty:
                status = os.fstat(directory.descriptor)
                found.append(_member(prefix + below, below + "/", 0, status))
            if len(found) > MAX_MEMBERS:
                raise ArchiveTooLarge(f"more than {MAX_MEMBERS} files")
    return found


def _file_status(
    folder: Directory, directory: Directory, prefix: str, entry: trees.Entry
) -> os.stat_result | None:
    """The state of the file that an entry stands for, if it goes into an archive."""
    status = entry.status
    if len(os.fsencode(prefix + entry.path)) >= PATH_MAX:
        # Nobody could unpack it either.
        return None
    if stat.S_ISLNK(status.st_mode):
        try:
            status = folder.status(prefix + entry.path, follow=True)
        except (OSError, InvalidSubpath):
            return None
    name = entry.path.rpartition("/")[2]
    if stat.S_ISREG(status.st_mode) and os.access(name, os.R_OK, dir_fd=directory.descriptor):
        return status
    return None


def archive(open_folder: Callable[[], Directory], contents: list[Member]) -> Body:
    """
    :param open_folder: opens the vfolder, in the thread that makes the chunks.
    :param contents: from :func:`members`.
    """
    return Body(length(contents), (partial(_write, open_folder, contents),))


def length(contents: Iterable[Member]) -> int:
    """Bytes of the archive."""
    count = offset = central = 0
    for member in contents:
        name = len(member.name.encode("utf-8"))
        extra = (2 if member.size > ZIP64_LIMIT else 0) + (1 if offset > ZIP64_LIMIT else 0)
        central += _CENTRAL_HEADER + name + (4 + 8 * extra if extra else 0)
        offset += _LOCAL_HEADER + name
        if not member.name.endswith("/"):
            offset += _ZIP64_SIZES + member.size + _ZIP64_DESCRIPTOR
        count += 1
    if count > ZIP_FILECOUNT_LIMIT or offset > ZIP64_LIMIT or central > ZIP64_LIMIT:
        central += _ZIP64_END
    return offset + central + _END


def _member(path: str, name: str, size: int, status: os.stat_result) -> Member:
    # Names in a zip file are UTF-8; bytes that are not are spelled out.
    told = os.fsencode(name).decode("utf-8", "backslashreplace")
    return Member(path, told, size, status.st_mode, status.st_mtime)


class _Pieces:
    """The end of a pipe that :class:`ZipFile` writes into."""

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self.held.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back from whoever takes the pieces."""

    def take(self) -> bytes:
        data = b"".join(self.held)
        self.held, self.size = [], 0
        return data


def _write(open_folder: Callable[[], Directory], contents: list[Member]) -> Chunks:
    pieces = _Pieces()
    # A descriptor of its own: this may go on in a hanging call after the caller has given up.
    with open_folder() as own:
        with ZipFile(pieces, "w") as target:  # type: ignore[call-overload]
            for member in contents:
                info = ZipInfo(member.name, _dos_time(member.mtime))
                info.external_attr = (member.mode & 0xFFFF) << 16
                if member.name.endswith("/"):
                    info.external_attr |= 0x10
                    info.CRC = 0
                    target.mkdir(info)
                    continue
                with (
                    own.open_file(member.path) as file,
                    target.open(info, "w", force_zip64=True) as into,
                ):
                    offset = 0
                    while offset < member.size:
                        data = file.read(offset, min(BLOCK, member.size - offset))
                        if not data:
                            raise Changed
                        offset += len(data)
                        into.write(data)
                        if pieces.size >= BLOCK:
                            yield pieces.take()
                if pieces.size >= BLOCK:
                    yield pieces.take()
        yield pieces.take()


def _dos_time(mtime: float) -> tuple[int, int, int, int, int, int]:
    # The years 1980 to 2107 are all that the format can say.
    moment = time.localtime(min(max(mtime, _DOS_FIRST), _DOS_LAST))
    return (*moment[:5], min(moment.tm_sec, 59))
