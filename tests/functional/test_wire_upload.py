"""
Resumable uploads: tus 1.0.0 on ``/upload``.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import struct
import zlib
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from uuid import uuid4

from tests.functional.daemon import claims
from tests.functional.http11 import (
    SMALL,
    Answer,
    Connection,
    Headers,
    OnFolder,
    chunked,
    dialects,
    request_head,
)

ORIGIN = "https://console.example"
TUS: Headers = {"Tus-Resumable": "1.0.0"}
OCTETS = "application/offset+octet-stream"
DIGESTS = ("sha1", "sha256", "sha512", "md5", "crc32")


def checksum(algorithm: str, data: bytes) -> str:
    """The value of an Upload-Checksum header."""
    if algorithm == "crc32":
        digest = zlib.crc32(data).to_bytes(4, "big")
    else:
        digest = hashlib.new(algorithm, data).digest()
    return f"{algorithm} {base64.b64encode(digest).decode()}"


class OnUpload(OnFolder):
    """A session for a file of a thousand bytes."""

    size = 1000
    relpath = "file"

    def setUp(self) -> None:
        """Have the session."""
        super().setUp()
        self.data = os.urandom(self.size)
        self.target = self.session(self.relpath, self.size)
        self.file = self.root / self.relpath

    def session(self, relpath: str, size: int) -> str:
        """Ask the manager API for a session, and return the target of its requests."""
        answer = self.post("/folder/file/upload", relpath=relpath, size=size)
        self.assertEqual(answer.status, 200, answer.body)
        self.token = answer.json()["token"]
        return f"/upload?token={self.token}"

    @property
    def staging(self) -> Path:
        """The staging file of the last session."""
        return self.root / ".upload" / str(claims(self.token)["session"])

    def append(self, offset: Any, body: bytes = b"", target: str = "", **more: str) -> Answer:
        """PATCH as tus clients do: headers are given with underscores for their hyphens."""
        headers = {**TUS, "Content-Type": OCTETS, "Upload-Offset": str(offset)}
        headers.update({name.replace("_", "-"): value for name, value in more.items()})
        headers = {name: value for name, value in headers.items() if value != "-"}
        return self.client("PATCH", target or self.target, headers, body)

    def head(self, target: str = "", **more: str) -> Answer:
        """HEAD as tus clients do."""
        headers = {**TUS, **{name.replace("_", "-"): value for name, value in more.items()}}
        return self.client("HEAD", target or self.target, headers)

    def at(self, offset: int, target: str = "") -> None:
        """Check the offset that a client is told."""
        answer = self.head(target)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.header("Upload-Offset"), str(offset))
        self.assertEqual(answer.header("Upload-Length"), str(self.size))

    def stored(self, answer: Answer, offset: int) -> None:
        """Check that a PATCH was taken up to an offset."""
        self.assertEqual((answer.status, answer.body), (204, b""), answer.body)
        self.assertEqual(answer.header("Upload-Offset"), str(offset))

    def complete(self) -> None:
        """Check that the file is whole and nothing is left of the session."""
        self.assertTrue(self.file.read_bytes() == self.data)
        self.assertFalse((self.root / ".upload").exists())

    def part(self, connection: Connection, count: int, **more: str) -> None:
        """Begin a PATCH of the whole file, and send a part of its body."""
        headers = {**TUS, "Content-Type": OCTETS, "Upload-Offset": "0"}
        headers["Content-Length"] = str(self.size)
        headers.update({name.replace("_", "-"): value for name, value in more.items()})
        connection.write(request_head("PATCH", self.target, headers, None) + self.data[:count])


class Capabilities(OnUpload):
    """What a client is told before it begins."""

    def test_options(self) -> None:
        """Anybody learns what is supported, without a token."""
        answer = self.client("OPTIONS", "/upload")
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.header("Tus-Version"), "1.0.0")
        self.assertEqual(answer.header("Tus-Resumable"), "1.0.0")
        self.assertEqual(answer.header("Tus-Max-Size"), str(100 * 2**30))
        self.assertEqual(
            answer.words("Tus-Extension"), {"creation", "expiration", "termination", "checksum"}
        )
        self.assertEqual(answer.words("Tus-Checksum-Algorithm"), set(DIGESTS))
        self.assertEqual(answer.header("X-Content-Type-Options"), "nosniff")

    def test_options_of_another_version(self) -> None:
        """A client of another version learns which one is spoken."""
        answer = self.client("OPTIONS", self.target, {"Tus-Resumable": "0.2.2"})
        self.assertEqual((answer.status, answer.header("Tus-Version")), (200, "1.0.0"))

    def test_head(self) -> None:
        """A new session is at offset zero of its length."""
        self.at(0)
        answer = self.head()
        self.assertEqual(answer.header("Tus-Resumable"), "1.0.0")
        self.assertEqual(answer.header("Cache-Control"), "no-store")

    def test_expires(self) -> None:
        """A session ends with its token, and every answer says when."""
        end = claims(self.token)["exp"]
        for answer in (self.head(), self.append(0, b"x"), self.append(1, self.data[1:])):
            told = answer.header("Upload-Expires") or ""
            self.assertTrue(told.endswith(" GMT"), told)
            self.assertEqual(int(parsedate_to_datetime(told).timestamp()), end)

    def test_methods(self) -> None:
        """Other methods are refused."""
        for method in ("GET", "PUT"):
            answer = self.client(method, self.target)
            self.assert_problem(answer, 405)
            self.assertIn("patch", answer.words("Allow"), method)


class Sending(OnUpload):
    """A file that is sent as it should be."""

    def test_at_once(self) -> None:
        """A file is sent in one request."""
        answer = self.append(0, self.data)
        self.stored(answer, 1000)
        self.assertEqual(answer.header("Tus-Resumable"), "1.0.0")
        self.complete()

    def test_no_content(self) -> None:
        """The answer has neither a body nor a length."""
        answer = self.append(0, self.data)
        self.assertIsNone(answer.header("Content-Length"))
        self.assertIsNone(answer.header("Transfer-Encoding"))

    def test_in_parts(self) -> None:
        """A file is sent in parts of any size, on one connection."""
        offset = 0
        for size in (1, 300, 0, 600, 99):
            self.stored(self.append(offset, self.data[offset : offset + size]), offset + size)
            offset += size
            self.at(offset)
        self.complete()

    def test_not_before_the_end(self) -> None:
        """The file appears when it is whole, and the old one stays until then."""
        self.file.write_bytes(b"old")
        self.append(0, self.data[:999])
        self.assertEqual(self.file.read_bytes(), b"old")
        self.assertEqual(self.staging.read_bytes(), self.data[:999])
        self.append(999, self.data[999:])
        self.complete()

    def test_like_the_original(self) -> None:
        """A client without tus headers but the offset is served."""
        self.append(0, self.data)
        for content_type in ("-", "application/octet-stream", OCTETS):
            self.target = self.session(self.relpath, self.size)
            answer = self.append(0, self.data, Content_Type=content_type, Tus_Resumable="-")
            self.stored(answer, 1000)
            self.complete()

    def test_chunks(self) -> None:
        """A body may come in chunks."""
        body = chunked(self.data[:1], self.data[1:700], self.data[700:])
        self.stored(self.append(0, body, Transfer_Encoding="chunked"), 1000)
        self.complete()

    def test_some_chunks(self) -> None:
        """A part of the file may come in chunks as well."""
        self.stored(self.append(0, chunked(self.data[:400]), Transfer_Encoding="chunked"), 400)
        self.stored(self.append(400, chunked(self.data[400:]), Transfer_Encoding="chunked"), 1000)
        self.complete()

    def test_expect(self) -> None:
        """A client that waits for leave to send gets it, once."""
        connection = self.connect(self.daemon.client_port)
        self.part(connection, 0, Expect="100-continue")
        self.assertEqual(connection.reader.readline(), b"HTTP/1.1 100 Continue\r\n")
        self.assertEqual(connection.reader.readline(), b"\r\n")
        connection.write(self.data)
        answer = connection.receive()
        self.stored(answer, 1000)
        self.assertEqual(answer.interim, [])
        self.complete()

    def test_method_override(self) -> None:
        """A client that cannot PATCH says so in a POST."""
        self.stored(
            self.client(
                "POST",
                self.target,
                {**TUS, "X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"},
                self.data,
            ),
            1000,
        )
        self.complete()

    def test_delete_by_override(self) -> None:
        """A client that cannot DELETE says so in a POST."""
        headers = {**TUS, "X-HTTP-Method-Override": "DELETE"}
        self.assertEqual(self.client("POST", self.target, headers).status, 204)
        self.assertEqual(self.head().status, 404)

    def test_unknown_query_keys(self) -> None:
        """Keys that nobody knows are ignored."""
        self.target += "&x=1&relpath=other&size=5"
        self.at(0)
        self.stored(self.append(0, self.data), 1000)
        self.complete()

    def test_pipelining(self) -> None:
        """Requests that are sent at once are answered in their order."""
        connection = self.connect(self.daemon.client_port)
        headers = {**TUS, "Content-Type": OCTETS}
        for offset in (0, 400):
            body = self.data[offset : offset + 400]
            connection.send("PATCH", self.target, {**headers, "Upload-Offset": str(offset)}, body)
            connection.send("HEAD", self.target, TUS)
        for offset in (400, 800):
            self.stored(connection.receive("PATCH"), offset)
            answer = connection.receive("HEAD")
            self.assertEqual((answer.status, answer.header("Upload-Offset")), (200, str(offset)))
        self.append(800, self.data[800:])
        self.complete()

    def test_many_sessions(self) -> None:
        """Three hundred small files are sent at once, as the web UI does."""
        self.append(0, self.data)
        sessions = [(f"d/{n}", self.session(f"d/{n}", 3)) for n in range(300)]
        for _, target in sessions:
            self.stored(self.append(0, b"abc", target), 3)
        for relpath, _ in sessions:
            self.assertEqual((self.root / relpath).read_bytes(), b"abc")
        self.complete()


class BigFile(OnUpload):
    """A file of some megabytes."""

    size = 5_000_003

    def test_what_follows_a_body(self) -> None:
        """What follows a large body on its connection is no part of it."""
        connection = self.connect(self.daemon.client_port)
        half = self.size // 2
        for offset in (0, half):
            headers = {**TUS, "Content-Type": OCTETS, "Upload-Offset": str(offset)}
            connection.send("PATCH", self.target, headers, self.data[offset : offset + half])
            connection.send("HEAD", self.target, TUS)
        for offset in (half, 2 * half):
            self.stored(connection.receive("PATCH"), offset)
            answer = connection.receive("HEAD")
            self.assertEqual((answer.status, answer.header("Upload-Offset")), (200, str(offset)))
        self.append(2 * half, self.data[2 * half :])
        self.complete()

    def test_at_once(self) -> None:
        """It is sent in one request."""
        self.stored(self.append(0, self.data), self.size)
        self.complete()

    def test_in_parts(self) -> None:
        """It is sent in parts."""
        step = 1_234_567
        for offset in range(0, self.size, step):
            part = self.data[offset : offset + step]
            self.stored(self.append(offset, part), offset + len(part))
        self.complete()

    def test_in_chunks(self) -> None:
        """It is sent without its length in one request."""
        pieces = [self.data[n : n + 7001] for n in range(0, self.size, 7001)]
        self.stored(self.append(0, chunked(*pieces), Transfer_Encoding="chunked"), self.size)
        self.complete()

    def test_checksum(self) -> None:
        """It is sent with a checksum."""
        answer = self.append(0, self.data, Upload_Checksum=checksum("sha256", self.data))
        self.stored(answer, self.size)
        self.complete()

    def test_cut(self) -> None:
        """What was received before the connection broke is kept, to the byte."""
        connection = Connection(self.daemon.client_port)
        self.part(connection, 3_000_001)
        connection.cut()
        self.at(3_000_001)
        self.stored(self.append(3_000_001, self.data[3_000_001:]), self.size)
        self.complete()

    def test_reset(self) -> None:
        """A client that was reset and retries at once gets a whole file."""
        for _ in range(5):
            connection = Connection(self.daemon.client_port)
            self.part(connection, 2_000_000)
            linger = struct.pack("ii", 1, 0)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()
        offset = int(self.head().header("Upload-Offset") or "-1")
        self.assertTrue(0 <= offset <= 2_000_000, offset)
        self.stored(self.append(offset, self.data[offset:]), self.size)
        self.complete()


class Places(OnUpload):
    """Where the file appears."""

    def send(self, relpath: str, query: str = "") -> Answer:
        """Upload the file to a path, in two parts."""
        self.target = self.session(relpath, self.size) + query
        self.append(0, self.data[:500])
        return self.append(500, self.data[500:])

    def setUp(self) -> None:
        """Have no session but those of the tests."""
        super().setUp()
        self.client("DELETE", self.target, TUS)

    def test_parents(self) -> None:
        """Missing directories are made, as the folder upload of the web UI needs."""
        self.stored(self.send("./a/b/c/file"), 1000)
        self.file = self.root / "a" / "b" / "c" / "file"
        self.complete()

    def test_dst_dir(self) -> None:
        """A directory in the query is where the path starts, as newer SDKs ask."""
        self.stored(self.send("b/file", "&dst_dir=./a"), 1000)
        self.file = self.root / "a" / "b" / "file"
        self.complete()
        self.at(1000)

    def test_empty_dst_dir(self) -> None:
        """An empty directory in the query is the folder itself."""
        self.stored(self.send("file", "&dst_dir="), 1000)
        self.complete()

    def test_names(self) -> None:
        """Names of all sorts are those of the files."""
        for name in ("späte Größe", "雪", 'quo"te', "new\nline", "-rf", "a+b%20c&d=e#f"):
            self.stored(self.send(name), 1000)
            self.file = self.root / name
            self.complete()

    def test_linked_directory(self) -> None:
        """A link that stays inside of the folder is followed to its directory."""
        (self.root / "d").mkdir()
        (self.root / "link").symlink_to("d")
        self.stored(self.send("link/file"), 1000)
        self.file = self.root / "d" / "file"
        self.complete()

    def test_in_place_of_a_link(self) -> None:
        """A link in the place of the file is replaced, not written through."""
        self.file.symlink_to(self.outside / "secret.txt")
        self.stored(self.send("file"), 1000)
        self.assertFalse(self.file.is_symlink())
        self.complete()
        self.assert_untouched()

    def test_in_place_of_a_directory(self) -> None:
        """A directory in the place of the file is an error, and stays."""
        self.target = self.session("file", self.size)
        self.file.mkdir()
        (self.file / "keep").touch()
        answer = self.append(0, self.data)
        self.assertTrue(400 <= answer.status < 500, answer.status)
        self.assert_problem(answer, answer.status)
        self.assertTrue((self.file / "keep").exists())

    def test_below_a_file(self) -> None:
        """A file in the place of a directory is an error, and stays."""
        self.target = self.session("file/x", self.size)
        self.file.write_bytes(b"old")
        answer = self.append(0, self.data)
        self.assertTrue(400 <= answer.status < 500, answer.status)
        self.assertEqual(self.file.read_bytes(), b"old")

    def test_removed_folder(self) -> None:
        """A folder that was deleted meanwhile has no sessions."""
        self.target = self.session("file", self.size)
        self.post("/folder/delete")
        self.assertEqual(self.head().status, 404)
        self.assert_problem(self.append(0, self.data), 404)
        self.assertFalse(self.root.exists())

    def outward(self, answer: Answer) -> None:
        """Check that an upload out of the folder is refused and nothing was written there."""
        self.assertIn(answer.status, (400, 403, 404), answer.body)
        self.assert_problem(answer, answer.status)
        self.assert_untouched()

    def token_for(self, relpath: str) -> str:
        """The target of a session that an upstream proxy has begun without looking."""
        session = uuid4().hex
        (self.root / ".upload").mkdir(exist_ok=True)
        (self.root / ".upload" / session).touch()
        more = {"size": self.size, "session": session}
        return f"/upload?token={self.sign(self.claims('upload', self.vfid, relpath, **more))}"

    def test_escape_by_token(self) -> None:
        """A path out of the folder is refused even when a token names it."""
        for relpath in (*self.escapes(), str(self.outside / "x")):
            self.outward(self.append(0, self.data, self.token_for(relpath)))

    def test_escape_by_dst_dir(self) -> None:
        """A directory out of the folder is refused."""
        depth = os.path.relpath(self.outside, self.root)
        for place in ("..", "../..", depth, str(self.outside), "a/../.."):
            self.target = f"{self.session('x', self.size)}&dst_dir={place}"
            self.outward(self.append(0, self.data))

    def test_escape_by_link(self) -> None:
        """A directory that became a link out of the folder is not followed."""
        self.target = self.session("d/file", self.size)
        self.append(0, self.data[:500])
        (self.root / "d").symlink_to(self.outside)
        self.outward(self.append(500, self.data[500:]))

    def test_escape_by_staging(self) -> None:
        """A staging file that became a link out of the folder is not written through."""
        self.target = self.session("file", self.size)
        self.staging.unlink()
        self.staging.symlink_to(self.outside / "secret.txt")
        self.append(0, self.data)
        self.append(9, self.data[9:])
        self.assert_untouched()

    def test_escape_by_staging_directory(self) -> None:
        """A staging directory that became a link out of the folder is not used."""
        self.target = self.session("file", self.size)
        name = self.staging.name
        shutil.rmtree(self.root / ".upload")
        (self.root / ".upload").symlink_to(self.outside)
        (self.outside / name).write_bytes(b"")
        answer = self.append(0, self.data)
        self.assertTrue(400 <= answer.status < 500, answer.status)
        self.assertEqual((self.outside / name).read_bytes(), b"")


class Offsets(OnUpload):
    """What keeps a file from being spliced."""

    def conflict(self, answer: Answer, offset: int) -> None:
        """Check that a PATCH at the wrong place changed nothing."""
        self.assert_problem(answer, 409)
        self.at(offset)

    def test_ahead(self) -> None:
        """A part that leaves a gap is refused."""
        self.conflict(self.append(1, self.data[1:]), 0)

    def test_behind(self) -> None:
        """A part that was sent already is refused."""
        self.append(0, self.data[:500])
        self.conflict(self.append(0, self.data[:500]), 500)
        self.stored(self.append(500, self.data[500:]), 1000)
        self.complete()

    def test_none(self) -> None:
        """A part of no place is refused."""
        answer = self.append(0, self.data, Upload_Offset="-")
        self.assert_problem(answer, 400)
        self.at(0)

    def test_no_number(self) -> None:
        """A place that is no number is refused."""
        for offset in ("", "-1", "+0", "0x0", "0.0", "1e3", "zero", "0, 0", "0 0", "\u00b2"):
            self.assert_problem(self.append(offset, self.data), 400)
        self.at(0)

    def test_two_numbers(self) -> None:
        """Two places are none."""
        connection = self.connect(self.daemon.client_port)
        head = request_head("PATCH", self.target, {**TUS, "Upload-Offset": "0"}, self.data)
        head = head.replace(b"Upload-Offset: 0", b"Upload-Offset: 0\r\nUpload-Offset: 5")
        connection.write(head + self.data)
        self.assert_problem(connection.receive(), 400)
        self.at(0)

    def test_two_at_once(self) -> None:
        """Of two clients that send the same part at once the file has it once."""
        connections = [self.connect(self.daemon.client_port) for _ in range(8)]
        for connection in connections:
            self.part(connection, 1000)
        for connection in connections:
            try:
                self.assertIn(connection.receive().status, (204, 409))
            except ConnectionError:
                pass  # one that came later has ended it
        offset = int(self.head().header("Upload-Offset") or "-1")
        self.stored(self.append(offset, self.data[offset:]), 1000)
        self.complete()

    def test_beyond_measure(self) -> None:
        """A place beyond all measure is refused, and the daemon lives."""
        for offset in ("9" * 20, "9" * 5000):
            self.assertIn(self.append(offset, self.data).status, (400, 409))
        self.at(0)

    def test_after_completion(self) -> None:
        """After the end a HEAD still says that all is there, for a client that missed it."""
        self.append(0, self.data)
        self.at(1000)
        self.assertEqual(self.head().header("Cache-Control"), "no-store")

    def test_nothing_after_completion(self) -> None:
        """An empty PATCH at the end is fine."""
        self.append(0, self.data)
        self.stored(self.append(1000), 1000)
        self.complete()

    def test_replay_after_completion(self) -> None:
        """The last PATCH is not taken twice, and the file stays whole."""
        self.append(0, self.data[:500])
        self.append(500, self.data[500:])
        self.conflict(self.append(500, self.data[500:]), 1000)
        self.complete()

    def test_empty_file(self) -> None:
        """A file of no bytes is complete from the start, for every way a client ends it."""
        self.append(0, self.data)
        target = self.session("empty", 0)
        answer = self.head(target)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.header("Upload-Offset"), "0")
        self.assertEqual(answer.header("Upload-Length"), "0")
        self.stored(self.append(0, b"", target), 0)
        self.assertEqual((self.root / "empty").read_bytes(), b"")

    def test_unknown_session(self) -> None:
        """A session that does not exist is told as the original tells it."""
        more = {"size": self.size, "session": uuid4().hex}
        token = self.sign(self.claims("upload", self.vfid, "other", **more))
        target = f"/upload?token={token}"
        answer = self.head(target)
        self.assertEqual(answer.status, 404)
        self.assertIsNone(answer.header("Upload-Offset"))
        self.assert_problem(self.append(0, self.data, target), 404)
        self.assertFalse((self.root / "other").exists())

    def test_too_long(self) -> None:
        """More bytes than announced are refused before they are sent."""
        self.assert_problem(self.append(0, self.data + b"x"), 413)
        self.at(0)

    def test_too_long_from_the_middle(self) -> None:
        """More bytes than are left are refused."""
        self.append(0, self.data[:500])
        self.assert_problem(self.append(500, self.data), 413)
        self.at(500)

    def test_too_long_in_chunks(self) -> None:
        """More bytes than announced are refused when their number is not told before."""
        body = chunked(self.data, b"x" * 10)
        self.assert_problem(self.append(0, body, Transfer_Encoding="chunked"), 413)
        self.at(0)
        self.assertFalse(self.file.exists())

    def test_refused_early(self) -> None:
        """A PATCH that is refused is refused before its body is sent."""
        connection = self.connect(self.daemon.client_port)
        self.part(connection, 0, Expect="100-continue", Upload_Offset="7")
        answer = connection.receive()
        self.assertEqual((answer.status, answer.interim), (409, []))

    def test_refused_in_the_middle(self) -> None:
        """A client that sends on after the refusal gets one answer and a whole connection end."""
        connection = self.connect(self.daemon.client_port)
        self.part(connection, 500, Upload_Offset="7")
        self.assertEqual(connection.receive().status, 409)
        connection.write(self.data[500:])
        rest = b""
        try:
            connection.send("HEAD", self.target, {**TUS, "Connection": "close"})
            rest = connection.reader.read()
        except ConnectionResetError:
            pass
        self.assertNotIn(b"HTTP/1.1 400", rest)
        self.assertLessEqual(rest.count(b"HTTP/1.1"), 1)
        self.at(0)

    def test_cut(self) -> None:
        """What came before the connection broke is kept, and the rest completes the file."""
        connection = Connection(self.daemon.client_port)
        self.part(connection, 600)
        connection.cut()
        self.at(600)
        self.stored(self.append(600, self.data[600:]), 1000)
        self.complete()

    def test_cut_in_a_chunk(self) -> None:
        """What came before the connection broke is kept in chunks as well."""
        connection = Connection(self.daemon.client_port)
        headers = {**TUS, "Upload-Offset": "0", "Transfer-Encoding": "chunked"}
        body = chunked(self.data[:400]).removesuffix(b"0\r\n\r\n")
        connection.write(request_head("PATCH", self.target, headers, None) + body)
        connection.cut()
        self.at(400)
        self.stored(self.append(400, self.data[400:]), 1000)
        self.complete()

    def test_cut_at_the_end(self) -> None:
        """A client that leaves without waiting for the last answer has sent its file."""
        connection = Connection(self.daemon.client_port)
        self.part(connection, 1000)
        connection.cut()
        self.at(1000)
        self.complete()

    def test_head_while_stalled(self) -> None:
        """A HEAD ends a stalled PATCH, and tells what came of it for good."""
        stalled = self.connect(self.daemon.client_port)
        self.part(stalled, 600)
        told = int(self.head().header("Upload-Offset") or "-1")
        self.assertTrue(0 <= told <= 600, told)
        self.assertTrue(stalled.closed())
        stalled.write(self.data[600:])
        self.at(told)
        self.stored(self.append(told, self.data[told:]), 1000)
        self.complete()

    def test_patch_while_stalled(self) -> None:
        """A PATCH ends a stalled one, and goes by the offset that it left."""
        stalled = self.connect(self.daemon.client_port)
        self.part(stalled, 600)
        answer = self.append(600, self.data[600:])
        if answer.status == 409:
            told = int(self.head().header("Upload-Offset") or "-1")
            answer = self.append(told, self.data[told:])
        self.stored(answer, 1000)
        self.assertTrue(stalled.closed())
        self.complete()

    def test_retry_while_stalled(self) -> None:
        """A PATCH that is sent again from the start does not splice the file."""
        stalled = self.connect(self.daemon.client_port)
        self.part(stalled, 600)
        answer = self.append(0, self.data)
        self.assertIn(answer.status, (204, 409))
        self.assertTrue(stalled.closed())
        if answer.status == 409:
            told = int(self.head().header("Upload-Offset") or "-1")
            self.stored(self.append(told, self.data[told:]), 1000)
        self.complete()

    def test_stalled_elsewhere(self) -> None:
        """Stalled uploads keep nobody else waiting, the manager included."""
        for number in range(20):
            self.target = self.session(f"stalled-{number}", self.size)
            self.part(self.connect(self.daemon.client_port), 500)
        self.target = self.session("file", self.size)
        self.stored(self.append(0, self.data), 1000)
        self.assertTrue(self.file.read_bytes() == self.data)
        self.assertEqual(self.post("/folder/file/list", relpath=".").status, 200)


class Order(OnUpload):
    """Which of several mistakes is told."""

    def unknown(self) -> str:
        """The target of a session that does not exist."""
        more = {"size": self.size, "session": uuid4().hex}
        token = self.sign(self.claims("upload", self.vfid, "other", **more))
        return f"/upload?token={token}"

    def test_token_before_version(self) -> None:
        """A bad token counts before another version."""
        answer = self.append(0, b"x", "/upload?token=x", Tus_Resumable="0.2.2")
        content = self.assert_problem(answer, 400, "invalid-api-params")
        self.assertIn("token", content["data"])

    def test_version(self) -> None:
        """Another version is refused, with the one that is spoken."""
        for answer in (self.append(0, b"x", Tus_Resumable="0.2.2"), self.head(Tus_Resumable="2")):
            self.assertEqual(answer.status, 412)
            self.assertEqual(answer.header("Tus-Version"), "1.0.0")
        self.assert_problem(self.append(0, b"x", Tus_Resumable="1.0.1"), 412)
        self.at(0)

    def test_version_of_a_delete(self) -> None:
        """Another version deletes nothing."""
        answer = self.client("DELETE", self.target, {"Tus-Resumable": "0.2.2"})
        self.assert_problem(answer, 412)
        self.at(0)

    def test_version_before_content_type(self) -> None:
        """Another version counts before another content type."""
        answer = self.append(0, b"x", Tus_Resumable="0.2.2", Content_Type="text/plain")
        self.assert_problem(answer, 412)

    def test_content_type(self) -> None:
        """Another content type is refused."""
        for kind in ("text/plain", "application/json", "multipart/form-data; boundary=x"):
            self.assert_problem(self.append(0, b"x", Content_Type=kind), 415)
        self.at(0)

    def test_content_type_before_offset(self) -> None:
        """Another content type counts before a missing offset."""
        answer = self.append(0, b"x", Content_Type="text/plain", Upload_Offset="-")
        self.assert_problem(answer, 415)

    def test_offset_before_session(self) -> None:
        """A missing offset counts before a missing session."""
        self.assert_problem(self.append(0, b"x", self.unknown(), Upload_Offset="-"), 400)

    def test_session_before_mismatch(self) -> None:
        """A missing session counts before anything about its bytes."""
        answer = self.append(5, self.data + b"x", self.unknown())
        self.assert_problem(answer, 404)

    def test_mismatch_before_length(self) -> None:
        """A wrong place counts before too many bytes."""
        self.assert_problem(self.append(5, self.data + b"x"), 409)

    def test_checksum_before_session(self) -> None:
        """A checksum that cannot be read is refused before any upload is disturbed."""
        self.assert_problem(self.append(5, self.data + b"x", Upload_Checksum="x y"), 400)


class Checksums(OnUpload):
    """Parts with a checksum."""

    def test_right(self) -> None:
        """A part with the right checksum is taken, by every algorithm that is told."""
        for offset, algorithm in zip(range(0, 1000, 200), DIGESTS, strict=True):
            part = self.data[offset : offset + 200]
            answer = self.append(offset, part, Upload_Checksum=checksum(algorithm, part))
            self.stored(answer, offset + 200)
        self.complete()

    def test_wrong(self) -> None:
        """A part with the wrong checksum is refused and leaves no trace, by every algorithm."""
        self.append(0, self.data[:100])
        for algorithm in DIGESTS:
            answer = self.append(
                100, self.data[100:200], Upload_Checksum=checksum(algorithm, b"other")
            )
            self.assert_problem(answer, 460)
            self.at(100)
        self.stored(self.append(100, self.data[100:]), 1000)
        self.complete()

    def test_wrong_at_the_end(self) -> None:
        """A file whose last part is wrong does not appear."""
        answer = self.append(0, self.data, Upload_Checksum=checksum("sha1", b"other"))
        self.assert_problem(answer, 460)
        self.assertFalse(self.file.exists())
        self.at(0)
        self.stored(self.append(0, self.data), 1000)
        self.complete()

    def test_wrong_and_shorter_again(self) -> None:
        """The bytes of a refused part do not show up behind a shorter one."""
        self.append(0, b"x" * 900, Upload_Checksum=checksum("sha1", b"other"))
        self.stored(self.append(0, self.data[:10]), 10)
        self.at(10)
        self.stored(self.append(10, self.data[10:]), 1000)
        self.complete()

    def test_in_chunks(self) -> None:
        """A body in chunks has a checksum as well."""
        for digest, status in ((checksum("md5", b"x"), 460), (checksum("md5", self.data), 204)):
            answer = self.append(
                0, chunked(self.data), Transfer_Encoding="chunked", Upload_Checksum=digest
            )
            self.assertEqual(answer.status, status)
        self.complete()

    def test_nothing(self) -> None:
        """A part of no bytes has a checksum too."""
        self.stored(self.append(0, b"", Upload_Checksum=checksum("sha1", b"")), 0)
        self.assert_problem(self.append(0, b"", Upload_Checksum=checksum("sha1", b"x")), 460)

    def test_unknown_algorithm(self) -> None:
        """An algorithm that is not told is refused."""
        for value in ("sha3 AAAA", "none AAAA", "SHA-1 AAAA"):
            self.assert_problem(self.append(0, self.data, Upload_Checksum=value), 400)
        self.at(0)

    def test_malformed(self) -> None:
        """What is no checksum is refused."""
        for value in ("", "sha1", "sha1 ", "sha1 !!!!", "sha1 A", "sha1 AAAA BBBB"):
            self.assertIn(self.append(0, self.data, Upload_Checksum=value).status, (400,), value)
        self.at(0)

    def test_cut(self) -> None:
        """A part that was cut cannot be checked, and is not kept."""
        self.append(0, self.data[:100])
        connection = Connection(self.daemon.client_port)
        headers = {**TUS, "Upload-Offset": "100", "Content-Length": "900"}
        headers["Upload-Checksum"] = checksum("sha1", self.data[100:])
        connection.write(request_head("PATCH", self.target, headers, None) + self.data[100:500])
        connection.cut()
        self.at(100)
        self.stored(self.append(100, self.data[100:]), 1000)
        self.complete()


class Creation(OnUpload):
    """Plain tus clients, that know an endpoint and POST to it."""

    def create(self, **more: str) -> Answer:
        """POST as tus clients do."""
        headers = {**TUS, "Upload-Length": str(self.size)}
        headers.update({name.replace("_", "-"): value for name, value in more.items()})
        headers = {name: value for name, value in headers.items() if value != "-"}
        return self.client("POST", self.target, headers)

    def test_location(self) -> None:
        """The answer says where to send the file to, whatever the proxy's address is."""
        answer = self.create(Upload_Metadata="filename ZmlsZQ==")
        self.assertEqual(answer.status, 201, answer.body)
        location = answer.header("Location") or ""
        self.assertNotIn("//", location.partition("?")[0])
        url = urljoin(f"http://daemon{self.target}", location)
        self.assertTrue(url.startswith("http://daemon/"), url)
        self.target = url.removeprefix("http://daemon")
        self.at(0)
        self.stored(self.append(0, self.data), 1000)
        self.complete()

    def test_behind_a_prefix(self) -> None:
        """The location holds behind a reverse proxy that adds a directory."""
        location = self.create().header("Location") or ""
        url = urljoin(f"http://front/storage{self.target}", location)
        self.assertTrue(url.startswith("http://front/storage/upload"), url)

    def test_headers(self) -> None:
        """The answer has what tus asks for."""
        answer = self.create()
        self.assertEqual(answer.header("Tus-Resumable"), "1.0.0")
        self.assertIsNotNone(answer.header("Upload-Expires"))

    def test_again(self) -> None:
        """A creation that is repeated after a lost answer loses nothing."""
        self.create()
        self.append(0, self.data[:500])
        self.assertEqual(self.create().status, 201)
        self.at(500)

    def test_other_length(self) -> None:
        """A length other than announced to the manager is refused."""
        for length in ("999", "1001", "-1", "x", "-"):
            self.assert_problem(self.create(Upload_Length=length), 400)
        self.at(0)

    def test_no_token(self) -> None:
        """Nothing is created without a token."""
        self.target = "/upload"
        self.assert_problem(self.create(), 400, "invalid-api-params")

    def test_version(self) -> None:
        """Nothing is created for another version."""
        answer = self.create(Tus_Resumable="0.2.2")
        self.assert_problem(answer, 412)
        self.assertEqual(answer.header("Tus-Version"), "1.0.0")

    def test_empty_file(self) -> None:
        """A file of no bytes is created as well."""
        self.target, self.size = self.session("empty", 0), 0
        self.assertEqual(self.create().status, 201)
        self.assertEqual((self.root / "empty").read_bytes(), b"")


class Termination(OnUpload):
    """Uploads that are given up."""

    def test_unfinished(self) -> None:
        """An unfinished upload is gone with all that was sent."""
        self.append(0, self.data[:500])
        answer = self.client("DELETE", self.target, TUS)
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertEqual(answer.header("Tus-Resumable"), "1.0.0")
        self.assertEqual(self.head().status, 404)
        self.assert_problem(self.append(500, self.data[500:]), 404)
        self.assertEqual([path for path in self.root.rglob("*") if path.is_file()], [])

    def test_twice(self) -> None:
        """What is gone is gone."""
        self.client("DELETE", self.target, TUS)
        self.assert_problem(self.client("DELETE", self.target, TUS), 404)

    def test_finished(self) -> None:
        """A finished upload is a file, and no upload to give up."""
        self.append(0, self.data)
        self.assert_problem(self.client("DELETE", self.target, TUS), 404)
        self.complete()

    def test_others(self) -> None:
        """Other uploads into the folder stay."""
        other = self.session("other", self.size)
        self.client("DELETE", self.target, TUS)
        self.at(0, other)

    def test_without_version(self) -> None:
        """A client that does not say its version may give up too."""
        self.assertEqual(self.client("DELETE", self.target).status, 204)

    def test_while_stalled(self) -> None:
        """An upload that is being sent can be given up, as Uppy's cancel does."""
        stalled = self.connect(self.daemon.client_port)
        self.part(stalled, 500)
        self.assertEqual(self.client("DELETE", self.target, TUS).status, 204)
        self.assertTrue(stalled.closed())
        self.assertEqual([path for path in self.root.rglob("*") if path.is_file()], [])


class Pages(OnUpload):
    """Uploads by the script of a web page."""

    def answers(self, headers: Headers) -> dict[str, Answer]:
        """One answer of every kind."""
        bad = "/upload?token=x"
        offset = {**headers, "Upload-Offset": "0"}
        ours = self.target
        more = {"size": self.size, "session": uuid4().hex}
        token = self.sign(self.claims("upload", self.vfid, "other", **more))
        gone = f"/upload?token={token}"
        length = {**headers, "Upload-Length": str(self.size)}
        wrong = {**offset, "Upload-Checksum": checksum("md5", b"other")}
        return {
            "OPTIONS 200": self.client("OPTIONS", "/upload", headers),
            "HEAD 200": self.client("HEAD", ours, headers),
            "HEAD 400": self.client("HEAD", bad, headers),
            "HEAD 404": self.client("HEAD", gone, headers),
            "GET 405": self.client("GET", ours, headers),
            "PATCH 400": self.client("PATCH", ours, headers, b"x"),
            "PATCH 404": self.client("PATCH", gone, offset, b"x"),
            "PATCH 409": self.client("PATCH", ours, {**headers, "Upload-Offset": "5"}, b"x"),
            "PATCH 412": self.client("PATCH", ours, {**offset, "Tus-Resumable": "9"}, b"x"),
            "PATCH 413": self.client("PATCH", ours, offset, self.data + b"x"),
            "PATCH 415": self.client("PATCH", ours, {**offset, "Content-Type": "a/b"}, b"x"),
            "PATCH 460": self.client("PATCH", ours, wrong, b"x"),
            "PATCH 204": self.client("PATCH", ours, offset, b"x"),
            "POST 201": self.client("POST", ours, length),
            "POST 400": self.client("POST", ours, headers),
            "DELETE 204": self.client("DELETE", ours, headers),
            "DELETE 404": self.client("DELETE", ours, headers),
        }

    def test_statuses(self) -> None:
        """The answers of the tests below are what they are taken for."""
        for name, answer in self.answers({}).items():
            self.assertEqual(answer.status, int(name[-3:]), name)

    def test_without_origin(self) -> None:
        """Everybody may read any answer, as on the original."""
        for name, answer in self.answers({}).items():
            self.assertEqual(answer.header("Access-Control-Allow-Origin"), "*", name)

    def test_origin(self) -> None:
        """A page of an origin may read any answer, with its credentials."""
        for name, answer in self.answers({"Origin": ORIGIN}).items():
            self.assertEqual(answer.header("Access-Control-Allow-Origin"), ORIGIN, name)
            self.assertEqual(answer.header("Access-Control-Allow-Credentials"), "true", name)
            self.assertIn("origin", answer.words("Vary"), name)

    def test_exposed(self) -> None:
        """A page may read the headers that an uploader works with."""
        needed = {"tus-resumable", "upload-length", "upload-offset", "upload-metadata"}
        needed |= {"location", "upload-expires", "tus-version", "tus-extension"}
        for name, answer in self.answers({"Origin": ORIGIN}).items():
            if name != "OPTIONS 200":
                exposed = answer.words("Access-Control-Expose-Headers")
                self.assertLessEqual(needed, exposed, name)

    def test_preflight(self) -> None:
        """A page may send the headers that it asks for, by every method."""
        for method in ("PATCH", "HEAD", "POST", "DELETE"):
            headers = {
                "Origin": ORIGIN,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "tus-resumable,upload-offset,x-custom",
            }
            answer = self.client("OPTIONS", self.target, headers)
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.header("Access-Control-Allow-Origin"), ORIGIN)
            self.assertIn(method.lower(), answer.words("Access-Control-Allow-Methods"))
            allowed = answer.words("Access-Control-Allow-Headers")
            self.assertLessEqual({"tus-resumable", "upload-offset", "x-custom"}, allowed)

    def test_preflight_by_default(self) -> None:
        """Without a question the headers of an uploader are allowed."""
        allowed = self.client("OPTIONS", "/upload").words("Access-Control-Allow-Headers")
        needed = {"tus-resumable", "upload-length", "upload-metadata", "upload-offset"}
        self.assertLessEqual(needed | {"content-type", "upload-checksum"}, allowed)

    def test_preflight_makes_no_headers(self) -> None:
        """What is echoed to a page is no way to make up headers."""
        connection = self.connect(self.daemon.client_port)
        headers = {"Origin": "x\ry", "Access-Control-Request-Headers": "a\rX-Injected: b"}
        connection.send("OPTIONS", "/upload", headers)
        answer = connection.receive()
        self.assertIsNone(answer.header("X-Injected"))


class SmallUploads(OnFolder):
    """``max-upload-size`` as an operator sets it."""

    settings = SMALL

    def test_told(self) -> None:
        """The limit is told."""
        answer = self.client("OPTIONS", "/upload")
        self.assertEqual(answer.header("Tus-Max-Size"), str(2**20))

    def test_upstream_token(self) -> None:
        """A token of a proxy without the limit does not get around it."""
        session = uuid4().hex
        (self.root / ".upload").mkdir()
        (self.root / ".upload" / session).touch()
        size = 2**20 + 1
        token = self.sign(self.claims("upload", self.vfid, "file", size=size, session=session))
        headers = {**TUS, "Upload-Offset": "0"}
        answer = self.client("PATCH", f"/upload?token={token}", headers, b"x" * size)
        self.assert_problem(answer, 413)
        self.assertFalse((self.root / "file").exists())


globals().update(
    dialects(
        Capabilities,
        Sending,
        BigFile,
        Places,
        Offsets,
        Order,
        Checksums,
        Creation,
        Termination,
        Pages,
        SmallUploads,
    )
)
