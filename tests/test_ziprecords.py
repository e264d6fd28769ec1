"""
Tests for :mod:`storageproxy.transfer.ziprecords`: what it writes is what :mod:`zipfile` writes.
"""

from __future__ import annotations

import stat
import time
import warnings
import zipfile
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storageproxy.transfer import ziprecords
from storageproxy.transfer.ziprecords import Member
from tests.members import columns

#: Bytes that stand for the contents of a large file, which nobody writes.
STUB = b"contents"

names = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0/"), min_size=1, max_size=40
)
sizes = st.one_of(
    st.integers(0, 100),
    st.integers((1 << 31) - 2, (1 << 31) + 2),
    st.integers((1 << 32) - 2, (1 << 32) + 2),
    st.integers(0, 1 << 45),
)
times = st.one_of(st.integers(315_705_600, 4_354_646_400), st.floats(-(2**40), 2**40))


@st.composite
def members(draw: st.DrawFn) -> Member:
    name = draw(names)
    mode = draw(st.integers(0, 0o777))
    if draw(st.booleans()):
        return Member(name, name, draw(sizes), stat.S_IFREG | mode, draw(times))
    return Member(name, f"{name}/", 0, stat.S_IFDIR | mode, draw(times))


class Info(zipfile.ZipInfo):
    """
    A member as :mod:`zipfile` writes it from Python 3.11.4 on: when sizes are to follow in 64 bits,
    those in 32 bits are not 0, and the version is that of the larger format (gh-103861).
    """

    def FileHeader(self, zip64: bool | None = None) -> bytes:
        header = super().FileHeader(zip64)
        if not zip64:
            return header
        self.extract_version = self.create_version = zipfile.ZIP64_VERSION
        return b"".join(
            [header[:4], b"\x2d\0", header[6:18], b"\xff" * 8, header[26:]],
        )


class Sink:
    """
    Takes what is written, and can be told that more was.
    """

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self.written.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held."""


def by_zipfile(contents: list[Member]) -> tuple[bytes, int]:
    """The records of an archive of these files, and how long it is with their contents."""
    sink = Sink()
    # A stream that cannot seek: ZipFile takes note of what it has written by itself.
    with zipfile.ZipFile(sink, "w") as target:  # type: ignore[call-overload]
        for member in contents:
            mtime = min(max(member.mtime, 315_619_200), 4_354_732_800)
            moment = time.localtime(mtime)
            info = Info(member.name, (*moment[:5], min(moment.tm_sec, 59)))
            info.external_attr = (member.mode & 0xFFFF) << 16
            if member.is_directory:
                info.external_attr |= 0x10
                info.CRC = 0
                target.mkdir(info)
                continue
            with target.open(info, "w", force_zip64=True) as into:
                into._crc = zlib.crc32(STUB)
                into._file_size = member.size
                target.fp.offset += member.size
                sink.size += member.size
    return b"".join(sink.written), sink.size


def by_us(contents: list[Member]) -> bytes:
    written, sums = [], []
    for member in contents:
        written.append(ziprecords.header(member))
        sums.append(0 if member.is_directory else zlib.crc32(STUB))
        if not member.is_directory:
            written.append(ziprecords.descriptor(member, sums[-1]))
    return b"".join([*written, *ziprecords.directory(contents, sums)])


class RecordTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.lists(members(), max_size=8))
    def test_any_members(self, contents: list[Member]) -> None:
        """Any names, modes and times, and sizes on both sides of all limits."""
        with warnings.catch_warnings():
            # The same name twice is nothing to us.
            warnings.simplefilter("ignore")
            records, size = by_zipfile(contents)
        self.assertEqual(by_us(contents), records)
        kept = columns(contents)
        self.assertEqual(list(kept), contents)
        self.assertEqual(kept.length, size)

    def test_many(self) -> None:
        """As many members as the old format can count, and one more."""
        contents = [Member(str(n), str(n), 1, stat.S_IFREG | 0o644, 1e9) for n in range(65536)]
        for count in (65535, 65536):
            records, size = by_zipfile(contents[:count])
            self.assertEqual(by_us(contents[:count]), records)
            self.assertEqual(columns(contents[:count]).length, size)
