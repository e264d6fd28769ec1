"""
Uploads and downloads by the commands people have at hand: curl and wget.
"""

from __future__ import annotations

import email
import email.message
import email.policy
import json
import os
import zipfile
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from tests.functional.clients.case import KIB, MIB, ClientCase, noise
from tests.functional.cutter import Fault, Kind, Way

TUS = "Tus-Resumable: 1.0.0"
OCTETS = "Content-Type: application/offset+octet-stream"
PARTIAL_FILE = 18
HTTP_ERROR = 22
BROKEN_CONNECTION = (18, 55, 56)
WGET_NETWORK_FAILURE = 4
WGET_SERVER_ERROR = 8


@dataclass(frozen=True)
class Answer:
    """
    How a run of curl ended.

    :ivar exit: its exit status.
    :ivar headers: the headers of the last answer, by their names in lower case.
    :ivar body: what it wrote to the output file, empty when it wrote nothing.
    :ivar talk: what ``-v`` said.
    :ivar info: what curl itself has measured (``--write-out '%{json}'``).
    """

    exit: int
    headers: dict[str, str]
    body: bytes
    talk: str
    info: dict[str, Any]

    @property
    def status(self) -> int:
        """The HTTP status of the last answer."""
        status: int = self.info["http_code"]
        return status


def words(header: str) -> set[str]:
    """The items of a list in a header, in lower case."""
    return {word.strip().lower() for word in header.split(",")}


class CurlCase(ClientCase):
    """A test that runs curl."""

    def curl(
        self, url: str, *options: str, content: bytes | None = None, into: str = "answer.bin"
    ) -> Answer:
        """Run curl with some options for one URL."""
        head = self.work / "head.txt"
        head.unlink(missing_ok=True)
        output = self.work / into
        if "-C" not in options:
            output.unlink(missing_ok=True)
        ended = self.execute(
            *("curl", "-q", "-v", "-sS", "-g", "--noproxy", "*", "--max-time", "100"),
            *("-D", str(head), "-o", str(output), "-w", "%{json}"),
            *options,
            url,
            content=content,
        )
        heads = head.read_bytes().decode("latin-1") if head.exists() else ""
        last = email.message_from_string(heads.strip().split("\r\n\r\n")[-1].partition("\r\n")[2])
        return Answer(
            exit=ended.returncode,
            headers={name.lower(): value for name, value in last.items()},
            body=output.read_bytes() if output.exists() else b"",
            talk=ended.stderr.decode("utf-8", "replace"),
            info=json.loads(ended.stdout),
        )

    def patch(self, url: str, offset: int, *options: str, content: bytes | None = None) -> Answer:
        """A PATCH with the headers of tus at an offset."""
        headers = ("-H", TUS, "-H", OCTETS, "-H", f"Upload-Offset: {offset}")
        return self.curl(url, "-X", "PATCH", *headers, *options, content=content)

    def assert_offset(self, url: str, offset: int) -> None:
        """HEAD says that the session is at this offset."""
        answer = self.curl(url, "-I", "-H", TUS)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["upload-offset"], str(offset))

    def download_url(self, name: str = "data.bin") -> str:
        """The URL of a file's download."""
        return self.daemon.download_url(self.vfid, name)


class CurlUploadTests(CurlCase):
    """Uploads by curl."""

    def test_upload(self) -> None:
        """One PATCH; curl asks with Expect: 100-continue first and is told to go on."""
        source = self.source(20 * MIB)
        session = self.session(20 * MIB)
        answer = self.patch(session.url, 0, "-T", str(source))
        self.assertEqual((answer.exit, answer.status), (0, 204))
        self.assertIn("Expect: 100-continue", answer.talk)
        self.assertIn("HTTP/1.1 100 Continue", answer.talk)
        self.assertEqual(answer.headers["upload-offset"], str(20 * MIB))
        self.assertEqual(answer.headers["tus-resumable"], "1.0.0")
        self.assertNotIn("content-length", answer.headers)
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()
        self.assert_offset(session.url, 20 * MIB)

    def test_plain_headers(self) -> None:
        """Neither Tus-Resumable nor a Content-Type of tus, as users of the original send it."""
        for kind in ("Content-Type:", "Content-Type: application/octet-stream"):
            source = self.source(3 * MIB)
            session = self.session(3 * MIB, f"{len(kind)}.bin")
            answer = self.curl(
                session.url,
                *("-X", "PATCH", "-H", "Upload-Offset: 0", "-H", kind),
                *("--data-binary", f"@{source}"),
            )
            self.assertEqual((answer.exit, answer.status), (0, 204))
            self.assert_identical(session.target, source)

    def test_chunked(self) -> None:
        """From a pipe, whose length curl does not know: a chunked body."""
        source = self.source(7 * MIB)
        session = self.session(7 * MIB)
        answer = self.patch(session.url, 0, "-T", "-", content=source.read_bytes())
        self.assertIn("Transfer-Encoding: chunked", answer.talk)
        self.assertEqual((answer.exit, answer.status), (0, 204))
        self.assert_identical(session.target, source)

    def test_one_connection(self) -> None:
        """HEAD, two PATCHes and HEAD again on one connection."""
        source = self.source(4 * MIB)
        session = self.session(4 * MIB)
        halves = [self.work / "first", self.work / "second"]
        content = source.read_bytes()
        halves[0].write_bytes(content[:MIB])
        halves[1].write_bytes(content[MIB:])
        common = ("-sS", "--noproxy", "*", "-H", TUS, "-o", str(self.work / "answer.bin"))
        report = ("-w", "%{http_code} %{num_connects}\n")
        ended = self.execute(
            *("curl", "-q", *common, *report, "-I", session.url),
            *("--next", *common, *report, "-X", "PATCH", "-H", OCTETS),
            *("-H", "Upload-Offset: 0", "-T", str(halves[0]), session.url),
            *("--next", *common, *report, "-X", "PATCH", "-H", OCTETS),
            *("-H", f"Upload-Offset: {MIB}", "-T", str(halves[1]), session.url),
            *("--next", *common, *report, "-I", session.url),
        )
        self.assertEqual(ended.returncode, 0, ended.stderr.decode())
        self.assertEqual(ended.stdout.decode().split("\n")[:4], ["200 1", *["204 0"] * 2, "200 0"])
        self.assert_identical(session.target, source)

    def test_refused_before_the_body(self) -> None:
        """A PATCH at the wrong offset is refused without 100 Continue: the body stays at home."""
        source = self.source(20 * MIB)
        session = self.session(20 * MIB)
        answer = self.patch(session.url, 4096, "-T", str(source))
        self.assertEqual(answer.status, 409)
        self.assertNotIn("100 Continue", answer.talk)
        self.assertEqual(answer.info["size_upload"], 0)
        self.assertIsInstance(json.loads(answer.body)["msg"], str)
        self.assert_offset(session.url, 0)

    def test_refused_while_sending(self) -> None:
        """Without Expect the body is on its way already: the client still sees the answer."""
        source = self.source(20 * MIB)
        session = self.session(20 * MIB)
        answer = self.patch(session.url, 4096, "-H", "Expect:", "-T", str(source))
        self.assertEqual(answer.status, 409)
        self.assertIsInstance(json.loads(answer.body)["msg"], str)
        self.assert_offset(session.url, 0)

    def test_abort_and_resume(self) -> None:
        """Cut in mid-body; HEAD tells the offset and ``-C OFFSET`` sends the rest."""
        cutter = self.cutter(Fault(9 * MIB))
        source = self.source(24 * MIB)
        session = self.session(24 * MIB)
        broken = self.patch(cutter.url(session.url), 0, "-T", str(source))
        self.assertIn(broken.exit, BROKEN_CONNECTION)
        head = self.curl(session.url, "-I", "-H", TUS)
        offset = int(head.headers["upload-offset"])
        self.assertGreater(offset, 0)
        self.assertLessEqual(offset, 9 * MIB)
        self.assertEqual(head.headers["upload-length"], str(24 * MIB))
        self.assertEqual(head.headers["cache-control"], "no-store")
        answer = self.patch(session.url, offset, "-C", str(offset), "-T", str(source))
        self.assertEqual((answer.exit, answer.status), (0, 204))
        self.assertEqual(answer.info["size_upload"], 24 * MIB - offset)
        self.assert_identical(session.target, source)
        self.assert_nothing_staged()

    def test_patch_sent_twice(self) -> None:
        """The same PATCH again, as browsers do on their own: 409, and nothing stored twice."""
        content = noise(5 * MIB)
        session = self.session(5 * MIB)
        first = self.patch(session.url, 0, "-T", "-", content=content[: 2 * MIB])
        self.assertEqual(first.status, 204)
        again = self.patch(session.url, 0, "-T", "-", content=content[: 2 * MIB])
        self.assertEqual(again.status, 409)
        self.assert_offset(session.url, 2 * MIB)
        rest = self.patch(session.url, 2 * MIB, "-T", "-", content=content[2 * MIB :])
        self.assertEqual(rest.status, 204)
        late = self.patch(session.url, 2 * MIB, "-T", "-", content=content[2 * MIB :])
        self.assertGreaterEqual(late.status, 400)
        self.assertLess(late.status, 500)
        self.assertEqual(session.target.read_bytes(), content)
        self.assert_offset(session.url, 5 * MIB)

    def test_form_content_type(self) -> None:
        """curl's own Content-Type for ``--data-binary`` is none of an upload: 415, and why."""
        session = self.session(10)
        answer = self.curl(
            session.url,
            *("-X", "PATCH", "-H", TUS, "-H", "Upload-Offset: 0", "--data-binary", "0123456789"),
        )
        self.assertEqual(answer.status, 415)
        self.assertIn("json", answer.headers["content-type"])
        self.assertIsInstance(json.loads(answer.body)["msg"], str)
        self.assert_offset(session.url, 0)

    def test_too_much(self) -> None:
        """More bytes than announced: 413, and the file does not come to be."""
        session = self.session(1000)
        answer = self.patch(session.url, 0, "--data-binary", "x" * 1001)
        self.assertEqual(answer.status, 413)
        self.assertFalse(session.target.exists())

    def test_delete(self) -> None:
        """DELETE gives a session up."""
        session = self.session(2 * MIB)
        self.patch(session.url, 0, "-T", "-", content=noise(MIB))
        answer = self.curl(session.url, "-X", "DELETE", "-H", TUS)
        self.assertEqual((answer.exit, answer.status), (0, 204))
        self.assertIn(self.curl(session.url, "-I", "-H", TUS).status, (404, 410))
        self.assert_nothing_staged()

    def test_options(self) -> None:
        """What the daemon can do, asked without a token."""
        answer = self.curl(f"{self.daemon.client_url}/upload", "-X", "OPTIONS")
        self.assertIn(answer.status, (200, 204))
        self.assertEqual(answer.headers["tus-version"], "1.0.0")
        extensions = set(answer.headers["tus-extension"].replace(" ", "").split(","))
        self.assertLessEqual({"creation", "termination", "expiration", "checksum"}, extensions)

    def test_origin(self) -> None:
        """With an Origin it is echoed, also on an error; without one everybody may read."""
        session = self.session(10)
        for url, status in (
            (session.url, 200),
            (f"{self.daemon.client_url}/upload?token=nonsense", 400),
        ):
            page = self.curl(url, "-I", "-H", "Origin: http://page.test")
            self.assertEqual(page.status, status)
            self.assertEqual(page.headers["access-control-allow-origin"], "http://page.test")
            self.assertEqual(page.headers["access-control-allow-credentials"], "true")
            self.assertIn("Origin", page.headers["vary"])
            plain = self.curl(url, "-I")
            self.assertEqual(plain.headers["access-control-allow-origin"], "*")

    def test_preflight(self) -> None:
        """What a browser asks before a page's upload with credentials and a header of its own."""
        session = self.session(10)
        answer = self.curl(
            session.url,
            *("-X", "OPTIONS", "-H", "Origin: http://page.test"),
            *("-H", "Access-Control-Request-Method: PATCH"),
            *("-H", "Access-Control-Request-Headers: tus-resumable,upload-offset,x-page"),
        )
        self.assertIn(answer.status, (200, 204))
        self.assertEqual(answer.headers["access-control-allow-origin"], "http://page.test")
        self.assertEqual(answer.headers["access-control-allow-credentials"], "true")
        # With credentials a browser takes "*" for the name of a method or header.
        methods = words(answer.headers["access-control-allow-methods"])
        self.assertLessEqual({"patch", "head", "delete"}, methods)
        allowed = words(answer.headers["access-control-allow-headers"])
        self.assertLessEqual({"tus-resumable", "upload-offset", "x-page"}, allowed)
        head = self.curl(session.url, "-I", "-H", "Origin: http://page.test")
        exposed = words(head.headers["access-control-expose-headers"])
        self.assertLessEqual({"upload-offset", "upload-length", "tus-resumable"}, exposed)


class CurlDownloadTests(CurlCase):
    """Downloads by curl."""

    def test_download(self) -> None:
        """A whole file, and the headers that clients rely on."""
        stored = self.stored(20 * MIB)
        answer = self.curl(self.download_url())
        self.assertEqual((answer.exit, answer.status), (0, 200))
        self.assertEqual(answer.body, stored.read_bytes())
        self.assertEqual(answer.headers["content-type"], "application/octet-stream")
        self.assertEqual(answer.headers["content-length"], str(20 * MIB))
        self.assertEqual(answer.headers["accept-ranges"], "bytes")
        self.assertTrue(answer.headers["etag"].startswith('"'))
        self.assertTrue(answer.headers["content-disposition"].startswith("attachment;filename="))

    def test_head(self) -> None:
        """HEAD has the headers of GET and no body."""
        self.stored(3 * MIB)
        url = self.download_url()
        head = self.curl(url, "-I")
        self.assertEqual((head.exit, head.status), (0, 200))
        get = self.curl(url)
        for name in ("content-length", "last-modified", "etag", "content-disposition"):
            self.assertEqual(head.headers[name], get.headers[name])
        self.assertEqual(head.info["size_download"], 0)

    def test_remote_name(self) -> None:
        """``-OJ`` saves under the file's own name."""
        name = "the final report.bin"
        stored = self.stored(100_000, name)
        url = self.download_url(name)
        ended = self.execute("curl", "-q", "-sS", "--noproxy", "*", "-OJ", url)
        self.assertEqual(ended.returncode, 0, ended.stderr.decode())
        self.assert_identical(self.work / name, stored)

    def test_resume(self) -> None:
        """Cut twice, once in each manner; ``-C -`` gets only what is missing."""
        stored = self.stored(32 * MIB)
        cutter = self.cutter(
            Fault(5 * MIB, Way.DOWN, Kind.CLOSE), Fault(9 * MIB, Way.DOWN, Kind.RESET)
        )
        url = cutter.url(self.download_url())
        first = self.curl(url)
        self.assertEqual(first.exit, PARTIAL_FILE)
        second = self.curl(url, "-C", "-")
        self.assertIn(second.exit, BROKEN_CONNECTION)
        self.assertEqual(second.status, 206)
        before = len(second.body)
        third = self.curl(url, "-C", "-")
        self.assertEqual((third.exit, third.status), (0, 206))
        self.assertEqual(third.info["size_download"], 32 * MIB - before)
        self.assertEqual(
            third.headers["content-range"], f"bytes {before}-{32 * MIB - 1}/{32 * MIB}"
        )
        self.assert_identical(self.work / "answer.bin", stored)

    def test_resume_of_a_complete_file(self) -> None:
        """``-C -`` on a complete file is a 416, which curl takes for what it is."""
        stored = self.stored(MIB)
        url = self.download_url()
        self.curl(url)
        again = self.curl(url, "-C", "-")
        self.assertEqual((again.exit, again.status), (0, 416))
        self.assertEqual(again.headers["content-range"], f"bytes */{MIB}")
        self.assert_identical(self.work / "answer.bin", stored)

    def test_ranges(self) -> None:
        """One range of each form."""
        content = self.stored(MIB).read_bytes()
        url = self.download_url()
        for asked, first, last in (
            ("0-99", 0, 99),
            ("1000-", 1000, MIB - 1),
            ("-100", MIB - 100, MIB - 1),
            ("5-5", 5, 5),
            (f"100-{2 * MIB}", 100, MIB - 1),
        ):
            answer = self.curl(url, "-r", asked)
            self.assertEqual((answer.exit, answer.status), (0, 206), asked)
            self.assertEqual(answer.headers["content-range"], f"bytes {first}-{last}/{MIB}")
            self.assertEqual(answer.headers["content-length"], str(last - first + 1))
            self.assertEqual(answer.body, content[first : last + 1], asked)

    def test_many_ranges(self) -> None:
        """Several ranges come as one multipart answer with an exact length."""
        content = self.stored(MIB).read_bytes()
        answer = self.curl(self.download_url(), "-r", "0-9,5000-5999,-7")
        self.assertEqual((answer.exit, answer.status), (0, 206))
        self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
        kind = answer.headers["content-type"].encode()
        message = email.message_from_bytes(
            b"Content-Type: " + kind + b"\r\n\r\n" + answer.body, policy=email.policy.HTTP
        )
        self.assertEqual(message.get_content_type(), "multipart/byteranges")
        boundary = b"--" + (message.get_boundary() or "").encode()
        parts = [part.partition(b"\r\n\r\n") for part in answer.body.split(boundary)[1:-1]]
        bodies = [body.removesuffix(b"\r\n") for _, _, body in parts]
        self.assertEqual(bodies, [content[:10], content[5000:6000], content[-7:]])
        self.assertIn(b"bytes 5000-5999/%d" % MIB, parts[1][0])

    def test_range_past_the_end(self) -> None:
        """A range behind the file's end is a 416 that tells the length."""
        self.stored(1000)
        answer = self.curl(self.download_url(), "-r", "1000-")
        self.assertEqual(answer.status, 416)
        self.assertEqual(answer.headers["content-range"], "bytes */1000")

    def test_unchanged(self) -> None:
        """A file that has not changed is not sent again, by tag and by date."""
        stored = self.stored(MIB)
        url = self.download_url()
        tag = str(self.work / "tag.txt")
        self.assertEqual(self.curl(url, "--etag-save", tag).status, 200)
        self.assertEqual(self.curl(url, "--etag-compare", tag).status, 304)
        date = self.curl(url, "-I").headers["last-modified"]
        self.assertEqual(self.curl(url, "-z", date).status, 304)
        stored.write_bytes(noise(MIB)[::-1])
        self.assertEqual(self.curl(url, "--etag-compare", tag).status, 200)

    def test_never_compressed(self) -> None:
        """A client that could unpack gzip gets the file itself, also beside a packed one."""
        stored = self.stored(100_000, "data.txt")
        self.stored(50, "data.txt.gz")
        answer = self.curl(self.download_url("data.txt"), "--compressed")
        self.assertIn("gzip", answer.talk)
        self.assertNotIn("content-encoding", answer.headers)
        self.assertEqual(answer.headers["content-length"], "100000")
        self.assertEqual(answer.body, stored.read_bytes())

    def test_missing(self) -> None:
        """A missing file is a 404 with a reason in JSON, for pages as well."""
        url = self.download_url("missing.bin")
        answer = self.curl(url, "-H", "Origin: http://page.test")
        self.assertEqual(answer.status, 404)
        self.assertIsInstance(json.loads(answer.body)["msg"], str)
        self.assertEqual(answer.headers["access-control-allow-origin"], "http://page.test")
        self.assertEqual(self.curl(url, "-f").exit, HTTP_ERROR)

    def test_odd_name(self) -> None:
        """Quotes, a line break and letters of the world in a name make no other header."""
        name = 'grün "quoted"\r\nX-Injected: 1; 日本.bin'
        stored = self.stored(1000, name)
        answer = self.curl(self.download_url(name), "-H", "Origin: http://page.test")
        self.assertEqual((answer.exit, answer.status), (0, 200))
        self.assertEqual(answer.body, stored.read_bytes())
        self.assertNotIn("x-injected", answer.headers)
        disposition = answer.headers["content-disposition"]
        self.assertEqual(unquote(disposition.rpartition("filename*=UTF-8''")[2]), name)
        exposed = words(answer.headers["access-control-expose-headers"])
        self.assertIn("content-disposition", exposed)

    def test_archive(self) -> None:
        """A directory as a zip archive, whose length is known from the start."""
        self.stored(3 * MIB, "tree/a.bin")
        self.stored(0, "tree/sub/empty.bin")
        (self.folder / "tree" / "bare").mkdir()
        answer = self.curl(self.download_url("tree") + "&archive=true")
        self.assertEqual((answer.exit, answer.status), (0, 200))
        self.assertEqual(answer.headers["content-type"], "application/zip")
        self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
        with zipfile.ZipFile(self.work / "answer.bin") as archive:
            self.assertIsNone(archive.testzip())
            self.assertLessEqual({"a.bin", "sub/empty.bin", "bare/"}, set(archive.namelist()))
            self.assertEqual(archive.read("a.bin"), noise(3 * MIB))


class WgetTests(ClientCase):
    """Downloads by wget."""

    def wget(self, url: str, *options: str) -> int:
        """Run wget and return its exit status."""
        common = ("--no-config", "--no-proxy", "--no-verbose", "--waitretry=0", "--timeout=60")
        return self.execute("wget", *common, *options, url).returncode

    def test_download(self) -> None:
        """The name comes from Content-Disposition, the time from Last-Modified."""
        stored = self.stored(3 * MIB, "the data.bin")
        os.utime(stored, ns=(10**18, 10**18))
        url = self.daemon.download_url(self.vfid, "the data.bin")
        self.assertEqual(self.wget(url, "--content-disposition"), 0)
        result = self.work / "the data.bin"
        self.assert_identical(result, stored)
        self.assertEqual(result.stat().st_mtime, 10**9)

    def test_cut_thrice(self) -> None:
        """wget goes on by itself after each cut."""
        stored = self.stored(32 * MIB)
        cutter = self.cutter(
            *(Fault(size, Way.DOWN, Kind.CLOSE) for size in (5 * MIB, 70 * KIB, 9 * MIB))
        )
        url = cutter.url(self.daemon.download_url(self.vfid, "data.bin"))
        self.assertEqual(self.wget(url, "-t", "6", "-O", "result.bin"), 0)
        self.assertEqual(cutter.struck, 3)
        self.assertLess(cutter.passed[Way.DOWN], 33 * MIB)
        self.assert_identical(self.work / "result.bin", stored)

    def test_continue(self) -> None:
        """``wget -c`` gets the rest of a file, and leaves a complete one alone."""
        stored = self.stored(16 * MIB)
        cutter = self.cutter(Fault(5 * MIB, Way.DOWN, Kind.CLOSE))
        url = cutter.url(self.daemon.download_url(self.vfid, "data.bin"))
        result = self.work / "result.bin"
        self.assertEqual(self.wget(url, "-t", "1", "-O", result.name), WGET_NETWORK_FAILURE)
        self.assertLess(result.stat().st_size, 16 * MIB)
        self.assertEqual(self.wget(url, "-c", "-O", result.name), 0)
        self.assertLess(cutter.passed[Way.DOWN], 17 * MIB)
        self.assert_identical(result, stored)
        self.assertEqual(self.wget(url, "-c", "-O", result.name), 0)
        self.assertLess(cutter.passed[Way.DOWN], 17 * MIB)
        self.assert_identical(result, stored)

    def test_spider(self) -> None:
        """``--spider`` asks by HEAD whether there is something."""
        self.stored(MIB)
        cutter = self.cutter()
        there = cutter.url(self.daemon.download_url(self.vfid, "data.bin"))
        self.assertEqual(self.wget(there, "--spider"), 0)
        self.assertLess(cutter.passed[Way.DOWN], 4 * KIB)
        missing = self.daemon.download_url(self.vfid, "missing.bin")
        self.assertEqual(self.wget(missing, "--spider"), WGET_SERVER_ERROR)
