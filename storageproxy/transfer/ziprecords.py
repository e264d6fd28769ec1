"""
The records of a zip file that is written from front to back, stored, with the sum of each file
behind it (APPNOTE.TXT section 4.3).

They are those that :mod:`zipfile` writes, to the byte. That one holds an object for each member
until the end, and would spend more time on the sums than the rest of a download takes.
"""

from __future__ import annotations

import os
import stat
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import NamedTuple
from zipfile import ZIP64_LIMIT, ZIP_FILECOUNT_LIMIT

#: The first and the last time in a zip file, well inside of them in any time zone.
_DOS_FIRST, _DOS_LAST = 315_619_200, 4_354_732_800

_LOCAL = Struct("<4s2B4HL2L2H")
_DESCRIPTOR = Struct("<4sLQQ")
_CENTRAL = Struct("<4s4B4HL2L5H2L")
_EXTRA = Struct("<HH")
_EXTRA_SIZES = Struct("<HHQQ")
_END = Struct("<4s4H2LH")
_ZIP64_END = Struct("<4sQ2H2L4Q")
_ZIP64_LOCATOR = Struct("<4sLQL")

#: Bytes that a file takes in the archive besides its contents and its name.
_AROUND = _EXTRA_SIZES.size + _DESCRIPTOR.size

_UNIX = 3
_VERSION, _ZIP64_VERSION = 20, 45
_SUM_FOLLOWS, _UTF8 = 0x08, 0x800
_MS_DIRECTORY = 0x10
_ABSENT = 0xFFFFFFFF


class Member(NamedTuple):
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

    @property
    def is_directory(self) -> bool:
        """Whether it has no contents."""
        return self.name.endswith("/")


class Members:
    """
    What goes into an archive: files, and directories that are empty.

    There may be a million of them, so they are kept in columns. An object for each would take three
    times the memory, and time of the garbage collector, which the reactor would wait for.

    :param prefix: of all paths, which the names in the archive have not: "", or with a slash at its
        end.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._names: list[str] = []
        self._sizes = array("Q")
        self._modes = array("H")
        self._mtimes = array("d")
        self._files = 0
        #: Bytes of all names.
        self._letters = 0

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Member]:
        for name, size, mode, mtime in zip(
            self._names, self._sizes, self._modes, self._mtimes, strict=True
        ):
            spelled = _spelled(name)
            if stat.S_ISDIR(mode):
                spelled += "/"
            yield Member(self._prefix + name, spelled, size, mode, mtime)

    def add_files(self, names: Sequence[str], states: Sequence[os.stat_result]) -> int:
        """
        :param names: their paths without the prefix.
        :param states: of each of them.
        :return: the sum of their sizes.
        """
        sizes = [status.st_size for status in states]
        self._names += names
        self._sizes.extend(sizes)
        self._modes.extend([status.st_mode for status in states])
        self._mtimes.extend([status.st_mtime for status in states])
        self._files += len(names)
        letters = "".join(names)
        self._letters += len(letters) if letters.isascii() else sum(map(_letters, names))
        return sum(sizes)

    def add_directory(self, name: str, status: os.stat_result) -> None:
        """
        :param name: its path without the prefix, and without a slash at its end.
        """
        self._names.append(name)
        self._sizes.append(0)
        self._modes.append(status.st_mode)
        self._mtimes.append(status.st_mtime)
        self._letters += _letters(name) + 1

    @property
    def length(self) -> int:
        """Bytes of the whole archive."""
        count = len(self)
        offset = _LOCAL.size * count + self._letters + _AROUND * self._files + sum(self._sizes)
        size = _CENTRAL.size * count + self._letters
        if offset > ZIP64_LIMIT:
            size += self._large()
        if _is_large(count, offset, size):
            size += _ZIP64_END.size + _ZIP64_LOCATOR.size
        return offset + size + _END.size

    def _large(self) -> int:
        # Bytes of the fields of members that are too large, or too far from the beginning.
        taken = offset = 0
        for name, size, mode in zip(self._names, self._sizes, self._modes, strict=True):
            far = offset > ZIP64_LIMIT
            if far or size > ZIP64_LIMIT:
                taken += _EXTRA.size + 16 * (size > ZIP64_LIMIT) + 8 * far
            around = 1 if stat.S_ISDIR(mode) else _AROUND
            offset += _LOCAL.size + _letters(name) + around + size
        return taken


def _spelled(name: str) -> str:
    # Bytes that are no UTF-8 are spelled out.
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _letters(name: str) -> int:
    return len(name) if name.isascii() else len(_spelled(name).encode("utf-8"))


def header(member: Member) -> bytes:
    """What stands before the contents of a member (section 4.3.7)."""
    name = member.name.encode("utf-8")
    version, size, extra = _VERSION, 0, b""
    if not member.is_directory:
        version, size, extra = _ZIP64_VERSION, _ABSENT, _EXTRA_SIZES.pack(1, 16, 0, 0)
    return (
        _LOCAL.pack(
            b"PK\3\4",
            version,
            0,
            _flags(member),
            0,
            *_dos_time(member.mtime),
            0,
            size,
            size,
            len(name),
            len(extra),
        )
        + name
        + extra
    )


def descriptor(member: Member, crc: int) -> bytes:
    """What stands behind the contents of a file (section 4.3.9)."""
    return _DESCRIPTOR.pack(b"PK\7\10", crc, member.size, member.size)


def directory(members: Iterable[Member], sums: Iterable[int]) -> Iterator[bytes]:
    """
    What stands at the end of the archive: the list of its members (sections 4.3.12 to 4.3.16).

    :param sums: the CRC-32 of each member, 0 for directories.
    """
    offset = size = count = 0
    for member, crc in zip(members, sums, strict=True):
        record = _listed(member, crc, offset)
        size += len(record)
        offset += len(header(member)) + member.size
        offset += 0 if member.is_directory else _DESCRIPTOR.size
        count += 1
        yield record
    if _is_large(count, offset, size):
        yield _ZIP64_END.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        yield _ZIP64_LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
    listed = min(count, 0xFFFF)
    yield _END.pack(b"PK\5\6", 0, 0, listed, listed, min(size, _ABSENT), min(offset, _ABSENT), 0)


def _is_large(count: int, offset: int, size: int) -> bool:
    return count > ZIP_FILECOUNT_LIMIT or offset > ZIP64_LIMIT or size > ZIP64_LIMIT


def _flags(member: Member) -> int:
    flags = 0 if member.is_directory else _SUM_FOLLOWS
    return flags if member.name.isascii() else flags | _UTF8


def _listed(member: Member, crc: int, offset: int) -> bytes:
    name = member.name.encode("utf-8")
    version = _VERSION if member.is_directory else _ZIP64_VERSION
    large: list[int] = []
    size = member.size
    if size > ZIP64_LIMIT:
        large += (size, size)
        size = _ABSENT
    if offset > ZIP64_LIMIT:
        large.append(offset)
        offset, version = _ABSENT, _ZIP64_VERSION
    extra = b""
    if large:
        extra = Struct(f"<HH{len(large)}Q").pack(1, 8 * len(large), *large)
    attributes = (member.mode & 0xFFFF) << 16
    if member.is_directory:
        attributes |= _MS_DIRECTORY
    return (
        _CENTRAL.pack(
            b"PK\1\2",
            version,
            _UNIX,
            version,
            0,
            _flags(member),
            0,
            *_dos_time(member.mtime),
            crc,
            size,
            size,
            len(name),
            len(extra),
            0,
            0,
            0,
            attributes,
            offset,
        )
        + name
        + extra
    )


def _dos_time(mtime: float) -> tuple[int, int]:
    # The years 1980 to 2107 are all that the format can say.
    moment = time.localtime(min(max(mtime, _DOS_FIRST), _DOS_LAST))
    return (
        moment.tm_hour << 11 | moment.tm_min << 5 | min(moment.tm_sec, 59) // 2,
        (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday,
    )
