"""
The commands of the RapidFile Toolkit: what they write, and what they are found to be good for.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from backends.purestorage import probe, rapidfile
from backends.purestorage.probe import Findings
from backends.purestorage.rapidfile import Toolkit, octal_permissions, parse_entry, permissions
from storageproxy import launch
from storageproxy.beneath import Directory
from storageproxy.process import CommandFailed
from storageproxy.testing import GIVE_UP
from storageproxy.threads import Abandoned
from storageproxy.trees import Usage
from tests.engines.flashblade.rapidfile import Behaviour, behave, install, running

ENTRY = {
    "path": "/mnt/a/name",
    "filetype": 32768,
    "mode": 420,
    "size": 5,
    "uid": 1,
    "mtime": 1.5,
    "ctime": 2,
}

NAMES = some.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


def record(**changes: Any) -> bytes:
    return json.dumps({**ENTRY, **changes}).encode()


def cut(data: bytes, at: list[int]) -> Iterator[bytes]:
    """Data in pieces that end at some places."""
    start = 0
    for stop in sorted(at):
        yield data[start:stop]
        start = max(start, stop)
    yield data[start:]


class VersionTests(SynchronousTestCase):
    def test_known(self) -> None:
        """Both generations tell their version in words of their own."""
        for said, version in (
            (b"pdu (RapidFile Toolkit) 1.0.0-beta.5\nmore", "1.0.0-beta.5"),
            (b"version pdu (RapidFile) 2.1.1\n", "2.1.1"),
        ):
            self.assertEqual(rapidfile.parse_version("pdu", said), version)

    def test_unknown(self) -> None:
        """What is another command, another generation or none at all is not taken for one."""
        for said in (
            b"",
            b"pdu (GNU coreutils) 9.1",
            b"pls (RapidFile Toolkit) 1.0.0",
            b"version pdu (RapidFile) 3.0.0",
            b"version pdu (RapidFile) ",
            b"Warning: odd\nversion pdu (RapidFile) 2.1.1",
        ):
            self.assertIsNone(rapidfile.parse_version("pdu", said))


class SplitTests(SynchronousTestCase):
    @given(some.lists(some.binary(max_size=50)), some.lists(some.integers(0, 500), max_size=9))
    def test_any_pieces(self, records: list[bytes], at: list[int]) -> None:
        """Records come whole and in order, wherever the pieces end."""
        records = [one.replace(b"\0", b"") for one in records]
        data = b"".join(one + b"\0" for one in records)
        found = [one for some in rapidfile.split(cut(data, at), b"\0") for one in some]
        self.assertEqual(found, records)

    def test_quiet(self) -> None:
        """Whoever takes them hears of it when there is nothing new."""
        self.assertEqual(list(rapidfile.split([b"a\n", b"", b"b\n"], b"\n")), [[b"a"], [], [b"b"]])

    def test_broken_off(self) -> None:
        """A record without an end is none."""
        with self.assertRaises(CommandFailed):
            list(rapidfile.split([b"a\nb"], b"\n"))

    def test_bounded(self) -> None:
        """A record that does not end is not kept for ever."""
        taken = 0

        def endless() -> Iterator[bytes]:
            nonlocal taken
            while True:
                taken += 1
                yield bytes(4096)

        with self.assertRaises(CommandFailed):
            list(rapidfile.split(endless(), b"\n"))
        self.assertLessEqual(taken, rapidfile.MAX_RECORD // 4096 + 1)


class EntryTests(SynchronousTestCase):
    def test_entry(self) -> None:
        """An entry has a name, a type with permissions, a size and times."""
        name, status = parse_entry(record(), permissions)
        self.assertEqual(name, "name")
        self.assertEqual(
            status, (stat.S_IFREG | 0o644, 5, 1_500_000_000, 2_000_000_000), "in nanoseconds"
        )

    def test_types(self) -> None:
        """Types are told as numbers, or as their octal digits."""
        for said, kind in (
            (16384, stat.S_IFDIR),
            (40000, stat.S_IFDIR),
            (40960, stat.S_IFLNK),
            (120000, stat.S_IFLNK),
            (32768, stat.S_IFREG),
            (100000, stat.S_IFREG),
            (4096, stat.S_IFIFO),
            (10000, stat.S_IFIFO),
        ):
            _, status = parse_entry(record(filetype=said), permissions)
            self.assertEqual(status.st_mode, kind | 0o644)

    def test_modes(self) -> None:
        """Permissions are told as bits, with a type or without, or as octal digits."""
        for said, way in ((420, permissions), (33188, permissions), (644, octal_permissions)):
            _, status = parse_entry(record(mode=said), way)
            self.assertEqual(status.st_mode, stat.S_IFREG | 0o644)

    @given(NAMES, some.sampled_from((b"", b"./", b"/mnt/a b/")))
    def test_names(self, raw: bytes, prefix: bytes) -> None:
        """Names have any bytes: as they are, or escaped."""
        path = os.fsdecode(prefix + raw)
        text = json.dumps({**ENTRY, "path": path}, ensure_ascii=False)
        for line in (text.encode("utf-8", "surrogateescape"), record(path=path)):
            name, _ = parse_entry(line, permissions)
            self.assertEqual(os.fsencode(name), raw)

    def test_times(self) -> None:
        """Times are told to the microsecond, and may be long ago."""
        for said, nanoseconds in (
            (1_700_000_000.123456, 1_700_000_000_123_456_000),
            (-1, -(10**9)),
            (-0.5, -500_000_000),
            (1 << 55, 10**9 << 55),
        ):
            _, status = parse_entry(record(mtime=said), permissions)
            self.assertEqual(status.st_mtime_ns, nanoseconds)

    def test_no_entry(self) -> None:
        """What is no entry is not passed over: it may stand for one."""
        for line in (
            b"",
            b"Warning: the directory is not on a FlashBlade",
            b"[]",
            b"null",
            b"1",
            b'{"path": "x"}',
            b"[" * 60_000,
            record()[:-1],
            record(path=1),
            record(path=""),
            record(path="a/"),
            record(path="a/.."),
            record(path="a\0b"),
            record(path="\ud800"),
            record(filetype=1),
            record(filetype=[]),
            record(mode="rw-r--r--"),
            record(size=None),
            record(size=float("nan")),
            record(mtime=float("inf")),
            record(mtime="now"),
        ):
            with self.assertRaises(CommandFailed, msg=line):
                parse_entry(line, permissions)
        with self.assertRaises(CommandFailed):
            parse_entry(record(mode=648), octal_permissions)

    @given(some.binary(max_size=60))
    def test_anything(self, line: bytes) -> None:
        """Whatever a command writes is an entry or a failure."""
        try:
            parse_entry(line, permissions)
        except CommandFailed:
            pass


class CountsTests(SynchronousTestCase):
    def count(self, *records: bytes, step: Callable[..., None] | None = None) -> Usage:
        return rapidfile.parse_counts([[], list(records)], step or (lambda *_: None))

    def test_counts(self) -> None:
        """Files are counted with their bytes, and the directory is not one of them."""
        odd = b"7\t./a b\n\xff"
        self.assertEqual(self.count(b"5\t./a", odd, b"12\t."), Usage(2, 12))
        self.assertEqual(self.count(b"12 ./", b"5 a", b"7 b/c"), Usage(2, 12))
        self.assertEqual(self.count(b"0\t."), Usage(0, 0))

    def test_names_like_it(self) -> None:
        """A file whose name is like that of the directory is a file."""
        self.assertEqual(self.count(b"5\t./ .", b"6\t.. ", b"11\t."), Usage(2, 11))

    def test_incomplete(self) -> None:
        """Where the directory itself is missing, others may be, too."""
        for records in ((), (b"5\t./a",), (b"5\t.", b"5\t.")):
            with self.assertRaises(CommandFailed):
                self.count(*records)

    def test_no_count(self) -> None:
        """What is no size is not passed over."""
        for line in (b"", b"Warning: odd", b"5", b"-1\t./a", b"5K\t./a", b"9" * 30 + b"\ta"):
            with self.assertRaises(CommandFailed, msg=line):
                self.count(line, b"5\t.")

    def test_progress(self) -> None:
        """Each file is told, also that there was none for a moment."""
        told: list[tuple[int, ...]] = []
        self.count(b"5\t./a", b"5\t.", step=lambda *one: told.append(one))
        self.assertEqual(told, [(0,), (0,), (1, 5)])


class CommandsCase(TestCase):
    """Commands on a path, and a directory for them to work on."""

    timeout = GIVE_UP
    generation = 2

    def setUp(self) -> None:
        self.bin = os.path.realpath(self.mktemp())
        os.mkdir(self.bin)
        self.environ = {"PATH": f"{self.bin}:/usr/bin:/bin"}
        install(self.bin, Behaviour(self.generation))
        self.root = Path(os.path.realpath(self.mktemp()))
        self.root.mkdir()
        self.directory = Directory.open_root(str(self.root))
        self.addCleanup(self.directory.close)
        versions = dict.fromkeys(rapidfile.COMMANDS, f"{self.generation}.0")
        self.toolkit = Toolkit(reactor, versions, environ=self.environ, silence=2.0)

    def behave(self, **how: Any) -> None:
        behave(self.bin, Behaviour(self.generation, **how))

    async def gone(self) -> None:
        """Wait until none of the commands runs any more."""
        ended: Deferred[None] = Deferred()

        def look() -> None:
            if running(self.bin):
                reactor.callLater(0.01, look)  # type: ignore[attr-defined]
            else:
                ended.callback(None)

        look()
        await ended

    async def scan(self) -> dict[str, Any]:
        way = octal_permissions if self.generation == 1 else permissions
        return await deferToThread(lambda: dict(self.toolkit.scan(self.directory, way)))


class ToolkitTests(CommandsCase):
    async def test_find(self) -> None:
        """The commands are found on the path, with their versions."""
        found, complaints = await rapidfile.find(reactor, self.environ)
        copy = "pcp" if self.generation == 1 else "pcopy"
        self.assertEqual(list(found), ["pls", "pdu", "prm", copy, "pfind"])
        self.assertTrue(all(one.startswith(f"{self.generation}.") for one in found.values()))
        self.assertEqual(complaints, [])

    async def test_find_some(self) -> None:
        """What is missing, and what is another command of the same name, is named."""
        os.unlink(f"{self.bin}/pls")
        os.unlink(f"{self.bin}/pdu")
        os.symlink("/bin/true", f"{self.bin}/pdu")
        found, complaints = await rapidfile.find(reactor, self.environ)
        self.assertEqual(list(found)[0], "prm")
        self.assertNotIn("pdu", found)
        self.assertEqual(len(complaints), 2)
        self.assertIn("pls: not found", complaints[0])
        self.assertIn("pdu: it is no RapidFile Toolkit", complaints[1])

    async def test_scan(self) -> None:
        """Entries are as the kernel tells them."""
        for name in probe.NAMES:
            (self.root / os.fsdecode(name)).write_bytes(name)
        (self.root / "dir").mkdir(0o710)
        (self.root / "link").symlink_to("dir")
        os.mkfifo(self.root / "fifo")
        found = await self.scan()
        self.assertEqual(set(found), {entry.name for entry in os.scandir(self.root)})
        for name, entry in found.items():
            status = (self.root / name).lstat()
            self.assertEqual((entry.st_mode, entry.st_size), (status.st_mode, status.st_size))
            self.assertLess(abs(entry.st_mtime_ns - status.st_mtime_ns), 2000)
            self.assertLess(abs(entry.st_ctime_ns - status.st_ctime_ns), 2000)

    async def test_count(self) -> None:
        """Files and links of a tree are counted, whatever their names."""
        (self.root / "sub" / "empty").mkdir(parents=True)
        for name in probe.NAMES:
            (self.root / "sub" / os.fsdecode(name)).write_bytes(name)
        (self.root / "link").symlink_to("sub")
        found = await deferToThread(self.toolkit.count, self.directory)
        expected = Usage(len(probe.NAMES) + 1, sum(map(len, probe.NAMES)) + 3)
        self.assertEqual(found, expected)

    async def test_remove(self) -> None:
        """A tree is removed, whatever its name, and nothing else."""
        for name in ("-r", "other"):
            (self.root / name / "sub").mkdir(parents=True)
        await deferToThread(self.toolkit.remove, self.directory, "-r")
        self.assertEqual(os.listdir(self.root), ["other"])

    async def test_moved(self) -> None:
        """The directory is the one that is open, whatever is where it was."""
        (self.root / "file").touch()
        self.root.rename(f"{self.root}-moved")
        other = Path(f"{self.root}-other")
        other.mkdir()
        (other / "secret").write_bytes(b"secret")
        (other / "doomed").touch()
        self.root.symlink_to(other)
        self.assertEqual(list(await self.scan()), ["file"])
        found = await deferToThread(self.toolkit.count, self.directory)
        self.assertEqual(found, Usage(1, 0))
        await deferToThread(self.toolkit.remove, self.directory, "file")
        self.assertEqual(sorted(os.listdir(other)), ["doomed", "secret"])

    async def test_swapped(self) -> None:
        """A link in the place of a directory leads nobody out who would follow it."""
        outside = Path(f"{self.root}-outside")
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        (self.root / "tree").mkdir()
        (self.root / "tree" / "sub").symlink_to(outside)
        self.behave(swapped="sub")
        with self.assertRaises(CommandFailed) as caught:
            await deferToThread(self.toolkit.count, self.directory)
        self.assertIn("Permission denied", str(caught.exception))
        with self.assertRaises(CommandFailed) as caught:
            await deferToThread(self.toolkit.remove, self.directory, "tree")
        self.assertIn("Permission denied", str(caught.exception))
        self.assertEqual(os.listdir(outside), ["secret"])

    async def test_stand_in_is_led_out(self) -> None:
        """Were it not confined, it would follow: that is what the test above is about."""
        outside = Path(f"{self.root}-outside")
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        (self.root / "sub").symlink_to(outside)
        self.behave(swapped="sub")
        argv = ("pdu", "-0", "-b", "-a", *(["-s"] if self.generation == 1 else []), ".")
        output = self.toolkit._stream(argv, self.directory, None)
        self.assertIn(b"secret", await deferToThread(b"".join, output))

    async def test_failures(self) -> None:
        """A command that fails in any way has told nothing that counts."""
        for number in range(5):
            (self.root / str(number)).touch()
        for how in (
            {"status": 1},
            {"status": 1, "complete": 2},
            {"complaint": "RPC: Timed out\n"},
            {"complaint": "RPC: Timed out\n", "complete": 3},
            {"garbage": "Warning: odd\n"},
            {"dies": 9},
            {"dies": 9, "complete": 2},
        ):
            self.behave(**how)
            for work in (self.scan, lambda: deferToThread(self.toolkit.count, self.directory)):
                with self.assertRaises(CommandFailed, msg=how):
                    await work()
        await self.gone()

    async def test_ends_too_early(self) -> None:
        """A count that ends too early is none, though the command says that all is well."""
        for number in range(5):
            (self.root / str(number)).touch()
        self.behave(complete=3)
        with self.assertRaises(CommandFailed):
            await deferToThread(self.toolkit.count, self.directory)

    async def test_hangs(self) -> None:
        """One that hangs is given up, and none is left, nor what it has started."""
        (self.root / "file").touch()
        self.behave(complete=0, hangs=True, child=True)
        with self.assertRaises(CommandFailed):
            await deferToThread(self.toolkit.count, self.directory)
        await self.gone()

    async def test_abandoned(self) -> None:
        """One whose result nobody wants any more is ended."""
        (self.root / "file").touch()
        self.behave(complete=0, hangs=True)
        steps = 0

        def step(entries: int = 1, size: int = 0) -> None:
            nonlocal steps
            steps += 1
            if steps == 3:
                raise Abandoned

        for work in (
            lambda: self.toolkit.count(self.directory, step),
            lambda: self.toolkit.remove(self.directory, "file", step),
        ):
            steps = 0
            with self.assertRaises(Abandoned):
                await deferToThread(work)
        await self.gone()


class OldToolkitTests(ToolkitTests):
    generation = 1


class ProbeTests(CommandsCase):
    async def probe(self, **how: Any) -> Findings:
        self.behave(**how)
        return await deferToThread(probe.probe, self.toolkit, self.directory)

    def tearDown(self) -> None:
        self.assertEqual(os.listdir(self.root / probe.PLACE), [])

    async def test_all_is_well(self) -> None:
        """Commands of both generations are good for everything, whatever numbers they write."""
        for generation in (1, 2):
            for how in ({}, {"octal_types": True}, {"escaped": True}):
                versions = dict.fromkeys(rapidfile.COMMANDS, f"{generation}.0")
                self.toolkit = Toolkit(reactor, versions, environ=self.environ)
                self.generation = generation
                found = await self.probe(**how)
                way = octal_permissions if generation == 1 else permissions
                self.assertEqual(found, Findings(way, True, True), how)

    async def test_permissions(self) -> None:
        """How permissions are told is seen, whatever the generation."""
        self.assertIs((await self.probe(octal_modes=True)).permissions, octal_permissions)

    async def test_by_path(self) -> None:
        """Commands that look for a directory by its path are not used."""
        found = await self.probe(by_path=True)
        self.assertEqual((found.permissions, found.counts, found.removes), (None, False, False))
        self.assertEqual(len(found.complaints), 3)
        for name, said in zip(("pls", "pdu", "prm"), found.complaints, strict=True):
            self.assertTrue(said.startswith(f"{name}: "), said)

    async def test_one(self) -> None:
        """Of one that fails, or does something else, the others are used all the same."""
        for name, how in (
            ("pls", {"complaint": "odd"}),
            ("pdu", {"status": 1}),
            ("prm", {"status": 1}),
            ("pls", {"complete": 3}),
            ("prm", {"complete": 0}),
            ("pls", {"garbage": "{}\n"}),
            ("pdu", {"garbage": "5\t./no-file\0"}),
        ):
            found = await self.probe(broken=name, **how)
            good = [found.permissions is not None, found.counts, found.removes]
            self.assertEqual(good, [one != name for one in rapidfile.COMMANDS], (name, how))
            self.assertEqual(len(found.complaints), 1)
            self.assertTrue(found.complaints[0].startswith(f"{name}: "), found.complaints)

    async def test_missing(self) -> None:
        """One that is not there is not tried, and no more is said of it."""
        self.toolkit = Toolkit(reactor, {"pls": "2.0"}, environ=self.environ)
        self.assertEqual(await self.probe(), Findings(permissions))

    async def test_not_confined(self) -> None:
        """Where the kernel cannot confine commands, those that walk through trees are not used."""
        self.patch(launch, "confinable", lambda: False)
        found = await self.probe()
        self.assertEqual((found.permissions, found.counts, found.removes), (permissions, 0, 0))
        self.assertIn("Landlock", found.complaints[0])
