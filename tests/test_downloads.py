"""
Tests for :mod:`storageproxy.transfer.downloads` and :mod:`storageproxy.transfer.archive`.
"""

from __future__ import annotations

import os
import socket
from io import BytesIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.static import StaticProducer

from storageproxy.transfer.bodies import BLOCK
from storageproxy.transfer.downloads import content_disposition
from storageproxy.transfer.producers import ThreadedProducer
from storageproxy.transfer.ziprecords import Member
from tests.harness import Answer, Descriptors, Events, MemoryCase, Wire
from tests.members import columns


class DownloadCase(MemoryCase):
    def setUp(self) -> None:
        super().setUp()
        # Made before anything is watched, as its import opens files.
        self.descriptors = Descriptors()

    def begin(self, relpath: str, method: str = "GET", query: str = "", **headers: str) -> Wire:
        wire = self.proxy.connect()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        wire.request(method, self.proxy.download_path(self.vfid, relpath, query), named)
        return wire

    def get(self, relpath: str, method: str = "GET", query: str = "", **headers: str) -> Answer:
        [answer] = self.begin(relpath, method, query, **headers).answers(method)
        return answer

    def assert_all_closed(self) -> None:
        self.assertEqual(self.descriptors.left(self.root), set())


class WholeTests(DownloadCase):
    def test_whole(self) -> None:
        """A file comes as it is, with its length and its name."""
        self.put("dir/a file", b"content")
        answer = self.get("dir/a file")
        self.assertEqual((answer.status, answer.body), (200, b"content"))
        self.assertEqual(answer.headers["content-length"], "7")
        self.assertEqual(answer.headers["content-type"], "application/octet-stream")
        self.assertEqual(answer.headers["accept-ranges"], "bytes")
        self.assertEqual(
            answer.headers["content-disposition"],
            "attachment;filename=\"a file\"; filename*=UTF-8''a%20file",
        )
        self.assert_all_closed()

    def test_many_blocks(self) -> None:
        """A large file comes whole and in order."""
        content = os.urandom(3 * BLOCK + 5)
        self.put("file", content)
        self.assertEqual(self.get("file").body, content)
        self.assert_all_closed()

    def test_empty(self) -> None:
        """An empty file is a complete answer."""
        self.put("file", b"")
        answer = self.get("file")
        self.assertEqual((answer.status, answer.headers["content-length"]), (200, "0"))
        self.assert_all_closed()

    def test_connection_goes_on(self) -> None:
        """A connection serves one download after the other."""
        self.put("file", b"content")
        wire = self.begin("file")
        wire.request("GET", self.proxy.download_path(self.vfid, "file"))
        self.assertEqual([answer.body for answer in wire.answers()], [b"content"] * 2)
        self.assertFalse(wire.disconnecting)

    def test_head(self) -> None:
        """FIX 15: a HEAD has all headers of a GET, and reads nothing of the file."""
        self.put("file", b"content")
        made: list[object] = []
        self.patch(ThreadedProducer, "__init__", lambda *args: made.append(args))
        answer = self.get("file", "HEAD")
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.headers["content-length"], "7")
        self.assertIn("etag", answer.headers)
        self.assertIn("last-modified", answer.headers)
        self.assertEqual(made, [])
        self.assert_all_closed()

    def test_grown_meanwhile(self) -> None:
        """A file that grows while it is sent comes as long as was said."""
        path = self.put("file", b"x" * (2 * BLOCK))
        self.threads.held = True
        wire = self.begin("file")
        for _ in range(3):
            self.threads.step()
        with path.open("ab") as file:
            file.write(b"more")
        self.threads.release()
        self.assertEqual(wire.answers()[0].body, b"x" * (2 * BLOCK))

    def test_replaced_meanwhile(self) -> None:
        """A file that is replaced while it is sent comes as it was."""
        path = self.put("file", b"x" * (3 * BLOCK))
        self.threads.held = True
        wire = self.begin("file")
        for _ in range(3):
            self.threads.step()
        new = self.put("new", b"y" * (3 * BLOCK))
        new.rename(path)
        self.threads.release()
        self.assertEqual(wire.answers()[0].body, b"x" * (3 * BLOCK))
        self.assert_all_closed()

    def test_is_a_producer_of_twisteds(self) -> None:
        """The bytes are sent by a producer of twisted.web.static, as it was built upon."""
        self.assertTrue(issubclass(ThreadedProducer, StaticProducer))


class RangeTests(DownloadCase):
    content = bytes(range(256)) * 40

    def setUp(self) -> None:
        super().setUp()
        self.put("file", self.content)

    def test_one(self) -> None:
        """One range comes as a 206 that says which one it is."""
        answer = self.get("file", Range="bytes=10-19")
        self.assertEqual((answer.status, answer.body), (206, self.content[10:20]))
        self.assertEqual(answer.headers["content-range"], "bytes 10-19/10240")
        self.assertEqual(answer.headers["content-length"], "10")
        self.assert_all_closed()

    def test_from_an_offset(self) -> None:
        """A download that was cut goes on where it was."""
        answer = self.get("file", Range="bytes=10000-")
        self.assertEqual(answer.body, self.content[10000:])

    def test_end(self) -> None:
        """The last bytes can be asked for."""
        self.assertEqual(self.get("file", Range="bytes=-5").body, self.content[-5:])

    def test_many(self) -> None:
        """Several ranges come in one answer, each with its place, in the order asked for."""
        answer = self.get("file", Range="bytes=100-199, 0-9, -3")
        self.assertEqual(answer.status, 206)
        media_type, _, boundary = answer.headers["content-type"].partition("; boundary=")
        self.assertEqual(media_type, "multipart/byteranges")
        self.assertNotIn("content-range", answer.headers)
        self.assertEqual(int(answer.headers["content-length"]), len(answer.body))
        before, *parts, end = answer.body.split(b"\r\n--" + boundary.encode())
        self.assertEqual((before, end), (b"", b"--\r\n"))
        found = []
        for part in parts:
            lines, _, body = part.partition(b"\r\n\r\n")
            self.assertIn(b"Content-Type: application/octet-stream", lines)
            found.append((lines.partition(b"Content-Range: ")[2].decode(), body))
        self.assertEqual(
            found,
            [
                ("bytes 100-199/10240", self.content[100:200]),
                ("bytes 0-9/10240", self.content[:10]),
                ("bytes 10237-10239/10240", self.content[-3:]),
            ],
        )
        self.assert_all_closed()

    def test_not_by_head(self) -> None:
        """A HEAD has no ranges (RFC 9110 section 14.2): it tells of the whole file."""
        answer = self.get("file", "HEAD", Range="bytes=0-9,20-29")
        self.assertEqual((answer.status, answer.headers["content-length"]), (200, "10240"))

    def test_beyond_the_end(self) -> None:
        """A range behind the end is a 416 that says how long the file is."""
        answer = self.get("file", Range="bytes=10240-")
        self.assertEqual(answer.status, 416)
        self.assertEqual(answer.headers["content-range"], "bytes */10240")
        self.assertIn(b'"msg"', answer.body)
        self.assert_all_closed()

    def test_too_many(self) -> None:
        """A request for a thousand ranges does not hang, and costs no more than the file."""
        asked = ",".join(f"{start}-{start}" for start in range(1000))
        answer = self.get("file", Range=f"bytes={asked}")
        self.assertEqual((answer.status, answer.body), (200, self.content))

    def test_overlapping(self) -> None:
        """Ranges that overlap cannot ask for many copies of the file."""
        answer = self.get("file", Range="bytes=0-,0-,0-,0-")
        self.assertEqual((answer.status, len(answer.body)), (200, len(self.content)))


class BackPressureTests(DownloadCase):
    blocks = 6

    def setUp(self) -> None:
        super().setUp()
        self.content = os.urandom(self.blocks * BLOCK)
        self.put("file", self.content)
        self.threads.held = True
        self.wire = self.begin("file")
        # The file is opened and looked at, and its first block is asked for.
        self.threads.step()

    def test_one_block_ahead_at_most(self) -> None:
        """While the client does not read, no more than the block under way is read for it."""
        assert self.wire.producer is not None
        self.wire.producer.pauseProducing()
        self.threads.step()
        self.assertEqual(self.threads.calls, [])
        self.assertEqual(self._sent(), BLOCK)

    def test_goes_on(self) -> None:
        """When the client reads again, the download goes on to its end."""
        assert self.wire.producer is not None
        for _ in range(self.blocks - 1):
            self.wire.producer.pauseProducing()
            self.threads.step()
            self.assertEqual(self.threads.calls, [])
            self.wire.producer.resumeProducing()
        self.threads.release()
        self.assertEqual(self.wire.answers()[0].body, self.content)
        self.assert_all_closed()

    def test_paused_and_resumed_within_a_read(self) -> None:
        """A client that stutters does not get a block twice, or in the wrong order."""
        assert self.wire.producer is not None
        for _ in range(3):
            self.wire.producer.pauseProducing()
            self.wire.producer.resumeProducing()
        self.assertEqual(len(self.threads.calls), 1)
        self.threads.release()
        self.assertEqual(self.wire.answers()[0].body, self.content)

    def test_one_read_at_a_time(self) -> None:
        """A client that reads gets block after block, with one read under way."""
        for _ in range(self.blocks):
            self.assertEqual(len(self.threads.calls), 1)
            self.threads.step()

    def _sent(self) -> int:
        return len(self.wire.value().partition(b"\r\n\r\n")[2])


class DisconnectTests(DownloadCase):
    def gone_after(self, relpath: str, steps: int, query: str = "", **headers: str) -> bool:
        """
        A client that goes after so many calls in threads.

        :return: whether there were as many.
        """
        self.threads.held = True
        wire = self.begin(relpath, query=query, **headers)
        for _ in range(steps):
            if not self.threads.calls:
                break
            self.threads.step()
        more = bool(self.threads.calls)
        wire.disconnect()
        self.threads.release()
        self.assert_all_closed()
        self.assertEqual(self.proxy.client_site.active, set())
        return more

    def test_at_any_point(self) -> None:
        """Wherever a client hangs up, the file is closed."""
        self.put("file", bytes(3 * BLOCK))
        steps = 0
        while self.gone_after("file", steps):
            steps += 1
        self.assertGreater(steps, 4)

    def test_at_any_point_of_many_ranges(self) -> None:
        """Wherever a client hangs up, the file of a multipart answer is closed."""
        self.put("file", bytes(3 * BLOCK))
        steps = 0
        while self.gone_after("file", steps, Range=f"bytes=0-9,20-{2 * BLOCK}"):
            steps += 1
        self.assertGreater(steps, 4)

    def test_at_any_point_of_an_archive(self) -> None:
        """Wherever a client hangs up, all files of an archive are closed."""
        for name in "abc":
            self.put(f"dir/{name}", bytes(BLOCK))
        steps = 0
        while self.gone_after("dir", steps, "&archive=true"):
            steps += 1
        self.assertGreater(steps, 4)

    def test_while_paused(self) -> None:
        """A client that neither reads nor stays leaves nothing open."""
        self.put("file", bytes(3 * BLOCK))
        self.threads.held = True
        wire = self.begin("file")
        for _ in range(2):
            self.threads.step()
        assert wire.producer is not None
        wire.producer.pauseProducing()
        self.threads.step()
        wire.disconnect()
        self.threads.release()
        self.assert_all_closed()


class BrokenTests(DownloadCase):
    def test_file_shrinks(self) -> None:
        """A file that shrinks while it is sent ends the connection: a part is not the whole."""
        path = self.put("file", bytes(3 * BLOCK))
        events = Events(self)
        self.threads.held = True
        wire = self.begin("file")
        for _ in range(2):
            self.threads.step()
        os.truncate(path, BLOCK)
        self.threads.release()
        self.assertTrue(wire.aborted)
        self.assertLess(len(wire.value()), 2 * BLOCK)
        self.assertTrue(events.requests()[-1]["aborted"])
        self.assert_all_closed()

    def test_disk_fails(self) -> None:
        """A disk that fails in mid-file ends the connection."""
        self.put("file", bytes(3 * BLOCK))
        self.threads.held = True
        wire = self.begin("file")
        for _ in range(3):
            self.threads.step()
        self.threads.fail(OSError(5, "Input/output error"))
        self.threads.release()
        self.assertTrue(wire.aborted)
        self.assert_all_closed()

    def test_volume_hangs_in_mid_file(self) -> None:
        """A volume that hangs in mid-file ends the connection in bounded time."""
        self.put("file", bytes(3 * BLOCK))
        self.threads.held = True
        wire = self.begin("file")
        for _ in range(3):
            self.threads.step()
        self.clock.advance(self.threads.deadline * 4)
        self.clock.advance(0)
        self.assertTrue(wire.aborted)
        self.threads.release()
        self.assert_all_closed()

    def test_volume_hangs_at_first(self) -> None:
        """A volume that hangs before the first byte is a 503 that says when to try again."""
        self.put("file", b"content")
        self.threads.held = True
        wire = self.begin("file")
        self.clock.advance(self.threads.deadline)
        [answer] = wire.answers()
        self.assertEqual(answer.status, 503)
        self.assertGreater(int(answer.headers["retry-after"]), 0)
        self.threads.release()
        self.assert_all_closed()


class ArchiveTests(DownloadCase):
    def archive(self, relpath: str = "dir") -> ZipFile:
        answer = self.get(relpath, query="&archive=true")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-type"], "application/zip")
        self.assertEqual(int(answer.headers["content-length"]), len(answer.body))
        self.assert_all_closed()
        found = ZipFile(BytesIO(answer.body))
        self.assertIsNone(found.testzip())
        return found

    def test_tree(self) -> None:
        """A directory comes as a zip of its files, with names relative to it, stored."""
        self.put("dir/a", b"a" * (2 * BLOCK))
        self.put("dir/sub/deep/b", b"b")
        self.put("beside", b"x")
        found = self.archive()
        self.assertEqual(sorted(found.namelist()), ["a", "sub/deep/b"])
        self.assertEqual(found.read("a"), b"a" * (2 * BLOCK))
        self.assertEqual({info.compress_type for info in found.infolist()}, {ZIP_STORED})

    def test_empty_directories(self) -> None:
        """An empty directory is a valid, stored entry."""
        (self.folder / "dir" / "empty").mkdir(parents=True)
        found = self.archive()
        [info] = found.infolist()
        self.assertEqual((info.filename, info.compress_type), ("empty/", ZIP_STORED))
        self.assertEqual((info.file_size, info.CRC), (0, 0))

    def test_empty_archive(self) -> None:
        """An empty directory itself is an empty zip."""
        (self.folder / "dir").mkdir()
        self.assertEqual(self.archive().namelist(), [])

    def test_broken_links(self) -> None:
        """FIX 10: a tree with a broken link or one in a loop is archived without it."""
        self.put("dir/a", b"a")
        (self.folder / "dir" / "broken").symlink_to("nowhere")
        (self.folder / "dir" / "loop").symlink_to("loop")
        self.assertEqual(self.archive().namelist(), ["a"])

    def test_links_out(self) -> None:
        """FIX 11: no link is followed out of the vfolder."""
        secret = self.root / "secret"
        secret.write_bytes(b"secret")
        self.put("inside", b"inside")
        self.put("dir/a", b"a")
        (self.folder / "dir" / "out").symlink_to(secret)
        (self.folder / "dir" / "up").symlink_to("../../../../../secret")
        (self.folder / "dir" / "in").symlink_to("../inside")
        found = self.archive()
        self.assertEqual(sorted(found.namelist()), ["a", "in"])
        self.assertEqual(found.read("in"), b"inside")

    def test_fifo_and_socket(self) -> None:
        """FIX 11: what is no file hangs nothing, and is left out."""
        self.put("dir/a", b"a")
        os.mkfifo(self.folder / "dir" / "fifo")
        here = os.getcwd()
        os.chdir(self.folder / "dir")
        self.addCleanup(os.chdir, here)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
        os.chdir(here)
        self.assertEqual(self.archive().namelist(), ["a"])

    def test_root(self) -> None:
        """The whole vfolder is an archive without the unfinished uploads."""
        self.put("a", b"a")
        self.put(".upload/session", b"unfinished")
        self.assertEqual(self.archive(".").namelist(), ["a"])

    def test_name(self) -> None:
        """An archive is named after its directory."""
        self.put("dir/sub/a", b"a")
        answer = self.get("dir/sub", query="&archive=true")
        self.assertIn('filename="sub.zip"', answer.headers["content-disposition"])

    def test_head(self) -> None:
        """FIX 15: a HEAD tells the length of an archive."""
        self.put("dir/a", b"a")
        answer = self.get("dir", "HEAD", "&archive=true")
        whole = self.get("dir", "GET", "&archive=true")
        self.assertEqual(int(answer.headers["content-length"]), len(whole.body))
        self.assertEqual(answer.body, b"")

    def test_file_as_archive(self) -> None:
        """A plain file comes as it is, whether or not an archive is asked for."""
        self.put("file", b"content")
        self.assertEqual(self.get("file", query="&archive=true").body, b"content")

    def test_directory_without_archive(self) -> None:
        """A directory that is not asked for as an archive is a mistake."""
        (self.folder / "dir").mkdir()
        answer = self.get("dir")
        self.assertEqual(answer.status, 400)
        self.assertEqual(
            answer.json()["type"],
            "https://api.backend.ai/probs/storage/not-a-regular-file",
        )
        self.assert_all_closed()

    def test_file_shrinks(self) -> None:
        """A file that shrinks before its turn ends the connection."""
        self.put("dir/a", bytes(2 * BLOCK))
        path = self.put("dir/b", bytes(2 * BLOCK))
        self.threads.held = True
        wire = self.begin("dir", query="&archive=true")
        for _ in range(3):
            self.threads.step()
        os.truncate(path, 1)
        os.truncate(self.folder / "dir" / "a", 1)
        self.threads.release()
        self.assertTrue(wire.aborted)
        self.assert_all_closed()

    def test_back_pressure(self) -> None:
        """An archive is not read further than its client reads."""
        self.put("dir/a", bytes(6 * BLOCK))
        self.threads.held = True
        wire = self.begin("dir", query="&archive=true")
        self.threads.step()
        self.threads.step()
        assert wire.producer is not None
        wire.producer.pauseProducing()
        self.threads.step()
        self.assertEqual(self.threads.calls, [])
        self.assertLess(len(wire.value()), 2 * BLOCK)
        # The file that is read stays open until then.
        wire.disconnect()
        self.threads.release()


class ArchiveLengthTests(SynchronousTestCase):
    def test_larger_than_4_gib(self) -> None:
        """The length of an archive that needs zip64 is what ZipFile would write."""
        for sizes in ([0], [5 * 2**30], [3 * 2**30, 3 * 2**30, 1], [2**32 - 1, 0, 7]):
            members = [
                Member(f"{at}", f"{at}", size, 0o100644, 0.0) for at, size in enumerate(sizes)
            ]
            self.assertEqual(columns(members).length, self._written(members))

    def _written(self, members: list[Member]) -> int:
        counter = _Counter()
        with ZipFile(counter, "w") as target:  # type: ignore[call-overload]
            for member in members:
                with target.open(ZipInfo(member.name), "w", force_zip64=True) as into:
                    # As if so many bytes had been written, without writing them.
                    into._file_size = member.size
                    target.fp.offset += member.size
                    counter.size += member.size
        return counter.size


class _Counter:
    """A pipe that counts what is written to it."""

    size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


class NameTests(SynchronousTestCase):
    def test_plain(self) -> None:
        """A plain name is spelled as the original spells it."""
        self.assertEqual(
            content_disposition("data.csv"),
            "attachment;filename=\"data.csv\"; filename*=UTF-8''data.csv",
        )

    def test_quotes(self) -> None:
        """A quote does not end the name."""
        self.assertIn('filename="a\\"b"', content_disposition('a"b'))

    def test_newlines(self) -> None:
        """A newline in a name adds no header."""
        value = content_disposition("a\r\nSet-Cookie: x")
        self.assertNotIn("\r", value)
        self.assertNotIn("\n", value)
        self.assertIn("a%0D%0ASet-Cookie", value)

    def test_other_alphabets(self) -> None:
        """A name in any alphabet comes through."""
        self.assertIn("filename*=UTF-8''%EB%8D%B0%EC%9D%B4%ED%84%B0", content_disposition("데이터"))

    def test_no_utf8(self) -> None:
        """A name that is no UTF-8 comes through as the bytes it has."""
        name = os.fsdecode(b"a\xff")
        self.assertIn("filename*=UTF-8''a%FF", content_disposition(name))
