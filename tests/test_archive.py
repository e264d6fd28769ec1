"""
A directory as one zip file, whose length is known before its first byte.
"""

from __future__ import annotations

import os
import stat
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any
from zipfile import ZipFile, ZipInfo

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storageproxy import trees
from storageproxy.beneath import Directory
from storageproxy.errors import ArchiveTooLarge, InvalidSubpath
from storageproxy.threads import Abandoned, Progress
from storageproxy.transfer import archive, ziprecords
from storageproxy.transfer.bodies import BLOCK, Changed
from storageproxy.transfer.ziprecords import Member, Members
from storageproxy.vfolder import UPLOADS
from tests.members import columns
from tests.test_beneath import descriptors

#: Names as people and programs give them: ASCII, UTF-8, and bytes that are neither.
names = st.one_of(
    st.text("abcXYZ019-_. ", min_size=1, max_size=12),
    st.text(min_size=1, max_size=12),
    st.binary(min_size=1, max_size=12).map(os.fsdecode),
).filter(
    lambda name: (
        name not in (".", "..", UPLOADS) and not any(c in name for c in "/\0") and _encodable(name)
    )
)

KINDS = ("file", "directory", "in", "out", "absolute", "broken", "loop", "fifo", "socket")

trees_ = st.recursive(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from(KINDS[2:]),
        st.just({}),
    ),
    lambda below: st.dictionaries(names, below, max_size=5),
    max_leaves=15,
).filter(lambda tree: isinstance(tree, dict))

SETTINGS = settings(
    deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None
)


def _encodable(name: str) -> bool:
    try:
        return len(os.fsencode(name)) <= 255
    except UnicodeEncodeError:
        return False


def reopen(folder: Directory) -> Callable[[], Directory]:
    """What opens the same folder again."""
    return lambda: Directory(os.dup(folder.descriptor))


class Sink:
    """
    Takes an archive of any size, and keeps nothing but how long it is.
    """

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        pass


def told_by_zipfile(members: list[Member]) -> int:
    """
    How long :mod:`zipfile` makes an archive of files that have these sizes.

    Their bytes are not written, but counted.
    """
    sink = Sink()
    with ZipFile(sink, "w") as target:  # type: ignore[call-overload]
        for member in members:
            info = ZipInfo(member.name)
            if member.name.endswith("/"):
                info.CRC = 0
                target.mkdir(info)
                continue
            with target.open(info, "w", force_zip64=True) as into:
                sink.size += member.size
                into._file_size = member.size
    return sink.size


def member(name: str, size: int) -> Member:
    mode = stat.S_IFDIR | 0o755 if name.endswith("/") else stat.S_IFREG | 0o644
    return Member(name.rstrip("/"), name, size, mode, 0.0)


class ArchiveTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.outside = os.path.abspath(self.mktemp())
        os.makedirs(self.outside)
        with open(os.path.join(self.outside, "secret"), "wb") as file:
            file.write(b"secret")
        self.use(os.path.abspath(self.mktemp()))
        before = descriptors()
        self.addCleanup(lambda: self.assertEqual(descriptors(), before))

    def use(self, path: str) -> None:
        self.path = path
        os.makedirs(path)
        self.folder = Directory.open_root(path)
        self.addCleanup(self.folder.close)

    def at(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def write(self, name: str, content: bytes = b"x") -> None:
        os.makedirs(os.path.dirname(self.at(name)), exist_ok=True)
        with open(self.at(name), "wb") as file:
            file.write(content)

    def members(self, path: str = ".") -> Members:
        return archive.members(self.folder, path, Progress())

    def names(self, path: str = ".") -> list[str]:
        return sorted(one.name for one in self.members(path))

    def zip(self, path: str = ".") -> ZipFile:
        """Make an archive, check its length, and open it."""
        body = archive.archive(reopen(self.folder), self.members(path))
        with warnings.catch_warnings():
            # Names that are told apart by bytes that are no UTF-8 look the same.
            warnings.simplefilter("ignore")
            data = b"".join(body.chunks())
        self.assertEqual(len(data), body.length)
        return ZipFile(BytesIO(data))


class MembersTests(ArchiveTestCase):
    def test_what_goes_in(self) -> None:
        """Files and empty directories go in; directories that are not empty need not."""
        for name in ("file", "a/file", "a/b/c/file"):
            self.write(name)
        os.makedirs(self.at("a", "empty"))
        self.assertEqual(self.names(), ["a/b/c/file", "a/empty/", "a/file", "file"])

    def test_below(self) -> None:
        """The names in the archive of a directory are relative to it."""
        self.write("a/b/file", b"content")
        os.makedirs(self.at("a", "empty"))
        self.assertEqual(self.names("a"), ["b/file", "empty/"])
        self.assertEqual(self.zip("a").read("b/file"), b"content")

    def test_empty(self) -> None:
        """An empty directory makes an empty archive."""
        self.assertEqual(list(self.members()), [])
        self.assertEqual(self.zip().namelist(), [])

    def test_uploads(self) -> None:
        """Unfinished uploads do not go in; a directory of that name elsewhere does."""
        self.write(f"{UPLOADS}/session")
        self.write(f"a/{UPLOADS}/file")
        self.assertEqual(self.names(), [f"a/{UPLOADS}/file"])

    def test_links(self) -> None:
        """Links to files inside go in as those files, with their size; no other link does."""
        self.write("a/file", b"content")
        for name, target in (
            ("a/in", "file"),
            ("up", "a/file"),
            ("directory", "a"),
            ("absolute", os.path.join(self.outside, "secret")),
            ("out", f"../{os.path.basename(self.outside)}/secret"),
            ("broken", "nowhere"),
            ("loop", "loop"),
            ("magic", "/proc/self/environ"),
        ):
            os.symlink(target, self.at(name))
        self.assertEqual(self.names(), ["a/file", "a/in", "up"])
        zipped = self.zip()
        self.assertEqual(zipped.read("up"), b"content")
        self.assertEqual(zipped.read("a/in"), b"content")

    def test_link_below(self) -> None:
        """In the archive of a directory, links may lead to elsewhere in the folder."""
        self.write("file", b"content")
        os.makedirs(self.at("a"))
        os.symlink("../file", self.at("a", "link"))
        self.assertEqual(self.zip("a").read("link"), b"content")

    def test_others(self) -> None:
        """FIFOs, and links to them, are left out, and make nobody wait."""
        os.mkfifo(self.at("fifo"))
        os.symlink("fifo", self.at("link"))
        self.assertEqual(self.names(), [])

    def test_out(self) -> None:
        """Nothing outside is archived."""
        os.symlink(self.outside, self.at("out"))
        for path in ("..", f"../{os.path.basename(self.outside)}", "out"):
            self.assertRaises(InvalidSubpath, self.members, path)

    def test_not_a_directory(self) -> None:
        """Only a directory that is there can be archived."""
        self.write("file")
        self.assertRaises(NotADirectoryError, self.members, "file")
        self.assertRaises(FileNotFoundError, self.members, "none")

    def test_too_many(self) -> None:
        """A directory of too many files is not read to its end."""
        for number in range(3 * trees.BATCH):
            self.write(str(number))
        self.patch(archive, "MAX_MEMBERS", 5)
        progress = Progress()
        self.assertRaises(ArchiveTooLarge, archive.members, self.folder, ".", progress)
        self.assertLess(progress.entries, 2 * trees.BATCH)

    def test_abandoned(self) -> None:
        """The search for members ends when nobody waits for it."""
        progress = Progress()
        progress.abandon()
        self.assertRaises(Abandoned, archive.members, self.folder, ".", progress)


class WriteTests(ArchiveTestCase):
    def test_content(self) -> None:
        """What was put in comes out, whatever its size."""
        contents = {
            "empty": b"",
            "small": b"small",
            "block": b"b" * BLOCK,
            "more": bytes(range(251)) * (3 * BLOCK // 251),
        }
        for name, content in contents.items():
            self.write(name, content)
        zipped = self.zip()
        self.assertIsNone(zipped.testzip())
        for name, content in contents.items():
            self.assertEqual(zipped.read(name), content)

    def test_chunks(self) -> None:
        """The archive comes in pieces of a bounded size, however large a file is."""
        self.write("large", b"l" * (BLOCK * 8))
        body = archive.archive(reopen(self.folder), self.members())
        sizes = [len(chunk) for chunk in body.chunks()]
        self.assertGreater(len(sizes), 4)
        self.assertLess(max(sizes), BLOCK * 3)
        self.assertEqual(sum(sizes), body.length)

    def test_modes_and_times(self) -> None:
        """Permissions and times are kept, as well as a zip file can."""
        self.write("run.sh")
        os.makedirs(self.at("empty"))
        when = (2020, 2, 29, 13, 14, 16)
        for name, mode in (("run.sh", 0o750), ("empty", 0o711)):
            os.chmod(self.at(name), mode)
            seconds = time.mktime((*when, 0, 0, -1))
            os.utime(self.at(name), (seconds, seconds))
        zipped = self.zip()
        for name, mode in (("run.sh", stat.S_IFREG | 0o750), ("empty/", stat.S_IFDIR | 0o711)):
            info = zipped.getinfo(name)
            self.assertEqual(oct(info.external_attr >> 16), oct(mode))
            self.assertEqual(info.date_time, when)
        self.assertTrue(zipped.getinfo("empty/").is_dir())

    def test_odd_times(self) -> None:
        """A time that a zip file cannot tell does not keep a file out of it."""
        for mtime in (-(2.0**40), -1.0, 0.0, 2.0**32, 2.0**36, 2.0**56):
            self.write("file")
            [one] = self.members()
            odd = Member(one.path, one.name, one.size, one.mode, mtime)
            body = archive.archive(reopen(self.folder), columns([odd]))
            data = b"".join(body.chunks())
            self.assertEqual(len(data), body.length)
            self.assertIsNone(ZipFile(BytesIO(data)).testzip())

    def test_names(self) -> None:
        """Names come out as they were; bytes that are no UTF-8 are spelled out."""
        for name in ("löwe", "a b", "new\nline", "日本", "back\\slash", "-rf"):
            self.write(name)
        self.write(os.fsdecode(b"caf\xe9"))
        self.assertEqual(
            sorted(self.zip().namelist()),
            sorted(["löwe", "a b", "new\nline", "日本", "back\\slash", "-rf", "caf\\xe9"]),
        )

    def test_shrinks(self) -> None:
        """A file that becomes shorter breaks the archive off; nothing is made up."""
        self.write("file", b"f" * (2 * BLOCK))
        body = archive.archive(reopen(self.folder), self.members())
        os.truncate(self.at("file"), BLOCK)
        self.assertRaises(Changed, lambda: list(body.chunks()))

    def test_shrinks_meanwhile(self) -> None:
        """A file that becomes shorter while it is sent breaks the archive off."""
        self.write("file", b"f" * (4 * BLOCK))
        chunks = archive.archive(reopen(self.folder), self.members()).chunks()
        next(chunks)
        os.truncate(self.at("file"), 10)
        self.assertRaises(Changed, lambda: list(chunks))

    def test_grows(self) -> None:
        """Of a file that grows, what it had is sent, and the length is as told."""
        self.write("file", b"f" * 1000)
        body = archive.archive(reopen(self.folder), self.members())
        self.write("file", b"f" * 2000)
        data = b"".join(body.chunks())
        self.assertEqual(len(data), body.length)
        self.assertEqual(ZipFile(BytesIO(data)).read("file"), b"f" * 1000)

    def test_vanishes(self) -> None:
        """A file that vanishes, or becomes something else, breaks the archive off."""

        def link() -> None:
            os.symlink(os.path.join(self.outside, "secret"), self.at("file"))

        changes: list[Callable[[], object]] = [
            lambda: None,
            link,
            lambda: os.mkfifo(self.at("file")),
            lambda: os.mkdir(self.at("file")),
        ]
        for change in changes:
            self.write("file", b"six by")
            body = archive.archive(reopen(self.folder), self.members())
            os.unlink(self.at("file"))
            change()
            sent: list[bytes] = []
            with self.assertRaises(Exception):  # noqa: B017
                sent.extend(body.chunks())
            self.assertNotIn(b"secret", b"".join(sent))
            if os.path.isdir(self.at("file")):
                os.rmdir(self.at("file"))
            elif os.path.lexists(self.at("file")):
                os.unlink(self.at("file"))

    def test_swapped_directory(self) -> None:
        """A directory that becomes a link out while it is sent is not followed."""
        self.write("a/secret", b"six by")
        body = archive.archive(reopen(self.folder), self.members())
        os.rename(self.at("a"), self.at("b"))
        os.symlink(self.outside, self.at("a"))
        self.assertRaises(InvalidSubpath, lambda: list(body.chunks()))

    def test_folder_closed(self) -> None:
        """Once begun, the archive does not need the folder that it was begun with."""
        self.write("file", b"f" * (4 * BLOCK))
        folder = Directory.open_root(self.path)
        body = archive.archive(reopen(folder), self.members())
        chunks = body.chunks()
        data = next(chunks)
        folder.close()
        self.assertEqual(len(data + b"".join(chunks)), body.length)

    def test_left_early(self) -> None:
        """When the client goes away half-way, nothing stays open."""
        self.write("file", b"f" * (4 * BLOCK))
        chunks = archive.archive(reopen(self.folder), self.members()).chunks()
        next(chunks)
        chunks.close()


class LengthTests(ArchiveTestCase):
    def build(self, tree: dict[str, Any], path: str) -> None:
        for name, what in tree.items():
            place = os.path.join(path, name)
            if isinstance(what, dict):
                os.mkdir(place)
                self.build(what, place)
            elif isinstance(what, bytes):
                with open(place, "wb") as file:
                    file.write(what)
            elif what in ("fifo", "socket"):
                os.mkfifo(place)
            else:
                target = {
                    "in": next((one for one in tree if isinstance(tree[one], bytes)), "none"),
                    "out": "../" * 20 + "etc/passwd",
                    "absolute": os.path.join(self.outside, "secret"),
                    "broken": "nowhere",
                    "loop": name,
                }[what]
                os.symlink(target, place)

    def files(self, tree: dict[str, Any]) -> Iterator[bytes]:
        for what in tree.values():
            if isinstance(what, dict):
                yield from self.files(what)
            elif isinstance(what, bytes):
                yield what
            elif what == "in":
                found = next((one for one in tree.values() if isinstance(one, bytes)), None)
                if found is not None:
                    yield found

    def check(self, tree: dict[str, Any]) -> None:
        self.use(os.path.abspath(self.mktemp()))
        self.build(tree, self.path)
        zipped = self.zip()
        self.assertIsNone(zipped.testzip())
        found = [zipped.read(info) for info in zipped.infolist() if not info.is_dir()]
        self.assertEqual(sorted(found), sorted(self.files(tree)))

    @given(trees_)
    @SETTINGS
    def test_any_tree(self, tree: dict[str, Any]) -> None:
        """The length that is told is the length that is sent, and all files come out whole."""
        self.check(tree)

    @given(trees_, st.integers(0, 1000), st.integers(0, 8))
    @SETTINGS
    def test_small_limits(self, tree: dict[str, Any], size: int, count: int) -> None:
        """The same when the limits of the old zip format lie within the tree."""
        for module in (ziprecords, zipfile):
            self.patch(module, "ZIP64_LIMIT", size)
            self.patch(module, "ZIP_FILECOUNT_LIMIT", count)
        self.check(tree)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "löwe", "d/", "long" * 50]),
                st.one_of(
                    st.integers(0, 100),
                    st.integers((1 << 31) - 3, (1 << 31) + 3),
                    st.integers((1 << 32) - 3, (1 << 32) + 3),
                    st.integers(0, 1 << 45),
                ),
            ),
            max_size=12,
        )
    )
    @SETTINGS
    def test_large_files(self, chosen: list[tuple[str, int]]) -> None:
        """The length is right for files of any size, each at any place in the archive."""
        contents = [
            member(f"{number}{name}", 0 if name.endswith("/") else size)
            for number, (name, size) in enumerate(chosen)
        ]
        self.assertEqual(columns(contents).length, told_by_zipfile(contents))

    def test_limits(self) -> None:
        """The length is right on both sides of 2 and 4 GiB, by one file and by many."""
        for limit in (1 << 31, 1 << 32):
            for size in range(limit - 130, limit + 5):
                for contents in (
                    [member("file", size)],
                    [member("file", size - 1000), member("next", 800), member("last", 3)],
                ):
                    self.assertEqual(columns(contents).length, told_by_zipfile(contents), size)

    def test_many(self) -> None:
        """The length is right on both sides of 65,535 entries."""
        contents = [member(f"{number:05}", 1) for number in range(65_537)]
        for count in (65_533, 65_534, 65_535, 65_536, 65_537):
            self.assertEqual(
                columns(contents[:count]).length, told_by_zipfile(contents[:count]), count
            )

    def test_many_directories(self) -> None:
        """Empty directories count as entries too."""
        contents = [member(f"{number}/", 0) for number in range(65_540)]
        self.assertEqual(columns(contents).length, told_by_zipfile(contents))
