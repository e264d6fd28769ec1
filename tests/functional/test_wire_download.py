"""
Downloads: ranges, conditions, names and archives.
"""

from __future__ import annotations

import email
import io
import os
import zipfile
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote

from tests.functional.http11 import (
    Answer,
    Connection,
    Headers,
    OnFolder,
    dialects,
)

MTIME = 1_600_000_000
ORIGIN = "https://console.example"


class OnFile(OnFolder):
    """A file of a thousand bytes whose time is known."""

    def setUp(self) -> None:
        """Have the file."""
        super().setUp()
        self.data = os.urandom(1000)
        self.file = self.put("file", self.data)

    def put(self, relpath: str, data: bytes = b"", ns: int = MTIME * 10**9) -> Path:
        """Lay a file into the folder."""
        path = self.root / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(ns, ns))
        return path

    def url(self, relpath: str, query: str = "") -> str:
        """The target of a download, with a token of its own."""
        token = self.sign(self.claims("download", self.vfid, relpath))
        return f"/download?token={token}{query}"

    def get(self, relpath: str = "file", query: str = "", **headers: str) -> Answer:
        """Download: headers are given with underscores for their hyphens."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client("GET", self.url(relpath, query), fields)

    @property
    def etag(self) -> str:
        """The entity tag that the original gives the file."""
        about = self.file.stat()
        return f'"{about.st_mtime_ns:x}-{about.st_size:x}"'

    def whole(self, answer: Answer) -> None:
        """Check that the answer is the whole file."""
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.body, self.data)
        self.assertIsNone(answer.header("Content-Range"))

    def part(self, answer: Answer, start: int, stop: int) -> None:
        """Check that the answer is a part of the file."""
        self.assertEqual(answer.status, 206)
        self.assertEqual(answer.header("Content-Range"), f"bytes {start}-{stop - 1}/1000")
        self.assertEqual(answer.header("Content-Length"), str(stop - start))
        self.assertEqual(answer.body, self.data[start:stop])


class Whole(OnFile):
    """A whole file."""

    def test_file(self) -> None:
        """A file comes as it is, with its length."""
        answer = self.get()
        self.whole(answer)
        self.assertEqual(answer.header("Content-Type"), "application/octet-stream")
        self.assertEqual(answer.header("Content-Length"), "1000")
        self.assertEqual(answer.header("Accept-Ranges"), "bytes")

    def test_empty_file(self) -> None:
        """An empty file has a length as well."""
        self.put("empty")
        answer = self.get("empty")
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.header("Content-Length"), "0")

    def test_big_file(self) -> None:
        """A big file comes whole."""
        data = os.urandom(20_000_003)
        self.put("big", data)
        answer = self.get("big")
        self.assertEqual(answer.header("Content-Length"), "20000003")
        self.assertTrue(answer.body == data)

    def test_last_modified(self) -> None:
        """The time of the file is its date, rounded up as the original does."""
        self.assertEqual(self.get().header("Last-Modified"), formatdate(MTIME, usegmt=True))
        self.put("later", b"x", MTIME * 10**9 + 1_000_000)
        told = self.get("later").header("Last-Modified")
        self.assertEqual(told, formatdate(MTIME + 1, usegmt=True))

    def test_etag(self) -> None:
        """The entity tag is that of the original."""
        self.assertEqual(self.get().header("ETag"), self.etag)

    def test_head(self) -> None:
        """HEAD says what GET says, without the file."""
        target = self.url("file")
        get, head = self.client("GET", target), self.client("HEAD", target)
        self.assertEqual((head.status, head.body), (200, b""))
        fields = [
            {name.lower(): value for name, value in answer.headers.items()}
            for answer in (get, head)
        ]
        for each in fields:
            each.pop("date", None)
            each.pop("x-request-id", None)
        self.assertEqual(fields[1], fields[0])

    def test_head_of_a_missing_file(self) -> None:
        """HEAD of a missing file is a 404."""
        self.assertEqual(self.client("HEAD", self.url("none")).status, 404)

    def test_missing(self) -> None:
        """A missing file is told as the original tells it."""
        self.assert_problem(self.get("not/there"), 404, "file-not-found")

    def test_missing_folder(self) -> None:
        """A file of a missing folder is a missing file."""
        token = self.sign(self.claims("download", self.new_id(), "file"))
        self.assert_problem(self.client("GET", f"/download?token={token}"), 404)

    def test_below_a_file(self) -> None:
        """A path below a file is a missing file."""
        self.assert_problem(self.get("file/x"), 404)

    def test_escape(self) -> None:
        """Nothing outside of the folder is read, by the parent or by links."""
        for relpath in self.escapes():
            answer = self.get(relpath)
            self.assertNotIn(b"not yours", answer.body)
            self.assert_problem(answer, 404)

    def test_link_inside(self) -> None:
        """A link that stays inside of the folder is followed."""
        (self.root / "link").symlink_to("file")
        self.whole(self.get("link"))

    def test_loop(self) -> None:
        """A link to itself is a missing file."""
        (self.root / "loop").symlink_to("loop")
        answer = self.get("loop")
        self.assertIn(answer.status, (400, 404))
        self.assert_problem(answer, answer.status)

    def test_fifo(self) -> None:
        """A FIFO does not keep the client waiting."""
        os.mkfifo(self.root / "fifo")
        answer = self.get("fifo")
        self.assertIn(answer.status, (400, 404))
        self.alive()

    def test_directory(self) -> None:
        """A directory is no file."""
        (self.root / "d").mkdir()
        for relpath in ("d", "."):
            self.assert_problem(self.get(relpath), 400)

    def test_archive_of_a_file(self) -> None:
        """The web UI asks for an archive of a file, and gets the file."""
        for value in ("true", "false"):
            self.whole(self.get(query=f"&archive={value}"))

    def test_no_cache(self) -> None:
        """A client may ask that nobody keeps the answer."""
        answer = self.get(query="&no_cache=true")
        self.whole(answer)
        self.assertEqual(answer.header("Cache-Control"), "no-store")
        self.assertIsNone(self.get(query="&no_cache=false").header("Cache-Control"))

    def test_flags(self) -> None:
        """A flag that is neither true nor false is refused by name."""
        content = self.assert_problem(self.get(query="&archive=maybe"), 400, "invalid-api-params")
        self.assertIn("archive", content["data"])

    def test_unknown_query_keys(self) -> None:
        """Keys that nobody knows are ignored."""
        self.whole(self.get(query="&x=1&vfid=..&relpath=other"))

    def test_dst_dir(self) -> None:
        """A directory in the query is where the path starts, as in later releases."""
        self.put("d/file", b"inner")
        self.assertEqual(self.get(query="&dst_dir=d").body, b"inner")

    def test_dst_dir_escape(self) -> None:
        """A directory in the query does not lead out of the folder."""
        (self.root / "out").symlink_to(self.outside)
        for place in ("out", "..", str(self.outside), "../../../" + self.outside.name):
            answer = self.get("secret.txt", query=f"&dst_dir={place}")
            self.assertNotIn(b"not yours", answer.body)
            self.assertIn(answer.status, (400, 404), place)

    def test_never_compressed(self) -> None:
        """A compressed sibling is not sent in place of the file, nor is it compressed."""
        self.put("file.gz", b"other")
        answer = self.get(Accept_Encoding="gzip, deflate, br")
        self.whole(answer)
        self.assertIsNone(answer.header("Content-Encoding"))

    def test_kept_alive(self) -> None:
        """One connection serves many downloads."""
        connection = self.connect(self.daemon.client_port)
        for _ in range(20):
            self.whole(connection.request("GET", self.url("file")))
            self.assertEqual(connection.request("HEAD", self.url("file")).status, 200)
            self.assertEqual(connection.request("GET", self.url("none")).status, 404)

    def test_pipelining(self) -> None:
        """Downloads that are asked for at once come in their order."""
        self.put("big", b"x" * 3_000_000)
        connection = self.connect(self.daemon.client_port)
        for relpath in ("big", "file", "none", "file"):
            connection.send("GET", self.url(relpath))
        self.assertEqual(len(connection.receive().body), 3_000_000)
        self.whole(connection.receive())
        self.assertEqual(connection.receive().status, 404)
        self.whole(connection.receive())

    def test_client_leaves(self) -> None:
        """Clients that leave in the middle of a file hurt nobody else."""
        self.put("big", b"x" * 20_000_000)
        for _ in range(20):
            connection = Connection(self.daemon.client_port)
            connection.send("GET", self.url("big"))
            connection.reader.read(1000)
            connection.close()
        self.whole(self.get())
        self.alive()

    def test_old_protocol(self) -> None:
        """A client that speaks HTTP/1.0 gets the file, and its connection closed."""
        connection = self.connect(self.daemon.client_port)
        connection.write(f"GET {self.url('file')} HTTP/1.0\r\n\r\n".encode())
        head, _, body = connection.reader.read().partition(b"\r\n\r\n")
        self.assertIn(b" 200 ", head.partition(b"\r\n")[0])
        self.assertEqual(body, self.data)

    def test_file_that_shrinks(self) -> None:
        """A file that shrinks while it is sent ends the connection, not with other bytes."""
        path = self.put("big", b"x" * 60_000_000)
        connection = self.connect(self.daemon.client_port)
        connection.send("GET", self.url("big"))
        connection.reader.read(1000)
        os.truncate(path, 0)
        try:
            received = 1000
            while data := connection.reader.read1(1_000_000):
                received += len(data)
        except ConnectionResetError:
            pass
        self.assertLess(received, 60_000_000)
        self.alive()

    def test_readers_that_wait(self) -> None:
        """Clients that do not read on hurt nobody else."""
        self.put("big", b"x" * 20_000_000)
        for _ in range(20):
            self.connect(self.daemon.client_port).send("GET", self.url("big"))
        self.whole(self.get())
        self.alive()


class Names(OnFile):
    """The name that a browser saves a file under."""

    def disposition(self, name: str) -> str:
        """Download a file of that name, and return what is said about its name."""
        self.put(name, b"x")
        answer = self.get(name)
        self.assertEqual((answer.status, answer.body), (200, b"x"))
        said = answer.header("Content-Disposition")
        assert said is not None
        encoded = said.rpartition("filename*=UTF-8''")[2]
        self.assertEqual(unquote(encoded), name)
        self.assertIsNone(answer.header("X-Injected"))
        return said

    def test_plain(self) -> None:
        """A plain name is told in the original's spelling."""
        self.assertEqual(
            self.disposition("hello.txt"),
            "attachment;filename=\"hello.txt\"; filename*=UTF-8''hello.txt",
        )

    def test_blank(self) -> None:
        """A name with a blank is told."""
        self.assertEqual(
            self.disposition("a b.txt"),
            "attachment;filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt",
        )

    def test_beyond_ascii(self) -> None:
        """A name beyond ASCII is told, and its ASCII letters for old clients."""
        self.assertEqual(
            self.disposition("Größe.txt"),
            "attachment;filename=\"Gre.txt\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe.txt",
        )

    def test_quotes(self) -> None:
        """A quote does not end the name."""
        self.assertEqual(
            self.disposition('a"b.txt'),
            'attachment;filename="a\\"b.txt"; filename*=UTF-8\'\'a%22b.txt',
        )

    def test_backslash(self) -> None:
        """A backslash before a quote does not end the name either."""
        said = self.disposition('a\\"; x="b')
        self.assertTrue(said.startswith("attachment;filename="), said)

    def test_newline(self) -> None:
        """A line break in a name makes no header."""
        self.disposition("a\r\nX-Injected: yes\r\n\r\nb")
        self.disposition("a\nb")

    def test_control_characters(self) -> None:
        """Control characters in a name do not break the answer."""
        self.disposition("a\x01\x1b\x7fb")

    def test_only_the_last_part(self) -> None:
        """The directories of a path are no part of the name."""
        self.put("d/e/file")
        said = self.get("d/e/file").header("Content-Disposition")
        self.assertEqual(said, "attachment;filename=\"file\"; filename*=UTF-8''file")

    def test_no_text(self) -> None:
        """A name that is no text can be downloaded through a directory's archive."""
        (self.root / "d").mkdir()
        name = os.fsencode(self.root) + b"/d/\xff\xfe"
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        answer = self.get("d", "&archive=true")
        self.assertEqual(answer.status, 200)
        self.assertIsNone(zipfile.ZipFile(io.BytesIO(answer.body)).testzip())


class Ranges(OnFile):
    """Parts of a file."""

    def unsatisfiable(self, answer: Answer, size: int = 1000) -> None:
        """Check that a range is refused with the length of the file."""
        self.assertEqual(answer.status, 416)
        self.assertEqual(answer.header("Content-Range"), f"bytes */{size}")
        self.assert_problem(answer, 416)

    def test_from_to(self) -> None:
        """A part between two offsets."""
        self.part(self.get(Range="bytes=10-19"), 10, 20)

    def test_first_byte(self) -> None:
        """The first byte alone."""
        self.part(self.get(Range="bytes=0-0"), 0, 1)

    def test_from(self) -> None:
        """The rest from an offset, as a resumed download asks for it."""
        self.part(self.get(Range="bytes=990-"), 990, 1000)

    def test_beyond_the_end(self) -> None:
        """A part that goes beyond the end stops there."""
        self.part(self.get(Range="bytes=990-5000"), 990, 1000)

    def test_last(self) -> None:
        """The last bytes."""
        self.part(self.get(Range="bytes=-10"), 990, 1000)

    def test_more_than_all(self) -> None:
        """More last bytes than there are: the whole file, as a part."""
        self.part(self.get(Range="bytes=-5000"), 0, 1000)

    def test_last_none(self) -> None:
        """The last zero bytes: the whole file as a part, as on the original."""
        self.part(self.get(Range="bytes=-0"), 0, 1000)

    def test_headers(self) -> None:
        """A part has the same tag, date and name as the whole."""
        whole, part = self.get(), self.get(Range="bytes=1-2")
        for name in ("ETag", "Last-Modified", "Content-Disposition", "Content-Type"):
            self.assertEqual(part.header(name), whole.header(name), name)

    def test_after_the_end(self) -> None:
        """A download that is complete already is told so."""
        self.unsatisfiable(self.get(Range="bytes=1000-"))
        self.unsatisfiable(self.get(Range="bytes=5000-6000"))

    def test_backwards(self) -> None:
        """A part that ends before it starts is refused."""
        self.unsatisfiable(self.get(Range="bytes=20-10"))

    def test_other_unit(self) -> None:
        """Other units than bytes are refused."""
        self.unsatisfiable(self.get(Range="lines=1-2"))

    def test_no_range(self) -> None:
        """What is no range is refused or ignored, and never half understood."""
        for value in ("bytes=", "bytes=a-b", "bytes=1", "bytes=--1", "bytes", "bytes=1-2-3"):
            self.assertIn(self.get(Range=value).status, (200, 416), value)

    def test_numbers(self) -> None:
        """Numbers beyond all measure are only numbers."""
        self.part(self.get(Range="bytes=0-" + "9" * 30), 0, 1000)
        self.unsatisfiable(self.get(Range="bytes=" + "9" * 30 + "-"))
        self.assertIn(self.get(Range="bytes=" + "9" * 5000 + "-").status, (200, 400, 416))

    def test_empty_file(self) -> None:
        """An empty file has no parts."""
        self.put("empty")
        for value in ("bytes=0-", "bytes=0-0", "bytes=-1"):
            self.unsatisfiable(self.get("empty", Range=value), 0)

    def parts(self, answer: Answer) -> list[tuple[str, bytes]]:
        """The parts of an answer with many: what they are, and their bytes."""
        self.assertEqual(answer.status, 206, answer.body)
        kind = answer.header("Content-Type") or ""
        self.assertTrue(kind.startswith("multipart/byteranges; boundary="), kind)
        self.assertIsNone(answer.header("Content-Range"))
        self.assertEqual(answer.header("Content-Length"), str(len(answer.body)))
        message = email.message_from_bytes(
            b"Content-Type: " + kind.encode() + b"\r\n\r\n" + answer.body
        )
        boundary = b"--" + str(message.get_boundary()).encode()
        found = []
        for piece in answer.body.split(b"\r\n" + boundary)[0:-1]:
            head, _, content = piece.partition(b"\r\n\r\n")
            fields = email.message_from_bytes(head.partition(b"\r\n")[2])
            if fields.get("Content-Range") is None:
                continue
            self.assertEqual(fields["Content-Type"], "application/octet-stream")
            found.append((str(fields["Content-Range"]), content))
        return found

    def test_many(self) -> None:
        """Several parts come in one answer."""
        parts = self.parts(self.get(Range="bytes=0-9, 500-509,-10"))
        self.assertEqual(
            parts,
            [
                ("bytes 0-9/1000", self.data[:10]),
                ("bytes 500-509/1000", self.data[500:510]),
                ("bytes 990-999/1000", self.data[990:]),
            ],
        )

    def test_many_of_which_some(self) -> None:
        """Parts after the end are left out."""
        answer = self.get(Range="bytes=0-9,2000-2009,500-509")
        self.assertEqual([name for name, _ in self.parts(answer)], self.names(0, 500))

    def names(self, *starts: int) -> list[str]:
        """The names of parts of ten bytes."""
        return [f"bytes {start}-{start + 9}/1000" for start in starts]

    def test_many_of_which_none(self) -> None:
        """Only parts after the end are refused."""
        self.unsatisfiable(self.get(Range="bytes=2000-2009,3000-"))

    def test_sixteen(self) -> None:
        """Sixteen parts are sent."""
        starts = range(0, 960, 60)
        value = ",".join(f"{start}-{start + 9}" for start in starts)
        answer = self.get(Range=f"bytes={value}")
        self.assertEqual([name for name, _ in self.parts(answer)], self.names(*starts))

    def test_too_many(self) -> None:
        """No client gets more than the file by asking for many parts."""
        for count in (17, 100, 700):
            value = ",".join(["0-"] * count)
            answer = self.get(Range=f"bytes={value}")
            self.assertIn(answer.status, (200, 416), count)
            self.assertLessEqual(len(answer.body), 1000)

    def test_head_with_many(self) -> None:
        """HEAD with several parts has no body and leaves the connection in order."""
        answer = self.client("HEAD", self.url("file"), {"Range": "bytes=0-9,20-29"})
        self.assertIn(answer.status, (200, 206))
        self.whole(self.get())


class Conditions(OnFile):
    """Requests that depend on whether the file has changed."""

    BEFORE = formatdate(MTIME - 1, usegmt=True)
    SAME = formatdate(MTIME, usegmt=True)
    AFTER = formatdate(MTIME + 1, usegmt=True)

    def unchanged(self, answer: Answer) -> None:
        """Check that the client may use what it has."""
        self.assertEqual((answer.status, answer.body), (304, b""))
        self.assertEqual(answer.header("ETag"), self.etag)

    def failed(self, answer: Answer) -> None:
        """Check that the file is not what the client thinks."""
        self.assert_problem(answer, 412)

    def test_if_range_same_tag(self) -> None:
        """A download of an unchanged file is resumed by its tag."""
        self.part(self.get(Range="bytes=10-", If_Range=self.etag), 10, 1000)

    def test_if_range_other_tag(self) -> None:
        """A download of a changed file begins anew."""
        self.whole(self.get(Range="bytes=10-", If_Range='"other"'))

    def test_if_range_weak_tag(self) -> None:
        """A weak tag does not do for a resumed download."""
        self.whole(self.get(Range="bytes=10-", If_Range="W/" + self.etag))

    def test_if_range_same_date(self) -> None:
        """A download of an unchanged file is resumed by its date, as the SDK does."""
        self.part(self.get(Range="bytes=10-", If_Range=self.SAME), 10, 1000)

    def test_if_range_date_as_told(self) -> None:
        """The date that was told resumes the download of a file with a fraction of a second."""
        self.file = self.put("file", self.data, MTIME * 10**9 + 500_000_000)
        told = self.get().header("Last-Modified") or ""
        self.part(self.get(Range="bytes=10-", If_Range=told), 10, 1000)

    def test_if_range_earlier_date(self) -> None:
        """A download of a file that changed since begins anew."""
        self.whole(self.get(Range="bytes=10-", If_Range=self.BEFORE))

    def test_if_range_later_date(self) -> None:
        """A date that was never told does not do for a resumed download."""
        self.whole(self.get(Range="bytes=10-", If_Range=self.AFTER))

    def test_if_range_nonsense(self) -> None:
        """What is neither a tag nor a date does not do for a resumed download."""
        self.whole(self.get(Range="bytes=10-", If_Range="yesterday"))

    def test_if_range_alone(self) -> None:
        """Without a range it does not matter."""
        self.whole(self.get(If_Range='"other"'))

    def test_if_range_and_a_bad_range(self) -> None:
        """A changed file is sent whole even if the range is past its end."""
        self.whole(self.get(Range="bytes=5000-", If_Range='"other"'))

    def test_if_none_match(self) -> None:
        """A client that has the file need not get it again."""
        self.unchanged(self.get(If_None_Match=self.etag))

    def test_if_none_match_list(self) -> None:
        """One of several tags will do, and a weak one as well."""
        self.unchanged(self.get(If_None_Match=f'"a, b", W/{self.etag} ,"c"'))

    def test_if_none_match_any(self) -> None:
        """Any file is one that exists."""
        self.unchanged(self.get(If_None_Match="*"))

    def test_if_none_match_other(self) -> None:
        """A client that has another file gets this one."""
        self.whole(self.get(If_None_Match='"other"'))

    def test_if_none_match_before_the_date(self) -> None:
        """The tag counts, not the date."""
        self.whole(self.get(If_None_Match='"other"', If_Modified_Since=self.AFTER))

    def test_if_none_match_before_the_range(self) -> None:
        """A part of an unchanged file need not be sent again either."""
        self.unchanged(self.get(If_None_Match=self.etag, Range="bytes=5000-"))

    def test_if_modified_since(self) -> None:
        """A file that did not change since need not be sent again."""
        self.unchanged(self.get(If_Modified_Since=self.SAME))
        self.unchanged(self.get(If_Modified_Since=self.AFTER))

    def test_if_modified_since_earlier(self) -> None:
        """A file that changed since is sent."""
        self.whole(self.get(If_Modified_Since=self.BEFORE))

    def test_if_modified_since_nonsense(self) -> None:
        """A date that is none is ignored."""
        self.whole(self.get(If_Modified_Since="yesterday"))

    def test_if_match(self) -> None:
        """A file is sent on the condition that it is unchanged."""
        self.whole(self.get(If_Match=self.etag))
        self.whole(self.get(If_Match=f'"other", {self.etag}'))
        self.whole(self.get(If_Match="*"))

    def test_if_match_other(self) -> None:
        """A changed file is not sent on that condition."""
        self.failed(self.get(If_Match='"other"'))

    def test_if_match_weak(self) -> None:
        """A weak tag does not do for that condition."""
        self.failed(self.get(If_Match="W/" + self.etag))

    def test_if_match_and_range(self) -> None:
        """No part of a changed file is sent on that condition."""
        self.failed(self.get(If_Match='"other"', Range="bytes=0-9"))
        self.part(self.get(If_Match=self.etag, Range="bytes=0-9"), 0, 10)

    def test_if_match_before_if_none_match(self) -> None:
        """The condition that fails counts before the one that saves the bytes."""
        self.failed(self.get(If_Match='"other"', If_None_Match=self.etag))

    def test_if_match_before_the_date(self) -> None:
        """The tag counts, not the date."""
        self.whole(self.get(If_Match=self.etag, If_Unmodified_Since=self.BEFORE))

    def test_if_unmodified_since(self) -> None:
        """A file is sent on the condition that it did not change since."""
        self.whole(self.get(If_Unmodified_Since=self.SAME))
        self.whole(self.get(If_Unmodified_Since=self.AFTER))

    def test_if_unmodified_since_earlier(self) -> None:
        """A file that changed since is not sent on that condition."""
        self.failed(self.get(If_Unmodified_Since=self.BEFORE))

    def test_if_unmodified_since_nonsense(self) -> None:
        """A date that is none is ignored."""
        self.whole(self.get(If_Unmodified_Since="yesterday"))

    def test_head(self) -> None:
        """HEAD is subject to the same conditions."""
        target = self.url("file")
        for headers, status in (
            ({"If-None-Match": self.etag}, 304),
            ({"If-Match": '"other"'}, 412),
            ({"If-Modified-Since": self.SAME}, 304),
            ({"If-Match": self.etag}, 200),
        ):
            self.assertEqual(self.client("HEAD", target, headers).status, status, headers)

    def test_date_is_a_date(self) -> None:
        """The date that is told can be read, and the answer is dated itself."""
        answer = self.get()
        told = parsedate_to_datetime(answer.header("Last-Modified") or "")
        self.assertEqual(int(told.timestamp()), MTIME)
        parsedate_to_datetime(answer.header("Date") or "")


class Archives(OnFile):
    """Directories as zip files."""

    def answer(self, relpath: str) -> Answer:
        """Download a directory."""
        answer = self.get(relpath, "&archive=true")
        self.assertEqual(answer.status, 200, answer.body[:500])
        self.assertEqual(answer.media_type, "application/zip")
        self.assertEqual(answer.header("Content-Length"), str(len(answer.body)))
        return answer

    def archive(self, relpath: str = "d") -> dict[str, bytes]:
        """Download a directory, check the archive, and return the entries by name."""
        with zipfile.ZipFile(io.BytesIO(self.answer(relpath).body)) as archive:
            self.assertIsNone(archive.testzip())
            names = archive.namelist()
            self.assertEqual(len(names), len(set(names)))
            for entry in archive.infolist():
                self.assertEqual(entry.compress_type, zipfile.ZIP_STORED)
            return {name: archive.read(name) for name in names if not name.endswith("/")} | {
                name: b"" for name in names if name.endswith("/")
            }

    def files(self, relpath: str = "d") -> dict[str, bytes]:
        """Like :meth:`archive`, without the entries of directories."""
        found = self.archive(relpath).items()
        return {name: data for name, data in found if not name.endswith("/")}

    def test_tree(self) -> None:
        """A directory comes with all that is in it, relative to itself."""
        self.put("d/one", b"1")
        self.put("d/e/two", self.data)
        self.assertEqual(self.files(), {"one": b"1", "e/two": self.data})

    def test_name(self) -> None:
        """An archive is named after its directory."""
        self.put("d/größe/one", b"1")
        said = self.answer("d").header("Content-Disposition")
        self.assertEqual(said, "attachment;filename=\"d.zip\"; filename*=UTF-8''d.zip")
        said = self.answer("d/größe").header("Content-Disposition")
        expected = "attachment;filename=\"gre.zip\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.zip"
        self.assertEqual(said, expected)

    def test_root(self) -> None:
        """The whole folder can be downloaded."""
        self.put("d/one", b"1")
        self.assertEqual(self.files("."), {"d/one": b"1", "file": self.data})

    def test_empty_directory(self) -> None:
        """An empty directory is an entry that every tool reads."""
        (self.root / "d" / "empty").mkdir(parents=True)
        self.put("d/one", b"1")
        self.assertIn("empty/", self.archive())
        with zipfile.ZipFile(io.BytesIO(self.answer("d").body)) as archive:
            entry = archive.getinfo("empty/")
        self.assertEqual((entry.file_size, entry.compress_size, entry.CRC), (0, 0, 0))

    def test_nothing(self) -> None:
        """A directory with nothing in it is an archive all the same."""
        (self.root / "d").mkdir()
        self.assertEqual(self.files(), {})

    def test_empty_file(self) -> None:
        """An empty file is an entry."""
        self.put("d/empty")
        self.assertEqual(self.files(), {"empty": b""})

    def test_names(self) -> None:
        """Names of all sorts are entries under their names."""
        names = {"späte Größe", "雪", 'quo"te', "new\nline", "a\\b", ".hidden", "x" * 250}
        for name in names:
            self.put(f"d/{name}", b"x")
        self.assertEqual(set(self.files()), names)

    def test_times(self) -> None:
        """Entries have a time of their own, also files from before zip."""
        self.put("d/old", b"x", 0)
        self.put("d/new", b"x")
        self.put("d/far", b"x", 6_000_000_000 * 10**9)
        with zipfile.ZipFile(io.BytesIO(self.answer("d").body)) as archive:
            self.assertIn(archive.getinfo("new").date_time[0], (2020,))
            self.assertEqual(archive.getinfo("old").date_time[0], 1980)

    def test_big(self) -> None:
        """Big files come whole."""
        data = os.urandom(6_000_001)
        for number in range(3):
            self.put(f"d/{number}", data)
        self.assertTrue(all(content == data for content in self.files().values()))

    def test_many(self) -> None:
        """Thousands of small files come whole."""
        for number in range(3000):
            self.put(f"d/{number % 10}/{number}", str(number).encode())
        files = self.files()
        self.assertEqual(len(files), 3000)
        self.assertEqual(files["7/2997"], b"2997")

    def test_outward_links(self) -> None:
        """Nothing outside of the folder gets into an archive."""
        self.put("d/one", b"1")
        (self.root / "d" / "file").symlink_to(self.outside / "secret.txt")
        (self.root / "d" / "dir").symlink_to(self.outside)
        (self.root / "d" / "up").symlink_to("../../../..")
        answer = self.answer("d")
        self.assertNotIn(b"not yours", answer.body)
        self.assertEqual(self.files(), {"one": b"1"})

    def test_bad_entries(self) -> None:
        """Broken links, loops and FIFOs are left out, and the archive ends."""
        self.put("d/one", b"1")
        (self.root / "d" / "broken").symlink_to("nowhere")
        (self.root / "d" / "loop").symlink_to("loop")
        (self.root / "d" / "here").symlink_to(".")
        os.mkfifo(self.root / "d" / "fifo")
        files = self.files()
        self.assertEqual(files["one"], b"1")
        self.assertFalse({"broken", "loop", "fifo"} & set(files))
        self.assertLess(len(files), 3)

    def test_head(self) -> None:
        """HEAD tells the length of the archive beforehand."""
        self.put("d/one", self.data)
        head = self.client("HEAD", self.url("d", "&archive=true"))
        self.assertEqual(head.status, 200)
        self.assertEqual(head.header("Content-Length"), self.answer("d").header("Content-Length"))

    def test_kept_alive(self) -> None:
        """A connection serves on after an archive."""
        self.put("d/one", b"1")
        connection = self.connect(self.daemon.client_port)
        for _ in range(3):
            target = self.url("d", "&archive=true")
            self.assertEqual(connection.request("GET", target).status, 200)
            self.whole(connection.request("GET", self.url("file")))

    def test_missing(self) -> None:
        """A missing directory is a 404."""
        self.assert_problem(self.get("none", "&archive=true"), 404)

    def test_escape(self) -> None:
        """A directory outside of the folder is a 404."""
        self.escapes()
        for relpath in ("out", "relative", "inner/hop", "..", "inner/../.."):
            answer = self.get(relpath, "&archive=true")
            self.assertNotIn(b"not yours", answer.body)
            self.assert_problem(answer, 404)

    def test_client_leaves(self) -> None:
        """Clients that leave in the middle of an archive hurt nobody else."""
        self.put("d/big", b"x" * 10_000_000)
        for _ in range(20):
            connection = Connection(self.daemon.client_port)
            connection.send("GET", self.url("d", "&archive=true"))
            connection.reader.read(1000)
            connection.close()
        self.whole(self.get())

    def test_readers_that_wait(self) -> None:
        """Clients that do not read on hurt nobody else, the manager included."""
        self.put("d/big", b"x" * 10_000_000)
        for _ in range(20):
            self.connect(self.daemon.client_port).send("GET", self.url("d", "&archive=true"))
        self.whole(self.get())
        self.assertEqual(self.post("/folder/file/list", relpath=".").status, 200)


class Pages(OnFile):
    """Downloads by the script of a web page."""

    def check(self, answer: Answer) -> None:
        """Check that a page of the origin may read the answer."""
        self.assertEqual(answer.header("Access-Control-Allow-Origin"), ORIGIN)
        self.assertEqual(answer.header("Access-Control-Allow-Credentials"), "true")

    def test_file(self) -> None:
        """A page may read the file, its name and its length."""
        answer = self.get(Origin=ORIGIN)
        self.whole(answer)
        self.check(answer)
        exposed = answer.words("Access-Control-Expose-Headers")
        self.assertLessEqual(
            {"content-disposition", "content-length", "accept-ranges", "etag"}, exposed
        )
        self.assertIn("origin", answer.words("Vary"))

    def test_part(self) -> None:
        """A page may read which part it got."""
        answer = self.get(Origin=ORIGIN, Range="bytes=1-2")
        self.check(answer)
        self.assertIn("content-range", answer.words("Access-Control-Expose-Headers"))

    def test_errors(self) -> None:
        """A page may read what went wrong."""
        headers: Headers = {"Origin": ORIGIN}
        self.check(self.get("none", Origin=ORIGIN))
        self.check(self.get(Origin=ORIGIN, Range="bytes=5000-"))
        self.check(self.get(Origin=ORIGIN, If_Match='"other"'))
        self.check(self.client("GET", "/download?token=x", headers))

    def test_preflight(self) -> None:
        """A page may send the headers that it asks for."""
        headers = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "range,x-custom",
        }
        answer = self.client("OPTIONS", self.url("file"), headers)
        self.assertIn(answer.status, (200, 204))
        self.check(answer)
        self.assertIn("get", answer.words("Access-Control-Allow-Methods"))
        allowed = answer.words("Access-Control-Allow-Headers")
        self.assertLessEqual({"range", "x-custom"}, allowed)


globals().update(dialects(Whole, Names, Ranges, Conditions, Archives, Pages))
